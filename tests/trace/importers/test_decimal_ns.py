from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.trace.importers.decimal_ns import LIMIT_NS, to_ns

WHOLE = st.integers(0, 4 * 10**15).map(str)
DECIMALS = st.text("0123456789", max_size=7) | st.sampled_from(["0005" + "0" * 40 + "1", "0015", "0014" + "9" * 40])


@st.composite
def numbers(draw):
    """A JSON number, or a string of one, of at most 10^15 microseconds."""
    text = draw(st.sampled_from(["", "-"])) + draw(WHOLE)
    decimals = draw(DECIMALS)
    text += f".{decimals}" if decimals else ""
    exponent = draw(st.sampled_from(["", "", "", "e0", "E-2", "e+0"]))
    return draw(st.sampled_from(["{}", "{}", '"{}"'])).format(text + exponent)


def exact(text):
    """Return nanoseconds of the text in exact arithmetic, rounded half to even."""
    return round(Fraction(text.strip('"')) * 1000)


def converted(texts):
    return to_ns("".join(f"{text}\n" for text in texts).encode())


@given(texts=st.lists(numbers(), max_size=20))
def test_any_number_is_exact(texts):
    values, bad, uncommon = converted(texts)
    assert values.dtype == np.int64
    assert bad is None
    assert values.tolist() == [exact(text) for text in texts]
    odd = [t for t in texts if '"' in t or "e" in t.lower() or len(t.partition(".")[2]) > 3]
    assert uncommon == len(odd)


@given(nanoseconds=st.lists(st.integers(0, LIMIT_NS - 1), min_size=1))
def test_three_decimals_as_kineto_writes_them(nanoseconds):
    values, bad, uncommon = converted([f"{n // 1000}.{n % 1000:03d}" for n in nanoseconds])
    assert (values.tolist(), bad, uncommon) == (nanoseconds, None, 0)


@given(microseconds=st.lists(st.integers(0, 10**15 - 1), min_size=1))
def test_whole_microseconds(microseconds):
    values, bad, _ = converted(map(str, microseconds))
    assert (values.tolist(), bad) == ([1000 * n for n in microseconds], None)


@pytest.mark.parametrize(
    "text",
    ["", "null", "true", "[1]", "{}", '"x"', '""', "NaN", "Infinity", "1e400", "-1e30", "9223372036854775807",
     "4611686018427387.904", "9" * 5000, "1e999999999", '"\\u0031"', "5712195495519689.047"],
)  # fmt: skip
def test_what_is_no_time_is_said(text):
    values, bad, _ = converted(["1.5", text, "2"])
    assert bad.tolist() == [False, True, False]
    assert values[[0, 2]].tolist() == [1500, 2000]


def test_half_goes_to_even():
    assert converted(["0.0005", "0.0015", "0.0025", "0.00251"])[0].tolist() == [0, 2, 2, 3]
    assert converted(["0.0005" + "0" * 60 + "1", "1e-999999999", "-0.0005"])[0].tolist() == [1, 0, 0]
    assert converted([])[0].tolist() == []
