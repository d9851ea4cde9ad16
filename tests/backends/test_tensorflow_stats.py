"""Step statistics as TensorFlow writes them."""

from __future__ import annotations

import pytest

from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from mlscope_lab.backends.tensorflow_stats import StepStats, read_step_stats
from mlscope_lab.errors import SessionError

if not TensorFlowBackend().availability().ok:
    pytest.skip("needs tensorflow", allow_module_level=True)
tf = load_tensorflow()


def written(*devices):
    """Return the bytes of a step: devices are (name, nodes), nodes are dicts of NodeExecStats."""
    metadata = tf.compat.v1.RunMetadata()
    for name, nodes in devices:
        device = metadata.step_stats.dev_stats.add(device=name)
        device.thread_names[3] = "pool/3"
        for node in nodes:
            device.node_stats.add(**node)
    kept = StepStats()
    kept.ParseFromString(metadata.SerializeToString())
    return kept.data


def read(data, offset=0):
    return read_step_stats(tf, data, offset, lambda name: f"op of {name}")


def test_nodes_in_the_order_of_their_start():
    found = read(
        written(
            (
                "/device:CPU:0",
                [
                    {"node_name": "b", "all_start_nanos": 700, "all_end_rel_nanos": 50, "thread_id": 3,
                     "timeline_label": "b = Relu(a, ^c)"},
                    {"node_name": "a", "all_start_micros": 0, "all_start_nanos": 100, "all_end_rel_nanos": 9},
                ],
            ),
            ("/device:GPU:0/stream:all", [{"node_name": "kernel", "all_start_nanos": 5}]),
        ),
        1000,
    )  # fmt: skip
    assert [(r.name, r.op, r.start, r.stop) for r in found] == [
        ("a", "op of a", 1100, 1109),
        ("b", "Relu", 1700, 1750),
    ]
    assert found[1].inputs == ("a", "^c")
    assert found[1].thread == "pool/3"
    assert found[0].thread == ""


def test_microseconds_stand_in_for_nanoseconds():
    (found,) = read(written(("cpu", [{"node_name": "a", "all_start_micros": 7, "all_end_rel_micros": 2}])))
    assert (found.start, found.stop) == (7000, 9000)


def test_outputs_and_memory():
    tensor = {
        "dtype": tf.float32.as_datatype_enum,
        "shape": tf.TensorShape([2, 3]).as_proto(),
    }
    words = {"dtype": tf.string.as_datatype_enum, "shape": tf.TensorShape([4]).as_proto()}
    node = {
        "node_name": "a",
        "all_start_nanos": 1,
        "output": [
            {"slot": 1, "tensor_description": words},
            {"slot": 0, "tensor_description": tensor},
        ],
        "memory": [
            {
                "allocator_name": "cpu",
                "total_bytes": 40,
                "allocation_records": [
                    {"alloc_micros": 5, "alloc_bytes": 40},
                    {"alloc_micros": 6, "alloc_bytes": -16},
                ],
            }
        ],
    }
    (found,) = read(written(("cpu", [node])), 10)
    assert found.outputs == (("float32[2,3]", 24), ("string[4]", -1))
    assert found.output_bytes == -1
    assert found.allocated_bytes == 40
    assert found.allocations == ((5010, 40), (6010, -16))


def test_a_step_without_nodes_is_refused():
    with pytest.raises(SessionError, match="switched off"):
        read(written(("/device:CPU:0", [])))
