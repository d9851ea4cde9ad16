"""Records cross the process boundary unchanged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from mlscope_lab.backends.base import ModelFiles, SessionOptions, TensorSpec
from mlscope_lab.launchers.codec import (
    model_from_json,
    model_to_json,
    options_from_json,
    options_to_json,
    pass_from_message,
    pass_to_message,
)
from mlscope_lab.testing import synthetic_pass
from mlscope_lab.trace.records import PassRecord


def _same(a, b):
    assert type(a) is type(b)
    for field in dataclasses.fields(a):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, np.ndarray):
            np.testing.assert_array_equal(x, y)
        elif dataclasses.is_dataclass(x):
            _same(x, y)
        elif field.name == "outputs":
            assert list(x) == list(y)
            for key in x:
                np.testing.assert_array_equal(x[key], y[key])
        else:
            assert x == y, field.name


def test_a_layer_pass_round_trips_through_json():
    record = synthetic_pass(level="layer", seed=3)
    record.outputs = {"logits": np.ones((1, 3), np.float32), "": np.zeros(0)}
    record.warnings = ("busy",)
    message, arrays = pass_to_message(record)
    found = pass_from_message(json.loads(json.dumps(message)), arrays)
    _same(record, found)


def test_a_model_pass_round_trips():
    record = synthetic_pass(level="model", seed=4)
    message, arrays = pass_to_message(record)
    found = pass_from_message(json.loads(json.dumps(message)), arrays)
    assert isinstance(found, PassRecord)
    assert found.layers is None
    _same(record, found)


def test_model_files_and_options_round_trip():
    model = ModelFiles(
        name="m",
        format="onnx",
        path=Path("/tmp/ä b.onnx"),
        digest="sha256:" + "0" * 64,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", 3, None)),),
        outputs=(TensorSpec(name="y", dtype="str", shape=None),),
        parameters={"variant": "lite0"},
        derived_from={"format": "torch_state_dict"},
    )
    assert model_from_json(json.loads(json.dumps(model_to_json(model)))) == model
    options = SessionOptions(threads=2, level="layer", scratch=Path("/tmp"))
    assert options_from_json(json.loads(json.dumps(options_to_json(options)))) == options
