"""Every formula against loops that count one by one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.errors import UnsupportedModelError
from mlscope_lab.static import formulas
from mlscope_lab.static.records import Work

small = st.integers(1, 4)


@given(small, st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.tuples(small, small), st.tuples(small, small))
def test_convolution_counts_its_loop_nest(
    batch: int, groups: int, inner: int, outer: int, place: tuple[int, int], kernel: tuple[int, int]
) -> None:
    inputs, outputs = inner * groups, outer * groups
    count = 0
    for _ in itertools.product(range(batch), range(outputs), range(place[0]), range(place[1])):
        count += (inputs // groups) * kernel[0] * kernel[1]
    made = (batch, outputs, *place)
    assert formulas.convolution(made, kernel, inputs, groups).macs == count
    last = (batch, *place, outputs)
    assert formulas.convolution(last, kernel, inputs, groups, channel_axis=-1).macs == count
    biased = formulas.convolution(made, kernel, inputs, groups, bias=True)
    assert biased.flops == {"elementwise": int(np.prod(made))}


def test_transposed_convolution_is_the_convolution_backwards() -> None:
    forward = formulas.convolution((2, 8, 5, 5), (3, 3), 4, 2).macs
    assert formulas.transposed_convolution((2, 8, 5, 5), (3, 3), 4, 2, (2, 4, 11, 11)).macs == forward


@pytest.mark.parametrize(
    ("left", "right", "macs"),
    [
        ((3, 4), (4, 5), 60),
        ((7, 3, 4), (4, 5), 420),
        ((7, 1, 3, 4), (2, 4, 5), 840),
        ((4,), (4,), 4),
        ((4,), (2, 4, 5), 40),
        ((2, 3, 4), (4,), 24),
        ((0, 4), (4, 5), 0),
    ],
)
def test_matmul_broadcasts(left: tuple[int, ...], right: tuple[int, ...], macs: int) -> None:
    assert formulas.matmul(left, right) == Work(macs=macs)
    result = np.matmul(np.zeros(left), np.zeros(right))
    assert macs == result.size * left[-1]


def test_matmul_refuses_scalars() -> None:
    with pytest.raises(UnsupportedModelError):
        formulas.matmul((), (3,))


@pytest.mark.parametrize(
    ("equation", "shapes", "macs", "flops"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)], 24, {}),
        ("bhqd,bhkd->bhqk", [(2, 3, 4, 5), (2, 3, 6, 5)], 720, {}),
        ("ij,jk", [(2, 3), (3, 4)], 24, {}),
        ("...ij,jk->...ik", [(7, 2, 3), (3, 4)], 168, {}),
        ("...ij,...jk->...ik", [(7, 2, 3), (3, 4)], 168, {}),
        ("i,j->ij", [(3,), (4,)], 0, {"elementwise": 12}),
        ("ij->ji", [(3, 4)], 0, {}),
        ("ij->i", [(3, 4)], 0, {"reduction": 12}),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], 24 + 40, {}),
        ("ij,ij->", [(2, 3), (2, 3)], 6, {}),
    ],
)
def test_einsum(equation: str, shapes: list[tuple[int, ...]], macs: int, flops: dict[str, int]) -> None:
    np.einsum(equation, *(np.zeros(shape) for shape in shapes))  # it is one
    work = formulas.einsum(equation, shapes)
    assert (work.macs, {k: n for k, n in work.flops.items() if n}) == (macs, flops)


def test_einsum_that_does_not_fit() -> None:
    with pytest.raises(UnsupportedModelError, match="operands"):
        formulas.einsum("ij,jk->ik", [(2, 3)])
    with pytest.raises(UnsupportedModelError, match="does not fit"):
        formulas.einsum("ij,jk->ik", [(2, 3), (3,)])


@pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_recurrent_multiplies_input_and_state_at_each_step(kind: str, gates: int) -> None:
    work = formulas.recurrent(kind, steps=5, batch=2, inputs=3, hidden=7, directions=2)
    assert work.macs == 5 * 2 * 2 * gates * (7 * 3 + 7 * 7)


def test_projected_lstm() -> None:
    plain = formulas.recurrent("LSTM", steps=1, batch=1, inputs=3, hidden=7, directions=1, projected=2).macs
    assert plain == 4 * 7 * (3 + 2) + 2 * 7


def test_attention_is_two_products_and_a_softmax() -> None:
    work = formulas.attention((2, 4, 7, 8), (2, 4, 9, 8), (2, 4, 9, 5), mask=True)
    assert work.macs == 2 * 4 * 7 * 9 * (8 + 5)
    assert work.flops == {"elementwise": 2 * 2 * 4 * 7 * 9, "softmax": 5 * 2 * 4 * 7 * 9}


def test_work_adds_and_multiplies() -> None:
    work = Work(macs=2, flops={"pooling": 3}) + Work(macs=1, flops={"pooling": 1, "softmax": 4})
    assert work * 2 == Work(macs=6, flops={"pooling": 8, "softmax": 8})


def test_the_rest() -> None:
    assert formulas.pooling((1, 2, 3, 3), (2, 2)).flops == {"pooling": 72}
    assert formulas.interpolation((1, 2, 4, 4), 4).flops == {"resampling": 256}
    assert formulas.interpolation((1, 2, 4, 4), 0).flops == {}
    assert formulas.normalization((2, 3), given=True).flops == {"normalization": 12}
    assert formulas.normalization((2, 3), given=False).flops == {"normalization": 42}
    assert formulas.softmax((2, 3)).flops == {"softmax": 30}
