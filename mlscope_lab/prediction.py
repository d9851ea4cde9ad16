"""What a model answered: to look at, and as the ``/outputs`` group of a run."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.processing.recipe import Recipe, answers

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Prediction", "outputs_dataset"]

_KEEP_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one predict.

    Attributes
    ----------
    model, backend
        Who answered.
    outputs
        Raw output arrays by name, batch axis included.
    answers
        For each output with post-processing, one answer a sample; ranked classes are tuples of (index, label, score).
    """

    model: str
    backend: str
    outputs: Mapping[str, npt.NDArray[Any]]
    answers: Mapping[str, list[Any]]

    @property
    def ranked(self) -> list[tuple[Any, ...]]:
        """Ranked classes of each sample, best first; empty where the model ranks nothing."""
        for samples in self.answers.values():
            if samples and all(_is_ranking(s) for s in samples):
                return samples
        return []

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON-able data: the documented output of ``mlscope predict --json``."""
        return {
            "model": self.model,
            "backend": self.backend,
            "samples": [
                [{"index": r.index, "label": r.label, "score": r.score} for r in sample] for sample in self.ranked
            ],
            "outputs": [
                {"name": name, "dtype": array.dtype.name, "shape": list(array.shape)}
                for name, array in self.outputs.items()
            ],
        }

    def __repr__(self) -> str:
        lines = [f"Prediction by {self.model} on {self.backend}"]
        for number, sample in enumerate(self.ranked):
            if len(self.ranked) > 1:
                lines.append(f"  sample {number}")
            lines += [f"  {r.score:8.4f}  {r.index:>6}  {r.label or ''}".rstrip() for r in sample]
        if not self.ranked:
            lines += [f"  {name}: {array.dtype.name}{list(array.shape)}" for name, array in self.outputs.items()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{number}</td><td>{r.index}</td><td>{html.escape(str(r.label or ''))}</td>"
            f"<td>{r.score:.4f}</td></tr>"
            for number, sample in enumerate(self.ranked)
            for r in sample
        ]
        if not rows:
            return f"<pre>{html.escape(repr(self))}</pre>"
        title = f"{html.escape(self.model)} on {html.escape(self.backend)}"
        return (
            f"<table><caption>{title}</caption><thead><tr><th>sample</th><th>index</th><th>label</th><th>score</th>"
            f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )


def outputs_dataset(recipe: Recipe, outputs: Mapping[str, npt.NDArray[Any]]) -> xr.Dataset:
    """Return the answers of the last measured iteration.

    Parameters
    ----------
    recipe
        Declared post-processing.
    outputs
        Output arrays by name.

    Returns
    -------
    xarray.Dataset
        For ranked classes ``index``, ``label`` and ``score`` along (sample, rank). Each raw output of up to 1 MB is
        variable ``output_N`` with dimensions of its own; its name is in the attributes, and for larger ones the
        attribute ``not_kept`` says so.
    """
    import xarray as xr

    data = xr.Dataset()
    for name, samples in answers(recipe, outputs).items():
        if not samples or not all(_is_ranking(s) for s in samples):
            continue
        dims = ("sample", "rank")
        data["index"] = (dims, np.array([[r.index for r in s] for s in samples], dtype=np.int64))
        labels = np.empty((len(samples), len(samples[0])), dtype=object)
        labels[:] = [[r.label or "" for r in s] for s in samples]
        data["label"] = (dims, labels)
        data["score"] = (dims, np.array([[r.score for r in s] for s in samples]), {"long_name": f"score of {name}"})
        break
    not_kept = {}
    for number, (name, array) in enumerate(outputs.items()):
        if array.nbytes > _KEEP_BYTES or array.dtype.kind not in "biuf":
            not_kept[name] = f"{array.dtype.name}{list(array.shape)}, {array.nbytes} bytes"
            continue
        dims_of = tuple(f"output_{number}_axis_{axis}" for axis in range(array.ndim))
        data[f"output_{number}"] = (dims_of, array, {"name": name})
    if not_kept:
        data.attrs["not_kept"] = not_kept
    return data


def _is_ranking(sample: Any) -> bool:
    return isinstance(sample, tuple) and len(sample) > 0 and all(hasattr(r, "score") for r in sample)
