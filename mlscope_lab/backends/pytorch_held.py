"""What a tensor is while a PyTorch module is watched: a value, a constant, and in which memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mlscope_lab.backends.pytorch_tape import Geometry

__all__ = ["CONSTANT", "Held", "Memory", "Read"]

CONSTANT: Final = -1
"""In the place of a value's position: the tensor is the module's own, or made of the code's own numbers."""


@dataclass(slots=True, eq=False)
class Memory:
    """What was written in place to a memory during the run.

    Attributes
    ----------
    writes
        Value and elements of each write.
    views
        Operations whose results are tensors of this memory that existed before.
    original, owner
        Elements before the first write, and a tensor that keeps the memory, where it is not the run's own.
    detached
        The memory replaces one that tensors share.
    """

    writes: list[tuple[int, Geometry]] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    original: Any = None
    owner: Any = None
    detached: bool = False


@dataclass(slots=True, eq=False)
class Held:
    """What a tensor is in this run: a value, in a memory of which it has seen so many writes."""

    token: object
    value: int
    memory: Memory
    seen: int = 0


@dataclass(slots=True)
class Read:
    """What an operator was given: arguments with slots, the tensors among them in order, values and constants."""

    tensors: list[Any] = field(default_factory=list)
    values: list[int] = field(default_factory=list)
    constants: dict[int, int] = field(default_factory=dict)
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    written: tuple[Any, ...] = ()
    generator: Any = None
