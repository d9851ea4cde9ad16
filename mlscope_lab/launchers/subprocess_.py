"""Run a task in a fresh process; a crash, a hang or a hunger for memory there is an error here, and no more."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt

from mlscope_lab import errors
from mlscope_lab.launchers.protocol import ClosedPipeError, receive, send

__all__ = ["Limits", "TaskFailure", "run_in_subprocess"]

Message = dict[str, Any]
Arrays = Mapping[str, npt.NDArray[Any]]
LOG_LINES = 200
_POLL_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a worker may use.

    Attributes
    ----------
    timeout_s
        Seconds from start to end, or None for no limit.
    memory_bytes
        Largest resident set, or None for 90 % of what the machine has available at the start.
    """

    timeout_s: float | None = None
    memory_bytes: int | None = None


@dataclass(kw_only=True)
class TaskFailure(Exception):  # noqa: N818 - it carries a failure, it is not one of the public errors
    """A worker did not finish.

    Attributes
    ----------
    kind
        One of `mlscope_lab.trace.schema.FAILURE_KINDS`.
    message
        What happened.
    log
        The last lines it printed.
    error
        The error it raised, where it raised one of ours.
    """

    kind: str
    message: str
    log: list[str] = field(default_factory=list)
    error: errors.MlscopeError | None = None

    def __str__(self) -> str:
        return self.message


def _tail(path: Path, lines: int = LOG_LINES) -> list[str]:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 256 * 1024))
        text = file.read().decode("utf-8", errors="replace")
    return text.splitlines()[-lines:]


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the worker and whatever it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _resident_bytes(pid: int) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        return int(process.memory_info().rss) + sum(
            int(child.memory_info().rss) for child in process.children(recursive=True)
        )
    except psutil.Error:
        return 0


def _oom_kills() -> int:
    """Return how often the kernel has killed for want of memory since it started, 0 where it does not tell."""
    try:
        text = Path("/proc/vmstat").read_text(encoding="ascii")
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


def _ended(process: subprocess.Popen[bytes], log: Path, oom_kills: int) -> TaskFailure:
    code = process.wait()
    lines = _tail(log)
    if code >= 0:
        message = f"The process ended by itself with exit status {code} before it was done."
        return TaskFailure(kind="crash", message=message, log=lines)
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    if name == "SIGKILL" and _oom_kills() > oom_kills:
        message = "The system killed the process for want of memory. Try a smaller batch_size."
        return TaskFailure(kind="out_of_memory", message=message, log=lines)
    message = f"The process died of {name}; the run's log has its last words."
    return TaskFailure(kind="crash", message=message, log=lines)


def _raised(message: Message, log: Path) -> TaskFailure:
    name, text = str(message.get("error")), str(message.get("message"))
    if name == "MemoryError":
        return TaskFailure(kind="out_of_memory", message=f"Out of memory: {text}", log=_tail(log))
    cls = getattr(errors, name, None) if name in errors.__all__ else None
    error = cls(text) if isinstance(cls, type) and issubclass(cls, errors.MlscopeError) else None
    return TaskFailure(kind="error", message=text, log=_tail(log), error=error)


def run_in_subprocess(
    task: Message,
    arrays: Arrays | None = None,
    *,
    limits: Limits | None = None,
    on_message: Callable[[Message, dict[str, npt.NDArray[Any]]], None],
    environment: Mapping[str, str] | None = None,
) -> None:
    """Start a worker, give it a task, and pass on what it says until it is done.

    Parameters
    ----------
    task, arrays
        What `mlscope_lab.launchers.tasks.run_task` takes.
    limits
        Time and memory; passing them ends the worker.
    on_message
        Called for each message but the last.
    environment
        Variables added to the worker's.

    Raises
    ------
    TaskFailure
        If the worker raised, crashed, hung or passed a limit. The worker and its children are gone by then, also
        after a KeyboardInterrupt.
    """
    import psutil

    limits = limits or Limits()
    memory = limits.memory_bytes or int(psutil.virtual_memory().available * 0.9)
    kills = _oom_kills()
    to_worker, from_worker = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="mlscope-") as folder:
        log = Path(folder) / "log.txt"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlscope_lab.launchers.worker", str(to_worker[0]), str(from_worker[1])],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                pass_fds=(to_worker[0], from_worker[1]),
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the worker
                env={**os.environ, **_import_path(), **(environment or {})},
            )
        os.close(to_worker[0])
        os.close(from_worker[1])
        watch = _Watch(process.pid, limits.timeout_s, memory)
        try:
            send(to_worker[1], {**task, "scratch": folder}, arrays)
            with selectors.DefaultSelector() as selector:
                selector.register(from_worker[0], selectors.EVENT_READ)
                while True:
                    ready = selector.select(timeout=_POLL_S)
                    watch.check(log)
                    if not ready:
                        continue
                    message, found = receive(from_worker[0])
                    if message["type"] == "done":
                        return
                    if message["type"] == "error":
                        raise _raised(message, log)
                    on_message(message, found)
        except (ClosedPipeError, BrokenPipeError):
            raise _ended(process, log, kills) from None
        finally:
            os.close(to_worker[1])
            os.close(from_worker[0])
            _kill(process)


def _import_path() -> dict[str, str]:
    """Let the worker import what this process can (a notebook may have extended sys.path)."""
    return {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PYTHONUNBUFFERED": "1"}


class _Watch:
    """Looks at the clock and at the worker's memory, at most every `_POLL_S` seconds so as not to disturb it."""

    def __init__(self, pid: int, timeout_s: float | None, memory_bytes: int) -> None:
        self._pid, self._timeout_s, self._memory_bytes = pid, timeout_s, memory_bytes
        self._begin = self._looked = time.monotonic()

    def check(self, log: Path) -> None:
        now = time.monotonic()
        if self._timeout_s is not None and now - self._begin > self._timeout_s:
            raise TaskFailure(
                kind="timeout",
                message=f"Not done within timeout_s={self._timeout_s:g}; the process was ended. "
                "Raise timeout_s, or ask for fewer iterations.",
                log=_tail(log),
            )
        if now - self._looked < _POLL_S:
            return
        self._looked = now
        used = _resident_bytes(self._pid)
        if used > self._memory_bytes:
            raise TaskFailure(
                kind="out_of_memory",
                message=f"The process held {used / 1e9:.2f} GB, more than its limit of {self._memory_bytes / 1e9:.2f} "
                "GB; it was ended. Try a smaller batch_size, or raise memory_limit_bytes.",
                log=_tail(log),
            )
