"""Read the shapes of layers: ``float32[1,3,224,224];int64[1]``."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["bytes_of"]

_TENSOR = re.compile(r"([A-Za-z_0-9]+)\[([0-9,\s]*)\]")
_SIZES = {"bool": 1, "complex64": 8, "complex128": 16}


def _element_bytes(dtype: str) -> float:
    if dtype in _SIZES:
        return float(_SIZES[dtype])
    bits = re.search(r"(?:float|int|uint|bfloat)(\d+)", dtype)
    return int(bits[1]) / 8 if bits else np.nan


def bytes_of(shapes: Iterable[str]) -> npt.NDArray[np.float64]:
    """Return the bytes that the tensors of each text hold together, NaN where one is unknown.

    Examples
    --------
    >>> bytes_of(["float32[1,3,2,2];int64[2]", "", "float32[batch,3]"]).tolist()
    [64.0, nan, nan]
    """
    found = []
    known: dict[str, float] = {}
    for text in shapes:
        if text not in known:
            total = 0.0 if text else np.nan
            for part in text.split(";") if text else ():
                tensor = _TENSOR.fullmatch(part.strip())
                if tensor is None:
                    total = np.nan
                    break
                lengths = [int(n) for n in tensor[2].split(",") if n.strip()]
                total += _element_bytes(tensor[1]) * float(np.prod(lengths, dtype=np.float64))
            known[text] = total
        found.append(known[text])
    return np.array(found, dtype=np.float64)
