"""The windows of bytes that Magika looks at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.errors import InputError
from mlscope_lab.processing.text import ByteWindows


def test_short_file_is_padded_inwards(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_bytes(b" \n import os\n\n")
    found = ByteWindows(beginning=16, end=16, block=64)(file)
    assert found.dtype == np.int32
    assert bytes(found[:11].tolist()) == b"import os\n\n"
    assert found[11:16].tolist() == [256] * 5
    assert found[16:20].tolist() == [256] * 4
    assert bytes(found[20:].tolist()) == b" \n import os"


def test_long_file_gives_both_ends() -> None:
    data = bytes(range(33, 256)) * 40
    found = ByteWindows()(data)
    assert found.shape == (2048,)
    assert bytes(found[:1024].tolist()) == data[:1024]
    assert bytes(found[1024:].tolist()) == data[-1024:]


@given(st.binary(max_size=200), st.integers(1, 30), st.integers(1, 30), st.integers(30, 64))
def test_windows_are_ends_of_stripped_blocks(data: bytes, beginning: int, end: int, block: int) -> None:
    step = ByteWindows(beginning=beginning, end=end, block=block, minimum=0)
    found = step(data).tolist()
    head, tail = data[:block].lstrip()[:beginning], data[-block:].rstrip()
    tail = tail[max(0, len(tail) - end) :]
    assert found[:beginning] == [*head, *[256] * (beginning - len(head))]
    assert found[beginning:] == [*[256] * (end - len(tail)), *tail]


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds 3 bytes without leading white space, fewer than the 8"):
        ByteWindows()(b"     abc")
    with pytest.raises(InputError, match="takes a path or bytes, not int"):
        ByteWindows()(3)
    with pytest.raises(InputError, match="does not exist"):
        ByteWindows()(tmp_path / "gone")
    for wrong in ({"beginning": -1}, {"beginning": 0, "end": 0}, {"block": 100}):
        with pytest.raises(InputError):
            ByteWindows(**wrong)
