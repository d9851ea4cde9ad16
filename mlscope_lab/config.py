"""Settings and where each value came from.

The order is: argument, then ``MLSCOPE_*`` in the environment, then ``config.toml`` in the home folder, then the
default. Nothing is created by reading settings; folders are made by whoever writes into them.
"""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from mlscope_lab.errors import ConfigError

__all__ = ["Settings", "load_settings", "manifest_roots"]

_KEYS = ("path", "offline", "index_url", "download_timeout_s", "max_artifact_bytes")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Resolved settings.

    Attributes
    ----------
    home
        Folder of runs, caches and jobs (``MLSCOPE_HOME``).
    path
        Extra manifest folders, searched first to last (``MLSCOPE_PATH``, separated like PATH).
    offline
        Never touch the network (``MLSCOPE_OFFLINE``).
    index_url
        Package index for wheel members, or None for pip's own setting (``MLSCOPE_INDEX_URL``).
    download_timeout_s
        Seconds without a byte before a download is given up (``MLSCOPE_DOWNLOAD_TIMEOUT_S``).
    max_artifact_bytes
        Largest file that is taken from the network or out of an archive (``MLSCOPE_MAX_ARTIFACT_BYTES``).
    origins
        For each name above: "argument", "environment", "config.toml" or "default".
    """

    home: Path
    path: tuple[Path, ...] = ()
    offline: bool = False
    index_url: str | None = None
    download_timeout_s: float = 30.0
    max_artifact_bytes: int = 20_000_000_000
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def cache(self) -> Path:
        """Folder of downloaded and derived artifacts."""
        return self.home / "cache"

    @property
    def runs(self) -> Path:
        """Folder of stored runs."""
        return self.home / "runs"

    @property
    def config_file(self) -> Path:
        """The optional config.toml."""
        return self.home / "config.toml"


def _as_bool(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in {"1", "true", "yes", "on"}:
        return True
    if text in {"0", "false", "no", "off", ""}:
        return False
    raise ConfigError(f"{where} must be true or false, not {value!r}")


def _as_number(value: Any, where: str, kind: type[int] | type[float]) -> Any:
    try:
        number = kind(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where} must be a number, not {value!r}") from None
    if number <= 0:
        raise ConfigError(f"{where} must be positive, not {value!r}")
    return number


def _as_paths(value: Any, where: str) -> tuple[Path, ...]:
    parts = value.split(os.pathsep) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(p, str | os.PathLike) for p in parts):
        raise ConfigError(f"{where} must be a list of folders, not {value!r}")
    return tuple(Path(p).expanduser() for p in parts if str(p))


def _parse(name: str, value: Any, where: str) -> Any:
    if name == "path":
        return _as_paths(value, where)
    if name == "offline":
        return _as_bool(value, where)
    if name == "download_timeout_s":
        return _as_number(value, where, float)
    if name == "max_artifact_bytes":
        return _as_number(value, where, int)
    return str(value) if value else None


def load_settings(
    *, home: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None, **arguments: Any
) -> Settings:
    """Resolve every setting.

    Parameters
    ----------
    home
        Overrides ``MLSCOPE_HOME``; default is the platform's data folder.
    environ
        Environment to read; default ``os.environ``.
    **arguments
        Any other field of `Settings`; None means not given.

    Raises
    ------
    ConfigError
        If a value is malformed, or config.toml has a key that does not exist.
    """
    env = os.environ if environ is None else environ
    origins: dict[str, str] = {}
    if home is not None:
        root, origins["home"] = Path(home), "argument"
    elif env.get("MLSCOPE_HOME"):
        root, origins["home"] = Path(env["MLSCOPE_HOME"]), "environment"
    else:
        root, origins["home"] = Path(platformdirs.user_data_dir("mlscope-lab", appauthor=False)), "default"
    root = root.expanduser().absolute()

    file = root / "config.toml"
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}. Mend the file or delete it.") from error
    unknown = sorted(set(table) - set(_KEYS))
    if unknown:
        raise ConfigError(f"{file}: unknown key {unknown[0]!r}. Known: {', '.join(_KEYS)}.")
    strange = sorted(set(arguments) - set(_KEYS))
    if strange:
        raise ConfigError(f"unknown setting {strange[0]!r}. Known: home, {', '.join(_KEYS)}.")

    values: dict[str, Any] = {}
    for name in _KEYS:
        variable = f"MLSCOPE_{name.upper()}"
        if arguments.get(name) is not None:
            values[name], origins[name] = _parse(name, arguments[name], name), "argument"
        elif env.get(variable):
            values[name], origins[name] = _parse(name, env[variable], variable), "environment"
        elif name in table:
            values[name], origins[name] = _parse(name, table[name], f"{file}: {name}"), "config.toml"
        else:
            origins[name] = "default"
    return Settings(home=root, origins=origins, **values)


def manifest_roots(settings: Settings) -> list[Path]:
    """Return the folders that hold manifests, most specific first.

    User folders (``MLSCOPE_PATH``), then the checkout this package runs from, then what the installed package put
    under Jupyter's data folders.
    """
    roots = [*settings.path]
    checkout = Path(__file__).resolve().parent.parent
    project = checkout / "pyproject.toml"
    if project.is_file() and 'name = "mlscope-lab"' in project.read_text(encoding="utf-8"):
        roots.append(checkout / "manifests")
    else:
        roots.append(Path(sys.prefix) / "share" / "jupyter" / "mlscope_lab" / "manifests")
        roots.append(Path(platformdirs.user_data_dir("jupyter", appauthor=False)) / "mlscope_lab" / "manifests")
    return [r for r in roots if r.is_dir()]
