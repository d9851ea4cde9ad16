"""Boxes: how much they overlap, which of two sets belong together, which are duplicates.

Boxes are (n, 4): left, top, right, bottom, in any unit; right and bottom are not below left and top.

References
----------
Everingham et al., "The PASCAL Visual Object Classes challenge", IJCV 88 (2010), for intersection over union of at least
0.5 as "the same object"; Kuhn, "The Hungarian method for the assignment problem", Naval Research Logistics 2 (1955), as
`scipy.optimize.linear_sum_assignment` implements it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mlscope_lab.errors import InputError

__all__ = ["IOU", "Detections", "Matched", "intersection_over_union", "match_detections", "suppress_overlapping"]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

IOU = 0.5
"""Least overlap of boxes that are the same object."""


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in one picture.

    Attributes
    ----------
    boxes
        (n, 4) left, top, right, bottom.
    scores
        (n,).
    classes
        (n,) class of each; zeros where there is only one.
    """

    boxes: Floats
    scores: Floats
    classes: Indices

    @classmethod
    def of(cls, boxes: Any, scores: Any, classes: Any = None) -> Detections:
        """Return checked detections.

        Raises
        ------
        InputError
            If lengths differ, or a box is turned inside out or not finite.
        """
        found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        weights = np.asarray(scores, dtype=np.float64).reshape(-1)
        kinds = np.zeros(len(found), np.int64) if classes is None else np.asarray(classes).astype(np.int64).reshape(-1)
        if not len(found) == len(weights) == len(kinds):
            raise InputError(f"{len(found)} boxes, {len(weights)} scores and {len(kinds)} classes do not fit together")
        if not (np.isfinite(found).all() and np.isfinite(weights).all()):
            raise InputError("boxes and scores must be finite")
        if (found[:, 2:] < found[:, :2]).any():
            raise InputError("a box is left, top, right, bottom; one has its right below its left, or is upside down")
        return cls(boxes=found, scores=weights, classes=kinds)

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, kw_only=True)
class Matched:
    """Which detections of b are those of a.

    Attributes
    ----------
    pairs
        (n, 2) positions in a and in b.
    overlap
        (n,) intersection over union of each pair.
    lost, gained
        Positions in a of those that b lacks, and in b of those that a lacks.
    """

    pairs: Indices
    overlap: Floats
    lost: Indices
    gained: Indices


def intersection_over_union(a: Floats, b: Floats) -> Floats:
    """Return the overlap of every box of a with every box of b, (n, m), 0 to 1; 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.prod(np.maximum(high - low, 0.0), axis=2)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - common
    found: Floats = np.divide(common, union, out=np.zeros_like(common), where=union > 0)
    return found


def match_detections(a: Detections, b: Detections, *, iou: float = IOU) -> Matched:
    """Pair detections of one class that overlap: as many as possible, and of these the pairs that overlap most.

    Parameters
    ----------
    a, b
        Of the same picture, in the same unit.
    iou
        Least intersection over union of a pair.
    """
    if not 0 < iou <= 1:
        raise InputError(f"iou must be above 0 and at most 1, not {iou}")
    overlap = intersection_over_union(a.boxes, b.boxes)
    allowed = (overlap >= iou) & (a.classes[:, None] == b.classes[None, :])
    if allowed.any():
        from scipy.optimize import linear_sum_assignment

        # a further pair is worth more than any overlap
        rows, columns = linear_sum_assignment(np.where(allowed, 1 + min(allowed.shape) + overlap, 0.0), maximize=True)
        kept = allowed[rows, columns]
        rows, columns = rows[kept].astype(np.int64), columns[kept].astype(np.int64)
    else:
        rows = columns = np.empty(0, dtype=np.int64)
    return Matched(
        pairs=np.stack([rows, columns], axis=1), overlap=overlap[rows, columns],
        lost=np.setdiff1d(np.arange(len(a)), rows), gained=np.setdiff1d(np.arange(len(b)), columns),
    )  # fmt: skip


def suppress_overlapping(found: Detections, *, iou: float = IOU) -> Detections:
    """Return the detections without those that overlap a better one of their class (greedy non-maximum suppression)."""
    order = np.argsort(-found.scores, kind="stable")
    kept: list[int] = []
    for index in order.tolist():
        others = [k for k in kept if found.classes[k] == found.classes[index]]
        if others:
            overlap = intersection_over_union(found.boxes[[index]], found.boxes[others])
            if (overlap > iou).any():
                continue
        kept.append(index)
    return Detections(boxes=found.boxes[kept], scores=found.scores[kept], classes=found.classes[kept])
