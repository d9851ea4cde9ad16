"""How commands print: JSON alone on standard output, tables that fit the terminal, errors in one message.

Text from outside (labels, file names, descriptions) is printed as it is: markup is switched off on every console.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NoReturn, ParamSpec

import typer

from mlscope_lab.cli.text import plain
from mlscope_lab.errors import MlscopeError, RunError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Column", "command", "console", "emit_json", "heading", "jsonable", "note", "print_pairs", "print_table",
           "quiet_stdout"]  # fmt: skip

P = ParamSpec("P")

BAD_INPUT, RUN_FAILED, DIVERGED, INTERRUPTED = 1, 3, 4, 130
_PIPED_WIDTH = 120
_GAP = 2


def jsonable(value: Any) -> Any:
    """Return the value in JSON's own types: NaN and infinity become null, numpy's scalars numbers, paths text."""
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays, without importing numpy for those who have none
        return jsonable(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return str(value)


def emit_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    utf8 = (getattr(sys.stdout, "encoding", None) or "").lower().replace("-", "") == "utf8"
    print(json.dumps(jsonable(value), indent=2, ensure_ascii=not utf8, allow_nan=False))


def console(*, stderr: bool = False) -> Console:
    """Return a console that prints text literally; 120 columns where nobody's terminal is attached."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    piped = not stream.isatty() and "COLUMNS" not in os.environ
    return Console(
        file=stream, markup=False, emoji=False, highlight=False, soft_wrap=False, width=_PIPED_WIDTH if piped else None
    )


def note(text: str) -> None:
    """Print a sentence on standard error."""
    print(plain(text), file=sys.stderr)


def heading(out: Console, text: str) -> None:
    """Print a title, with an empty line before it."""
    from rich.text import Text

    out.print()
    out.print(Text(plain(text), style="bold"))


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    title
        Heading.
    right
        Align right, for numbers.
    keep
        Columns with the lowest values leave first where the terminal is narrow.
    shrink
        May be cut, with an ellipsis, where even the columns that stay are too wide.
    """

    title: str
    right: bool = False
    keep: int = 5
    shrink: bool = False


_SHORTEST = 12
"""A column that may be cut is worth showing at so many characters."""


def _fitting(columns: Sequence[Column], widths: Sequence[int], room: int) -> dict[int, int]:
    """Return the columns that stay, by index, with the width each gets; the most important one always stays."""
    least = [min(w, _SHORTEST) if c.shrink else w for c, w in zip(columns, widths, strict=True)]
    staying = list(range(len(columns)))
    while len(staying) > 1 and sum(least[i] + _GAP for i in staying) > room:
        staying.remove(min(staying, key=lambda i: (columns[i].keep, i)))
    given = {i: min(least[i], room) for i in staying}
    spare = room - sum(width + _GAP for width in given.values())
    for i in sorted(staying, key=lambda i: -columns[i].keep):
        more = max(0, min(widths[i] - given[i], spare))
        given[i] += more
        spare -= more
    return given


def print_table(out: Console, columns: Sequence[Column], rows: Sequence[Sequence[object]], *, title: str = "") -> None:
    """Print a table that fits the terminal; a narrow one gets the columns worth most.

    Parameters
    ----------
    out
        From `console`.
    columns, rows
        A value for each column in each row; control characters are escaped.
    title
        Printed above.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    cells = [[plain("" if value is None else value) for value in row] for row in rows]
    widths = [max([cell_len(c.title), *(cell_len(row[i]) for row in cells)]) for i, c in enumerate(columns)]
    staying = _fitting(columns, widths, out.width)
    if title:
        heading(out, title)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for i, width in staying.items():
        justify: Literal["left", "right"] = "right" if columns[i].right else "left"
        table.add_column(Text(columns[i].title), justify=justify, no_wrap=True, overflow="ellipsis", width=width)
    for row in cells:
        table.add_row(*(Text(row[i]) for i in staying))
    out.print(table)


def print_pairs(out: Console, pairs: Sequence[tuple[str, object]]) -> None:
    """Print names and values in two columns, long values folded; pairs whose value is None or "" are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None and value != "":
            table.add_row(Text(name), Text(plain(value)))
    out.print(table)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what frameworks print on file descriptor 1 to standard error, so that standard output stays ours."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # a service may run with these descriptors closed: then nobody reads them either
        yield
        return
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _fail(name: str, message: str, as_json: bool, status: int, /, **more: Any) -> NoReturn:
    if as_json:
        print(json.dumps({"error": {"type": name, "message": message, **more}}), file=sys.stderr)
    else:
        lines = "\n".join(plain(line) for line in message.splitlines())
        print(f"Error: {lines}", file=sys.stderr)
    raise typer.Exit(status)


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Turn exceptions of a command into one message on standard error and an exit status; see `mlscope_lab.cli`.

    The command's parameter ``as_json`` decides how the message is written.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            function(*args, **kwargs)
        except RunError as error:
            recorded = {} if error.run_id is None else {"run_id": error.run_id, "kind": error.kind}
            _fail("RunError", str(error), as_json, RUN_FAILED if recorded else BAD_INPUT, **recorded)
        except MlscopeError as error:
            _fail(type(error).__name__, str(error), as_json, BAD_INPUT)
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise  # typer's own ways to end
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except OSError as error:  # the machine's fault: a full disk, a folder that may not be written
            _unforeseen(error)
            _fail(type(error).__name__, str(error), as_json, BAD_INPUT)
        except Exception as error:  # a bug, ours or a framework's: still no traceback unless it is asked for
            _unforeseen(error)
            advice = (
                "" if _debugging() else " Run it again with MLSCOPE_DEBUG=1 for the traceback and please report it."
            )
            _fail(type(error).__name__, f"Unexpected {type(error).__name__}: {error}.{advice}", as_json, BAD_INPUT)

    return run


def _debugging() -> bool:
    return os.environ.get("MLSCOPE_DEBUG", "") not in {"", "0"}


def _unforeseen(error: BaseException) -> None:
    if _debugging():
        traceback.print_exception(error, file=sys.stderr)
