from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

from mlscope_lab.cli.output import Column, command, console, emit_json, jsonable, print_table, quiet_stdout
from mlscope_lab.errors import InputError, RunError

COLUMNS = (Column(title="name", keep=9, shrink=True), Column(title="size", keep=5, right=True), Column(title="note"))


def _printed(capsys: pytest.CaptureFixture[str], rows: list[tuple[object, ...]]) -> list[str]:
    print_table(console(), COLUMNS, rows)
    return capsys.readouterr().out.splitlines()


def test_a_wide_table_shows_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    head, row = _printed(capsys, [("a" * 20, 3, "fine")])
    assert head.split() == ["name", "size", "note"]
    assert row.split() == ["a" * 20, "3", "fine"]


def test_a_narrow_table_keeps_the_important_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "22")
    lines = _printed(capsys, [("a" * 40, 3, "not worth it here")])
    assert lines[0].split() == ["name", "size"] or lines[0].split() == ["name"]
    assert all(len(line) <= 22 for line in lines)
    assert "…" in lines[1]


def test_text_is_printed_literally(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = _printed(capsys, [("[red]x[/red] :cat: \x1b[31m", 1, "[/]")])[1]
    assert "[red]x[/red] :cat: \\x1b[31m" in row
    assert "[/]" in row
    assert "\x1b" not in row


def test_json_has_no_nan_and_knows_numpy() -> None:
    given = {"a": math.nan, "b": np.float32(0.5), "c": (np.int64(3), np.array([1.0, np.inf])), 4: Path("x"), "d": None}
    assert jsonable(given) == {"a": None, "b": 0.5, "c": [3, [1.0, None]], "4": "x", "d": None}


def test_json_keeps_letters_where_the_stream_can(capsys: pytest.CaptureFixture[str]) -> None:
    emit_json({"label": "naïve 猫"})
    assert json.loads(capsys.readouterr().out) == {"label": "naïve 猫"}


def test_what_frameworks_print_on_descriptor_one_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with quiet_stdout():
        os.write(1, b"a framework's banner\n")
    os.write(1, b"ours\n")
    captured = capfd.readouterr()
    assert captured.out == "ours\n"
    assert captured.err == "a framework's banner\n"


def _outcome(error: BaseException, *arguments: str) -> Result:
    app = typer.Typer(add_completion=False)

    @app.command()
    @command
    def fail(*, as_json: bool = typer.Option(False, "--json")) -> None:
        raise error

    return CliRunner().invoke(app, list(arguments))


def test_an_error_of_ours_is_one_message() -> None:
    result = _outcome(InputError("cat.jpg: [b]no[/b] such file"))
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "Error: cat.jpg: [b]no[/b] such file\n")


def test_an_error_as_json_is_one_line_on_standard_error() -> None:
    result = _outcome(InputError("no"), "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    assert json.loads(result.stderr) == {"error": {"type": "InputError", "message": "no"}}


def test_a_recorded_failure_has_a_status_of_its_own() -> None:
    result = _outcome(RunError("crashed", run_id="20261122T003000Z-1a2b3c4d", kind="crash"), "--json")
    assert result.exit_code == 3
    assert json.loads(result.stderr)["error"] == {
        "type": "RunError", "message": "crashed", "run_id": "20261122T003000Z-1a2b3c4d", "kind": "crash"
    }  # fmt: skip
    assert _outcome(RunError("crashed", kind="crash")).exit_code == 1


def test_control_c_is_quiet() -> None:
    result = _outcome(KeyboardInterrupt())
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "")


@pytest.mark.parametrize(("debug", "traced"), [("", False), ("0", False), ("1", True)])
def test_a_bug_shows_its_traceback_only_when_asked(monkeypatch: pytest.MonkeyPatch, debug: str, traced: bool) -> None:
    monkeypatch.setenv("MLSCOPE_DEBUG", debug)
    result = _outcome(ZeroDivisionError("division by zero"))
    assert result.exit_code == 1
    assert "Unexpected ZeroDivisionError: division by zero" in result.stderr
    assert ("Traceback" in result.stderr) is traced
    assert ("please report" in result.stderr) is not traced


def test_a_full_disk_is_no_bug() -> None:
    result = _outcome(OSError(28, "No space left on device", "/home/x"))
    assert result.exit_code == 1
    assert result.stderr == "Error: [Errno 28] No space left on device: '/home/x'\n"
