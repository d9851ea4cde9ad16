"""A folder with one subfolder a class, the form of ImageNet's validation set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mlscope_lab.datasets.base import FileDataset
from mlscope_lab.errors import InputError, nearest

__all__ = ["SUFFIXES", "FolderDataset"]

SUFFIXES = (
    ".bmp", ".gif", ".jpeg", ".jpg", ".npy", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".wav", ".webp",
)  # fmt: skip


class FolderDataset(FileDataset):
    """Samples in subfolders named after their class, in alphabetical order.

    Parameters
    ----------
    root
        The folder.
    labels
        Class names by target; each subfolder must bear one of them. The sorted names of the subfolders if not given.

    Raises
    ------
    InputError
        If the folder is missing or holds no classes, a subfolder's name is no label, or a file is of a form that is no
        sample. Names that begin with a dot are ignored.
    """

    def __init__(self, root: str | os.PathLike[str], *, labels: Sequence[str] | None = None) -> None:
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give the folder that holds one subfolder a class")
        names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not names:
            raise InputError(f"{folder} has no subfolders; the samples of each class go into a subfolder of its own")
        stray = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
        if stray:
            raise InputError(f"{folder / stray[0]} lies outside the subfolders, so it has no class; move it into one")
        classes = list(labels) if labels is not None else names
        pairs: list[tuple[Path, int]] = []
        for name in names:
            if name not in classes:
                raise InputError(
                    f"{folder / name}: '{name}' is none of the {len(classes)} labels.{nearest(name, classes)}"
                )
            target = classes.index(name)
            pairs.extend((path, target) for path in _samples(folder / name))
        super().__init__(folder.name, pairs, classes)


def _samples(folder: Path) -> list[Path]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            raise InputError(f"{path} is a folder within a class; put the samples right into {folder}")
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} is not a sample ({', '.join(SUFFIXES)}); move it elsewhere")
        found.append(path)
    return found
