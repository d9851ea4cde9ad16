"""A run as a tree of spans: run, pass, iteration, layer, operator, kernel.

Identifiers come from the run's id and the span's place in it, so exporting a run twice gives the same spans. A kernel
is a child of the operator that launched it, and runs later, beside its parent's siblings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.trace import schema
from mlscope_lab.trace.exporters.timeline import PassSpan, layer_names, passes_of, slices_of, texts_of

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Span", "count_spans", "spans_of", "trace_id"]

_RUN, _PASS, _ITERATION, _LAYER, _OPERATOR, _KERNEL = range(1, 7)
_Value = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span; times in ns since 1970 where the run tells that.

    ``parent`` is None for the run itself. ``level`` is "run", "pass", "iteration", "layer", "operator" or "kernel".
    """

    id: int
    parent: int | None
    name: str
    level: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, _Value] = field(default_factory=dict)


def trace_id(run: xr.DataTree) -> int:
    """Return the 128 bits that name the run."""
    return int.from_bytes(_digest(run)[:16], "big") or 1


def _digest(run: xr.DataTree) -> bytes:
    return hashlib.sha256(f"mlscope-lab {run.attrs.get('run_id')}".encode()).digest()


def count_spans(run: xr.DataTree) -> int:
    """Return an upper bound of the number of spans."""
    total = 1 + len(passes_of(run))
    for group, dims in ((schema.LATENCY, ("latency_iteration",)), (schema.LAYERS, ("layer_iteration",)),
                        (schema.LAYERS, ("layer_iteration", "layer")), (schema.OPERATORS, ("operator",)),
                        (schema.KERNELS, ("kernel",))):  # fmt: skip
        if group in run.children:
            total += int(np.prod([run[group].sizes.get(dim, 0) for dim in dims]))
    return total


class _Tree:
    """Where spans hang."""

    def __init__(self, run: xr.DataTree) -> None:
        self.run = run
        self.passes = passes_of(run)
        # 56 bits for the place, the run's own bits over all of it
        self.mask = int.from_bytes(_digest(run)[16:24], "big")
        self.rows = self._layer_rows()
        self.width = int(run[schema.LAYERS].sizes["layer"]) if schema.LAYERS in run.children else 0
        self.ran = run[schema.LAYERS].dataset["start_ns"].values >= 0 if self.width else np.zeros((0, 0), dtype=bool)

    def id(self, kind: int, place: int) -> int:
        return ((kind << 56) | place) ^ self.mask or 1

    def _layer_rows(self) -> dict[int, list[int]]:
        """Return the rows of ``/layers`` of each pass, one an iteration."""
        rows: dict[int, list[int]] = {}
        if schema.LAYERS in self.run.children:
            for row, index in enumerate(self.run[schema.LAYERS].dataset["pass_index"].values.tolist()):
                rows.setdefault(index, []).append(row)
        return rows

    def row(self, pass_index: int, iteration: int) -> int:
        rows = self.rows.get(pass_index, [])
        return rows[iteration] if 0 <= iteration < len(rows) else -1

    def home(self, pass_index: int, iteration: int, layer: int = -1) -> int:
        """Return the innermost span known for an event: its layer's, its iteration's or its pass's."""
        row = self.row(pass_index, iteration)
        if row < 0:
            return self.id(_PASS, pass_index)
        if 0 <= layer < self.width and self.ran[row, layer]:
            return self.id(_LAYER, row * self.width + layer)
        return self.id(_ITERATION, row << 1)


def spans_of(run: xr.DataTree) -> Iterator[Span]:
    """Yield the spans of a run, parents before children.

    Raises
    ------
    InputError
        If it has no passes.
    """
    tree = _Tree(run)
    root = tree.id(_RUN, 0)
    ends = [p.start_ns + p.wall_ns for p in tree.passes]
    yield Span(id=root, parent=None, name=f"{run.attrs.get('model')} on {run.attrs.get('backend')}", level="run",
               start_ns=min(p.start_ns for p in tree.passes), end_ns=max(ends), attributes=_facts(run))  # fmt: skip
    for p in tree.passes:
        yield Span(
            id=tree.id(_PASS, p.index), parent=root, name=f"{p.level} pass", level="pass", start_ns=p.start_ns,
            end_ns=p.start_ns + p.wall_ns,
            attributes={"mlscope.pass": p.index, "mlscope.level": p.level, "mlscope.process": p.process},
        )  # fmt: skip
    yield from _iterations(run, tree)
    yield from _layers(run, tree)
    yield from _operators(run, tree)
    yield from _kernels(run, tree)


def _facts(run: xr.DataTree) -> dict[str, _Value]:
    names = (
        "run_id", "status", "model", "model_version", "model_digest", "task", "backend", "backend_version", "device",
        "precision", "batch_size", "level", "threads", "isolation", "execution_mode", "origin",
    )  # fmt: skip
    told = {f"mlscope.{name}": run.attrs.get(name) for name in names}
    return {name: value for name, value in told.items() if isinstance(value, str | int | float) and value != ""}


def _iterations(run: xr.DataTree, tree: _Tree) -> Iterator[Span]:
    starts = {p.index: p.start_ns for p in tree.passes}
    numbers: dict[int, int] = {}
    if schema.LATENCY in run.children:
        data = run[schema.LATENCY].dataset
        parts = [data[name].values.tolist() for name in ("preprocess_ns", "predict_ns", "postprocess_ns")]
        for place, (index, start, before, predict, after) in enumerate(
            zip(data["pass_index"].values.tolist(), data["start_ns"].values.tolist(), *parts, strict=True)
        ):
            number = numbers[index] = numbers.get(index, -1) + 1
            begin = starts[index] + start
            yield Span(
                id=tree.id(_ITERATION, (place << 1) | 1), parent=tree.id(_PASS, index), name=f"iteration {number}",
                level="iteration", start_ns=begin, end_ns=begin + before + predict + after,
                attributes={"mlscope.iteration": number, "mlscope.preprocess_ns": before,
                            "mlscope.predict_ns": predict, "mlscope.postprocess_ns": after},
            )  # fmt: skip
    if schema.LAYERS in run.children:
        data = run[schema.LAYERS].dataset
        begins, lengths = data["iteration_start_ns"].values.tolist(), data["pass_duration_ns"].values.tolist()
        for index, rows in tree.rows.items():
            for number, row in enumerate(rows):
                begin = starts[index] + begins[row]
                yield Span(
                    id=tree.id(_ITERATION, row << 1), parent=tree.id(_PASS, index), name=f"iteration {number}",
                    level="iteration", start_ns=begin, end_ns=begin + lengths[row],
                    attributes={"mlscope.iteration": number},
                )  # fmt: skip


def _layers(run: xr.DataTree, tree: _Tree) -> Iterator[Span]:
    if schema.LAYERS not in run.children:
        return
    data = run[schema.LAYERS].dataset
    names, parents, depths = layer_names(run), data["parent"].values, data["depth"].values
    texts = {name: [str(t) for t in data[name].values] for name in ("type", "scope", "input_shapes", "output_shapes")}
    # what encloses comes first, so that a parent is never behind its child
    order = np.argsort(depths, kind="stable").tolist()
    for span in tree.passes:
        for number, row in enumerate(tree.rows.get(span.index, [])):
            start, length = data["start_ns"][row].values.tolist(), data["duration_ns"][row].values.tolist()
            for layer in order:
                if start[layer] < 0:
                    continue
                outer = int(parents[layer])
                attributes: dict[str, _Value] = {
                    f"mlscope.layer.{name}": values[layer] for name, values in texts.items() if values[layer]
                }
                begin = span.start_ns + start[layer]
                yield Span(
                    id=tree.id(_LAYER, row * tree.width + layer),
                    parent=tree.home(span.index, number, outer),
                    name=names[layer],
                    level="layer",
                    start_ns=begin,
                    end_ns=begin + length[layer],
                    attributes=attributes,
                )


def _operators(run: xr.DataTree, tree: _Tree) -> Iterator[Span]:
    texts = texts_of(run, schema.OPERATORS)
    threads = [_thread(text) for text in texts.get("thread", [])] + [{}]
    numbers = ("flops", "input_bytes", "output_bytes", "parameter_bytes", "allocated_bytes")
    for place, columns, starts in _placed(run, schema.OPERATORS, tree.passes):
        taken = ("name_code", "category_code", "thread_code", "duration_ns", "parent_index", "pass_index", "iteration",
                 "layer_index")  # fmt: skip
        none = [-1] * len(starts)
        shapes, types = (columns[c].tolist() if c in columns else none for c in ("shapes_code", "type_code"))
        told = {name: columns[name].tolist() for name in numbers if name in columns}
        for row, (begin, shape, kind, name, category, thread, length, outer, index, iteration, layer) in enumerate(
            zip(starts.tolist(), shapes, types, *(columns[c].tolist() for c in taken), strict=True)
        ):
            attributes: dict[str, _Value] = {**threads[thread]}
            attributes |= {f"mlscope.operator.{n}": v[row] for n, v in told.items() if v[row] >= 0}
            if kind >= 0 and texts["type"][kind]:
                attributes["mlscope.operator.type"] = texts["type"][kind]
            if category >= 0:
                attributes["mlscope.operator.category"] = texts["category"][category]
            if shape >= 0:
                attributes["mlscope.operator.shapes"] = texts["shapes"][shape]
            parent = tree.id(_OPERATOR, outer) if outer >= 0 else tree.home(index, iteration, layer)
            yield Span(id=tree.id(_OPERATOR, place + row), parent=parent, name=_name(texts, name), level="operator",
                       start_ns=begin, end_ns=begin + length, attributes=attributes)  # fmt: skip


def _kernels(run: xr.DataTree, tree: _Tree) -> Iterator[Span]:
    texts = texts_of(run, schema.KERNELS)
    known = {*schema.GROUPS[schema.KERNELS], *schema.OPTIONAL[schema.KERNELS]}
    numbers = ("size_bytes", "grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "registers",
               "shared_memory_bytes", "correlation")  # fmt: skip
    for place, columns, starts in _placed(run, schema.KERNELS, tree.passes):
        taken = ("name_code", "category_code", "device", "stream", "duration_ns", "operator_index", "pass_index",
                 "iteration", "layer_index")  # fmt: skip
        told = {name: columns[name].tolist() for name in numbers if name in columns}
        counters = {str(n): v.tolist() for n, v in columns.items() if n not in known and v.dtype.kind == "f"}
        for row, (begin, name, category, device, stream, length, operator, index, iteration, layer) in enumerate(
            zip(starts.tolist(), *(columns[c].tolist() for c in taken), strict=True)
        ):
            attributes: dict[str, _Value] = {"hw.type": "gpu", "hw.id": str(device), "mlscope.kernel.stream": stream}
            if category >= 0:
                attributes["mlscope.kernel.category"] = texts["category"][category]
            attributes |= {f"mlscope.kernel.{n}": v[row] for n, v in told.items() if v[row] >= 0}
            attributes |= {f"mlscope.counter.{n}": v[row] for n, v in counters.items() if v[row] == v[row]}
            parent = tree.id(_OPERATOR, operator) if operator >= 0 else tree.home(index, iteration, layer)
            yield Span(id=tree.id(_KERNEL, place + row), parent=parent, name=_name(texts, name), level="kernel",
                       start_ns=begin, end_ns=begin + length, attributes=attributes)  # fmt: skip


def _placed(
    run: xr.DataTree, group: str, passes: list[PassSpan]
) -> Iterator[tuple[int, dict[str, npt.NDArray[Any]], npt.NDArray[np.int64]]]:
    """Yield row of the first event, columns and absolute starts of a group, slice by slice."""
    offsets = np.array([p.start_ns for p in passes], dtype=np.int64)
    place = 0
    for columns in slices_of(run, group):
        yield place, columns, columns["start_ns"] + offsets[columns["pass_index"]]
        place += len(columns["start_ns"])


def _name(texts: Mapping[str, list[str]], code: int) -> str:
    return texts["name"][code] if code >= 0 else "unknown"


def _thread(text: str) -> dict[str, _Value]:
    """Return what the semantic conventions call a thread's number and name."""
    process, slash, thread = text.partition("/")
    if slash and process.isdecimal() and thread.isdecimal() and len(text) < 38:
        return {"process.pid": int(process), "thread.id": int(thread)}
    return {"thread.name": text}
