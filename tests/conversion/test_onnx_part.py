"""Parts cut out of ONNX graphs: they run, compute what the nodes computed, and come as a whole or not at all."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.onnxruntime_ import OnnxRuntimeBackend
from mlscope_lab.conversion import onnx_part
from mlscope_lab.conversion.onnx_part import write_part
from mlscope_lab.errors import InputError, SessionError, UnsafeArtifactError, UnsupportedModelError

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx import helper  # noqa: E402

from tests.backends.onnx_models import (  # noqa: E402
    captured,
    floats,
    light,
    noise,
    published,
    save,
    sound,
    squeeze_and_excite,
    weight,
)

LEVELS = ["all", "none"]


def every_part(files, level, tmp_path, feeds=noise, *, step=1, length=2):
    """Cut out groups of operations in a row; they compute what the stepper showed, bit by bit."""
    options = SessionOptions(threads=1, graph_optimization=level)
    written = 0
    with OnnxRuntimeBackend().open(files, options) as session, session.open_stepper() as stepper:
        graph, kept = captured(stepper, feeds(session))
        arrays = {graph.values[i].name: array for i, array in kept.items()}
        for first in range(0, len(graph.operations), step):
            group = graph.operations[first : first + length]
            outputs = [graph.values[i].name for operation in group for i in operation.outputs]
            part = write_part(
                stepper.graph_file(), [o.name for o in group], arrays, {n: arrays[n] for n in outputs},
                tmp_path / f"part{first}",
            )  # fmt: skip
            assert {o.name for o in group} <= set(part.nodes)
            assert list(part.differences) == outputs
            for name, difference in part.differences.items():
                assert difference.max_abs == 0.0, (name, group)
            written += 1
    return written


@pytest.fixture(scope="module")
def silero():
    """Give silero from the user's own cache."""
    return published("silero-vad")


class TestParts:
    """Groups of nodes of original and optimised graphs."""

    @pytest.mark.parametrize("level", LEVELS)
    @pytest.mark.parametrize("channels", [20, 6])
    def test_blocked_layouts(self, level, channels, tmp_path):
        assert every_part(squeeze_and_excite(tmp_path, channels), level, tmp_path) > 10

    @pytest.mark.parametrize("level", LEVELS)
    def test_constants_that_nodes_compute(self, level, tmp_path):
        assert every_part(light("squeezenet"), level, tmp_path, step=9) > 3

    @pytest.mark.parametrize("level", LEVELS)
    def test_old_opset_without_blocks_of_four(self, level, tmp_path):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], name="first"),
            helper.make_node("MaxPool", ["c"], ["p"], name="pool", kernel_shape=[2, 2]),
            helper.make_node("Conv", ["p", "v"], ["y"], name="second"),
        ]
        files = save(
            tmp_path, nodes, [floats("x", 1, 3, 8, 8)], [floats("y")],
            initializers=[weight("w", 10, 3, 3, 3), weight("v", 18, 10, 1, 1)], opset=9, ir=4,
        )  # fmt: skip
        assert every_part(files, level, tmp_path, length=1) >= 3

    @pytest.mark.network
    @pytest.mark.parametrize("level", LEVELS)
    def test_branches(self, level, tmp_path, silero):
        assert every_part(silero, level, tmp_path, sound) >= 2

    def test_published_file_and_a_difference(self, tmp_path):
        files = squeeze_and_excite(tmp_path, 8)
        options = SessionOptions(threads=1, graph_optimization="none")
        with OnnxRuntimeBackend().open(files, options) as session, session.open_stepper() as stepper:
            graph, kept = captured(stepper, noise(session))
        arrays = {graph.values[i].name: array for i, array in kept.items()}
        reference = arrays["hs"] + np.float32(0.5)
        given = {**arrays, "of no interest": np.zeros(3)}
        part = write_part(files.path, ["around", "bend2"], given, {"hs": reference}, tmp_path / "repro", title="Half")
        assert part.nodes == ("around", "bend2")
        assert part.differences["hs"].max_abs == pytest.approx(0.5, abs=1e-6)
        difference = arrays["hs"] - reference
        want = np.linalg.norm(difference.astype(float)) / np.linalg.norm(reference.astype(float))
        assert part.differences["hs"].relative_l2 == pytest.approx(want)
        model = onnx.load(part.model)
        onnx.checker.check_model(model, full_check=True)
        assert [n.op_type for n in model.graph.node] == ["Add", "Relu"]
        assert [v.name for v in model.graph.input] == ["c3", "r1"]
        assert not model.graph.initializer
        assert sorted(p.name for p in part.folder.iterdir()) == [
            "README.txt", "expected.npz", "inputs.npz", "part.onnx",
        ]  # fmt: skip
        with np.load(part.folder / "inputs.npz") as inputs:
            assert sorted(inputs.files) == ["c3", "r1"]
            np.testing.assert_array_equal(inputs["c3"], arrays["c3"])
        assert (part.folder / "README.txt").read_text().startswith("Half\n")

    def test_the_script_in_the_readme_runs(self, tmp_path):
        nodes = [helper.make_node("MatMul", ["file", "w"], ["a/b:0"], name="product")]
        files = save(tmp_path, nodes, [floats("file", 2, 3)], [floats("a/b:0")], initializers=[weight("w", 3, 4)])
        given = {"file": np.ones((2, 3), np.float32)}
        expected = {"a/b:0": np.zeros((2, 4), np.float32)}
        part = write_part(files.path, ["product"], given, expected, tmp_path / "repro")
        text = (part.folder / "README.txt").read_text()
        lines = text.splitlines()
        start = next(i for i, line in enumerate(lines) if line.startswith("import numpy"))
        script = "\n".join(lines[start : start + 6])
        result = subprocess.run(
            [sys.executable, "-c", script], cwd=part.folder, capture_output=True, text=True, check=True
        )
        name, _, _, number = result.stdout.rsplit(maxsplit=3)
        assert name == "a/b:0"
        assert float(number) == pytest.approx(part.differences["a/b:0"].max_abs)

    def test_external_data_comes_in(self, tmp_path):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
        files = save(
            tmp_path, nodes, [floats("x", 2, 30)], [floats("y")], initializers=[weight("w", 30, 40)], external=True
        )
        given = {"x": np.ones((2, 30), np.float32)}
        part = write_part(files.path, ["product"], given, {"y": np.zeros((2, 40), np.float32)}, tmp_path / "repro")
        (tmp_path / "model.bin").unlink()
        assert onnx.load(part.model).graph.initializer[0].raw_data

    def test_parts_too_large_for_one_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx_part, "_SINGLE_FILE_BYTES", 100)
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
        files = save(tmp_path, nodes, [floats("x", 2, 30)], [floats("y")], initializers=[weight("w", 30, 40)])
        given = {"x": np.ones((2, 30), np.float32)}
        part = write_part(files.path, ["product"], given, {"y": np.zeros((2, 40), np.float32)}, tmp_path / "repro")
        assert (part.folder / "part.onnx.data").stat().st_size >= 4800
        assert part.differences["y"].max_abs > 0


class TestRefusals:
    """Clear words, and nothing left behind."""

    @pytest.fixture
    def files(self, tmp_path):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="product"),
            helper.make_node("Relu", ["h"], ["y"], name="bend"),
        ]
        return save(tmp_path, nodes, [floats("x", 2, 3)], [floats("y")], initializers=[weight("w", 3, 4)])

    X, Y = np.ones((2, 3), np.float32), np.ones((2, 4), np.float32)

    @pytest.mark.parametrize(
        ("nodes", "inputs", "expected", "message"),
        [
            (["prodct"], {"x": X}, {"h": Y}, "no node 'prodct'.*product"),
            ([], {"x": X}, {"h": Y}, "No nodes"),
            (["bend"], {"x": X}, {"y": Y}, "read 'h', for which there is no array"),
            (["product"], {"x": X}, {}, "Nothing is expected"),
            (["product"], {"x": X}, {"y": Y}, "do not write 'y'; they write h"),
            (["product"], {"x": X.astype("O")}, {"h": Y}, "only arrays of numbers"),
            (
                ["product"],
                {"x": X.astype(float)},
                {"h": Y},
                "'x' is of float32 in the graph, but its array is of float64",
            ),
            (["product"], {"x": X}, {"h": Y[:1]}, r"comes out as \[2, 4\], but what is expected is \[1, 4\]"),
        ],
    )
    def test_wrong_arguments(self, files, tmp_path, nodes, inputs, expected, message):
        with pytest.raises(InputError, match=message):
            write_part(files.path, nodes, inputs, expected, tmp_path / "out" / "repro")
        out = tmp_path / "out"
        assert not out.exists() or list(out.iterdir()) == []

    def test_what_onnx_runtime_refuses(self, files, tmp_path, capfd):
        wrong = {"x": np.ones((2, 5), np.float32)}
        with pytest.raises(SessionError, match="cannot run the part"):
            write_part(files.path, ["product"], wrong, {"h": self.Y}, tmp_path / "repro")
        assert not (tmp_path / "repro").exists()
        capfd.readouterr()

    def test_folder_in_use(self, files, tmp_path):
        empty, full = tmp_path / "empty", tmp_path / "full"
        empty.mkdir()
        full.mkdir()
        (full / "mine.txt").write_text("keep")
        write_part(files.path, ["product"], {"x": self.X}, {"h": self.Y}, empty)
        assert (empty / "part.onnx").exists()
        for folder in (full, empty, files.path):
            with pytest.raises(InputError, match="not an empty folder"):
                write_part(files.path, ["product"], {"x": self.X}, {"h": self.Y}, folder)
        assert [p.name for p in full.iterdir()] == ["mine.txt"]

    def test_no_model(self, tmp_path):
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(b"\x00\x01 no model")
        with pytest.raises(UnsupportedModelError, match="broken"):
            write_part(broken, ["a"], {}, {"y": self.Y}, tmp_path / "repro")

    def test_data_from_elsewhere(self, files, tmp_path):
        model = onnx.load(files.path)
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        tensor.external_data.add(key="location", value="/etc/hostname")
        path = tmp_path / "hostile.onnx"
        path.write_bytes(model.SerializeToString())
        with pytest.raises(UnsafeArtifactError, match="hostname"):
            write_part(path, ["product"], {"x": self.X}, {"h": self.Y}, tmp_path / "repro")
