from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.analysis.shapes import bytes_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("float32[1,3,2,2]", 48),
        ("float16[4];int64[2]", 24),
        ("bfloat16[8]", 16),
        ("bool[5]", 5),
        ("uint8[]", 1),  # a scalar is one element
        ("float32[1, 3]", 12),
        ("complex64[2]", 16),
    ],
)
def test_known_sizes(text, expected):
    assert bytes_of([text]).tolist() == [expected]


@pytest.mark.parametrize("text", ["", "float32[batch,3]", "float32", "string[2]", "float32[2];?"])
def test_what_is_not_known_is_not_made_up(text):
    assert np.isnan(bytes_of([text, "float32[1]"])).tolist() == [True, False]
