"""The system manifest: peaks, bandwidth, power and price of a machine, for rooflines and costs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from mlscope_lab.manifest.common import DTYPES, Attributes, ManifestBase, Name

__all__ = ["Price", "Processor", "SystemManifest"]

Positive = Annotated[float, Field(gt=0)]


class Processor(ManifestBase):
    """A CPU package or an accelerator.

    Attributes
    ----------
    device
        As backends name it: "cpu", "cuda".
    count
        How many the machine has; the figures below are of one.
    cores
        Physical cores (CPU) or multiprocessors (GPU).
    peak_flops
        Peak floating-point (or integer) operations a second by element type; a multiply-add counts as two.
    memory_bandwidth
        Bytes a second from main or device memory.
    memory_bytes
        Capacity of that memory in bytes.
    power_watts
        Power limit in watts.
    """

    name: Annotated[str, StringConstraints(min_length=1)]
    device: Literal["cpu", "cuda"]
    count: Annotated[int, Field(gt=0, strict=True)] = 1
    cores: Annotated[int, Field(gt=0, strict=True)] | None = None
    peak_flops: dict[str, Positive] = Field(default_factory=dict)
    memory_bandwidth: Positive | None = None
    memory_bytes: Annotated[int, Field(gt=0, strict=True)] | None = None
    power_watts: Positive | None = None

    @field_validator("peak_flops")
    @classmethod
    def _dtypes(cls, value: dict[str, float]) -> dict[str, float]:
        known = [*DTYPES[:-1], "tfloat32"]
        for name in value:
            if name not in known:
                raise ValueError(f"has the element type '{name}'. Known: {', '.join(known)}")
        return value


class Price(ManifestBase):
    """What the machine costs.

    Attributes
    ----------
    per_hour
        Price of one hour.
    currency
        Three letters (ISO 4217).
    as_of
        Date of the price, YYYY-MM-DD.
    source
        Where it was read.
    """

    per_hour: Annotated[float, Field(ge=0)]
    currency: Annotated[str, StringConstraints(pattern=r"^[A-Z]{3}$")] = "USD"
    as_of: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    source: str = ""


class SystemManifest(ManifestBase):
    """A machine to compare with."""

    kind: Literal["system"] = "system"
    name: Name
    title: str = ""
    description: str = ""
    processors: Annotated[tuple[Processor, ...], Field(min_length=1)]
    price: Price | None = None
    references: tuple[str, ...] = ()
    attributes: Attributes = Field(default_factory=dict)

    @model_validator(mode="after")
    def _distinct(self) -> SystemManifest:
        names = [p.name for p in self.processors]
        if len(set(names)) != len(names):
            raise ValueError("processors name the same one twice; use count")
        return self
