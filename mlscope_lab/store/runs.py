"""The store of runs: one folder a run, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlscope_lab.errors import MlscopeError, RunNotFoundError, StoreError, nearest
from mlscope_lab.store.index import COLUMNS, Index, UnusableIndexError
from mlscope_lab.trace import schema

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["Store"]

_ABANDONED_S = 24 * 3600.0
_HIDDEN = (".tmp-", ".trash-")


def _utc(moment: datetime) -> str:
    """Return the index's form of a time: UTC, fixed width, so that text sorts as time does."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="microseconds")


def _bound(value: str | date | None, name: str, *, end: bool) -> str | None:
    """Return a bound of ``created_at``; a day without a time stands for its beginning or its end."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value) if len(value.strip()) == 10 else datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"{name} must be an ISO 8601 date or time such as 2026-11-22, not {value!r}") from None
    if isinstance(value, datetime):
        return _utc(value)
    first = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return _utc(first + timedelta(days=1, microseconds=-1) if end else first)


def _row(tree: xr.DataTree) -> dict[str, Any]:
    """Return the index's row of a run."""
    import numpy as np

    row = {name: tree.attrs.get(name) for name in COLUMNS}
    row["created_at"] = _utc(datetime.fromisoformat(str(tree.attrs["created_at"])))
    row["predict_median_ns"] = None
    latency = tree.children.get(schema.LATENCY)
    if latency is not None and latency.dataset.sizes.get("latency_iteration"):
        row["predict_median_ns"] = float(np.median(latency.dataset["predict_ns"].values))
    return row


class Store:
    """Runs on disk.

    The folder is the truth: a run folder that was removed by hand is gone, one that was copied in by hand is there.
    Several processes may save, open and delete at once. Nothing is created before the first run is saved.

    Parameters
    ----------
    root
        Folder of the runs.
    kind
        What is kept there, in a word for messages.
    check
        Raises SchemaError for a tree that does not belong there; default the check of runs.

    Examples
    --------
    >>> store = Store(home / "runs")  # doctest: +SKIP
    >>> store.save(run)  # doctest: +SKIP
    '20261122T003000Z-1a2b3c4d'
    >>> store.open("latest").mlscope.summary()  # doctest: +SKIP
    """

    def __init__(
        self, root: str | os.PathLike[str], *, kind: str = "run", check: Callable[[xr.DataTree], None] | None = None
    ) -> None:
        self.kind = kind
        self._check = check
        self.root = Path(root).expanduser().absolute()
        self._index = Index(self.root / "index.sqlite")

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def __len__(self) -> int:
        return len(self._names())

    @property
    def size(self) -> int:
        """Bytes of all files in the store."""
        from mlscope_lab.store.zarr_ import tree_bytes

        return tree_bytes([self.root])

    def save(self, tree: xr.DataTree) -> str:
        """Store a run.

        Parameters
        ----------
        tree
            A run; one that failed is stored too.

        Returns
        -------
        str
            Its run id.

        Raises
        ------
        SchemaError
            If the tree is not a run.
        StoreError
            If it is stored already, or cannot be written; nothing of it is left behind then.
        """
        from mlscope_lab.store.zarr_ import encode, sync_folder, write_files

        self._validate(tree)
        run_id = str(tree.attrs["run_id"])
        final = self.root / run_id
        temporary = self.root / f".tmp-{run_id}-{secrets.token_hex(4)}"
        if final.exists():
            raise StoreError(f"Run {run_id} is stored already in {self.root}; delete it first, or give it another id")
        files = encode(tree)
        needed = sum(map(len, files.values()))
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_files(temporary, files)
            os.rename(temporary, final)
            sync_folder(self.root)
        except OSError as error:
            if error.errno in {errno.ENOTEMPTY, errno.EEXIST} and final.exists():
                raise StoreError(f"Run {run_id} was stored by another process meanwhile in {self.root}") from error
            full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
            advice = "make room, or choose another folder with MLSCOPE_HOME" if full else "check the folder"
            failure = StoreError(
                f"Run {run_id} could not be stored in {self.root} ({needed} bytes in {len(files)} files): "
                f"{error.strerror or error}; {advice}"
            )
            failure.errno = error.errno
            raise failure from error
        finally:
            # after the rename there is nothing here; after any failure, an interrupt included, nothing may stay
            shutil.rmtree(temporary, ignore_errors=True)
        self._remember(run_id, tree)
        self._sweep()
        return run_id

    def open(self, run: str = "latest") -> xr.DataTree:
        """Open a run lazily: arrays are read when they are used.

        Parameters
        ----------
        run
            Run id, a unique beginning of one, or "latest".

        Raises
        ------
        RunNotFoundError
            If no run begins so, or several do.
        StoreError
            If the folder is damaged.
        SchemaError
            If what is stored there is not a run.
        """
        from mlscope_lab.store.zarr_ import read_tree
        from mlscope_lab.trace.accessor import ensure_registered

        ensure_registered()
        tree = read_tree(self.path(run))
        self._validate(tree, values=False)
        return tree

    def _validate(self, tree: xr.DataTree, *, values: bool = True) -> None:
        if self._check is not None:
            self._check(tree)
        else:
            from mlscope_lab.trace.validate import validate

            validate(tree, values=values)

    def path(self, run: str = "latest") -> Path:
        """Return the folder of a run; see `open` for what `run` may be."""
        return self.root / self.resolve(run)

    def resolve(self, run: str = "latest") -> str:
        """Return the full id of a run; see `open` for what `run` may be."""
        names = self._names()
        if not names:
            way = "measure one" if self.kind == "run" else "make one"
            raise RunNotFoundError(f"The store {self.root} holds no {self.kind}s yet; {way}, or set MLSCOPE_HOME")
        if run == "latest":
            second = max(names)[:16]
            # ids of one second differ in random digits only
            return max((n for n in names if n.startswith(second)), key=lambda n: (self._written_ns(n), n))
        if run in names:
            return run
        found = sorted(name for name in names if run and name.startswith(run))
        if len(found) == 1:
            return found[0]
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise RunNotFoundError(
                f"{len(found)} {self.kind}s begin with '{run}': {', '.join(found[:5])}{more}; write more of the id"
            )
        recent = sorted(names, reverse=True)[:200]
        raise RunNotFoundError(
            f"No {self.kind} '{run}' in {self.root} ({len(names)} {self.kind}s, the latest is {recent[0]})."
            f"{nearest(str(run), recent)}"
        )

    def runs(
        self, *, since: str | date | None = None, until: str | date | None = None, limit: int | None = None,
        **filters: Any,
    ) -> pd.DataFrame:  # fmt: skip
        """List runs, newest first.

        Parameters
        ----------
        since, until
            Bounds of the time of creation, both included: ISO 8601 text, datetime or date, UTC where no offset is
            given. A day without a time counts whole.
        limit
            Most rows to return.
        **filters
            Wanted value, or a list of them, of model, backend, status, level, device, precision or batch_size.

        Returns
        -------
        pandas.DataFrame
            Indexed by run_id: created_at (UTC), model, backend, backend_version, status, level, device, precision,
            batch_size, threads, isolation, predict_median_ns (NaN for a run without untraced iterations).
        """
        import pandas as pd

        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"limit must be a positive integer, not {limit!r}")
        bounds = {"since": _bound(since, "since", end=False), "until": _bound(until, "until", end=True)}
        if self.root.is_dir():
            self._follow()
            try:
                rows = self._index.select(filters, limit=limit, **bounds)
            except UnusableIndexError:  # replaced by an older version's process since
                self.rebuild()
                rows = self._index.select(filters, limit=limit, **bounds)
        else:
            rows = []
        frame = pd.DataFrame.from_records(rows, columns=list(COLUMNS), index="run_id")
        frame["created_at"] = pd.to_datetime(frame["created_at"], utc=True)
        frame["predict_median_ns"] = frame["predict_median_ns"].astype("float64")
        frame["threads"] = frame["threads"].astype("Int64")
        return frame

    def delete(self, run: str) -> str:
        """Delete a run and return its id; "latest" and unique beginnings work here too.

        Raises
        ------
        RunNotFoundError
            If there is no such run.
        StoreError
            If it cannot be deleted.
        """
        run_id = self.resolve(run)
        trash = self.root / f".trash-{run_id}-{secrets.token_hex(4)}"
        try:
            os.rename(self.root / run_id, trash)
        except FileNotFoundError:
            raise RunNotFoundError(f"Run {run_id} was deleted by another process meanwhile") from None
        except OSError as error:
            raise StoreError(f"Run {run_id} cannot be deleted from {self.root}: {error.strerror or error}") from error
        self._forget(run_id)
        try:
            self._remove(trash)
        except OSError as error:
            raise StoreError(
                f"Run {run_id} is deleted, but some of its files stay in {trash}: {error.strerror or error}"
            ) from error
        return run_id

    def rebuild(self) -> int:
        """Write the index anew from the folders, clear away what a killed process left, and return the number of runs.

        A folder that cannot be read warns and is left out.
        """
        if not self.root.is_dir():
            return 0
        count = self._index.rebuild(lambda: list(self._rows(self._names())))
        self._sweep()
        return count

    def to_netcdf(self, run: str, path: str | os.PathLike[str]) -> Path:
        """Write a run as one NetCDF 4 file (see `mlscope_lab.store.exports.to_netcdf`)."""
        from mlscope_lab.store.exports import to_netcdf

        return to_netcdf(self.open(run), path)

    def from_netcdf(self, path: str | os.PathLike[str]) -> str:
        """Store a run that `to_netcdf` wrote, perhaps elsewhere, and return its id."""
        from mlscope_lab.store.exports import from_netcdf

        return self.save(from_netcdf(path))

    def to_parquet(self, run: str, folder: str | os.PathLike[str]) -> list[Path]:
        """Write a run as Parquet, one file a group (see `mlscope_lab.store.exports.to_parquet`)."""
        from mlscope_lab.store.exports import to_parquet

        return to_parquet(self.open(run), folder)

    def _names(self) -> set[str]:
        try:
            with os.scandir(self.root) as entries:
                return {entry.name for entry in entries if re.fullmatch(schema.RUN_ID, entry.name) and entry.is_dir()}
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise StoreError(f"The store {self.root} cannot be listed: {error.strerror or error}") from error

    def _written_ns(self, name: str) -> int:
        from mlscope_lab.store.zarr_ import METADATA

        try:
            return (self.root / name / METADATA).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _rows(self, names: set[str]) -> Iterator[dict[str, Any]]:
        from mlscope_lab.store.zarr_ import read_tree

        for name in sorted(names):
            try:
                tree = read_tree(self.root / name)
                self._validate(tree, values=False)
                if tree.attrs["run_id"] != name:
                    raise StoreError(f"it holds run {tree.attrs['run_id']}; rename the folder")
                yield _row(tree)
            except (MlscopeError, OSError) as error:
                if (self.root / name).exists():  # else deleted meanwhile
                    warnings.warn(f"{self.root / name} is left out of the index: {error}", stacklevel=4)

    def _follow(self) -> None:
        """Bring the index up to what the folders say; with nothing changed, one listing and one query."""
        names = self._names()
        try:
            known = self._index.names()
            if known != names:
                self._index.update(add=list(self._rows(names - known)), remove=known - names)
        except UnusableIndexError:
            self.rebuild()

    def _remember(self, run_id: str, tree: xr.DataTree) -> None:
        try:
            self._index.update(add=[_row(tree)])
        except UnusableIndexError:
            self._rebuild_or_warn(run_id)
        except StoreError as error:
            # the run itself is safe; listing runs looks at the folders and adds it
            warnings.warn(f"Run {run_id} is stored, but not indexed yet: {error}", stacklevel=3)

    def _rebuild_or_warn(self, run_id: str) -> None:
        try:
            self.rebuild()
        except StoreError as error:
            warnings.warn(f"Run {run_id} is stored, but not indexed yet: {error}", stacklevel=4)

    def _forget(self, run_id: str) -> None:
        # an index that is gone or locked catches up when runs are listed
        with contextlib.suppress(StoreError):
            self._index.update(remove=[run_id])

    def _remove(self, path: Path) -> None:
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)

    def _sweep(self) -> None:
        """Remove what processes that were killed a day ago or longer left half-written or half-deleted."""
        oldest = time.time() - _ABANDONED_S
        with contextlib.suppress(OSError), os.scandir(self.root) as entries:
            for entry in entries:
                if entry.name.startswith(_HIDDEN) and entry.stat(follow_symlinks=False).st_mtime < oldest:
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)
