"""TensorFlow's step statistics: every node of a step, constants included, with its tensors and its memory.

A session asked for ``SOFTWARE_TRACE`` fills them, at a noticeable part of the step's time. They tell what a node reads
and makes, so one such step, untimed, describes the nodes that the profiler times; where the profiler cannot be had,
they give the times too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from mlscope_lab.backends.tensorflow_nodes import NodeRun
from mlscope_lab.errors import SessionError

__all__ = ["StepStats", "read_step_stats"]

_LABEL = re.compile(r" = (?P<op>[A-Za-z_][A-Za-z0-9_>]*)\((?P<inputs>[^)]*)\)")


class StepStats:
    """Takes the place of a RunMetadata: keeps the bytes, so that parsing them does not count to the step."""

    data: bytes = b""

    def ParseFromString(self, data: bytes) -> None:  # noqa: N802 - the name that TensorFlow calls
        """Keep what a step left."""
        self.data = data


def read_step_stats(tf: Any, data: bytes, offset_ns: int, op_of: Callable[[str], str]) -> list[NodeRun]:
    """Read a step's nodes, in the order of their start.

    Parameters
    ----------
    tf
        The tensorflow module.
    data
        What a `StepStats` kept.
    offset_ns
        What to add to the wall clock to get `time.perf_counter_ns`.
    op_of
        Tells the operation of a node by its name, for those whose label does not.

    Raises
    ------
    SessionError
        If there are no nodes in it.
    """
    metadata = tf.compat.v1.RunMetadata()
    metadata.ParseFromString(data)
    runs = []
    for device in metadata.step_stats.dev_stats:
        if "/stream:" in device.device or device.device.endswith(":memcpy"):
            continue  # device kernels, which are not layers
        threads = dict(device.thread_names)
        for stats in device.node_stats:
            found = _LABEL.search(stats.timeline_label)
            start = (stats.all_start_nanos or stats.all_start_micros * 1000) + offset_ns
            length = stats.all_end_rel_nanos or stats.all_end_rel_micros * 1000
            runs.append(
                NodeRun(
                    name=stats.node_name,
                    op=found["op"] if found else op_of(stats.node_name),
                    start=start,
                    stop=start + max(length, 0),
                    thread=threads.get(stats.thread_id, "") or (str(stats.thread_id) if stats.thread_id else ""),
                    inputs=tuple(i.strip() for i in found["inputs"].split(",") if i.strip()) if found else (),
                    outputs=tuple(_output(tf, o) for o in sorted(stats.output, key=lambda o: o.slot)),
                    allocated_bytes=sum(m.total_bytes for m in stats.memory),
                    allocations=tuple(
                        (record.alloc_micros * 1000 + offset_ns, record.alloc_bytes)
                        for memory in stats.memory
                        for record in memory.allocation_records
                    ),
                )
            )
    if not runs:
        raise SessionError(
            "TensorFlow recorded no nodes for a traced step; this build has its step statistics switched off"
        )
    return sorted(runs, key=lambda run: (run.start, -run.stop))


def _output(tf: Any, output: Any) -> tuple[str, int]:
    description = output.tensor_description
    dtype = tf.as_dtype(description.dtype) if description.dtype else None
    if dtype is None:
        return "", -1
    lengths = [d.size for d in description.shape.dim]
    text = f"{dtype.name}[{','.join(str(n) for n in lengths)}]"
    known = all(n >= 0 for n in lengths) and dtype.name not in {"string", "resource", "variant"}
    return text, int(np.prod(lengths, dtype=np.int64)) * dtype.size if known else -1
