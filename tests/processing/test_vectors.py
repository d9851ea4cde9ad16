from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlscope_lab.errors import InputError
from mlscope_lab.processing.vectors import Mean, UnitLength


@given(arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)))
def test_unit_length(values):
    if not np.linalg.norm(values, axis=-1).all():
        with pytest.raises(InputError, match="norm 0"):
            UnitLength()(values)
        return
    found = UnitLength()(values)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, rtol=1e-5)


def test_mean_is_taken_in_double_precision():
    values = np.full((10_000, 1), 0.1, np.float16)
    assert Mean()(values).tolist() == [np.float16(0.1)]
    assert Mean(axis=-1)(np.ones((2, 3), np.float32)).shape == (2,)


@pytest.mark.parametrize("step", [Mean(axis=2), UnitLength(axis=2)])
def test_axes_must_be_there(step):
    for wrong in (np.ones((2, 2), np.float32), np.ones((2, 2, 2), np.int64)):
        with pytest.raises(InputError, match="axis 2"):
            step(wrong)
