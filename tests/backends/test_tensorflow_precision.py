"""TensorFlow in other precisions, and without its graph optimiser."""

from __future__ import annotations

import numpy as np
import pytest

from mlscope_lab.backends.base import SessionOptions
from mlscope_lab.backends.tensorflow_ import TensorFlowBackend, load_tensorflow
from mlscope_lab.errors import InputError, UnsupportedModelError
from mlscope_lab.testing import StepperContract, check_layer_trace

if not TensorFlowBackend().availability().ok:
    pytest.skip("needs tensorflow", allow_module_level=True)
tf = load_tensorflow()
RNG = np.random.default_rng(5)
KERNEL, DEEP, DENSE = (RNG.normal(size=s).astype(np.float32) * 0.4 for s in ((3, 3, 3, 8), (3, 3, 8, 1), (8, 4)))
BIAS, SCALE, MEAN = (RNG.normal(size=8).astype(np.float32) for _ in range(3))
VARIANCE = np.linspace(0.5, 2, 8).astype(np.float32)


def network(x):
    x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    y = tf.nn.bias_add(tf.nn.conv2d(x, KERNEL, 1, "VALID"), BIAS)
    y = tf.compat.v1.nn.fused_batch_norm(y, SCALE, BIAS, MEAN, VARIANCE, epsilon=1e-3, is_training=False)[0]
    y = before = tf.nn.relu(y)
    y = tf.nn.max_pool2d(y, 3, 1, [[0, 0], [1, 1], [1, 1], [0, 0]])
    y = tf.nn.depthwise_conv2d(y, DEEP, [1, 1, 1, 1], "SAME") + before
    pooled = tf.reduce_mean(y, [1, 2])
    return {"scores": tf.nn.softmax(tf.matmul(pooled, DENSE)), "brightest": tf.argmax(pooled, 1), "map": y}


def reference(x: np.ndarray) -> np.ndarray:
    """Compute the map in double precision."""
    x = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    y = np.einsum("nhwcij,ijco->nhwo", windows, KERNEL.astype(np.float64)) + BIAS
    factor = SCALE / np.sqrt(VARIANCE.astype(np.float64) + np.float64(np.float32(1e-3)))
    y = np.maximum((y - MEAN) * factor + BIAS, 0)
    padded = np.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pooled = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).max((-1, -2))
    padded = np.pad(pooled, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("nhwcij,ijc->nhwc", windows, DEEP[..., 0].astype(np.float64)) + y


def pictures(seed: int = 2) -> dict[str, np.ndarray]:
    return {"picture": np.random.default_rng(seed).normal(size=(2, 10, 10, 3)).astype(np.float32)}


def opened(function=network, feeds=None, **options):
    return TensorFlowBackend().wrap(tf.function(function), feeds or pictures(), SessionOptions(threads=1, **options))


def captured(stepper, feeds):
    kept = {}
    graph = stepper.run(feeds, lambda index, array: kept.__setitem__(index, np.array(array)))
    return graph, kept


class TestFloats:
    """The frozen graph with its types rewritten."""

    @pytest.mark.parametrize(
        ("precision", "error"), [("float64", 1e-14), ("float16", 1e-2), ("bfloat16", 1e-1), (None, 1e-5)]
    )
    def test_every_step_is_as_exact_as_its_type(self, precision, error):
        want = reference(pictures()["picture"])
        with opened(precision=precision) as session, session.open_stepper() as stepper:
            plain = session.predict(pictures())
            graph, kept = captured(stepper, pictures())
        assert session.precision == (precision or "float32")
        assert {name: array.dtype.name for name, array in plain.items()} == {
            "scores": "float32", "brightest": "int64", "map": "float32"
        }  # fmt: skip
        assert {s.dtype for s in session.inputs} == {"float32"}
        last = next(o for o in graph.operations if "reduction" in o.kinds)
        assert graph.values[last.inputs[0]].dtype == (precision or "float32")
        found = kept[last.inputs[0]]
        assert np.abs(found - want).max() <= error * np.abs(want).max()
        if precision:
            assert np.abs(found - want).max() > 0
            assert any("rewriting" in warning for warning in session.warnings)
            assert not any("computes in float32" in warning for warning in session.warnings)

    @pytest.mark.parametrize("precision", ["float64", "bfloat16"])
    def test_stepped_is_plain(self, precision):
        with opened(precision=precision) as session, session.open_stepper() as stepper:
            plain = session.predict(pictures())
            graph, kept = captured(stepper, pictures())
        for name, array in plain.items():
            np.testing.assert_array_equal(kept[graph.outputs[name]], array)

    def test_what_has_no_kernel_stays_and_is_named(self):
        def norm(x):
            return tf.nn.relu(tf.nn.local_response_normalization(x * 2.0, 2) + 1.0)

        with opened(norm, precision="float64") as session, session.open_stepper() as stepper:
            (plain,) = session.predict(pictures()).values()
            graph, _ = captured(stepper, pictures())
        assert any("LRN (1)" in warning for warning in session.warnings)
        types = {o.type: graph.values[o.outputs[0]].dtype for o in graph.operations}
        assert (types["LRN"], types["Mul"]) == ("float32", "float64")
        with opened(norm) as session:
            (single,) = session.predict(pictures()).values()
        np.testing.assert_allclose(plain, single, rtol=1e-5)

    def test_overflow_is_seen_where_it_happens(self):
        def loud(x):
            return tf.nn.relu(x * 3e4 * 3.0) * 1e-5

        feeds = {"x": np.array([0.25, 1.0], np.float32)}
        with opened(loud, feeds, precision="float16") as session, session.open_stepper() as stepper:
            (plain,) = session.predict(feeds).values()
            graph, kept = captured(stepper, feeds)
        assert np.isinf(plain[1])
        first = next(i for i in range(len(graph.values)) if np.isinf(kept[i]).any())
        assert graph.operations[graph.writers()[first]].type == "Mul"

    def test_constants_that_overflow_are_counted(self):
        with opened(lambda x: tf.minimum(x, 1e6), precision="float16") as session:
            assert any("1 finite constants are infinite in float16" in warning for warning in session.warnings)

    def test_loops_are_rewritten(self):
        def looping(x):
            return tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, tf.tanh(y * 2.0)), (0, x + 1.0))[1]

        feeds = {"x": np.linspace(-1, 1, 6, dtype=np.float32)}
        want = feeds["x"].astype(np.float64) + 1
        for _ in range(3):
            want = np.tanh(want * 2)
        with opened(looping, feeds, precision="float64") as session, session.open_stepper() as stepper:
            graph, kept = captured(stepper, feeds)
            (plain,) = session.predict(feeds).values()
        loop = next(o for o in graph.operations if o.kinds == ("control",))
        found = next(kept[i] for i in loop.outputs if graph.values[i].dtype == "float64")
        np.testing.assert_allclose(found, want, rtol=1e-14)
        np.testing.assert_allclose(plain, want.astype(np.float32), rtol=1e-6)

    def test_layers_are_traced_in_it(self):
        with opened(precision="float64", level="layer") as session:
            session.begin_trace()
            session.predict(pictures())
            trace = session.end_trace()
        check_layer_trace(trace)
        assert any("double" in text or "float64" in text for text in trace.layers.output_shapes)

    def test_nothing_to_rewrite(self):
        with pytest.raises(UnsupportedModelError, match="Nothing in this model is float32"):
            opened(lambda x: x + 1, {"x": np.arange(3)}, precision="float16")

    def test_what_it_is_already_is_left_alone(self):
        with opened(precision="float32") as session:
            assert session.precision == "float32"
            assert not any("rewriting" in warning for warning in session.warnings)

    def test_a_model_in_half_precision_computes_in_single(self):
        weights = RNG.normal(size=(6, 5)).astype(np.float16)
        feeds = {"x": RNG.normal(size=(2, 6)).astype(np.float16)}
        want = feeds["x"].astype(np.float64) @ weights.astype(np.float64)
        with opened(lambda x: tf.matmul(x, weights), feeds, precision="float32") as session:
            with session.open_stepper() as stepper:
                graph, kept = captured(stepper, feeds)
            (plain,) = session.predict(feeds).values()
        product = next(o for o in graph.operations if o.kinds == ("product",))
        np.testing.assert_allclose(kept[product.outputs[0]], want, rtol=1e-5)
        assert plain.dtype == np.float16


class TestContract(StepperContract):
    """A model in bfloat16, whose values are handed over as float32."""

    options = SessionOptions(threads=1, precision="bfloat16")

    @pytest.fixture
    def backend(self):
        return TensorFlowBackend()

    @pytest.fixture
    def live(self):
        return tf.function(network), pictures()


class TestIntegers:
    """The same model in TensorFlow Lite."""

    @pytest.mark.parametrize(
        ("precision", "dtypes"), [("int8-dynamic", {"float32"}), ("int8-static", {"float32", "int8"})]
    )
    def test_names_and_order_are_those_of_the_model(self, precision, dtypes):
        calibration = tuple(pictures(seed=seed) for seed in range(4)) if precision == "int8-static" else ()
        with opened() as plain:
            want = plain.predict(pictures())
        with opened(precision=precision, calibration=calibration) as session, session.open_stepper() as stepper:
            found = session.predict(pictures())
            graph, kept = captured(stepper, pictures())
            folder = session._folder
            assert folder.is_dir()
        assert not folder.exists()
        assert session.precision == "int8"
        assert any("TensorFlow Lite" in warning for warning in session.warnings)
        assert list(found) == list(want) == list(graph.outputs)
        for name, array in want.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert 0 <= np.abs(found["map"] - want["map"]).max() < 0.2 * np.abs(want["map"]).max()
        assert dtypes <= {value.dtype for value in graph.values}
        for name, array in found.items():
            np.testing.assert_array_equal(kept[graph.outputs[name]], array)

    def test_two_inputs(self):
        feeds = {"left": np.full((1, 4), 3, np.float32), "right": np.eye(4, 32, dtype=np.float32)[None]}

        def two(left, right):
            return {"b": tf.matmul(left[:, None], right)[:, 0] - 1.0, "a": left * 2.0}

        with opened(two, feeds, precision="int8-dynamic") as session:
            assert [s.name for s in session.inputs] == ["left", "right"]
            found = session.predict(dict(reversed(feeds.items())))
        np.testing.assert_allclose(found["a"], feeds["left"] * 2)
        np.testing.assert_allclose(found["b"], (feeds["left"] @ feeds["right"][0]) - 1, atol=0.1)

    def test_needs_samples(self):
        with pytest.raises(InputError, match="learns its ranges"):
            opened(precision="int8-static")

    def test_padding_before_negative_values(self):
        def pools(x):
            return tf.nn.max_pool2d(x - 9.0, 3, 1, [[0, 0], [1, 1], [1, 1], [0, 0]])

        with opened(pools, precision="int8-dynamic") as session, opened(pools) as plain:
            (found,), (want,) = (s.predict(pictures()).values() for s in (session, plain))
        np.testing.assert_array_equal(found, want)
        with pytest.raises(UnsupportedModelError, match="maximum pooling"):
            opened(pools, precision="int8-static", calibration=(pictures(),))

    def test_what_it_cannot_convert(self):
        with pytest.raises(
            UnsupportedModelError, match="cannot quantise this model: it has no operator for MatrixDeterminant"
        ):
            opened(lambda x: tf.linalg.det(x), {"x": np.eye(3, dtype=np.float32)}, precision="int8-dynamic")


class TestGraphOptimization:
    """With and without Grappler."""

    def test_unoptimised_is_another_executable(self):
        digests, traces = set(), []
        for choice in (None, "none", "all"):
            with opened(graph_optimization=choice, level="layer") as session:
                session.begin_trace()
                session.predict(pictures())
                traces.append(session.end_trace())
                digests.add(session.executable_digest)
        assert len(digests) == 2
        types = [set(trace.layers.type) for trace in traces]
        assert types[0] == types[2]
        assert "FusedBatchNormEx" in types[0]
        assert "FusedBatchNormEx" not in types[1]

    def test_plain_session_of_it_traces_nothing(self):
        from mlscope_lab.errors import SessionError

        with opened(graph_optimization="none") as session:
            want = session.predict(pictures())
            with pytest.raises(SessionError, match="level='layer'"):
                session.begin_trace()
        with opened() as session:
            for name, array in session.predict(pictures()).items():
                np.testing.assert_allclose(want[name], array, rtol=1e-4, atol=1e-5)
