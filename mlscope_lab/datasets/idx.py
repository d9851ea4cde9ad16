"""IDX files, plain or gzipped: the form of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt

from mlscope_lab.datasets.base import Dataset
from mlscope_lab.errors import InputError

__all__ = ["IdxDataset", "load_idx"]

_MAX_BYTES = 4 << 30
_UNSIGNED_BYTE = 0x08


def load_idx(path: str | os.PathLike[str]) -> npt.NDArray[np.uint8]:
    """Load an IDX file of unsigned bytes.

    Parameters
    ----------
    path
        The file; gzipped if it begins with gzip's magic number, whatever its name.

    Returns
    -------
    numpy.ndarray
        uint8, with the shape that the file states.

    Raises
    ------
    InputError
        If it is no IDX file of unsigned bytes, is cut off, damaged, or longer than it states.

    References
    ----------
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database", section "File formats".
    """
    file = Path(path).expanduser()
    try:
        with file.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                return _read(raw, file.name)
            with gzip.open(raw) as stream:
                return _read(cast("BinaryIO", stream), file.name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{file.name} is damaged or cut off ({error}); fetch it again") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error


def _read(stream: BinaryIO, name: str) -> npt.NDArray[np.uint8]:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[3] == 0:
        raise InputError(f"{name} is not an IDX file: it begins with {magic.hex() or 'nothing'}, not 0000")
    if magic[2] != _UNSIGNED_BYTE:
        raise InputError(f"{name} holds IDX elements of type 0x{magic[2]:02x}; unsigned bytes (0x08) are needed")
    axes = magic[3]
    lengths = stream.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise InputError(f"{name} is cut off in its header; fetch it again")
    shape = struct.unpack(f">{axes}I", lengths)
    size = math.prod(shape)
    if size > _MAX_BYTES:
        raise InputError(f"{name} states {size} bytes, more than the {_MAX_BYTES} that are taken")
    parts, missing = [], size
    while missing:  # in pieces, so that a header which lies does not take the memory it asks for
        part = stream.read(min(missing, 1 << 24))
        if not part:
            raise InputError(f"{name} states {size} bytes of data and holds {size - missing}; fetch it again")
        parts.append(part)
        missing -= len(part)
    if stream.read(1):
        raise InputError(f"{name} holds more than the {size} bytes of data that it states")
    return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(shape)


class IdxDataset(Dataset):
    """Pictures and targets from a pair of IDX files.

    Parameters
    ----------
    images
        File of shape (sample, height, width).
    targets
        File of shape (sample,).
    labels
        Class names by target, or None.

    Raises
    ------
    InputError
        If a file is damaged, their lengths differ, or a target has no label.
    """

    def __init__(
        self, images: str | os.PathLike[str], targets: str | os.PathLike[str], *, labels: Sequence[str] | None = None
    ) -> None:
        super().__init__(Path(images).name.split(".")[0], labels)
        self.images, self.targets = load_idx(images), load_idx(targets)
        if self.images.ndim != 3 or self.targets.ndim != 1:
            raise InputError(
                f"dataset '{self.name}': pictures must be (sample, height, width) and targets (sample,), not "
                f"{self.images.shape} and {self.targets.shape}; are the two files the wrong way round?"
            )
        if len(self.images) != len(self.targets) or not len(self.images):
            raise InputError(
                f"dataset '{self.name}' has {len(self.images)} pictures and {len(self.targets)} targets; "
                "take both files from the same split"
            )
        if self.labels is not None and int(self.targets.max()) >= len(self.labels):
            raise InputError(
                f"dataset '{self.name}' has the target {self.targets.max()}, there are {len(self.labels)} labels"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def sample(self, index: int) -> tuple[npt.NDArray[np.uint8], int]:
        """Return the grey levels (height, width) of one picture and its target."""
        return self.images[index], int(self.targets[index])

    def digest(self) -> str:
        """Return ``sha256:<hex>`` over the pictures' bytes, then the targets'."""
        whole = hashlib.sha256(repr(self.images.shape).encode())
        whole.update(np.ascontiguousarray(self.images).data)
        whole.update(np.ascontiguousarray(self.targets).data)
        return f"sha256:{whole.hexdigest()}"
