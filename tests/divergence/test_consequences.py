"""What the difference of two sides does to answers over a dataset."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from skimage import data

import mlscope_lab as ml
from mlscope_lab.errors import InputError, SessionError
from tests.divergence.pictured import (
    COLOURS,
    FACES,
    face_weights,
    held_out,
    save_colour_pictures,
    save_colours,
    save_faces,
)

pytestmark = pytest.mark.filterwarnings("error")
SCORES = [np.array([0.1, 0.9]), np.array([0.6, 0.4]), np.array([0.45, 0.55])]


@pytest.fixture(scope="module")
def coarse(tmp_path_factory):
    """The face classifier against itself with weights of 3 bits, on the 100 pictures that were held out."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("faces")
    sides = [{"model": str(save_faces(folder, name, bits)), "backend": "onnxruntime"}
             for name, bits in (("fine", None), ("coarse", 3))]  # fmt: skip
    return ml.agreement(*sides, held_out())


def expected(bits=None):
    """Return the answers of the classifier by hand."""
    weights = face_weights().astype(np.float32)
    if bits is not None:
        scale = np.abs(face_weights()).max() / (2 ** (bits - 1) - 1)
        weights = (np.round(face_weights() / scale) * scale).astype(np.float32)
    x = np.stack([(p.reshape(-1).astype(np.float32) - 127) / 128 for p, _ in held_out()])
    return x @ weights[:-1] + weights[-1]


def test_answers_are_those_of_the_models(coarse):
    for letter, bits in (("a", None), ("b", 3)):
        scores = expected(bits)
        np.testing.assert_array_equal(coarse[f"top1_{letter}"], scores.argmax(axis=1))
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        best = (powers / powers.sum(axis=1, keepdims=True)).max(axis=1)
        np.testing.assert_allclose(coarse[f"score_{letter}"], best, atol=1e-4)
        np.testing.assert_allclose(coarse[f"margin_{letter}"], 2 * best - 1, atol=2e-4)
        assert coarse[f"label_{letter}"].values.tolist() == [FACES[i] for i in scores.argmax(axis=1)]


def test_flips_agreement_and_interval(coarse):
    flips = expected().argmax(axis=1) != expected(3).argmax(axis=1)
    assert 0 < flips.sum() < 100
    np.testing.assert_array_equal(coarse["agrees"], ~flips)
    share = 1 - flips.mean()
    assert coarse["agreement"].item() == pytest.approx(share)
    wilson = binomtest(int((~flips).sum()), 100).proportion_ci(method="wilson")
    assert coarse["agreement_low"].item() == pytest.approx(wilson.low)
    assert coarse["agreement_high"].item() == pytest.approx(wilson.high)
    assert f"{int((~flips).sum())} of 100 answers agree" in coarse.attrs["verdict"]


def test_accuracy_and_mcnemar(coarse):
    target = np.array([t for _, t in held_out()])
    right = [expected(bits).argmax(axis=1) == target for bits in (None, 3)]
    assert coarse["accuracy_a"].item() == pytest.approx(right[0].mean())
    assert coarse["accuracy_b"].item() == pytest.approx(right[1].mean())
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    assert (coarse["only_a_correct"].item(), coarse["only_b_correct"].item()) == (only_a, only_b)
    assert coarse["mcnemar_p"].item() == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    assert coarse["accuracy_a"].item() > 0.8
    assert "McNemar" in coarse.attrs["verdict"]


def test_measures_between_the_predictions(coarse):
    scores = [expected(bits).astype(np.float64) for bits in (None, 3)]
    p, q = (np.exp(s) / np.exp(s).sum(axis=1, keepdims=True) for s in scores)
    kl = (p * np.log(p / q)).sum(axis=1)
    np.testing.assert_allclose(coarse["kullback_leibler"], kl, atol=1e-4)
    assert coarse["mean_kullback_leibler"].item() == pytest.approx(kl.mean(), abs=1e-4)
    middle = (p + q) / 2
    js = ((p * np.log(p / middle)).sum(axis=1) + (q * np.log(q / middle)).sum(axis=1)) / 2
    np.testing.assert_allclose(coarse["jensen_shannon"], js, atol=1e-4)
    np.testing.assert_allclose(coarse["hellinger"], np.sqrt(1 - np.sqrt(p * q).sum(axis=1)), atol=1e-3)
    for name in ("bhattacharyya", "correlation", "covariance", "output_max_abs_error", "output_l2_relative"):
        assert f"mean_{name}" in coarse


def test_every_variable_is_described(coarse):
    for name, variable in coarse.data_vars.items():
        assert variable.attrs["long_name"], name
        assert set(variable.dims) <= {"sample", "rank"}
    assert coarse["class_a"].dims == ("sample", "rank")
    assert [side["label"] for side in coarse.attrs["sides"]] == ["onnxruntime", "onnxruntime"]


def test_a_side_agrees_with_itself():
    found = ml.agreement(lambda x: x, lambda x: x * 1, SCORES, targets=[1, 0, 0])
    assert found["agrees"].all()
    assert found["topk_overlap"].values.tolist() == [1.0] * 3
    assert found["mean_jensen_shannon"].item() == 0
    assert found.attrs["verdict"].startswith("3 of 3 answers agree (100.0 %, 95 % interval 43.9 to 100.0); 0 flip")
    assert found.attrs["verdict"].endswith("McNemar p = 1 (0 and 0 discordant): no difference in accuracy shown.")


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_batches_do_not_matter(batch_size, tmp_path):
    pytest.importorskip("onnxruntime")
    model, pictures = str(save_colours(tmp_path)), save_colour_pictures(tmp_path / "pictures")
    found = ml.agreement({}, {"batch_size": 5}, pictures, model=model, batch_size=batch_size)
    assert found["agrees"].all()
    assert found["accuracy_b"].item() == 1
    assert found["sample"].values[0] == "blue/0.png"
    assert found["label_b"].values[0] == "blue"


def test_a_model_that_takes_one_sample_at_a_time(tmp_path):
    pytest.importorskip("onnxruntime")
    model, pictures = str(save_colours(tmp_path, batch="1")), save_colour_pictures(tmp_path / "pictures")
    assert ml.agreement({}, {}, pictures, model=model)["accuracy_a"].item() == 1


def test_other_preprocessing_as_a_side(tmp_path):
    """Red and blue change places, green and gray stay: each class by its folder."""
    pytest.importorskip("onnxruntime")
    model, pictures = str(save_colours(tmp_path)), save_colour_pictures(tmp_path / "pictures", count=4)
    swapped = [{"step": "decode_image", "color": "BGR"}, {"step": "resize", "height": 8, "width": 8},
               {"step": "normalize", "mean": [127], "std": [128]}]  # fmt: skip
    found = ml.agreement({}, {"preprocess": swapped}, pictures, model=model)
    flipped = found["sample"].values[~found["agrees"].values]
    assert {name.split("/")[0] for name in flipped} == {"red", "blue"}
    assert len(flipped) == 8
    assert (found["only_a_correct"].item(), found["only_b_correct"].item()) == (8, 0)
    assert found["mcnemar_p"].item() == pytest.approx(2 / 2**8)
    assert "b is less accurate" in found.attrs["verdict"]


def test_a_corrupt_picture_is_named_and_the_rest_kept(tmp_path):
    pytest.importorskip("onnxruntime")
    model, pictures = str(save_colours(tmp_path)), save_colour_pictures(tmp_path / "pictures")
    (pictures / "green" / "1.png").write_bytes(b"no picture")
    (pictures / "red" / "2.png").write_bytes((pictures / "red" / "0.png").read_bytes()[:80])
    found = ml.agreement({}, {}, pictures, model=model)
    assert set(found.attrs["left_out"]) == {"green/1.png", "red/2.png"}
    assert "not a picture" in found.attrs["left_out"]["green/1.png"]
    assert found.sizes["sample"] == len(COLOURS) * 3 - 2
    assert found.attrs["asked"] == 12
    assert found["accuracy_a"].item() == 1
    assert "2 could not be compared and were left out" in found.attrs["verdict"]


def test_a_sample_that_breaks_the_model_is_named_and_the_rest_kept():
    """NaN in an answer is that sample's fault, on whichever side."""
    samples = [SCORES[0], np.array([0.0, 0.0]), SCORES[1]]
    with np.errstate(invalid="ignore"):
        found = ml.agreement(lambda x: x, lambda x: x / x.sum(axis=1, keepdims=True), samples)
    assert list(found.attrs["left_out"]) == ["sample 1"]
    assert "NaN" in found.attrs["left_out"]["sample 1"]
    assert found["agrees"].values.tolist() == [True, True]


def failing(x):
    if (x[:, 0] == 0.45).any():
        raise RuntimeError("out of luck")
    return x


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_side_that_fails_half_way_leaves_what_was_done(batch_size):
    found = ml.agreement(lambda x: x, failing, SCORES, batch_size=batch_size)
    assert found.attrs["status"] == "failed"
    assert found.attrs["failure"]["side"] == "b"
    assert found.attrs["failure"]["sample"] == "sample 2"
    assert "out of luck" in found.attrs["failure"]["message"]
    assert found.sizes["sample"] == 2
    assert "side b failed at sample 2" in found.attrs["verdict"]


def test_a_side_that_never_works_is_an_error():
    def broken(x):
        raise RuntimeError("never")

    with pytest.raises(SessionError, match="never"):
        ml.agreement(lambda x: x, broken, SCORES)


def test_sides_of_different_classes_are_refused():
    with pytest.raises(InputError, match="2 classes and side b 3"):
        ml.agreement(lambda x: x, lambda x: np.hstack([x, x[:, :1]]), SCORES)


def test_classes_in_another_order_are_brought_together(tmp_path):
    pytest.importorskip("onnxruntime")
    a = save_colours(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    order = [2, 0, 3, 1]
    import onnx
    from onnx import numpy_helper

    model = onnx.load(tmp_path / "colours.onnx")
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[..., order], tensor.name))
    onnx.save(model, other / "colours.onnx")
    names = list(COLOURS)
    text = a.read_text(encoding="utf-8").replace(str(names), str([names[i] for i in order]))
    b = other / "colours.yaml"
    b.write_text(text, encoding="utf-8")
    found = ml.agreement(str(a), str(b), save_colour_pictures(tmp_path / "pictures"))
    assert found["agrees"].all()
    assert found["accuracy_b"].item() == 1
    assert found["output_max_abs_error"].max() < 1e-5


def test_nothing_to_ask_is_said(tmp_path):
    with pytest.raises(InputError, match="no samples"):
        ml.agreement(lambda x: x, lambda x: x, [])
    with pytest.raises(InputError, match="at least 1"):
        ml.agreement(lambda x: x, lambda x: x, SCORES, batch_size=0)
    pytest.importorskip("onnxruntime")
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    with pytest.raises(InputError, match="None of the 1 samples could be compared"):
        ml.agreement({}, {}, [bad], model=str(save_colours(tmp_path)))


def test_the_verdict_counts_in_words():
    """A thousand answers of which six flip, two to the right one and four away from it."""
    scores = [np.array([0.3, 0.7, float(i < 6)]) for i in range(1000)]
    targets = [1] * 4 + [0] * 2 + [1] * 994

    def a(x):
        return x[:, :2]

    def b(x):
        return np.where(x[:, 2:] > 0, x[:, 1::-1], x[:, :2])

    found = ml.agreement(a, b, scores, targets=targets, batch_size=64)
    assert found.attrs["verdict"] == (
        "994 of 1,000 answers agree (99.4 %, 95 % interval 98.7 to 99.7); 6 flip; accuracy 99.8 and 99.6 % of 1,000, "
        "McNemar p = .69 (4 and 2 discordant): no difference in accuracy shown."
    )


def boxes(*rows):
    return np.array(rows, np.float64)


def test_lost_and_gained_detections():
    """Boxes come from two outputs of a callable: the second side loses one and finds another."""

    class Detector:
        def __init__(self, table):
            self.table = table

        def __call__(self, x):
            return {"boxes": np.repeat(self.table[None, :, :4], len(x), 0),
                    "scores": np.repeat(self.table[None, :, 4], len(x), 0)}  # fmt: skip

    a = Detector(boxes([0, 0, 10, 10, 0.9], [20, 20, 30, 30, 0.8], [50, 50, 60, 60, 0.2]))
    b = Detector(boxes([1, 0, 10, 10, 0.9], [40, 40, 45, 45, 0.8], [50, 50, 60, 60, 0.3]))
    found = ml.agreement(a, b, [np.zeros(2), np.ones(2)], detections={"boxes": "boxes", "scores": "scores"})
    for name, count in (("detections_a", 2), ("matched", 1), ("lost", 1), ("gained", 1)):
        assert found[name].values.tolist() == [count, count]
    assert found["mean_overlap"].values.tolist() == [0.9, 0.9]
    assert found.attrs["verdict"] == "2 of 4 detections are found again, 2 lost, 2 gained."


@pytest.mark.network
def test_a_real_detector_finds_the_astronauts_face_and_a_shifted_colour_does_not_lose_it():
    pytest.importorskip("onnxruntime")
    steps = [{"step": "decode_image"}, {"step": "resize", "shorter_side": 56, "interpolation": "area"},
             {"step": "normalize", "mean": [127.5], "std": [128]},
             {"step": "layout", "source": "HWC", "target": "WHC"}]  # fmt: skip
    other = [{**steps[0], "color": "BGR"}, *steps[1:]]
    found = ml.agreement({"preprocess": steps}, {"preprocess": other}, [data.astronaut()], model="mtcnn-pnet")
    assert found["detections_a"].item() > 0
    assert found["matched"].item() > 0
    assert found["matched"].item() + found["lost"].item() == found["detections_a"].item()
    assert found["matched"].item() + found["gained"].item() == found["detections_b"].item()
