"""A model that crashes, hangs or eats memory is a recorded failure; the caller and the store live on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

import mlscope_lab as ml
from mlscope_lab import plugins
from mlscope_lab.errors import InputError, RunError

torch = pytest.importorskip("torch")

HOSTILE = """
import os, signal, sys, time
import torch

class Model(torch.nn.Module):
    def __init__(self, deed):
        super().__init__()
        self.deed = deed

    def forward(self, x):
        print("about to", self.deed, flush=True)
        if self.deed == "abort":
            os.abort()
        if self.deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.deed == "exit":
            os._exit(0)
        if self.deed == "hang":
            time.sleep(600)
        if self.deed == "eat":
            hoard = []
            while True:
                hoard.append(bytearray(os.urandom(1 << 20)) * 64)
        if self.deed == "raise":
            raise ValueError("the model is unhappy <b>")
        if self.deed == "chatter":
            sys.stdout.write("x" * 3_000_000)
        return x + 1

def build(*, deed):
    return Model(deed)
"""


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A package that registers an architecture, as any plugin would, and a manifest for each of its deeds."""
    site = tmp_path / "site"
    info = site / "hostile-0.1.dist-info"
    info.mkdir(parents=True)
    (site / "hostile_models.py").write_text(HOSTILE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[mlscope_lab.architectures]\nhostile = hostile_models:build\n")
    monkeypatch.syspath_prepend(str(site))
    plugins.refresh()
    torch.save({}, tmp_path / "empty.pt")

    def manifest(deed: str) -> Path:
        file = tmp_path / f"{deed}.yaml"
        file.write_text(
            textwrap.dedent(f"""
            kind: model
            name: {deed}
            task: tensor
            inputs: [{{name: x, dtype: float32, shape: [batch, 4]}}]
            outputs: [{{name: y, dtype: float32, shape: [batch, 4]}}]
            sources:
              - format: torch_state_dict
                architecture: hostile
                parameters: {{deed: {deed}}}
                location: {{from: file, path: empty.pt}}
            """)
        )
        return file

    yield manifest
    plugins.refresh()


@pytest.mark.parametrize(
    ("deed", "kind", "words"),
    [
        ("abort", "crash", "SIGABRT"),
        ("kill", "crash", "SIGKILL"),
        ("exit", "crash", "exit status 0"),
        ("hang", "timeout", "timeout_s=20"),
        ("eat", "out_of_memory", "limit"),
        ("raise", "error", "the model is unhappy"),
    ],
)
def test_a_bad_model_is_a_recorded_failure_and_the_next_run_works(hostile, deed, kind, words):
    limits = {"timeout_s": 20.0} if deed == "hang" else {"memory_limit_bytes": 1_500_000_000} if deed == "eat" else {}
    with pytest.raises(RunError, match=words) as caught:
        ml.profile(hostile(deed), iterations=2, **limits)
    assert caught.value.kind == kind
    failed = ml.open_run(caught.value.run_id)
    assert failed.attrs["status"] == "failed"
    assert failed.attrs["failure"]["kind"] == kind
    if deed != "hang":  # on a slow machine the time may be up before the model is even loaded
        assert any(f"about to {deed}" in line for line in failed.attrs["failure"]["log"])
    assert not [p for p in psutil.Process().children(recursive=True) if "worker" in " ".join(p.cmdline())]

    good = ml.profile(hostile("add"), iterations=2)
    assert good.attrs["status"] == "complete"
    assert sorted(ml.runs()["status"]) == ["complete", "failed"]


def test_what_a_model_prints_does_not_disturb(hostile):
    run = ml.profile(hostile("chatter"), iterations=2)
    assert run.attrs["status"] == "complete"


def test_an_input_that_does_not_fit_is_the_callers_error_and_no_run(hostile):
    import numpy as np

    with pytest.raises(InputError, match=r"x: float32\[batch, 4\]"):
        ml.profile(hostile("add"), np.zeros((1, 5), np.float32), iterations=2)
    assert len(ml.runs()) == 0


def test_ctrl_c_leaves_no_process_and_no_run(hostile, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import mlscope_lab as ml\nml.profile({str(hostile('hang'))!r}, iterations=2)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    caller = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE)
    worker = _worker_of(caller.pid)
    time.sleep(1.0)
    caller.send_signal(signal.SIGINT)
    _, stderr = caller.communicate(timeout=600)
    assert b"KeyboardInterrupt" in stderr
    assert not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE
    assert len(ml.runs()) == 0


def test_a_worker_dies_with_its_parent(hostile, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"import mlscope_lab as ml\nml.profile({str(hostile('hang'))!r}, iterations=2)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    caller = subprocess.Popen([sys.executable, str(script)], env=environment)
    worker = _worker_of(caller.pid)
    caller.kill()
    caller.wait()
    worker.wait(timeout=600)


def _worker_of(pid: int) -> psutil.Process:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        for child in psutil.Process(pid).children():
            if "mlscope_lab.launchers.worker" in child.cmdline():
                return child
        time.sleep(0.05)
    raise AssertionError("no worker was started")
