"""Whether a planted fault is what it says: one operator changed, everything before it as it was, its result another."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("skimage")
import torch
from onnx import numpy_helper

from tests.faults.models import MODELS, load_base, picture
from tests.faults.planting import KINDS, RejectedError, flip_exponent, plant, scrubbed, values_of, without_overflow
from tests.faults.planting_torch import module_without_overflow, plant_module
from tests.faults.twin import Twin

DRAWS = 3


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    random = np.random.default_rng(5)
    x = picture("chelsea", random)
    found = {name: load_base(name, tmp_path_factory.mktemp(name)) for name in MODELS}
    return x, {name: (base, values_of(base.graph, x)) for name, base in found.items()}


def draws(make, count=DRAWS):
    """Return some faults and the generators' seeds that gave them."""
    found = []
    for seed in range(40):
        try:
            found.append(make(np.random.default_rng(seed)))
        except RejectedError:
            continue
        if len(found) == count:
            break
    return found


def downstream(graph, first):
    """Return the values that depend on a node's outputs, these included."""
    found = set(first)
    for node in graph.node:
        if found & set(node.input):
            found |= set(node.output)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_one_node_of_a_graph_is_changed(bases, name, kind):
    x, models = bases
    base, clean = models[name]
    made = draws(lambda random: plant(base.graph, kind, random, clean))
    if kind == "wrong epsilon" and name != "light-shufflenet":
        assert not made
        return
    assert len(made) == DRAWS
    before = {n.name: n for n in base.graph.graph.node}
    constants = {i.name: numpy_helper.to_array(i) for i in base.graph.graph.initializer}
    moved = 0
    for planted in made:
        after = {n.name: n for n in planted.model.graph.node}
        assert set(before) <= set(after)
        assert set(after) - set(before) <= set(planted.changed)
        kept = {i.name: numpy_helper.to_array(i) for i in planted.model.graph.initializer}
        for node in before.values():
            if node.name in planted.changed:
                continue
            same = after[node.name]
            assert (same.op_type, list(same.input), list(same.attribute)) == (
                node.op_type, list(node.input), list(node.attribute)
            )  # fmt: skip
            assert all(np.array_equal(kept[i], constants[i]) for i in node.input if i in constants)
        values = values_of(planted.model, x)
        first = next(n for n in planted.model.graph.node if n.name in planted.changed)
        touched = downstream(planted.model.graph, first.output)
        upstream = [n for n in clean if n in values and n not in touched and not n.endswith("_before")]
        assert all(np.array_equal(values[n], clean[n]) for n in upstream)
        result = next(n for n in reversed(planted.model.graph.node) if n.name in planted.changed).output[0]
        moved += not np.array_equal(values[result], clean[result])
    assert moved >= DRAWS - 1  # a weight may meet nothing but zeros


@pytest.mark.parametrize("kind", KINDS)
def test_one_module_is_changed(bases, kind):
    x, models = bases
    module = models["efficientnet-lite0"][0].module
    clean = {n: m for n, m in module.named_modules() if not any(m.children())}
    for planted in draws(lambda random: plant_module(module, kind, random, x)):
        after = dict(planted.model.named_modules())
        changed = planted.changed[0]
        assert changed in after
        place = changed.removesuffix(".outer").removesuffix(".other")
        for name, leaf in clean.items():
            if name == place:
                continue
            assert repr(after[name]) == repr(leaf)
            state = after[name].state_dict()
            assert all(torch.equal(state[n], tensor) for n, tensor in leaf.state_dict().items())
        seen = {"before": [], "after": []}
        for model, into in ((module, seen["before"]), (planted.model, seen["after"])):
            hook = model.get_submodule(place).register_forward_hook(
                lambda m, i, o, into=into: into.extend([i[0].clone(), o.clone()])
            )
            with torch.no_grad():
                model(torch.from_numpy(x))
            hook.remove()
        inputs = [torch.equal(a, b) for a, b in zip(seen["before"][::2], seen["after"][::2], strict=True)]
        outputs = [torch.equal(a, b) for a, b in zip(seen["before"][1::2], seen["after"][1::2], strict=True)]
        assert inputs[0]
        assert not all(outputs) or kind == "exponent bit"


def test_the_module_that_is_copied_stays_as_it_was(bases):
    x, models = bases
    module = models["efficientnet-lite0"][0].module
    before = {n: t.clone() for n, t in module.state_dict().items()}
    for kind in KINDS:
        draws(lambda random, kind=kind: plant_module(module, kind, random, x), 1)
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


def test_names_are_random_and_the_answer_is_not(bases):
    x, models = bases
    base, clean = models["light-shufflenet"]
    random = np.random.default_rng(1)
    planted = plant(base.graph, "other activation", random, clean)
    hidden = scrubbed(planted, random)
    fixed = {v.name for v in (*planted.model.graph.input, *planted.model.graph.output)}
    for old, new in zip(planted.model.graph.node, hidden.model.graph.node, strict=True):
        assert old.op_type == new.op_type
        assert old.name != new.name
        assert not (set(old.input) | set(old.output)) & (set(new.input) | set(new.output)) - fixed
        assert (old.name in planted.changed) == (new.name in hidden.changed)
    answer = base.graph.graph.output[0].name
    assert np.array_equal(values_of(planted.model, x)[answer], values_of(hidden.model, x)[answer])


@pytest.mark.parametrize("name", MODELS)
def test_the_twin_computes_what_the_graph_does(bases, name):
    x, models = bases
    base, clean = models[name]
    if base.module is not None:
        pytest.skip("has a module of its own")
    with torch.no_grad():
        answer = Twin(base.graph)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(answer, clean[base.graph.graph.output[0].name], rtol=1e-3, atol=1e-5)


def test_one_bit_of_the_exponent_is_flipped():
    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 3)).astype(np.float32)
    for _ in range(20):
        try:
            changed, _ = flip_exponent(weight, random)
        except RejectedError:
            continue
        bits = weight.view(np.uint32) ^ changed.view(np.uint32)
        assert np.count_nonzero(bits) == 1
        assert bits.max() in {1 << bit for bit in range(23, 31)}


@pytest.mark.parametrize("name", MODELS)
def test_without_its_overflow_a_layer_is_rounded_only(bases, name):
    x, models = bases
    base, clean = models[name]
    (planted,) = draws(lambda random: plant(base.graph, "fp16 overflow", random, clean), 1)
    after = values_of(planted.model, x)
    control = values_of(without_overflow(planted.model, planted.changed), x)
    result = next(n for n in planted.model.graph.node if n.name == planted.changed[-1]).output[0]
    large = np.isinf(after[result])
    assert large.any()
    assert np.isfinite(control[result]).all()
    # of the smallest numbers float16 keeps fewer digits where they are not scaled up
    np.testing.assert_allclose(after[result][~large], control[result][~large], rtol=1e-6, atol=2.0**-24)
    np.testing.assert_allclose(control[result], clean[result], rtol=1e-3, atol=1e-6)


def test_without_its_overflow_a_module_is_rounded_only(bases):
    x, models = bases
    base, clean = models["efficientnet-lite0"]
    for planted in draws(lambda random: plant_module(base.module, "fp16 overflow", random, x)):
        control = module_without_overflow(planted.model)
        with torch.no_grad():
            answer = control(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(answer, clean[base.graph.graph.output[0].name], atol=0.1)
        assert planted.model.get_submodule(planted.changed[0]).scale > 1
