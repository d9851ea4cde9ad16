"""Profiles and layers in the form in which trtexec writes them, made here; none of them was recorded on a device."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlscope_lab.errors import InputError
from mlscope_lab.store import Store
from mlscope_lab.trace.importers import detect_format, import_trace
from mlscope_lab.trace.importers.trtexec import load_profile

CONV = "conv1.weight + /conv1/Conv + /relu/Relu"
REFORMAT = f"Reformatting CopyNode for Input Tensor 0 to {CONV}"
PROFILE = f"""[
  {{ "count" : 11 }}
, {{ "name" : "{REFORMAT}", "timeMs" : 16.72, "averageMs" : 1.52, "medianMs" : 1.08902, "percentage" : 20.5 }}
, {{ "name" : "{CONV}", "timeMs" : 46.1489, "averageMs" : 4.19536, "medianMs" : 4.06384, "percentage" : 79.5 }}
, {{ "name" : "(Unnamed Layer* 108) [Shuffle]", "timeMs" : 0, "averageMs" : 0, "medianMs" : 0, "percentage" : 0 }}
]
"""
OLDER = PROFILE.replace(', "medianMs" : 1.08902', "").replace(', "medianMs" : 4.06384', "").replace(
    ', "medianMs" : 0', ""
)  # fmt: skip
TENSOR = {"Location": "Device", "Dimensions": [8, 3, 224, 224], "Format/Datatype": "Row major linear FP32"}
LAYERS = {
    "Layers": [
        {"Name": REFORMAT, "LayerType": "Reformat", "Inputs": [{"Name": "x", **TENSOR}],
         "Outputs": [{"Name": "y", **TENSOR, "Format/Datatype": "Channel major FP16 format where channel % 4 == 0"}],
         "TacticValue": "0x0"},
        {"Name": CONV, "LayerType": "CaskConvolution", "Inputs": [{"Name": "y", **TENSOR}],
         "Outputs": [{"Name": "z", "Dimensions": [8, 64, 112, 112], "Format/Datatype": "Half"},
                     {"Name": "q", "Dimensions": [8, -1], "Format/Datatype": "Row major Int8 format"}],
         "ParameterType": "Convolution", "Weights": {"Type": "Half", "Count": 9408},
         "Bias": {"Type": "Float", "Count": 64}, "TacticName": "sm80_xmma_fprop"},
    ],
    "Bindings": ["x", "z"],
}  # fmt: skip


@pytest.fixture
def files(tmp_path):
    (tmp_path / "profile.json").write_text(PROFILE)
    (tmp_path / "layers.json").write_text(json.dumps(LAYERS))
    return tmp_path


def test_a_profile_has_layers_with_their_medians(files):
    assert detect_format(files / "profile.json") == "trtexec"
    run = import_trace(files / "profile.json")
    layers = run["layers"].dataset
    assert layers["name"].values.tolist() == [REFORMAT, CONV, "(Unnamed Layer* 108) [Shuffle]"]
    assert layers["type"].values.tolist() == ["Reformat", "unknown", "Shuffle"]
    assert layers["sources"].values.tolist() == ["", "conv1.weight;/conv1/Conv;/relu/Relu", ""]
    np.testing.assert_array_equal(layers["duration_ns"], [[1_089_020, 4_063_840, 0]])
    np.testing.assert_array_equal(layers["start_ns"], [[0, 1_089_020, 5_152_860]])
    np.testing.assert_array_equal(layers["average_ns"], [1_520_000, 4_195_360, 0])
    np.testing.assert_array_equal(layers["total_ns"], [16_720_000, 46_148_900, 0])
    assert layers["median_ns"].attrs == {"units": "ns", "provenance": "imported",
                                         "long_name": "median over iterations (-1: not told)"}  # fmt: skip
    assert run.attrs["iterations_averaged"] == 11
    assert run.attrs["trace"]["events"] == 3
    assert "laid end to end" in run.attrs["unavailable"]["start_ns"]
    assert "--exportLayerInfo" in run.attrs["unavailable"]["types"]
    assert run.mlscope.layers()["share"].sum() == pytest.approx(1.0)


def test_an_older_profile_has_averages(files):
    (files / "old.json.gz").write_bytes(gzip.compress(OLDER.encode()))
    assert detect_format(files / "old.json.gz") == "trtexec"
    layers = import_trace(files / "old.json.gz")["layers"].dataset
    np.testing.assert_array_equal(layers["duration_ns"], [[1_520_000, 4_195_360, 0]])
    assert "median_ns" not in layers


def test_layers_tell_types_shapes_and_weights(files):
    run = load_profile(files / "profile.json", layer_info=files / "layers.json")
    layers = run["layers"].dataset
    assert layers["type"].values.tolist() == ["Reformat", "CaskConvolution", "Shuffle"]
    assert layers["input_shapes"].values[0] == "float32[8,3,224,224]"
    assert layers["output_shapes"].values[:2].tolist() == ["float16[8,3,224,224]", "float16[8,64,112,112];int8[8,-1]"]
    assert layers["parameter_bytes"].values.tolist() == [-1, 2 * 9408 + 4 * 64, -1]
    assert layers["activation_bytes"].values.tolist() == [2 * 8 * 3 * 224 * 224, -1, -1]
    assert "types" not in run.attrs["unavailable"]


def test_a_folder_of_both(files):
    assert detect_format(files) == "trtexec"
    run = import_trace(files)
    assert run.attrs["model"] == "profile.json"
    assert run["layers"]["type"].values.tolist() == ["Reformat", "CaskConvolution", "Shuffle"]
    (files / "other.json").write_text(PROFILE)
    with pytest.raises(InputError, match=r"not other.json, profile.json, layers.json; name the profile itself"):
        import_trace(files)


def test_layers_alone_have_no_times(files):
    assert detect_format(files / "layers.json") == "trtexec"
    run = import_trace(files / "layers.json")
    assert run["layers"].sizes == {"layer": 2, "layer_iteration": 0}
    assert run.attrs["unavailable"]["times"] == "give the file of --exportProfile"
    names = {"Layers": ["a", "b + c", "a"], "Bindings": []}
    (files / "names.json").write_text(json.dumps(names))
    assert import_trace(files / "names.json")["layers"]["name"].values.tolist() == ["a", "b + c", "a#2"]


def test_many_layers_of_one_name_and_half_a_surrogate_pair(files):
    entries = [{"count": 1}, *({"name": "a\ud800", "averageMs": 1} for _ in range(5000))]
    (files / "same.json").write_text(json.dumps(entries))
    run = import_trace(files / "same.json")
    assert run["layers"]["name"].values[[0, 4999]].tolist() == ["a?", "a?#5000"]
    store = Store(files / "runs")
    assert store.open(store.save(run))["layers"].sizes["layer"] == 5000


def test_layers_of_another_engine_warn(files):
    (files / "other.json").write_text(json.dumps({"Layers": [{"Name": "other", "LayerType": "Convolution"}]}))
    run = load_profile(files / "profile.json", layer_info=files / "other.json")
    assert "are both of one engine?" in run.attrs["warnings"][0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"count": 1}', "is not JSON .*cut off"),
        ('[{"count": 1}, {"name": "a "b"", "averageMs": 1}]', "quotation mark"),
        ('[{"count": 1}, 5]', "entry 1 is '5', not an object"),
        ('[{"count": 1}, {"name": "a", "averageMs": "1"}]', "averageMs must be a time in ms, not '1'"),
        ('[{"count": 1}, {"name": "a", "averageMs": -1}]', "averageMs must be a time in ms, not '-1'"),
        ('[{"count": 1}, {"name": "a", "averageMs": 1e300}]', "averageMs must be"),
        ('[{"count": 1}, {"name": "a", "averageMs": true}]', "averageMs must be"),
        ('[{"count": 0}, {"name": "a", "timeMs": 1}]', "neither averageMs nor medianMs"),
        ('[{"count": 1}]', "no entry with a name"),
        ('{"Layers": 5}', "has no list 'Layers'"),
        ('{"Layers": []}', "names no layers"),
        ('"x"', "neither a profile nor the layers"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_wrong_is_named(text, words, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=words):
        import_trace(tmp_path / "x.json", format="trtexec")


def test_a_file_that_is_too_large_is_refused(files):
    with pytest.raises(InputError, match="holds more than 100 bytes"):
        import_trace(files / "profile.json", max_bytes=100)
    (files / "bomb.json.gz").write_bytes(gzip.compress(b"[" + b" " * (65 << 20)))
    with pytest.raises(InputError, match="holds more than 67,108,864 bytes"):
        import_trace(files / "bomb.json.gz", format="trtexec")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["name", "averageMs", "timeMs", "count", "Layers", "Name", "Inputs", "Outputs", "Dimensions",
                         "Format/Datatype", "Weights", "Count", "Type", "LayerType"]),
        inner, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(value=VALUES)
def test_any_json_is_read_or_refused(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("any") / "x.json"
    path.write_text(json.dumps(value))
    try:
        run = import_trace(path, format="trtexec")
    except InputError:
        return
    assert run["layers"].sizes["layer"] > 0
