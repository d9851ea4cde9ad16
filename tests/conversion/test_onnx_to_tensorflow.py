"""ONNX to TensorFlow against ONNX Runtime: operators one by one, and the nine networks that come with onnx."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from mlscope_lab.conversion.onnx_tf.graph import scope_name
from mlscope_lab.conversion.onnx_to_tensorflow import convert
from mlscope_lab.errors import ConversionError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
if not TensorFlowBackend().availability().ok:
    pytest.skip("needs tensorflow", allow_module_level=True)
tf = load_tensorflow()
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from mlscope_lab.conversion.onnx_tf import convert as machinery  # noqa: E402

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
NETWORKS = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet",
            "vgg19", "zfnet512")  # fmt: skip
RANDOM = np.random.default_rng(0)


def files_of(path: Path) -> ModelFiles:
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelFiles(name=path.stem, format="onnx", path=path, digest=digest)


def run_onnxruntime(path: Path, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds), strict=True))


def model_of(nodes, inputs, outputs, constants=None, opset=18, dims=None, kinds=None):
    """Return a model; `inputs` are arrays by name, whose shapes may be declared otherwise in `dims`."""
    declared = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), (dims or {}).get(n, a.shape))
        for n, a in inputs.items()
    ]
    given = [helper.make_tensor_value_info(n, (kinds or {}).get(n, TensorProto.FLOAT), None) for n in outputs]
    fixed = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", declared, given, initializer=fixed)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def agree(folder: Path, model, feeds, rtol=1e-4, atol=1e-5):
    """Build the graph in TensorFlow and compare every output with ONNX Runtime's."""
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    want = run_onnxruntime(path, feeds)
    graph = machinery.read(path)
    machinery.convertible(graph, path.name)
    shapes = [[d if isinstance(d, int) else None for d in p.shape] for p in graph.inputs]
    specs = [tf.TensorSpec(s, p.dtype) for s, p in zip(shapes, graph.inputs, strict=True)]
    function = tf.function(
        lambda *t: machinery._build(tf, graph, path.name, t, tf.constant), input_signature=specs, autograph=False
    )
    found = function(*(tf.constant(feeds[p.name]) for p in graph.inputs))
    for port, have in zip(graph.outputs, found, strict=True):
        array = have.numpy()
        assert array.dtype == want[port.name].dtype, port
        assert array.shape == want[port.name].shape, port
        np.testing.assert_allclose(array, want[port.name], rtol=rtol, atol=atol, err_msg=port.name)
    return function.get_concrete_function()


def numbers(*shape, low=-2.0, high=2.0, dtype=np.float32):
    return RANDOM.uniform(low, high, shape).astype(dtype)


def single(op, *operands, constants=(), opset=18, outputs=1, kinds=None, dims=None, **attributes):
    """Return a model of one node: `operands` are fed, `constants` follow as initialisers; None is left out."""
    names, feeds, fixed = [], {}, {}
    for i, operand in enumerate((*operands, *constants)):
        name = "" if operand is None else f"i{i}"
        names.append(name)
        if operand is not None:
            (feeds if i < len(operands) else fixed)[name] = operand
    results = [f"o{i}" for i in range(outputs)]
    node = helper.make_node(op, names, results, name=f"the/{op}", **attributes)
    return model_of([node], feeds, results, fixed, opset, dims, kinds), feeds


def convolved(op, x, *constants, opset=18, kinds=None, outputs=1, **attributes):
    """Return a model in which the operator meets a tensor with its channels last, and one more convolution follows."""
    channels = x.shape[1]
    kernel = numbers(channels, channels, *([1] * (x.ndim - 2)))
    fixed = {"k": kernel, **{f"c{i}": c for i, c in enumerate(constants) if c is not None}}
    names = ["h", *("" if c is None else f"c{i}" for i, c in enumerate(constants))]
    results = [f"o{i}" for i in range(outputs)]
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["h"], name="before"),
        helper.make_node(op, names, results, name="tested", **attributes),
    ]
    dims = {"x": ["n", channels, *x.shape[2:]]}
    return model_of(nodes, {"x": x}, results, fixed, opset, dims, kinds), {"x": x}


I64, F32, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
INTS = lambda *v: np.array(v, np.int64)  # noqa: E731

UNARY = ("Abs", "Acos", "Asin", "Atan", "Ceil", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish",
         "Identity", "LeakyRelu", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin",
         "Sinh", "Softplus", "Softsign", "Tan", "Tanh", "ThresholdedRelu", "Celu")  # fmt: skip


class TestElementwise:
    @pytest.mark.parametrize("op", UNARY)
    def test_unary(self, tmp_path, op):
        low, high = (-0.9, 0.9) if op in {"Acos", "Asin", "Tan"} else (-3, 3)
        agree(tmp_path, *single(op, numbers(2, 3, 4, low=low, high=high), opset=18))

    @pytest.mark.parametrize(
        ("op", "attributes"),
        [("LeakyRelu", {"alpha": 0.3}), ("Elu", {"alpha": 0.5}), ("Celu", {"alpha": 2.0}), ("Selu", {"alpha": 1.1}),
         ("HardSigmoid", {"alpha": 0.4, "beta": 0.3}), ("ThresholdedRelu", {"alpha": 0.2})],
    )  # fmt: skip
    def test_parameters(self, tmp_path, op, attributes):
        agree(tmp_path, *single(op, numbers(2, 5), **attributes))

    @pytest.mark.parametrize("how", ["none", "tanh"])
    def test_gelu(self, tmp_path, how):
        agree(tmp_path, *single("Gelu", numbers(3, 4), opset=20, approximate=how))

    @pytest.mark.parametrize("op", ["Sqrt", "Log"])
    def test_positive(self, tmp_path, op):
        agree(tmp_path, *single(op, numbers(2, 3, low=0.1, high=4)))

    @pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Sum", "Mean"])
    @pytest.mark.parametrize("shape", [(2, 3, 4, 4), (3, 1, 1), (4,), (1,)])
    def test_broadcast_beside_a_convolution(self, tmp_path, op, shape):
        agree(tmp_path, *convolved(op, numbers(2, 3, 4, 4), numbers(*shape, low=0.5)))

    def test_pow_of_mixed_types(self, tmp_path):
        agree(tmp_path, *single("Pow", numbers(2, 3, low=0.1), constants=(np.array(3, np.int64),)))

    @pytest.mark.parametrize("op", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
    def test_comparison(self, tmp_path, op):
        a, b = (RANDOM.integers(0, 3, (4, 5)).astype(np.float32) for _ in range(2))
        agree(tmp_path, *single(op, a, b, kinds={"o0": BOOL}))

    def test_integer_division_truncates(self, tmp_path):
        a, b = INTS(-7, 7, -7, 6), INTS(2, 2, -2, 3)
        agree(tmp_path, *single("Div", a, b, kinds={"o0": I64}))
        agree(tmp_path, *single("Mod", a, b, kinds={"o0": I64}))
        agree(tmp_path, *single("Mod", a, b, kinds={"o0": I64}, fmod=1))

    @pytest.mark.parametrize("bounds", [(0.0, 6.0), (-1.0, 1.0), (0.0, None), (None, 0.5)])
    def test_clip(self, tmp_path, bounds):
        operands = [None if b is None else np.array(b, np.float32) for b in bounds]
        agree(tmp_path, *convolved("Clip", numbers(1, 3, 4, 4, high=9), *operands))
        old = {k: v for k, v in zip(("min", "max"), bounds, strict=True) if v is not None}
        agree(tmp_path, *single("Clip", numbers(3, 4), opset=9, **old))

    def test_where_and_cast(self, tmp_path):
        condition = RANDOM.random((2, 3)) > 0.5
        agree(tmp_path, *single("Where", condition, numbers(2, 3), numbers(3)))
        agree(tmp_path, *single("Cast", numbers(2, 3), kinds={"o0": I64}, to=I64))


class TestConvolution:
    @pytest.mark.parametrize(
        ("groups", "attributes"),
        [(1, {"pads": [1, 1, 1, 1]}), (1, {"pads": [0, 1, 2, 1], "strides": [2, 2]}), (2, {"strides": [2, 1]}),
         (4, {"pads": [1, 1, 1, 1], "strides": [2, 2]}), (4, {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
         (4, {"dilations": [2, 2], "pads": [2, 2, 2, 2]}), (4, {"strides": [1, 2]}), (1, {"dilations": [2, 3]}),
         (1, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}), (1, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
         (2, {"auto_pad": "VALID"})],
    )  # fmt: skip
    def test_two_dimensional(self, tmp_path, groups, attributes):
        w, b = numbers(8, 4 // groups, 3, 3), numbers(8)
        model = single("Conv", numbers(2, 4, 9, 8), constants=(w, b), dims={"i0": ["n", 4, 9, 8]}, group=groups,
                       **attributes)  # fmt: skip
        agree(tmp_path, *model)

    def test_unknown_size_of_picture(self, tmp_path):
        for attributes in ({"pads": [1, 1, 1, 1]}, {"auto_pad": "SAME_LOWER", "strides": [2, 2]}):
            model = single("Conv", numbers(1, 3, 7, 6), constants=(numbers(2, 3, 3, 3),),
                           dims={"i0": [1, 3, "h", "w"]}, **attributes)  # fmt: skip
            agree(tmp_path, *model)

    @pytest.mark.parametrize("groups", [1, 2, 4])
    @pytest.mark.parametrize("dilation", [1, 2])
    def test_one_dimensional(self, tmp_path, groups, dilation):
        w = numbers(4, 4 // groups, 3)
        agree(tmp_path, *single("Conv", numbers(2, 4, 11), constants=(w,), group=groups, dilations=[dilation],
                                pads=[1, 2], strides=[2]))  # fmt: skip

    def test_three_dimensional(self, tmp_path):
        agree(tmp_path, *single("Conv", numbers(1, 4, 5, 6, 5), constants=(numbers(4, 2, 2, 3, 2), numbers(4)), group=2,
                                pads=[1, 0, 1, 0, 1, 0]))  # fmt: skip

    @pytest.mark.parametrize(
        "attributes",
        [{}, {"strides": [2, 2]}, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
         {"strides": [3, 2], "pads": [1, 0, 0, 1]}, {"dilations": [2, 1]}, {"group": 2, "strides": [2, 2]},
         {"strides": [4, 4]}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
         {"strides": [2, 2], "output_shape": [9, 10]}],
    )  # fmt: skip
    def test_transposed(self, tmp_path, attributes):
        w, b = numbers(4, 3, 3, 3), numbers(3 * attributes.get("group", 1))
        agree(tmp_path, *single("ConvTranspose", numbers(2, 4, 5, 5), constants=(w, b), dims={"i0": ["n", 4, 5, 5]},
                                **attributes))  # fmt: skip

    def test_transposed_one_dimensional(self, tmp_path):
        agree(tmp_path, *single("ConvTranspose", numbers(2, 4, 5), constants=(numbers(4, 3, 4),), strides=[2],
                                pads=[1, 1]))  # fmt: skip


class TestPooling:
    @pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_any_window(self, tmp_path, op, data):
        kernel = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=2))
        half = [st.integers(0, k // 2) for k in kernel]
        attributes = {
            "kernel_shape": kernel,
            "strides": data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=2)),
            "pads": [data.draw(h) for h in (*half, *half)],
            "ceil_mode": data.draw(st.integers(0, 1)),
        }
        if op == "AveragePool":
            attributes["count_include_pad"] = data.draw(st.integers(0, 1))
        dims = {"i0": [1, 2, *data.draw(st.sampled_from([(7, 9), ("h", "w")]))]}
        x = np.random.default_rng(1).normal(size=(1, 2, 7, 9)).astype(np.float32)
        agree(tmp_path, *single(op, x, dims=dims, **attributes))

    @pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
    @pytest.mark.parametrize("how", ["SAME_UPPER", "SAME_LOWER", "VALID"])
    def test_automatic_padding(self, tmp_path, op, how):
        agree(tmp_path, *single(op, numbers(1, 2, 8, 7), kernel_shape=[3, 2], strides=[2, 2], auto_pad=how))

    def test_one_and_three_dimensional(self, tmp_path):
        agree(tmp_path, *single("MaxPool", numbers(1, 2, 9), kernel_shape=[3], strides=[2], pads=[1, 1]))
        agree(tmp_path, *single("AveragePool", numbers(1, 2, 5, 6, 5), kernel_shape=[2, 2, 2], pads=[0, 1, 0, 0, 0, 1]))

    @pytest.mark.parametrize("op", ["GlobalAveragePool", "GlobalMaxPool"])
    def test_global(self, tmp_path, op):
        agree(tmp_path, *convolved(op, numbers(2, 3, 4, 5)))


class TestNormalization:
    @pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 4, 4), (1, 3, 2, 3, 2)])
    def test_batch(self, tmp_path, shape):
        vectors = [numbers(3), numbers(3), numbers(3), numbers(3, low=0.5)]
        agree(tmp_path, *single("BatchNormalization", numbers(*shape), constants=vectors, epsilon=0.01))

    def test_instance_layer_group(self, tmp_path):
        agree(tmp_path, *convolved("InstanceNormalization", numbers(2, 3, 4, 5), numbers(3), numbers(3)))
        agree(tmp_path, *single("LayerNormalization", numbers(2, 3, 4), constants=(numbers(4), numbers(4))))
        agree(tmp_path, *single("LayerNormalization", numbers(2, 3, 4), constants=(numbers(3, 4),), axis=1))
        agree(tmp_path, *single("GroupNormalization", numbers(2, 4, 3, 3), constants=(numbers(4), numbers(4)), opset=21,
                                num_groups=2))  # fmt: skip

    @pytest.mark.parametrize("size", [3, 5, 4])
    def test_across_channels(self, tmp_path, size):
        if size % 2 == 0:
            pytest.importorskip("onnxruntime")  # ONNX Runtime has odd windows only, so the definition is the judge
            x = numbers(1, 6, 2, 2)
            low, high = (size - 1) // 2, size - 1 - (size - 1) // 2
            total = np.stack([(x[:, max(0, c - low) : c + high + 1] ** 2).sum(1) for c in range(6)], 1)
            want = x / (1.0 + 0.1 / size * total) ** 0.75
            path = tmp_path / "l.onnx"
            model, _ = single("LRN", x, size=size, alpha=0.1)
            path.write_bytes(model.SerializeToString())
            (found,) = machinery._build(tf, machinery.read(path), "l", [tf.constant(x)], tf.constant)
            np.testing.assert_allclose(found.numpy(), want, rtol=1e-5)
            return
        agree(tmp_path, *convolved("LRN", numbers(1, 6, 4, 4), size=size, alpha=0.1, beta=0.6, bias=1.5))


REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
              "ReduceSum", "ReduceSumSquare")  # fmt: skip


class TestReduction:
    @pytest.mark.parametrize("op", REDUCTIONS)
    def test_axes_as_operand(self, tmp_path, op):
        agree(tmp_path, *single(op, numbers(2, 3, 4), constants=(INTS(0, -1),), keepdims=0))

    @pytest.mark.parametrize("keep", [0, 1])
    @pytest.mark.parametrize("axes", [(1,), (2, 3), (-1,), (0,), (1, 2, 3), (0, 2, 3)])
    def test_beside_a_convolution(self, tmp_path, axes, keep):
        agree(tmp_path, *convolved("ReduceMean", numbers(2, 3, 4, 5), INTS(*axes), keepdims=keep))
        agree(tmp_path, *convolved("ReduceMax", numbers(2, 3, 4, 5), opset=13, axes=list(axes), keepdims=keep))

    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_search(self, tmp_path, axis):
        for op in ("ArgMax", "ArgMin"):
            agree(tmp_path, *convolved(op, numbers(2, 3, 4, 5), axis=axis, keepdims=axis % 2, kinds={"o0": I64}))
        for largest in (0, 1):
            agree(tmp_path, *convolved("TopK", numbers(3, 3, 4, 5), INTS(2), axis=axis, largest=largest, outputs=2,
                                       kinds={"o1": I64}))  # fmt: skip

    @pytest.mark.parametrize("opset", [9, 13])
    @pytest.mark.parametrize("axis", [1, 2, -1])
    @pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
    def test_softmax_of_both_kinds(self, tmp_path, opset, axis, op):
        agree(tmp_path, *convolved(op, numbers(2, 3, 4, 5), opset=opset, axis=axis))

    def test_cumsum(self, tmp_path):
        agree(tmp_path, *single("CumSum", numbers(2, 5), constants=(np.array(1, np.int64),), exclusive=1, reverse=1))


class TestShape:
    @pytest.mark.parametrize("target", [(0, -1), (2, 3, 20), (-1,), (0, 0, -1), (2, 5, 3, 4)])
    def test_reshape_after_a_convolution(self, tmp_path, target):
        agree(tmp_path, *convolved("Reshape", numbers(2, 3, 4, 5), INTS(*target)))

    @pytest.mark.parametrize("axis", [0, 1, 2, 4, -1])
    def test_flatten(self, tmp_path, axis):
        agree(tmp_path, *convolved("Flatten", numbers(2, 3, 4, 5), axis=axis))

    @pytest.mark.parametrize("order", [(0, 2, 3, 1), (0, 3, 1, 2), (3, 2, 1, 0), (0, 1, 3, 2), (1, 0, 2, 3)])
    def test_transpose(self, tmp_path, order):
        agree(tmp_path, *convolved("Transpose", numbers(2, 3, 4, 5), perm=list(order)))

    def test_a_picture_given_channels_last_is_never_transposed(self, tmp_path):
        nodes = [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["t", "w"], ["c"]),
            helper.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
        ]
        x = numbers(1, 6, 6, 3)
        concrete = agree(tmp_path, model_of(nodes, {"x": x}, ["y"], {"w": numbers(4, 3, 3, 3)}), {"x": x})
        assert "Transpose" not in {op.type for op in concrete.graph.get_operations()}

    @pytest.mark.parametrize("axis", [0, 1, 3, -2])
    def test_concat_and_split(self, tmp_path, axis):
        other = numbers(2, 3, 4, 6) if axis == 3 else numbers(2, 3, 4, 4)
        agree(tmp_path, *convolved("Concat", numbers(2, 3, 4, 4), other, axis=axis))
        length = (2, 3, 4, 4)[axis]
        agree(tmp_path, *convolved("Split", numbers(2, 3, 4, 4), INTS(1, length - 1), axis=axis, outputs=2))

    def test_split_in_equal_and_unequal_parts(self, tmp_path):
        agree(tmp_path, *single("Split", numbers(6, 2), opset=13, outputs=3))
        agree(tmp_path, *single("Split", numbers(7, 2), outputs=3, num_outputs=3))

    @pytest.mark.parametrize(
        ("starts", "ends", "axes", "steps"),
        [((1,), (3,), (2,), (1,)), ((0, 1), (2**63 - 1, -1), (1, 3), (2, 1)), ((-1,), (-(2**63) + 1,), (2,), (-1,)),
         ((3,), (0,), (3,), (-2,)), ((-2,), (2**31 - 1,), (-1,), (1,)), ((5,), (-100,), (2,), (-1,))],
    )  # fmt: skip
    def test_slice(self, tmp_path, starts, ends, axes, steps):
        agree(tmp_path, *convolved("Slice", numbers(2, 3, 4, 5), *(INTS(*v) for v in (starts, ends, axes, steps))))

    @pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
    def test_pad(self, tmp_path, mode):
        agree(tmp_path, *convolved("Pad", numbers(2, 3, 4, 5), INTS(0, 1, 2, 1, 0, 0, 1, 2), mode=mode))

    def test_pad_with_a_value_axes_and_cuts(self, tmp_path):
        fill = np.array(3.5, np.float32)
        agree(tmp_path, *convolved("Pad", numbers(2, 3, 4, 5), INTS(1, -1, 2, -2), fill, INTS(2, 3)))
        agree(tmp_path, *single("Pad", numbers(2, 3), opset=9, pads=[0, 1, 2, 0], value=1.5))

    def test_squeeze_and_unsqueeze(self, tmp_path):
        agree(tmp_path, *single("Squeeze", numbers(2, 1, 3, 1), constants=(INTS(1, -1),)))
        agree(tmp_path, *single("Squeeze", numbers(2, 1, 3, 1)))
        agree(tmp_path, *single("Unsqueeze", numbers(2, 3), constants=(INTS(0, -1),)))
        nodes = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Squeeze", ["p", "a"], ["y"])]
        x = numbers(2, 3, 4, 4)
        agree(tmp_path, model_of(nodes, {"x": x}, ["y"], {"a": INTS(2, 3)}), {"x": x})

    @pytest.mark.parametrize("axis", [0, 1, -1])
    def test_gather(self, tmp_path, axis):
        agree(tmp_path, *convolved("Gather", numbers(2, 3, 4, 5), np.array([[1, -1], [0, 1]], np.int64), axis=axis))
        agree(tmp_path, *single("Gather", numbers(2, 3), constants=(np.array(-1, np.int64),), axis=axis))
        agree(tmp_path, *single("GatherElements", numbers(2, 3), np.array([[0, -1, 1]], np.int64), axis=axis))

    def test_gather_and_scatter_by_points(self, tmp_path):
        points = np.array([[0, 1], [1, -1]], np.int64)
        agree(tmp_path, *single("GatherND", numbers(2, 3, 4), points))
        agree(tmp_path, *single("ScatterND", numbers(2, 3, 4), points, numbers(2, 4)))

    def test_expand_tile_range_onehot_trilu_nonzero(self, tmp_path):
        agree(tmp_path, *single("Expand", numbers(3, 1), constants=(INTS(2, 1, 4),)))
        agree(tmp_path, *single("Expand", numbers(3, 4), constants=(INTS(1, 1),)))
        agree(tmp_path, *single("Tile", numbers(2, 3), constants=(INTS(2, 1),)))
        agree(tmp_path, *single("Range", *(np.array(v, np.int64) for v in (1, 9, 3)), kinds={"o0": I64}))
        agree(tmp_path, *single("OneHot", INTS(0, 2, -1), constants=(INTS(3), np.array([0.5, 2], np.float32))))
        agree(tmp_path, *single("Trilu", numbers(2, 3, 4), upper=0))
        agree(tmp_path, *single("NonZero", np.array([[1, 0], [0, 2]], np.float32), kinds={"o0": I64}))

    @pytest.mark.parametrize("mode", ["DCR", "CRD"])
    def test_depth_and_space(self, tmp_path, mode):
        agree(tmp_path, *convolved("DepthToSpace", numbers(1, 8, 2, 3), blocksize=2, mode=mode))
        agree(tmp_path, *convolved("SpaceToDepth", numbers(1, 2, 4, 6), blocksize=2))

    def test_shape_arithmetic_of_an_unknown_batch(self, tmp_path):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Shape", ["c"], ["s"]),
            helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
            helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
            helper.make_node("Concat", ["n1", "rest"], ["t"], axis=0),
            helper.make_node("Reshape", ["c", "t"], ["y"]),
            helper.make_node("ConstantOfShape", ["s"], ["z"], value=helper.make_tensor("v", F32, [1], [2.0])),
        ]
        fixed = {"w": numbers(4, 3, 1, 1), "zero": np.array(0, np.int64), "axes": INTS(0), "rest": INTS(4, -1)}
        model = model_of(nodes, {"x": numbers(3, 3, 2, 2)}, ["y", "z", "s"], fixed, dims={"x": ["n", 3, 2, 2]},
                         kinds={"s": I64})  # fmt: skip
        agree(tmp_path, model, {"x": numbers(3, 3, 2, 2)})


class TestLinear:
    @pytest.mark.parametrize(
        "shapes", [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((3,), (3, 4)), ((2, 3), (3,)), ((3,), (3,))]
    )
    def test_matmul(self, tmp_path, shapes):
        agree(tmp_path, *single("MatMul", numbers(*shapes[0]), numbers(*shapes[1])))

    @pytest.mark.parametrize("turns", [(0, 0), (0, 1), (1, 0), (1, 1)])
    def test_gemm(self, tmp_path, turns):
        a, b = numbers(*((3, 2) if turns[0] else (2, 3))), numbers(*((4, 3) if turns[1] else (3, 4)))
        given = {"transA": turns[0], "transB": turns[1]}
        agree(tmp_path, *single("Gemm", a, b, numbers(4), alpha=0.5, beta=2.0, **given))
        agree(tmp_path, *single("Gemm", a, constants=(b, numbers(2, 1)), alpha=0.5, **given))
        agree(tmp_path, *single("Gemm", a, constants=(b, numbers(4)), **given))

    def test_einsum(self, tmp_path):
        agree(tmp_path, *single("Einsum", numbers(2, 3, 4), numbers(2, 4, 5), equation="bij,bjk->bik"))


class TestResize:
    @pytest.mark.parametrize("place", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
    @pytest.mark.parametrize("mode", ["nearest", "linear"])
    @pytest.mark.parametrize("sizes", [(1, 2, 9, 5), (1, 2, 3, 8), (1, 2, 1, 4)])
    def test_to_sizes(self, tmp_path, place, mode, sizes):
        agree(tmp_path, *single("Resize", numbers(1, 2, 5, 4), constants=(None, None, INTS(*sizes)), mode=mode,
                                coordinate_transformation_mode=place))  # fmt: skip

    @pytest.mark.parametrize("how", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
    def test_by_scales(self, tmp_path, how):
        scales = np.array([1, 1, 2, 1.5], np.float32)
        agree(tmp_path, *convolved("Resize", numbers(2, 3, 5, 4), None, scales, mode="nearest", nearest_mode=how))

    def test_upsample_of_old(self, tmp_path):
        agree(
            tmp_path, *single("Upsample", numbers(1, 2, 3, 3), constants=(np.array([1, 1, 2, 2], np.float32),), opset=9)
        )


class TestRefusal:
    def test_all_unsupported_operators_are_named_at_once(self, tmp_path):
        branch = helper.make_graph(
            [helper.make_node("Constant", [], ["z"], value=numpy_helper.from_array(np.zeros(2, np.float32)))],
            "b", [], [helper.make_tensor_value_info("z", F32, [2])],
        )  # fmt: skip
        nodes = [
            helper.make_node("If", ["c"], ["p"], name="x", then_branch=branch, else_branch=branch),
            helper.make_node("If", ["c"], ["q"], name="y", then_branch=branch, else_branch=branch),
            helper.make_node("Det", ["a"], ["d"], name="w"),
            helper.make_node("MaxPool", ["m"], ["r", "i"], name="pool", kernel_shape=[1, 1]),
        ]
        feeds = {"c": np.array(True), "a": numbers(2, 2), "m": numbers(1, 1, 2, 2)}
        path = tmp_path / "bad.onnx"
        model = model_of(nodes, feeds, ["p", "q", "d", "r", "i"], kinds={"i": I64})
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ConversionError) as caught:
            convert(files_of(path), tmp_path / "out", example=feeds)
        assert "3 operators have no TensorFlow form yet: Det (1 node, first 'w'), If (2 nodes, first 'x'), " in str(
            caught.value
        )
        assert "MaxPool with indices as output (1 node, first 'pool')" in str(caught.value)
        assert not (tmp_path / "out").exists()

    def test_not_onnx(self, tmp_path):
        path = tmp_path / "no.onnx"
        path.write_bytes(b"\xff\xffnothing")
        with pytest.raises(ConversionError, match="not a valid ONNX model"):
            convert(files_of(path), tmp_path / "out", example={})


class TestSavedModel:
    """What is written, opened by the backend."""

    def save(self, tmp_path):
        nodes = [
            helper.make_node("Conv", ["gpu_0/data", "w"], ["c"], name="/stem:0/Conv"),
            helper.make_node("GlobalAveragePool", ["c"], ["p"], name="pool"),
            helper.make_node("Flatten", ["p"], ["zz/flat"], name="flat"),
            helper.make_node("Neg", ["zz/flat"], ["a/negated"], name="neg"),
        ]
        x = numbers(2, 3, 8, 8)
        model = model_of(nodes, {"gpu_0/data": x}, ["zz/flat", "a/negated"], {"w": numbers(16, 3, 3, 3)},
                         dims={"gpu_0/data": ["batch", 3, 8, 8]})  # fmt: skip
        path = tmp_path / "m.onnx"
        path.write_bytes(model.SerializeToString())
        made = convert(files_of(path), tmp_path / "saved", example={"gpu_0/data": x})
        return path, made, x

    @pytest.mark.parametrize("limit", [1 << 40, 0])
    def test_names_order_symbols_and_scopes_survive(self, tmp_path, monkeypatch, limit):
        monkeypatch.setattr(machinery, "_CONSTANTS_LIMIT", limit)
        path, made, _ = self.save(tmp_path)
        json.dumps(made)
        files = ModelFiles(name="m", format="saved_model", path=tmp_path / "saved", digest="sha256:" + "0" * 64)
        want = run_onnxruntime(path, {"gpu_0/data": (x := numbers(5, 3, 8, 8))})
        for level in ("model", "layer"):
            with TensorFlowBackend().open(files, SessionOptions(level=level)) as session:
                assert [s.describe() for s in session.inputs] == ["gpu_0/data: float32[batch, 3, 8, 8]"]
                assert [s.name for s in session.outputs] == ["zz/flat", "a/negated"]
                found = session.predict({"gpu_0/data": x})
                assert list(found) == ["zz/flat", "a/negated"]
                for name, array in found.items():
                    np.testing.assert_allclose(array, want[name], rtol=1e-4, atol=1e-5)
                if level == "layer":
                    session.begin_trace()
                    session.predict({"gpu_0/data": x})
                    table = session.end_trace().layers
                    assert "/stem:0/Conv" in table.scope
        loaded = tf.saved_model.load(str(tmp_path / "saved"))
        assert bool(loaded.signatures["serving_default"].variables) == (limit == 0)

    def test_target_must_be_empty(self, tmp_path):
        (tmp_path / "saved").mkdir()
        (tmp_path / "saved" / "mine").touch()
        with pytest.raises(ConversionError, match="not empty"):
            self.save(tmp_path)


@given(st.text(max_size=40))
def test_scopes_are_what_tensorflow_takes(name):
    with tf.Graph().as_default(), tf.name_scope(scope_name(name) + "/"):
        tf.constant(1.0)


def with_random_weights(name: str):
    """Return a network of the onnx package with drawn weights; its own are all alike, so that all scores are equal."""
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    random = np.random.default_rng(7)
    shapes = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    roles = {n.input[i]: i for n in model.graph.node if n.op_type == "BatchNormalization" for i in range(1, 5)}
    model.ir_version = 8  # from 4 on, weights need not be inputs too
    if model.graph.node[-1].op_type == "Softmax":  # which drawn weights drive to a single 1, hiding every difference
        model.graph.output[0].name = model.graph.node.pop().input[0]
    kept, drawn = [], {}
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = [int(d) for d in shapes[node.input[0]]]
        fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 0
        scale = (2.0 / fan_in) ** 0.5 if fan_in else 0.05
        array = random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        role = roles.get(node.output[0])
        drawn[node.output[0]] = np.abs(array) + 1 if role in {1, 4} else array
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in drawn.items())
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_agree_with_onnxruntime(tmp_path, name):
    model = with_random_weights(name)
    path = tmp_path / f"{name}.onnx"
    path.write_bytes(model.SerializeToString())
    graph = machinery.read(path)
    x = np.random.default_rng(5).standard_normal((1, 3, 224, 224), dtype=np.float32)
    ((output, want),) = run_onnxruntime(path, {graph.inputs[0].name: x}).items()

    def build(t):
        return machinery._build(tf, graph, path.name, [t], tf.convert_to_tensor)

    # a graph with hundreds of megabytes of constants takes minutes to make; the same operations run one by one too
    large = machinery._weight_bytes(graph) > 150_000_000
    (found,) = (build if large else tf.function(build, autograph=False))(tf.constant(x))
    assert found.shape == want.shape
    assert want.std() > 0, output
    assert np.abs(found.numpy() - want).max() <= 1e-3 * np.abs(want).max()
