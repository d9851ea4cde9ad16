"""The demo: one real model names two real pictures in every installed framework, and is measured in each.

EfficientNet-Lite0 with its ImageNet weights, on the pictures 'chelsea' (a cat) and 'coffee' that scikit-image carries.
Each framework runs in processes of its own, so that this process holds none of them and a crash is a message.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends import load_backend
from mlscope_lab.config import Settings
from mlscope_lab.errors import BackendNotAvailableError, InputError
from mlscope_lab.progress import Quiet, Reporter, reporter

if TYPE_CHECKING:
    import xarray as xr

    from mlscope_lab.prediction import Prediction

__all__ = ["BACKENDS", "MODEL", "PICTURES", "TOLERANCE", "Answer", "DemoResult", "Difference", "run_demo"]

MODEL = "efficientnet-lite0"
BACKENDS = ("pytorch", "onnxruntime", "tensorflow")
PICTURES = {"cat": "chelsea.png", "coffee": "coffee.png"}
TOLERANCE = 1e-3
"""Largest difference of two backends' logits (which span about 20) that still counts as agreement."""
ITERATIONS = 70
"""Enough for a 90th percentile, and three frameworks at layer level within a minute on two cores."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The best class of one picture on one backend."""

    backend: str
    picture: str
    index: int
    label: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The largest absolute difference between the logits of two backends, over both pictures."""

    a: str
    b: str
    picture: str
    max_abs: float


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo found.

    Attributes
    ----------
    model
        Name of the model.
    answers
        Best class of each picture on each backend.
    differences
        One for each pair of backends: the picture on which they differ most.
    runs
        The measured run of each backend, in the store.
    left_out
        Backends that were not run: {name: reason and way out}.
    report
        The HTML page.
    prepare_s
        Seconds for fetching, converting and predicting.
    seconds
        Seconds altogether.
    """

    model: str
    answers: tuple[Answer, ...]
    differences: tuple[Difference, ...]
    runs: Mapping[str, xr.DataTree]
    left_out: Mapping[str, str] = field(default_factory=dict)
    report: Path
    prepare_s: float
    seconds: float

    @property
    def largest_difference(self) -> float | None:
        """The largest logit difference over all pairs and pictures; None with fewer than two backends."""
        found = [d.max_abs for d in self.differences]
        # max() would lose a NaN, which is the worst disagreement
        return None if not found else float(np.max(found))

    @property
    def agree(self) -> bool:
        """Whether all pairs lie under the tolerance and all backends name each picture alike."""
        named = {(a.picture, a.index) for a in self.answers}
        largest = self.largest_difference
        return len(named) <= len(PICTURES) and (largest is None or largest < TOLERANCE)


class _Shared(Quiet):
    """One progress line that several calls use, and none of them closes."""

    def __init__(self, line: Reporter) -> None:
        self._line = line
        self.stage, self.advance = line.stage, line.advance  # type: ignore[method-assign]
        self.note, self.bytes = line.note, line.bytes  # type: ignore[method-assign]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


def pictures() -> dict[str, Path]:
    """Return the demo's pictures as files of the installed scikit-image; the package is not imported.

    Raises
    ------
    InputError
        If it is not installed, or lacks them.
    """
    advice = "Install it with: pip install 'mlscope-lab[demo]'"
    try:
        package = distribution("scikit-image")
    except PackageNotFoundError:
        raise InputError(f"The demo's pictures come from scikit-image, which is not installed. {advice}") from None
    found = {name: Path(str(package.locate_file(f"skimage/data/{file}"))) for name, file in PICTURES.items()}
    for name, path in found.items():
        if not path.is_file():
            raise InputError(f"scikit-image {package.version} has no picture of the {name} at {path}. {advice}")
    return found


def _differences(logits: Mapping[str, npt.NDArray[Any]], names: Sequence[str]) -> list[Difference]:
    """Compare every pair of backends; arrays are (picture, class)."""
    found = []
    for a, b in itertools.combinations(logits, 2):
        per_picture = np.abs(logits[a].astype(np.float64) - logits[b].astype(np.float64)).max(axis=1)
        worst = int(np.argmax(per_picture))  # the first NaN, if there is one
        found.append(Difference(a=a, b=b, picture=names[worst], max_abs=float(per_picture[worst])))
    return found


def _answers(backend: str, prediction: Prediction, names: Sequence[str]) -> list[Answer]:
    best = [sample[0] for sample in prediction.ranked]
    return [
        Answer(backend=backend, picture=name, index=int(b.index), label=str(b.label or ""), score=float(b.score))
        for name, b in zip(names, best, strict=True)
    ]


def _available(backends: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    usable, left_out = [], {}
    for name in backends:
        found = load_backend(name).availability()
        if found.ok:
            usable.append(name)
        else:
            left_out[name] = f"{found.reason}. Install with: {found.install}"
    if not usable:
        raise BackendNotAvailableError(
            f"None of {', '.join(backends)} is installed. Install all with: pip install 'mlscope-lab[demo]'"
        )
    return usable, left_out


def run_demo(
    output: Path,
    settings: Settings,
    progress: bool | Reporter | None = None,
    *,
    backends: Sequence[str] = BACKENDS,
    iterations: int = ITERATIONS,
) -> DemoResult:
    """Predict, compare, measure and report.

    Parameters
    ----------
    output
        Folder of the HTML page; made where it is missing.
    settings
        Where caches and runs are.
    progress
        As for `mlscope_lab.profile`.
    backends
        Which to run; those that are not installed are left out and named.
    iterations
        Measured predicts in each pass.

    Raises
    ------
    MlscopeError
        If the model cannot be had or converted, a process fails, or no backend is installed.
    """
    from mlscope_lab.handle import load
    from mlscope_lab.report import write_report
    from mlscope_lab.runner import profile

    begin = time.monotonic()
    files = pictures()
    names = list(files)
    usable, left_out = _available(backends)
    answers: list[Answer] = []
    logits: dict[str, npt.NDArray[Any]] = {}
    runs: dict[str, xr.DataTree] = {}
    with reporter(progress, total=3 * len(usable) + 1, title="demo") as line:
        shared = _Shared(line)
        for name in usable:
            line.stage(f"{name}: fetching and converting")
            try:
                model = load(MODEL, backend=name, settings=settings, progress=shared)
            except BackendNotAvailableError as error:  # a conversion may need a framework that is not here
                left_out[name] = str(error)
                line.advance(3)
                continue
            line.stage(f"{name}: predicting")
            with model:
                prediction = model.predict([str(path) for path in files.values()], on="subprocess")
            answers += _answers(name, prediction, names)
            logits[name] = next(iter(prediction.outputs.values()))
            line.advance()
        prepared = time.monotonic()
        for name in logits:
            runs[name] = profile(
                MODEL, str(files["cat"]), backend=name, level="layer", iterations=iterations, settings=settings,
                progress=shared,
            )  # fmt: skip
        if not runs:
            raise BackendNotAvailableError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
        line.stage("writing the report")
        output.mkdir(parents=True, exist_ok=True)
        report = write_report(list(runs.values()), output / "mlscope-demo.html")
        line.advance()
    return DemoResult(
        model=MODEL, answers=tuple(answers), differences=tuple(_differences(logits, names)), runs=runs,
        left_out=left_out, report=Path(report).absolute(), prepare_s=prepared - begin,
        seconds=time.monotonic() - begin,
    )  # fmt: skip
