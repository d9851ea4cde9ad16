"""Tell a caller how a fetch goes on."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Progress", "TerminalBar"]


class Progress(Protocol):
    """What is called now and then while bytes arrive; anything callable with these arguments will do."""

    def __call__(self, done_bytes: int, total_bytes: int | None, what: str) -> None:
        """Take note of progress.

        Parameters
        ----------
        done_bytes
            Bytes that have arrived, those of an earlier, cut attempt included.
        total_bytes
            Bytes in all, or None where the server does not say.
        what
            What is being fetched, in words.
        """


class TerminalBar:
    """Draw a bar on stderr if that is a terminal, else stay silent; the default `Progress`."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._what: str | None = None
        self._visible = bool(sys.stderr and sys.stderr.isatty())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __call__(self, done_bytes: int, total_bytes: int | None, what: str) -> None:
        """Draw; see `Progress`."""
        if not self._visible:
            return
        if self._bar is None or self._what != what:
            self._close()
            # tqdm.auto would import a widget library inside a notebook.
            from tqdm import tqdm

            self._what = what
            self._bar = tqdm(
                total=total_bytes, desc=what, unit="B", unit_scale=True, unit_divisor=1024, leave=False, file=sys.stderr
            )
        self._bar.total = total_bytes
        self._bar.n = done_bytes
        self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
