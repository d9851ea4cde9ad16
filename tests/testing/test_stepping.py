"""The contract of steppers: a right one passes all of it, and each kind of wrong one fails where it should."""

from __future__ import annotations

import dataclasses
import inspect

import numpy as np
import pytest

from mlscope_lab.backends.base import Session, SessionOptions, TensorSpec
from mlscope_lab.backends.stepping import Stepper
from mlscope_lab.errors import SessionError
from mlscope_lab.testing import StepperContract
from mlscope_lab.trace.graph import Graph, Operation, Value

FEEDS = {"x": np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)}
WEIGHTS = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
STEPS = (
    ("product", "Gemm", lambda x: x @ WEIGHTS),
    ("activation", "Relu", lambda x: np.maximum(x, 0)),
    ("addition", "Add", lambda x: x + x),
)


class Chain(Session):
    """Three operations in a row."""

    inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", 3)),)
    outputs = (TensorSpec(name="y", dtype="float32", shape=("batch", 4)),)
    stepper_type: type[Stepper]

    def _predict(self, feeds):
        self.check(feeds)
        value = feeds["x"]
        for _, _, compute in STEPS:
            value = compute(value)
        return {"y": value}

    def _open_stepper(self):
        return self.stepper_type(self)


class Right(Stepper):
    """Runs the three as the contract asks."""

    method = "numpy, one function after the other"
    can_replay = True
    can_replace = True

    def __init__(self, session):
        super().__init__()
        self.session = session
        self.shown = []

    def compute(self, position, value):
        return STEPS[position][2](value)

    def show(self, receive, index, array):
        self.shown.append((index, array))
        other = receive(index, array)
        return array if other is None else other

    def names(self):
        return ["x", "product", "activation", "addition"]

    def graph(self):
        values = tuple(
            Value(name=name, shape=array.shape, dtype=array.dtype.name)
            for name, (_, array) in zip(self.names(), self.shown, strict=False)
        )
        operations = tuple(
            Operation(
                name=kind, type=type_, kinds=(kind,), inputs=(i, i) if kind == "addition" else (i,), outputs=(i + 1,)
            )
            for i, (kind, type_, _) in enumerate(STEPS[: len(values) - 1])
        )
        outputs = {"y": 3} if len(values) == 4 else {}
        return Graph(values=values, operations=operations, inputs={"x": 0}, outputs=outputs)

    def _run(self, feeds, receive):
        self.session.check(feeds)
        self.shown = []
        value = self.show(receive, 0, feeds["x"])
        for position in range(len(STEPS)):
            value = self.show(receive, position + 1, self.compute(position, value))
        return self.graph()

    def _partial(self):
        return self.graph()

    def _replay(self, operations, given, wanted):
        known = dict(given)
        for position in operations:
            known[position + 1] = self.compute(position, known[position])
        return {index: known[index] for index in wanted}


class OtherOutput(Right):
    def compute(self, position, value):
        return super().compute(position, value) * np.float32(1 + 1e-6)


class Twice(Right):
    def show(self, receive, index, array):
        if index == 2:
            receive(index, array)
        return super().show(receive, index, array)


class OutOfOrder(Right):
    def _run(self, feeds, receive):
        held = []
        super()._run(feeds, lambda index, array: held.append((index, array)))
        for index, array in reversed(held):
            receive(index, array)
        return self.graph()


class OtherShape(Right):
    def graph(self):
        graph = super().graph()
        values = tuple(dataclasses.replace(value, shape=value.shape[::-1]) for value in graph.values)
        return dataclasses.replace(graph, values=values)


class OtherKind(Right):
    def graph(self):
        graph = super().graph()
        first, *others = graph.operations
        return dataclasses.replace(graph, operations=(dataclasses.replace(first, kinds=("matrix",)), *others))


class OtherGraphEachTime(Right):
    runs = 0

    def names(self):
        type(self).runs += 1
        return [f"{name}{self.runs}" for name in super().names()]


class WrongReplay(Right):
    def _replay(self, operations, given, wanted):
        return {index: array + np.float32(1) for index, array in super()._replay(operations, given, wanted).items()}


class DeafReplay(Right):
    """Returns what the run showed, whatever is given."""

    def _replay(self, operations, given, wanted):
        return {index: dict(self.shown)[index] for index in wanted}


class WritesToWhatIsGiven(Right):
    def _replay(self, operations, given, wanted):
        found = {index: array.copy() for index, array in super()._replay(operations, given, wanted).items()}
        for array in given.values():
            array += 1
        return found


class DeafToReplacements(Right):
    def show(self, receive, index, array):
        super().show(receive, index, array)
        return array


class RemembersReplacements(Right):
    kept: dict = {}  # noqa: RUF012 - the fault under test

    def show(self, receive, index, array):
        used = super().show(receive, index, self.kept.get(index, array))
        if used is not array:
            self.kept[index] = used
        return used


class TakesAnyFeeds(Right):
    def _run(self, feeds, receive):
        return super()._run({"x": np.zeros((2, 3), np.float32), **feeds}, receive)


class NoChecks(Right):
    def _run(self, feeds, receive):
        self.shown = []
        value = self.show(receive, 0, next(iter(feeds.values()), FEEDS["x"]))
        for position in range(len(STEPS)):
            value = self.show(receive, position + 1, self.compute(position, value))
        return self.graph()


class SwallowsErrors(Right):
    def show(self, receive, index, array):
        try:
            return super().show(receive, index, array)
        except Exception:
            return array


class NeverCloses(Right):
    def close(self):
        pass


class SpoilsTheSession(Right):
    def _run(self, feeds, receive):
        self.session._predict = lambda given: {"y": np.zeros((2, 4), np.float32)}
        return super()._run(feeds, receive)


class Silent(Right):
    method = ""


def opened(stepper_type):
    session = Chain()
    session.stepper_type = stepper_type
    return session


def outcomes(stepper_type):
    """Run every test of the contract; returns the names of those that fail."""
    failed = []
    contract = StepperContract()
    for name, test in inspect.getmembers(contract, inspect.ismethod):
        if not name.startswith("test_"):
            continue
        session = opened(stepper_type)
        wanted = inspect.signature(test).parameters
        given = {"feeds": {"x": FEEDS["x"].copy()}, "open_session": lambda _: opened(stepper_type)}
        try:
            with session.open_stepper() as stepper:
                test(**{key: (session, stepper) if key == "stepped" else given[key] for key in wanted})
        except (AssertionError, pytest.fail.Exception, SessionError):
            failed.append(name)
    return failed


def test_a_right_stepper_passes_everything():
    assert outcomes(Right) == []


@pytest.mark.parametrize(
    ("wrong", "test"),
    [
        (OtherOutput, "test_outputs_equal_plain_ones"),
        (Twice, "test_each_value_comes_once_and_in_order"),
        (OutOfOrder, "test_each_value_comes_once_and_in_order"),
        (OtherShape, "test_shapes_and_types_are_those_of_the_graph"),
        (OtherKind, "test_operations_are_named_in_words_of_the_vocabulary"),
        (OtherGraphEachTime, "test_two_runs_are_the_same"),
        (OtherGraphEachTime, "test_two_steppers_are_the_same"),
        (WrongReplay, "test_replay_of_each_operation"),
        (WrongReplay, "test_replay_of_a_chain"),
        (DeafReplay, "test_replay_takes_other_values"),
        (WritesToWhatIsGiven, "test_replay_of_each_operation"),
        (DeafToReplacements, "test_replacing_by_another_goes_on"),
        (RemembersReplacements, "test_replacing_by_another_goes_on"),
        (TakesAnyFeeds, "test_wrong_feeds"),
        (NoChecks, "test_wrong_feeds"),
        (SwallowsErrors, "test_an_error_in_receive_ends_the_run"),
        (NeverCloses, "test_a_closed_stepper_refuses"),
        (SpoilsTheSession, "test_the_session_is_left_as_it_was"),
        (Silent, "test_stepper_says_how_it_sees"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_wrong_stepper_fails(wrong, test):
    assert test in outcomes(wrong)


def test_a_stepper_without_replay_or_replacements_passes_the_rest():
    class Plain(Right):
        can_replay = False
        can_replace = False

        def show(self, receive, index, array):
            super().show(receive, index, array)
            return array

    contract = StepperContract()
    with opened(Plain).open_stepper() as stepper:
        for name in ("test_replay_of_each_operation", "test_replacing_by_itself_changes_nothing"):
            with pytest.raises(pytest.skip.Exception):
                getattr(contract, name)((None, stepper), FEEDS)
        contract.test_replacing_by_another_shape_or_type_is_refused((None, stepper), FEEDS)


def test_a_bound_lets_roundings_pass():
    class Loose(StepperContract):
        rtol = 1e-4
        atol = 1e-6

    session = opened(OtherOutput)
    with session.open_stepper() as stepper:
        Loose().test_outputs_equal_plain_ones((session, stepper), FEEDS)
        with pytest.raises(AssertionError):
            StepperContract().test_outputs_equal_plain_ones((session, stepper), FEEDS)


def test_a_contract_without_a_model_is_skipped():
    class Nothing(StepperContract):
        pass

    assert Nothing.options == SessionOptions(threads=1)
    fixture = inspect.unwrap(StepperContract.open_session)
    with pytest.raises(pytest.skip.Exception):
        next(getattr(fixture, "__wrapped__", fixture)(Nothing(), None, None, None))
