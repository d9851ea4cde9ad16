"""A real HTTP server on this machine, with the faults that servers have."""

from __future__ import annotations

import hashlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlscope_lab.config import Settings


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Route:
    """How one address answers.

    cuts: for each of the first requests the number of bytes after which the connection is cut.
    statuses: answers of the first requests. gate: wait for this event after `gate_after` bytes. hang: never answer.
    """

    body: bytes = b""
    ranges: bool = True
    length: int | None = None
    send_length: bool = True
    etag: str | None = None
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    location: str | None = None
    gate: threading.Event | None = None
    gate_after: int = 0
    hang: bool = False
    wrong_range: bool = False


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        route = self.server.routes.get(self.path)
        if route is None:
            return self._answer(404)
        if route.hang:
            self.server.stopped.wait(20)
            self.close_connection = True
            return None
        if route.location is not None:
            return self._answer(302, {"Location": route.location})
        if route.statuses:
            return self._answer(route.statuses.pop(0), route.headers)
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        fresh = self.headers.get("If-Range") in {None, route.etag}
        if asked and route.ranges and fresh:
            start = int(asked[1])
            if start >= len(route.body):
                return self._answer(416, {"Content-Range": f"bytes */{len(route.body)}"})
        rest = route.body[start:]
        self.send_response(206 if start else 200)
        if start:
            shown = 0 if route.wrong_range else start
            self.send_header("Content-Range", f"bytes {shown}-{len(route.body) - 1}/{len(route.body)}")
        if route.etag:
            self.send_header("ETag", route.etag)
        for name, value in route.headers.items():
            self.send_header(name, value)
        if route.send_length:
            self.send_header("Content-Length", str(len(rest) if route.length is None else route.length))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if route.gate is not None:
            self.wfile.write(rest[: route.gate_after])
            self.wfile.flush()
            route.gate.wait(30)
            rest = rest[route.gate_after :]
        if route.cuts:
            self.wfile.write(rest[: route.cuts.pop(0)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return None
        self.wfile.write(rest)
        return None

    def _answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


class FaultyServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Route] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopped = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""

    def route(self, path: str, **options: Any) -> Route:
        self.routes[path] = Route(**options)
        return self.routes[path]

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("mlscope_lab.artifacts.download.BACKOFF_S", 0.01)
    with FaultyServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield running
        running.stopped.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", download_timeout_s=5.0)


@pytest.fixture
def sha() -> Any:
    return sha256
