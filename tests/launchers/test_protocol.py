"""Messages survive the pipe, and what is no message is refused."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlscope_lab.launchers.protocol import ClosedPipeError, receive, send


def _through_a_pipe(message, arrays):
    reader, writer = os.pipe()
    try:
        thread = threading.Thread(target=send, args=(writer, message, arrays))
        thread.start()
        found = receive(reader)
        thread.join()
        return found
    finally:
        os.close(reader)
        os.close(writer)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_dtypes = st.sampled_from(["float32", "float64", "int64", "uint8", "bool", "float16", "int8"])


@settings(max_examples=60, deadline=None)
@given(
    message=st.dictionaries(st.text(max_size=8), _json, max_size=4),
    array=_dtypes.flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))),
)
def test_round_trip(message, array):
    found, arrays = _through_a_pipe(message, {"a": array})
    assert found == message
    assert arrays["a"].dtype == array.dtype
    np.testing.assert_array_equal(arrays["a"], array)


def test_a_large_array_and_strings_travel():
    large = np.arange(3_000_000, dtype=np.float32)
    words = np.array([["a", "ü"], ["", "d" * 100]], dtype=object)
    _, arrays = _through_a_pipe({}, {"large": large, "words": words})
    np.testing.assert_array_equal(arrays["large"], large)
    assert arrays["words"].tolist() == words.tolist()


def test_a_strided_array_arrives_whole():
    array = np.arange(24).reshape(4, 6)[::2, ::-1]
    _, arrays = _through_a_pipe({}, {"a": array})
    np.testing.assert_array_equal(arrays["a"], array)


def test_a_closed_pipe_is_named():
    reader, writer = os.pipe()
    os.write(writer, b"\x20\x00\x00")
    os.close(writer)
    with pytest.raises(ClosedPipeError):
        receive(reader)
    os.close(reader)


@pytest.mark.parametrize("dtype", ["|O", "O8"])
def test_objects_are_refused(dtype):
    reader, writer = os.pipe()
    header = b'{"message": {}, "strings": {}, "arrays": [{"key": "a", "dtype": "%s", "shape": [1]}]}' % dtype.encode()
    os.write(writer, len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises((ValueError, TypeError)):
        receive(reader)
    os.close(reader)
    os.close(writer)


def test_an_absurd_header_is_refused():
    reader, writer = os.pipe()
    os.write(writer, (1 << 60).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="not a message"):
        receive(reader)
    os.close(reader)
    os.close(writer)
