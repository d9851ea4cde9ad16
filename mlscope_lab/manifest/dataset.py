"""The dataset manifest: labelled samples and where they are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from mlscope_lab.manifest.common import Attributes, Location, ManifestBase, Name
from mlscope_lab.manifest.model import TASKS, Labels

__all__ = ["CsvSource", "DatasetManifest", "DatasetSource", "FolderSource", "IdxSource", "Item", "ItemsSource"]

Count = Annotated[int, Field(gt=0, strict=True)]
Index = Annotated[int, Field(ge=0, strict=True)]
Text = Annotated[str, StringConstraints(min_length=1)]


class FolderSource(ManifestBase):
    """A folder with one subfolder a class; the path is relative to the manifest's own folder unless absolute."""

    form: Literal["folder"]
    path: Text


class CsvSource(ManifestBase):
    """A CSV file with a header; paths in it are relative to the file's own folder unless absolute."""

    form: Literal["csv"]
    path: Text
    sample_column: Text = "path"
    label_column: Text = "label"


class IdxSource(ManifestBase):
    """A pair of IDX files, plain or gzipped, as MNIST and Fashion-MNIST come."""

    form: Literal["idx"]
    images: Location
    labels: Location


class Item(ManifestBase):
    """One sample, where it is, and its class index."""

    location: Location
    target: Index
    note: str = ""


class ItemsSource(ManifestBase):
    """Samples listed one by one."""

    form: Literal["items"]
    items: Annotated[tuple[Item, ...], Field(min_length=1)]


DatasetSource = Annotated[FolderSource | CsvSource | IdxSource | ItemsSource, Field(discriminator="form")]


class DatasetManifest(ManifestBase):
    """A labelled dataset.

    Attributes
    ----------
    task
        What its targets are for; one of `mlscope_lab.manifest.model.TASKS`.
    samples
        How many samples it has; opening it checks this.
    split
        Which part it is, e.g. "train", "validation", "test".
    labels
        Class names by target; for a folder the sorted names of its subfolders if not given.
    digest
        ``sha256:<hex>`` that `mlscope_lab.datasets.Dataset.digest` must give, or None.
    """

    kind: Literal["dataset"] = "dataset"
    name: Name
    version: Annotated[str, StringConstraints(pattern=r"^\d+\.\d+(\.\d+)?([.+-][0-9A-Za-z.+-]+)?$")] = "1.0.0"
    task: Literal[TASKS]  # type: ignore[valid-type]
    description: str = ""
    license: str = ""
    references: tuple[str, ...] = ()
    split: Name = "test"
    samples: Count
    labels: Labels | None = None
    source: DatasetSource
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    attributes: Attributes = Field(default_factory=dict)

    @model_validator(mode="after")
    def _count(self) -> DatasetManifest:
        if isinstance(self.source, ItemsSource) and len(self.source.items) != self.samples:
            raise ValueError(f"samples says {self.samples}, source lists {len(self.source.items)} items")
        names = self.labels.names if self.labels is not None else None
        if isinstance(self.source, ItemsSource) and names is not None:
            worst = max(item.target for item in self.source.items)
            if worst >= len(names):
                raise ValueError(f"source has the target {worst}, labels name only {len(names)} classes")
        return self
