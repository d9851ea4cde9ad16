"""What trtexec writes with --exportProfile and --exportLayerInfo, as a run: TensorRT's layers with their times.

A profile tells for each layer the sum, average and (since TensorRT 8.5) median over its iterations, not when it ran.
The run has one iteration: each layer takes its median, or its average where there is none, and the layers are laid end
to end in the engine's order.

References
----------
NVIDIA/TensorRT, ``samples/common/sampleReporting.cpp`` (``exportJSONProfile``); TensorRT's engine inspector.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.errors import InputError
from mlscope_lab.trace.importers.base import MAX_BYTES, Head, Importer
from mlscope_lab.trace.importers.texts import readable, unique_labels
from mlscope_lab.trace.records import LayerTable, LayerTrace

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["TRTEXEC", "load_profile"]

_LARGEST = 64 << 20
"""Bytes: an engine of ten thousand layers takes some ten megabytes."""
_MOST_LAYERS = 200_000
_LONGEST_MS = 1e9
_PROFILE = re.compile(rb'\s*\[\s*\{ ?"count" ?: ?\d+ ?\}')
_LAYERS = re.compile(rb'\s*\{\s*"Layers" ?: ?\[')
_DATATYPES = (
    # searched in this order, because some names hold others
    ("BF16", "bfloat16"), ("BFLOAT16", "bfloat16"), ("FP32", "float32"), ("FLOAT", "float32"), ("FP16", "float16"),
    ("HALF", "float16"), ("FP8", "float8"), ("INT64", "int64"), ("INT32", "int32"), ("UINT8", "uint8"),
    ("INT8", "int8"), ("INT4", "int4"), ("BOOL", "bool"),
)  # fmt: skip
_TOLD = {
    "total_ns": "sum over all iterations", "average_ns": "average over iterations",
    "median_ns": "median over iterations",
}  # fmt: skip
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "float8": 1,
          "bool": 1}  # fmt: skip


def load_profile(
    path: Path,
    *,
    layer_info: Path | None = None,
    max_bytes: int = MAX_BYTES,
    progress: Callable[[int, int | None], None] | None = None,
) -> xr.DataTree:
    """Read what trtexec wrote.

    Parameters
    ----------
    path
        A profile (``--exportProfile``), the layers alone (``--exportLayerInfo``), which have no times then, or a folder
        that holds one of each.
    layer_info
        The layers of the same engine, for their types, shapes and weights; they need
        ``--profilingVerbosity=detailed``.
    max_bytes
        The most bytes that a file may have.
    progress
        Called with the bytes read and the file's size.

    Returns
    -------
    xarray.DataTree
        ``/layers`` with one iteration of medians, and along layer ``median_ns``, ``average_ns`` and ``total_ns`` as
        trtexec tells them.

    Raises
    ------
    InputError
        If a file is neither, is damaged, or is larger than allowed.
    """
    from mlscope_lab.trace.build import build_imported

    if path.is_dir():
        path, layer_info = _pair(path, layer_info)
    main = _read(path, max_bytes)
    if progress is not None:
        progress(path.stat().st_size, path.stat().st_size)
    info = _read(layer_info, max_bytes) if layer_info is not None else main if isinstance(main, dict) else None
    details = _details(info, layer_info or path) if info is not None else []
    count, times = _times(main, path) if isinstance(main, list) else (0, [])
    names = [name for name, *_ in times] or [readable(str(entry.get("Name", ""))) for entry in details]
    if not names:
        raise InputError(f"{path} names no layers; write it with trtexec --exportProfile=FILE")
    found = {readable(str(entry.get("Name", ""))): entry for entry in details}
    table = _table(names, [found.get(name, {}) for name in names])
    unavailable = {"latency": "a trtexec profile holds traced iterations only",
                   "start_ns": "trtexec tells how long a layer took, not when: layers are laid end to end in the "
                               "engine's order"}  # fmt: skip
    warnings = []
    if details and not any(name in found for name in names):
        warnings.append(f"None of the profile's layers is named in {layer_info or path}; are both of one engine?")
    if not found or not any(entry.get("LayerType") for entry in details):
        unavailable["types"] = "give the file of --exportLayerInfo, written with --profilingVerbosity=detailed"
    if not times:
        unavailable["times"] = "give the file of --exportProfile"
    medians = np.array([_ns(average if median is None else median) for _, _, average, median in times], dtype=np.int64)
    end = np.cumsum(medians)
    rows = 1 if times else 0
    wall = int(end[-1]) if times else 0
    layers = LayerTrace(
        layers=table,
        start_ns=(end - medians).reshape(rows, len(names)),
        duration_ns=medians.reshape(rows, len(names)),
        exclusive_ns=medians.reshape(rows, len(names)).copy(),
        iteration_start_ns=np.zeros(rows, dtype=np.int64),
        iteration_duration_ns=np.full(rows, wall, dtype=np.int64),
        resolution_ns=1000,
    )
    run = build_imported(
        attrs={
            "model": path.name, "backend": "tensorrt", "source_format": "trtexec", "device": "cuda",
            "execution_mode": "graph", "iterations_averaged": count, "warnings": warnings, "unavailable": unavailable,
            "trace": {"events": len(names)},
        },
        events={}, layers=layers, wall_ns=wall, level="layer", resolution_ns=1000, iterations=rows,
    )  # fmt: skip
    if times:
        data = run["layers"].to_dataset()
        columns = zip(*(entry[1:] for entry in times), strict=True)
        told: dict[str, tuple[float | None, ...]] = dict(zip(_TOLD, columns, strict=True))
        run["layers"] = data.assign({
            name: ("layer", np.array([_ns(v) for v in values], dtype=np.int64),
                   {"units": "ns", "long_name": f"{_TOLD[name]} (-1: not told)", "provenance": "imported"})
            for name, values in told.items() if any(v is not None for v in values)
        })  # fmt: skip
    return run


def _kind(path: Path) -> str:
    """Return "profile" or "layers" for a file that begins as one of them, "" for any other."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            text = file.read(4096)
    except (OSError, EOFError, zlib.error):
        return ""
    return "profile" if _PROFILE.match(text) else "layers" if _LAYERS.match(text) else ""


def _files(folder: Path) -> dict[str, list[Path]]:
    """Return the files of trtexec in a folder by kind; the first thousand files are looked at."""
    found: dict[str, list[Path]] = {"profile": [], "layers": []}
    for file in sorted(islice(folder.glob("*.json*"), 1000)):
        if kind := _kind(file):
            found[kind].append(file)
    return found


def _pair(folder: Path, layer_info: Path | None) -> tuple[Path, Path | None]:
    found = _files(folder)
    names = ", ".join(file.name for file in [*found["profile"], *found["layers"]][:6])
    if len(found["profile"]) != 1 or len(found["layers"]) > 1:
        raise InputError(
            f"{folder} must hold one profile of trtexec and at most one file of layers, not {names or 'none'}; name "
            "the profile itself"
        )
    return found["profile"][0], layer_info or next(iter(found["layers"]), None)


def _read(path: Path, max_bytes: int) -> list[Any] | dict[str, Any]:
    limit = min(max_bytes, _LARGEST)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise InputError(f"{path} holds more than {limit:,} bytes, too many for a file of trtexec")
        found = json.loads(data, parse_constant=lambda _: None)
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); was it cut off, or does a layer's name hold a quotation mark?"
                         " trtexec writes names as they are") from error  # fmt: skip
    if not isinstance(found, list | dict):
        raise InputError(f"{path} is neither a profile nor the layers of an engine; see trtexec --exportProfile")
    return found


def _times(entries: Sequence[Any], path: Path) -> tuple[int, list[tuple[str, float, float | None, float | None]]]:
    """Return the iterations and for each layer name, total, average and median in ms."""
    count = 0
    found: list[tuple[str, float, float | None, float | None]] = []
    if len(entries) > _MOST_LAYERS:
        raise InputError(f"{path} names {len(entries):,} layers, more than an engine has")
    for number, entry in enumerate(entries):
        where = f"{path}: entry {number}"
        if not isinstance(entry, dict):
            raise InputError(f"{where} is {str(entry)[:60]!r}, not an object")
        if "name" not in entry:
            if "count" in entry:
                count = int(_number(entry["count"], where, "count") or 0)
            continue
        total = _number(entry.get("timeMs"), where, "timeMs")
        average = _number(entry.get("averageMs"), where, "averageMs")
        median = _number(entry.get("medianMs"), where, "medianMs")
        if average is None and median is None:
            if total is None or not count:
                raise InputError(f"{where} ('{str(entry['name'])[:60]}') has neither averageMs nor medianMs")
            average = total / count
        found.append((readable(str(entry["name"])), total if total is not None else -1.0, average, median))
    if not found:
        raise InputError(f"{path} has no entry with a name; write it with trtexec --exportProfile=FILE")
    return count, found


def _number(value: Any, where: str, key: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LONGEST_MS:
        raise InputError(f"{where}: {key} must be a time in ms, not {str(value)[:60]!r}")
    return float(value)


def _ns(milliseconds: float | None) -> int:
    if milliseconds is None or milliseconds < 0 or not math.isfinite(milliseconds):
        return -1
    return round(milliseconds * 1e6)


def _details(info: Any, path: Path) -> list[Mapping[str, Any]]:
    """Return an object for each layer; those of an engine without details are names alone."""
    entries = info.get("Layers") if isinstance(info, dict) else info
    if not isinstance(entries, list):
        raise InputError(f"{path} has no list 'Layers'; write it with trtexec --exportLayerInfo=FILE")
    if len(entries) > _MOST_LAYERS:
        raise InputError(f"{path} names {len(entries):,} layers, more than an engine has")
    return [entry if isinstance(entry, dict) else {"Name": str(entry)} for entry in entries]


def _table(names: Sequence[str], details: Sequence[Mapping[str, Any]]) -> LayerTable:
    n = len(names)
    return LayerTable(
        name=tuple(unique_labels(names)),
        type=tuple(_type(name, entry) for name, entry in zip(names, details, strict=True)),
        scope=("",) * n,
        parent=(-1,) * n,
        depth=(0,) * n,
        input_shapes=tuple(";".join(t for t, _ in _tensors(entry.get("Inputs"))) for entry in details),
        output_shapes=tuple(";".join(t for t, _ in _tensors(entry.get("Outputs"))) for entry in details),
        parameter_bytes=tuple(_weights(entry) for entry in details),
        activation_bytes=tuple(_outputs(entry) for entry in details),
        sources=tuple(";".join(parts) if len(parts := _parts(name)) > 1 else "" for name in names),
    )


def _type(name: str, entry: Mapping[str, Any]) -> str:
    kind = entry.get("LayerType")
    if isinstance(kind, str) and kind:
        return readable(kind)
    if name.startswith("Reformatting CopyNode"):
        return "Reformat"
    found = re.search(r"\[(\w+)\]$", name)
    return found[1] if found else "unknown"


def _parts(name: str) -> list[str]:
    """Return the source layers of a fused one: its name joins theirs."""
    if name.startswith("Reformatting CopyNode"):
        return []
    return [part.strip() for part in name.split(" + ")]


def _tensors(entries: Any) -> list[tuple[str, int]]:
    """Return text and bytes (-1 unknown) of each tensor."""
    found = []
    for entry in entries if isinstance(entries, list) else []:
        if not isinstance(entry, dict):
            continue
        form = str(entry.get("Format/Datatype") or entry.get("Datatype") or "").upper()
        kind = next((ours for theirs, ours in _DATATYPES if theirs in form), "unknown")
        dims = entry.get("Dimensions")
        sizes = dims if isinstance(dims, list) else []
        if not all(isinstance(d, int) and not isinstance(d, bool) and -1 <= d < 2**31 for d in sizes):
            sizes = []
        known = isinstance(dims, list) and len(sizes) == len(dims) and all(d >= 0 for d in sizes) and kind in _BYTES
        total = math.prod(sizes) * _BYTES.get(kind, 0) if known else -1
        found.append((f"{kind}[{','.join(map(str, sizes))}]", total if total < 2**62 else -1))
    return found


def _outputs(entry: Mapping[str, Any]) -> int:
    sizes = [size for _, size in _tensors(entry.get("Outputs"))]
    return sum(sizes) if sizes and min(sizes) >= 0 and sum(sizes) < 2**62 else -1


def _weights(entry: Mapping[str, Any]) -> int:
    total = -1
    for key in ("Weights", "Bias"):
        part = entry.get(key)
        if not isinstance(part, dict) or not isinstance(part.get("Count"), int):
            continue
        kind = {"FLOAT": "float32", "HALF": "float16"}.get(str(part.get("Type")).upper(), str(part.get("Type")).lower())
        if 0 <= part["Count"] < 2**50 and kind in _BYTES:
            total = max(total, 0) + part["Count"] * _BYTES[kind]
    return total


def _recognises(head: Head) -> bool:
    if head.path.is_dir():
        return bool(_files(head.path)["profile"])
    return _PROFILE.match(head.data) is not None or _LAYERS.match(head.data) is not None


TRTEXEC = Importer(title="TensorRT profile or layers written by trtexec", recognises=_recognises, load=load_profile)
