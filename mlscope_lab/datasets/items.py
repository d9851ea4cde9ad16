"""Samples that a manifest lists one by one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlscope_lab.datasets.base import FileDataset

__all__ = ["ItemsDataset"]


class ItemsDataset(FileDataset):
    """Files with their targets.

    Parameters
    ----------
    pairs
        Path and target of each sample.
    labels
        Class names by target, or None.
    name
        For messages.
    """

    def __init__(
        self, pairs: Sequence[tuple[Path, int]], *, labels: Sequence[str] | None = None, name: str = "items"
    ) -> None:
        super().__init__(name, pairs, labels)
