"""TensorFlow's graph optimiser, Grappler: run once by us, or kept from running.

A session optimises a graph anew for each set of tensors that it is asked for, and whatever is asked for stays as it is:
the more is looked at, the less is fused. So what is looked at is optimised once, for the model's own inputs and
outputs, and then run by sessions that leave it alone. oneDNN's own rewriting comes later still and cannot be turned off
in a process that has started: it renames nodes (``_MklNative...``), and merges a convolution with its bias where the
result in between is not asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlscope_lab.errors import UnsupportedModelError

__all__ = ["optimized", "session_config"]

_CPU = "/job:localhost/replica:0/task:0/device:CPU:0"


def session_config(tf: Any, threads: int, *, optimize: bool) -> Any:
    """Return the configuration of a session with threads of its own.

    Parameters
    ----------
    tf
        The tensorflow module.
    threads
        Intra-operator threads; inter-operator is 1.
    optimize
        False keeps Grappler from running, and the passes that fold constants and merge equal nodes after it.
    """
    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads, inter_op_parallelism_threads=1, use_per_session_threads=True,
        allow_soft_placement=True,
    )  # fmt: skip
    config.gpu_options.allow_growth = True
    if not optimize:
        config.graph_options.rewrite_options.disable_meta_optimizer = True
        config.graph_options.optimizer_options.opt_level = tf.compat.v1.OptimizerOptions.L0
    return config


def optimized(tf: Any, graph: Any, feeds: Sequence[str], fetches: Sequence[str], place: str | None) -> Any:
    """Return what Grappler makes of a graph, as a GraphDef.

    Parameters
    ----------
    tf
        The tensorflow module.
    graph
        A tf.Graph.
    feeds, fetches
        Names of its tensors: the model's inputs and outputs.
    place
        Device on which its nodes run, or None for the CPU. Grappler fuses nodes only where it knows their device.

    Raises
    ------
    UnsupportedModelError
        If Grappler fails.
    """
    from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
    from tensorflow.python.grappler import tf_optimizer

    meta = meta_graph_pb2.MetaGraphDef()
    meta.graph_def.CopyFrom(graph.as_graph_def(add_shapes=True))
    device = _CPU if place is None else _CPU.rpartition("/device:")[0] + "/device:" + place.strip("/")
    for node in meta.graph_def.node:
        node.device = device
    signature = meta.signature_def["serving_default"]
    for names, infos in ((feeds, signature.inputs), (fetches, signature.outputs)):
        for i, name in enumerate(names):
            tensor = graph.get_tensor_by_name(name)
            infos[str(i)].name = name
            infos[str(i)].dtype = tensor.dtype.as_datatype_enum
            infos[str(i)].tensor_shape.CopyFrom(tensor.shape.as_proto())
    try:
        made = tf_optimizer.OptimizeGraph(config_pb2.ConfigProto(), meta, verbose=False)
    except (ValueError, TypeError, RuntimeError, tf.errors.OpError) as error:
        raise UnsupportedModelError(
            f"TensorFlow {tf.__version__} cannot optimise the graph of this model apart from running it: {error}. "
            "Open it with graph_optimization='none' to see its operations"
        ) from error
    _importable(tf, made)
    for node in made.node:
        node.device = ""
        for name in [n for n in node.attr if n in {"_output_shapes", "_input_shapes"}]:
            del node.attr[name]
    return made


def _importable(tf: Any, made: Any) -> None:
    """Name oneDNN's own operations where Grappler fused into types that no graph may be imported with.

    It makes ``_FusedConv2D`` of bfloat16, which the operation's definition forbids and no importer takes, and which
    oneDNN's rewriting renames before it runs; so we do.
    """
    from tensorflow.python.framework import op_def_registry

    constants = {node.name for node in made.node if node.op == "Const"}
    for node in made.node:
        definition = op_def_registry.get(node.op) if node.op.startswith("_") else None
        if definition is None or _allowed(definition, node):
            continue
        name = f"_MklNative{node.op.removeprefix('_')}"
        native = op_def_registry.get(name)
        if native is None or not _allowed(native, node):
            raise UnsupportedModelError(
                f"TensorFlow {tf.__version__} fuses '{node.name}' into a '{node.op}' that it does not take back. Open "
                "the model with graph_optimization='none' to see its operations"
            )
        node.op = name
        node.attr["_kernel"].s = b"MklNameChangeOp"
        if "is_filter_const" in {attr.name for attr in native.attr}:
            node.attr["is_filter_const"].b = node.input[1].partition(":")[0] in constants


def _allowed(definition: Any, node: Any) -> bool:
    return all(
        node.attr[attr.name].type in attr.allowed_values.list.type
        for attr in definition.attr
        if attr.type == "type" and attr.allowed_values.list.type
    )
