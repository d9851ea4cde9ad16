"""Build HTML so that text is escaped unless it was built here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["Column", "Html", "join", "table", "tag"]

_VOID = frozenset({"br", "hr", "input", "meta"})


class Html(str):
    """Markup that is safe to insert as it is; plain strings are not."""

    __slots__ = ()


def _safe(child: str | int) -> str:
    return child if isinstance(child, Html) else html.escape(str(child))


def join(children: Iterable[str | int | None]) -> Html:
    """Return the children one after another; None leaves nothing."""
    return Html("".join(_safe(child) for child in children if child is not None))


def tag(name: str, /, *children: str | int | None, **attributes: str | None) -> Html:
    """Return an element.

    Parameters
    ----------
    name
        Element name, fixed by the caller's code.
    *children
        `Html` as it is, anything else escaped, None left out.
    **attributes
        Values are escaped; a trailing underscore of a name is dropped (``class_``), others become hyphens; None leaves
        the attribute out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes
    ----------
    title
        Heading, units included.
    numeric
        Right-aligned, with digits of equal width.
    """

    title: str
    numeric: bool = False


def table(
    caption: str | None, columns: Sequence[Column], rows: Iterable[Sequence[str | None]], *, class_: str | None = None
) -> Html:
    """Return a table that scrolls sideways in its own box where the page is narrow.

    Parameters
    ----------
    caption
        What the table holds.
    columns
        The first one heads its row. Where all titles are empty there is no head.
    rows
        Cells as `Html` or text; None is an empty cell.
    """
    head = join(
        tag("th" if c.title else "td", c.title, scope="col" if c.title else None, class_="n" if c.numeric else None)
        for c in columns
    )
    body = []
    for row in rows:
        cells = []
        for place, (column, cell) in enumerate(zip(columns, row, strict=True)):
            kind = "n" if column.numeric else None
            cells.append(
                tag("td", cell, class_=kind) if place else tag("th", cell, scope="row", class_=kind)
            )  # fmt: skip
        body.append(tag("tr", *cells))
    inner = tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", tag("tr", head)) if any(c.title for c in columns) else None,
        tag("tbody", *body),
        class_=class_,
    )
    # a box that scrolls must be reachable by keyboard
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption or "table")
