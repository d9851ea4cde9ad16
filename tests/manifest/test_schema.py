"""JSON Schema for editors agrees with what is loaded."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

from mlscope_lab import plugins
from mlscope_lab.errors import ManifestError
from mlscope_lab.manifest.load import KINDS
from mlscope_lab.manifest.schema import json_schema

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema judges the schemas")
SHIPPED = sorted((Path(__file__).parents[2] / "manifests").rglob("*.yaml"))


@pytest.mark.parametrize("kind", KINDS)
def test_is_a_valid_schema_and_the_same_every_time(kind: str) -> None:
    schema = json_schema(kind)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.dumps(schema) == json.dumps(json_schema(kind))


def test_shipped_manifests_are_valid_and_broken_ones_are_not() -> None:
    validators = {kind: jsonschema.Draft202012Validator(json_schema(kind)) for kind in KINDS}
    for file in SHIPPED:
        data = yaml.safe_load(file.read_text())
        validators[data["kind"]].validate(data)
    model = yaml.safe_load((SHIPPED[0].parents[1] / "models/file-type-detection/magika.yaml").read_text())
    for where, value in (("task", "x"), ("inputs", []), ("colour", 1)):
        assert not validators["model"].is_valid({**model, where: value})
    step = copy.deepcopy(model)
    step["inputs"][0]["preprocess"][0]["beginnning"] = 3
    assert not validators["model"].is_valid(step)


def test_every_step_and_parameter_is_described() -> None:
    definitions = json_schema("model")["$defs"]
    for name in plugins.BUILTINS["mlscope_lab.steps"]:
        step = definitions[f"step_{name}"]
        assert step["description"]
        assert all(field["description"] for field in step["properties"].values()), name
        assert "labels" not in step["properties"]


def test_unknown_kind() -> None:
    with pytest.raises(ManifestError, match="Did you mean 'model'"):
        json_schema("models")
