from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.cli.text import binary_size, duration, interval, parse_bytes, percent, plain


@pytest.mark.parametrize(
    ("ns", "shown"),
    [
        (12_345_678, "12.3 ms"), (1_234_567_890, "1.23 s"), (999, "999 ns"), (0, "0.00 ns"), (123_400, "123 us"),
        (None, "-"), (math.nan, "-"),
    ],
)  # fmt: skip
def test_duration_has_three_digits_and_a_unit(ns: float | None, shown: str) -> None:
    assert duration(ns) == shown


def test_an_interval_shares_the_unit_of_its_centre() -> None:
    assert interval(12_345_678, 12_100_000, 12_600_000) == "12.3 ms [12.1, 12.6]"
    assert interval(1_050_000, 980_000, 1_120_000) == "1.05 ms [0.98, 1.12]"


@pytest.mark.parametrize("missing", [None, math.nan])
def test_an_unknown_interval_is_said_and_not_invented(missing: float | None) -> None:
    assert interval(5e6, missing, missing) == "5.00 ms (no interval)"


def test_percent_and_sizes() -> None:
    assert percent(0.1234) == "12.3 %"
    assert percent(math.nan) == "-"
    assert (binary_size(0), binary_size(1536), binary_size(5 * 2**40)) == ("0 bytes", "1.5 KiB", "5.0 TiB")


@given(st.text())
def test_plain_text_cannot_steer_a_terminal(text: str) -> None:
    shown = plain(text)
    assert all(c.isprintable() for c in shown)
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("text", "count"),
    [("1000000", 10**6), ("2GB", 2 * 10**9), ("512 MiB", 512 * 2**20), ("1.5g", 1_500_000_000), ("7b", 7)],
)
def test_sizes_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@given(st.text())
def test_a_size_is_read_or_refused(text: str) -> None:
    try:
        count = parse_bytes(text)
    except ValueError:
        return  # anything else that it raises fails the test
    assert count > 0


@pytest.mark.parametrize("text", ["", "GB", "-1", "0", "1 parsec", "nan", "inf", "1e400"])
def test_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)
