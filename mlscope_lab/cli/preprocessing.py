"""Commands about answers: agreement of two sides over a dataset, and the sweep of the preprocessing."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlscope_lab.cli.options import AsJson, BackendName, ModelName, Threads
from mlscope_lab.cli.output import Column, command, console, emit_json, heading, print_pairs, print_table, quiet_stdout
from mlscope_lab.cli.text import percent
from mlscope_lab.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console

__all__ = ["agreement", "sweep"]

_SIDE_HELP = "A backend, or FIELD=VALUE with commas between them: backend=pytorch,precision=int8-dynamic."
_WORTH_TELLING = 0.01
"""Least excess of a pair that is printed: a hundredth of the probability."""
_SIDE_NUMBERS = {"threads", "batch_size"}
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Most samples to take.")]
Samples = Annotated[
    str,
    typer.Argument(metavar="SAMPLES", help="A file, a folder (one subfolder a class, or none), or a dataset's name."),
]


def side_from(text: str) -> dict[str, Any]:
    """Return a side as the command line writes it.

    Parameters
    ----------
    text
        The name of a backend, or ``FIELD=VALUE`` with commas between.
    """
    if "=" not in text:
        return {"backend": text}
    side: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        if not equals or not name or not value:
            raise typer.BadParameter(f"{part!r} is not FIELD=VALUE, such as precision=float16")
        if name in _SIDE_NUMBERS:
            if not value.isdigit():
                raise typer.BadParameter(f"{name} must be a whole number, not {value!r}")
            side[name] = int(value)
        else:
            side[name] = value
    return side


def _existing(samples: str) -> str:
    # a name with an ending or a separator was meant as a path; say so before a model is fetched
    path = Path(samples).expanduser()
    if not path.exists() and (path.suffix or len(path.parts) > 1):
        raise InputError(f"{samples}: there is no such file or folder")
    return samples


def observed_from(text: str | None) -> Any:
    """Return what ``--observed`` means: a class, a label, or either with ``:PROBABILITY``."""
    if text is None:
        return None
    name, colon, score = text.rpartition(":")
    if colon:
        with contextlib.suppress(ValueError):
            return (int(name) if name.isdecimal() else name, float(score))
    return int(text) if text.isdecimal() else text


_ROW = (
    "name", "axes", "size", "changed_share", "js_mean", "effect_mean", "excess", "flips_together", "accuracy",
    "accuracy_low", "accuracy_high", "accuracy_change", "mcnemar_p", "explains", "fit", "explanation_rank",
)  # fmt: skip
_CAUSE = ("cause", "cause_axes", "cause_tied", "cause_sentence")


def sweep_json(data: xr.Dataset) -> dict[str, Any]:
    """Return what ``mlscope sweep --json`` prints; see the command's help."""
    kept = [name for name in _ROW if name in data]
    rows = [
        {
            **{name: data[name].values[i] for name in kept},
            "samples": [
                {"sample": sample, "top1": data["top1"].values[i, s], "label": data["label"].values[i, s],
                 "score": data["score"].values[i, s], "js_divergence": data["js_divergence"].values[i, s],
                 "input_rms": data["input_rms"].values[i, s], "input_max_abs": data["input_max_abs"].values[i, s]}
                for s, sample in enumerate(data["sample"].values)
            ],
        }
        for i in range(data.sizes["variation"])
    ]  # fmt: skip
    declared = [
        {"sample": sample, "top1": data["declared_top1"].values[s], "label": data["declared_label"].values[s],
         "score": data["declared_top1_score"].values[s], "target": data["target"].values[s]}
        for s, sample in enumerate(data["sample"].values)
    ]  # fmt: skip
    told = ("model", "backend", "dataset", "input", "output", "probabilities", "not_applicable", "left_out")
    cause = {name: data.attrs[name] for name in _CAUSE} if "cause" in data.attrs else None
    return {**{name: data.attrs[name] for name in told}, "declared": declared, "cause": cause, "variations": rows}


def _answer(label: Any, index: Any) -> str:
    return "-" if index < 0 else f"{index} {label}".strip()


def _print_sweep(out: Console, data: xr.Dataset, limit: int) -> None:
    heading(out, f"{data.attrs['model']} on {data.attrs['backend']}: other preprocessing, other answers")
    one = data.sizes["sample"] == 1
    declared = (
        f"{_answer(data['declared_label'].values[0], data['declared_top1'].values[0])} "
        f"{data['declared_top1_score'].values[0]:.3f}" if one else None
    )  # fmt: skip
    accuracy = f"{percent(data['declared_accuracy'].item())}" if "declared_accuracy" in data else None
    print_pairs(out, [("as declared", declared), ("accuracy as declared", accuracy),
                      ("samples", None if one else data.sizes["sample"]),
                      ("left out", ", ".join(data.attrs["left_out"])),
                      ("cause", data.attrs.get("cause_sentence"))])  # fmt: skip
    columns = [Column(title="variation", keep=9, shrink=True), Column(title="answer", keep=8, shrink=True),
               Column(title="score", right=True, keep=7), Column(title="JS", right=True, keep=6),
               Column(title="input rms", right=True, keep=3)]  # fmt: skip
    if not one:
        columns[1:3] = [Column(title="changed", right=True, keep=8), Column(title="accuracy", right=True, keep=7),
                        Column(title="McNemar p", right=True, keep=5)]  # fmt: skip
    if "fit" in data:
        columns.append(Column(title="explains", right=True, keep=8))
    rows = []
    order = data["explanation_rank"].values.argsort() if "fit" in data else range(data.sizes["variation"])
    # hundreds of pairs would hide what one change does; those that tell something have a table of their own
    singles = [i for i in order if data["size"].values[i] == 1]
    for i in singles[:limit]:
        row: list[Any] = [data["name"].values[i]]
        if one:
            row += [_answer(data["label"].values[i, 0], data["top1"].values[i, 0]),
                    f"{data['score'].values[i, 0]:.3f}"]  # fmt: skip
        else:
            row += [percent(data["changed_share"].values[i]),
                    percent(data["accuracy"].values[i]) if "accuracy" in data else "-",
                    f"{data['mcnemar_p'].values[i]:.2g}" if "mcnemar_p" in data else "-"]  # fmt: skip
        row += [f"{data['js_mean'].values[i]:.4f}", f"{data['input_rms'].values[i].mean():.3g}"]
        if "fit" in data:
            row.append(f"{data['fit'].values[i]:.3f}" if data["explains"].values[i] == 1 else "no")
        rows.append(row)
    if rows:
        print_table(out, columns, rows, title="Best explanations" if "fit" in data else "Largest effects")
    if len(singles) > limit:
        out.print(f"  and {len(singles) - limit} more; --limit-rows shows them")


def _print_pairs(out: Console, data: xr.Dataset, count: int = 5) -> None:
    """Print the pairs that do most beyond the sum of their parts."""
    excess = data["excess"].values
    found = [i for i in (-excess).argsort() if excess[i] > _WORTH_TELLING][:count]
    if not found:
        return
    columns = [Column(title="pair", keep=9, shrink=True), Column(title="effect", right=True, keep=7),
               Column(title="of its parts", right=True, keep=6),
               Column(title="flips together", right=True, keep=5)]  # fmt: skip
    effect, part = data["effect_mean"].values, data["part"].values
    rows = [
        (data["name"].values[i], f"{effect[i]:.3f}", " and ".join(f"{effect[p]:.3f}" for p in part[i]),
         data["flips_together"].values[i])
        for i in found
    ]  # fmt: skip
    print_table(out, columns, rows, title="Pairs that do more than their parts")


@command
def sweep(
    model: ModelName,
    samples: Samples,
    *,
    observed: Annotated[
        str | None,
        typer.Option(
            "--observed",
            metavar="CLASS[:PROBABILITY]",
            help="An answer that somebody saw, by index or label: name the change that explains it.",
        ),
    ] = None,
    backend: BackendName = None,
    pairs: Annotated[bool, typer.Option("--pairs/--no-pairs", help="Put changes together, two at a time.")] = True,
    axis: Annotated[
        list[str] | None, typer.Option("--axis", help="Vary this alone, such as normalisation. Repeat for several.")
    ] = None,
    limit: Limit = None,
    threads: Threads = None,
    rows: Annotated[int, typer.Option("--limit-rows", min=1, help="Rows to print.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Prepare an input in every way that people get wrong, and tell what each does to the answer.

    --json: {"model", "backend", "dataset", "input", "output", "probabilities", "not_applicable" {NAME: REASON},
    "left_out" {SAMPLE: REASON}, "declared": [{"sample", "top1", "label", "score", "target"}], "cause": null or
    {"cause", "cause_axes", "cause_tied", "cause_sentence"}, "variations": [{"name", "axes", "size", "changed_share",
    "js_mean", "effect_mean", "excess", "flips_together", with targets "accuracy", "accuracy_low", "accuracy_high",
    "accuracy_change", "mcnemar_p", with --observed "explains", "fit", "explanation_rank", "samples": [{"sample",
    "top1", "label", "score", "js_divergence", "input_rms", "input_max_abs"}]}]}, the largest effect first.
    """
    from mlscope_lab.config import load_settings
    from mlscope_lab.divergence.sweep import sweep_preprocessing

    with quiet_stdout():
        data = sweep_preprocessing(
            model, _existing(samples), observed=observed_from(observed), backend=backend, pairs=pairs, axes=axis,
            limit=limit, threads=threads, settings=load_settings(),
        )  # fmt: skip
    if as_json:
        emit_json(sweep_json(data))
    else:
        out = console()
        _print_sweep(out, data, rows)
        _print_pairs(out, data)


def agreement_json(data: xr.Dataset) -> dict[str, Any]:
    """Return what ``mlscope agreement --json`` prints; see the command's help."""
    totals = {str(name): v.values.item() for name, v in data.data_vars.items() if not v.dims}
    along = [str(name) for name, v in data.data_vars.items() if v.dims == ("sample",)]
    rows = [
        {"sample": sample, **{name: data[name].values[i] for name in along}}
        for i, sample in enumerate(data["sample"].values)
    ]
    told = ("verdict", "status", "dataset", "asked", "left_out", "confidence", "intervals", "test", "notes")
    return {**{name: data.attrs[name] for name in told}, "failure": data.attrs.get("failure"), "totals": totals,
            "samples": rows, "sides": data.attrs["sides"]}  # fmt: skip


def _print_agreement(out: Console, data: xr.Dataset, limit: int) -> None:
    a, b = (side["label"] for side in data.attrs["sides"])
    heading(out, f"a: {a}; b: {b}")
    out.print(data.attrs["verdict"])
    measures = ("mean_jensen_shannon", "mean_hellinger", "mean_kullback_leibler", "mean_topk_overlap",
                "mean_output_max_abs_error", "mean_output_cosine")  # fmt: skip
    print_pairs(out, [(name.replace("_", " "), f"{data[name].item():.4g}") for name in measures if name in data])
    rows = []
    if "score_a" in data:
        for i, sample in enumerate(data["sample"].values):
            if not data["agrees"].values[i]:
                rows.append([
                    sample, _answer(data["label_a"].values[i], data["top1_a"].values[i]),
                    f"{data['score_a'].values[i]:.3f}", _answer(data["label_b"].values[i], data["top1_b"].values[i]),
                    f"{data['score_b'].values[i]:.3f}", f"{data['margin_a'].values[i]:.3f}",
                ])  # fmt: skip
    if rows:
        score = Column(title="score", right=True, keep=5)
        columns = [Column(title="sample", keep=9, shrink=True), Column(title="a", keep=8, shrink=True), score,
                   Column(title="b", keep=8, shrink=True), score,
                   Column(title="margin of a", right=True, keep=4)]  # fmt: skip
        print_table(out, columns, rows[:limit], title="Answers that flip")
    if len(rows) > limit:
        out.print(f"  and {len(rows) - limit} more; --limit-rows shows them")
    for name, reason in data.attrs["left_out"].items():
        out.print(f"  left out: {name}: {reason}")


@command
def agreement(
    model: ModelName,
    samples: Samples,
    side: Annotated[list[str], typer.Option("--side", "-s", metavar="SIDE", help=f"Give two. {_SIDE_HELP}")],
    *,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples in each predict.")] = 8,
    limit: Limit = None,
    rows: Annotated[int, typer.Option("--limit-rows", min=1, help="Rows to print.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Ask two sides about a whole dataset, and tell which answers flip and whether accuracy differs.

    --json: {"verdict", "status", "dataset", "asked", "left_out" {SAMPLE: REASON}, "confidence", "intervals", "test",
    "notes", "failure": null or {"side", "sample", "message"}, "totals" {NAME: value}, "samples": [{"sample", "target",
    "top1_a", "top1_b", "label_a", "label_b", "agrees", ...}], "sides"}. Exit status 3: a side failed half way.
    """
    from mlscope_lab.cli.output import RUN_FAILED
    from mlscope_lab.config import load_settings
    from mlscope_lab.divergence.consequences import agreement as measure

    if len(side) != 2:
        raise typer.BadParameter(f"give exactly two, not {len(side)}", param_hint="'--side'")
    a, b = (side_from(text) for text in side)
    with quiet_stdout():
        data = measure(a, b, _existing(samples), model=model, batch_size=batch_size, limit=limit,
                       settings=load_settings())  # fmt: skip
    if as_json:
        emit_json(agreement_json(data))
    else:
        _print_agreement(console(), data, rows)
    if data.attrs["status"] == "failed":
        raise typer.Exit(RUN_FAILED)
