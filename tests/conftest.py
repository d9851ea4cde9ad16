"""Every test has its own home, its own measuring lock and no network unless it says so."""

from __future__ import annotations

import os
import sqlite3  # noqa: F401 - before TensorFlow, whose own SQLite would take its place and has no virtual tables
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from mlscope_lab.config import Settings, load_settings
from mlscope_lab.trace.build import new_run_id

# How fast examples come says something of the machine, not of the code. CI judges a change by the same examples each
# time; people, and MLSCOPE_TEST_EXAMPLES=1000, look for new ones.
hypothesis_settings.register_profile(
    "mlscope",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
    max_examples=int(os.environ.get("MLSCOPE_TEST_EXAMPLES", "100")),
)
hypothesis_settings.load_profile("mlscope")


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path_factory.mktemp("home")
    for name in [n for n in os.environ if n.startswith("MLSCOPE_") and not n.startswith("MLSCOPE_TEST_")]:
        if name not in {"MLSCOPE_CHROMIUM", "MLSCOPE_INDEX_URL"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("MLSCOPE_HOME", str(home))
    monkeypatch.setenv("MLSCOPE_LOCK", str(home / "measuring.lock"))


@pytest.fixture
def settings() -> Settings:
    """Settings of this test's own home."""
    return load_settings()


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("MLSCOPE_TEST_NETWORK", "1") != "0":
        return
    for item in items:
        if item.get_closest_marker("network"):
            item.add_marker(pytest.mark.skip(reason="MLSCOPE_TEST_NETWORK=0"))
