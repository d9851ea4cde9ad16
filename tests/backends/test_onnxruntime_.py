"""ONNX Runtime against the contract, and what only it has: providers, external data, control flow, odd types."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mlscope_lab.backends import load_backend
from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.onnxruntime_ import OnnxRuntimeBackend
from mlscope_lab.errors import (
    BackendNotAvailableError,
    InputError,
    SessionError,
    UnsafeArtifactError,
    UnsupportedModelError,
)
from mlscope_lab.testing import BackendContract, check_layer_trace

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
ONE = SessionOptions(threads=1)


def files_of(path: Path, name: str = "") -> ModelFiles:
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    return ModelFiles(name=name or path.stem, format="onnx", path=path, digest=digest)


def value(name, kind, shape):
    return helper.make_tensor_value_info(name, kind, shape)


def save(folder: Path, nodes, inputs, outputs, *, initializers=(), name="model", opset=17, domains=()) -> ModelFiles:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializer=list(initializers))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    path = folder / f"{name}.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=imports, ir_version=9).SerializeToString())
    return files_of(path)


def float_in(shape=(2, 3), name="x"):
    return value(name, TensorProto.FLOAT, list(shape))


class TestContract(BackendContract):
    """A small classifier of our own, its outputs computed by numpy."""

    @pytest.fixture
    def backend(self):
        return OnnxRuntimeBackend()

    @pytest.fixture
    def weights(self):
        random = np.random.default_rng(0)
        return [random.normal(size=s).astype(np.float32) for s in ((16, 32), (32,), (32, 5))]

    @pytest.fixture
    def model_files(self, tmp_path, weights):
        names = ("w1", "b1", "w2")
        nodes = [
            helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
            helper.make_node("Add", ["h", "b1"], ["hb"], name="bias"),
            helper.make_node("Erf", ["hb"], ["a"], name="activation"),
            helper.make_node("MatMul", ["a", "w2"], ["logits"], name="second"),
            helper.make_node("Softmax", ["logits"], ["scores"], name="softmax"),
        ]
        return save(
            tmp_path,
            nodes,
            [value("x", TensorProto.FLOAT, ["batch", 16])],
            [value("scores", TensorProto.FLOAT, ["batch", 5]), value("logits", TensorProto.FLOAT, ["batch", 5])],
            initializers=[numpy_helper.from_array(w, n) for n, w in zip(names, weights, strict=True)],
        )

    @pytest.fixture
    def feeds(self):
        return {"x": np.random.default_rng(1).normal(size=(3, 16)).astype(np.float32)}

    @pytest.fixture
    def expected(self, feeds, weights):
        from math import erf

        w1, b1, w2 = weights
        logits = (np.vectorize(erf)(feeds["x"] @ w1 + b1) @ w2).astype(np.float32)
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        return {"scores": e / e.sum(axis=1, keepdims=True), "logits": logits}


class TestContractOnSqueezeNet(BackendContract):
    """A published architecture with the reference output that comes with it."""

    rtol = 1e-3

    @pytest.fixture
    def backend(self):
        return load_backend("onnxruntime")

    @pytest.fixture
    def model_files(self):
        return files_of(LIGHT / "light_squeezenet.onnx")

    @pytest.fixture
    def feeds(self):
        return {"data_0": reference_input((1, 3, 224, 224))}

    @pytest.fixture
    def expected(self):
        return {"softmaxout_1": reference_output("squeezenet")}


def reference_input(shape):
    """The ramp that the onnx package's own test runner feeds to its light models."""
    n = int(np.prod(shape))
    return (np.arange(n) / n).astype(np.float32).reshape(shape)


def reference_output(model):
    tensor = TensorProto()
    tensor.ParseFromString((LIGHT / f"light_{model}_output_0.pb").read_bytes())
    return numpy_helper.to_array(tensor)


@pytest.mark.parametrize("model", ["resnet50", "shufflenet", "inception_v1"])
def test_real_architectures_match_their_reference_and_trace(model, tmp_path):
    files = files_of(LIGHT / f"light_{model}.onnx")
    with OnnxRuntimeBackend().open(files, SessionOptions(threads=1, level="layer", scratch=tmp_path)) as session:
        feeds = {session.inputs[0].name: reference_input(session.inputs[0].shape)}
        session.begin_trace()
        for _ in range(5):
            outputs = session.predict(feeds)
        trace = session.end_trace()
    np.testing.assert_allclose(next(iter(outputs.values())), reference_output(model), rtol=1e-3, atol=1e-7)
    check_layer_trace(trace, iterations=5)
    assert session.precision == "float32"
    assert len(trace.layers) > 30
    assert any(t in {"Conv", "FusedConv"} for t in trace.layers.type)
    covered = trace.exclusive_ns.sum(axis=1) / trace.iteration_duration_ns
    # of the least disturbed predict: on a busy machine the process may be set aside between two nodes
    assert covered.max() > 0.5, "most of a convolutional network's time is in its nodes"
    assert list(tmp_path.iterdir()) == [], "the profile is removed"


def test_fused_convolutions_name_their_sources(tmp_path):
    with OnnxRuntimeBackend().open(
        files_of(LIGHT / "light_shufflenet.onnx"), SessionOptions(threads=1, level="layer")
    ) as session:
        session.begin_trace()
        session.predict({session.inputs[0].name: reference_input(session.inputs[0].shape)})
        layers = session.end_trace().layers
    sources = dict(zip(layers.name, layers.sources, strict=True))
    assert sources["n8"] == "", "a transpose that runs as it stands in the file is no fusion"
    fused = {n: s for n, s in sources.items() if s}
    assert fused, "convolution, batch normalisation and activation are fused at the default level"
    operators = {n.name: n.op_type for n in onnx.load(LIGHT / "light_shufflenet.onnx").graph.node if n.name}
    for name, names in fused.items():
        chain = [operators[n] for n in names.split(";")]
        assert chain[0] in {"Conv", "MaxPool", "AveragePool"}, (name, chain)
        assert set(chain[1:]) <= {"BatchNormalization", "Relu", "Add", "Mul"}, (name, chain)


# -- specs and element types -----------------------------------------------------------------------------------


def test_symbolic_and_unknown_dims_are_kept(tmp_path):
    files = save(
        tmp_path,
        [helper.make_node("Relu", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["batch", None, 4])],
        [value("y", TensorProto.FLOAT, ["batch", None, 4])],
    )
    with OnnxRuntimeBackend().open(files, ONE) as session:
        assert session.inputs[0].shape == ("batch", None, 4)
        with pytest.raises(InputError, match="axis 2 must be 4, not 5"):
            session.predict({"x": np.zeros((1, 2, 5), np.float32)})


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT16, "float16"),
        (TensorProto.DOUBLE, "float64"),
        (TensorProto.INT8, "int8"),
        (TensorProto.UINT8, "uint8"),
        (TensorProto.INT32, "int32"),
        (TensorProto.INT64, "int64"),
        (TensorProto.BOOL, "bool"),
    ],
)
def test_element_types_map_to_numpy(tmp_path, kind, dtype):
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    files = save(tmp_path, nodes, [value("x", kind, [2])], [value("y", kind, [2])])
    given = np.array([1, 0], dtype=dtype)
    with OnnxRuntimeBackend().open(files, ONE) as session:
        assert session.inputs[0].dtype == session.outputs[0].dtype == dtype
        have = session.predict({"x": given})["y"]
        assert have.dtype == given.dtype
        np.testing.assert_array_equal(have, given)
        with pytest.raises(InputError, match="'x'"):
            session.predict({"x": given.astype(np.float32 if dtype != "float32" else np.int8)})


def test_strings_go_in_and_out(tmp_path):
    files = save(
        tmp_path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [value("x", TensorProto.STRING, [2])],
        [value("y", TensorProto.STRING, [2])],
    )
    with OnnxRuntimeBackend().open(files, ONE) as session:
        assert session.inputs[0].dtype == "str"
        for given in (np.array(["a", "bé"], dtype=object), np.array(["a", "bé"])):
            assert session.predict({"x": given})["y"].tolist() == ["a", "bé"]


def test_zipmap_becomes_an_array(tmp_path):
    nodes = [helper.make_node("ZipMap", ["x"], ["p"], domain="ai.onnx.ml", classlabels_int64s=[7, 3, 5])]
    kind = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    files = save(tmp_path, nodes, [float_in((2, 3))], [helper.make_value_info("p", kind)], domains=("ai.onnx.ml",))
    with OnnxRuntimeBackend().open(files, ONE) as session:
        have = session.predict({"x": np.array([[0.7, 0.3, 0.5], [1, 2, 3]], np.float32)})["p"]
    np.testing.assert_array_equal(have, np.array([[0.3, 0.5, 0.7], [2, 3, 1]], np.float32))


def test_sequence_of_unlike_tensors_is_refused_in_words(tmp_path):
    nodes = [helper.make_node("SequenceConstruct", ["x", "z"], ["s"])]
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    files = save(tmp_path, nodes, [float_in((2,)), float_in(("n",), "z")], [helper.make_value_info("s", kind)])
    with OnnxRuntimeBackend().open(files, ONE) as session:
        with pytest.raises(SessionError, match="different shapes"):
            session.predict({"x": np.zeros(2, np.float32), "z": np.zeros(3, np.float32)})
        assert session.predict({"x": np.zeros(2, np.float32), "z": np.ones(2, np.float32)})["s"].shape == (2, 2)


def test_precision_is_that_of_most_weights(tmp_path):
    quantised = numpy_helper.from_array(np.ones((64, 64), np.int8), "q")
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    outputs = [value("y", TensorProto.FLOAT, [1, 64])]
    files = save(tmp_path, nodes, [float_in((1, 64))], outputs, initializers=[quantised, scale])
    with OnnxRuntimeBackend().open(files, ONE) as session:
        assert session.precision == "int8"


# -- devices, threads, digests ---------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_no_silent_fallback():
    import onnxruntime

    files = files_of(LIGHT / "light_squeezenet.onnx")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has the CUDA provider")
    with pytest.raises(BackendNotAvailableError, match="onnxruntime-gpu"):
        OnnxRuntimeBackend().open(files, SessionOptions(device="cuda:0"))
    with pytest.raises(InputError, match="'cuda:N'"):
        OnnxRuntimeBackend().open(files, SessionOptions(device="tpu"))


def test_provider_that_falls_back_is_refused(monkeypatch):
    """A GPU build lists CUDA and falls back by itself; asking such a build without a driver must fail."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this build has the CUDA provider")
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(BackendNotAvailableError, match="fell back to CPUExecutionProvider"),
    ):
        OnnxRuntimeBackend().open(files_of(LIGHT / "light_squeezenet.onnx"), SessionOptions(device="cuda:0"))


def test_threads_reach_onnxruntime():
    with OnnxRuntimeBackend().open(files_of(LIGHT / "light_squeezenet.onnx"), SessionOptions(threads=2)) as session:
        settings = session._session.get_session_options()
        assert settings.intra_op_num_threads == session.threads == 2
        assert settings.inter_op_num_threads == 1


def test_digest_differs_by_model_and_not_by_threads():
    backend = OnnxRuntimeBackend()
    digests = []
    for model, threads in (("squeezenet", 1), ("squeezenet", 2), ("zfnet512", 1)):
        with backend.open(files_of(LIGHT / f"light_{model}.onnx"), SessionOptions(threads=threads)) as session:
            digests.append(session.executable_digest)
    assert digests[0] == digests[1] != digests[2]


def test_random_operators_repeat_by_seed(tmp_path):
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["y"])]
    files = save(tmp_path, nodes, [float_in((8,))], [value("y", TensorProto.FLOAT, [8])])
    drawn = []
    for seed in (1, 1, 2):
        with OnnxRuntimeBackend().open(files, SessionOptions(threads=1, seed=seed)) as session:
            drawn.append(session.predict({"x": np.zeros(8, np.float32)})["y"])
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


# -- external data ---------------------------------------------------------------------------------------------


def external(folder: Path, location: str) -> ModelFiles:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1024], data_location=TensorProto.EXTERNAL)
    entry = weight.external_data.add()
    entry.key, entry.value = "location", location
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    outputs = [value("y", TensorProto.FLOAT, [1024])]
    return save(folder, nodes, [float_in((1024,))], outputs, initializers=[weight])


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.bin"
    path.write_bytes(np.arange(1024, dtype=np.float32).tobytes())
    return path


@pytest.mark.parametrize("location", ["weights.bin", "sub/weights.bin", "./sub/../weights.bin"])
def test_external_data_beside_the_model_is_read(tmp_path, secret, location):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / location).write_bytes(secret.read_bytes())
    with OnnxRuntimeBackend().open(external(folder, location), ONE) as session:
        np.testing.assert_array_equal(session.predict({"x": np.zeros(1024, np.float32)})["y"], np.arange(1024.0))


@pytest.mark.parametrize("how", ["parent", "absolute", "symlink", "detour", "linked folder"])
def test_external_data_elsewhere_is_refused(tmp_path, secret, how):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    location = {
        "parent": "../secret.bin",
        "absolute": str(secret),
        "symlink": "link.bin",
        "detour": "sub/../../secret.bin",
        "linked folder": "linked/secret.bin",
    }[how]
    with pytest.raises(UnsafeArtifactError, match="outside"):
        OnnxRuntimeBackend().open(external(folder, location), ONE)


def test_missing_external_data_is_an_unsupported_model(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"nowhere\.bin"):
        OnnxRuntimeBackend().open(external(tmp_path, "nowhere.bin"), ONE)


# -- traces ----------------------------------------------------------------------------------------------------


@pytest.fixture
def branching(tmp_path):
    """If, then a Loop, then a node that shares its name with nodes of both branches; some nodes have no name."""
    then = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t1"], name="same"), helper.make_node("MatMul", ["t1", "x"], ["t2"])],
        "then", [], [value("t2", TensorProto.FLOAT, None)],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Sigmoid", ["x"], ["e1"], name="same"), helper.make_node("MatMul", ["e1", "x"], ["e2"])],
        "other", [], [value("e2", TensorProto.FLOAT, None)],
    )  # fmt: skip
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["acc", "x"], ["acc2"]),
            helper.make_node("Tanh", ["acc2"], ["acc3"], name='we"ird\\name'),
            helper.make_node("Identity", ["c"], ["c2"], name="go_on"),
        ],
        "body",
        [value("i", TensorProto.INT64, []), value("c", TensorProto.BOOL, []), value("acc", TensorProto.FLOAT, None)],
        [value("c2", TensorProto.BOOL, []), value("acc3", TensorProto.FLOAT, None)],
    )
    return save(
        tmp_path,
        [
            helper.make_node("If", ["cond"], ["y1"], then_branch=then, else_branch=other),
            helper.make_node("Loop", ["n", "", "y1"], ["y2"], body=body, name="loop"),
            helper.make_node("Exp", ["y2"], ["y"], name="same"),
        ],
        [float_in((96, 96)), value("cond", TensorProto.BOOL, []), value("n", TensorProto.INT64, [])],
        [value("y", TensorProto.FLOAT, [96, 96])],
    )


def branch_feeds(cond, n=3):
    x = np.random.default_rng(0).normal(size=(96, 96)).astype(np.float32)
    return {"x": x, "cond": np.array(cond), "n": np.array(n)}


def test_bodies_of_control_flow_are_children(branching):
    with OnnxRuntimeBackend().open(branching, SessionOptions(threads=1, level="layer")) as session:
        session.predict(branch_feeds(True))
        session.begin_trace()
        for cond, n in ((True, 3), (False, 3), (True, 2)):
            session.predict(branch_feeds(cond, n))
        trace = session.end_trace()
    check_layer_trace(trace, iterations=3)
    table = trace.layers
    row = {name: i for i, name in enumerate(table.name)}
    assert table.type[row["If_0"]] == "If", "an unnamed node gets ONNX Runtime's operator_index"
    parents = {name: table.name[p] if p >= 0 else "" for name, p in zip(table.name, table.parent, strict=True)}
    assert parents["If_0"] == parents["loop"] == ""
    loop = [name for name, parent in parents.items() if parent == "loop"]
    assert sorted(table.type[row[name]] for name in loop) == ["Identity"] * 3 + ["MatMul"] * 3 + ["Tanh"] * 3
    assert {'we"ird\\name', 'we"ird\\name#2', 'we"ird\\name#3'} <= set(loop)
    branch = {name: table.type[row[name]] for name, parent in parents.items() if parent == "If_0"}
    assert sorted(branch.values()) == ["MatMul", "MatMul", "Relu", "Sigmoid"]
    relu = row[next(name for name, kind in branch.items() if kind == "Relu")]
    assert (trace.start_ns[:, relu] >= 0).tolist() == [True, False, True]
    third = row['we"ird\\name#3']
    assert (trace.start_ns[:, third] >= 0).tolist() == [True, True, False]
    ran = trace.start_ns >= 0
    inclusive = np.where(ran, trace.duration_ns, 0).sum(axis=1)
    exclusive = np.where(ran, trace.exclusive_ns, 0).sum(axis=1)
    assert (exclusive < inclusive).all()
    assert [table.type[i] for i, d in enumerate(table.depth) if d == 0] == ["If", "Loop", "Exp"]


def test_shapes_and_bytes_are_told(branching):
    with OnnxRuntimeBackend().open(branching, SessionOptions(threads=1, level="layer")) as session:
        session.begin_trace()
        session.predict(branch_feeds(True))
        table = session.end_trace().layers
    last = table.type.index("Exp")
    assert table.input_shapes[last] == table.output_shapes[last] == "float32[96,96]"
    assert table.activation_bytes[last] == 96 * 96 * 4
    assert table.parameter_bytes[last] == 0
    assert table.input_shapes[table.type.index("Loop")].split(";")[-1] == "float32[96,96]"


def test_trace_without_scratch_leaves_no_files(branching, tmp_path, monkeypatch):
    import tempfile

    empty = tmp_path / "temporary"
    empty.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(empty))
    session = OnnxRuntimeBackend().open(branching, SessionOptions(threads=1, level="layer"))
    assert list(empty.iterdir())
    session.predict(branch_feeds(True))
    session.close()
    assert list(empty.iterdir()) == []
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(branching.path.read_bytes().replace(b"MatMul", b"NatMul"))
    with pytest.raises(UnsupportedModelError, match="NatMul"):
        OnnxRuntimeBackend().open(files_of(broken), SessionOptions(level="layer"))
    assert list(empty.iterdir()) == []


def test_clock_is_on_perf_counter_within_its_error(branching):
    with OnnxRuntimeBackend().open(branching, SessionOptions(threads=1, level="layer")) as session:
        session.begin_trace()
        for _ in range(20):
            before = time.perf_counter_ns()
            session.predict(branch_feeds(True))
        trace = session.end_trace()
    assert trace.clock_error_ns < 1_000_000
    assert trace.resolution_ns == 1000
    first = trace.start_ns[-1][trace.start_ns[-1] >= 0].min()
    assert first + trace.resolution_ns + trace.clock_error_ns >= before


def test_module_scopes_of_torch_exports_are_read(tmp_path):
    nodes = [helper.make_node("Exp", ["x"], ["h"], name="node_exp"), helper.make_node("Erf", ["h"], ["y"], name="e")]
    nodes[0].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'body', 'body.0', 'exp']")
    files = save(tmp_path, nodes, [float_in()], [value("y", TensorProto.FLOAT, [2, 3])])
    with OnnxRuntimeBackend().open(files, SessionOptions(threads=1, level="layer")) as session:
        session.begin_trace()
        session.predict({"x": np.ones((2, 3), np.float32)})
        table = session.end_trace().layers
    assert dict(zip(table.name, table.scope, strict=True)) == {"node_exp": "body.0", "e": ""}


def test_import_stays_light():
    code = "import sys, mlscope_lab.backends.onnxruntime_; print('onnxruntime' in sys.modules, 'onnx' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
