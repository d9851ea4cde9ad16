"""How the records that cross a process boundary become a JSON header and arrays, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import ModelFiles, SessionOptions, TensorSpec
from mlscope_lab.errors import InputError
from mlscope_lab.trace.records import EventTable, LayerTable, LayerTrace, PassRecord

__all__ = [
    "model_from_json",
    "model_to_json",
    "options_from_json",
    "options_to_json",
    "pass_from_message",
    "pass_to_message",
    "specs_to_json",
]

Arrays = dict[str, npt.NDArray[Any]]


def specs_to_json(specs: tuple[TensorSpec, ...]) -> list[dict[str, Any]]:
    """Return tensor specs as JSON-able mappings."""
    return [{"name": s.name, "dtype": s.dtype, "shape": None if s.shape is None else list(s.shape)} for s in specs]


def _specs(items: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=i["name"], dtype=i["dtype"], shape=None if i["shape"] is None else tuple(i["shape"]))
        for i in items
    )


def model_to_json(model: ModelFiles) -> dict[str, Any]:
    """Return model files as a JSON-able mapping."""
    return {
        "name": model.name,
        "format": model.format,
        "path": str(model.path),
        "digest": model.digest,
        "inputs": specs_to_json(model.inputs),
        "outputs": specs_to_json(model.outputs),
        "architecture": model.architecture,
        "parameters": dict(model.parameters),
        "trusted": model.trusted,
        "derived_from": None if model.derived_from is None else dict(model.derived_from),
    }


def model_from_json(data: Mapping[str, Any]) -> ModelFiles:
    """Undo `model_to_json`."""
    fields = dict(data)
    fields["path"] = Path(fields["path"])
    fields["inputs"], fields["outputs"] = _specs(fields["inputs"]), _specs(fields["outputs"])
    return ModelFiles(**fields)


def options_to_json(options: SessionOptions) -> dict[str, Any]:
    """Return session options as a JSON-able mapping.

    Raises
    ------
    InputError
        If they carry calibration data, which stays in the process that has it.
    """
    if options.calibration:
        raise InputError("Calibration data for static quantisation does not cross to another process; use on='inline'")
    fields = dataclasses.asdict(options)
    fields["scratch"] = None if options.scratch is None else str(options.scratch)
    return fields


def options_from_json(data: Mapping[str, Any]) -> SessionOptions:
    """Undo `options_to_json`."""
    fields = dict(data)
    fields["scratch"] = None if fields["scratch"] is None else Path(fields["scratch"])
    fields["calibration"] = ()
    return SessionOptions(**fields)


def _split(record: Any, prefix: str, arrays: Arrays) -> dict[str, Any]:
    """Move a record's arrays into `arrays`; return the rest."""
    rest: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            arrays[prefix + field.name] = value
        elif not dataclasses.is_dataclass(value):
            rest[field.name] = value
    return rest


def pass_to_message(record: PassRecord) -> tuple[dict[str, Any], Arrays]:
    """Return a pass as (JSON-able mapping, arrays)."""
    arrays: Arrays = {}
    message = _split(record, "pass.", arrays)
    outputs = message.pop("outputs")
    message["outputs"] = list(outputs)
    for index, array in enumerate(outputs.values()):
        arrays[f"output.{index}"] = array
    message["events"] = _events_to_message(record.events, "pass.events.", arrays)
    if record.layers is not None:
        message["layers"] = _split(record.layers, "layers.", arrays)
        message["layers"]["unavailable"] = dict(record.layers.unavailable)
        message["layers"]["layers"] = dataclasses.asdict(record.layers.layers)
        message["layers"]["events"] = _events_to_message(record.layers.events, "layers.events.", arrays)
    return message, arrays


def _events_to_message(events: Mapping[str, EventTable], prefix: str, arrays: Arrays) -> list[dict[str, Any]]:
    """Move the columns of events into `arrays`; return the rest, one entry a group."""
    rest = []
    for number, (group, table) in enumerate(events.items()):
        arrays |= {f"{prefix}{number}.{column}": values for column, values in table.columns.items()}
        rest.append(
            {
                "group": group,
                "columns": list(table.columns),
                "tables": {k: list(v) for k, v in table.tables.items()},
                "attrs": dict(table.attrs),
                "variable_attrs": {k: dict(v) for k, v in table.variable_attrs.items()},
            }
        )
    return rest


def _events_from_message(rest: list[dict[str, Any]], prefix: str, arrays: dict[str, Any]) -> dict[str, EventTable]:
    """Undo `_events_to_message`, taking the columns out of `arrays`."""
    return {
        item["group"]: EventTable(
            columns={column: arrays.pop(f"{prefix}{number}.{column}") for column in item["columns"]},
            tables={name: tuple(texts) for name, texts in item["tables"].items()},
            attrs=item["attrs"],
            variable_attrs=item["variable_attrs"],
        )
        for number, item in enumerate(rest)
    }


def _taken(prefix: str, arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, Any]:
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def pass_from_message(message: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> PassRecord:
    """Undo `pass_to_message`."""
    fields, arrays = dict(message), dict(arrays)
    layers = fields.pop("layers", None)
    fields["events"] = _events_from_message(fields["events"], "pass.events.", arrays)
    trace = None
    if layers is not None:
        layers = dict(layers)
        table = LayerTable(**{key: tuple(value) for key, value in layers.pop("layers").items()})
        layers["events"] = _events_from_message(layers["events"], "layers.events.", arrays)
        trace = LayerTrace(layers=table, **layers, **_taken("layers.", arrays))
    outputs = {name: arrays[f"output.{index}"] for index, name in enumerate(fields.pop("outputs"))}
    fields["warnings"] = tuple(fields["warnings"])
    return PassRecord(layers=trace, outputs=outputs, **fields, **_taken("pass.", arrays))
