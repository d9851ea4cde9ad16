"""Folders, tables and IDX pairs, whole and damaged."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mlscope_lab.catalog import Catalog
from mlscope_lab.datasets import open_dataset
from mlscope_lab.datasets.folder import FolderDataset
from mlscope_lab.datasets.idx import IdxDataset, load_idx
from mlscope_lab.datasets.items import ItemsDataset
from mlscope_lab.datasets.table import CsvDataset
from mlscope_lab.errors import DigestError, InputError
from mlscope_lab.manifest.dataset import DatasetManifest
from mlscope_lab.processing.decoding import DecodeImage

FASHION = Path("/usr/share/datasets/fashion-mnist")


def picture(path: Path, color: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (color, 0, 0)).save(path)
    return path


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "pets"
    for i, name in enumerate(("dog/b.png", "cat/2.png", "cat/1.png")):
        picture(root / name, i)
    (root / "cat" / ".DS_Store").write_text("x")
    return root


def test_folder(folder: Path) -> None:
    dataset = FolderDataset(folder)
    assert dataset.labels == ("cat", "dog")
    assert [(p.name, t) for p, t in dataset] == [("1.png", 0), ("2.png", 0), ("b.png", 1)]
    assert len(dataset) == 3
    assert dataset[-1] == dataset[2]
    assert dataset[:2] == [dataset[0], dataset[1]]
    assert repr(dataset) == "<FolderDataset 'pets': 3 samples, 2 classes>"
    assert FolderDataset(folder, labels=("bird", "dog", "cat"))[0][1] == 2
    with pytest.raises(IndexError, match="there is no index 3"):
        dataset[3]
    assert DecodeImage()(dataset[0][0]).shape == (3, 4, 3)


def test_digest_follows_bytes_and_targets(folder: Path) -> None:
    before = FolderDataset(folder).digest()
    assert FolderDataset(folder).digest() == before
    assert FolderDataset(folder, labels=("dog", "cat")).digest() != before
    picture(folder / "cat" / "1.png", 99)
    assert FolderDataset(folder).digest() != before


def test_folder_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'cat' is none of the 2 labels\. Did you mean 'cats'"):
        FolderDataset(folder, labels=("cats", "dog"))
    stray = picture(folder / "lost.png")
    with pytest.raises(InputError, match=r"lost\.png lies outside the subfolders"):
        FolderDataset(folder)
    stray.unlink()
    (folder / "cat" / "Thumbs.db").write_text("x")
    with pytest.raises(InputError, match=r"Thumbs\.db is not a sample .* move it elsewhere"):
        FolderDataset(folder)
    (folder / "cat" / "Thumbs.db").unlink()
    (folder / "dog" / "b.png").write_bytes(b"")
    dataset = FolderDataset(folder)
    with pytest.raises(InputError, match=r"sample 2: .*b\.png is empty"):
        list(dataset)
    (folder / "cat" / "1.png").unlink()
    with pytest.raises(InputError, match=r"sample 0: .*1\.png does not exist"):
        dataset[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="has no subfolders"):
        FolderDataset(tmp_path / "empty")
    (tmp_path / "empty" / "class").mkdir()
    with pytest.raises(InputError, match="holds no samples"):
        FolderDataset(tmp_path / "empty")
    with pytest.raises(InputError, match="is not a folder"):
        FolderDataset(tmp_path / "gone")


def test_csv(folder: Path) -> None:
    table = folder / "list.csv"
    table.write_text('note,path,label\n"a, b",cat/1.png,cat\n,dog/b.png,dog\n', encoding="utf-8-sig")
    assert [(p.name, t) for p, t in CsvDataset(table)] == [("1.png", 0), ("b.png", 1)]
    assert CsvDataset(table).labels == ("cat", "dog")
    table.write_text("file,klass\ncat/1.png,7\ndog/b.png,3\n")
    dataset = CsvDataset(table, sample_column="file", label_column="klass")
    assert ([t for _, t in dataset], dataset.labels) == ([7, 3], None)


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", {}, "header is empty"),
        ("path,lable\nx,1\n", {}, "needs one column 'label', its header is path, lable. Did you mean 'lable'?"),
        ("path,label,label\nx,1,2\n", {}, "needs one column 'label'"),
        ("path,label\n", {}, "lists no samples"),
        ("path,label\nx\n", {}, "line 2: path or label is missing"),
        ("path,label\nx,1\n,2\n", {}, "line 3: path or label is missing"),
        ("path,label\nx,a,b\n", {}, "line 2: more values than the header"),
        ("path,label\nx,dgo\n", {"labels": ("cat", "dog")}, "line 2: unknown label 'dgo'. Did you mean 'dog'?"),
        ("path,label\nx,2\n", {"labels": ("cat", "dog")}, "line 2: target 2, but there are 2 labels"),
        ('path,label\n"x,1\n', {}, "is not a CSV file"),
        (b"path,label\n\xff,1\n", {}, "is not a CSV file in UTF-8"),
    ],
)
def test_csv_mistakes(tmp_path: Path, text: str | bytes, options: dict[str, Any], words: str) -> None:
    file = tmp_path / "x.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        CsvDataset(file, **options)
    assert words in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_pair(tmp_path: Path, zipped: bool) -> None:
    images, targets = np.arange(24).reshape(2, 4, 3), np.array([1, 0])
    for name, array in (("i.gz", images), ("t.gz", targets)):
        (tmp_path / name).write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    dataset = IdxDataset(tmp_path / "i.gz", tmp_path / "t.gz", labels=("a", "b"))
    assert len(dataset) == 2
    assert np.array_equal(dataset[1][0], images[1])
    assert [t for _, t in dataset] == [1, 0]
    assert DecodeImage()(dataset[0][0]).shape == (4, 3, 3)
    with pytest.raises(InputError, match="wrong way round"):
        IdxDataset(tmp_path / "t.gz", tmp_path / "i.gz")
    with pytest.raises(InputError, match="has the target 1, there are 1 labels"):
        IdxDataset(tmp_path / "i.gz", tmp_path / "t.gz", labels=("a",))


WHOLE = idx(np.arange(12).reshape(3, 4))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not an IDX file: it begins with nothing"),
        (b"PK\x03\x04", "is not an IDX file"),
        (idx(np.zeros(3), kind=0x0D), "type 0x0d; unsigned bytes"),
        (WHOLE[:9], "cut off in its header"),
        (WHOLE[:-1], "states 12 bytes of data and holds 11"),
        (WHOLE + b"x", "holds more than the 12 bytes"),
        (struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 2**31), "more than the 4294967296 that are taken"),
        (struct.pack(">BBBB1I", 0, 0, 8, 1, 2**31), "states 2147483648 bytes of data and holds 0"),
        (gzip.compress(WHOLE)[:-9], "is damaged or cut off"),
        (gzip.compress(WHOLE)[:12] + b"\0" * 20, "is damaged or cut off"),
    ],
)
def test_idx_mistakes(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError) as caught:
        load_idx(tmp_path / "x")
    assert words in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(WHOLE)), st.dictionaries(st.integers(0, 11), st.integers(0, 255), max_size=3), st.booleans())
def test_damaged_idx_raises_input_errors_only(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: dict[int, int], zipped: bool
) -> None:
    raw = bytearray(WHOLE)
    for position, byte in flips.items():
        raw[position] = byte
    file = tmp_path_factory.getbasetemp() / "fuzzed"
    file.write_bytes(gzip.compress(bytes(raw[:cut])) if zipped else bytes(raw[:cut]))
    try:
        assert load_idx(file).dtype == np.uint8
    except InputError:
        assert cut < len(WHOLE) or flips


@pytest.mark.skipif(not FASHION.is_dir(), reason="the package dataset-fashion-mnist is not installed")
def test_fashion_mnist() -> None:
    dataset = IdxDataset(FASHION / "t10k-images-idx3-ubyte.gz", FASHION / "t10k-labels-idx1-ubyte.gz")
    assert len(dataset) == 10_000
    assert np.bincount(dataset.targets).tolist() == [1000] * 10
    assert dataset.images.shape[1:] == (28, 28)


def manifest(**changes: Any) -> DatasetManifest:
    data = {"name": "pets", "task": "image-classification", "samples": 3, "source": {"form": "folder", "path": "pets"}}
    return DatasetManifest.model_validate({**data, **changes})


def test_open_checks_number_and_digest(folder: Path) -> None:
    dataset = open_dataset(manifest(), base=folder.parent, fetch_path=pytest.fail)
    assert len(dataset) == 3
    again = open_dataset(manifest(digest=dataset.digest()), base=folder.parent, fetch_path=pytest.fail)
    assert again.labels == ("cat", "dog")
    with pytest.raises(InputError, match="has 3 samples, its manifest says 4"):
        open_dataset(manifest(samples=4), base=folder.parent, fetch_path=pytest.fail)
    with pytest.raises(DigestError, match="has the digest sha256:"):
        open_dataset(manifest(digest="sha256:" + "0" * 64), base=folder.parent, fetch_path=pytest.fail)


def test_the_shipped_pictures_open() -> None:
    skimage = pytest.importorskip("skimage", reason="scikit-image's pictures are the samples")
    entry = Catalog([Path(__file__).parents[2] / "manifests"]).dataset("sample-pictures")
    unlabelled = entry.manifest.model_copy(update={"labels": None})
    site = Path(skimage.__file__).parents[1]
    dataset = open_dataset(unlabelled, base=entry.path.parent, fetch_path=lambda where: site / where.resource)  # type: ignore[union-attr]
    assert [(p.stem, t) for p, t in dataset] == [("chelsea", 281), ("coffee", 967), ("rocket", 657), ("camera", 872)]  # type: ignore[union-attr]
    assert all(DecodeImage()(path).shape[2] == 3 for path, _ in dataset)


def test_items_need_a_label_for_every_target(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.png has the target 2, there are 2 labels"):
        ItemsDataset([(tmp_path / "a.png", 2)], labels=("x", "y"))
