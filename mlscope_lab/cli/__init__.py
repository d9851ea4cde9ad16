"""The command line, ``mlscope``.

Every command takes ``--json`` and then prints one JSON document on standard output and nothing else there; progress,
notes and errors go to standard error. The shapes are documented in the functions that make them and in each command's
help, and only grow.

Exit statuses
-------------
====== =================================================================================================
status meaning
====== =================================================================================================
0      done
1      bad input, or something needed is missing; one message on standard error
2      wrong usage of the command line
3      a run was measured and recorded as failed
4      backends or runs differ by more than the tolerance
130    interrupted with Ctrl-C
====== =================================================================================================

With ``--json`` an error is one line on standard error, ``{"error": {"type": ..., "message": ...}}``; for a run recorded
as failed it also has ``run_id`` and ``kind``. ``MLSCOPE_DEBUG=1`` adds the traceback of what was not foreseen.

Importing this package imports neither typer nor rich.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line with the arguments of this process and exit with its status."""
    from mlscope_lab.cli.app import run

    run()
