"""Every error that mlscope-lab raises on purpose.

One root, so that ``except MlscopeError`` catches them all; each leaf is also the builtin that fits, so that code which
knows nothing of us still catches what it expects::

    MlscopeError
    ├── ConfigError (ValueError)                a setting is malformed
    ├── PluginError (RuntimeError)              an entry point does not load or is not what it claims
    ├── ManifestError (ValueError)              a YAML manifest is malformed
    │   └── ManifestNotFoundError (LookupError) no manifest has that name
    ├── ArtifactError (OSError)                 bytes could not be had
    │   ├── DigestError (ValueError)            the bytes are not those the manifest names
    │   ├── DownloadError (ConnectionError)     the network failed or answered with an error
    │   ├── OfflineError                        the network would be needed and is switched off
    │   └── UnsafeArtifactError (ValueError)    the file would run code or escape its folder
    ├── InputError (ValueError)                 a picture, tensor or parameter given by the caller is wrong
    ├── BackendError (RuntimeError)             a framework refused
    │   ├── BackendNotAvailableError (ImportError)  not installed, or no device
    │   ├── UnsupportedModelError (ValueError)  this framework cannot open that form of model
    │   │   └── ConversionError                 no way, or no complete way, from one form to another
    │   └── SessionError (RuntimeError)         closed, used from two threads, or the framework raised
    ├── RunError (RuntimeError)                 a run was recorded as failed
    │   └── ComparisonError                     a side failed while two were compared
    ├── SchemaError (ValueError)                a DataTree is not a run
    └── StoreError (OSError)                    the store could not be read or written
        └── RunNotFoundError (LookupError)      no run has that id

A message says what is wrong, where, and the way out.
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BackendError",
    "BackendNotAvailableError",
    "ComparisonError",
    "ConfigError",
    "ConversionError",
    "DigestError",
    "DownloadError",
    "InputError",
    "ManifestError",
    "ManifestNotFoundError",
    "MlscopeError",
    "OfflineError",
    "PluginError",
    "RunError",
    "RunNotFoundError",
    "SchemaError",
    "SessionError",
    "StoreError",
    "UnsafeArtifactError",
    "UnsupportedModelError",
    "nearest",
]


class MlscopeError(Exception):
    """Root of all errors raised on purpose."""


class ConfigError(MlscopeError, ValueError):
    """A setting (argument, environment variable or config.toml) is malformed."""


class PluginError(MlscopeError, RuntimeError):
    """A plugin's entry point does not load, or is not what its group asks for."""


class ManifestError(MlscopeError, ValueError):
    """A manifest is malformed; the message names file, path and fix."""


class ManifestNotFoundError(ManifestError, LookupError):
    """No manifest has the asked-for name; the message suggests the nearest."""


class ArtifactError(MlscopeError, OSError):
    """The bytes of a model, label file or dataset could not be had."""


class DigestError(ArtifactError, ValueError):
    """Bytes differ from the digest that the manifest names; they are not kept."""


class DownloadError(ArtifactError, ConnectionError):
    """A server did not answer, or answered with an error."""


class OfflineError(ArtifactError):
    """The network would be needed, and offline mode is on."""


class UnsafeArtifactError(ArtifactError, ValueError):
    """Opening the file would run code, escape its folder or exhaust the machine."""


class InputError(MlscopeError, ValueError):
    """What the caller gave (picture, tensor, parameter) cannot be used."""


class BackendError(MlscopeError, RuntimeError):
    """A framework refused."""


class BackendNotAvailableError(BackendError, ImportError):
    """The framework is not installed, or has no device to run on."""


class UnsupportedModelError(BackendError, ValueError):
    """The framework cannot open this form of model."""


class ConversionError(UnsupportedModelError):
    """There is no complete way from one form of the model to another."""


class SessionError(BackendError):
    """A session is closed, is used from two threads, or its framework raised while running."""


class RunError(MlscopeError, RuntimeError):
    """A run was recorded as failed.

    Parameters
    ----------
    message
        What happened and the way out.
    run_id
        Id of the failed run in the store, or None where it was not stored.
    kind
        One of `mlscope_lab.trace.schema.FAILURE_KINDS`.
    """

    def __init__(self, message: str, *, run_id: str | None = None, kind: str = "error") -> None:
        super().__init__(message)
        self.run_id = run_id
        self.kind = kind


class ComparisonError(RunError):
    """A side failed while it was compared with another.

    Parameters
    ----------
    message, run_id
        As for `RunError`.
    comparison
        What was found until then, a `mlscope_lab.divergence.result.Comparison`.
    """

    def __init__(self, message: str, *, comparison: object, run_id: str | None = None) -> None:
        super().__init__(message, run_id=run_id, kind="error")
        self.comparison = comparison


class SchemaError(MlscopeError, ValueError):
    """A DataTree does not follow the run schema."""


class StoreError(MlscopeError, OSError):
    """The run store could not be read or written."""


class RunNotFoundError(StoreError, LookupError):
    """No stored run has that id, or several begin with it."""


def nearest(word: str, known: list[str] | tuple[str, ...], *, n: int = 3) -> str:
    """Return " Did you mean 'x' or 'y'?" for the closest known words, or "".

    Parameters
    ----------
    word
        What the caller wrote.
    known
        What would have been accepted.
    n
        How many suggestions at most.
    """
    import difflib

    lowered = {k.lower(): k for k in known}
    hits = [lowered[h] for h in difflib.get_close_matches(word.lower(), list(lowered), n=n, cutoff=0.55)]
    if not hits:
        hits = [k for k in known if word and word.lower() in k.lower()][:n]
    if not hits:
        return ""
    quoted = [f"'{h}'" for h in hits]
    return " Did you mean " + (" or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)) + "?"
