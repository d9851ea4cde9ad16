"""Other precisions of ONNX models: what they change, what they leave, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from mlscope_lab.backends import onnxruntime_precision
from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.onnxruntime_ import OnnxRuntimeBackend
from mlscope_lab.errors import InputError, UnsupportedModelError

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
from onnx import TensorProto, helper

from tests.backends.onnx_models import captured, constant, floats, noise, published, save, value, weight


@pytest.fixture
def files(tmp_path):
    """Give a small network: convolution, normalization, activation, product."""
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], name="norm"),
        helper.make_node("Relu", ["n"], ["r"], name="bend"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flat"),
        helper.make_node("Gemm", ["f", "w2", "b2"], ["y"], name="answer", transB=1),
    ]
    return save(
        tmp_path, nodes, [floats("x", "batch", 3, 10, 10)], [floats("y", "batch", 4), floats("r")],
        initializers=[
            weight("w1", 8, 3, 3, 3), weight("b1", 8, seed=1), weight("g", 8, seed=2), weight("b", 8, seed=3),
            weight("m", 8, seed=4), constant("v", np.full(8, 1.5, np.float32)),
            weight("w2", 4, 8, seed=5), weight("b2", 4, seed=6),
        ],
    )  # fmt: skip


def feeds_for(files, seed=0):
    with OnnxRuntimeBackend().open(files) as session:
        return noise(session, 2, seed)


def run(files, feeds, precision, **more):
    options = SessionOptions(threads=1, precision=precision, **more)
    with OnnxRuntimeBackend().open(files, options) as session:
        outputs = session.predict(feeds)
        with session.open_stepper() as stepper:
            graph, kept = captured(stepper, feeds)
        for name, array in outputs.items():
            np.testing.assert_array_equal(kept[graph.outputs[name]], array)
        return session, outputs, graph


# largest error relative to the largest output, with room: half has 11 bits, bytes have 8
ERRORS = {"float32": 0.0, "float16": 3e-3, "int8-dynamic": 0.05, "int8-static": 0.05}


class TestPrecisions:
    """Each precision on a small network."""

    @pytest.mark.parametrize("precision", OnnxRuntimeBackend.precisions)
    def test_close_to_the_published_one(self, files, precision):
        feeds = feeds_for(files)
        _, plain, _ = run(files, feeds, None)
        session, outputs, _ = run(files, feeds, precision, calibration=(feeds,))
        assert [s.describe() for s in session.inputs] == ["x: float32[batch, 3, 10, 10]"]
        assert list(outputs) == ["y", "r"]
        for name, array in plain.items():
            assert outputs[name].dtype == np.float32
            error = np.abs(outputs[name] - array).max() / np.abs(array).max()
            assert error <= ERRORS[precision]
            assert (error > 0) == (precision != "float32")

    def test_element_types(self, files):
        feeds = feeds_for(files)
        session, _, graph = run(files, feeds, "float16", graph_optimization="none")
        assert session.precision == "float16"
        assert "kernels for few operators" in session.warnings[0]
        assert {"conv", "norm", "bend", "answer"} <= {o.name for o in graph.operations}
        session, _, graph = run(files, feeds, "int8-static", calibration=(feeds,), graph_optimization="none")
        assert session.precision == "int8"
        quantized = [v for v in graph.values if v.dtype == "int8"]
        assert len(quantized) > 3
        assert all(v.quantization is not None and v.quantization[0] > 0 for v in quantized)
        session, _, graph = run(files, feeds, "int8-dynamic", graph_optimization="none")
        assert session.precision == "uint8"
        assert {"DynamicQuantizeLinear", "ConvInteger"} <= {o.type for o in graph.operations}
        assert all(v.quantization is not None for v in graph.values if v.dtype == "uint8" and v.shape)

    def test_fused_integer_kernels(self, files):
        feeds = feeds_for(files)
        _, _, graph = run(files, feeds, "int8-static", calibration=(feeds,))
        kinds = {o.type: o.kinds for o in graph.operations}
        assert kinds["QLinearConv"] == ("convolution",)
        (fused,) = [o for o in graph.operations if o.type == "QLinearConv"]
        assert fused.sources == ("x_DequantizeLinear", "conv", "c_QuantizeLinear")

    def test_digests_tell_precisions_and_calibrations_apart(self, files):
        one, other = feeds_for(files), feeds_for(files, 1)
        digests = {run(files, one, p, calibration=(one,))[0].executable_digest for p in OnnxRuntimeBackend.precisions}
        digests |= {
            run(files, one, "int8-static", calibration=c)[0].executable_digest for c in ((other,), (one, other))
        }
        digests.add(run(files, one, None)[0].executable_digest)
        assert len(digests) == 7

    def test_calibration_decides_the_ranges(self, files):
        feeds = feeds_for(files)
        small = {"x": feeds["x"] * np.float32(0.01)}
        _, plain, _ = run(files, feeds, None)
        _, good, _ = run(files, feeds, "int8-static", calibration=(small, feeds))
        _, cut, _ = run(files, feeds, "int8-static", calibration=(small,))
        errors = [np.abs(o["r"] - plain["r"]).max() for o in (good, cut)]
        assert errors[1] > 5 * errors[0]

    def test_scratch_is_left_empty_and_traces_work(self, files, tmp_path):
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        options = SessionOptions(threads=1, precision="float16", level="layer", scratch=scratch)
        feeds = feeds_for(files)
        with OnnxRuntimeBackend().open(files, options) as session:
            for _ in range(2):  # the second trace opens the converted model again
                session.begin_trace()
                session.predict(feeds)
                assert "answer" in session.end_trace().layers.name
        assert list(scratch.iterdir()) == []

    @pytest.mark.parametrize("precision", ["float16", "int8-dynamic", "int8-static"])
    def test_models_too_large_for_one_file(self, files, precision, monkeypatch):
        feeds = feeds_for(files)
        _, small, _ = run(files, feeds, precision, calibration=(feeds,))
        monkeypatch.setattr(onnxruntime_precision, "_SINGLE_FILE_BYTES", 100)
        _, large, _ = run(files, feeds, precision, calibration=(feeds,))
        for name, array in small.items():
            np.testing.assert_array_equal(large[name], array)

    def test_nothing_is_printed_or_logged(self, files, capfd):
        root = logging.getLogger()
        before = list(root.handlers), list(root.filters)
        feeds = feeds_for(files)
        for precision in OnnxRuntimeBackend.precisions:
            run(files, feeds, precision, calibration=(feeds,))
        out, err = capfd.readouterr()
        assert out == err == ""
        assert (root.handlers, root.filters) == before


class TestRefusals:
    """What cannot be had is said, with the way out."""

    def test_static_needs_a_calibration(self, files):
        with pytest.raises(InputError, match=r"calibration=\(feeds, ...\)"):
            OnnxRuntimeBackend().open(files, SessionOptions(precision="int8-static"))

    def test_calibration_must_fit(self, files):
        options = SessionOptions(precision="int8-static", calibration=({"z": np.zeros(3, np.float32)},))
        with pytest.raises(InputError, match=r"calibration\[0\] gives z; model 'model' takes x"):
            OnnxRuntimeBackend().open(files, options)
        options = SessionOptions(precision="int8-static", calibration=({"x": np.zeros((2, 7), np.float32)},))
        with pytest.raises(UnsupportedModelError, match="cannot make model 'model' int8-static"):
            OnnxRuntimeBackend().open(files, options)

    @pytest.mark.parametrize("precision", ["bfloat16", "float64"])
    def test_reasons(self, files, precision):
        with pytest.raises(UnsupportedModelError, match=r"its CPU provider has no convolution.*It knows float32"):
            OnnxRuntimeBackend().open(files, SessionOptions(precision=precision))

    def test_published_in_another_precision(self, tmp_path):
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        half = save(
            tmp_path, nodes, [value("x", TensorProto.FLOAT16, [2, 3])], [value("y", TensorProto.FLOAT16, None)],
            initializers=[weight("w", 3, 4, dtype=np.float16)],
        )  # fmt: skip
        for precision in ("float32", "int8-dynamic"):
            with pytest.raises(UnsupportedModelError, match=f"published in float16; {precision} is made of float32"):
                OnnxRuntimeBackend().open(half, SessionOptions(precision=precision))

    def test_nothing_to_quantize(self, tmp_path):
        relu = save(tmp_path, [helper.make_node("Softplus", ["x"], ["y"])], [floats("x", 3)], [floats("y")])
        with pytest.raises(UnsupportedModelError, match="found nothing in model 'model'"):
            OnnxRuntimeBackend().open(relu, SessionOptions(precision="int8-dynamic"))


@pytest.fixture(scope="module")
def magika():
    """Give magika from the user's own cache."""
    return published("magika")


@pytest.mark.network
class TestPublishedModels:
    """Real models in other precisions: the answer stays, and nodes compute what the session computes."""

    @pytest.mark.parametrize("precision", ["float16", "int8-dynamic", "int8-static"])
    def test_magika(self, magika, precision):
        text = np.frombuffer(b"def f(x):\n    return x + 1\n" * 80, np.uint8)[:2048].astype(np.int32)
        feeds = {"bytes": text[None]}
        _, plain, _ = run(magika, feeds, None)
        _, outputs, graph = run(magika, feeds, precision, calibration=(feeds,))
        (name,) = plain
        assert outputs[name].argmax() == plain[name].argmax()
        assert 0 < np.abs(outputs[name] - plain[name]).max() < 0.2
        assert len(graph.operations) > 90
