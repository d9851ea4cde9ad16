"""The framework manifest: which versions are known to work, and how to get them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from mlscope_lab.manifest.common import Attributes, ManifestBase, Name

__all__ = ["FrameworkManifest"]


class FrameworkManifest(ManifestBase):
    """A framework as this project knows it.

    Attributes
    ----------
    name
        Name of its backend, e.g. "onnxruntime".
    title
        The framework's own name.
    versions
        PEP 440 specifier of the versions known to work, e.g. ">=2.6".
    distributions
        Packages that provide it; the first one that is installed counts.
    install
        Command that installs it.
    """

    kind: Literal["framework"] = "framework"
    name: Name
    title: Annotated[str, StringConstraints(min_length=1)]
    versions: str = ""
    distributions: tuple[Name, ...] = ()
    install: str = ""
    homepage: Annotated[str, StringConstraints(pattern=r"^https?://")] | None = None
    license: str = ""
    notes: tuple[str, ...] = ()
    attributes: Attributes = Field(default_factory=dict)

    @field_validator("versions")
    @classmethod
    def _pep440(cls, value: str) -> str:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet

        try:
            SpecifierSet(value)
        except InvalidSpecifier:
            raise ValueError(f"must be a PEP 440 specifier such as '>=2.0', not {value!r}") from None
        return value
