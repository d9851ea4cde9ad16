"""What a comparison says, in sentences and as a command that repeats it: shared by the page and the command line."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlscope_lab.divergence import schema
from mlscope_lab.report.comparison_figures import Row, allowed_error, pair_rows, who
from mlscope_lab.report.units import format_number

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "answer_sentence",
    "code",
    "command_line",
    "consequence",
    "explanation",
    "inputs_in_memory",
    "title",
    "worst_pairs",
]

_SEEDED = "seeded values"
_NOT_A_FILE = re.compile(r"sample \d+|given")
_ARRAY_FILE = "x.npy"


def title(tree: xr.DataTree) -> str:
    """Return what was compared: ``efficientnet-lite0: onnxruntime (float16) against pytorch``."""
    a, b = tree.attrs["sides"]
    if a["model"] != b["model"]:
        return f"{b['model']} on {b['label']} against {a['model']} on {a['label']}"
    return f"{a['model']}: {b['label']} against {a['label']}"


def _row(tree: xr.DataTree, attribute: str) -> Row | None:
    position = int(tree.attrs[attribute])
    return pair_rows(tree)[position] if position >= 0 else None


def _scope(row: Row) -> str:
    return f" (in {row['scope']})" if row["scope"] and row["scope"] not in who(row) else ""


def answer_sentence(tree: xr.DataTree) -> str:
    """Return in a sentence or two whether the sides agree, and where they part; of a failed one why it failed."""
    a, b = tree.attrs["sides"]
    names = (a["label"], b["label"]) if a["label"] != b["label"] else (f"{a['model']} (a)", f"{b['model']} (b)")
    failed = tree.attrs["status"] == "failed"
    if schema.PAIRS not in tree.children:
        return f"Nothing could be compared. {tree.attrs['failure']['message']}"
    before = f"{tree.attrs['failure']['message'].rstrip('.')}. Until then: " if failed else ""
    pairs = tree[schema.PAIRS].dataset
    first = _row(tree, "first_divergent")
    if not pairs.sizes["pair"]:
        return f"{before}{names[1]} and {names[0]} have no value in common that could be compared."
    if first is not None:
        return (
            f"{before}{names[1]} parts from {names[0]} at {who(first)}{_scope(first)}: the largest error is "
            f"{format_number(first['max_abs_error'])}, where {format_number(first['allowed'])} is allowed."
        )
    unjudged = int((pairs["diverges"].values == -1).sum())
    rest = f"; {unjudged} could not be judged" if unjudged else ""
    of = f"of {pairs.sizes['pair']} values none is out of its tolerance{rest}"
    return f"{before}{names[1]} agrees with {names[0]}: {of}."


def explanation(tree: xr.DataTree) -> str:
    """Return who makes the error and who inherits it; "" where nothing diverges."""
    first, culprit = _row(tree, "first_divergent"), _row(tree, "culprit")
    if first is None:
        return ""
    pairs = tree[schema.PAIRS].dataset
    injects = int((pairs["injects"].values == 1).sum())
    beyond = pairs["diverges"].values == 1
    inherits = int((beyond & (pairs["injects"].values == 0)).sum())
    if culprit is None:
        if not (pairs["injects"].values >= 0).any():
            return "No layer was fed the reference's inputs, so who makes the error is not told from who inherits it."
        return "Fed the reference's inputs, no layer makes more than its rounding: the error adds up over several."
    others = f" {injects - 1} more inject some of their own." if injects > 1 else ""
    heirs = f" {inherits} later values are out of tolerance only because they inherit it." if inherits else ""
    return (
        f"{who(culprit)}{_scope(culprit)} makes it: fed the reference's own inputs, it is off by "
        f"{format_number(culprit['injected_max_abs'])}, where rounding explains up to "
        f"{format_number(culprit['injected_tolerance'])}.{heirs}{others}"
    )


def consequence(tree: xr.DataTree) -> str:
    """Return what the difference does to the answer; "" where no sample was compared."""
    if schema.SAMPLES not in tree.children:
        return ""
    samples = tree[schema.SAMPLES].dataset
    done = samples["status"].values == "compared"
    one, other = samples["top1_a"].values[done], samples["top1_b"].values[done]
    errors = samples["output_max_abs_error"].values[done]
    parts = []
    ranked = (one >= 0) & (other >= 0)
    if ranked.any():
        flips = int((one != other)[ranked].sum())
        count = int(ranked.sum())
        if count == 1:
            k = int(np.flatnonzero(ranked)[0])
            parts.append(f"The first answer changes from class {one[k]} to {other[k]}." if flips
                         else f"The first answer is the same, class {one[k]}.")  # fmt: skip
        else:
            parts.append(f"The first answer changes for {flips} of {count} samples." if flips
                         else f"The first answer is the same for all {count} samples.")  # fmt: skip
    finite = errors[~np.isnan(errors)]
    if len(finite):
        largest = float(finite.max())
        parts.append(f"The outputs differ by up to {format_number(largest)}." if largest else "The outputs are equal.")
    left = int((~done).sum())
    if left:
        parts.append(f"{left} sample{'s' if left > 1 else ''} could not be compared.")
    return " ".join(parts)


def worst_pairs(tree: xr.DataTree, count: int) -> list[int]:
    """Return the pairs most worth a look: the culprit, the first divergent, then those farthest out of tolerance."""
    pairs = tree[schema.PAIRS].dataset
    error, allowed = pairs["max_abs_error"].values, allowed_error(pairs)
    with np.errstate(divide="ignore", invalid="ignore"):
        excess = np.where(error == 0, 0.0, error / allowed)
    excess = np.where(np.isnan(error), np.inf, np.nan_to_num(excess, nan=-1.0, posinf=np.inf))
    order = [int(tree.attrs["culprit"]), int(tree.attrs["first_divergent"])]
    order += [int(i) for i in np.argsort(-excess, kind="stable")]
    return [i for i in dict.fromkeys(order) if i >= 0 and excess[i] != 0][:count]


def _given(side: Mapping[str, Any]) -> str:
    """Return the model as it was named: a path, where it was one."""
    return str(side.get("given") or side["model"])


def _options(side: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a caller says of a side."""
    said: dict[str, Any] = {"model": _given(side)} if _given(side) != _given(other) else {}
    said["backend"] = side["backend"]
    if side.get("asked_precision"):
        said["precision"] = side["asked_precision"]
    if side.get("graph_optimization", "default") != "default":
        said["graph_optimization"] = side["graph_optimization"]
    for name in ("batch_size", "threads"):
        if side.get(name):
            said[name] = int(side[name])
    if side.get("device", "cpu") != "cpu":
        said["device"] = side["device"]
    return said


def _inputs(tree: xr.DataTree) -> list[str]:
    """Return the input files by name; ``x.npy`` for what was given as an array, which only its process had."""
    if schema.SAMPLES not in tree.children:
        return []
    names = [str(n) for n in tree[schema.SAMPLES].dataset["sample"].values]
    each = [name for joined in names for name in joined.split(", ") if name != _SEEDED]
    return list(dict.fromkeys(_ARRAY_FILE if _NOT_A_FILE.fullmatch(name) else name for name in each))


def inputs_in_memory(tree: xr.DataTree) -> bool:
    """Tell whether an input was an array in memory, for which the command names `x.npy`."""
    return _ARRAY_FILE in _inputs(tree)


def _live(tree: xr.DataTree) -> bool:
    return any(side.get("format") == "live" for side in tree.attrs["sides"])


def _steps_differ(tree: xr.DataTree) -> bool:
    a, b = tree.attrs["sides"]
    return bool(a.get("preprocessing") != b.get("preprocessing"))


def command_line(tree: xr.DataTree) -> str | None:
    """Return the command that makes the comparison again; None where a command cannot say it."""
    if _live(tree) or _steps_differ(tree):
        return None
    a, b = tree.attrs["sides"]
    words = ["mlscope", "compare"]
    words += dict.fromkeys((_given(a), _given(b)))
    for name in _inputs(tree):
        words += ["--input", name]
    for letter, side, other in (("a", a, b), ("b", b, a)):
        options = {k: v for k, v in _options(side, other).items() if k != "model"}
        words += [f"--{letter}", ",".join(f"{k}={v}" for k, v in options.items())]
    return shlex.join(str(w) for w in words)


def code(tree: xr.DataTree) -> str | None:
    """Return Python that makes the comparison again; None for live objects, which only their session has."""
    if _live(tree):
        return None
    a, b = tree.attrs["sides"]
    said = [_options(a, b), _options(b, a)]
    if _steps_differ(tree):
        for options, side in zip(said, (a, b), strict=True):
            options["preprocess"] = {item["name"]: item["steps"] for item in side["preprocessing"]}
    inputs = _inputs(tree)
    given = "None" if not inputs else json.dumps(inputs[0] if len(inputs) == 1 else inputs, ensure_ascii=False)
    shared = f", model={json.dumps(_given(a), ensure_ascii=False)}" if _given(a) == _given(b) else ""
    return (
        "import mlscope_lab as ml\n\n"
        f"found = ml.compare(\n    {said[0]!r},\n    {said[1]!r},\n    {given}{shared},\n)\n"
        "print(found.summary())\nfound.pairs()"
    )
