"""What every exporter needs: a run's passes on one clock, its rows in slices, its text, and files written whole."""

from __future__ import annotations

import gzip
import io
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError, StoreError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "PassSpan",
    "Slices",
    "lanes",
    "layer_names",
    "opened_and_closed",
    "pass_slices",
    "passes_of",
    "slices_of",
    "texts_of",
    "tool",
    "written",
]

_SLICE = 1 << 14
"""Rows at a time: their texts take some ten megabytes, whatever the group's length."""
_MOST_LANES = 256
_READ = 16 * _SLICE
"""Rows read at a time: a stored chunk is decompressed whole for each piece of it."""


@dataclass(frozen=True, kw_only=True)
class PassSpan:
    """A pass on the run's clock.

    Attributes
    ----------
    index
        Its row in ``/passes``.
    level
        What it recorded.
    process
        Number of its process.
    start_ns
        Its start, ns since 1970 where the run tells that, else on the trace's own clock: what to add to its times.
    wall_ns
        Its length.
    """

    index: int
    level: str
    process: int
    start_ns: int
    wall_ns: int


def passes_of(run: xr.DataTree) -> list[PassSpan]:
    """Return the passes of a run on one clock.

    Raises
    ------
    InputError
        If the run has none, as a failed one may.
    """
    if schema.PASSES not in run.children or not run[schema.PASSES].sizes.get("pass"):
        raise InputError(
            f"Run {run.attrs.get('run_id')} has no passes to export (status {run.attrs.get('status')!r}); "
            "export one that was recorded to its end"
        )
    data = run[schema.PASSES].to_dataset()
    origin = int(run.attrs.get("clock_anchor_unix_ns") or 0)
    columns = (data[name].values.tolist() for name in ("level", "process", "anchor_ns", "wall_ns"))
    return [
        PassSpan(index=index, level=level, process=process, start_ns=origin + anchor, wall_ns=max(wall, 0))
        for index, (level, process, anchor, wall) in enumerate(zip(*columns, strict=True))
    ]


@dataclass(frozen=True, kw_only=True)
class Slices:
    """A pass, its iterations and layers: ``start`` (since the start of the pass), ``duration`` and ``name`` of each.

    ``name`` numbers `names`, whose types are in `types`, "" for what is no layer.
    """

    start: npt.NDArray[np.int64]
    duration: npt.NDArray[np.int64]
    name: npt.NDArray[np.int64]
    names: list[str]
    types: list[str]


def pass_slices(run: xr.DataTree, span: PassSpan) -> Slices:
    """Return what a pass consists of, the pass itself first."""
    names, types = [f"{span.level} pass {span.index}"], [""]
    parts = [(np.zeros(1, dtype=np.int64), np.array([span.wall_ns]), np.zeros(1, dtype=np.int64))]

    def add(start: npt.NDArray[Any], duration: npt.NDArray[Any], name: npt.NDArray[Any]) -> None:
        parts.append((start.reshape(-1), duration.reshape(-1), name.reshape(-1)))

    if schema.LAYERS in run.children:
        data = run[schema.LAYERS].dataset
        rows = np.flatnonzero(data["pass_index"].values == span.index)
        if len(rows):
            labels = layer_names(run)
            start, duration = data["start_ns"].values[rows], data["duration_ns"].values[rows]
            ran = start >= 0
            add(start[ran], duration[ran], len(names) + np.nonzero(ran)[1])
            names += labels
            types += [str(text) for text in data["type"].values]
            begin, length = data["iteration_start_ns"].values[rows], data["pass_duration_ns"].values[rows]
            add(begin, length, len(names) + np.arange(len(rows)))
            names += [f"iteration {number}" for number in range(len(rows))]
    if schema.LATENCY in run.children:
        data = run[schema.LATENCY].dataset
        rows = np.flatnonzero(data["pass_index"].values == span.index)
        start = data["start_ns"].values[rows]
        steps = [data[name].values[rows] for name in ("preprocess_ns", "predict_ns", "postprocess_ns")]
        add(start, np.sum(steps, axis=0), len(names) + np.arange(len(rows)))
        names += [f"iteration {number}" for number in range(len(rows))]
        for step, duration in zip(("preprocess", "predict", "postprocess"), steps, strict=True):
            add(start, duration, np.full(len(rows), len(names)))
            names.append(step)
            start = start + duration
    types += [""] * (len(names) - len(types))
    start, duration, name = (np.concatenate([part[i] for part in parts]).astype(np.int64) for i in range(3))
    return Slices(start=start, duration=duration, name=name, names=names, types=types)


def slices_of(run: xr.DataTree, group: str) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """Yield the events of a group some at a time: {column: values}, tables left out.

    Parameters
    ----------
    run
        A run, opened lazily or not.
    group
        Group of events; nothing is yielded where the run lacks it.
    """
    if group not in run.children:
        return
    data = run[group].dataset
    dim = schema.EVENT_DIMS[group]
    names = [str(name) for name, variable in data.variables.items() if variable.dims == (dim,)]
    for first in range(0, data.sizes.get(dim, 0), _READ):
        columns = {name: data.variables[name][first : first + _READ].values for name in names}
        for begin in range(0, len(columns[names[0]]), _SLICE):
            yield {name: values[begin : begin + _SLICE] for name, values in columns.items()}


def texts_of(run: xr.DataTree, group: str) -> dict[str, list[str]]:
    """Return the tables of a group: {column without suffix: texts}."""
    if group not in run.children:
        return {}
    data = run[group].dataset
    return {
        str(name).removesuffix("_table"): [str(text) for text in variable.values]
        for name, variable in data.variables.items()
        if str(name).endswith("_table")
    }


def lanes(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return for each span a lane such that those of one lane lie apart or inside each other, -1 beyond 256 lanes.

    Parameters
    ----------
    start, end
        (N,) in any order.

    Examples
    --------
    >>> lanes(np.array([0, 2, 5]), np.array([10, 4, 12])).tolist()
    [0, 0, 1]
    """
    found = np.zeros(len(start), dtype=np.int32)
    open_ends: list[list[int]] = [[]]
    order = np.lexsort((-end, start))
    for here, begin, finish in zip(order.tolist(), start[order].tolist(), end[order].tolist(), strict=True):
        for lane, ends in enumerate(open_ends):
            while ends and ends[-1] <= begin:
                ends.pop()
            if not ends or finish <= ends[-1]:
                ends.append(finish)
                found[here] = lane
                break
        else:
            # looking through ever more lanes would take forever, and nobody reads so many
            found[here] = len(open_ends) if len(open_ends) < _MOST_LANES else -1
            if found[here] >= 0:
                open_ends.append([finish])
    return found


def opened_and_closed(start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield what opens and closes, in order of time: (row, time) where a span opens, (~row, time) where it closes.

    Parameters
    ----------
    start, end
        (N,) of spans that lie apart or inside each other (see `lanes`). Whatever is open closes no later than what
        holds it.

    Examples
    --------
    >>> list(opened_and_closed(np.array([0, 2]), np.array([9, 4])))
    [(0, 0), (1, 2), (-2, 4), (-1, 9)]
    """
    waiting: list[tuple[int, int]] = []
    order = np.lexsort((-end, start))
    for row, begin, finish in zip(order.tolist(), start[order].tolist(), end[order].tolist(), strict=True):
        while waiting and waiting[-1][0] <= begin:
            at, inner = waiting.pop()
            yield ~inner, at
        yield row, begin
        waiting.append((finish, row))
    while waiting:
        at, inner = waiting.pop()
        yield ~inner, at


@contextmanager
def written(path: str | os.PathLike[str], what: str) -> Iterator[IO[str]]:
    """Open a text file that replaces an existing one only once it is whole; one that ends in ``.gz`` is compressed.

    Parameters
    ----------
    path
        The file.
    what
        What it holds, for the message.

    Raises
    ------
    StoreError
        If it cannot be written; nothing is left behind then.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target} is a folder; name a file for the {what}")
    temporary = target.with_name(f".tmp-{secrets.token_hex(4)}-{target.name}")
    try:
        with temporary.open("xb") as raw:
            if target.suffix == ".gz":
                # no name and no time in it: the same run gives the same bytes
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=5, mtime=0) as packed:
                    yield from _text(packed)
            else:
                yield from _text(raw)
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{target} cannot be written as {what}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _text(raw: Any) -> Iterator[IO[str]]:
    # surrogates, which JSON escapes may bring into a name, are no UTF-8; json.dumps writes them as escapes
    stream = io.TextIOWrapper(raw, encoding="utf-8", newline="\n", write_through=False)
    yield stream
    stream.flush()
    stream.detach()


def layer_names(run: xr.DataTree) -> list[str]:
    """Return the labels of the run's layers, [] where it has none."""
    if schema.LAYERS not in run.children:
        return []
    return [str(name) for name in run[schema.LAYERS].dataset["name"].values]


def tool(run: xr.DataTree) -> Mapping[str, str]:
    """Return what an exported file says of where it comes from."""
    from mlscope_lab._version import __version__

    return {
        "exporter": f"mlscope-lab@{__version__}",
        "run_id": str(run.attrs.get("run_id")),
        "model": str(run.attrs.get("model")),
        "backend": str(run.attrs.get("backend")),
    }
