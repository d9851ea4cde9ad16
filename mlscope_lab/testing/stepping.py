"""What every stepper must do, as a test class to subclass.

A test module gives the fixtures of `mlscope_lab.testing.BackendContract` that open a model::

    class TestMyStepper(StepperContract):
        @pytest.fixture
        def backend(self): return MyBackend()

        @pytest.fixture
        def model_files(self, tmp_path): return ModelFiles(name=..., format=..., path=..., digest=...)

        @pytest.fixture
        def feeds(self): return {"input": array}

A live object is given by ``live`` (the object and its feeds), anything else by ``open_session``. One class may
inherit both contracts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from mlscope_lab.backends.base import Backend, ModelFiles, Session, SessionOptions
from mlscope_lab.backends.stepping import Stepper
from mlscope_lab.errors import InputError, SessionError
from mlscope_lab.trace.graph import Graph
from mlscope_lab.trace.kinds import KINDS

__all__ = ["StepperContract"]
Array = npt.NDArray[Any]
_Feeds = Mapping[str, Array]
_Open = Callable[[SessionOptions], Session]


@dataclass
class _Run:
    """One run: its graph, and copies of all that was received, in the order in which it came."""

    graph: Graph = field(default_factory=lambda: Graph(values=(), operations=()))
    received: list[tuple[int, Array]] = field(default_factory=list)

    @property
    def arrays(self) -> dict[int, Array]:
        return dict(self.received)

    def outputs(self) -> dict[str, Array]:
        return {name: self.arrays[value] for name, value in self.graph.outputs.items()}


class _StopError(Exception):
    """Raised by a `receive` in the middle of a run."""


def _run(stepper: Stepper, feeds: _Feeds, replace: Callable[[int, Array], Array | None] | None = None) -> _Run:
    made = _Run()

    def receive(index: int, array: Array) -> Array | None:
        made.received.append((index, np.array(array)))
        return None if replace is None else replace(index, array)

    made.graph = stepper.run(feeds, receive)
    return made


def _moved(array: Array) -> Array:
    """Return other values of the same shape and type."""
    with np.errstate(all="ignore"):
        moved: Array = (array * array.dtype.type(0.5) + array.dtype.type(1)).astype(array.dtype, copy=False)
    return moved


class StepperContract:
    """Tests that every stepper passes.

    Attributes
    ----------
    options
        How the session is opened.
    rtol, atol
        How close the outputs of a stepped run must be to those of a plain one; 0 and 0 for bitwise.
    replay_rtol, replay_atol
        How close what `Stepper.replay` computes must be to what the run showed.
    not_replayed
        Types of operations whose results differ from call to call: random ones, and those with a state of their own.
    """

    options: ClassVar[SessionOptions] = SessionOptions(threads=1)
    rtol: ClassVar[float] = 0.0
    atol: ClassVar[float] = 0.0
    replay_rtol: ClassVar[float] = 0.0
    replay_atol: ClassVar[float] = 0.0
    not_replayed: ClassVar[frozenset[str]] = frozenset()

    # -- what a subclass gives ----------------------------------------------------------------------------------

    @pytest.fixture
    def live(self) -> tuple[object, _Feeds] | None:
        """Give a live object and its feeds; overridden where no file is given."""
        return None

    @pytest.fixture
    def model_files(self) -> ModelFiles | None:
        """Give a model with three operations or more; overridden unless a live object is given."""
        return None

    @pytest.fixture
    def feeds(self, live: tuple[object, _Feeds] | None) -> _Feeds:
        """Give one array for each input; overridden where a file is given."""
        if live is None:
            pytest.skip("no feeds given")
        return live[1]

    @pytest.fixture
    def open_session(
        self, backend: Backend, model_files: ModelFiles | None, live: tuple[object, _Feeds] | None
    ) -> Iterator[_Open]:
        """Give a function that opens the model; what it opened is closed after the test."""
        opened: list[Session] = []
        if model_files is None and live is None:
            pytest.skip("neither a model file nor a live object given")

        def opener(options: SessionOptions) -> Session:
            if model_files is not None:
                opened.append(backend.open(model_files, options))
            elif live is not None:
                opened.append(backend.wrap(live[0], live[1], options))
            return opened[-1]

        yield opener
        for session in opened:
            session.close()

    @pytest.fixture
    def stepped(self, open_session: _Open) -> Iterator[tuple[Session, Stepper]]:
        """Give an open session and its stepper."""
        session = open_session(self.options)
        with session.open_stepper() as stepper:
            yield session, stepper

    def _assert_close(self, have: Array, want: Array, name: str, *, replayed: bool = False) -> None:
        rtol, atol = (self.replay_rtol, self.replay_atol) if replayed else (self.rtol, self.atol)
        assert have.dtype == want.dtype, name
        assert have.shape == want.shape, name
        if rtol or atol:
            np.testing.assert_allclose(have, want, rtol=rtol, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(have, want, err_msg=name)

    # -- a run --------------------------------------------------------------------------------------------------

    def test_stepper_says_how_it_sees(self, stepped: tuple[Session, Stepper]) -> None:
        """The method is in words, and so are the notes."""
        _, stepper = stepped
        assert stepper.method
        assert not isinstance(stepper.notes, str)
        assert all(isinstance(note, str) and note for note in stepper.notes)

    def test_outputs_equal_plain_ones(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """The stepped model answers as the plain one, under the same names and in the same order."""
        session, stepper = stepped
        plain, found = session.predict(feeds), _run(stepper, feeds).outputs()
        assert list(found) == list(plain)
        for name, array in plain.items():
            self._assert_close(found[name], array, name)

    def test_each_value_comes_once_and_in_order(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """Inputs come first, then what the operations write, in the order in which they ran; all of it, each once."""
        session, stepper = stepped
        run = _run(stepper, feeds)
        assert list(run.graph.inputs) == [spec.name for spec in session.inputs]
        order = [index for index, _ in run.received]
        assert order[: len(run.graph.inputs)] == list(run.graph.inputs.values())
        written = [value for operation in run.graph.operations for value in operation.outputs]
        assert order == [*run.graph.inputs.values(), *written]
        assert sorted(order) == list(range(len(run.graph.values)))

    def test_inputs_are_the_feeds(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """What is shown of an input is what was fed, and the feeds are left alone."""
        _, stepper = stepped
        given = {name: np.array(array) for name, array in feeds.items()}
        run = _run(stepper, feeds)
        for name, array in given.items():
            np.testing.assert_array_equal(feeds[name], array, err_msg=name)
            np.testing.assert_array_equal(run.arrays[run.graph.inputs[name]], array, err_msg=name)

    def test_shapes_and_types_are_those_of_the_graph(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """Arrays come as their values say; bfloat16 as float32."""
        _, stepper = stepped
        run = _run(stepper, feeds)
        for index, array in run.received:
            value = run.graph.values[index]
            assert array.shape == value.shape, value
            assert array.dtype.name == {"bfloat16": "float32"}.get(value.dtype, value.dtype) or (
                array.dtype.kind in "OUT"
            ), value

    def test_operations_are_named_in_words_of_the_vocabulary(
        self, stepped: tuple[Session, Stepper], feeds: _Feeds
    ) -> None:
        """Every operation has a type, and kinds out of `trace.kinds.KINDS`; there are three of them or more."""
        _, stepper = stepped
        graph = _run(stepper, feeds).graph
        assert len(graph.operations) >= 3
        for operation in graph.operations:
            assert operation.name
            assert operation.type
            assert operation.kinds, operation
            assert set(operation.kinds) <= set(KINDS), operation
            assert operation.parameter_count >= 0, operation
        assert any(set(operation.kinds) != {"other"} for operation in graph.operations)

    def test_two_runs_are_the_same(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """Running again gives the same graph, positions and all, and the same numbers."""
        _, stepper = stepped
        first, second = _run(stepper, feeds), _run(stepper, feeds)
        assert second.graph == first.graph
        for index, array in first.arrays.items():
            np.testing.assert_array_equal(second.arrays[index], array, err_msg=first.graph.values[index].name)

    def test_two_steppers_are_the_same(self, open_session: _Open, feeds: _Feeds) -> None:
        """Another session of the same model shows the same graph."""
        graphs = []
        for _ in range(2):
            with open_session(self.options) as session, session.open_stepper() as stepper:
                graphs.append(_run(stepper, feeds).graph)
        assert graphs[0] == graphs[1]

    # -- replay -------------------------------------------------------------------------------------------------

    def test_replay_of_each_operation(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """Each operation alone, on the values that it read, writes what it wrote."""
        _, stepper = stepped
        _needs_replay(stepper)
        run = _run(stepper, feeds)
        arrays, tried = run.arrays, 0
        for position, operation in enumerate(run.graph.operations):
            if operation.type in self.not_replayed:
                continue
            given = {value: arrays[value] for value in operation.inputs}
            kept = {value: array.copy() for value, array in given.items()}
            found = stepper.replay([position], given, operation.outputs)
            assert set(found) == set(operation.outputs)
            for value, array in found.items():
                self._assert_close(array, arrays[value], operation.name, replayed=True)
            for value, array in kept.items():
                np.testing.assert_array_equal(given[value], array, err_msg=f"{operation.name} wrote to what was given")
            tried += 1
        assert tried

    def test_replay_of_a_chain(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """All operations from the graph's inputs on, and the second half from what it reads, give the outputs."""
        _, stepper = stepped
        _needs_replay(stepper)
        run = _run(stepper, feeds)
        if any(operation.type in self.not_replayed for operation in run.graph.operations):
            pytest.skip("the model holds operations that are not repeatable")
        count, arrays = len(run.graph.operations), run.arrays
        for first in (0, count // 2):
            chain = range(first, count)
            made = {value for position in chain for value in run.graph.operations[position].outputs}
            read = {value for position in chain for value in run.graph.operations[position].inputs}
            wanted = [value for value in run.graph.outputs.values() if value in made]
            found = stepper.replay(list(chain), {value: arrays[value] for value in read - made}, wanted)
            assert set(found) == set(wanted)
            for value, array in found.items():
                self._assert_close(array, arrays[value], run.graph.values[value].name, replayed=True)

    def test_replay_takes_other_values(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """Other values than those of the run give other results, and the run's own come back afterwards."""
        _, stepper = stepped
        _needs_replay(stepper)
        run = _run(stepper, feeds)
        arrays, changed = run.arrays, False
        for position, operation in enumerate(run.graph.operations):
            if not operation.inputs or operation.type in self.not_replayed:
                continue
            given = {value: arrays[value] for value in operation.inputs}
            other = {value: _moved(a) if a.dtype.kind == "f" else a for value, a in given.items()}
            found = stepper.replay([position], other, operation.outputs)
            changed |= any(not np.array_equal(array, arrays[value]) for value, array in found.items())
            again = stepper.replay([position], given, operation.outputs)
            for value, array in again.items():
                self._assert_close(array, arrays[value], operation.name, replayed=True)
        assert changed

    def test_replay_refuses_what_is_missing(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """A value that is neither given nor written, and a wanted one that nothing writes, are refused."""
        _, stepper = stepped
        _needs_replay(stepper)
        with pytest.raises(SessionError, match="ran yet"):
            stepper.replay([0], {}, [])
        run = _run(stepper, feeds)
        position = next(i for i, operation in enumerate(run.graph.operations) if operation.inputs)
        operation = run.graph.operations[position]
        with pytest.raises(InputError, match="neither given nor written"):
            stepper.replay([position], {}, operation.outputs)
        last = run.graph.operations[-1].outputs
        given = {value: run.arrays[value] for value in operation.inputs}
        with pytest.raises(InputError, match="wanted"):
            stepper.replay([position], given, [value for value in last if value not in operation.outputs] or [-1])

    # -- other values in a value's place ------------------------------------------------------------------------

    def test_replacing_by_itself_changes_nothing(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """A copy of each value in its place gives the same run."""
        _, stepper = stepped
        _needs_replacing(stepper)
        plain, replaced = _run(stepper, feeds), _run(stepper, feeds, lambda _, array: np.array(array))
        assert replaced.graph == plain.graph
        for index, array in plain.arrays.items():
            np.testing.assert_array_equal(replaced.arrays[index], array, err_msg=plain.graph.values[index].name)

    def test_replacing_by_another_goes_on(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """What reads a replaced value computes with the new one; the next run knows nothing of it."""
        _, stepper = stepped
        _needs_replacing(stepper)
        plain = _run(stepper, feeds)
        arrays, outputs, readers = plain.arrays, plain.outputs(), plain.graph.readers()
        candidates = [value for value in readers if arrays[value].dtype.kind == "f" and arrays[value].size]
        assert candidates
        answered = False
        for value in dict.fromkeys((candidates[0], candidates[len(candidates) // 2], candidates[-1])):
            other = _moved(arrays[value])
            run = _run(stepper, feeds, lambda index, _, at=value, new=other: new if index == at else None)  # type: ignore[misc]
            answered |= any(not np.array_equal(run.outputs()[name], array) for name, array in outputs.items())
            if run.graph == plain.graph and stepper.can_replay:  # a data-dependent branch may have gone another way
                now = {**run.arrays, value: other}
                for position in readers[value]:
                    operation = run.graph.operations[position]
                    if operation.type in self.not_replayed:
                        continue
                    found = stepper.replay([position], {v: now[v] for v in operation.inputs}, operation.outputs)
                    for index, array in found.items():
                        self._assert_close(run.arrays[index], array, operation.name, replayed=True)
        assert answered, "no replaced value changed an output"
        for index, array in _run(stepper, feeds).arrays.items():
            np.testing.assert_array_equal(array, arrays[index], err_msg=plain.graph.values[index].name)

    def test_replacing_by_another_shape_or_type_is_refused(
        self, stepped: tuple[Session, Stepper], feeds: _Feeds
    ) -> None:
        """A replacement must fit; where replacements are not taken, nothing happens."""
        _, stepper = stepped
        plain = _run(stepper, feeds)
        if not stepper.can_replace:
            run = _run(stepper, feeds, lambda _, array: _moved(array) if array.dtype.kind == "f" else None)
            for name, array in plain.outputs().items():
                np.testing.assert_array_equal(run.outputs()[name], array, err_msg=name)
            return
        last = len(plain.received) - 1
        for wrong in (lambda array: np.stack([array, array]), lambda array: array.astype(np.complex128)):
            with pytest.raises(InputError, match="in the place of"):
                _run(stepper, feeds, lambda index, array, make=wrong: make(array) if index == last else None)  # type: ignore[misc]
        assert _run(stepper, feeds).graph == plain.graph

    # -- its life -----------------------------------------------------------------------------------------------

    def test_wrong_feeds(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """Missing, unknown and mistyped inputs are refused by name, before anything is received."""
        session, stepper = stepped
        name = next(iter(feeds))
        received: list[int] = []

        def receive(index: int, _: Array) -> None:
            received.append(index)

        with pytest.raises(InputError, match=name):
            stepper.run({k: v for k, v in feeds.items() if k != name}, receive)
        with pytest.raises(InputError, match="no_such_input"):
            stepper.run({**feeds, "no_such_input": np.zeros(1, np.float32)}, receive)
        typed = next((spec for spec in session.inputs if spec.dtype == "float32"), None)
        if typed is not None:
            with pytest.raises(InputError, match=typed.name):
                stepper.run({**feeds, typed.name: np.zeros(feeds[typed.name].shape, np.int8)}, receive)
        assert received == []
        _run(stepper, feeds)

    def test_an_error_in_receive_ends_the_run(self, stepped: tuple[Session, Stepper], feeds: _Feeds) -> None:
        """The run ends there; what ran is told where the stepper can; stepper and session work on."""
        session, stepper = stepped
        plain = _run(stepper, feeds)
        half = len(plain.received) // 2
        received: list[int] = []

        def receive(index: int, _: Array) -> None:
            received.append(index)
            if len(received) == half:
                raise _StopError("enough")

        with pytest.raises(SessionError, match="enough"):
            stepper.run(feeds, receive)
        assert received == [index for index, _ in plain.received[:half]]
        partial = stepper.partial()
        if partial is not None:
            for index in received:
                assert partial.values[index] == plain.graph.values[index]
        assert _run(stepper, feeds).graph == plain.graph
        session.predict(feeds)

    def test_a_closed_stepper_refuses(self, open_session: _Open, feeds: _Feeds) -> None:
        """After close neither run nor replay works; closing twice is fine; the session lives on."""
        session = open_session(self.options)
        with session.open_stepper() as stepper:
            _run(stepper, feeds)
        stepper.close()
        with pytest.raises(SessionError, match="closed"):
            _run(stepper, feeds)
        with pytest.raises(SessionError, match="closed"):
            stepper.replay([0], {}, [])
        with session.open_stepper() as again:
            _run(again, feeds)

    def test_the_session_is_left_as_it_was(self, open_session: _Open, feeds: _Feeds) -> None:
        """Predictions before, between and after are the same, bit by bit."""
        session = open_session(self.options)
        plain = session.predict(feeds)
        with session.open_stepper() as stepper:
            _run(stepper, feeds)
            between = session.predict(feeds)
            if stepper.can_replace:
                _run(stepper, feeds, lambda _, array: _moved(array) if array.dtype.kind == "f" else None)
        after = session.predict(feeds)
        for name, array in plain.items():
            np.testing.assert_array_equal(between[name], array, err_msg=name)
            np.testing.assert_array_equal(after[name], array, err_msg=name)

    def test_a_closed_session_opens_no_stepper(self, open_session: _Open) -> None:
        """Asking a closed session is refused."""
        session = open_session(self.options)
        session.close()
        with pytest.raises(SessionError, match="closed"):
            session.open_stepper()


def _needs_replay(stepper: Stepper) -> None:
    if not stepper.can_replay:
        with pytest.raises(SessionError, match="again"):
            stepper.replay([0], {}, [])
        pytest.skip(f"{type(stepper).__name__} cannot run single operations again")


def _needs_replacing(stepper: Stepper) -> None:
    if not stepper.can_replace:
        pytest.skip(f"{type(stepper).__name__} takes no other values in a value's place")
