"""From a file or a live object to one concrete function with named inputs and outputs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import Dim, ModelFiles, TensorSpec
from mlscope_lab.errors import InputError, UnsafeArtifactError, UnsupportedModelError

__all__ = ["Opened", "from_object", "open_keras", "open_saved_model", "trace_function"]

_SIDECAR = Path("assets.extra") / "mlscope.json"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model as a concrete function.

    Attributes
    ----------
    function
        The ConcreteFunction: takes tensors by keyword, returns a mapping of tensors. None for a frozen graph.
    inputs, outputs
        Specs in the model's order.
    input_keys, output_keys
        The function's own names of them.
    precision
        Element type of most weights.
    scopes
        Name scopes and the names of the source nodes that they stand for, where they differ.
    notes
        What the user should know.
    keep
        What must live as long as the function (variables are held weakly by it).
    graph
        For a frozen graph the GraphDef; its tensors of the inputs and outputs are the keys.
    """

    function: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    input_keys: tuple[str, ...]
    output_keys: tuple[str, ...]
    precision: str
    scopes: Mapping[str, str]
    notes: tuple[str, ...]
    keep: Any
    graph: Any = None


def _dtype(dtype: Any) -> str:
    return "str" if dtype.name == "string" else str(dtype.as_numpy_dtype.__name__ if dtype.name != "bool" else "bool")


def _shape(shape: Any, declared: Sequence[Dim] | None = None) -> tuple[Dim, ...] | None:
    """Return a TensorShape as dims, with the symbols of a declared shape where TensorFlow has None."""
    if shape.rank is None:
        return None if declared is None else tuple(declared)
    lengths: list[Dim] = list(shape.as_list())
    if declared is not None and len(declared) == len(lengths):
        lengths = [d if n is None and isinstance(d, str) else n for n, d in zip(lengths, declared, strict=True)]
    return tuple(n if n != 0 else None for n in lengths)


def _specs(
    tensors: Mapping[str, Any], names: Mapping[str, str], declared: Mapping[str, Sequence[Dim] | None]
) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name=names[key], dtype=_dtype(t.dtype), shape=_shape(t.shape, declared.get(names[key])))
        for key, t in tensors.items()
    )


def _precision(tf: Any, variables: Sequence[Any], graph: Any) -> str:
    """Return the element type of most weights, variables and constants both, by bytes."""
    weights: Counter[str] = Counter()
    for variable in variables:
        if variable.dtype not in {tf.resource, tf.string, tf.bool}:
            weights[variable.dtype.name] += int(np.prod(variable.shape.as_list())) * variable.dtype.size
    graphs = [graph.as_graph_def()]
    for nodes in (*(g.node for g in graphs), *(f.node_def for f in graphs[0].library.function)):
        for node in nodes:
            if node.op == "Const":
                dtype = tf.as_dtype(node.attr["dtype"].type)
                if dtype.is_floating or dtype in {tf.int8, tf.uint8}:
                    lengths = [d.size for d in node.attr["value"].tensor.tensor_shape.dim]
                    weights[dtype.name] += int(np.prod(lengths, dtype=np.int64)) * dtype.size
    return weights.most_common(1)[0][0] if weights else "float32"


def _sidecar(folder: Path) -> Mapping[str, Any]:
    path = folder / _SIDECAR
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UnsupportedModelError(f"{path} is malformed: {error}; convert the model again") from error
    return found if isinstance(found, dict) else {}


def open_saved_model(tf: Any, model: ModelFiles) -> Opened:
    """Open a SavedModel of TensorFlow 1 or 2 by its serving signature.

    Raises
    ------
    UnsupportedModelError
        If the folder does not load, or has no signature that could be served.
    """
    try:
        loaded = _loaded(tf, str(model.path))
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        raise UnsupportedModelError(f"TensorFlow {tf.__version__} cannot open '{model.name}': {error}") from error
    signatures = dict(getattr(loaded, "signatures", {}))
    chosen = [n for n in ("serving_default", "serve") if n in signatures] or [n for n in signatures if n[:2] != "__"]
    if not chosen:
        raise UnsupportedModelError(
            f"The SavedModel of '{model.name}' has no serving signature; save it with "
            "tf.saved_model.save(model, path, signatures=...)"
        )
    notes: tuple[str, ...] = ()
    if len(signatures) > 1:
        others = ", ".join(sorted(n for n in signatures if n != chosen[0]))
        notes = (f"The SavedModel has several signatures; '{chosen[0]}' runs, not {others}",)
    function = signatures[chosen[0]]
    extra = _sidecar(model.path)
    taken = function.structured_input_signature[1]
    given = function.structured_outputs
    inputs, outputs = (
        _ordered(kind, tensors, declared, extra.get(kind, ()))
        for kind, tensors, declared in (("inputs", taken, model.inputs), ("outputs", given, model.outputs))
    )
    dims: dict[str, Any] = {s.name: s.shape for s in (*model.inputs, *model.outputs)}
    dims.update({r["name"]: r["shape"] for kind in ("inputs", "outputs") for r in extra.get(kind, ())})
    return Opened(
        function=function,
        inputs=_specs({k: taken[k] for k in inputs}, inputs, dims),
        outputs=_specs({k: given[k] for k in outputs}, outputs, dims),
        input_keys=tuple(inputs),
        output_keys=tuple(outputs),
        precision=_precision(tf, function.variables, function.graph),
        scopes=extra.get("scopes", {}),
        notes=notes,
        keep=loaded,
    )


def _loaded(tf: Any, path: str) -> Any:
    """Load a SavedModel with its objects, or, where TensorFlow cannot rebuild those, its graph and variables alone.

    Keras models saved with an optimizer of an older version fail over the optimizer's slots, which no signature needs.
    """
    try:
        return tf.saved_model.load(path)
    except AttributeError:
        from tensorflow.python.saved_model import load_v1_in_v2

        return load_v1_in_v2.load(path, tags=["serve"])


def _ordered(
    kind: str, tensors: Mapping[str, Any], declared: Sequence[TensorSpec], records: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the function's names and ours, in the model's order.

    TensorFlow sorts what it returns by name; the order is that of the sidecar of a converted model, else that of the
    manifest where it uses the same names, else TensorFlow's.
    """
    if records and {r["key"] for r in records} == set(tensors):
        return {r["key"]: r["name"] for r in records}
    if declared and {s.name for s in declared} == set(tensors):
        return {s.name: s.name for s in declared}
    return {key: key for key in tensors}


def _keras(tf: Any) -> Any:
    """Import Keras and see that it runs on TensorFlow."""
    try:
        import keras
    except ImportError as error:
        raise UnsupportedModelError(f"Keras does not import: {error}. Install with: pip install keras") from error
    if keras.config.backend() != "tensorflow":
        raise UnsupportedModelError(
            f"Keras runs on '{keras.config.backend()}' in this process; set KERAS_BACKEND=tensorflow before it starts "
            "(or in a fresh process, on='subprocess')"
        )
    return keras


def open_keras(tf: Any, model: ModelFiles) -> Opened:
    """Open a .keras archive in safe mode.

    Raises
    ------
    UnsafeArtifactError
        If the archive holds a Lambda layer or other code.
    UnsupportedModelError
        If it cannot be opened, or Keras runs on another framework.
    """
    keras = _keras(tf)
    try:
        loaded = keras.saving.load_model(model.path, compile=False, safe_mode=True)
    except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
        text = str(error)
        if "safe_mode" in text or "unsafe" in text.lower() or "lambda" in text.lower():
            raise UnsafeArtifactError(
                f"'{model.name}' ({model.path.name}) holds code that would run when it is opened (a Lambda layer): "
                f"{text.splitlines()[0]} Ask its author for a SavedModel or an ONNX file"
            ) from error
        raise UnsupportedModelError(
            f"Keras {keras.__version__} cannot open '{model.name}' ({model.path.name}): {text}"
        ) from error
    return _from_keras(tf, keras, loaded, None)


def _symbolic(model: Any) -> tuple[list[Any], Any] | None:
    """Return the declared inputs of a functional or sequential model, flat and in their structure.

    None for a subclassed one, and for a sequential one that nobody has called or built.
    """
    try:
        return (list(model.inputs), model.input) if model.inputs else None
    except (AttributeError, ValueError, TypeError):
        return None


def _from_keras(tf: Any, keras: Any, model: Any, example: Mapping[str, npt.NDArray[Any]] | None) -> Opened:
    if example and isinstance(model, keras.Sequential) and not model.built:
        # as its first call would; then it has inputs, and its layers get the names that they keep
        model.build((None, *np.shape(next(iter(example.values())))[1:]))
    found = _symbolic(model)
    if found is not None:
        symbolic, structure = found
        names = [str(t.name).partition(":")[0] for t in symbolic]
        specs = [(t.shape, tf.as_dtype(t.dtype)) for t in symbolic]
        if example is not None and len(example) == len(names):
            names = list(example) if set(example) != set(names) else names
    elif example:
        names = list(example)
        specs = [(np.shape(a), tf.as_dtype(np.asarray(a).dtype)) for a in example.values()]
        structure = [0] * len(names) if len(names) > 1 else 0
    else:
        raise UnsupportedModelError(
            f"'{model.name}' is a subclassed Keras model that does not declare its inputs; pass it live with example "
            "arrays, or save it with model.export(folder) as a SavedModel"
        )
    signature = [
        tf.TensorSpec([None if d is None else int(d) for d in shape], dtype, f"feed_{i}")
        for i, (shape, dtype) in enumerate(specs)
    ]

    def call(*tensors: Any) -> dict[str, Any]:
        done = model(keras.tree.pack_sequence_as(structure, list(tensors)), training=False)
        return _named(keras.tree.flatten, done, list(getattr(model, "output_names", None) or []))

    return trace_function(tf, call, signature, names, keep=model, scopes=_layer_scopes(model))


def _layer_scopes(model: Any, prefix: str = "", path: str = "") -> dict[str, str]:
    """Return the name scopes of a model's layers: Keras counts from _1 in a graph, for the model was called before."""
    inside, outside = f"{prefix}{model.name}_1/", f"{path}{model.name}/"
    found = {}
    for layer in getattr(model, "layers", ()):
        found[f"{inside}{layer.name}_1"] = f"{outside}{layer.name}"
        if getattr(layer, "layers", None):
            found.update(_layer_scopes(layer, inside, outside))
    return found


def _named(flatten: Any, done: Any, names: list[str]) -> dict[str, Any]:
    """Return outputs by name: a mapping's keys, the model's output names, or output_0 and on."""
    if isinstance(done, Mapping):
        return {str(k): v for k, v in done.items()}
    flat = flatten(done)
    if len(names) != len(flat) or len(set(names)) != len(names):
        names = [f"output_{i}" for i in range(len(flat))] if len(flat) > 1 else ["output"]
    return dict(zip(names, flat, strict=True))


def trace_function(
    tf: Any, call: Any, signature: Sequence[Any], names: Sequence[str], *, keep: Any, scopes: Any
) -> Opened:
    """Trace a callable into a concrete function that takes tensors by keyword and returns a mapping.

    Parameters
    ----------
    tf
        The tensorflow module.
    call
        Takes tensors in order, returns a mapping of tensors.
    signature
        A tf.TensorSpec of each, with names that serve as keywords.
    names
        Of the inputs.
    keep, scopes
        As for `Opened`.
    """
    order: list[str] = []

    def ordered(*tensors: Any) -> dict[str, Any]:
        done = call(*tensors)
        order[:] = list(done)
        return {f"r{i}": tf.identity(tf.convert_to_tensor(value)) for i, value in enumerate(done.values())}

    function = tf.function(ordered, input_signature=signature, autograph=False)
    concrete = function.get_concrete_function()
    keys = {spec.name: name for spec, name in zip(signature, names, strict=True)}
    results = {f"r{i}": name for i, name in enumerate(order)}
    return Opened(
        function=concrete,
        inputs=_specs({s.name: s for s in signature}, keys, {}),
        outputs=_specs({k: concrete.structured_outputs[k] for k in results}, results, {}),
        input_keys=tuple(keys),
        output_keys=tuple(results),
        precision=_precision(tf, concrete.variables, concrete.graph),
        scopes=scopes,
        notes=(),
        keep=(keep, function),
    )


def from_object(tf: Any, obj: Any, example: Mapping[str, npt.NDArray[Any]]) -> Opened:
    """Make a concrete function of a Keras model, a tf.Module, a tf.function or a concrete function.

    Raises
    ------
    InputError
        If the example does not fit what the object takes.
    """
    if not example:
        raise InputError("A live TensorFlow object needs example arrays: wrap(model, {'input': array})")
    import sys

    keras = sys.modules.get("keras")
    if keras is not None and isinstance(obj, keras.Model):
        return _from_keras(tf, _keras(tf), obj, example)
    signature = [
        tf.TensorSpec(np.shape(a), tf.as_dtype(np.asarray(a).dtype), f"feed_{i}")
        for i, a in enumerate(example.values())
    ]
    names = list(example)
    by_name = False
    if isinstance(obj, tf.types.experimental.ConcreteFunction):
        positional, keyword = obj.structured_input_signature
        flat = [*tf.nest.flatten(positional), *keyword.values()]
        if len(flat) != len(names):
            raise InputError(f"The function takes {len(flat)} tensors, the example has {len(names)}")
        by_name = bool(keyword) and set(keyword) == set(names)
        shapes = [keyword[n] for n in names] if by_name else flat
        signature = [tf.TensorSpec(s.shape, s.dtype, f"feed_{i}") for i, s in enumerate(shapes)]

    def call(*tensors: Any) -> dict[str, Any]:
        done = obj(**dict(zip(names, tensors, strict=True))) if by_name else obj(*tensors)
        return _named(tf.nest.flatten, done, [])

    return trace_function(tf, call, signature, names, keep=obj, scopes={})
