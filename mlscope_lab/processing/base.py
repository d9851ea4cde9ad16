"""Declared pre- and post-processing: a list of named, pure steps.

A step is a frozen dataclass: its fields are the parameters that a manifest may set, its call does the work. Steps hold
no state and touch no disk, so a pipeline can be recorded in a run, repeated and varied one parameter at a time.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from mlscope_lab import plugins
from mlscope_lab.errors import InputError

__all__ = ["Pipeline", "Step", "StepSpec"]

StepSpec = Mapping[str, Any]
"""One step as data: ``{"step": name, **parameters}``."""

_GROUP = "mlscope_lab.steps"


@dataclass(frozen=True, kw_only=True)
class Step:
    """Base of all steps; subclasses are frozen, keyword-only dataclasses."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    @abstractmethod
    def __call__(self, value: Any) -> Any:
        """Return the transformed value; raise InputError for a value the step cannot take."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Steps applied one after another.

    Attributes
    ----------
    names
        Registered name of each step.
    steps
        The steps themselves, same length.
    """

    names: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()

    @classmethod
    def from_specs(cls, specs: Sequence[StepSpec]) -> Pipeline:
        """Build from data whose parameters a manifest has validated.

        Raises
        ------
        PluginError
            If a step's name is not registered.
        InputError
            If a parameter is unknown or missing.
        """
        names, steps = [], []
        for spec in specs:
            parameters = dict(spec)
            name = parameters.pop("step")
            step = plugins.load(_GROUP, name)
            try:
                steps.append(step(**parameters))
            except TypeError as error:
                raise InputError(f"Step '{name}': {error}") from error
            names.append(name)
        return cls(names=tuple(names), steps=tuple(steps))

    def to_specs(self) -> list[dict[str, Any]]:
        """Return the steps as data, every default written out."""
        # parameters are plain values and tuples, so they need no copies; a vocabulary has thirty thousand entries
        return [
            {"step": name, **{field.name: getattr(step, field.name) for field in dataclasses.fields(step)}}
            for name, step in zip(self.names, self.steps, strict=True)
        ]

    def __call__(self, value: Any) -> Any:
        """Apply all steps."""
        for name, step in zip(self.names, self.steps, strict=True):
            try:
                value = step(value)
            except InputError as error:
                raise InputError(f"step '{name}': {error}") from error
        return value
