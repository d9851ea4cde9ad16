"""What is installed here, what each backend can do and why not more, and where every setting comes from.

Each framework is asked in a process of its own, so that one that crashes or hangs at import is a line in the answer.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlscope_lab import plugins
from mlscope_lab._version import __version__
from mlscope_lab.config import Settings, manifest_roots
from mlscope_lab.errors import MlscopeError

__all__ = ["diagnose"]

_GROUP = "mlscope_lab.backends"
_COLLECTORS = "mlscope_lab.collectors"
_DEVICES = ("cpu", "cuda:0")
_PROBE_TIMEOUT_S = 120.0
_LAST_WORDS = 5
_COMPANIONS = {"jupyterlab": "lab", "scikit-image": "demo", "voila": "lab"}


def _asked(name: str) -> tuple[dict[str, Any] | None, str]:
    """Return a backend's capabilities as its own process tells them, or None and why there are none."""
    from mlscope_lab.launchers.subprocess_ import Limits, TaskFailure, run_in_subprocess

    found: dict[str, Any] = {}

    def listen(message: dict[str, Any], arrays: dict[str, Any]) -> None:
        if message["type"] == "capabilities":
            found.update(message)

    task = {"kind": "capabilities", "backend": name}
    try:
        run_in_subprocess(task, limits=Limits(timeout_s=_PROBE_TIMEOUT_S), on_message=listen)
    except TaskFailure as failure:
        last = " | ".join(line.strip() for line in failure.log[-_LAST_WORDS:] if line.strip())
        return None, f"{failure.message}{f' Its last words: {last}' if last else ''}"
    return found, ""


def _backend(name: str) -> dict[str, Any]:
    """Describe one backend; see `diagnose`."""
    answer: dict[str, Any] = {
        "name": name, "title": name, "installed": False, "version": None, "reason": "", "install": "", "formats": [],
        "levels": [], "devices": [], "unavailable": {},
    }  # fmt: skip
    try:
        backend = plugins.load(_GROUP, name)()
        found = backend.availability()
    except MlscopeError as error:
        return answer | {"reason": str(error)}
    except Exception as error:  # a plugin of somebody else's may raise anything
        return answer | {"reason": f"{type(error).__name__}: {error}"}
    answer |= {
        "title": backend.title, "installed": found.ok, "version": found.version, "reason": found.reason,
        "install": found.install,
    }  # fmt: skip
    if not found.ok:
        return answer
    capabilities, problem = _asked(name)
    if capabilities is None:
        return answer | {"reason": problem}
    return answer | {key: capabilities[key] for key in ("formats", "levels", "devices", "unavailable")}


def _collector(name: str) -> dict[str, Any]:
    """Describe one collector; see `diagnose`."""
    answer: dict[str, Any] = {"name": name, "levels": [], "records": [], "reason": "", "unavailable": {}}
    try:
        collector = plugins.load(_COLLECTORS, name)()
        reasons: dict[str, str] = {}
        for device in _DEVICES:  # one that watches another device than the first says what it lacks there
            reasons = dict(collector.unavailable(device))
            if name not in reasons:
                break
    except MlscopeError as error:
        return answer | {"reason": str(error)}
    except Exception as error:  # a plugin of somebody else's may raise anything
        return answer | {"reason": f"{type(error).__name__}: {error}"}
    reason = reasons.pop(name, "")
    records = [] if reason else [what for what in collector.records if f"{name} {what}" not in reasons]
    unavailable = {what.removeprefix(f"{name} "): why for what, why in reasons.items()}
    return answer | {
        "levels": sorted(collector.levels), "records": records, "reason": reason, "unavailable": unavailable,
    }  # fmt: skip


def _free_bytes(folder: Path) -> int | None:
    """Return the free space where a folder is or would be made."""
    at = next((p for p in (folder, *folder.parents) if p.exists()), None)
    try:
        return shutil.disk_usage(at).free if at is not None else None
    except OSError:
        return None


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Collect warnings as sentences."""
    sentences: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield sentences
        sentences += [str(w.message) for w in caught]


def _store(settings: Settings, rebuild: bool) -> dict[str, Any]:
    from mlscope_lab.divergence.stored import store_of
    from mlscope_lab.store import Store

    store, comparisons = Store(settings.runs), store_of(settings)
    answer: dict[str, Any] = {"path": settings.runs, "runs": 0, "indexed": 0, "comparisons": 0, "index": "ok",
                              "problems": [], "bytes": 0, "rebuilt": False}  # fmt: skip
    with _heard() as problems:
        try:
            answer["runs"] = len(store)
            answer["comparisons"] = len(comparisons)
            if rebuild:
                store.rebuild()
                comparisons.rebuild()
                answer["rebuilt"] = True
            answer["indexed"] = len(store.runs())
            answer["bytes"] = store.size
        except MlscopeError as error:
            answer["index"] = str(error)
    answer["problems"] = problems
    if answer["index"] == "ok" and answer["indexed"] != answer["runs"]:
        answer["index"] = f"{answer['runs'] - answer['indexed']} of {answer['runs']} runs cannot be read"
    return answer


def _manifests(settings: Settings) -> dict[str, Any]:
    from mlscope_lab.catalog import load_catalog

    catalog = load_catalog(settings)
    counts = {kind: len(getattr(catalog, kind)()) for kind in ("models", "frameworks", "datasets", "systems")}
    return {"folders": [*manifest_roots(settings)], **counts, "problems": [str(p) for p in catalog.problems]}


def _settings(settings: Settings) -> list[dict[str, Any]]:
    return [
        {"name": name, "value": getattr(settings, name), "origin": origin} for name, origin in settings.origins.items()
    ]


def _companions() -> list[dict[str, Any]]:
    found = []
    for name, extra in _COMPANIONS.items():
        try:
            have: str | None = version(name)
        except PackageNotFoundError:
            have = None
        found.append({"name": name, "version": have, "install": f"pip install 'mlscope-lab[{extra}]'"})
    return found


def diagnose(settings: Settings, *, rebuild: bool = False) -> dict[str, Any]:
    """Look at this installation.

    Parameters
    ----------
    settings
        What is looked at.
    rebuild
        Write the store's index anew from its folders.

    Returns
    -------
    dict
        ``mlscope_lab`` and ``python``, versions; ``settings``, a list of name, value and origin; ``folders``, a list of
        name, path, exists and free_bytes; ``store``, with path, runs, indexed, bytes, index ("ok" or what is wrong),
        problems and rebuilt; ``backends``, a list of name, title, installed, version, reason (why it cannot be used, ""
        if it can), install (command), formats, levels, devices and unavailable ({what: reason}); ``collectors``, what
        watches the whole process, a list of name, levels, records (what it can record here), reason (why nothing) and
        unavailable; ``packages``, other packages with name, version and install; ``manifests``, with folders, counts
        and problems; ``machine``, facts; ``machine_unavailable``, {what: reason}; ``warnings``, what makes timings
        noisy.
    """
    from mlscope_lab.collectors.environment import describe, noise_warnings

    machine, unavailable = describe()  # first: the probes below would be the load that they warn of
    with ThreadPoolExecutor(max_workers=2) as pool:
        backends = list(pool.map(_backend, plugins.names(_GROUP)))
    folders = {"home": settings.home, "runs": settings.runs, "cache": settings.cache}
    return {
        "mlscope_lab": __version__,
        "python": sys.version.split()[0],
        "settings": _settings(settings),
        "folders": [
            {"name": name, "path": path, "exists": path.is_dir(), "free_bytes": _free_bytes(path)}
            for name, path in folders.items()
        ],
        "store": _store(settings, rebuild),
        "backends": backends,
        "collectors": [_collector(name) for name in plugins.names(_COLLECTORS)],
        "packages": _companions(),
        "manifests": _manifests(settings),
        "machine": machine,
        "machine_unavailable": unavailable,
        "warnings": noise_warnings(machine),
    }
