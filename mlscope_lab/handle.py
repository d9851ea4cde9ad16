"""A model in the hand: load once, then predict and profile."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from mlscope_lab.backends.base import Session, SessionOptions, TensorSpec
from mlscope_lab.collectors.environment import available_cores
from mlscope_lab.config import Settings, load_settings
from mlscope_lab.errors import InputError, RunError
from mlscope_lab.launchers.codec import model_to_json, options_to_json
from mlscope_lab.launchers.subprocess_ import Limits, TaskFailure, run_in_subprocess
from mlscope_lab.prediction import Prediction
from mlscope_lab.processing.recipe import answers, declared_outputs
from mlscope_lab.progress import Reporter, reporter
from mlscope_lab.subject import Subject, resolve, samples_for

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Model", "load"]


class Model:
    """A model bound to a backend; a context manager that closes its session.

    Made by `load`. The session opens at the first predict and stays open.
    """

    def __init__(self, model: Any, *, backend: str | None, example: Any, options: SessionOptions,
                 settings: Settings, progress: bool | Reporter | None) -> None:  # fmt: skip
        self._given, self._settings, self._progress = model, settings, progress
        with reporter(progress, total=1, title="load") as line:
            self._subject = resolve(model, backend=backend, example=example, settings=settings, reporter=line)
        self._example = example
        self._options = options
        self._session: Session | None = None

    def __repr__(self) -> str:
        subject = self._subject
        return f"<Model {subject.name} {subject.version} on {subject.backend.name}, {subject.task}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._subject.name

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self._subject.backend.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs as the backend has them (opens the session)."""
        return self._opened().inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs as the backend has them (opens the session)."""
        return self._opened().outputs

    @property
    def subject(self) -> Subject:
        """What the model is and who runs it."""
        return self._subject

    @property
    def session(self) -> Session:
        """The open session (opens it)."""
        return self._opened()

    def _opened(self) -> Session:
        if self._session is None:
            self._session = self._subject.open(self._options)
        return self._session

    def predict(self, input: Any, *, on: str = "inline", timeout_s: float | None = None) -> Prediction:  # noqa: A002
        """Run the model on a sample, a list of samples, or a dict of these by input name.

        Parameters
        ----------
        input
            Path, bytes, picture or array; arrays of the declared type and shape are fed as they are.
        on
            "inline" (this process, session kept open) or "subprocess" (a fresh process, which may crash).
        timeout_s
            Seconds allowed, for ``on="subprocess"``.

        Raises
        ------
        InputError
            If the input cannot be read or does not fit.
        RunError
            If the process crashed, hung or ran out of memory (``on="subprocess"``).
        """
        if on not in {"inline", "subprocess"}:
            raise InputError(f"on must be 'inline' or 'subprocess', not {on!r}")
        if self._subject.live is not None:
            return self._predict_live(input, on)
        if input is None:
            raise InputError(f"'{self.name}' needs an input: a path, bytes, a picture, an array, or a list of these")
        samples, arrays = samples_for(self._subject, input, None)
        task = {
            "recipe": self._subject.recipe.to_json(), "samples": samples, "batch_size": None, "seed": 0, "symbols": {}
        }  # fmt: skip
        if on == "subprocess":
            outputs = self._in_subprocess(task, arrays, timeout_s)
        else:
            from mlscope_lab.launchers.tasks import feeds_of

            session = self._opened()
            outputs = session.predict(feeds_of(task, arrays, session))
        return self._answered(outputs)

    def _predict_live(self, given: Any, on: str) -> Prediction:
        from mlscope_lab.subject import as_feeds

        if on != "inline":
            raise InputError("A live object predicts inline; save it to a file to run it in another process")
        session = self._opened()
        feeds = as_feeds(given)
        if not isinstance(given, Mapping):
            feeds = dict(zip((s.name for s in session.inputs), feeds.values(), strict=False))
        return self._answered(session.predict(feeds))

    def _answered(self, outputs: Mapping[str, npt.NDArray[Any]]) -> Prediction:
        recipe = self._subject.recipe
        named = declared_outputs(recipe, outputs)
        return Prediction(model=self.name, backend=self.backend, outputs=named, answers=answers(recipe, named))

    def _in_subprocess(
        self, task: dict[str, Any], arrays: dict[str, npt.NDArray[np.generic]], timeout_s: float | None
    ) -> dict[str, npt.NDArray[Any]]:
        if self._subject.files is None:
            raise InputError("A live object has no files to open in another process")
        found: dict[str, npt.NDArray[Any]] = {}

        def listen(message: dict[str, Any], sent: dict[str, npt.NDArray[Any]]) -> None:
            if message["type"] == "outputs":
                found.update({name: sent[str(i)] for i, name in enumerate(message["names"])})

        task = {
            **task,
            "kind": "predict",
            "backend": self.backend,
            "model": model_to_json(self._subject.files),
            "options": options_to_json(self._options),
        }
        try:
            run_in_subprocess(task, arrays, limits=Limits(timeout_s=timeout_s), on_message=listen)
        except TaskFailure as failure:
            if failure.error is not None:
                raise failure.error from None
            raise RunError(f"{self.name} on {self.backend}: {failure.message}", kind=failure.kind) from None
        return found

    def profile(self, input: Any = None, **arguments: Any) -> xr.DataTree:  # noqa: A002
        """Measure the model on its backend; see `mlscope_lab.profile`."""
        from mlscope_lab.runner import profile

        given = input if input is not None else self._example
        arguments.setdefault("settings", self._settings)
        return profile(self._given, given, backend=self.backend, **arguments)

    def close(self) -> None:
        """Close the session; the next predict opens it again."""
        if self._session is not None:
            self._session.close()
            self._session = None


def load(
    model: Any,
    *,
    backend: str | None = None,
    example: Any = None,
    threads: int | None = None,
    device: str = "cpu",
    precision: str | None = None,
    graph_optimization: str | None = None,
    settings: Settings | None = None,
    progress: bool | Reporter | None = None,
) -> Model:
    """Get a model ready: find it, fetch its files, convert them if the backend needs another form.

    Parameters
    ----------
    model
        Name of a published model, path of a manifest or model file, or a live object.
    backend
        "onnxruntime", "pytorch", "tensorflow", ...; default the first that opens it as published.
    example
        Example inputs of a live object.
    threads, device
        As for `mlscope_lab.profile`.
    precision, graph_optimization
        As for `mlscope_lab.backends.base.SessionOptions`: what to compute in instead of the published precision, and
        how far the framework may rewrite the graph.
    settings
        Default: what the environment says.
    progress
        True, False, a reporter of your own, or None for a line where somebody can see it.

    Examples
    --------
    >>> import mlscope_lab as ml
    >>> model = ml.load(lambda x: x * 2, example=[[1.0, 2.0]])
    >>> model.predict([[3.0, 4.0]]).outputs["output"].tolist()
    [[6.0, 8.0]]
    """
    options = SessionOptions(
        threads=threads or available_cores(), device=device, precision=precision, graph_optimization=graph_optimization
    )
    return Model(model, backend=backend, example=example, options=options, settings=settings or load_settings(),
                 progress=progress)  # fmt: skip
