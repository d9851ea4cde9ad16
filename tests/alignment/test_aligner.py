"""Aligning small graphs whose every pair is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from mlscope_lab.alignment.aligner import align
from mlscope_lab.alignment.records import EVIDENCE, Alignment, Fix, in_layout_of
from mlscope_lab.alignment.sketch import ValueSketch, sketch
from mlscope_lab.errors import InputError
from mlscope_lab.trace.graph import Graph, Operation, Value

Array = np.ndarray
WEIGHT = np.random.default_rng(7).standard_normal((8, 8)).astype(np.float32) * 0.5
SHIFT = np.linspace(-0.4, 0.6, 8, dtype=np.float32)


def conv(x: Array, shift: bool = True) -> Array:
    out = np.einsum("nchw,oc->nohw", x, WEIGHT)
    out = out + 0.3 * np.roll(out, 1, axis=2) - 0.2 * np.roll(out, 1, axis=3)
    return out + SHIFT.reshape(1, 8, 1, 1) if shift else out


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def last(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def first(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


@dataclass
class Side:
    """Builds a graph from arrays as they are computed."""

    values: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    arrays: list[Array] = field(default_factory=list)
    inputs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)

    def value(self, array: Array, name: str = "") -> int:
        array = np.asarray(array)
        self.values.append(Value(name=name or f"v{len(self.values)}", shape=array.shape, dtype=array.dtype.name))
        self.arrays.append(array)
        return len(self.values) - 1

    def input(self, array: Array, name: str = "x") -> int:
        self.inputs[name] = self.value(array, name)
        return self.inputs[name]

    def run(
        self, kinds: str, call: Callable[..., Array], *reads: int, name: str = "", scope: str = "", count: int = 0
    ) -> int:
        with np.errstate(all="ignore"):  # what is not finite is part of some tests
            made = self.value(np.asarray(call(*(self.arrays[r] for r in reads))), name and f"{name}:0")
        parts = tuple(kinds.split("+"))
        self.operations.append(
            Operation(
                name=name or f"op{len(self.operations)}", type=kinds, kinds=parts, inputs=reads, outputs=(made,),
                scope=scope, parameter_count=count or (64 if parts[0] == "convolution" else 0),
            )
        )  # fmt: skip
        return made

    def output(self, value: int, name: str = "y") -> Side:
        self.outputs[name] = value
        return self

    @property
    def graph(self) -> Graph:
        return Graph(
            values=tuple(self.values), operations=tuple(self.operations), inputs=self.inputs, outputs=self.outputs
        )

    def sketches(self, batch: int = 1) -> dict[int, ValueSketch]:
        return {i: sketch(x[:1] if batch > 1 and x.shape[:1] == (batch,) else x) for i, x in enumerate(self.arrays)}


def aligned(a: Side, b: Side, **options: object) -> Alignment:
    batch_a, batch_b = int(options.get("batch_a", 1)), int(options.get("batch_b", 1))  # type: ignore[call-overload]
    options = {"provenance": False, **options}
    return align(a.graph, b.graph, a.sketches(batch_a), b.sketches(batch_b), **options)  # type: ignore[arg-type]


def pairs(found: Alignment) -> list[tuple[int, int]]:
    return [(pair.a, pair.b) for pair in found.pairs]


def picture(seed: int = 0, batch: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal((batch, 8, 8, 8)).astype(np.float32)


def plain(x: Array, layers: int = 3) -> Side:
    side = Side()
    here = side.input(x)
    for _ in range(layers):
        here = side.run("convolution", conv, here)
        here = side.run("activation", relu, here)
    return side.output(here)


def fused(x: Array, layers: int = 3) -> Side:
    side = Side()
    here = side.run("layout", last, side.input(x))
    for _ in range(layers):
        here = side.run("convolution+activation", lambda v: last(relu(conv(first(v)))), here)
    return side.output(side.run("layout", first, here))


def test_fusion_and_layout_are_seen_through() -> None:
    a, b = plain(picture()), fused(picture())
    found = aligned(a, b)
    assert pairs(found) == [(0, 0), (2, 2), (4, 3), (6, 5)]
    assert [pair.group_a for pair in found.pairs] == [(), (0, 1), (2, 3), (4, 5)]
    assert [pair.group_b for pair in found.pairs] == [(), (0, 1), (2,), (3, 4)]
    assert [pair.axes for pair in found.pairs] == [None, (0, 3, 1, 2), (0, 3, 1, 2), None]
    for pair in found.pairs:
        moved = in_layout_of(a.arrays[pair.a].shape, b.arrays[pair.b], pair.axes)
        np.testing.assert_allclose(moved, a.arrays[pair.a], atol=1e-5)
    assert found.unmatched_a == found.unmatched_b == found.layout_a == found.layout_b == ()
    assert not found.notes


def test_evidence_and_confidence_say_why() -> None:
    found = aligned(plain(picture()), fused(picture()))
    assert [pair.evidence[0] for pair in found.pairs] == ["input", "values", "values", "output"]
    assert all(set(pair.evidence) <= set(EVIDENCE) and 0.5 < pair.confidence <= 1 for pair in found.pairs)
    alone = aligned(plain(picture()), fused(picture()), values=False)
    assert pairs(alone) == pairs(found)
    assert alone.pairs[1].evidence == ("structure",)
    assert alone.pairs[1].confidence < found.pairs[1].confidence


def test_layers_after_a_fault_are_paired_by_structure() -> None:
    a = plain(picture(), 5)
    b = Side()
    here = b.input(picture())
    for layer in range(5):
        here = b.run("convolution", conv, here)
        here = b.run("activation", (lambda v: np.tanh(v) * 3) if layer == 1 else relu, here)
    found = aligned(a, b.output(here))
    assert pairs(found) == [(i, i) for i in range(11)]


def test_values_that_become_nan_are_still_paired() -> None:
    a, b = plain(picture(), 5), Side()
    here = b.input(picture())
    for layer in range(5):
        here = b.run("convolution", (lambda v: conv(v) * np.nan) if layer == 2 else conv, here)
        here = b.run("activation", relu, here)
    assert pairs(aligned(a, b.output(here))) == [(i, i) for i in range(11)]


def test_a_folded_normalisation_leaves_no_false_pair() -> None:
    scale = np.linspace(0.5, 2, 8, dtype=np.float32).reshape(1, 8, 1, 1)
    a, b = Side(), Side()
    one, other = a.input(picture()), b.input(picture())
    for _ in range(3):
        one = a.run("convolution", lambda v: conv(v, shift=False), one)
        one = a.run("normalization", lambda v: v * scale + SHIFT.reshape(1, 8, 1, 1), one, count=32)
        one = a.run("activation", relu, one)
        other = b.run("convolution", lambda v: conv(v, shift=False) * scale, other)
        other = b.run("addition", lambda v: v + SHIFT.reshape(1, 8, 1, 1), other, count=8)
        other = b.run("activation", relu, other)
    found = aligned(a.output(one), b.output(other))
    assert pairs(found) == [(0, 0), (2, 2), (3, 3), (5, 5), (6, 6), (8, 8), (9, 9)]
    assert pairs(aligned(a, b, values=False)) == pairs(found)


def test_axes_that_changed_places_are_seen_and_not_undone() -> None:
    a, b = plain(picture(), 3), Side()
    here = b.input(picture())
    for layer in range(3):
        here = b.run("convolution", conv, here)
        if layer == 1:
            here = b.run("layout", lambda v: np.ascontiguousarray(v.transpose(0, 1, 3, 2)), here)
        here = b.run("activation", relu, here)
    found = aligned(a, b.output(here))
    assert all(pair.axes is None for pair in found.pairs)
    at = next(pair for pair in found.pairs if pair.a == 4)
    assert at.group_b == (3, 4)  # the transposition is in the group of the first value that it spoils
    assert not np.allclose(a.arrays[at.a], b.arrays[at.b])


def test_axes_of_one_length_are_told_by_values() -> None:
    x = picture()
    b = Side()
    here = b.run("layout", last, b.input(x))
    for _ in range(2):
        here = b.run("convolution", lambda v: last(conv(first(v))), here)
        here = b.run("activation", relu, here)
    found = aligned(plain(x, 2), b.output(b.run("layout", first, here)))
    assert {pair.axes for pair in found.pairs if pair.evidence[0] == "values"} == {(0, 3, 1, 2)}


def test_a_dropped_shift_is_paired_with_the_shifted_value() -> None:
    a, b = Side(), Side()
    one, other = a.input(picture()), b.input(picture())
    for layer in range(4):
        one = a.run("convolution", lambda v: conv(v, shift=False), one)
        one = a.run("addition", lambda v: v + SHIFT.reshape(1, 8, 1, 1), one, count=8)
        one = a.run("activation", relu, one)
        other = b.run("convolution", lambda v, keep=layer != 2: conv(v, shift=keep), other, count=72)
        other = b.run("activation", relu, other)
    found = aligned(a.output(one), b.output(other))
    assert (8, 5) in pairs(found)
    assert next(pair for pair in found.pairs if pair.a == 8).group_a == (6, 7)


def test_a_detour_through_another_type_is_in_the_group_before_it() -> None:
    a, b = plain(picture(), 3), Side()
    here = b.input(picture())
    for layer in range(3):
        here = b.run("convolution", conv, here)
        here = b.run("activation", relu, here)
        if layer == 1:
            half = b.run("cast", lambda v: v.astype(np.float16), here)
            large = b.run("multiplication", lambda v: v * np.float16(60000), half, count=1)
            wide = b.run("cast", lambda v: v.astype(np.float32), large)
            here = b.run("multiplication", lambda v: v / np.float32(60000), wide, count=1)
    found = aligned(a, b.output(here))
    assert next(pair for pair in found.pairs if pair.a == 4).group_b == (3, 4, 5, 6, 7)
    assert next(pair for pair in found.pairs if pair.a == 5).group_b == (8,)


def test_branches_run_in_any_order() -> None:
    def side(order: tuple[int, ...], swapped: bool) -> Side:
        made = Side()
        x = made.input(picture())
        done = {}
        for branch in order:
            here = x
            for _ in range(2):
                here = made.run(
                    "convolution", lambda v, k=branch: conv(v) + k, here, name=f"b{branch}.{here}.{len(made.values)}"
                )
            done[branch] = here
        joined = made.run("concatenation", lambda *v: np.concatenate(v, axis=1), *(done[k] for k in range(3)))
        ends = (done[0], done[1])
        total = made.run("addition", np.add, *(ends[::-1] if swapped else ends))
        return made.output(joined, "joined").output(total, "total")

    a, b = side((0, 1, 2), False), side((2, 0, 1), True)
    found = aligned(a, b)
    assert len(found.pairs) == len(a.values)
    for pair in found.pairs:
        np.testing.assert_array_equal(a.arrays[pair.a], b.arrays[pair.b])


def test_onnx_sum_is_an_addition() -> None:
    x = picture()
    sides = []
    for kind in ("addition", "reduction"):
        side = Side()
        start = side.input(x)
        inner = side.run("convolution", conv, start)
        total = side.run(kind, np.add, inner, start)
        sides.append(side.output(side.run("activation", relu, total)))
    assert pairs(aligned(*sides, values=False)) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_several_outputs_of_one_operation_each_have_a_group() -> None:
    def side() -> Side:
        made = Side()
        here = made.run("convolution", conv, made.input(picture()))
        halves = [made.value(h) for h in np.split(made.arrays[here], 2, axis=1)]
        made.operations.append(
            Operation(name="split", type="Split", kinds=("slicing",), inputs=(here,), outputs=tuple(halves))
        )
        return made.output(made.run("activation", relu, halves[0]), "y0").output(halves[1], "y1")

    found = aligned(side(), side())
    assert pairs(found) == [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4)]
    assert [pair.group_a for pair in found.pairs] == [(), (0,), (1,), (1,), (2,)]


def test_a_copy_that_two_groups_read_is_in_both() -> None:
    x = picture()
    a, b = Side(), Side()
    one = a.run("convolution", conv, a.input(x))
    a.output(a.run("activation", relu, one), "y0").output(a.run("activation", np.tanh, one), "y1")
    other = b.run("convolution", lambda v: last(conv(v)), b.input(x))
    turned = b.run("layout", first, other)
    b.output(b.run("activation", relu, turned), "y0").output(b.run("activation", np.tanh, turned), "y1")
    found = aligned(a, b)
    assert [pair.group_b for pair in found.pairs] == [(), (0,), (1, 2), (1, 3)]


def test_other_batches_are_aligned_by_one_sample() -> None:
    x = picture(batch=4)
    a, b = plain(x[:1]), fused(x)
    found = aligned(a, b, batch_a=1, batch_b=4)
    assert pairs(found) == [(0, 0), (2, 2), (4, 3), (6, 5)]
    assert "values" in found.pairs[1].evidence
    assert found.pairs[1].axes == (0, 3, 1, 2)


def test_inputs_and_outputs_meet_by_name_by_value_and_by_order() -> None:
    one, two = picture(0), picture(1)

    def side(names: list[str], arrays: list[Array], outputs: list[str], reverse: bool) -> Side:
        made = Side()
        ends = [made.run("convolution", conv, made.input(x, n)) for n, x in zip(names, arrays, strict=True)]
        for name, end in zip(outputs, ends[::-1] if reverse else ends, strict=True):
            made.output(end, name)
        return made

    same = aligned(side(["p", "q"], [one, two], ["r", "s"], False), side(["q", "p"], [two, one], ["s", "r"], False))
    assert {(0, 2), (2, 0)} <= set(pairs(same))
    other = aligned(side(["p", "q"], [one, two], ["r", "s"], False), side(["m", "n"], [two, one], ["t", "u"], True))
    assert set(pairs(other)) == {(0, 2), (1, 3), (2, 0), (3, 1)}
    blind = aligned(
        side(["p", "q"], [one, two], ["r", "s"], False), side(["m", "n"], [one, two], ["t", "u"], False), values=False
    )
    assert set(pairs(blind)) == {(0, 0), (1, 1), (2, 2), (3, 3)}


def test_nothing_in_common_is_said_in_words() -> None:
    a = plain(picture())
    b = Side()
    here = b.run("reduction", lambda v: v.mean(axis=(2, 3)), b.input(picture()))
    b.output(b.run("product", lambda v: v @ np.ones((8, 5), np.float32), here, count=40))
    found = aligned(a, b)
    assert pairs(found) == [(0, 0)]
    assert any("No layer" in note for note in found.notes)
    assert any("output 'y' of side a" in note for note in found.notes)
    assert set(found.unmatched_a) == set(range(6))
    assert set(found.unmatched_b) == {0, 1}


def test_shape_arithmetic_is_left_out() -> None:
    a, b = plain(picture(), 2), Side()
    here = b.input(picture())
    for _ in range(2):
        here = b.run("convolution", conv, here)
        shape = b.run("shape", lambda v: np.array(v.shape), here)
        here = b.run("reshaping", lambda v, s: v.reshape(s), here, shape)
        here = b.run("activation", relu, here)
    found = aligned(a, b.output(here))
    assert pairs(found) == [(0, 0), (1, 1), (2, 4), (3, 5), (4, 8)]
    assert found.pairs[2].group_b == (1, 2, 3)


def test_names_decide_between_equals_but_not_against_shapes() -> None:
    x = np.zeros((1, 8, 8, 8), np.float32)  # equal values everywhere

    def side(scopes: list[str], layout: Callable[[Array], Array] = lambda v: v) -> Side:
        made = Side()
        start = made.input(x)
        ends = [made.run("convolution", conv, start, scope=scope, name=f"{scope}.conv") for scope in scopes]
        return made.output(made.run("concatenation", lambda *v: np.concatenate(v, axis=1), *ends))

    found = aligned(side(["left.1", "right.2"]), side(["right.2", "left.1"]), provenance=True)
    assert {(1, 2), (2, 1)} <= set(pairs(found)) or {(1, 1), (2, 2)} <= set(pairs(found))
    a, b = Side(), Side()
    a.output(a.run("convolution", conv, a.input(picture()), name="layer.1"))
    small = b.run("pooling", lambda v: v[:, :, ::2, ::2], b.input(picture()), name="layer.1")
    b.output(small)
    assert pairs(aligned(a, b, provenance=True)) == [(0, 0)]


class TestFixes:
    def test_a_fix_wins_and_says_so(self) -> None:
        a, b = plain(picture()), plain(picture())
        found = aligned(a, b, fixes=[Fix(a="v2", b="v4")])
        pair = next(pair for pair in found.pairs if pair.a == 2)
        assert (pair.b, pair.evidence[0], pair.confidence) == (4, "fixed", 1.0)
        assert len({p.b for p in found.pairs}) == len(found.pairs)

    def test_a_value_can_be_left_without_a_partner(self) -> None:
        a, b = plain(picture()), plain(picture())
        assert 2 not in {p.a for p in aligned(a, b, fixes=[Fix(a="v2", b=None)]).pairs}
        assert 2 not in {p.b for p in aligned(a, b, fixes=[Fix(a=None, b="v2")]).pairs}

    def test_a_name_that_is_none_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(InputError, match=r"'v22', which is no value of side a.*v2"):
            aligned(plain(picture()), plain(picture()), fixes=[Fix(a="v22", b="v2")])

    def test_one_value_is_fixed_once(self) -> None:
        with pytest.raises(InputError, match="Two fixes name 'v2' of side b"):
            aligned(plain(picture()), plain(picture()), fixes=[Fix(a="v2", b="v2"), Fix(a="v4", b="v2")])

    def test_values_of_other_sizes_are_no_pair(self) -> None:
        b = plain(picture())
        b.run("reduction", lambda v: v.mean(axis=(2, 3)), 2, name="mean")
        with pytest.raises(InputError, match="512 and 8 elements"):
            aligned(plain(picture()), b, fixes=[Fix(a="v2", b="mean:0")])

    def test_a_fix_names_something(self) -> None:
        with pytest.raises(InputError, match="names no value"):
            aligned(plain(picture()), plain(picture()), fixes=[Fix(a=None, b=None)])


def test_an_empty_graph_and_a_graph_cut_short_are_taken() -> None:
    a = plain(picture())
    cut = Side()
    here = cut.run("convolution", conv, cut.input(picture()))
    cut.run("activation", relu, here)  # the run failed here: no outputs
    assert pairs(aligned(a, cut)) == [(0, 0), (1, 1), (2, 2)]
    nothing = Side()
    nothing.input(picture())
    assert pairs(aligned(a, nothing)) == [(0, 0)]
