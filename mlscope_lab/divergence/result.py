"""A comparison in the hand: what it found, in words and as tables, judged again as often as wanted."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlscope_lab.divergence import schema
from mlscope_lab.divergence.validate import validate_comparison
from mlscope_lab.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Comparison"]


class Comparison:
    """What two sides have in common and where they part.

    Made by `mlscope_lab.compare` and `mlscope_lab.open_comparison`.

    Parameters
    ----------
    tree
        As in `mlscope_lab.divergence.schema`.

    Attributes
    ----------
    tree
        The comparison as one `xarray.DataTree`: everything that is known, as stored.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        validate_comparison(tree)
        self.tree = tree

    @property
    def run_id(self) -> str:
        """Id in the store."""
        return str(self.tree.attrs["run_id"])

    @property
    def sides(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Facts of the reference and of the other side."""
        a, b = self.tree.attrs["sides"]
        return a, b

    @property
    def diverges(self) -> bool:
        """Whether any pair is out of its tolerance."""
        return int(self.tree.attrs["first_divergent"]) >= 0

    @property
    def first_divergent(self) -> dict[str, Any] | None:
        """The first pair that is out of tolerance, as a row of `pairs`; None where there is none."""
        return self._row(int(self.tree.attrs["first_divergent"]))

    @property
    def culprit(self) -> dict[str, Any] | None:
        """The pair whose own group adds the largest error beside its tolerance; None where none does."""
        return self._row(int(self.tree.attrs["culprit"]))

    def _row(self, position: int) -> dict[str, Any] | None:
        if position < 0 or schema.PAIRS not in self.tree.children:
            return None
        data = self.tree.children[schema.PAIRS].dataset
        row = {str(n): v.values[position].item() if v.dtype != object else str(v.values[position])
               for n, v in data.variables.items() if v.dims == ("pair",)}  # fmt: skip
        return {"pair": position, **row}

    def pairs(self) -> pd.DataFrame:
        """Return the aligned pairs, one row each, in the reference's order; columns as in `schema.PAIRS`."""
        import pandas as pd

        data = self.tree.children.get(schema.PAIRS)
        if data is None:
            return pd.DataFrame()
        columns = {n: v.values for n, v in data.dataset.variables.items() if v.dims == ("pair",)}
        return pd.DataFrame(columns).rename_axis("pair")

    def unmatched(self) -> pd.DataFrame:
        """Return the operations that are in no pair, by side, with the reason."""
        return self._table(schema.UNMATCHED)

    def samples(self) -> pd.DataFrame:
        """Return the input samples: what each side answered, and which were left out."""
        return self._table(schema.SAMPLES)

    def _table(self, group: str) -> pd.DataFrame:
        import pandas as pd

        node = self.tree.children.get(group)
        if node is None:
            return pd.DataFrame()
        return pd.DataFrame({n: v.values for n, v in node.dataset.variables.items()})

    def judge(self, tolerance: Any = None) -> Comparison:
        """Judge by another tolerance; nothing runs again.

        Parameters
        ----------
        tolerance
            As for `mlscope_lab.compare`.

        Returns
        -------
        Comparison
            A new one; this one stays as it is.

        Raises
        ------
        InputError
            If the tolerance is malformed, or "calibrated" and nothing was calibrated.
        """
        from mlscope_lab.divergence.judging import judge_tree

        return Comparison(judge_tree(self.tree, tolerance))

    def summary(self) -> str:
        """Return what was found, in a few sentences."""
        attrs, (a, b) = self.tree.attrs, self.sides
        one, other = (f"{side['model']} on {side['label']}" for side in (a, b))
        lines = [f"{other} against {one if a['model'] != b['model'] else a['label']} (the reference)"]
        if attrs["status"] == "failed":
            lines.append(f"FAILED: {attrs['failure']['message']} What was compared until then is here.")
        if schema.PAIRS not in self.tree.children:
            return "\n".join(lines)
        aligned = attrs["alignment"]
        judged = self.tree.children[schema.PAIRS].dataset["diverges"].values
        paired = f"{aligned['paired_a']} of {aligned['compute_a']} compute operations of the reference are paired, "
        lines.append(f"{paired if aligned['compute_a'] else ''}{judged.size} values compared.")
        first, culprit = self.first_divergent, self.culprit
        unknown = int((judged < 0).sum())
        if first is None and unknown:
            lines.append(f"No value is known to be out of its tolerance; {unknown} could not be judged.")
        elif first is None:
            lines.append("No value is out of its tolerance: the sides agree but for rounding.")
        elif not first["operations_b"]:
            lines.append(
                f"The sides are fed different inputs: '{first['value_b']}' differs by up to "
                f"{_number(first['max_abs_error'])}, and what follows inherits that."
            )
        else:
            lines.append(
                f"First divergent: {_who(first)}, largest error {_number(first['max_abs_error'])} "
                f"(tolerance {_number(first['atol'])}{_plus(first['rtol'])})."
            )
        if culprit is not None:
            lines.append(
                f"Injected by {_who(culprit)}: on the reference's own inputs it is off by "
                f"{_number(culprit['injected_max_abs'])}, where rounding explains "
                f"{_number(culprit['injected_tolerance'])}."
            )
        lines.extend(self._answers())
        lines.extend(
            f"Observer effect on side {seen['side']}: stepping changes its outputs by up to "
            f"{_number(seen['max_abs_difference'])}."
            for seen in attrs["observer_effect"]
            if not seen["equal"]
        )
        return "\n".join(lines)

    def _answers(self) -> list[str]:
        samples = self.samples()
        if not len(samples):
            return []
        done = samples[samples["status"] == "compared"]
        found = []
        ranked = done[(done["top1_a"] >= 0) & (done["top1_b"] >= 0)]
        if len(ranked):
            flips = int((ranked["top1_a"] != ranked["top1_b"]).sum())
            if flips:
                found.append(f"The first answer differs for {flips} of {len(ranked)} samples.")
            else:
                found.append(f"The first answer is the same{f' for all {len(ranked)} samples' * (len(ranked) > 1)}.")
        worst = done["output_max_abs_error"].max() if len(done) else math.nan
        if not math.isnan(worst):
            found.append(f"The outputs differ by up to {_number(worst)}.")
        left = len(samples) - len(done)
        if left:
            found.append(f"{left} sample(s) could not be compared; see samples().")
        return found

    def __repr__(self) -> str:
        return f"<Comparison {self.run_id}>\n{self.summary()}"

    def _repr_html_(self) -> str:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in self.summary().splitlines())
        return f"<div><b>Comparison {html.escape(self.run_id)}</b><ul>{lines}</ul></div>"


def _who(row: Mapping[str, Any]) -> str:
    """Name a pair by the operations of the other side."""
    own, types = str(row["operations_b"]).split(";"), str(row["types_b"]).split(";")
    if own == [""]:
        return f"input '{row['value_b']}'"
    if len(own) != len(types):  # names of TensorFlow Lite hold semicolons themselves
        own = [str(row["operations_b"])] * len(types)
    first = f"{types[-1]} '{own[-1]}'"
    others = f" and the {len(own) - 1} before it in its group" if len(own) > 1 else ""
    return f"{first}{others}" + (f" (in {row['scope']})" if row["scope"] else "")


def _number(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.3g}"


def _plus(rtol: float) -> str:
    return f" + {_number(rtol)} |a|" if rtol and not math.isnan(rtol) else ""


def as_tree(given: Any) -> xr.DataTree:
    """Return the tree of a comparison or of a tree.

    Raises
    ------
    InputError
        If it is neither.
    """
    import xarray as xr

    if isinstance(given, Comparison):
        return given.tree
    if isinstance(given, xr.DataTree):
        validate_comparison(given)
        return given
    raise InputError(f"A comparison is wanted, not {type(given).__name__}; make one with mlscope_lab.compare(...)")
