"""The smallest ONNX model that shows a difference between two sides, with its input, as files to send to somebody."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from mlscope_lab.alignment.records import in_layout_of
from mlscope_lab.conversion.onnx_part import write_part
from mlscope_lab.divergence.shadow import boundary, dequantized, handed_over, replay_pair
from mlscope_lab.divergence.work import Work
from mlscope_lab.errors import InputError

__all__ = ["write_repro"]

Array = npt.NDArray[Any]


def write_repro(work: Work, position: int, folder: Path) -> dict[str, Any]:
    """Write the group of one pair as an ONNX model of its own, on the reference's inputs.

    If side b runs on ONNX Runtime, the nodes are b's, and what is expected is the reference's value. Else, if the
    reference does, they are the reference's, and what is expected is what b computes in their place.

    Parameters
    ----------
    work
        A comparison that ran, its sides still open.
    position
        Of the pair.
    folder
        Where to; missing or empty. See `mlscope_lab.conversion.onnx_part` for what is in it.

    Returns
    -------
    dict
        ``folder``, ``side`` ("a" or "b"), ``nodes``, ``max_abs`` and ``relative_l2`` of the difference that the files
        show when they are run.

    Raises
    ------
    InputError
        If neither side is a graph of ONNX Runtime, or a value that the group reads has no partner.
    """
    if work.captures is None or work.alignment is None:
        raise InputError("Nothing was compared, so there is nothing to show")
    a, b = work.captures
    pair = work.alignment.pairs[position]
    files = [stepper.graph_file() for stepper in work.steppers]
    partner = {p.b: p for p in work.alignment.pairs}
    given: dict[int, Array] = {}
    for value in boundary(b, pair.group_b):
        if value not in partner:
            raise InputError(f"The group reads '{b.graph.values[value].name}', which has no partner in the reference")
        mine = partner[value].a
        real = dequantized(a.spool.read(mine), a.graph.values[mine])
        given[value] = handed_over(real, partner[value], b.graph.values[value], b.spool.dtype(value))
    value_a, value_b = a.graph.values[pair.a], b.graph.values[pair.b]
    reference = dequantized(a.spool.read(pair.a), value_a)
    if files[1] is not None and pair.group_b:
        side, capture, group = "b", b, pair.group_b
        inputs = {b.graph.values[v].name: array for v, array in given.items()}
        expected = {value_b.name: handed_over(reference, pair, value_b, b.spool.dtype(pair.b))}
    elif files[0] is not None and pair.group_a:
        side, capture, group = "a", a, pair.group_a
        inputs = {a.graph.values[v].name: a.spool.read(v) for v in boundary(a, pair.group_a)}
        result = dequantized(replay_pair(work.steppers[1], pair, given), value_b)
        back = replace(pair, axes=None)
        shown = in_layout_of(value_a.shape, result, pair.axes)
        expected = {value_a.name: handed_over(shown, back, value_a, a.spool.dtype(pair.a))}
    else:
        raise InputError(
            "A repro is a part of an ONNX graph, and neither side runs on ONNX Runtime; compare with "
            "backend='onnxruntime' on one side"
        )
    source = files["ab".index(side)]
    if source is None:
        raise InputError("The graph of that side is in no file")
    names = [capture.graph.operations[i].name for i in group]
    labels = work.a.label, work.b.label
    made = write_part(
        source, names, inputs, expected, folder,
        title=f"{labels['ab'.index(side)]} against {labels[1 - 'ab'.index(side)]}: {work.a.subject.name}",
    )  # fmt: skip
    worst = next(iter(made.differences.values()))
    return {"folder": str(made.folder), "side": side, "nodes": list(made.nodes), "max_abs": worst.max_abs,
            "relative_l2": worst.relative_l2}  # fmt: skip
