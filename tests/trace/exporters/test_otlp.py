"""Spans at a collector: a process of its own that listens on loopback, decodes what arrives and writes it down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from mlscope_lab.errors import InputError, StoreError
from mlscope_lab.testing import synthetic_failed_run, synthetic_run
from mlscope_lab.trace.exporters import export_trace
from mlscope_lab.trace.exporters.otlp import export_otlp
from mlscope_lab.trace.exporters.spans import count_spans, spans_of, trace_id

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="opentelemetry is not installed")

COLLECTOR = """
import gzip, http.server, json, sys
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

out, status = open(sys.argv[1], "w"), int(sys.argv[2])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.headers["Content-Type"].startswith("application/json"):
            found = json.loads(body)
        else:
            found = MessageToDict(ExportTraceServiceRequest.FromString(body))
        out.write(json.dumps({"path": self.path, "body": found}) + "\\n")
        out.flush()
        self.send_response(status)
        self.end_headers()

    def log_message(self, *args):
        pass

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def collector(tmp_path):
    """Start collectors: ``start(status)`` returns the address and a function that returns what arrived."""
    running = []

    def start(status=200):
        log = tmp_path / f"arrived-{len(running)}.jsonl"
        process = subprocess.Popen(
            [sys.executable, "-c", COLLECTOR, str(log), str(status)], stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        port = process.stdout.readline().strip()
        return f"http://127.0.0.1:{port}", lambda: [json.loads(line) for line in log.read_text().splitlines()]

    yield start
    for process in running:
        process.kill()
        process.wait()
        process.stdout.close()


def decoded(requests):
    spans = []
    for request in requests:
        assert request["path"] == "/v1/traces"
        for resource in request["body"]["resourceSpans"]:
            facts = {a["key"]: a["value"]["stringValue"] for a in resource["resource"]["attributes"]}
            assert facts["service.name"] == "mlscope-lab"
            assert facts["host.arch"] == "x86_64"
            for scope in resource["scopeSpans"]:
                assert len(scope["spans"]) <= 512
                spans += scope["spans"]
    return spans


def test_a_collector_gets_every_level_with_exact_times(collector):
    run = synthetic_run(deep=True)
    address, arrived = collector()
    assert export_trace(run, address, "otlp") == [f"{address}/v1/traces"]
    spans = decoded(arrived())
    levels = {s["spanId"]: next(a["value"]["stringValue"] for a in s["attributes"] if a["key"] == "mlscope.span")
              for s in spans}  # fmt: skip
    assert len(levels) == len(spans) <= count_spans(run)
    kernels = run["kernels"].dataset
    assert Counter(levels.values()) == {
        "run": 1, "pass": 6, "iteration": 2 * (20 + 8 + 8), "layer": 2 * 2 * 8 * 12, "operator": 384, "kernel": 240,
    }  # fmt: skip
    for span in spans:
        above = levels[span["parentSpanId"]] if "parentSpanId" in span else None
        assert above in {"run": {None}, "pass": {"run"}, "iteration": {"pass"}, "layer": {"iteration", "layer"},
                         "operator": {"layer", "operator"}, "kernel": {"operator"}}[levels[span["spanId"]]]  # fmt: skip
    found = [s for s in spans if levels[s["spanId"]] == "kernel"]
    starts = kernels["start_ns"].values + run["passes"]["anchor_ns"].values[kernels["pass_index"].values]
    starts = starts + run.attrs["clock_anchor_unix_ns"]
    assert [int(s["startTimeUnixNano"]) for s in found] == starts.tolist()
    lengths = [int(s["endTimeUnixNano"]) - int(s["startTimeUnixNano"]) for s in found]
    np.testing.assert_array_equal(lengths, kernels["duration_ns"])
    told = {a["key"]: next(iter(a["value"].values())) for a in found[0]["attributes"]}
    assert told["hw.type"] == "gpu"
    assert told["mlscope.kernel.grid_x"] == "128"
    assert "mlscope.kernel.grid_y" not in told


def test_the_same_run_gives_the_same_spans(collector):
    run = synthetic_run(deep=True, processes=1)
    one, two = list(spans_of(run)), list(spans_of(run))
    assert one == two
    assert len({span.id for span in one}) == len(one)
    assert trace_id(run) != trace_id(synthetic_run(deep=True, processes=1, seed=1))
    seen = set()
    for span in one:
        assert span.parent is None or span.parent in seen
        assert 0 < span.id < 2**64
        seen.add(span.id)


def test_zipkin_gets_its_own_json(collector):
    run = synthetic_run(processes=1, iterations=2)
    address, arrived = collector(202)
    assert export_otlp(run, f"{address}/api/v2/spans") == f"{address}/api/v2/spans"
    requests = arrived()
    assert {request["path"] for request in requests} == {"/api/v2/spans"}
    spans = [span for request in requests for span in request["body"]]
    assert len(spans) == len(list(spans_of(run)))
    first = spans[0]
    assert "parentId" not in first
    assert first["tags"]["mlscope.model"] == "efficientnet-lite0"
    for span in spans:
        assert int(span["tags"]["mlscope.start_ns"]) // 1000 == span["timestamp"]
        assert span["duration"] >= 1
        assert len(span["traceId"]) == 32
        assert len(span["id"]) == 16


@pytest.mark.parametrize("path", ["", "/api/v2/spans"])
def test_a_collector_that_refuses_is_named(collector, path):
    address, _ = collector(400)
    with pytest.raises(StoreError, match=rf"{address}.* did not take the spans after 0 of them: .*400"):
        export_otlp(synthetic_run(processes=1), address + path)


def test_a_collector_that_is_down_is_named_at_once():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(StoreError, match=rf"Nothing answers at 127.0.0.1:{port}.*start the collector"):
        export_otlp(synthetic_run(processes=1), f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["trace.json", "ftp://host/x", "http://", "http://host:99999/"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(InputError, match="is not the address of a collector; give one such as http://localhost:4318"):
        export_otlp(synthetic_run(processes=1), address)


def test_runs_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="more than 10; export it for Perfetto"):
        export_otlp(synthetic_run(processes=1), "http://127.0.0.1:1", max_spans=10)
    with pytest.raises(InputError, match="no passes"):
        export_otlp(synthetic_failed_run(), "http://127.0.0.1:1")


def test_without_opentelemetry_the_way_out_is_told(collector, monkeypatch):
    address, _ = collector()
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InputError, match=r"pip install 'mlscope-lab\[otlp\]'"):
        export_otlp(synthetic_run(processes=1), address)
