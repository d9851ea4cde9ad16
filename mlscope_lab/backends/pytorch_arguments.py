"""How a PyTorch module takes its arguments: by which names, and whether by name at all."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

__all__ = ["argument_order", "by_keyword", "input_names", "is_compiled", "is_exported"]


def is_exported(module: Any) -> bool:
    """Tell whether a module is that of an exported program, which refuses to change its mode."""
    import torch

    return isinstance(module, torch.fx.GraphModule) and "range_constraints" in vars(module)


def is_compiled(module: Any) -> bool:
    """Tell whether a module is one under ``torch.compile``."""
    return hasattr(module, "_orig_mod") and "_dynamo" in type(module).__module__


def input_names(module: Any) -> tuple[str, ...]:
    """Return the names of the arguments that a module's ``forward`` needs, or () where it does not say."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if schema is not None:
        return tuple(a.name for a in schema.arguments if a.name != "self" and not a.has_default_value())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = _signature(module)
    return tuple(p.name for p in parameters if p.kind in kinds and p.default is inspect.Parameter.empty)


def _signature(module: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(module.forward).parameters.values())
    except (TypeError, ValueError):
        return []


def by_keyword(module: Any, names: Sequence[str]) -> bool:
    """Tell whether every name is one of ``forward``'s own, so that order does not matter."""
    schema = getattr(getattr(module, "forward", None), "schema", None)
    if is_exported(module):
        # an exported graph takes exactly the keywords it was exported with, whatever its signature shows
        known = set(module._in_spec.children()[1].context)
    elif schema is not None:
        known = {argument.name for argument in schema.arguments}
    else:
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = {p.name for p in _signature(module) if p.kind in kinds}
    return bool(names) and set(names) <= known


def argument_order(module: Any, names: Sequence[str]) -> tuple[str, ...]:
    """Return names in the order in which ``forward`` has its arguments, where it has all of them; else as they are."""
    if not by_keyword(module, names):
        return tuple(names)
    own = [p.name for p in _signature(module)]
    return tuple(sorted(names, key=lambda name: own.index(name) if name in own else len(own)))
