import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlscope_lab.alignment.records import Alignment, Pair, in_layout_of
from mlscope_lab.divergence.capture import capture
from mlscope_lab.divergence.judging import INJECTION_FACTOR
from mlscope_lab.divergence.shadow import boundary, dequantized, from_reference, handed_over, shadow
from mlscope_lab.trace.graph import Value
from tests.divergence.numpy_net import CLEAN, W2, NumpyStepper, feeds, identical_alignment, with_operation

FAULTY = with_operation(CLEAN, "product2", lambda h: h @ (W2 * np.float32(1.01)))


def run(reference, other, skip=()):
    a, stepper = capture(NumpyStepper(reference), feeds()), NumpyStepper(other)
    b = capture(stepper, feeds())
    with a.spool, b.spool:
        return shadow(stepper, a, b, identical_alignment(a.graph, skip))


def test_only_the_faulty_group_injects():
    injections, reasons = run(CLEAN, FAULTY)
    assert reasons == {}
    ratio = {i: found.max_abs / (INJECTION_FACTOR * found.noise) for i, found in injections.items()}
    assert max(ratio, key=lambda i: ratio[i]) == 3  # product2; inputs are pair 0
    assert ratio[3] > 100
    assert all(r < 1 for i, r in ratio.items() if i != 3)


def test_a_fused_group_is_replayed_as_a_whole():
    injections, reasons = run(CLEAN, FAULTY, skip=("product1", "product2", "bias2"))
    assert reasons == {}
    guilty = [i for i, found in injections.items() if found.max_abs > INJECTION_FACTOR * found.noise]
    assert guilty == [2]  # input, relu1, residual (with product2 and bias2)


def test_a_nan_is_injected_where_it_is_born():
    broken = with_operation(CLEAN, "bias2", lambda h: np.where(h > 0, h, np.nan).astype(np.float32))
    injections, _ = run(CLEAN, broken)
    assert [i for i, found in injections.items() if found.max_abs == np.inf] == [4]


def test_the_same_infinity_on_both_sides_is_agreement():
    endless = with_operation(CLEAN, "bias2", lambda h: np.where(h > 0, h, np.inf).astype(np.float32))
    injections, _ = run(endless, endless)
    assert all(found.max_abs == 0.0 for found in injections.values())


def test_a_group_that_reads_what_has_no_partner_is_named():
    a, stepper = capture(NumpyStepper(), feeds()), NumpyStepper()
    b = capture(stepper, feeds())
    whole = identical_alignment(a.graph).pairs
    lonely = Alignment(pairs=tuple(p for p in whole if p.a != 2))  # without relu1, which the residual reads
    with a.spool, b.spool:
        _, reasons = shadow(stepper, a, b, lonely)
    assert sorted(reasons) == [2, 4]  # product2 and residual
    assert "'relu1', which has no partner" in reasons[2]


def test_the_boundary_is_what_is_read_from_outside():
    one = capture(NumpyStepper(), feeds())
    with one.spool:
        assert boundary(one, (2, 3, 4)) == [2]
        assert boundary(one, (4,)) == [4, 2]


@given(st.data())
def test_bringing_there_and_back_is_the_identity(data):
    array = data.draw(hnp.arrays("f4", hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)))
    axes = data.draw(st.none() | st.permutations(range(array.ndim)).map(tuple))
    pair = Pair(a=0, b=0, axes=axes, confidence=1.0, evidence=("values",))
    theirs = from_reference(array if axes is None else array.transpose(axes), pair, array.shape, array.dtype)
    assert theirs.tobytes() == np.ascontiguousarray(array).tobytes()
    mine = in_layout_of(tuple(array.shape[i] for i in axes) if axes else array.shape, theirs, axes)
    assert np.array_equal(mine, array if axes is None else array.transpose(axes), equal_nan=True)


def test_another_batch_is_filled_with_repetitions():
    pair = Pair(a=0, b=0, axes=(0, 3, 1, 2), confidence=1.0, evidence=("values",))
    mine = np.arange(12.0, dtype=np.float32).reshape(1, 3, 2, 2)
    theirs = from_reference(mine, pair, (2, 2, 2, 3), np.dtype("f4"))
    assert theirs.shape == (2, 2, 2, 3)
    assert np.array_equal(theirs[0], theirs[1])
    assert np.array_equal(theirs[0].transpose(2, 0, 1), mine[0])


def test_clean_sides_inject_nothing():
    injections, _ = run(CLEAN, CLEAN)
    assert all(found.max_abs == 0.0 and found.noise > 0.0 for found in injections.values())


def test_quantised_values_are_handed_over_in_their_own_numbers():
    pair = Pair(a=0, b=0, axes=None, confidence=1.0, evidence=("values",))
    value = Value(name="q", shape=(4,), dtype="uint8", quantization=(0.5, 10))
    real = np.array([-5.0, 0.0, 1.26, 1000.0], dtype=np.float32)
    whole = handed_over(real, pair, value, np.dtype("uint8"))
    assert whole.tolist() == [0, 10, 13, 255]
    assert dequantized(whole, value).tolist() == [-5.0, 0.0, 1.5, 122.5]
    plain = Value(name="f", shape=(4,), dtype="float32")
    assert dequantized(real, plain) is real
    assert handed_over(real, pair, plain, np.dtype("f4")).tolist() == real.tolist()


def test_what_float16_cannot_hold_is_infinite():
    pair = Pair(a=0, b=0, axes=None, confidence=1.0, evidence=("values",))
    assert from_reference(np.array([1e6]), pair, (1,), np.dtype("f2")).tolist() == [np.inf]
