"""Labelled data as a sequence of (sample, target).

A sample is what a model's first processing step takes: the path of a file, or a uint8 array (height, width). A target
is the class index. Nothing is left out in silence: a file that is no sample, an unknown label or a damaged archive is
an InputError that names it.

====================== ====================================================
`folder.FolderDataset` a folder with one subfolder a class
`table.CsvDataset`     a CSV file with the columns path and label
`idx.IdxDataset`       a pair of IDX files, as MNIST and Fashion-MNIST come
`items.ItemsDataset`   samples listed in a manifest
====================== ====================================================
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlscope_lab.datasets.base import Dataset
from mlscope_lab.errors import DigestError, InputError

if TYPE_CHECKING:
    from mlscope_lab.manifest.common import Location
    from mlscope_lab.manifest.dataset import DatasetManifest

__all__ = ["Dataset", "open_dataset"]


def open_dataset(manifest: DatasetManifest, *, base: Path, fetch_path: Callable[[Location], Path]) -> Dataset:
    """Open the dataset that a manifest describes.

    Parameters
    ----------
    manifest
        The description.
    base
        Folder of the manifest's file, from which relative paths count.
    fetch_path
        Brings a location's bytes to this disk and returns their path.

    Raises
    ------
    InputError
        If the data are not what the manifest says: form, number of samples, labels.
    DigestError
        If the manifest names a digest and the data have another.
    ArtifactError
        From `fetch_path`.
    """
    from mlscope_lab.datasets.folder import FolderDataset
    from mlscope_lab.datasets.idx import IdxDataset
    from mlscope_lab.datasets.items import ItemsDataset
    from mlscope_lab.datasets.table import CsvDataset
    from mlscope_lab.processing.labels import load_labels

    labels = load_labels(manifest.labels, fetch_path) if manifest.labels is not None else None
    source = manifest.source
    dataset: Dataset
    if source.form == "folder":
        dataset = FolderDataset(base / source.path, labels=labels)
    elif source.form == "csv":
        dataset = CsvDataset(
            base / source.path, labels=labels, sample_column=source.sample_column, label_column=source.label_column
        )
    elif source.form == "idx":
        dataset = IdxDataset(fetch_path(source.images), fetch_path(source.labels), labels=labels)
    else:
        dataset = ItemsDataset(
            [(fetch_path(item.location), item.target) for item in source.items], labels=labels, name=manifest.name
        )
    if len(dataset) != manifest.samples:
        raise InputError(
            f"dataset '{manifest.name}' has {len(dataset)} samples, its manifest says {manifest.samples}; "
            "some are missing or too many, or the manifest is another version's"
        )
    if manifest.digest is not None and (found := dataset.digest()) != manifest.digest:
        raise DigestError(f"dataset '{manifest.name}' has the digest {found}, its manifest says {manifest.digest}")
    return dataset
