"""What every backend must do at each level below the layers: the part of `BackendContract` about deeper traces."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlscope_lab.backends.base import Backend, Level, Session, SessionOptions
from mlscope_lab.testing.checks import check_layer_trace
from mlscope_lab.testing.event_checks import check_events
from mlscope_lab.trace import schema

__all__ = ["LevelContract"]

_Feeds = Mapping[str, npt.NDArray[Any]]
_Open = Callable[[SessionOptions], Session]
_DEEPER: tuple[Level, ...] = ("operator", "kernel", "hardware")


def _opened(backend: Backend, open_session: _Open, level: Level, scratch: Path) -> Session:
    """Return a session at a level, or skip with the reason why there is none."""
    if (reason := backend.level_reason(level, "cpu")) is not None:
        pytest.skip(f"{backend.name} records no level '{level}' on a CPU: {reason}")
    return open_session(SessionOptions(threads=1, level=level, scratch=scratch))


class LevelContract:
    """Tests of every level that a backend claims; the fixtures are those of `BackendContract`.

    Attributes
    ----------
    rtol, atol
        How close outputs must be to those of a plain session.
    """

    rtol = 1e-4
    atol = 1e-5

    def test_levels_are_told_without_the_framework_and_have_reasons(self, backend: Backend) -> None:
        """Claimed levels are those of the schema, and each other one has a reason."""
        assert "model" in backend.levels
        assert set(backend.levels) <= set(schema.RECORDED_LEVELS)
        assert set(backend.capabilities().levels) <= set(backend.levels)
        for level in schema.RECORDED_LEVELS:
            reason = backend.level_reason(level, "cpu")
            assert reason is None or (isinstance(reason, str) and reason), level
            assert (reason is None) <= (level in backend.levels), level

    @pytest.mark.parametrize("level", _DEEPER)
    def test_deeper_trace_holds_what_ran(
        self, backend: Backend, open_session: _Open, feeds: _Feeds, tmp_path: Path, level: Level
    ) -> None:
        """A deeper trace holds the layers too, and events that can be true; operators of every iteration."""
        session = _opened(backend, open_session, level, tmp_path)
        for _ in range(2):
            session.predict(feeds)
        session.begin_trace()
        for _ in range(3):
            session.predict(feeds)
        trace = session.end_trace()
        check_layer_trace(trace, iterations=3)
        check_events(trace)
        assert len(trace.layers) >= 3
        assert trace.dropped_events == 0
        assert schema.OPERATORS in trace.events
        operators = trace.events[schema.OPERATORS].columns
        assert set(operators["iteration"].tolist()) >= {0, 1, 2}
        assert (operators["layer_index"] >= 0).any()

    @pytest.mark.parametrize("level", _DEEPER)
    def test_deeper_trace_changes_no_outputs(
        self, backend: Backend, open_session: _Open, feeds: _Feeds, tmp_path: Path, level: Level
    ) -> None:
        """Outputs while tracing equal those of a plain session."""
        session = _opened(backend, open_session, level, tmp_path)
        session.begin_trace()
        traced = session.predict(feeds)
        session.end_trace()
        plain = open_session(SessionOptions(threads=1)).predict(feeds)
        assert list(traced) == list(plain)
        for name in plain:
            np.testing.assert_allclose(traced[name], plain[name], rtol=self.rtol, atol=self.atol, err_msg=name)

    @pytest.mark.parametrize("level", _DEEPER)
    def test_deeper_trace_of_nothing_and_again(
        self, backend: Backend, open_session: _Open, feeds: _Feeds, tmp_path: Path, level: Level
    ) -> None:
        """A trace without predicts is empty; the next one has its own events only."""
        session = _opened(backend, open_session, level, tmp_path)
        session.predict(feeds)
        session.begin_trace()
        empty = session.end_trace()
        check_events(empty)
        assert not len(empty.events.get(schema.OPERATORS, ()))
        session.predict(feeds)
        counts = []
        for _ in range(2):
            session.begin_trace()
            session.predict(feeds)
            trace = session.end_trace()
            check_layer_trace(trace, iterations=1)
            check_events(trace)
            mine = trace.events[schema.OPERATORS].columns
            counts.append(int((mine["layer_index"] >= 0).sum()))
        assert counts[0] == counts[1] > 0
