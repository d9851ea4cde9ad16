"""How long work tells how far it is: one line of plain text on standard error, never a widget.

The line is drawn on a terminal and in a notebook (whose standard error is a stream, too); elsewhere, as in CI, notes go
to the log and nothing is drawn.
"""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import Any, Protocol, Self

__all__ = ["Quiet", "Reporter", "TextReporter", "reporter"]

_log = logging.getLogger("mlscope_lab")


class Reporter(Protocol):
    """What long work reports to."""

    def stage(self, text: str) -> None:
        """Say what is being done now."""

    def advance(self, steps: int = 1) -> None:
        """Count finished steps."""

    def note(self, text: str) -> None:
        """Say something that the user should see, such as that a lock is waited for."""

    def bytes(self, done_bytes: int, total_bytes: int | None, what: str) -> None:
        """Report a download."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the line away."""


class Quiet:
    """Draws nothing; notes go to the logger ``mlscope_lab``."""

    def stage(self, text: str) -> None:
        """Do nothing."""

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Log."""
        _log.info(text)

    def bytes(self, done_bytes: int, total_bytes: int | None, what: str) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class TextReporter(Quiet):
    """A tqdm bar for the steps and one for a running download.

    Parameters
    ----------
    total
        Number of steps.
    title
        What the whole is.
    """

    def __init__(self, total: int, title: str) -> None:
        # tqdm.std, not tqdm.auto: the latter imports ipywidgets in a notebook
        from tqdm.std import tqdm

        self._tqdm = tqdm
        self._bar: Any = tqdm(
            total=total, desc=title, leave=False, file=sys.stderr, bar_format="{desc} |{bar:20}| {n}/{total}{postfix}"
        )
        self._download: Any = None
        self._what = ""

    def stage(self, text: str) -> None:
        """Show the text behind the bar."""
        self._bar.set_postfix_str(text)

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        self._bar.update(steps)

    def note(self, text: str) -> None:
        """Print the text above the bar."""
        super().note(text)
        self._tqdm.write(text, file=sys.stderr)

    def bytes(self, done_bytes: int, total_bytes: int | None, what: str) -> None:
        """Draw a bar of its own for each download."""
        if what != self._what:
            self._end_download()
            self._download = self._tqdm(
                total=total_bytes, desc=what, unit="B", unit_scale=True, leave=False, file=sys.stderr
            )
            self._what = what
        self._download.update(done_bytes - self._download.n)
        if total_bytes is not None and done_bytes >= total_bytes:
            self._end_download()

    def _end_download(self) -> None:
        if self._download is not None:
            self._download.close()
            self._download, self._what = None, ""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_download()
        self._bar.close()


def reporter(wanted: bool | Reporter | None, *, total: int, title: str) -> Reporter:
    """Return where to report: the given reporter, a text line (True), nothing (False), or what suits (None)."""
    if wanted is not None and not isinstance(wanted, bool):
        return wanted
    if wanted is None:
        wanted = sys.stderr.isatty() or "ipykernel" in sys.modules
    return TextReporter(total, title) if wanted else Quiet()
