"""What every backend must do, as a test class to subclass.

A test module of a backend gives four fixtures, and inherits some forty tests::

    class TestMyFramework(BackendContract):
        @pytest.fixture
        def backend(self): return MyBackend()

        @pytest.fixture
        def model_files(self, tmp_path): return ModelFiles(name=..., format=..., path=..., digest=...)

        @pytest.fixture
        def feeds(self): return {"input": array}

        @pytest.fixture
        def expected(self): return {"output": array}       # computed without the backend

A backend that takes live objects gives ``live`` (the object and example feeds) too; one that takes nothing else gives
``open_session`` instead of ``model_files``.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mlscope_lab.backends.base import Backend, ModelFiles, Session, SessionOptions
from mlscope_lab.errors import ArtifactError, InputError, SessionError, UnsupportedModelError
from mlscope_lab.manifest.common import DTYPES
from mlscope_lab.testing.checks import check_layer_trace
from mlscope_lab.testing.levels import LevelContract

__all__ = ["BackendContract", "Feeds", "OpenSession"]

Feeds = Mapping[str, npt.NDArray[Any]]
OpenSession = Callable[[SessionOptions], Session]

_MODES = ("eager", "compiled", "exported", "graph")
_FRAMEWORKS = ("jax", "keras", "onnx", "onnxruntime", "tensorflow", "torch")


class BackendContract(LevelContract):
    """Tests that every backend passes.

    Attributes
    ----------
    rtol, atol
        How close outputs must be to ``expected``.
    """

    rtol = 1e-4
    atol = 1e-5

    # -- what a subclass gives ----------------------------------------------------------------------------------

    @pytest.fixture
    def live(self) -> tuple[object, Feeds]:
        """Give a live object and example feeds; overridden where the backend takes live objects."""
        pytest.skip("no live object given")

    @pytest.fixture
    def model_files(self) -> ModelFiles:
        """Give a model with a float32 input and three layers or more; overridden unless the backend opens no files."""
        pytest.skip("the backend opens no files")

    @pytest.fixture
    def open_session(self, backend: Backend, request: pytest.FixtureRequest) -> Iterator[OpenSession]:
        """Give a function that opens the model; what it opened is closed after the test."""
        files: ModelFiles = request.getfixturevalue("model_files")
        opened: list[Session] = []

        def opener(options: SessionOptions) -> Session:
            opened.append(backend.open(files, options))
            return opened[-1]

        yield opener
        for session in opened:
            session.close()

    # -- the backend --------------------------------------------------------------------------------------------

    def test_names_are_set(self, backend: Backend) -> None:
        """A backend says who it is."""
        assert backend.name
        assert backend.name == backend.name.lower()
        assert backend.title
        assert backend.module

    def test_availability_says_installed_and_version(self, backend: Backend) -> None:
        """An installed framework is found with its version and without a reason."""
        found = backend.availability()
        assert found.ok
        assert found.reason == ""
        assert found.version
        backend.require()

    def test_construction_imports_no_framework(self, backend: Backend) -> None:
        """Naming, constructing and asking for availability must not import a framework."""
        cls = type(backend)
        watched = {*_FRAMEWORKS, backend.module} - set(sys.stdlib_module_names)
        code = (
            f"import sys, importlib; b = getattr(importlib.import_module({cls.__module__!r}), {cls.__name__!r})()\n"
            f"b.availability(); b.accepts(object())\n"
            f"print(*[m for m in {sorted(watched)!r} if m in sys.modules])"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == []

    def test_capabilities(self, backend: Backend) -> None:
        """Capabilities hold strings, the plain level, a device, and a reason for each missing level."""
        found = backend.capabilities()
        assert isinstance(found.formats, tuple)
        assert "model" in found.levels
        assert "cpu" in found.devices
        assert all(isinstance(reason, str) and reason for reason in found.unavailable.values())
        assert "layer" in found.levels or found.unavailable.get("layer"), "no layer level, and no reason for it"

    def test_accepts_nothing_foreign(self, backend: Backend) -> None:
        """Objects of no framework are not taken."""
        assert not backend.accepts(object())
        assert not backend.accepts("model.onnx")

    # -- life of a session --------------------------------------------------------------------------------------

    def test_predict_matches_expected(self, open_session: OpenSession, feeds: Feeds, expected: Feeds) -> None:
        """Outputs carry the right names, order, types and values."""
        session = open_session(SessionOptions(threads=1))
        outputs = session.predict(feeds)
        assert list(outputs) == [spec.name for spec in session.outputs]
        assert set(outputs) == set(expected)
        for name, want in expected.items():
            have = outputs[name]
            assert isinstance(have, np.ndarray)
            assert have.flags.c_contiguous
            assert have.dtype == want.dtype
            np.testing.assert_allclose(have, want, rtol=self.rtol, atol=self.atol, err_msg=name)

    def test_outputs_stay_valid_after_the_next_predict(self, open_session: OpenSession, feeds: Feeds) -> None:
        """A framework's own buffers are not handed out."""
        session = open_session(SessionOptions(threads=1))
        first = session.predict(feeds)
        kept = {name: array.copy() for name, array in first.items()}
        session.predict({name: _other(array) for name, array in feeds.items()})
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name], err_msg=name)
        session.close()
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name], err_msg=name)

    def test_predict_is_deterministic(self, open_session: OpenSession, feeds: Feeds) -> None:
        """Two predicts on one thread give the same numbers."""
        session = open_session(SessionOptions(threads=1))
        first, second = session.predict(feeds), session.predict(feeds)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)

    def test_predict_leaves_feeds_alone(self, open_session: OpenSession, feeds: Feeds) -> None:
        """Inputs are not written to, and may be read-only."""
        session = open_session(SessionOptions(threads=1))
        given = {name: array.copy() for name, array in feeds.items()}
        for array in given.values():
            array.flags.writeable = False
        session.predict(given)
        for name, array in feeds.items():
            np.testing.assert_array_equal(array, given[name], err_msg=name)

    def test_predict_takes_strided_arrays(self, open_session: OpenSession, feeds: Feeds) -> None:
        """An input need not be contiguous."""
        session = open_session(SessionOptions(threads=1))
        plain = session.predict(feeds)
        strided = {name: np.asfortranarray(array) for name, array in feeds.items()}
        for name, array in session.predict(strided).items():
            np.testing.assert_allclose(array, plain[name], rtol=self.rtol, atol=self.atol, err_msg=name)

    def test_context_manager_closes(self, open_session: OpenSession, feeds: Feeds) -> None:
        """Leaving the with block closes; closing twice is fine; using a closed session is not."""
        with open_session(SessionOptions(threads=1)) as session:
            session.predict(feeds)
        session.close()
        with pytest.raises(SessionError, match="closed"):
            session.predict(feeds)
        with pytest.raises(SessionError, match="closed"):
            session.begin_trace()

    def test_specs_describe_inputs_and_outputs(self, open_session: OpenSession, feeds: Feeds) -> None:
        """Specs name the feeds, numpy's types and sensible dims, and outputs keep to theirs."""
        session = open_session(SessionOptions(threads=1))
        assert {spec.name for spec in session.inputs} == set(feeds)
        for spec in (*session.inputs, *session.outputs):
            assert spec.dtype in {*DTYPES, "any"}, spec
            assert spec.shape is None or all(_is_dim(d) for d in spec.shape), spec
        session.check(feeds)
        outputs = session.predict(feeds)
        for spec in session.outputs:
            have = outputs[spec.name]
            assert spec.dtype in {"any", have.dtype.name} or (spec.dtype == "str" and have.dtype.kind in "OUT"), spec
            if spec.shape is not None:
                assert len(spec.shape) == have.ndim, spec
                assert all(w == h for w, h in zip(spec.shape, have.shape, strict=True) if isinstance(w, int)), spec

    def test_session_tells_what_runs(self, open_session: OpenSession) -> None:
        """Mode, precision, device and digest are those of the record."""
        session = open_session(SessionOptions(threads=1))
        assert session.execution_mode in _MODES
        assert session.precision
        assert session.device == "cpu"
        kind, _, hexdigits = session.executable_digest.partition(":")
        assert kind == "sha256"
        assert len(hexdigits) == 64
        assert int(hexdigits, 16) >= 0
        assert open_session(SessionOptions(threads=1)).executable_digest == session.executable_digest

    def test_threads_are_honoured_or_warned_about(self, open_session: OpenSession) -> None:
        """A thread count is in force, or a warning says why not."""
        session = open_session(SessionOptions(threads=1))
        assert session.threads == 1 or session.warnings
        assert all(isinstance(w, str) and w for w in session.warnings)

    def test_concurrent_use_is_refused(self, open_session: OpenSession, feeds: Feeds) -> None:
        """A second thread gets SessionError while one is inside; the first is not disturbed."""
        session = open_session(SessionOptions(threads=1))
        inside, leave = threading.Event(), threading.Event()
        plain = session._predict

        def slow(given: Feeds) -> dict[str, npt.NDArray[Any]]:
            if not inside.is_set():  # only the first call waits, so that a backend without a lock fails at once
                inside.set()
                leave.wait(30)
            return plain(given)

        session._predict = slow  # type: ignore[assignment,method-assign]
        results: list[object] = []
        thread = threading.Thread(target=lambda: results.append(session.predict(feeds)))
        thread.start()
        try:
            assert inside.wait(30)
            with pytest.raises(SessionError, match="thread"):
                session.predict(feeds)
        finally:
            leave.set()
            thread.join(30)
        assert len(results) == 1
        assert isinstance(results[0], dict)

    # -- wrong inputs -------------------------------------------------------------------------------------------

    def test_missing_input(self, open_session: OpenSession, feeds: Feeds) -> None:
        """A missing input is named; the session lives on."""
        session = open_session(SessionOptions(threads=1))
        name = next(iter(feeds))
        with pytest.raises(InputError, match="missing") as caught:
            session.predict({k: v for k, v in feeds.items() if k != name})
        assert name in str(caught.value)
        session.predict(feeds)

    def test_unknown_input(self, open_session: OpenSession, feeds: Feeds) -> None:
        """An input that the model does not have is named."""
        session = open_session(SessionOptions(threads=1))
        with pytest.raises(InputError, match="no_such_input"):
            session.predict({**feeds, "no_such_input": np.zeros(1, np.float32)})
        session.predict(feeds)

    def test_wrong_dtype(self, open_session: OpenSession, feeds: Feeds) -> None:
        """A wrong element type is refused, naming the input and the type wanted."""
        session = open_session(SessionOptions(threads=1))
        spec = next((s for s in session.inputs if s.dtype == "float32"), None)
        if spec is None:
            pytest.skip("no input that asks for float32")
        with pytest.raises(InputError, match="float32") as caught:
            session.predict({**feeds, spec.name: feeds[spec.name].astype(np.float64)})
        assert spec.name in str(caught.value)
        session.predict(feeds)

    def test_wrong_shape(self, open_session: OpenSession, feeds: Feeds) -> None:
        """A wrong rank and a wrong length of a fixed axis are refused, naming the input."""
        session = open_session(SessionOptions(threads=1))
        spec = next((s for s in session.inputs if s.shape is not None), None)
        if spec is None or spec.shape is None:
            pytest.skip("no input that asks for a shape")
        array = feeds[spec.name]
        wrong = [array[..., None]]
        fixed = [axis for axis, d in enumerate(spec.shape) if isinstance(d, int)]
        if fixed:
            wrong.append(np.concatenate([array, np.take(array, [0], axis=fixed[-1])], axis=fixed[-1]))
        for bad in wrong:
            with pytest.raises(InputError) as caught:
                session.predict({**feeds, spec.name: np.ascontiguousarray(bad)})
            assert spec.name in str(caught.value)
        session.predict(feeds)

    # -- wrong models -------------------------------------------------------------------------------------------

    def test_unknown_format(self, backend: Backend, model_files: ModelFiles) -> None:
        """A format of another framework is refused, and the message names it."""
        with pytest.raises(UnsupportedModelError, match="no_such_format"):
            backend.open(dataclasses.replace(model_files, format="no_such_format"))

    def test_missing_file(self, backend: Backend, model_files: ModelFiles, tmp_path: Path) -> None:
        """A file that is not there is named."""
        gone = tmp_path / ("gone" + model_files.path.suffix)
        with pytest.raises((ArtifactError, UnsupportedModelError), match="gone"):
            backend.open(dataclasses.replace(model_files, path=gone))

    @pytest.mark.parametrize("how", ["garbage", "truncated", "empty"])
    def test_corrupt_file(self, backend: Backend, model_files: ModelFiles, tmp_path: Path, how: str) -> None:
        """A file that is not what its format says is refused."""
        bad = tmp_path / "corrupt" / model_files.path.name
        bad.parent.mkdir()
        if model_files.path.is_dir():
            shutil.copytree(model_files.path, bad)
            for member in [p for p in bad.rglob("*") if p.is_file()]:
                member.write_bytes(_spoiled(member.read_bytes(), how))
        else:
            bad.write_bytes(_spoiled(model_files.path.read_bytes(), how))
        with pytest.raises(UnsupportedModelError) as caught:
            backend.open(dataclasses.replace(model_files, path=bad))
        assert model_files.name in str(caught.value) or bad.name in str(caught.value)

    # -- live objects -------------------------------------------------------------------------------------------

    def test_live_object(self, backend: Backend, live: tuple[object, Feeds]) -> None:
        """A live object is accepted, runs twice alike, and its session closes."""
        obj, example = live
        assert backend.accepts(obj)
        with backend.wrap(obj, example, SessionOptions(threads=1)) as session:
            first, second = session.predict(example), session.predict(example)
            assert first
            assert list(first) == [spec.name for spec in session.outputs]
            for name in first:
                assert isinstance(first[name], np.ndarray)
                np.testing.assert_allclose(first[name], second[name], rtol=self.rtol, atol=self.atol, err_msg=name)
        with pytest.raises(SessionError, match="closed"):
            session.predict(example)

    # -- traces -------------------------------------------------------------------------------------------------

    def test_no_trace_at_model_level(self, open_session: OpenSession, feeds: Feeds) -> None:
        """A plain session refuses to trace, and still predicts."""
        session = open_session(SessionOptions(threads=1))
        with pytest.raises(SessionError):
            session.begin_trace()
        with pytest.raises(SessionError):
            session.end_trace()
        session.predict(feeds)

    def test_trace_order(self, backend: Backend, open_session: OpenSession, tmp_path: Path) -> None:
        """End without begin, begin twice and begin after close are refused."""
        session = _traceable(backend, open_session, tmp_path)
        with pytest.raises(SessionError, match="not tracing"):
            session.end_trace()
        session.begin_trace()
        with pytest.raises(SessionError, match="tracing already"):
            session.begin_trace()
        check_layer_trace(session.end_trace(), iterations=0)
        with pytest.raises(SessionError, match="not tracing"):
            session.end_trace()
        session.close()
        with pytest.raises(SessionError, match="closed"):
            session.begin_trace()

    def test_trace_holds_what_ran(
        self, backend: Backend, open_session: OpenSession, feeds: Feeds, tmp_path: Path
    ) -> None:
        """A trace holds exactly the predicts between begin and end, on this process's clock."""
        session = _traceable(backend, open_session, tmp_path)
        for _ in range(2):
            session.predict(feeds)
        session.begin_trace()
        after = time.perf_counter_ns()
        for _ in range(3):
            session.predict(feeds)
        before = time.perf_counter_ns()
        trace = session.end_trace()
        check_layer_trace(trace, iterations=3, after_ns=after, before_ns=before)
        assert len(trace.layers) >= 3
        assert trace.dropped_events == 0
        assert trace.executable_digest.startswith("sha256:")
        ran = trace.start_ns >= 0
        covered = np.where(ran, trace.exclusive_ns, 0).sum()
        assert covered > 0
        assert any(trace.layers.output_shapes) or "shapes" in trace.unavailable

    def test_trace_changes_no_outputs(
        self, backend: Backend, open_session: OpenSession, feeds: Feeds, tmp_path: Path
    ) -> None:
        """Outputs while tracing equal those of a plain session."""
        plain = open_session(SessionOptions(threads=1)).predict(feeds)
        session = _traceable(backend, open_session, tmp_path)
        session.begin_trace()
        traced = session.predict(feeds)
        session.end_trace()
        assert list(traced) == list(plain)
        for name in plain:
            np.testing.assert_allclose(traced[name], plain[name], rtol=self.rtol, atol=self.atol, err_msg=name)

    def test_session_lives_on_after_a_trace(
        self, backend: Backend, open_session: OpenSession, feeds: Feeds, tmp_path: Path
    ) -> None:
        """After end_trace the session predicts, and can trace again with the same rows."""
        session = _traceable(backend, open_session, tmp_path)
        session.begin_trace()
        session.predict(feeds)
        first = session.end_trace()
        session.predict(feeds)
        session.begin_trace()
        for _ in range(2):
            session.predict(feeds)
        second = session.end_trace()
        check_layer_trace(second, iterations=2)
        assert second.layers.name == first.layers.name
        session.predict(feeds)

    def test_failed_predict_leaves_the_trace_usable(
        self, backend: Backend, open_session: OpenSession, feeds: Feeds, tmp_path: Path
    ) -> None:
        """A predict that is refused while tracing is no iteration and spoils none."""
        session = _traceable(backend, open_session, tmp_path)
        session.begin_trace()
        session.predict(feeds)
        with pytest.raises(InputError):
            session.predict({})
        session.predict(feeds)
        check_layer_trace(session.end_trace(), iterations=2)

    def test_close_while_tracing(
        self, backend: Backend, open_session: OpenSession, feeds: Feeds, tmp_path: Path
    ) -> None:
        """Closing in the middle of a trace is clean."""
        session = _traceable(backend, open_session, tmp_path)
        session.begin_trace()
        session.predict(feeds)
        session.close()
        session.close()


def _traceable(backend: Backend, open_session: OpenSession, scratch: Path) -> Session:
    found = backend.capabilities()
    if "layer" not in found.levels:
        pytest.skip(f"{backend.name} records no layers: {found.unavailable.get('layer')}")
    return open_session(SessionOptions(threads=1, level="layer", scratch=scratch))


def _is_dim(value: object) -> bool:
    return value is None or isinstance(value, str) or (isinstance(value, int) and value > 0)


def _other(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array of the same type and shape with other values."""
    return array * 0.5 + 0.25 if array.dtype.kind == "f" else array[::-1].copy()


def _spoiled(good: bytes, how: str) -> bytes:
    if how == "garbage":
        return b"this is not a model\n" * 100
    return good[: len(good) // 2] if how == "truncated" else b""
