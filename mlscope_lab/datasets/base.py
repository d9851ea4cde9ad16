"""What every dataset offers."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError

__all__ = ["Dataset", "FileDataset", "Sample"]

Sample = Path | npt.NDArray[np.uint8]


class Dataset(Sequence[tuple[Sample, int]]):
    """Labelled samples: has a length, can be indexed and iterated over, always in the same order.

    Parameters
    ----------
    name
        For messages.
    labels
        Class names by target, or None where nobody gave any.
    """

    def __init__(self, name: str, labels: Sequence[str] | None) -> None:
        self.name = name
        self.labels = tuple(labels) if labels is not None else None

    @abstractmethod
    def sample(self, index: int) -> tuple[Sample, int]:
        """Return one sample and its target; ``index`` is within 0 and the length."""

    @abstractmethod
    def digest(self) -> str:
        """Return ``sha256:<hex>`` over all samples and targets in order; reads everything."""

    @overload
    def __getitem__(self, index: int) -> tuple[Sample, int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[Sample, int]]: ...

    def __getitem__(self, index: Any) -> Any:
        """Return one (sample, target), or a list of them for a slice.

        Raises
        ------
        InputError
            If the sample's file is gone or empty.
        IndexError
            If there is no such index.
        """
        if isinstance(index, slice):
            return [self.sample(i) for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"dataset '{self.name}' has {len(self)} samples, there is no index {index}")
        return self.sample(position)

    def __iter__(self) -> Iterator[tuple[Sample, int]]:
        """Yield every (sample, target)."""
        return (self.sample(i) for i in range(len(self)))

    def __repr__(self) -> str:
        classes = f", {len(self.labels)} classes" if self.labels is not None else ""
        return f"<{type(self).__name__} '{self.name}': {len(self)} samples{classes}>"


class FileDataset(Dataset):
    """A dataset whose samples are files.

    Parameters
    ----------
    name
        For messages.
    pairs
        Path and target of each sample.
    labels
        Class names by target, or None.

    Raises
    ------
    InputError
        If there is no sample, or a target has no label.
    """

    def __init__(self, name: str, pairs: Sequence[tuple[Path, int]], labels: Sequence[str] | None) -> None:
        super().__init__(name, labels)
        if not pairs:
            raise InputError(f"dataset '{name}' holds no samples")
        self.pairs = tuple(pairs)
        classes = len(self.labels) if self.labels is not None else None
        for path, target in self.pairs:
            if target < 0 or (classes is not None and target >= classes):
                raise InputError(f"dataset '{name}': {path.name} has the target {target}, there are {classes} labels")

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int) -> tuple[Path, int]:
        """Return path and target; raise InputError if the file is gone or empty."""
        path, target = self.pairs[index]
        try:
            size = path.stat().st_size if path.is_file() else -1
        except OSError as error:
            raise InputError(f"dataset '{self.name}', sample {index}: {path} cannot be read: {error}") from error
        if size <= 0:
            what = "is empty" if size == 0 else "does not exist"
            raise InputError(
                f"dataset '{self.name}', sample {index}: {path} {what}; mend or remove it, then count again"
            )
        return path, target

    def digest(self) -> str:
        """Return ``sha256:<hex>`` over the bytes and target of each file in order; names do not count."""
        whole = hashlib.sha256()
        for index in range(len(self)):
            path, target = self.sample(index)
            with path.open("rb") as file:
                whole.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()} {target}\n".encode())
        return f"sha256:{whole.hexdigest()}"
