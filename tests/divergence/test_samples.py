"""What counts as a sample, and which class its target is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from skimage import data

from mlscope_lab.datasets.folder import FolderDataset
from mlscope_lab.divergence.samples import samples_of
from mlscope_lab.errors import InputError, ManifestNotFoundError


@pytest.fixture
def folder(tmp_path):
    for name in ("tabby", "espresso"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(data.chelsea()[:8, :8]).save(tmp_path / name / f"{number}.png")
    return tmp_path


def values(samples):
    return [(s.name, s.target) for s in samples]


def test_a_folder_with_a_subfolder_a_class(folder, settings):
    found = samples_of(str(folder), settings=settings)
    assert values(found) == [("espresso/0.png", 0), ("espresso/1.png", 0), ("tabby/0.png", 1), ("tabby/1.png", 1)]


def test_classes_are_brought_to_those_of_the_model_by_name(folder, settings):
    labels = ("goldfish", "tabby", "espresso")
    found = samples_of(FolderDataset(folder), labels=labels, settings=settings)
    assert [target for _, target in values(found)] == [2, 2, 1, 1]
    with pytest.raises(InputError, match=r"'espresso'.*none of the model's 2 labels"):
        samples_of(FolderDataset(folder), labels=("tabby", "dog"), settings=settings)


def test_classes_may_be_named_by_index(tmp_path, settings):
    for name in ("2", "7"):
        (tmp_path / name).mkdir()
        Image.fromarray(data.chelsea()[:8, :8]).save(tmp_path / name / "a.png")
    labels = tuple(f"class {i}" for i in range(9))
    assert [t for _, t in values(samples_of(tmp_path, labels=labels, settings=settings))] == [2, 7]


def test_a_folder_of_files_has_no_targets(folder, settings):
    found = samples_of(folder / "tabby", settings=settings)
    assert values(found) == [("tabby/0.png", -1), ("tabby/1.png", -1)]


def test_lists_pairs_mappings_and_single_samples(folder, settings):
    file = folder / "tabby" / "0.png"
    assert values(samples_of([file, np.zeros(3)], settings=settings)) == [("tabby/0.png", -1), ("sample 1", -1)]
    assert values(samples_of([(file, 3), (np.zeros(3), np.int64(1))], settings=settings))[1] == ("sample 1", 1)
    assert values(samples_of(file, settings=settings)) == [("tabby/0.png", -1)]
    both = list(samples_of({"x": [1, 2], "y": [3, 4]}, settings=settings))
    assert [s.value for s in both] == [{"x": 1, "y": 3}, {"x": 2, "y": 4}]


def test_limit_and_targets(folder, settings):
    assert values(samples_of(folder, targets=[5, 6, 7], limit=2, settings=settings)) == [
        ("espresso/0.png", 5), ("espresso/1.png", 6)
    ]  # fmt: skip
    with pytest.raises(InputError, match="1 targets for 4 samples"):
        samples_of(folder, targets=[5], settings=settings)
    with pytest.raises(InputError, match="limit"):
        samples_of(folder, limit=0, settings=settings)


def test_a_file_that_is_gone_is_a_sample_with_a_problem(folder, settings):
    found = samples_of(folder, settings=settings)
    (folder / "tabby" / "0.png").unlink()
    problems = [s for s in found if s.problem]
    assert len(problems) == 1
    assert "does not exist" in problems[0].problem


def test_what_is_no_set_of_samples_is_said(folder, settings):
    for given, message in (([], "no samples"), (None, "Give samples"), ({"x": [1], "y": [1, 2]}, "different lengths")):
        with pytest.raises(InputError, match=message):
            samples_of(given, settings=settings)
    with pytest.raises(ManifestNotFoundError):
        samples_of("no-such-dataset", settings=settings)
    empty = folder / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no samples"):
        samples_of(empty, settings=settings)


def test_names_are_short_and_each_its_own(folder, settings):
    cached = folder / ("0123456789abcdef" * 4)
    cached.mkdir()
    file = cached / "cat.png"
    Image.fromarray(data.chelsea()[:8, :8]).save(file)
    assert [s.name for s in samples_of([file, file, "cat.png"], settings=settings)] == [
        "cat.png", "cat.png (2)", "cat.png (3)"
    ]  # fmt: skip
