"""The index of a store: an SQLite table that can be thrown away at any time.

The rollback journal is kept (no write-ahead log) because homes are on NFS, where shared memory does not work. What the
folders say is the truth; the index only answers filters without opening every run.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlscope_lab.errors import StoreError, nearest

__all__ = ["COLUMNS", "Index"]

COLUMNS = {
    "run_id": "TEXT PRIMARY KEY",
    "created_at": "TEXT NOT NULL",
    "model": "TEXT NOT NULL",
    "backend": "TEXT NOT NULL",
    "backend_version": "TEXT",
    "status": "TEXT NOT NULL",
    "level": "TEXT NOT NULL",
    "device": "TEXT NOT NULL",
    "precision": "TEXT",
    "batch_size": "INTEGER",
    "threads": "INTEGER",
    "isolation": "TEXT NOT NULL",
    "predict_median_ns": "REAL",
}
FILTERS = ("model", "backend", "status", "level", "device", "precision", "batch_size")

_VERSION = 2
_APPLICATION = 0x6D6C7363  # "mlsc", so that another program's database is not taken for ours
_BUSY_S = 30.0
_CREATE = (
    "DROP TABLE IF EXISTS runs",
    f"CREATE TABLE runs ({', '.join(f'{name} {kind}' for name, kind in COLUMNS.items())}) WITHOUT ROWID",
    "CREATE INDEX runs_by_model ON runs (model, backend)",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)
_INSERT = f"INSERT OR REPLACE INTO runs ({', '.join(COLUMNS)}) VALUES ({', '.join(f':{c}' for c in COLUMNS)})"  # noqa: S608 - our own column names

Row = Mapping[str, Any]


class UnusableIndexError(StoreError):
    """The index is missing, damaged or of another version, and must be rebuilt."""


class Index:
    """The table of runs.

    Parameters
    ----------
    path
        The SQLite file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def _connected(self, path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
        """Open, commit, close; sort what can be rebuilt from what cannot."""
        try:
            connection = sqlite3.connect(
                path.as_uri() + ("?mode=rwc" if create else "?mode=rw"), uri=True, timeout=_BUSY_S
            )
            try:
                if not create:
                    found = [
                        connection.execute(f"PRAGMA {p}").fetchone()[0] for p in ("application_id", "user_version")
                    ]
                    if found != [_APPLICATION, _VERSION]:
                        raise UnusableIndexError(f"{path} is an index of another version")
                with connection:
                    yield connection
            finally:
                connection.close()
        except sqlite3.OperationalError as error:
            if not path.exists():
                raise UnusableIndexError(f"{path} is missing") from error
            if "no such" in str(error) or "malformed" in str(error):
                raise UnusableIndexError(f"{path} is damaged: {error}") from error
            raise StoreError(
                f"The index {path} cannot be used: {error}. If no other process works on the store, delete that file; "
                "it is rebuilt from the runs"
            ) from error
        except sqlite3.DatabaseError as error:
            raise UnusableIndexError(f"{path} is damaged: {error}") from error

    def names(self) -> set[str]:
        """Return the ids that the index knows.

        Raises
        ------
        UnusableIndexError
            If it has to be rebuilt; so do the other methods.
        """
        with self._connected(self.path) as connection:
            return {row[0] for row in connection.execute("SELECT run_id FROM runs")}

    def update(self, *, add: Sequence[Row] = (), remove: Iterable[str] = ()) -> None:
        """Add (or replace) and remove runs in one transaction."""
        with self._connected(self.path) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(_INSERT, add)
            connection.executemany("DELETE FROM runs WHERE run_id = ?", [(name,) for name in remove])

    def rebuild(self, rows: Callable[[], Sequence[Row]]) -> int:
        """Write the whole index anew and return the number of runs.

        Parameters
        ----------
        rows
            Lists what to write. It is called while other processes are kept out, so that a run which one of them adds
            is either listed or inserted afterwards, and never lost.
        """
        try:
            return self._rebuild(rows)
        except UnusableIndexError:
            # a journal left beside the damaged file would be rolled back into the new one
            self.path.with_name(self.path.name + "-journal").unlink(missing_ok=True)
            self.path.unlink(missing_ok=True)
            return self._rebuild(rows)

    def _rebuild(self, rows: Callable[[], Sequence[Row]]) -> int:
        with self._connected(self.path, create=True) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            for statement in _CREATE:
                connection.execute(statement)
            found = rows()
            connection.executemany(_INSERT, found)
        return len(found)

    def select(
        self, filters: Mapping[str, Any], *, since: str | None, until: str | None, limit: int | None
    ) -> list[tuple[Any, ...]]:
        """Return rows (columns as in `COLUMNS`), newest first.

        Parameters
        ----------
        filters
            Wanted value, or several, by column name.
        since, until
            Bounds of ``created_at`` in the index's form (UTC), both included.
        limit
            Most rows to return.
        """
        where, values = ["1"], []
        for name, wanted in filters.items():
            if name not in FILTERS:
                known = [*FILTERS, "since", "until", "limit"]
                raise TypeError(f"runs() has no filter '{name}'. Filters: {', '.join(known)}.{nearest(name, known)}")
            several = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
            where.append(f"{name} IN ({', '.join('?' * len(several))})")
            values += several
        for comparison, bound in ((">=", since), ("<=", until)):
            if bound is not None:
                where.append(f"created_at {comparison} ?")
                values.append(bound)
        # names come from FILTERS, every value is a parameter
        query = (
            f"SELECT {', '.join(COLUMNS)} FROM runs WHERE {' AND '.join(where)} ORDER BY created_at DESC, run_id DESC"  # noqa: S608
        )
        if limit is not None:
            query += " LIMIT ?"
            values.append(limit)
        with self._connected(self.path) as connection:
            return connection.execute(query, values).fetchall()
