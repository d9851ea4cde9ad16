from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlscope_lab.trace.build import new_run_id


@pytest.fixture(scope="session")
def run_attrs() -> Callable[..., dict[str, Any]]:
    """Return a maker of complete root attributes."""

    def make(**changed: Any) -> dict[str, Any]:
        attrs: dict[str, Any] = {
            "run_id": new_run_id(), "created_at": "2026-11-22T00:30:00+00:00", "status": "complete",
            "model": "efficientnet-lite0", "model_digest": "sha256:" + "1" * 64, "backend": "onnxruntime",
            "backend_version": "1.31.1", "device": "cpu", "precision": "float32", "batch_size": 1, "level": "layer",
            "seed": 0, "threads": 1, "isolation": "subprocess", "execution_mode": "graph",
            "executable_digest": "sha256:" + "5" * 64, "clock_anchor_unix_ns": 1_795_000_000_000_000_000,
            "environment": {"cpu": "some", "load": [0.1, 0.2], "gpu": None, "turbo": True}, "warnings": [],
            "unavailable": {"power": "no counter"},
        }  # fmt: skip
        return attrs | changed

    return make
