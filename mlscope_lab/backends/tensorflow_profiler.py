"""TensorFlow's own profiler, over many steps, with every node in it.

It costs a step some hundredths, a fraction of what step statistics cost. By default it leaves out what TensorFlow calls
inexpensive: reshapes, identities, and whatever took less than some microseconds while the session warmed up. Level 3
of `tf.profiler.experimental.ProfilerOptions` would record them, but versions up to 2.21 at least do not pass it on
("host_tracer_level expects an i value"). The level in force is a variable that the library exports and declares in its
headers, ``tsl::profiler::internal::g_trace_level``. It is raised where it reads as it must before and after the start;
where it does not, nothing is touched and the profiler is not used.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlscope_lab.errors import SessionError

__all__ = ["HostEvent", "HostProfiler", "ProfilerUnavailableError", "read_profile"]

_IDLE, _DEFAULT, _VERBOSE = -1, 2, 3
_SYMBOL = "_ZN3tsl8profiler8internal13g_trace_levelE"
_LIBRARIES = ("libtensorflow_framework.so.2", "libtensorflow_framework.2.dylib")
_HOST = "/host:CPU"
_NODE = re.compile(r"(?P<name>[^:]+):(?P<op>_?[A-Z][A-Za-z0-9_>]*)")
_KINDS = {
    "ExecutorState::ProcessAsync::Done": "done",
    "ExecutorPropagateOutputs": "propagation",
    "ExecutorState::Process": "executor",
    "SessionRun": "session",
    "MemoryAllocation": "memory",
    "MemoryDeallocation": "memory",
}
_DETAILED = frozenset({"propagation", "executor", "session", "memory"})


class ProfilerUnavailableError(SessionError):
    """The profiler cannot be used now; the message says why, and what to do about it."""


@dataclass(slots=True, kw_only=True)
class HostEvent:
    """One event of a thread of the process, in nanoseconds of the wall clock.

    Attributes
    ----------
    kind
        "node", "done" (an asynchronous kernel's end), or, where details are asked for, "propagation", "executor",
        "session" and "memory".
    name, op
        Name of the event; of a node its own and its operation.
    start, stop
        When.
    thread
        Name of the thread.
    stats
        What the profiler noted with it, where details are asked for.
    """

    kind: str
    name: str
    op: str
    start: int
    stop: int
    thread: str
    stats: Mapping[str, Any] = field(default_factory=dict)


def _level_of(tf: Any) -> ctypes.c_int | None:
    """Return the variable that holds the profiler's level, or None where this build does not export it."""
    for name in _LIBRARIES:
        path = Path(tf.sysconfig.get_lib()) / name
        if path.exists() and hasattr(os, "RTLD_NOLOAD"):
            try:
                library = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
                return ctypes.c_int.in_dll(library, _SYMBOL)
            except (OSError, ValueError):
                return None
    return None


class HostProfiler:
    """Starts and stops TensorFlow's profiler, of which a process has one.

    Parameters
    ----------
    tf
        The tensorflow module.
    scratch
        Folder for what it writes, or None for a temporary one.
    """

    def __init__(self, tf: Any, scratch: Path | None = None) -> None:
        self._tf = tf
        self._level = _level_of(tf)
        self._scratch = scratch
        self._folder: Path | None = None

    def start(self) -> None:
        """Start recording every node.

        Raises
        ------
        ProfilerUnavailableError
            If another profiler runs in this process, or inexpensive nodes cannot be recorded.
        """
        level, tf = self._level, self._tf
        if level is None or not _IDLE <= level.value <= _VERBOSE:
            raise ProfilerUnavailableError(
                f"TensorFlow {tf.__version__} does not let its profiler be told to record inexpensive nodes"
            )
        profiler = tf.profiler.experimental
        folder = Path(tempfile.mkdtemp(prefix="mlscope-tf-", dir=self._scratch))
        try:
            if level.value != _IDLE:
                raise tf.errors.AlreadyExistsError(None, None, "the recorder is active")
            profiler.start(str(folder), options=profiler.ProfilerOptions(host_tracer_level=_VERBOSE))
        except (tf.errors.AlreadyExistsError, tf.errors.UnavailableError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise ProfilerUnavailableError(
                "another profiler of TensorFlow runs in this process, and there can be one only; stop it with "
                "tf.profiler.experimental.stop()"
            ) from error
        self._folder = folder
        if level.value not in {_DEFAULT, _VERBOSE}:
            self.discard()
            raise ProfilerUnavailableError(
                f"TensorFlow {tf.__version__} does not let its profiler be told to record inexpensive nodes"
            )
        level.value = _VERBOSE

    def stop(self) -> Path:
        """Stop recording and return the folder of what was recorded; whoever calls removes it."""
        folder, self._folder = self._folder, None
        if folder is None:
            raise SessionError("TensorFlow's profiler is not running")
        try:
            self._tf.profiler.experimental.stop()
        except self._tf.errors.UnavailableError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SessionError(
                "TensorFlow's profiler was stopped while layers were recorded with it; leave tf.profiler alone then"
            ) from error
        return folder

    def discard(self) -> None:
        """Stop recording and forget; a second call does nothing."""
        folder, self._folder = self._folder, None
        if folder is not None:
            with contextlib.suppress(self._tf.errors.UnavailableError):  # somebody else has stopped it
                self._tf.profiler.experimental.stop(save=False)
            shutil.rmtree(folder, ignore_errors=True)


def read_profile(folder: Path, *, details: bool = False) -> Iterator[HostEvent]:
    """Yield the events of the process's threads, in the order in which each thread recorded them.

    Parameters
    ----------
    folder
        What `HostProfiler.stop` returned.
    details
        Give what the executor and the allocators did too.

    Raises
    ------
    SessionError
        If there is no profile in it, or none whose times could be placed.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    for path in sorted(folder.rglob("*.xplane.pb")):
        space = xplane_pb2.XSpace()
        # beyond protobuf's 2 GiB TensorFlow writes an empty file without a word, from which no events come
        space.ParseFromString(path.read_bytes())
        begin = _start_of(space)
        for plane in space.planes:
            if plane.name == _HOST:
                yield from _events(plane, begin, details)


def _start_of(space: Any) -> int:
    """Return the wall clock at the start of a profile, to which its times are relative; 0 if it does not say."""
    for plane in space.planes:
        names = {number: stat.name for number, stat in plane.stat_metadata.items()}
        for stat in plane.stats:
            if names.get(stat.metadata_id) == "profile_start_time":
                return int(stat.uint64_value)
    return 0


def _events(plane: Any, begin: int, details: bool) -> Iterator[HostEvent]:
    kinds: dict[int, tuple[str, str, str]] = {}
    for number, metadata in plane.event_metadata.items():
        found = _NODE.fullmatch(metadata.name)
        if found is not None:
            kinds[number] = ("node", found["name"], found["op"])
        elif metadata.name in _KINDS and (details or _KINDS[metadata.name] not in _DETAILED):
            kinds[number] = (_KINDS[metadata.name], metadata.name, "")
    names = {number: stat.name for number, stat in plane.stat_metadata.items()}
    for line in plane.lines:
        # older versions give absolute times; 2^60 ns after 1970 is the year 2006
        base = line.timestamp_ns + (begin if line.timestamp_ns < 1 << 60 else 0)
        if line.events and base < 1 << 60:
            raise SessionError("TensorFlow's profile does not say when it began, so its nodes cannot be placed")
        thread = line.name or str(line.id)
        for event in line.events:
            known = kinds.get(event.metadata_id)
            if known is None:
                continue
            start = base + event.offset_ps // 1000
            noted = _noted(event.stats, names) if details or known[0] == "done" else {}
            yield HostEvent(
                kind=known[0], name=known[1], op=known[2], start=start, stop=start + event.duration_ps // 1000,
                thread=thread, stats=noted,
            )  # fmt: skip


def _noted(stats: Any, names: Mapping[int, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for stat in stats:
        kind = stat.WhichOneof("value")
        if kind is not None:
            value = getattr(stat, kind)
            found[names.get(stat.metadata_id, "")] = names.get(value, "") if kind == "ref_value" else value
    return found
