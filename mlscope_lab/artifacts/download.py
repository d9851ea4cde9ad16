"""Files behind http and https: streamed, resumed, checked, moved into place in one step.

pooch is the usual choice for fetching, but its downloader (1.9) begins a cut download again from zero, hashes in a
second pass, has no size limit, and lets two processes download the same file at once; so this uses requests, on which
pooch builds as well.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

from mlscope_lab._version import __version__
from mlscope_lab.artifacts.cache import Fetched, Slot, locked
from mlscope_lab.artifacts.writer import CHUNK_BYTES, Writer
from mlscope_lab.errors import DownloadError, OfflineError

if TYPE_CHECKING:
    from pathlib import Path

    import requests

    from mlscope_lab.artifacts.progress import Progress
    from mlscope_lab.config import Settings

__all__ = ["DEFAULT_HUB", "fetch_url", "filename_of", "offline_error"]

DEFAULT_HUB = "https://huggingface.co"
ATTEMPTS = 5
BACKOFF_S = 0.5
MAX_REDIRECTS = 5
MAX_WAIT_S = 60.0
# An attempt that brought this much is progress, after which the attempts are counted anew.
PROGRESS_BYTES = 1 << 20
_RETRIED = {408, 425, 429, 500, 502, 503, 504}


class _AgainError(Exception):
    """The attempt failed in a way that may pass."""

    def __init__(self, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def filename_of(url: str) -> str:
    """Return the last part of a URL's path."""
    return unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]


def shown(url: str) -> str:
    """Return a URL without user, password and query, which may hold secrets, for messages."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def offline_error(what: str, slot: Slot) -> OfflineError:
    """Return the error for something that is not cached while offline mode is on."""
    return OfflineError(
        f"{what} is not in the cache and offline mode is on. Open it once with the network "
        f"(MLSCOPE_OFFLINE=0, or offline = false in config.toml), or put the file at {slot.path}"
    )


def fetch_url(url: str, *, slot: Slot, settings: Settings, progress: Progress, hub: bool = False) -> Fetched:
    """Return the file of a slot, downloading it if it is not cached.

    Parameters
    ----------
    url
        http or https address.
    slot
        Digest and name of the file.
    settings
        Offline mode, timeout, size limit, cache.
    progress
        Called as bytes arrive.
    hub
        The address is one of a model hub: the token in ``HF_TOKEN`` goes along where it belongs.

    Raises
    ------
    OfflineError
        If offline mode is on and the file is not cached.
    DownloadError
        If the server does not answer or answers with an error, after retries; what came is kept to go on from.
    DigestError
        If the bytes have another digest; they are not kept.
    ArtifactError
        If the disk is full or the file passes the size limit.
    """
    cached = slot.find()
    if cached is not None:
        return cached
    if settings.offline:
        raise offline_error(shown(url), slot)
    with locked(settings, slot.sha256, what=slot.path.name, progress=progress):
        # Another process may have fetched it while this one waited.
        return slot.find() or _download(url, slot=slot, settings=settings, progress=progress, hub=hub)


def _download(url: str, *, slot: Slot, settings: Settings, progress: Progress, hub: bool) -> Fetched:
    import requests
    import urllib3

    note = slot.part.with_suffix(".json")
    failures = 0
    with (
        requests.Session() as session,
        Writer(slot.part, limit=settings.max_artifact_bytes, what=shown(url), resume=True) as writer,
    ):
        resumed = writer.done > 0
        while True:
            before = writer.done
            try:
                _attempt(session, url, writer, note, settings=settings, progress=progress, name=slot.path.name, hub=hub)
            except (
                _AgainError, requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError,
            ) as error:  # fmt: skip
                if isinstance(error, requests.exceptions.SSLError):
                    raise DownloadError(f"{shown(url)}: the server's certificate was refused: {error}") from error
                failures = 1 if writer.done - before >= PROGRESS_BYTES else failures + 1
                if failures >= ATTEMPTS:
                    raise DownloadError(
                        f"{shown(url)}: {_reason(error)}; gave up after {ATTEMPTS} attempts in a row. Check the "
                        f"network and try again: the {writer.done:,} bytes that came are kept"
                    ) from error
                wait = error.wait_s if isinstance(error, _AgainError) else 0.0
                time.sleep(min(max(wait, BACKOFF_S * 2 ** (failures - 1)), MAX_WAIT_S))
                resumed = writer.done > 0
                continue
            except requests.RequestException as error:
                raise DownloadError(f"{shown(url)}: {_reason(error)}") from error
            if resumed and writer.sha256 != slot.sha256:
                # The file may have changed between two attempts; only one fetched in one piece proves a wrong digest.
                writer.restart()
                resumed = False
                continue
            note.unlink(missing_ok=True)
            return slot.commit(writer, source=shown(url))


def _reason(error: Exception) -> str:
    text = str(error) if isinstance(error, _AgainError) else f"{type(error).__name__}: {error}"
    return re.sub(r"\s+", " ", text)[:300]


def _attempt(
    session: requests.Session, url: str, writer: Writer, note: Path, *, settings: Settings, progress: Progress,
    name: str, hub: bool,
) -> None:  # fmt: skip
    headers = {"User-Agent": f"mlscope-lab/{__version__}", "Accept-Encoding": "identity"}
    if writer.done:
        headers["Range"] = f"bytes={writer.done}-"
        validator = _validator(note, url)
        if validator is not None:
            headers["If-Range"] = validator
    with _open(session, url, headers, timeout_s=settings.download_timeout_s, hub=hub) as response:
        total = _begin(response, writer, url=url, note=note)
        if total == writer.done and response.status_code == 416:
            return
        writer.expect(total)
        # Undecoded: a digest is that of the file as published, and a .gz file may be labelled as an encoding.
        for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
            writer.write(chunk)
            progress(writer.done, total, name)
    if total is not None and writer.done < total:
        raise _AgainError(f"the connection ended after {writer.done:,} of {total:,} bytes")


def _begin(response: requests.Response, writer: Writer, *, url: str, note: Path) -> int | None:
    """Judge the status; return the size of the whole file, or None."""
    status = response.status_code
    length = response.headers.get("Content-Length", "")
    content_range = re.fullmatch(
        r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if status == 206 and writer.done:
        if content_range is None or content_range[1] is None or int(content_range[1]) != writer.done:
            writer.restart()
            raise _AgainError("the server sent another range than asked for")
        return int(content_range[3]) if content_range[3] != "*" else writer.done + int(length or 0) or None
    if status == 416 and writer.done:
        if content_range is not None and content_range[3] == str(writer.done):
            return writer.done
        writer.restart()
        raise _AgainError("the server's file is shorter than what came before")
    if status == 200:
        writer.restart()
        _note_validator(note, url, response)
        return int(length) if length.isdigit() else None
    if status in _RETRIED:
        after = response.headers.get("Retry-After", "")
        raise _AgainError(
            f"the server answered {status} {response.reason}", wait_s=float(after) if after.isdigit() else 0.0
        )
    hint = {
        401: "The file needs a login; for a model hub set HF_TOKEN",
        403: "The file needs a login or a licence accepted on the site; for a model hub set HF_TOKEN",
        404: "Check the address and the revision in the manifest",
        410: "The file was taken away; look for another source",
    }.get(status, "Open the address in a browser to see what the server says")
    raise DownloadError(f"{shown(url)}: the server answered {status} {response.reason}. {hint}")


def _open(
    session: requests.Session, url: str, headers: dict[str, str], *, timeout_s: float, hub: bool
) -> requests.Response:
    """Send a request and follow its redirects by hand, so that each address is looked at before it is used."""
    origin = _origin(url)
    here = url
    for _ in range(MAX_REDIRECTS + 1):
        sent = dict(headers)
        token = os.environ.get("HF_TOKEN", "").strip()
        # A manifest may name any endpoint; the token belongs to one hub and is shown to no other host.
        if hub and token and _origin(here) == origin == _origin(os.environ.get("HF_ENDPOINT") or DEFAULT_HUB):
            sent["Authorization"] = f"Bearer {token}"
        response = session.get(here, headers=sent, stream=True, timeout=timeout_s, allow_redirects=False)
        if not response.is_redirect:
            return response
        target = urljoin(here, response.headers["Location"])
        response.close()
        if urlsplit(target).scheme not in {"http", "https"}:
            raise DownloadError(f"{shown(url)}: the server redirects to {shown(target)}, which is not http or https")
        here = target
    raise DownloadError(f"{shown(url)}: more than {MAX_REDIRECTS} redirects; the last led to {shown(here)}")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _validator(note: Path, url: str) -> str | None:
    try:
        noted: Any = json.loads(note.read_text(encoding="utf-8"))
        return str(noted["validator"]) if noted["url"] == url and noted["validator"] else None
    except (OSError, ValueError, KeyError, TypeError):  # without it the digest still tells a changed file
        return None


def _note_validator(note: Path, url: str, response: requests.Response) -> None:
    tag = response.headers.get("ETag", "")
    # If-Range takes strong tags only.
    validator = tag if tag.startswith('"') else response.headers.get("Last-Modified")
    note.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
