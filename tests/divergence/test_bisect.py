"""Bisecting for precision on EfficientNet-Lite0 with one layer whose result does not fit into float16."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("skimage")
import torch

import mlscope_lab as ml
from mlscope_lab.backends.pytorch_load import load_module

LAYER, FOLLOWED_BY = "_conv_head", "_bn1"
LARGEST = 65504.0


@pytest.fixture(scope="module")
def picture():
    import skimage.data

    with ml.load("efficientnet-lite0", backend="pytorch") as model:
        pipeline = model.subject.recipe.inputs[0].pipeline
        module = load_module(model.subject.files)
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(skimage.data.chelsea()).save(file, "png")
    return module, np.asarray(pipeline(file.getvalue()))[None]


def results(module, name, x):
    """Return the result of a submodule, and the answer."""
    found = []
    hook = module.get_submodule(name).register_forward_hook(lambda m, i, o: found.append(o))
    with torch.no_grad():
        answer = module(x)
    hook.remove()
    return found[0], answer


@pytest.fixture(scope="module")
def overflowing(picture):
    """Return the network with one convolution's weights times a power of two, taken back by what follows.

    In float32 that is the same network to the last bits; in float16 the layer's largest results are infinite.
    """
    module, x = picture
    given = torch.from_numpy(x)
    plain, answer = results(module, LAYER, given)
    changed = copy.deepcopy(module)
    scale = 2.0 ** math.ceil(math.log2(2 * LARGEST / plain.abs().max().item()))
    with torch.no_grad():
        convolution, norm = changed.get_submodule(LAYER), changed.get_submodule(FOLLOWED_BY)
        convolution.weight.mul_(scale)
        norm.running_mean.mul_(scale)
        # no parameter may leave float16's range: the variance takes one part of the scale, the weight the other
        part = 2.0 ** (math.log2(scale) // 2)
        norm.running_var.copy_((norm.running_var + norm.eps) * part**2)
        norm.eps = 0.0
        norm.weight.div_(scale / part)
    large, same = results(changed, LAYER, given)
    assert large.abs().max() > LARGEST
    assert all(t.abs().max() < LARGEST for n, t in changed.state_dict().items() if t.is_floating_point())
    torch.testing.assert_close(same, answer, rtol=1e-4, atol=1e-4)
    return changed, x


@pytest.mark.parametrize("method", ["binary", "linear"])
def test_the_layer_that_overflows_is_named(overflowing, method):
    module, x = overflowing
    sides = ({"model": module, "precision": "float32"}, {"model": module, "precision": "float16"})
    found = ml.bisect_precision(*sides, x, limit=0.05, method=method)
    scopes = found["scope"].values[found["must_stay"].values]
    # a value beyond 65504 cannot be handed over in float16: what writes it and what scales it back stay, nothing else
    assert sorted(scopes) == sorted([LAYER, FOLLOWED_BY])
    assert found.attrs["error_all"] > 0.05
    assert found.attrs["error_result"] < 0.05
    assert found.attrs["holds"]


def test_nothing_is_named_where_nothing_overflows(picture):
    module, x = picture
    sides = ({"model": module, "precision": "float32"}, {"model": module, "precision": "float16"})
    found = ml.bisect_precision(*sides, x, limit=0.05)
    assert not found["must_stay"].values.any()
    assert found.attrs["error_all"] < 0.05
