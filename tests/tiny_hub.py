"""A model hub on the loopback that has one model: as much of Hugging Face's protocol as a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REPOSITORY = "acme/tiny"
COMMIT = "c0ffee00" * 5


class Hub:
    """Serves the files of `directory` as `acme/tiny`; `asked` are the files that were downloaded."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[str] = []
        self.failures = 0
        """How many of the next downloads break off in the middle."""
        self.endpoint = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    """Set by the subclass of each server."""
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        path = urlsplit(self.path).path
        api = f"/api/models/{REPOSITORY}"
        if path in {api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"}:
            files = [{"rfilename": p.name, "size": p.stat().st_size} for p in self._files()]
            self._send_json({"id": REPOSITORY, "sha": COMMIT, "siblings": files}, with_body)
        elif path == f"{api}/tree/{COMMIT}":
            files = [
                {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": _etag(p)}
                for p in self._files()
            ]
            self._send_json(files, with_body)
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            self._send_file(path.rsplit("/", 1)[-1], with_body)
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, with_body)

    def _files(self) -> list[Path]:
        return sorted(self.hub.directory.iterdir())

    def _send_file(self, name: str, with_body: bool) -> None:
        data = (self.hub.directory / name).read_bytes()
        headers = {"ETag": f'"{_etag(self.hub.directory / name)}"', "X-Repo-Commit": COMMIT}
        asked = self.headers.get("Range", "").removeprefix("bytes=").partition("-")[0]
        start = int(asked or 0)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if with_body:
            self.hub.asked.append(name)
            if self.hub.failures:
                self.hub.failures -= 1
                self._send(200, data[: len(data) // 2], headers | {"Content-Length": str(len(data))}, True)
                self.close_connection = True
                return
        self._send(206 if start else 200, data[start:], headers, with_body)

    def _send_json(self, value: Any, with_body: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, with_body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        pass


@contextmanager
def tiny_hub(directory: Path) -> Iterator[Hub]:
    hub = Hub(directory)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="tiny-hub")
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
