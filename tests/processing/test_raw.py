"""Tensors, constants and selections."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mlscope_lab.errors import InputError
from mlscope_lab.processing.raw import Constant, Select, Tensor


@given(hnp.arrays(st.sampled_from([np.float32, np.int16, np.uint8]), hnp.array_shapes(max_dims=3, max_side=5)))
def test_arrays_and_lists_agree(values: np.ndarray) -> None:
    found = Tensor(dtype=values.dtype.name)(values)
    assert found.dtype == values.dtype
    assert np.array_equal(found, values, equal_nan=values.dtype.kind == "f")
    again = Tensor(dtype=values.dtype.name)(values.tolist())
    assert np.array_equal(again, values, equal_nan=values.dtype.kind == "f")


def test_npy_file(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save(tmp_path / "x.npy", values)
    assert np.array_equal(Tensor(shape=(0, 3))(tmp_path / "x.npy"), values)
    with pytest.raises(InputError, match=r"takes the shape \(3, any\), not \(2, 3\)"):
        Tensor(shape=(3, 0))(str(tmp_path / "x.npy"))


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("the pickle was run",))


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Evil()))
    for name in ("evil.npy", "bare.npy"):
        with pytest.raises(InputError, match=f"{name} is not a .npy file of plain numbers"):
            Tensor()(tmp_path / name)


def test_headers_that_lie(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    (tmp_path / "huge.npy").write_bytes(buffer.getvalue() + b"12345678")
    with pytest.raises(InputError, match=r"huge\.npy"):
        Tensor()(tmp_path / "huge.npy")
    (tmp_path / "empty.npy").write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.npy"):
        Tensor()(tmp_path / "empty.npy")
    (tmp_path / "x.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"save the array with numpy\.save"):
        Tensor()(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("dtype", "value"), [("uint8", [1.5]), ("uint8", [256]), ("int32", [float("nan")]), ("bool", [2]), ("int8", [-129])]
)
def test_integers_must_not_change(dtype: str, value: list[float]) -> None:
    with pytest.raises(InputError, match=f"do not fit {dtype}"):
        Tensor(dtype=dtype)(value)


@pytest.mark.parametrize("value", [[[1], [2, 3]], ["a"], None, {"a": 1}, [1j], [10**30]])
def test_what_is_no_tensor(value: object) -> None:
    with pytest.raises(InputError, match="takes numbers in a regular shape"):
        Tensor()(value)


def test_constant() -> None:
    zeros = Constant(shape=(2, 128))(None)
    assert (zeros.shape, zeros.dtype, zeros.any()) == ((2, 128), np.float32, np.False_)
    rate = Constant(value=16000, dtype="int64")("whatever")
    assert (rate.shape, rate.dtype, int(rate)) == ((), np.int64, 16000)
    for wrong in (
        {"value": 1.5, "dtype": "int64"},
        {"value": 300, "dtype": "uint8"},
        {"shape": (0,)},
        {"shape": (1 << 20, 1 << 20)},
    ):
        with pytest.raises(InputError):
            Constant(**wrong)  # type: ignore[arg-type]


def test_select() -> None:
    values = np.arange(6).reshape(2, 3)
    assert Select(index=1)(values).tolist() == [1, 4]
    assert Select(index=-1, axis=0)(values).tolist() == [3, 4, 5]
    with pytest.raises(InputError, match="axis -1 has 3 entries, there is no index 3"):
        Select(index=3)(values)
    with pytest.raises(InputError, match="no axis 2"):
        Select(index=0, axis=2)(values)
