"""`mlscope_lab.cost`: what a model costs, without running it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlscope_lab.config import Settings, load_settings
from mlscope_lab.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    import xarray as xr

    from mlscope_lab.backends.base import TensorSpec
    from mlscope_lab.progress import Reporter
    from mlscope_lab.static import BatchSize, CostTable

__all__ = ["cost"]


def cost(
    model: Any,
    input: Any = None,  # noqa: A002 - the word of every other call
    *,
    backend: str | None = None,
    batch_size: BatchSize = "given",
    symbols: Mapping[str, int] | None = None,
    settings: Settings | None = None,
    progress: bool | Reporter | None = None,
) -> xr.Dataset:
    """Count operations, weights, bytes and peak activation memory of a model by layer, running nothing.

    Multiply-adds (``macs``) are those of convolutions and matrix products, and exact; a multiply-add is 2 FLOPs; all
    other operators are counted apart, by kind. The dataset's ``conventions`` say every rule.

    Parameters
    ----------
    model
        A published model's name, the path of a model file, a live torch module, exported program, Keras model or ONNX
        model; or a run of a published model, for what it ran, at its batch size and lengths.
    input
        Example arrays for a live object that does not say what it takes: one, a tuple, or a dict by name. Their shapes
        count, not their values.
    backend
        Whose form of a published model is counted ("onnxruntime", "pytorch"); default the first that fits.
    batch_size
        Length of the first axis: a number, "given" for that of `input` (1 where nothing says it), or None to get
        polynomials in ``batch``.
    symbols
        Lengths of other symbolic dimensions. Of those not given a published model's usual lengths are taken; where
        `batch_size` is None they stay symbols, as far as the cost is a polynomial in them.
    settings, progress
        As for `mlscope_lab.profile`.

    Returns
    -------
    xarray.Dataset
        See `mlscope_lab.analysis.static.to_dataset`. With open symbols, `mlscope_lab.analysis.static.evaluate` gives
        the numbers at some lengths, as each element's own ``evaluate`` does.

    Raises
    ------
    UnsupportedModelError
        If it cannot be counted without being run.
    InputError
        If a live object needs example inputs and none are given.

    Notes
    -----
    Other tools put other things into one number. For EfficientNet-Lite0 the multiply-adds are 385,187,552, and half of
    what ``torch.utils.flop_counter`` counts is the same; torchinfo says 385,230,568, for it adds one for each weight
    of a normalisation and for each bias; fvcore says 398,725,664, with normalisation and pooling in it. For
    DenseNet-121 in ONNX they are 2,834,161,664, and onnx-tool says 3,369,419,240, with all elementwise operators in it.
    Tools that hook leaf modules miss convolutions that own a padding child, and find 0.0013 G in EfficientNet-Lite0.

    Examples
    --------
    >>> import mlscope_lab as ml
    >>> import torch
    >>> found = ml.cost(torch.nn.Linear(3, 4), torch.zeros(2, 3), batch_size=None)
    >>> str(found["macs"].values[0]), found["macs"].values[0].evaluate(batch=8)
    ('12*batch', 96)
    """
    from mlscope_lab.analysis.static import to_dataset
    from mlscope_lab.static import CONVENTIONS
    from mlscope_lab.trace.accessor import ensure_registered

    if batch_size is not None and batch_size != "given" and (not isinstance(batch_size, int) or batch_size < 1):
        raise InputError(f"batch_size must be a positive integer, 'given' or None, not {batch_size!r}")
    wrong = [name for name, length in (symbols or {}).items() if not isinstance(length, int) or length < 1]
    if wrong:
        raise InputError(f"The length of symbol '{wrong[0]}' must be a positive integer")
    ensure_registered()
    if _is_run(model):
        run, model = model, str(model.attrs["model"])
        backend = backend or str(run.attrs["backend"])
        batch_size = int(run.attrs["batch_size"]) if batch_size == "given" else batch_size
        symbols = {**run.attrs.get("symbols", {}), **(symbols or {})}
    if isinstance(model, str | os.PathLike):
        table = _of_name(model, input, backend, batch_size, symbols, settings or load_settings(), progress)
    else:
        from mlscope_lab.static import cost_of

        table = cost_of(model, inputs=_specs(input), batch_size=batch_size, symbols=symbols)
    return to_dataset(table, conventions=CONVENTIONS)


def _is_run(model: Any) -> bool:
    import xarray as xr

    return isinstance(model, xr.DataTree) and {"model", "backend", "batch_size"} <= set(model.attrs)


def _specs(given: Any) -> list[TensorSpec] | None:
    """Return the names, types and shapes of example inputs; values are not looked at."""
    if given is None:
        return None
    import numpy as np

    from mlscope_lab.backends.base import TensorSpec

    if not isinstance(given, Mapping):
        items = given if isinstance(given, tuple) else (given,)
        given = {f"input_{i}": value for i, value in enumerate(items)}
    specs = []
    for name, value in given.items():
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            value = np.asarray(value)
        dtype = str(value.dtype).removeprefix("torch.").partition("'")[0]
        if dtype == "object":
            raise InputError(f"Input '{name}' must be an array of numbers, not {type(value).__name__}")
        specs.append(TensorSpec(name=str(name), dtype=dtype, shape=tuple(int(n) for n in value.shape)))
    return specs


def _of_name(
    model: str | os.PathLike[str], given: Any, backend: str | None, batch_size: BatchSize,
    symbols: Mapping[str, int] | None, settings: Settings, progress: bool | Reporter | None,
) -> CostTable:  # fmt: skip
    from dataclasses import replace

    from mlscope_lab.progress import reporter
    from mlscope_lab.static import cost_of, cost_of_files
    from mlscope_lab.subject import resolve

    path = Path(os.fspath(model)).expanduser()
    if path.suffix.lower() == ".onnx" and backend is None:  # needs no backend that runs it
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        return cost_of(path, name=path.stem, batch_size=batch_size, symbols=symbols)
    with reporter(progress, total=1, title="cost") as line:
        subject = resolve(model, backend=backend, example=None, settings=settings, reporter=line)
    files = subject.files
    if files is None:
        raise UnsupportedModelError(f"'{subject.name}' has no files to count")
    if files.derived_from is not None and files.format == "saved_model":  # the graph that it was made of says the same
        subject = resolve(model, backend="onnxruntime", example=None, settings=settings, reporter=line)
        files = subject.files or files
    specs = _specs(given)
    if specs is not None:
        files = replace(files, inputs=tuple(specs))
    known, usual = dict(symbols or {}), {n: v for n, v in subject.symbols.items() if n != "batch"}
    if batch_size is not None:
        known = {**usual, **known}
    return cost_of_files(files, batch_size=batch_size, symbols=known, usual=usual)
