"""The analyses by name: XSP's A1 to A15, their companions, and those of plugins.

An analysis is a function registered under the entry-point group ``mlscope_lab.analyses``. Its first parameter is called
``run`` if it takes one run and ``runs`` if it takes a sequence; the others are keyword-only options. It returns an
`xarray.Dataset`, and the first line of its docstring says what of.

References
----------
XSP: Across-Stack Profiling and Analysis of Machine Learning Models on GPUs, arXiv 1908.06869.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlscope_lab import plugins
from mlscope_lab.errors import InputError, nearest

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ACROSS_STACK", "Analysis", "analyses", "analyze", "find"]

GROUP = "mlscope_lab.analyses"
ACROSS_STACK = {
    "A1": "model_information",
    "A2": "layer_information",
    "A3": "layer_latency",
    "A4": "layer_memory",
    "A5": "layer_types",
    "A6": "latency_by_type",
    "A7": "memory_by_type",
    "A8": "kernel_information",
    "A9": "kernel_roofline",
    "A10": "kernels_by_name",
    "A11": "kernels_by_layer",
    "A12": "metrics_by_layer",
    "A13": "device_and_host_by_layer",
    "A14": "layer_roofline",
    "A15": "kernels_by_model",
}
_NUMBERS = {name: number for number, name in ACROSS_STACK.items()}


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """One analysis.

    Attributes
    ----------
    name
        Such as "layer_latency".
    number
        XSP's, such as "A3", or "".
    title
        What it does, in a line.
    several
        Whether it takes a sequence of runs.
    options
        {name: default} of its keywords.
    function
        What is called.
    """

    name: str
    number: str
    title: str
    several: bool
    options: dict[str, Any]
    function: Callable[..., xr.Dataset]


def _described(name: str, function: Callable[..., xr.Dataset]) -> Analysis:
    parameters = list(inspect.signature(function).parameters.values())
    options = {p.name: p.default for p in parameters[1:] if p.kind is p.KEYWORD_ONLY}
    title = (inspect.getdoc(function) or name).strip().split("\n")[0]
    return Analysis(
        name=name, number=_NUMBERS.get(name, ""), title=title,
        several=bool(parameters) and parameters[0].name == "runs", options=options, function=function,
    )  # fmt: skip


def analyses() -> list[Analysis]:
    """Return every analysis, A1 to A15 first; a plugin that does not load warns and is left out."""
    return [_described(name, function) for name, function in plugins.load_all(GROUP)]


def find(name: str) -> Analysis:
    """Return the analysis of a name or number.

    Parameters
    ----------
    name
        Such as "layer_latency", "layer-latency" or "A3".

    Raises
    ------
    InputError
        If there is none.
    """
    plain = ACROSS_STACK.get(name.strip().upper(), name.strip().replace("-", "_"))
    known = plugins.names(GROUP)
    if plain not in known:
        raise InputError(f"Unknown analysis '{name}'. Known: {', '.join(known)}; A1 to A15.{nearest(plain, known)}")
    return _described(plain, plugins.load(GROUP, plain))


def analyze(runs: xr.DataTree | Sequence[xr.DataTree], name: str, **options: Any) -> xr.Dataset:
    """Run an analysis.

    Parameters
    ----------
    runs
        A run, or several.
    name
        Name or number of the analysis.
    **options
        Its keywords.

    Returns
    -------
    xarray.Dataset
        What the analysis returns, with ``analysis``, ``analysis_number`` (for A1 to A15) and ``title`` in its attrs.

    Raises
    ------
    InputError
        If there is no such analysis or option, or it takes one run and several were given.
    SchemaError
        If a run lacks what the analysis needs.
    """
    import xarray as xr

    found = find(name)
    given = [runs] if isinstance(runs, xr.DataTree) else list(runs)
    if not given:
        raise InputError(f"Analysis '{found.name}' needs a run")
    if not found.several and len(given) > 1:
        several = [a.name for a in analyses() if a.several]
        raise InputError(
            f"Analysis '{found.name}' takes one run, not {len(given)}. Several are taken by: {', '.join(several)}"
        )
    if unknown := [option for option in options if option not in found.options]:
        known = list(found.options)
        raise InputError(
            f"Analysis '{found.name}' has no option '{unknown[0]}'. Options: {', '.join(known) or 'none'}."
            f"{nearest(unknown[0], known)}"
        )
    table = found.function(given if found.several else given[0], **options)
    said = {"analysis": found.name, "title": found.title, **({"analysis_number": found.number} if found.number else {})}
    return table.assign_attrs(said)
