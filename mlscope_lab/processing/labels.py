"""Load the class names that a manifest points at."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlscope_lab.errors import ManifestError

if TYPE_CHECKING:
    from mlscope_lab.manifest.common import Location
    from mlscope_lab.manifest.model import Labels

__all__ = ["load_labels", "parse_labels"]

_MAX_BYTES = 64 * 1024 * 1024


def load_labels(labels: Labels, fetch_path: Callable[[Location], Path]) -> tuple[str, ...]:
    """Return the class names in index order.

    Parameters
    ----------
    labels
        As the manifest has them.
    fetch_path
        Brings a location's bytes to this disk and returns their path; not called for inline names.

    Raises
    ------
    ManifestError
        If the file is not what its format says.
    ArtifactError
        From `fetch_path`.
    """
    if labels.names is not None:
        return labels.names
    if labels.location is None:
        raise ManifestError("labels: give either names or location")
    path = fetch_path(labels.location)
    if path.stat().st_size > _MAX_BYTES:
        raise ManifestError(f"labels: {path.name} holds more than {_MAX_BYTES} bytes; it is no list of labels")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"labels: {path.name} is not UTF-8 text: {error}") from error
    return parse_labels(text, form=labels.format, key=labels.key, where=path.name)


def parse_labels(text: str, *, form: str, key: str | None = None, where: str = "the file") -> tuple[str, ...]:
    """Read class names out of text.

    Parameters
    ----------
    text
        Lines, one name each; or JSON: a list of names, or a mapping from the indices "0", "1", ... to names. A name
        may be a list (Keras: WordNet id and name), of which the last entry counts.
    form
        "lines" or "json".
    key
        For JSON: the entry of the outermost mapping that holds the names.
    where
        Name for messages.

    Raises
    ------
    ManifestError
        If there are no names, an index is missing, or the form is another.
    """
    if form == "lines":
        names: Any = [line.strip() for line in text.splitlines()]
        while names and not names[-1]:
            names.pop()
    else:
        try:
            names = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"labels: {where} is not JSON: {error}") from error
        if key is not None:
            if not isinstance(names, dict) or key not in names:
                raise ManifestError(f"labels: {where} has no key '{key}'; name the one that holds the labels")
            names = names[key]
        if isinstance(names, dict):
            wanted = [str(i) for i in range(len(names))]
            missing = next((index for index in wanted if index not in names), None)
            if missing is not None:
                raise ManifestError(
                    f"labels: {where} has {len(names)} entries but none for index {missing}; "
                    "say with 'key' which entry holds the labels"
                )
            names = [names[index] for index in wanted]
    if not isinstance(names, list) or not names:
        raise ManifestError(f"labels: {where} holds no labels; a list or a mapping from index to name is needed")
    result = []
    for index, name in enumerate(names):
        last = name[-1] if isinstance(name, list) and name else name
        if not isinstance(last, str) or not last:
            raise ManifestError(f"labels: {where}: the label of index {index} must be text, not {last!r}")
        result.append(last)
    return tuple(result)
