"""Commands on how two models differ: compare, judge, comparisons, bisect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.compareview import comparison_json, print_comparison
from mlscope_lab.cli.options import AsJson, Inputs, samples_from
from mlscope_lab.cli.output import (
    DIVERGED,
    RUN_FAILED,
    Column,
    command,
    console,
    emit_json,
    heading,
    note,
    print_pairs,
    print_table,
    quiet_stdout,
)
from mlscope_lab.cli.text import plain
from mlscope_lab.errors import ComparisonError, InputError, nearest

if TYPE_CHECKING:
    from mlscope_lab.divergence.result import Comparison

__all__ = ["bisect", "compare", "comparisons", "judge", "side_from"]

_NUMBERS = ("threads", "batch_size")
_SIDE_HELP = (
    "a backend's name, or what differs as KEY=VALUE,...: model, backend, precision (float32, float16, bfloat16, "
    "int8-dynamic, int8-static), graph_optimization, threads, batch_size, device, preprocess "
    "(a YAML file: input names and their lists of steps)."
)
Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL [MODEL] [FILE]...",
        help="One model for both sides, or two; then input files. A model is a published name, a manifest or a model "
             "file.",
    ),
]  # fmt: skip
SideA = Annotated[str | None, typer.Option("--a", metavar="SIDE", help=f"The reference: {_SIDE_HELP}")]
SideB = Annotated[str | None, typer.Option("--b", metavar="SIDE", help="The side that is judged, in the same form.")]
Tolerance = Annotated[
    str | None,
    typer.Option(
        "--tolerance", metavar="TOLERANCE",
        help="'calibrated' (what arithmetic alone does to each value, times a factor; the default where a side shows "
             "it), 'by dtype', 'atol=1e-5,rtol=1e-3', or a YAML file with tolerances by name.",
    ),
]  # fmt: skip
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write the comparison as a page.")]
Worst = Annotated[int, typer.Option("--worst", min=0, help="How many of the worst pairs to list.")]
StoredComparison = Annotated[
    str, typer.Argument(metavar="RUN", help="Id of a comparison, a unique beginning of one, or 'latest'.")
]


def side_from(text: str | None, hint: str) -> dict[str, Any]:
    """Return what ``--a`` or ``--b`` means to `mlscope_lab.compare`.

    Parameters
    ----------
    text
        ``KEY=VALUE,...``; a part without "=" is a backend's name. None says nothing.
    hint
        The option, for messages.

    Raises
    ------
    typer.BadParameter
        If a key is not known, comes twice, or its value is no number where one is wanted.
    InputError
        If a file of steps cannot be read.
    """
    if text is None:
        return {}
    known = ["model", "backend", "precision", "graph_optimization", *_NUMBERS, "device", "preprocess"]
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            key, value = "backend", key
        if key not in known or not value:
            raise typer.BadParameter(f"{part!r} is not KEY=VALUE. Keys: {', '.join(known)}.{nearest(key, known)}",
                                     param_hint=hint)  # fmt: skip
        if key in found:
            raise typer.BadParameter(f"{key} is given twice", param_hint=hint)
        if key in _NUMBERS:
            if not value.isdigit() or int(value) < 1:
                raise typer.BadParameter(f"{key} must be a whole number of at least 1, not {value!r}", param_hint=hint)
            found[key] = int(value)
        else:
            found[key] = _steps(Path(value)) if key == "preprocess" else value
    return found


def _steps(path: Path) -> dict[str, Any]:
    """Read preprocessing steps: a mapping from input names to lists of steps."""
    from mlscope_lab.manifest.yaml_ import parse_yaml

    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the preprocessing steps could not be read: {error}") from error
    return parse_yaml(text, where=str(path))


def _models_and_files(given: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell a second model from input files: it has a model's ending, is a folder, or has the form of a name."""
    first, *rest = given
    if rest and _is_model(rest[0]):
        return [first, rest[0]], rest[1:]
    return [first], rest


def _is_model(word: str) -> bool:
    from mlscope_lab.subject import SUFFIXES

    path = Path(word).expanduser()
    ending = path.suffix.lower()
    if ending in {*SUFFIXES, ".yaml", ".yml"} or path.is_dir():
        return True
    # cat.jgp is a file that does not exist, resnet50 and resnet50@1.0 are names
    return not path.exists() and "=" not in word and not ending[1:].isalpha()


def _sides(models: Sequence[str], a: str | None, b: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return both sides, or say that nothing tells them apart."""
    one, other = {"model": models[0]} | side_from(a, "'--a'"), {"model": models[-1]} | side_from(b, "'--b'")
    if one == other:
        raise typer.BadParameter(
            "both sides are the same; say what differs, such as --a pytorch --b onnxruntime, --b precision=float16, or "
            "give two models", param_hint="'--b'",
        )  # fmt: skip
    return one, other


def _finish(found: Comparison, html: Path | None, as_json: bool, worst: int) -> None:
    """Print a comparison, write its page, and leave with the status that says what it found."""
    page = None
    if html is not None:
        from mlscope_lab.report import write_report

        page = write_report(found, html)
    if as_json:
        emit_json(comparison_json(found, worst=worst) | {"page": page})
    else:
        print_comparison(console(), found, worst=worst)
        if page is not None:
            print(f"Page: {page}")
    if found.tree.attrs["status"] == "failed":
        raise typer.Exit(RUN_FAILED)
    if found.diverges:
        raise typer.Exit(DIVERGED)
    if not comparison_json(found, worst=0)["judged"]:
        raise InputError("Nothing could be judged: no value of one side was paired with one of the other")


@command
def compare(
    models: Models,
    inputs: Inputs = None,
    *,
    a: SideA = None,
    b: SideB = None,
    tolerance: Tolerance = None,
    fixes: Annotated[
        Path | None, typer.Option("--fixes", metavar="FILE", help="Pairs that you decided, as YAML; see the docs.")
    ] = None,
    calibrate: Annotated[
        list[str] | None,
        typer.Option(
            "--calibrate", help="Source of the calibrated tolerance: rounding (default), threads, float64. Repeatable."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Take at most so many inputs.")] = None,
    shadow: Annotated[
        bool,
        typer.Option("--shadow/--no-shadow", help="Tell the layer that makes an error from those that inherit it."),
    ] = True,
    keep_tensors: Annotated[
        bool, typer.Option("--keep-tensors", help="Also store all values; they are large.")
    ] = False,
    repro: Annotated[
        Path | None,
        typer.Option(
            "--repro",
            metavar="FOLDER",
            help="Also write the smallest ONNX model that shows the difference, with inputs.",
        ),
    ] = None,
    html: Html = None,
    worst: Worst = 8,
    as_json: AsJson = False,
) -> None:
    """Tell where two models part ways, which layer is to blame, and what it does to the answer.

    Layers are aligned across frameworks, layouts and fusion; the result is stored.

    mlscope compare efficientnet-lite0 cat.jpg --a pytorch --b onnxruntime

    mlscope compare model.onnx cat.npy --b precision=float16

    mlscope compare old.onnx new.onnx --input x.npy --tolerance atol=1e-5,rtol=1e-3

    Without files both sides get the same seeded values. Exit status 0: all values are within tolerance; 4: some are
    not; 1: bad input, or nothing could be compared; 3: a side failed, what was found until then is stored.

    --json: {"run_id", "status", "model", "sides": [a, b], "diverges", "sentence", "explanation", "consequence",
    "first_divergent" and "culprit" (a pair or null), "pairs" (count), "judged", "beyond", "worst": [pair, ...],
    "alignment", "unmatched": [{"side", "operation", "type", "reason"}], "observer_effect", "samples", "calibration",
    "warnings", "failure", "repro", "page"}. A pair has the columns of ml.compare(...).pairs().
    """
    names, files = _models_and_files(models)
    one, other = _sides(names, a, b)
    given = samples_from([*files, *(inputs or [])])
    from mlscope_lab.config import load_settings
    from mlscope_lab.divergence.compare import compare as run

    try:
        with quiet_stdout():
            found = run(
                one, other, given, tolerance=tolerance, fixes=() if fixes is None else fixes, shadow=shadow,
                calibrate=tuple(calibrate or ("rounding",)), keep_tensors=keep_tensors, limit=limit,
                repro=repro, settings=load_settings(),
            )  # fmt: skip
    except ComparisonError as error:
        from mlscope_lab.divergence.result import Comparison

        if not isinstance(error.comparison, Comparison):
            raise
        found = error.comparison
        note(str(error))
    _finish(found, html, as_json, worst)


@command
def judge(
    run: StoredComparison = "latest",
    *,
    tolerance: Tolerance = None,
    html: Html = None,
    worst: Worst = 8,
    as_json: AsJson = False,
) -> None:
    """Show a stored comparison; with --tolerance judge it anew, without running anything.

    The stored one stays as it is. Exit status as of compare.

    --json: as of compare.
    """
    from mlscope_lab.divergence.stored import open_comparison

    found = open_comparison(run)
    _finish(found if tolerance is None else found.judge(tolerance), html, as_json, worst)


@command
def comparisons(
    *,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most so many.")] = None,
    as_json: AsJson = False,
) -> None:
    """List stored comparisons, newest first.

    --json: a list of objects with run_id, created_at, model, backend (of both sides), status, device.
    """
    from mlscope_lab.divergence.stored import comparisons as stored

    table = stored() if limit is None else stored(limit=limit)
    found = [{"run_id": str(run_id), **{str(k): v for k, v in row.items()}} for run_id, row in table.iterrows()]
    if as_json:
        emit_json(found)
        return
    if not found:
        note("No comparison is stored. mlscope compare MODEL --a pytorch --b onnxruntime makes one.")
        return
    columns = [Column(title="comparison", keep=9), Column(title="created", keep=3),
               Column(title="model", keep=8, shrink=True), Column(title="backends", keep=7, shrink=True),
               Column(title="status", keep=6)]  # fmt: skip
    rows = [(r["run_id"], f"{r['created_at']:%Y-%m-%d %H:%M}", r["model"], r["backend"], r["status"]) for r in found]
    print_table(console(), columns, rows)


@command
def bisect(
    models: Models,
    inputs: Inputs = None,
    *,
    a: SideA = None,
    b: SideB = None,
    limit: Annotated[
        float, typer.Option("--limit", min=0.0, help="Largest relative L2 error of an answer that still holds.")
    ] = 0.01,
    method: Annotated[
        str,
        typer.Option(
            "--method", help="'binary' (few runs, a smallest set) or 'linear' (each layer alone, all culprits)."
        ),
    ] = "binary",
    as_json: AsJson = False,
) -> None:
    """Find the layers that must stay as side a has them, such as in float32, for the answer of side b to hold.

    mlscope bisect model.onnx x.npy --b precision=float16

    Exit status 0: the named layers suffice, or none is needed; 4: they do not.

    --json: {"verdict", "holds", "limit", "method", "runs", "error_all" (every layer on b), "error_result", "must_stay":
    [{"operations", "types", "scope", "error"}], "groups" (count)}.
    """
    from mlscope_lab.config import load_settings
    from mlscope_lab.divergence.bisect import bisect_precision

    names, files = _models_and_files(models)
    one, other = _sides(names, a, b)
    given = samples_from([*files, *(inputs or [])])
    with quiet_stdout():
        data = bisect_precision(one, other, given, limit=limit, method=method, settings=load_settings())  # type: ignore[arg-type]
    stay = [
        {name: data[name].values[i].item() if name == "error" else str(data[name].values[i])
         for name in ("operations", "types", "scope", "error")}
        for i, needed in enumerate(data["must_stay"].values) if needed
    ]  # fmt: skip
    told = {name: data.attrs[name] for name in ("verdict", "holds", "limit", "method", "runs", "error_all",
                                                "error_result")}  # fmt: skip
    if as_json:
        emit_json({**told, "must_stay": stay, "groups": data.sizes["group"]})
    else:
        out = console()
        heading(out, f"{data.attrs['side_b']} with layers of {data.attrs['side_a']}")
        out.print(plain(told["verdict"]))
        print_pairs(out, [("error, all on b", f"{told['error_all']:.3g}"),
                          ("error, these on a", f"{told['error_result']:.3g}"),
                          ("limit", f"{told['limit']:g}"), ("runs", told["runs"])])  # fmt: skip
        if stay:
            columns = [Column(title="layer", keep=9, shrink=True), Column(title="type", keep=8, shrink=True),
                       Column(title="scope", keep=4, shrink=True)]  # fmt: skip
            print_table(out, columns, [(s["operations"], s["types"], s["scope"]) for s in stay], title="Must stay on a")
    if not told["holds"]:
        raise typer.Exit(DIVERGED)
