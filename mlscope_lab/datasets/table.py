"""A CSV file that names samples and labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from mlscope_lab.datasets.base import FileDataset
from mlscope_lab.errors import InputError, nearest

__all__ = ["CsvDataset"]


class CsvDataset(FileDataset):
    """Samples listed in a CSV file with a header.

    Parameters
    ----------
    path
        The file, UTF-8. Relative paths in it count from its folder.
    labels
        Class names by target. If not given, whole numbers are targets, and other labels are numbered in sorted order.
    sample_column, label_column
        Names of the two columns; others are ignored.

    Raises
    ------
    InputError
        With the line, if a column or value is missing or a label is unknown.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        labels: Sequence[str] | None = None,
        sample_column: str = "path",
        label_column: str = "label",
    ) -> None:
        file = Path(path).expanduser()
        rows = _rows(file, sample_column, label_column)
        words = [label for _, _, label in rows]
        numeric = all(word.isdecimal() and word.isascii() and len(word) < 10 for word in words)
        if labels is None and not numeric:
            labels = sorted(set(words))
        index = {name: i for i, name in enumerate(labels)} if labels is not None else {}
        pairs = []
        for line, sample, word in rows:
            if word in index:
                target = index[word]
            elif numeric:
                target = int(word)
                if labels is not None and target >= len(labels):
                    raise InputError(f"{file.name}, line {line}: target {target}, but there are {len(labels)} labels")
            else:
                raise InputError(f"{file.name}, line {line}: unknown label '{word}'.{nearest(word, list(index))}")
            pairs.append((file.parent / sample, target))
        super().__init__(file.stem, pairs, labels)


def _rows(file: Path, sample_column: str, label_column: str) -> list[tuple[int, str, str]]:
    """Return line number, sample and label of each row."""
    found = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = list(reader.fieldnames or ())
            for column in (sample_column, label_column):
                if header.count(column) != 1:
                    raise InputError(
                        f"{file.name} needs one column '{column}', its header is {', '.join(header) or 'empty'}."
                        f"{nearest(column, header)}"
                    )
            for row in reader:
                sample, label = (row[sample_column] or "").strip(), (row[label_column] or "").strip()
                if not sample or not label or "\0" in sample:
                    raise InputError(f"{file.name}, line {reader.line_num}: path or label is missing")
                if None in row:
                    raise InputError(f"{file.name}, line {reader.line_num}: more values than the header; quote commas")
                found.append((reader.line_num, sample, label))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{file.name} is not a CSV file in UTF-8: {error}") from error
    if not found:
        raise InputError(f"{file.name} lists no samples")
    return found
