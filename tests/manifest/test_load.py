"""Mistakes in manifests, in the words that a person needs."""

# ruff: noqa: E501 - the table sets messages beside what causes them
from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mlscope_lab.errors import ManifestError
from mlscope_lab.manifest.load import KINDS, digest_of_manifest, load_manifest, parse_manifest, to_data
from mlscope_lab.manifest.model import ModelManifest

MANIFESTS = Path(__file__).parents[2] / "manifests"
SHIPPED = sorted(MANIFESTS.rglob("*.yaml"))
MODEL: dict[str, Any] = {
    "kind": "model",
    "name": "resnet50",
    "version": "1.0.0",
    "task": "image-classification",
    "inputs": [
        {
            "name": "data",
            "dtype": "float32",
            "shape": ["batch", 3, 224, 224],
            "layout": "NCHW",
            "preprocess": [{"step": "decode_image"}, {"step": "resize", "shorter_side": 256}, {"step": "layout"}],
        }
    ],
    "outputs": [{"name": "prob", "dtype": "float32", "shape": ["batch", 1000], "postprocess": [{"step": "top_k"}]}],
    "sources": [
        {"format": "onnx", "location": {"from": "file", "path": "resnet50.onnx"}, "framework": {"name": "onnxruntime"}}
    ],
}


def text_of(data: Any) -> str:
    return json.dumps(data)  # JSON is YAML


def changed(path: str, value: Any) -> dict[str, Any]:
    """MODEL with one place set (or deleted, for ...); the path as in error messages."""
    data: Any = copy.deepcopy(MODEL)
    node, parts = data, path.replace("[", ".[").strip(".").split(".")
    keys = [int(p[1:-1]) if p.startswith("[") else p for p in parts]
    for key in keys[:-1]:
        node = node[key]
    if value is ...:
        del node[keys[-1]]
    else:
        node[keys[-1]] = value
    return data


@pytest.mark.parametrize("file", SHIPPED, ids=lambda f: f.stem)
def test_every_shipped_manifest_loads_and_round_trips(file: Path) -> None:
    manifest = load_manifest(file)
    assert manifest.name == file.stem
    assert manifest.kind == file.relative_to(MANIFESTS).parts[0].removesuffix("s")
    if isinstance(manifest, ModelManifest):
        assert file.parent.name == manifest.task
    again = parse_manifest(yaml.safe_dump(to_data(manifest)), where="again.yaml")
    assert digest_of_manifest(again) == digest_of_manifest(manifest)


def test_there_are_manifests_of_every_kind() -> None:
    assert {load_manifest(f).kind for f in SHIPPED} == set(KINDS)
    assert len(SHIPPED) >= 20


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("inputs[0].shape[2]", -1, "inputs[0].shape[2] must be a positive integer or a symbol such as 'batch', not -1"),
        ("inputs[0].shape[1]", 3.5, "inputs[0].shape[1] must be a positive integer or a symbol such as 'batch', not 3.5"),
        ("inputs[0].shape[0]", "a b", "inputs[0].shape[0] must be a positive integer or a symbol such as 'batch', not 'a b'"),
        ("version", 1.0, 'version must be text, but 1.0 is no text to YAML; put it in quotes: "1.0"'),
        ("version", "one", "version must be a version such as '1.0.0', not 'one'"),
        ("licence", "MIT", "unknown key 'licence'. Known: attributes, claimed, description, inputs, kind, labels, license, "
         "name, outputs, references, sources, symbols, task, version. Did you mean 'license'?"),
        ("inputs[0].dtpye", "x", "inputs[0]: unknown key 'dtpye'. Known: description, dtype, layout, name, preprocess, shape. "
         "Did you mean 'dtype'?"),
        ("inputs[0].layout", "NCH", "inputs[0]: layout 'NCH' has 3 axes, shape has 4"),
        ("inputs[0].preprocess[1].step", "resise", "inputs[0].preprocess[1].step names no usable step: Unknown step 'resise'."),
        ("inputs[0].preprocess[1].step", "resise", "Did you mean 'resize'?"),
        ("inputs[0].preprocess[1].interpolation", "cubic", "inputs[0].preprocess[1].interpolation must be one of nearest, "
         "bilinear, bicubic, area, lanczos, not 'cubic'. Did you mean 'bicubic'?"),
        ("inputs[0].preprocess[1].shorter_side", "big", "inputs[0].preprocess[1].shorter_side must be a whole number, not 'big'"),
        ("inputs[0].preprocess[1].shorter_side", 0, "inputs[0].preprocess[1] (step 'resize'): shorter_side must be from 1 to"),
        ("inputs[0].preprocess[1].shorterside", 3, "unknown key 'shorterside'. Known: antialias, height, "
         "interpolation, positions, rounding, shorter_side, width. Did you mean 'shorter_side'?"),
        ("inputs[0].preprocess[0]", "decode_image", "inputs[0].preprocess[0] must be a mapping with the key 'step'"),
        ("inputs[0].preprocess", "decode_image", "inputs[0].preprocess must be a list of steps"),
        ("outputs", [], "outputs must not be empty"),
        ("outputs", ..., "outputs is missing"),
        ("outputs", [MODEL["outputs"][0]] * 2, "outputs name the same tensor twice"),
        ("task", "classification", "task must be one of image-classification, "),
        ("sources[0].format", "onxx", "sources[0].format must be one of onnx, "),
        ("sources[0].format", "safetensors", "sources[0]: format 'safetensors' holds weights only: name an architecture"),
        ("sources[0].location.from", "wheal", "sources[0].location.from must be one of archive, file, folder, hub, package, "
         "url, wheel, not 'wheal'. Did you mean 'wheel'?"),
        ("sources[0].location.from", ..., "sources[0].location.from is missing; one of archive, file,"),
        ("sources[0].location", "x.onnx", "sources[0].location must be a mapping, not 'x.onnx'"),
        ("sources[0].location", {"from": "url", "url": "ftp://x", "sha256": "0" * 64},
         "sources[0].location.url must be an address that begins with http:// or https://, not 'ftp://x'"),
        ("sources[0].location", {"from": "url", "url": "https://x"}, "sources[0].location.sha256 is missing; 64 hexadecimal"),
        ("sources[0].location", {"from": "wheel", "project": "p", "version": "1", "member": "../x", "sha256": "0" * 64},
         "sources[0].location.member must be a relative path without '..', not '../x'"),
        ("sources[0].framework.version", "two", "version must be a PEP 440 specifier such as '>=2.0', not 'two'"),
        ("claimed", [{"metric": "top1", "value": "nan", "dataset": "x"}], "claimed[0].value must be a finite number, not 'nan'"),
        ("references", "https://x", "references must be a list, not 'https://x'"),
        ("labels", {}, "labels: give either names or location"),
        ("name", "../evil", "name must be a name of letters, digits,"),
        ("kind", "modle", "kind must be one of model, framework, dataset, system, not 'modle'. Did you mean 'model'?"),
        ("kind", ..., "kind is missing; write kind: model"),
    ],
)  # fmt: skip
def test_mistakes_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text_of(changed(path, value)), where="resnet50.yaml")
    lines = str(caught.value).splitlines()
    assert all(line.startswith("resnet50.yaml: ") for line in lines)
    assert len(lines) == 1
    assert message in lines[0]


def test_every_mistake_has_a_line() -> None:
    data = changed("inputs[0].shape[1]", 0)
    data["task"] = "x"
    data["outputs"][0]["dtype"] = "float31"
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text_of(data), where="m.yaml")
    assert [line.split()[1] for line in str(caught.value).splitlines()] == [
        "task",
        "inputs[0].shape[1]",
        "outputs[0].dtype",
    ]


def test_step_parameters_get_their_declared_types() -> None:
    manifest = parse_manifest(text_of(changed("inputs[0].preprocess[1].shorter_side", "256")), where="m.yaml")
    assert isinstance(manifest, ModelManifest)
    assert manifest.inputs[0].preprocess[1] == {"step": "resize", "shorter_side": 256}


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="there is no such file"):
        load_manifest(tmp_path / "gone.yaml")
    with pytest.raises(ManifestError, match="there is no such file"):
        load_manifest(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"kind: model\nname: caf\xe9\n")
    with pytest.raises(ManifestError, match=r"latin\.yaml: is not UTF-8 text .* at byte 21"):
        load_manifest(tmp_path / "latin.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ManifestError, match="it is no manifest"):
        load_manifest(tmp_path / "big.yaml")


def test_digest_ignores_order_and_defaults_but_not_content() -> None:
    shuffled = dict(reversed(list(MODEL.items())))
    first, second = (parse_manifest(text_of(d), where="m") for d in (MODEL, {**shuffled, "license": ""}))
    assert digest_of_manifest(first) == digest_of_manifest(second)
    other = parse_manifest(text_of(changed("inputs[0].preprocess[1].shorter_side", 255)), where="m")
    assert digest_of_manifest(other) != digest_of_manifest(first)
    assert digest_of_manifest(first).startswith("sha256:")


junk = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.lists(st.integers(), max_size=2)
)
junk = junk | st.dictionaries(st.text(max_size=4), st.integers(-9, 9), max_size=2)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return (
        [path, *(p for key, value in inner for p in places(value, (*path, key)))]
        if path
        else [p for key, value in inner for p in places(value, (key,))]
    )


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(places(MODEL)), junk)
def test_any_value_anywhere_is_taken_or_explained(place: tuple[Any, ...], value: Any) -> None:
    data = copy.deepcopy(MODEL)
    node: Any = data
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    try:
        manifest = parse_manifest(json.dumps(data, allow_nan=True), where="m.yaml")
    except ManifestError as error:
        assert all(line.startswith("m.yaml: ") for line in str(error).splitlines())  # noqa: PT017
        return
    assert parse_manifest(text_of(to_data(manifest)), where="m.yaml") == manifest


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(list(KINDS)), st.dictionaries(st.text("abcdehlmnoprstu", max_size=8), junk, max_size=4))
def test_any_mapping_of_any_kind(kind: str, data: dict[str, Any]) -> None:
    with pytest.raises(ManifestError, match=r"^m\.yaml: "):
        parse_manifest(json.dumps({**data, "kind": kind}), where="m.yaml")
