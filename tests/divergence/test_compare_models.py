"""`ml.compare` on frameworks: small models whose every difference is planted."""

import warnings

import numpy as np
import pytest

import mlscope_lab as ml
from mlscope_lab.errors import ComparisonError, InputError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

X = np.random.default_rng(3).standard_normal((1, 3, 12, 12)).astype(np.float32)


class Net(torch.nn.Module):
    """Two convolutions with normalisation, a residual, a pooled answer."""

    def __init__(self, slope=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.second = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 5)
        self.slope = slope
        self.eval()
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.3, 0.3)
            self.norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x):
        h = torch.relu(self.norm(self.first(x)))
        g = torch.nn.functional.leaky_relu(self.second(h), self.slope)
        return self.head((g + h).mean(dim=(2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The network as an ONNX file, by the project's own way of exporting."""
    path = tmp_path_factory.mktemp("exported") / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own use of torch.export
        torch.onnx.export(Net(), (torch.from_numpy(X),), path, input_names=["x"], output_names=["y"], dynamo=True,
                          dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def module():
    return Net()


def test_a_clean_export_agrees_layer_by_layer(exported, module):
    found = ml.compare({"model": module}, {"model": str(exported)}, X, save=False)
    assert not found.diverges
    assert found.culprit is None
    aligned = found.tree.attrs["alignment"]
    assert aligned["paired_a"] == aligned["compute_a"] == 3
    assert all(seen["equal"] for seen in found.tree.attrs["observer_effect"])
    pairs = found.pairs()
    assert (pairs["max_abs_error"] <= pairs["atol"]).all()


def test_another_activation_is_found_and_blamed(exported):
    found = ml.compare({"model": str(exported)}, {"model": Net(slope=0.1)}, X, save=False, provenance=False)
    assert "leaky_relu" in found.first_divergent["types_b"]
    assert "leaky_relu" in found.culprit["types_b"]
    assert found.culprit["injected_max_abs"] > 100 * found.culprit["injected_tolerance"]
    head = found.pairs().iloc[-1]
    assert head["diverges"] == 1
    assert head["injects"] == 0  # it inherits


def test_a_nan_is_followed_to_where_it_is_born(exported):
    broken = Net()
    with torch.no_grad():
        broken.second.weight[2, 1, 0, 0] = float("inf")
    found = ml.compare({"model": str(exported)}, {"model": broken}, X, save=False)
    assert "second" in found.culprit["scope"]
    assert found.culprit["nan_b"] + found.culprit["inf_b"] > 0
    assert found.first_divergent["pair"] == found.culprit["pair"]


def test_the_repro_shows_the_difference_by_itself(exported, tmp_path):
    import onnxruntime

    broken = Net()
    with torch.no_grad():
        broken.second.bias[3] += 0.5
    found = ml.compare({"model": broken}, {"model": str(exported)}, X, save=False, repro=tmp_path / "repro")
    said = found.tree.attrs["repro"]
    assert said["side"] == "b"
    assert said["max_abs"] == pytest.approx(0.5, rel=0.01)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(tmp_path / "repro" / "part.onnx", settings)
    expected = np.load(tmp_path / "repro" / "expected.npz")
    (result,) = session.run(None, dict(np.load(tmp_path / "repro" / "inputs.npz")))
    assert np.abs(result - expected[expected.files[0]]).max() == pytest.approx(said["max_abs"], rel=1e-5)
    agree = ml.compare({"model": Net()}, {"model": str(exported)}, X, save=False, repro=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert any("no repro was written" in w for w in agree.tree.attrs["warnings"])


def test_lower_precision_is_measured_and_bisected(exported):
    found = ml.compare(
        {"model": str(exported), "graph_optimization": "none"},
        {"model": str(exported), "graph_optimization": "none", "precision": "float16"}, X, save=False,
    )  # fmt: skip
    errors = found.pairs().set_index("value_a")["l2_relative"]
    assert 1e-5 < errors.iloc[-1] < 1e-2
    result = ml.bisect_precision({"model": str(exported)}, {"model": str(exported), "precision": "float16"}, X)
    assert result.attrs["holds"]
    assert not result["must_stay"].any()


def test_a_batch_says_the_same_of_each_sample_as_one_at_a_time(exported):
    samples = [X[0], -X[0], 2 * X[0], X[0] * 0.5]
    sides = {"model": str(exported), "graph_optimization": "none"}, {"model": str(exported)}
    single = ml.compare(*sides, samples, save=False)
    batched = ml.compare(*(side | {"batch_size": 4} for side in sides), samples, save=False)
    assert single.pairs()["count"].tolist() == batched.pairs()["count"].tolist()
    assert batched.pairs()["max_a"].to_numpy() == pytest.approx(single.pairs()["max_a"].to_numpy(), rel=1e-4)
    assert len(single.samples()) == 4
    assert not batched.diverges


def test_what_the_length_of_a_batch_does_can_be_compared(exported):
    found = ml.compare({"model": str(exported)}, {"model": str(exported), "batch_size": 5}, [X[0]], save=False)
    assert not found.diverges
    assert found.pairs()["count"].iloc[0] == X.size  # the repetitions are left out


def test_a_side_that_fails_half_way_keeps_what_ran(exported):
    class Halting(Net):
        def forward(self, x):
            h = torch.relu(self.norm(self.first(x)))
            if self.calls:
                raise RuntimeError("no memory for this")
            return self.head(h.mean(dim=(2, 3)))

    halting = Halting()
    halting.calls = 0
    original = halting.first.forward

    def counted(x):
        halting.calls += seen.pop() if seen else 1
        return original(x)

    seen = [0]
    halting.first.forward = counted
    with pytest.raises(ComparisonError, match=r"Side b \(pytorch\) failed: .*no memory for this") as caught:
        ml.compare({"model": str(exported)}, {"model": halting}, X)
    kept = caught.value.comparison
    assert kept.tree.attrs["status"] == "failed"
    assert "batch_norm" in ";".join(kept.pairs()["types_b"])
    assert kept.pairs()["count"].max() > 0
    assert ml.open_comparison().run_id == kept.run_id


def test_no_common_layer_is_said_and_outputs_are_still_compared():
    class Other(torch.nn.Module):
        def forward(self, x):
            return torch.cumsum(x.flatten(1), 1)[:, :5]

    found = ml.compare({"model": Net()}, {"model": Other()}, X, save=False)
    pairs = found.pairs()
    assert {"input", "output"} <= {word for text in pairs["evidence"] for word in text.split(";")}
    assert found.diverges
    assert found.tree.attrs["alignment"]["paired_a"] == 0


def test_models_of_other_interfaces_are_refused(exported, tmp_path):
    two = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["a", "b"], ["c"])], "two",
            [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2]) for n in "ab"],
            [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [1, 2])],
        ), opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9,
    )  # fmt: skip
    onnx.save(two, tmp_path / "two.onnx")
    with pytest.raises(InputError, match=r"take different inputs: a .* takes x: float32\[batch, 3, 12, 12\]; b .* a: "):
        ml.compare({"model": str(exported)}, {"model": str(tmp_path / "two.onnx")}, X, save=False)


def test_a_corrupt_sample_is_left_out_and_the_rest_is_kept(exported, tmp_path):
    np.save(tmp_path / "good.npy", X[0])
    (tmp_path / "bad.npy").write_bytes(b"no array")
    sides = {"model": str(exported), "graph_optimization": "none"}, {"model": str(exported)}
    found = ml.compare(*sides, [str(tmp_path / "good.npy"), str(tmp_path / "bad.npy")], save=False)
    samples = found.samples().set_index("sample")
    assert samples.loc["good.npy", "status"] == "compared"
    assert samples.loc["bad.npy", "status"] == "left out"
    assert "bad.npy" in samples.loc["bad.npy", "message"]
    assert "1 sample(s) could not be compared" in found.summary()
    with pytest.raises(InputError, match=r"bad\.npy"):
        ml.compare(*sides, str(tmp_path / "bad.npy"), save=False)


def test_other_threads_and_double_precision_are_sources_of_noise(exported, module):
    found = ml.compare({"model": module, "threads": 1}, {"model": str(exported)}, X, save=False,
                       calibrate=("rounding", "float64", "threads"))  # fmt: skip
    said = found.tree.attrs["calibration"]
    assert said["float64 a"] == "the same graph, run so"
    assert said["threads b"] == "the same graph, run so"
    assert said["float64 b"].startswith("unavailable: ")
    plain = ml.compare({"model": module, "threads": 1}, {"model": str(exported)}, X, save=False)
    more, less = (c.pairs()["noise_a"].to_numpy() for c in (found, plain))
    assert (more >= less).all()


def test_what_is_compared_can_be_stored_small(exported, module, settings):
    found = ml.compare({"model": module}, {"model": str(exported)}, X)
    folder = settings.runs / "comparisons" / found.run_id
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 500_000
    assert ml.open_comparison(found.run_id).judge("atol=0").diverges


def test_options_are_refused_where_they_mean_nothing(exported):
    with pytest.raises(InputError, match="Unknown precision 'fp8'"):
        ml.compare({"model": str(exported)}, {"model": str(exported), "precision": "fp8"}, X, save=False)
