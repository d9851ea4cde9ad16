"""Callables of every shape behind the contract."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from mlscope_lab.backends.base import ModelFiles, SessionOptions
from mlscope_lab.backends.python_ import PythonBackend
from mlscope_lab.errors import InputError, SessionError, UnsupportedModelError
from mlscope_lab.testing import BackendContract

ONE = SessionOptions(threads=1)


class Smoother:
    """A pipeline as users write them: scikit-image inside an object that can be called."""

    def __init__(self, sigma):
        self.sigma = sigma

    def __call__(self, image):
        from skimage.filters import gaussian

        return {"smooth": gaussian(image, self.sigma), "mean": image.mean()}


class TestContract(BackendContract):
    rtol = 1e-6

    @pytest.fixture
    def backend(self):
        return PythonBackend()

    @pytest.fixture
    def feeds(self):
        return {"image": np.random.default_rng(0).random((32, 48)).astype(np.float32)}

    @pytest.fixture
    def live(self, feeds):
        pytest.importorskip("skimage")
        return Smoother(2.0), feeds

    @pytest.fixture
    def open_session(self, backend, live):
        return lambda options: backend.wrap(*live, options)

    @pytest.fixture
    def expected(self, feeds):
        from scipy.ndimage import gaussian_filter

        return {
            "smooth": gaussian_filter(feeds["image"], 2.0, mode="nearest"),
            "mean": np.asarray(feeds["image"].mean()),
        }


def run(function, **feeds):
    with PythonBackend().wrap(function, {k: np.asarray(v) for k, v in feeds.items()}, ONE) as session:
        return session.predict({k: np.asarray(v) for k, v in feeds.items()})


def test_parameters_are_fed_by_name_where_names_match():
    assert run(lambda a, b: a - b, b=1, a=3)["output"] == 2


def test_parameters_are_fed_in_order_where_names_do_not_match():
    assert run(lambda p, q: p - q, x=3, y=1)["output"] == 2
    assert run(np.subtract, x=3, y=1)["output"] == 2
    assert run(functools.partial(np.subtract, 10), x=3)["output"] == 7


def test_keyword_only_parameters():
    def scaled(*, x, factor=2):
        return x * factor

    assert run(scaled, x=3)["output"] == 6
    assert run(scaled, factor=5, x=3)["output"] == 15


def test_order_of_later_feeds_does_not_matter():
    with PythonBackend().wrap(lambda p, q: p - q, {"x": np.array(3), "y": np.array(1)}, ONE) as session:
        assert session.predict({"y": np.array(1), "x": np.array(3)})["output"] == 2


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (1.5, ["output"]),
        (np.ones(3), ["output"]),
        ([1, 2, 3], ["output"]),
        ((1, np.ones(2)), ["output_0", "output_1"]),
        ([np.ones(2), np.ones(3)], ["output_0", "output_1"]),
        ({"a": 1, "b": (2, 3)}, ["a", "b_0", "b_1"]),
        ({"a": {"b": 1}}, ["a.b"]),
    ],
)
def test_results_are_named_and_flattened(result, names):
    have = run(lambda x: result, x=0)
    assert list(have) == names
    assert all(isinstance(a, np.ndarray) for a in have.values())


@pytest.mark.parametrize("result", [None, object(), {}, ()])
def test_results_without_numbers_are_refused(result):
    with pytest.raises(SessionError, match="return"):
        run(lambda x: result, x=0)


def test_an_input_handed_back_is_copied():
    given = np.zeros(4)
    with PythonBackend().wrap(lambda x: x[1:], {"x": given}, ONE) as session:
        have = session.predict({"x": given})["output"]
        given[:] = 7
        assert have.tolist() == [0, 0, 0]


def test_what_the_callable_raises_is_told():
    calls = []

    def fragile(x):
        calls.append(x)
        if len(calls) > 1:
            raise ZeroDivisionError("inside")
        return x

    with PythonBackend().wrap(fragile, {"x": np.zeros(1)}, ONE) as session:
        with pytest.raises(SessionError, match="ZeroDivisionError: inside") as caught:
            session.predict({"x": np.zeros(1)})
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_threads_are_warned_about_and_other_devices_refused():
    backend, feeds = PythonBackend(), {"x": np.zeros(1)}
    with backend.wrap(np.negative, feeds, SessionOptions(threads=3)) as session:
        assert "threads=3" in session.warnings[0]
        assert session.threads is None
    with backend.wrap(np.negative, feeds, SessionOptions()) as session:
        assert not session.warnings
    with pytest.raises(InputError, match="devices"):
        backend.wrap(np.negative, feeds, SessionOptions(device="cuda:0"))
    with pytest.raises(SessionError, match="no layers"):
        backend.wrap(np.negative, feeds, SessionOptions(level="layer"))
    with pytest.raises(InputError, match="example"):
        backend.wrap(np.negative, {}, SessionOptions())


def test_digest_tells_callables_apart():
    backend, feeds = PythonBackend(), {"x": np.ones(1)}
    functions = (np.negative, np.abs, lambda x: x * 2, lambda x: x * 3, lambda x: next(x * 2 for _ in (1,)))
    digests = {backend.wrap(f, feeds, ONE).executable_digest for f in functions}
    assert len(digests) == len(functions)


def test_random_draws_repeat_by_seed():
    def drawn(seed):
        with PythonBackend().wrap(lambda x: x + np.random.random(), {"x": np.zeros(1)}, SessionOptions(seed=seed)) as s:
            return s.predict({"x": np.zeros(1)})["output"][0]

    assert drawn(1) == drawn(1) != drawn(2)


def test_accepts_callables_and_leaves_models_to_their_backends():
    backend = PythonBackend()
    assert backend.accepts(np.negative)
    assert backend.accepts(Smoother(1))
    assert not backend.accepts(Smoother)
    assert not backend.accepts(np.zeros(1))


def test_torch_modules_are_left_alone():
    torch = pytest.importorskip("torch")
    assert not PythonBackend().accepts(torch.nn.Linear(2, 2))
    assert PythonBackend().accepts(torch.relu)


def test_files_are_refused(tmp_path):
    files = ModelFiles(name="m", format="onnx", path=tmp_path / "m.onnx", digest="sha256:0")
    with pytest.raises(UnsupportedModelError, match="format 'onnx'"):
        PythonBackend().open(files)
