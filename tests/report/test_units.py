"""Numbers for readers."""

from __future__ import annotations

import math

import pytest

from mlscope_lab.report.units import UNKNOWN, format_bytes, format_number, time_scale


@pytest.mark.parametrize(
    ("ns", "text"),
    [(5, "5 ns"), (1500, "1.500 µs"), (6_912_345, "6.912 ms"), (21_560_000, "21.56 ms"), (2.5e11, "250.0 s"),
     (0, "0 ns")],
)  # fmt: skip
def test_time_reads_in_its_unit(ns, text):
    assert time_scale([ns]).text(ns) == text


def test_a_column_has_one_unit():
    scale = time_scale([900, 2_000_000, math.nan])
    assert [scale.text(v) for v in (900, 2_000_000)] == ["0.001 ms", "2.000 ms"]
    assert scale.text(math.nan) == scale.value(math.nan) == UNKNOWN
    assert scale.interval(1e6, 3e6) == "[1.000, 3.000]"
    assert scale.interval(math.nan, 3e6) == "unknown"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (145.03, "145"), (46.4, "46.4"), (12345.6, "12,346"), (4.2e-6, "4.20e-06"), (math.inf, "∞"),
     (math.nan, UNKNOWN)],
)  # fmt: skip
def test_numbers_have_significant_digits(value, text):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(-1, "unknown"), (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (18_600_000, "17.7 MiB"), (2**33, "8.0 GiB")],
)
def test_bytes(count, text):
    assert format_bytes(count) == text
