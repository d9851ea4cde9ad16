"""The smallest ONNX model that shows a difference: some nodes of a graph, what they read, and what was expected.

::

    part = write_part(stepper.graph_file(), ["Conv_3", "Relu_4"], {"x": array}, {"y": reference}, Path("repro"))
    part.differences["y"].max_abs

The folder holds ``part.onnx``, ``inputs.npz``, ``expected.npz`` and a ``README.txt`` with a script of six lines. Nodes
of ONNX Runtime's blocked layout are wrapped, so that arrays are plain NCHW.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.onnxruntime_blocks import DOMAIN, find_blocks, reorder_node
from mlscope_lab.backends.onnxruntime_graph import check_external_data, read_outline
from mlscope_lab.backends.onnxruntime_pieces import Piece, Pieces, read_pieces
from mlscope_lab.errors import InputError, SessionError, nearest

__all__ = ["Difference", "OnnxPart", "write_part"]

Array = npt.NDArray[Any]
# a protobuf message holds at most 2 GiB
_SINGLE_FILE_BYTES: Final = 1_500_000_000
_BLOCKED: Final = " blocked"

_README = """\
{title}

{nodes} of {source}, with the constants that they read.

part.onnx      the nodes as a model; it reads {inputs}
inputs.npz     what the nodes were given
expected.npz   what a reference computed in their place: {outputs}

Run them with numpy and onnxruntime (this was written with onnxruntime {version}):

import numpy as np, onnxruntime as ort
settings = ort.SessionOptions()
settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
session, expected = ort.InferenceSession("part.onnx", settings), np.load("expected.npz")
for name, array in zip(expected.files, session.run(expected.files, dict(np.load("inputs.npz")))):
    print(name, "max abs", np.abs(array.astype(float) - expected[name].astype(float)).max())

When written, this gave:
{differences}
"""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far what the part computes is from what was expected.

    Attributes
    ----------
    max_abs
        Largest absolute difference; NaN where either holds a NaN.
    relative_l2
        Euclidean norm of the difference over that of what was expected; NaN where that is 0.
    """

    max_abs: float
    relative_l2: float


@dataclass(frozen=True, kw_only=True)
class OnnxPart:
    """What `write_part` wrote.

    Attributes
    ----------
    folder, model
        The folder, and the model in it.
    nodes
        Names of the nodes in it, in the order in which they run, those that compute constants included.
    differences
        By name of an output.
    """

    folder: Path
    model: Path
    nodes: tuple[str, ...]
    differences: Mapping[str, Difference]


def write_part(
    source: Path,
    nodes: Sequence[str],
    inputs: Mapping[str, Array],
    expected: Mapping[str, Array],
    folder: Path,
    *,
    title: str = "A part of an ONNX model whose result differs from a reference",
) -> OnnxPart:
    """Write some nodes of an ONNX file as a model of its own, with inputs and expected outputs, and run it once.

    Parameters
    ----------
    source
        The published file, or what `OnnxRuntimeStepper.graph_file` gives.
    nodes
        Names of the nodes, as in a graph that the stepper recorded: unnamed ones go by their first output.
    inputs
        An array for each value that the nodes read and do not write themselves, by name; more are left out. Values in
        a blocked layout are given in NCHW.
    expected
        What a reference computed for values that the nodes write, by name: the outputs of the part.
    folder
        Where to; missing or empty. It appears as a whole or not at all.
    title
        First line of the README.

    Raises
    ------
    InputError
        If a node is unknown, an array is missing or not of numbers, nothing is expected, or the folder is not empty.
    UnsupportedModelError
        If the file is no ONNX model.
    SessionError
        If ONNX Runtime cannot run the part.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already and not an empty folder; give a new one")
    check_external_data(read_outline(source, source.stem), source, source.stem)
    pieces = read_pieces(source, source.stem)
    chosen = _chosen(pieces, nodes)
    read = _read(chosen)
    written = {name for piece in chosen for name in piece.writes}
    _check(read, written, inputs, expected)
    given = {name: np.asarray(inputs[name], order="C") for name in read}
    wanted = {name: np.asarray(array, order="C") for name, array in expected.items()}
    model = _model(pieces, chosen, given, wanted)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        _save(model, scratch / "part.onnx")
        _save_arrays(scratch / "inputs.npz", given)
        _save_arrays(scratch / "expected.npz", wanted)
        differences, version = _run(scratch / "part.onnx", given, wanted)
        names = [piece.label for piece in chosen]
        text = _README.format(
            title=title,
            nodes=f"Nodes {', '.join(names)}" if len(names) > 1 else f"Node {names[0]}",
            source=source.name,
            inputs=", ".join(read) or "nothing",
            outputs=", ".join(wanted),
            version=version,
            differences="\n".join(
                f"{name}: max abs {d.max_abs:.6g}, relative L2 {d.relative_l2:.6g}" for name, d in differences.items()
            ),
        )
        (scratch / "README.txt").write_text(text, encoding="utf-8")
        scratch.chmod(0o755)  # mkdtemp keeps others out
        os.replace(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return OnnxPart(folder=folder, model=folder / "part.onnx", nodes=tuple(names), differences=differences)


def _chosen(pieces: Pieces, nodes: Sequence[str]) -> list[Piece]:
    """Return the pieces of these names and those that compute constants for them, in order."""
    by_label = {piece.label: piece for piece in pieces.pieces}
    for name in nodes:
        if name not in by_label:
            raise InputError(f"The graph has no node '{name}'.{nearest(name, tuple(by_label))}")
    if not nodes:
        raise InputError("No nodes are named, so there is nothing to write")
    writers = {name: piece for piece in pieces.pieces for name in piece.writes}
    needed, waiting = set(nodes), [by_label[name] for name in nodes]
    while waiting:
        for name in waiting.pop().reads:
            writer = writers.get(name)
            if writer is not None and writer.fixed and writer.label not in needed:
                needed.add(writer.label)
                waiting.append(writer)
    return [piece for piece in pieces.pieces if piece.label in needed]


def _read(chosen: Sequence[Piece]) -> list[str]:
    written = {name for piece in chosen for name in piece.writes}
    return list(dict.fromkeys(name for piece in chosen for name in piece.reads if name not in written))


def _check(read: Sequence[str], written: set[str], inputs: Mapping[str, Array], expected: Mapping[str, Array]) -> None:
    missing = [name for name in read if name not in inputs]
    if missing:
        raise InputError(f"The nodes read '{missing[0]}', for which there is no array (given: {', '.join(inputs)})")
    if not expected:
        raise InputError("Nothing is expected of the nodes; give the reference's outputs by name")
    other = [name for name in expected if name not in written]
    if other:
        raise InputError(f"The nodes do not write '{other[0]}'; they write {', '.join(sorted(written))}")
    for name in (*read, *expected):
        array = inputs[name] if name in read else expected[name]
        if array.dtype.kind not in "biufc":
            raise InputError(f"'{name}' is of {array.dtype}; only arrays of numbers can be written")


def _model(pieces: Pieces, chosen: Sequence[Piece], given: Mapping[str, Array], wanted: Mapping[str, Array]) -> Any:
    """Return the ModelProto, with all constants in it."""
    from onnx import helper
    from onnx.external_data_helper import load_external_data_for_model

    kinds = {name: _type_of(name, array, pieces) for name, array in given.items()}
    model = pieces.model(chosen, kinds, ())
    graph = model.graph
    blocked = find_blocks(pieces).names
    entering = [name for name in given if name in blocked]
    leaving = [name for name in wanted if name in blocked]
    for node in graph.node:
        for names in (node.input, node.output):
            renamed = [f"{name}{_BLOCKED}" if name in entering or name in leaving else name for name in names]
            del names[:]
            names.extend(renamed)
    around = list(_entrance(entering, given, pieces)), list(graph.node)
    del graph.node[:]
    graph.node.extend(around[0])
    graph.node.extend(around[1])
    graph.node.extend(reorder_node(f"{n}{_BLOCKED}", n, channels=wanted[n].shape[1]) for n in leaving)
    for name, array in wanted.items():
        graph.output.add(name=name, type=_type_of(name, array, pieces))
    # known lengths would be followed into branches that are not taken, and need not fit there
    branching = any(attribute.HasField("g") for node in graph.node for attribute in node.attribute)
    for value, arrays in [*((v, given) for v in graph.input), *((v, wanted) for v in graph.output)]:
        if value.name in arrays:
            value.type.tensor_type.shape.SetInParent()
            for length in arrays[value.name].shape:
                value.type.tensor_type.shape.dim.add(**({} if branching else {"dim_value": length}))
    load_external_data_for_model(model, str(pieces.folder))
    used = set(_domains(graph.node)) | ({DOMAIN} if entering or leaving else set())
    imports = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    if (entering or leaving) and all(entry.domain != DOMAIN for entry in imports):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    model.producer_name = "mlscope-lab"
    return model


def _entrance(names: Sequence[str], given: Mapping[str, Array], pieces: Pieces) -> Iterator[Any]:
    """Yield the nodes that block plain inputs, channels filled up first to the multiple of four that they ask for."""
    from onnx import TensorProto, helper

    opset = max((entry.version for entry in pieces.proto.opset_import if entry.domain in {"", "ai.onnx"}), default=1)
    for name in names:
        lack = -given[name].shape[1] % 4
        plain = name
        if lack:
            plain, pads = f"{name} filled", [0, 0, 0, 0, 0, lack, 0, 0]
            if opset < 11:
                yield helper.make_node("Pad", [name], [plain], pads=pads)
            else:
                tensor = helper.make_tensor("pads", TensorProto.INT64, [8], pads)
                yield helper.make_node("Constant", [], [f"{name} pads"], value=tensor)
                yield helper.make_node("Pad", [name, f"{name} pads"], [plain])
        yield reorder_node(plain, f"{name}{_BLOCKED}")


def _type_of(name: str, array: Array, pieces: Pieces) -> Any:
    """Return the TypeProto of a value, from its array where the file does not tell."""
    import onnx
    from onnx import helper

    made = onnx.TypeProto()
    declared = pieces.types.get(name)
    made.tensor_type.elem_type = (
        declared.tensor_type.elem_type
        if declared is not None and declared.tensor_type.elem_type
        else helper.np_dtype_to_tensor_dtype(array.dtype)
    )
    kind = helper.tensor_dtype_to_np_dtype(made.tensor_type.elem_type)
    if kind != array.dtype:
        raise InputError(f"'{name}' is of {kind} in the graph, but its array is of {array.dtype}")
    return made


def _domains(nodes: Any) -> Iterator[str]:
    for node in nodes:
        yield "" if node.domain == "ai.onnx" else node.domain
        for attribute in node.attribute:
            yield from _domains(attribute.g.node)
            for body in attribute.graphs:
                yield from _domains(body.node)


def _save(model: Any, path: Path) -> None:
    import onnx

    large = model.ByteSize() > _SINGLE_FILE_BYTES
    onnx.save(model, path, save_as_external_data=large, location=f"{path.name}.data")


def _save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an npz whose keys are any names; numpy's own function takes none that is called like its argument."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def _run(path: Path, given: Mapping[str, Array], wanted: Mapping[str, Array]) -> tuple[dict[str, Difference], str]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = 1
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        results = session.run(list(wanted), dict(given))
    except Exception as error:  # onnxruntime's exceptions share no base but Exception
        raise SessionError(f"ONNX Runtime cannot run the part that was cut out: {error}") from error
    found = {}
    for (name, want), have in zip(wanted.items(), results, strict=True):
        if have.shape != want.shape:
            raise InputError(f"'{name}' comes out as {list(have.shape)}, but what is expected is {list(want.shape)}")
        found[name] = _difference(have, want)
    return found, onnxruntime.__version__


def _difference(have: Array, want: Array) -> Difference:
    kind = np.complex128 if "c" in {have.dtype.kind, want.dtype.kind} else np.float64
    one, other = have.astype(kind), want.astype(kind)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(one == other, 0, one - other)  # equal infinities do not differ
        norm = float(np.linalg.norm(other))
        return Difference(
            max_abs=float(np.abs(difference).max()) if difference.size else 0.0,
            relative_l2=float(np.linalg.norm(difference)) / norm if norm else float("nan"),
        )
