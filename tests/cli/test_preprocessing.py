"""The commands sweep and agreement, on a model of four colours."""

from __future__ import annotations

import pytest
import typer
from PIL import Image

from mlscope_lab.cli.preprocessing import observed_from, side_from

pytest.importorskip("onnxruntime")


@pytest.fixture
def pictures(workspace, tmp_path):
    """A folder of six pictures in three classes that the model knows, and one that is no picture."""
    folder = tmp_path / "pictures"
    for name, color in {"0": (250, 5, 5), "1": (5, 250, 5), "2": (5, 5, 250)}.items():
        (folder / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (16, 12), color).save(folder / name / f"{number}.png")
    return folder


def test_sweep_as_json_names_the_cause(workspace):
    found = workspace.json("sweep", "tiny-classifier", workspace.red, "--observed", "2", "--no-pairs")
    assert found["cause"]["cause"] == "colour order: BGR"
    assert found["declared"][0]["top1"] == 0
    assert {v["size"] for v in found["variations"]} == {1}
    cause = next(v for v in found["variations"] if v["name"] == found["cause"]["cause"])
    assert cause["samples"][0]["top1"] == 2
    assert cause["explanation_rank"] == 0
    assert cause["excess"] is None
    assert found["left_out"] == {}


def test_sweep_of_a_folder_tells_accuracy(workspace, pictures):
    found = workspace.json("sweep", "tiny-classifier", pictures, "--axis", "colour order", "--axis", "layout")
    swapped = next(v for v in found["variations"] if v["name"] == "colour order: BGR")
    assert swapped["accuracy"] == pytest.approx(1 / 3)
    assert swapped["changed_share"] == pytest.approx(2 / 3)
    assert {axis for v in found["variations"] for axis in v["axes"].split(" + ")} == {"colour order", "layout"}
    assert found["cause"] is None


def test_sweep_as_text(workspace, pictures):
    one = workspace.invoke("sweep", "tiny-classifier", workspace.red, "--observed", "2", "--no-pairs")
    assert one.exit_code == 0, one.output
    assert "colour order: BGR gives 2" in " ".join(one.output.split())
    assert "esc\\x1bape" not in one.output
    assert "\x1b" not in one.output
    many = workspace.invoke("sweep", "tiny-classifier", pictures, "--no-pairs", "--limit-rows", "3")
    assert "accuracy as declared" in many.output
    assert "McNemar" in many.output
    assert "more; --limit-rows shows them" in many.output


def test_agreement_as_json_and_text(workspace, pictures):
    (pictures / "1" / "bad.png").write_bytes(b"no picture")
    sides = ["--side", "onnxruntime", "--side", "backend=onnxruntime,batch_size=2"]
    found = workspace.json("agreement", "tiny-classifier", pictures, *sides)
    assert found["totals"]["agreement"] == 1
    assert found["totals"]["accuracy_b"] == 1
    assert found["samples"][0]["sample"] == "0/0.png"
    assert list(found["left_out"]) == ["1/bad.png"]
    assert found["failure"] is None
    text = workspace.invoke("agreement", "tiny-classifier", pictures, *sides)
    assert text.exit_code == 0
    assert "6 of 6 answers agree" in text.output
    assert "left out: 1/bad.png" in text.output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["sweep", "tiny-classifier", "missing.png"], 1, "no such file or folder"),
        (["sweep", "tiny-classifier", "RED", "--observed", "purple"], 1, "no label 'purple'"),
        (["sweep", "tiny-classifier", "RED", "--axis", "colour"], 1, "Unknown axis"),
        (["agreement", "tiny-classifier", "RED", "--side", "onnxruntime"], 2, "exactly two"),
        (["agreement", "tiny-classifier", "RED", "-s", "onnxruntime", "-s", "onxruntime"], 1, "onnxruntime"),
        (["agreement", "tiny-classifier", "RED", "-s", "onnxruntime", "-s", "precison=float16"], 1, "precision"),
    ],
)
def test_wrong_usage_is_said(workspace, arguments, status, message):
    result = workspace.invoke(*(workspace.red if a == "RED" else a for a in arguments))
    assert result.exit_code == status
    assert message in result.stderr


def test_sides():
    assert side_from("pytorch") == {"backend": "pytorch"}
    assert side_from("backend=pytorch,precision=float16,threads=2") == {
        "backend": "pytorch", "precision": "float16", "threads": 2
    }  # fmt: skip
    for wrong in ("threads=two", "=x", "precision="):
        with pytest.raises(typer.BadParameter):
            side_from(wrong)


@pytest.mark.parametrize(
    ("text", "meant"),
    [(None, None), ("282", 282), ("tiger cat", "tiger cat"), ("282:.386", (282, 0.386)), ("a: b", "a: b"),
     ("tiger cat:0.4", ("tiger cat", 0.4))],
)  # fmt: skip
def test_observed(text, meant):
    assert observed_from(text) == meant
