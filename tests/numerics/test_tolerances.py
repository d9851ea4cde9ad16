from __future__ import annotations

import json

import numpy as np
import pytest

from mlscope_lab.errors import InputError
from mlscope_lab.numerics.calibration import FACTOR
from mlscope_lab.numerics.tolerances import BY_DTYPE, CALIBRATED, Tolerance, Tolerances, default_tolerance


def text(*words):
    return np.array(words, dtype=object)


COLUMNS = {
    "value_a": text("image", "features.0", "scores"), "value_b": text("x", "/conv/out", "probs"),
    "operations_a": text("", "conv1;bn1;relu1", "softmax"), "operations_b": text("", "/conv/Conv", "/softmax"),
    "types_a": text("", "aten::conv2d;aten::batch_norm", "aten::softmax"), "types_b": text("", "Conv", "Softmax"),
    "kinds": text("", "convolution;normalization;activation", "softmax"), "scope": text("", "stem", ""),
    "dtype_a": text("float32", "float32", "float64"), "dtype_b": text("float32", "float16", "float64"),
    "noise_a": np.array([1e-5, 1e-5, 1e-5]), "noise_b": np.array([1e-5, 1e-5, 1e-5]), "rms_a": np.ones(3),
}  # fmt: skip


def resolved(given):
    atol, rtol, sources = Tolerances.from_any(given).for_pairs(COLUMNS)
    return list(atol), list(rtol), sources


@pytest.mark.parametrize(
    "given",
    ["atol=1e-5,rtol=1e-3", " rtol = 1e-3 , atol=0.00001", {"atol": 1e-5, "rtol": 1e-3}, Tolerance(1e-5, 1e-3),
     {"default": "atol=1e-5,rtol=1e-3"}, Tolerances(default=Tolerance(1e-5, 1e-3))],
)  # fmt: skip
def test_one_tolerance_for_all(given):
    assert resolved(given) == ([1e-5] * 3, [1e-3] * 3, ["given"] * 3)


def test_calibrated_ones_are_absolute():
    atol, rtol, sources = resolved(CALIBRATED)
    assert atol[0] == pytest.approx(FACTOR * 2e-5)
    assert rtol == [0.0] * 3
    assert sources == [CALIBRATED] * 3


def test_types_have_usual_ones_of_which_the_looser_counts():
    assert resolved(BY_DTYPE)[:2] == ([1e-5, 1e-5, 1e-7], [1.3e-6, 1e-3, 1e-7])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64", "int32", "bool"])
def test_usual_ones_are_those_of_torch(dtype):
    torch = pytest.importorskip("torch")
    one = torch.ones(1, dtype=getattr(torch, dtype))
    usual = default_tolerance(dtype)
    rtol, atol = torch.testing._comparison.get_tolerances(one, one, rtol=None, atol=None)
    assert (usual.atol, usual.rtol) == (atol, rtol)


@pytest.mark.parametrize("pattern", ["features.0", "/conv/*", "bn1", "aten::conv2d", "Conv", "normalization", "stem",
                                     "[f]eatures*", "conv1;bn1;relu1"])  # fmt: skip
def test_patterns_match_names_types_kinds_and_scopes(pattern):
    atol, _, sources = resolved({"atol": 1e-5, "by": {pattern: {"atol": 0.5}}})
    assert atol == [1e-5, 0.5, 1e-5]
    assert sources == ["given", f"by {pattern}", "given"]


def test_a_name_beats_patterns_and_the_last_pattern_counts():
    atol, _, _ = resolved({"by": {"scores": {"atol": 1.0}, "*": {"atol": 2.0}, "s*": {"atol": 3.0}}})
    assert atol == [2.0, 3.0, 1.0]


def test_patterns_may_ask_for_calibrated_or_usual_ones():
    atol, rtol, sources = resolved({"atol": 1.0, "by": {"scores": CALIBRATED, "image": BY_DTYPE}})
    assert atol == [1e-5, 1.0, pytest.approx(FACTOR * 2e-5)]
    assert rtol[0] == 1.3e-6
    assert sources == ["by image", "given", "by scores"]


def test_a_pattern_that_matches_nothing_names_the_nearest():
    with pytest.raises(InputError, match=r"'scorse' matches no value.*'scores'"):
        resolved({"by": {"scorse": {"atol": 1.0}}})


def test_upper_and_lower_case_differ():
    with pytest.raises(InputError, match="matches no value"):
        resolved({"by": {"SCORES": {"atol": 1.0}}})


def test_files_hold_the_same(tmp_path):
    (tmp_path / "t.yaml").write_text("atol: 1e-5\nrtol: 1e-3\nby:\n  'soft*': {atol: 0.01}\n  image: calibrated\n")
    by = {"soft*": {"atol": 0.01}, "image": "calibrated"}
    (tmp_path / "t.json").write_text(json.dumps({"atol": 1e-5, "rtol": 1e-3, "by": by}))
    one, other = resolved(str(tmp_path / "t.yaml")), resolved(tmp_path / "t.json")
    assert one == other
    assert one[0][2] == 0.01
    assert one[2] == ["by image", "given", "by soft*"]


@pytest.mark.parametrize(
    ("content", "said"),
    [("- 1\n", "mapping"), ("atol: !!python/object:os.system {}\n", "tag"), ("atol: 1\natol: 2\n", "twice"),
     ("atol: {", "expected"), ("atol: tight\n", "atol must be a finite number"), ("atol: true\n", "atol must be")],
)  # fmt: skip
def test_a_file_that_is_no_mapping_of_numbers_is_refused(tmp_path, content, said):
    path = tmp_path / "t.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        Tolerances.from_any(path)
    assert "t.yaml" in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.yaml cannot be read"):
        Tolerances.from_any(tmp_path / "none.yaml")
    (tmp_path / "t.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        Tolerances.from_any(tmp_path / "t.json")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("calibratd", r"is no tolerance.*'calibrated'"),
        ("atol=", "atol must be a number"),
        ("atol=nan", "atol must be a finite number"),
        ("atol=1,atol=2", "atol is given twice"),
        ("atoll=1", r"unknown key 'atoll'.*'atol'"),
        ({"atol": -1.0}, "at least 0"),
        ({"atol": float("inf")}, "finite"),
        ({"atool": 1}, r"unknown key 'atool'.*'atol'"),
        ({"by": [1]}, "'by' must be a mapping"),
        ({"by": {"x": {"tol": 1}}}, "by: x: unknown key 'tol'"),
        ({"by": {"x": {"atol": "1"}}}, "by: x: atol must be"),
        ({"atol": 1, "default": "calibrated"}, "not both"),
        (3, "must be 'calibrated'"),
        (None, "must be 'calibrated'"),
    ],
)
def test_what_is_malformed_is_named(given, said):
    with pytest.raises(InputError, match=said):
        Tolerances.from_any(given)


def test_too_many_patterns_are_refused():
    with pytest.raises(InputError, match="10001 patterns"):
        Tolerances.from_any({"by": {str(i): "calibrated" for i in range(10_001)}})


def test_a_tolerance_reads_as_it_is_written():
    one = Tolerance(1e-5, 1e-3)
    assert Tolerances.from_any(str(one)).default == one
