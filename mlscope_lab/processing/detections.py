"""Boxes out of the raw outputs of detectors.

A manifest says under ``attributes.detections`` how, in the fields of `DetectionOutputs`; the outputs that it names are
read together, which a step of one output cannot do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mlscope_lab.analysis.detections import Detections, suppress_overlapping
from mlscope_lab.errors import InputError, nearest

__all__ = ["DetectionOutputs"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class DetectionOutputs:
    """Where a detector's boxes are.

    Attributes
    ----------
    boxes
        Output with four numbers a box on its last axis.
    scores
        Output with a score a box, or one a class on a last axis of its own.
    classes
        Output with the class of each box, where scores do not tell it.
    score_index
        Of scores by class: the one class that counts; None for the best one of each box.
    form
        What the four numbers are: "xyxy" or "yxyx" corners, "cxcywh" centre and size, or "offsets" of the corners of a
        grid's windows, in units of the window (MTCNN's first stage).
    window, stride
        For "offsets": size of a window and distance of neighbours in pixels of the input.
    grid
        For "offsets": which of x and y comes first among the grid's axes.
    threshold
        Least score of a detection.
    suppress
        Intersection over union above which the worse of two detections of a class goes; None keeps all.
    """

    boxes: str
    scores: str
    classes: str | None = None
    score_index: int | None = None
    form: Literal["xyxy", "yxyx", "cxcywh", "offsets"] = "xyxy"
    window: float = 12.0
    stride: float = 2.0
    grid: Literal["xy", "yx"] = "yx"
    threshold: float = 0.5
    suppress: float | None = None

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> DetectionOutputs:
        """Return what a manifest or a caller wrote; raise InputError for an unknown or missing key."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in given:
            if name not in known:
                raise InputError(f"detections has no '{name}'. Known: {', '.join(known)}.{nearest(str(name), known)}")
        for name in ("boxes", "scores"):
            if name not in given:
                raise InputError(f"detections must name the output with the {name}")
        made = cls(**given)
        if made.form not in {"xyxy", "yxyx", "cxcywh", "offsets"}:
            raise InputError(f"detections: form must be xyxy, yxyx, cxcywh or offsets, not {made.form!r}")
        return made

    def read(self, outputs: Mapping[str, Array]) -> Detections:
        """Return the detections in one picture.

        Parameters
        ----------
        outputs
            Of one sample, by declared name, without batch axis.

        Raises
        ------
        InputError
            If an output is missing or their shapes do not fit together.
        """
        for name in (self.boxes, self.scores, *([self.classes] if self.classes else [])):
            if name not in outputs:
                raise InputError(f"detections: there is no output '{name}'. Outputs: {', '.join(outputs)}")
        boxes = np.asarray(outputs[self.boxes], dtype=np.float64)
        scores = np.asarray(outputs[self.scores], dtype=np.float64)
        if boxes.ndim < 2 or boxes.shape[-1] != 4:
            raise InputError(f"detections: output '{self.boxes}' must have four numbers a box, not {boxes.shape}")
        classes = None
        if scores.ndim == boxes.ndim and scores.shape[:-1] == boxes.shape[:-1]:
            if self.score_index is not None:
                scores = scores[..., self.score_index]
            else:
                classes = scores.argmax(axis=-1)
                scores = scores.max(axis=-1)
        if scores.shape != boxes.shape[:-1]:
            raise InputError(f"detections: {boxes.shape[:-1]} boxes, but {scores.shape} scores")
        if self.classes is not None:
            classes = np.asarray(outputs[self.classes])
        kept = scores >= self.threshold
        corners = self._corners(boxes)[kept]
        # a detector may well answer a box of negative size; it covers nothing
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2])
        found = Detections.of(corners, scores[kept], None if classes is None else classes[kept])
        return found if self.suppress is None else suppress_overlapping(found, iou=self.suppress)

    def _corners(self, boxes: Array) -> Array:
        if self.form == "xyxy":
            return boxes.copy()
        if self.form == "yxyx":
            return boxes[..., [1, 0, 3, 2]]
        if self.form == "cxcywh":
            half = boxes[..., 2:] / 2
            return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)
        if boxes.ndim != 3:
            raise InputError(f"detections: offsets need a grid (two axes and four numbers), not {boxes.shape}")
        first, second = np.meshgrid(*(np.arange(n) * self.stride for n in boxes.shape[:2]), indexing="ij")
        x, y = (first, second) if self.grid == "xy" else (second, first)
        windows = np.stack([x, y, x + self.window, y + self.window], axis=-1)
        return np.asarray(windows + boxes * self.window)
