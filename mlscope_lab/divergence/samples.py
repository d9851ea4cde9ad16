"""The samples of a call, one after the other: of a dataset, a folder or a list, with targets where they have any."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.config import Settings
from mlscope_lab.datasets.base import Dataset
from mlscope_lab.errors import InputError, nearest

if TYPE_CHECKING:
    from mlscope_lab.manifest.common import Location

__all__ = ["Sample", "Samples", "samples_of"]

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample.

    Attributes
    ----------
    name
        Of its file, or ``sample 12``.
    value
        What preprocessing takes, or None where it cannot be read.
    target
        Index of the right class, -1 where nobody said.
    problem
        Why it cannot be read; empty otherwise.
    """

    name: str
    value: Any
    target: int = -1
    problem: str = ""


class Samples:
    """Samples that are read when they are iterated over; has a length.

    Parameters
    ----------
    name
        Of the whole, for records.
    count
        How many there are.
    read
        Returns (value, target) of one; raises InputError where it cannot.
    to_class
        From targets to classes of the model.
    """

    def __init__(self, name: str, count: int, read: Callable[[int], tuple[Any, int]],
                 to_class: Mapping[int, int] | None = None) -> None:  # fmt: skip
        self.name, self._count, self._read, self._to_class = name, count, read, to_class

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        """Yield every sample, each under a name of its own."""
        seen: Counter[str] = Counter()
        for index in range(self._count):
            sample = self._one(index)
            seen[sample.name] += 1
            again = seen[sample.name]
            yield sample if again == 1 else replace(sample, name=f"{sample.name} ({again})")

    def _one(self, index: int) -> Sample:
        try:
            value, target = self._read(index)
        except InputError as error:
            return Sample(name=f"sample {index}", value=None, problem=str(error))
        if target >= 0 and self._to_class is not None:
            target = self._to_class[target]
        return Sample(name=_name_of(value, index), value=value, target=target)


def _name_of(value: Any, index: int) -> str:
    if isinstance(value, Mapping) and value:
        return _name_of(next(iter(value.values())), index)
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        folder = path.parent.name
        # a file of the cache lies in a folder that is called by its digest, which tells nobody anything
        return f"{folder}/{path.name}" if folder and not _DIGEST.fullmatch(folder) else path.name
    return f"sample {index}"


def samples_of(
    given: Any,
    *,
    targets: Sequence[int] | None = None,
    labels: Sequence[str] | None = None,
    limit: int | None = None,
    settings: Settings,
) -> Samples:
    """Return the samples that a caller means.

    Parameters
    ----------
    given
        A dataset; the name of a published one; a folder, with one subfolder a class or without; a list of samples or
        of (sample, target) pairs; an array of several samples; or one sample.
    targets
        Class of each sample, in place of what `given` says.
    labels
        Names of the model's classes. A dataset with other names for its classes is brought to these by name.
    limit
        Most samples to take, from the beginning.
    settings
        Where datasets are kept.

    Raises
    ------
    InputError
        If there are none, or the targets are of other classes or another number.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, not {limit}")
    found = _opened(given, settings, labels)
    count = len(found) if limit is None else min(limit, len(found))
    if not count:
        raise InputError("There are no samples")
    read = found._read
    if targets is not None:
        listed = [int(t) for t in targets]
        if len(listed) < count:
            raise InputError(f"There are {len(listed)} targets for {count} samples")
        return Samples(found.name, count, lambda i: (read(i)[0], listed[i]))
    return Samples(found.name, count, read, found._to_class)


def _opened(given: Any, settings: Settings, labels: Sequence[str] | None) -> Samples:
    if isinstance(given, str | os.PathLike):
        path = Path(given).expanduser()
        if path.is_dir():
            return _folder(path, labels)
        if not path.exists() and isinstance(given, str) and not path.suffix:
            return _of_dataset(_published(given, settings), labels)
        return Samples(path.name, 1, lambda _: (given, -1))
    if isinstance(given, Dataset):
        return _of_dataset(given, labels)
    if isinstance(given, Mapping) and given and all(isinstance(v, list) for v in given.values()):
        lengths = {len(v) for v in given.values()}
        if len(lengths) > 1:
            raise InputError(f"The inputs have lists of different lengths: {', '.join(map(str, sorted(lengths)))}")
        return Samples("given", lengths.pop(), lambda i: ({name: v[i] for name, v in given.items()}, -1))
    if isinstance(given, list):
        if given and all(_is_pair(item) for item in given):
            return Samples("given", len(given), lambda i: (given[i][0], int(given[i][1])))
        return Samples("given", len(given), lambda i: (given[i], -1))
    if given is None:
        raise InputError("Give samples: a dataset, a folder, a list of files or arrays")
    return Samples("given", 1, lambda _: (given, -1))


def _is_pair(item: Any) -> bool:
    return (
        isinstance(item, tuple) and len(item) == 2
        and isinstance(item[1], int | np.integer) and not isinstance(item[1], bool)
    )  # fmt: skip


def _folder(path: Path, labels: Sequence[str] | None) -> Samples:
    from mlscope_lab.datasets.folder import SUFFIXES, FolderDataset

    if any(p.is_dir() and not p.name.startswith(".") for p in path.iterdir()):
        return _of_dataset(FolderDataset(path), labels)
    files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise InputError(f"{path} holds no samples ({', '.join(SUFFIXES)}) and no subfolders with some")
    return Samples(path.name, len(files), lambda i: (files[i], -1))


def _published(name: str, settings: Settings) -> Dataset:
    from mlscope_lab.artifacts import fetch
    from mlscope_lab.catalog import load_catalog
    from mlscope_lab.datasets import open_dataset

    entry = load_catalog(settings).dataset(name)
    base = entry.path.parent

    def fetch_path(where: Location) -> Path:
        return fetch(where, settings=settings, base=base).path

    return open_dataset(entry.manifest, base=base, fetch_path=fetch_path)


def _of_dataset(dataset: Dataset, labels: Sequence[str] | None) -> Samples:
    return Samples(dataset.name, len(dataset), dataset.sample, _class_map(dataset, labels))


def _class_map(dataset: Dataset, labels: Sequence[str] | None) -> dict[int, int] | None:
    """Return from the dataset's targets to the model's classes; None where they are the same."""
    own = dataset.labels
    if own is None or labels is None or tuple(own) == tuple(labels):
        return None
    known = {label: index for index, label in reversed(list(enumerate(labels)))}
    missing = [label for label in own if label not in known]
    if not missing:
        return {target: known[label] for target, label in enumerate(own)}
    if all(label.isdecimal() and int(label) < len(labels) for label in own):
        return {target: int(label) for target, label in enumerate(own)}
    raise InputError(
        f"Dataset '{dataset.name}' has the class '{missing[0]}', which is none of the model's {len(labels)} "
        f"labels.{nearest(missing[0], list(labels))} Name its classes (subfolders, labels) as the model does, or "
        "by its indices"
    )
