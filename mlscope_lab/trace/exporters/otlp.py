"""A run as spans in an OpenTelemetry collector, Jaeger or Zipkin.

Anything that takes OTLP over HTTP will do: a collector, Jaeger since 1.35, Grafana Tempo. An address whose path ends in
``/api/v2/spans`` is Zipkin's, and gets Zipkin's JSON. Headers for a service that wants a key are taken from
OTEL_EXPORTER_OTLP_HEADERS, as OpenTelemetry has it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlscope_lab.errors import InputError, StoreError
from mlscope_lab.trace.exporters.spans import Span, count_spans, spans_of, trace_id

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["export_otlp"]

_BATCH = 512
_MOST_SPANS = 1_000_000
_TIMEOUT_S = 10.0


def export_otlp(run: xr.DataTree, endpoint: str | os.PathLike[str], *, max_spans: int = _MOST_SPANS) -> str:
    """Send a run to a collector.

    Parameters
    ----------
    run
        A run, opened lazily or not.
    endpoint
        Address such as ``http://localhost:4318`` (OTLP over HTTP; ``/v1/traces`` is added where there is no path), or
        ``http://localhost:9411/api/v2/spans`` (Zipkin).
    max_spans
        The most spans to send: a viewer that shows them one by one is of no use with more.

    Returns
    -------
    str
        The address that took them.

    Raises
    ------
    InputError
        If the address is none, or the run has too many spans.
    StoreError
        If nothing listens there, or it does not take the spans.
    """
    url = _address(os.fspath(endpoint))
    wanted = count_spans(run)
    if wanted > max_spans:
        raise InputError(
            f"Run {run.attrs.get('run_id')} has {wanted:,} spans, more than {max_spans:,}; export it for Perfetto "
            "instead (--to perfetto), or raise max_spans"
        )
    _reach(url)
    send = _Zipkin(run, url) if urlsplit(url).path.endswith("/api/v2/spans") else _Otlp(run, url)
    spans = spans_of(run)
    sent = 0
    with send:
        while batch := list(islice(spans, _BATCH)):
            send.send(batch, sent)
            sent += len(batch)
    return url


def _address(endpoint: str) -> str:
    # a path object makes one slash of two
    text = endpoint.replace(":/", "://", 1) if ":/" in endpoint and "://" not in endpoint else endpoint
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in {"http", "https"} or not parts.hostname or port == -1:
        raise InputError(
            f"{endpoint!r} is not the address of a collector; give one such as http://localhost:4318 (OTLP over HTTP) "
            "or http://localhost:9411/api/v2/spans (Zipkin)"
        )
    return text if parts.path not in {"", "/"} else f"{text.rstrip('/')}/v1/traces"


def _reach(url: str) -> None:
    """Fail at once where nobody listens: the SDK would try again and again first."""
    from requests.utils import get_environ_proxies

    if get_environ_proxies(url):
        return  # the proxy answers, not the collector
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_TIMEOUT_S).close()
    except OSError as error:
        raise StoreError(
            f"Nothing answers at {parts.hostname}:{port} ({error.strerror or error}); start the collector, or give its "
            "address for OTLP over HTTP (port 4318, not the 4317 of gRPC)"
        ) from error


def _resource(run: xr.DataTree) -> dict[str, Any]:
    """Return what the semantic conventions say of where the spans come from."""
    from mlscope_lab._version import __version__

    environment = run.attrs.get("environment") or {}
    facts = {
        "service.name": "mlscope-lab",
        "service.version": __version__,
        "service.instance.id": run.attrs.get("run_id"),
        "host.arch": environment.get("architecture"),
        "host.cpu.model.name": environment.get("cpu"),
        "os.description": environment.get("system"),
        "process.runtime.version": environment.get("python"),
    }
    return {name: value for name, value in facts.items() if isinstance(value, str) and value}


class _Otlp:
    """Sends by the OpenTelemetry SDK's exporter."""

    def __init__(self, run: xr.DataTree, url: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import ReadableSpan
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
            from opentelemetry.trace import SpanContext, TraceFlags
        except ImportError as error:
            raise InputError(
                f"Exporting to a collector needs OpenTelemetry ({error}). Install with: pip install 'mlscope-lab[otlp]'"
            ) from error
        self.url, self.trace = url, trace_id(run)
        self._exporter = OTLPSpanExporter(endpoint=url, timeout=_TIMEOUT_S)
        self._span, self._context = ReadableSpan, SpanContext
        self._flags = TraceFlags(TraceFlags.SAMPLED)
        self._resource = Resource(_resource(run))
        self._scope = InstrumentationScope("mlscope_lab", str(self._resource.attributes.get("service.version")))

    def __enter__(self) -> _Otlp:
        return self

    def __exit__(self, *_: object) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _of(self, number: int | None) -> Any:
        return None if number is None else self._context(self.trace, number, is_remote=False, trace_flags=self._flags)

    def send(self, spans: Sequence[Span], before: int) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        made = [
            self._span(
                span.name, context=self._of(span.id), parent=self._of(span.parent), resource=self._resource,
                attributes={**span.attributes, "mlscope.span": span.level}, start_time=max(span.start_ns, 0),
                end_time=max(span.end_ns, 0), instrumentation_scope=self._scope,
            )
            for span in spans
        ]  # fmt: skip
        with _heard("opentelemetry.exporter.otlp") as said:
            done = self._exporter.export(made)
        if done is not SpanExportResult.SUCCESS:
            reason = said[-1] if said else "it gave no reason"
            raise StoreError(
                f"{self.url} did not take the spans after {before:,} of them: {reason}. Does it speak OTLP over HTTP?"
            )


class _Zipkin:
    """Sends Zipkin's JSON, version 2; its times are microseconds, so the exact ones are tags."""

    def __init__(self, run: xr.DataTree, url: str) -> None:
        import requests

        self.url, self.trace = url, f"{trace_id(run):032x}"
        self._session = requests.Session()
        self._tags = {name: str(value) for name, value in _resource(run).items()}

    def __enter__(self) -> _Zipkin:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def send(self, spans: Sequence[Span], before: int) -> None:
        import requests

        body = [
            {
                "traceId": self.trace,
                "id": f"{span.id:016x}",
                **({"parentId": f"{span.parent:016x}"} if span.parent is not None else {}),
                "name": span.name,
                "timestamp": max(span.start_ns // 1000, 1),
                "duration": max((span.end_ns - span.start_ns) // 1000, 1),
                "localEndpoint": {"serviceName": "mlscope-lab"},
                "tags": {
                    **(self._tags if span.parent is None else {}),
                    "mlscope.span": span.level,
                    "mlscope.start_ns": str(span.start_ns),
                    "mlscope.duration_ns": str(span.end_ns - span.start_ns),
                    **{name: str(value) for name, value in span.attributes.items()},
                },
            }
            for span in spans
        ]
        try:
            answer = self._session.post(self.url, json=body, timeout=_TIMEOUT_S)
        except requests.RequestException as error:
            raise StoreError(f"{self.url} did not take the spans after {before:,} of them: {error}") from error
        if not answer.ok:
            raise StoreError(
                f"{self.url} did not take the spans after {before:,} of them: {answer.status_code} {answer.reason}, "
                f"{answer.text[:200]!r}. Does it speak Zipkin's JSON, version 2?"
            )


@contextmanager
def _heard(name: str) -> Iterator[list[str]]:
    """Collect what a logger says, instead of printing it."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    logger, ear = logging.getLogger(name), Ear()
    before = logger.propagate
    logger.addHandler(ear)
    logger.propagate = False
    try:
        yield said
    finally:
        logger.removeHandler(ear)
        logger.propagate = before
