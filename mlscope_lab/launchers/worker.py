"""The measuring process: ``python -m mlscope_lab.launchers.worker READ_FD WRITE_FD``.

It reads one task, does it, writes what it found and ends. It imports the one framework that the task names, numpy, and
no DataTree, so that a run's memory is the framework's and not ours.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import traceback
from typing import Any

__all__ = ["main"]


def _die_with_parent(fd: int) -> None:
    """Leave as soon as the parent closes its end; the parent writes nothing after the task."""
    while os.read(fd, 1):
        pass
    os._exit(3)


def main(argv: list[str] | None = None) -> int:
    """Do one task and return the exit status: 0 done, 1 the task failed and said why."""
    read_fd, write_fd = (int(a) for a in (argv or sys.argv[1:]))
    faulthandler.enable()
    from mlscope_lab.launchers.protocol import receive, send

    task, arrays = receive(read_fd)
    threading.Thread(target=_die_with_parent, args=(read_fd,), daemon=True).start()

    def emit(message: dict[str, Any], found: dict[str, Any] | None = None) -> None:
        send(write_fd, message, found)

    try:
        from mlscope_lab.launchers.tasks import run_task

        run_task(task, arrays, emit)
    except MemoryError as error:
        emit({"type": "error", "error": "MemoryError", "message": str(error) or "out of memory"})
        return 1
    except Exception as error:  # whatever a framework raises must reach the parent as words
        from mlscope_lab.errors import MlscopeError

        traceback.print_exc()
        known = isinstance(error, MlscopeError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        emit({"type": "error", "error": type(error).__name__ if known else "RunError", "message": text})
        return 1
    emit({"type": "done"})
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Frameworks with threads of their own sometimes crash while the interpreter is torn down; the result is out.
    os._exit(status)
