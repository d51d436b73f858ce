"""Files of object stores: whatever the spelling, nothing outside the prefixes is asked for."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from finetuned_service.datasets.import_urls import ImportUrls
from finetuned_service.errors import InvalidField

ROWS = b'{"text": "mine"}\n'
SECRET = b'{"text": "not yours"}\n'


class Site(ThreadingHTTPServer):
    """A web server that remembers what it was asked for."""

    daemon_threads = True

    def __init__(self, directory: Path) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(_Remembering, directory=str(directory)))
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Remembering(SimpleHTTPRequestHandler):
    server: Site

    def send_head(self):
        self.server.asked.append(self.path)
        return super().send_head()

    def log_message(self, *_args: object) -> None:
        """Nothing."""


@pytest.fixture
def site(tmp_path):
    for name, content in {
        "public/rows.jsonl": ROWS,
        "public/my rows/à+b=1,2:3:4.jsonl": ROWS,
        "private/rows.jsonl": SECRET,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    site = Site(tmp_path)
    thread = threading.Thread(target=site.serve_forever)
    thread.start()
    yield site
    site.shutdown()
    site.server_close()
    thread.join()


@pytest.mark.parametrize(
    "name",
    [
        "rows.jsonl",
        "my rows/à+b=1,2:3:4.jsonl",
        "my%20rows/%C3%A0+b=1,2:3:4.jsonl",
        "my%20rows/%c3%a0%2bb%3d1%2c2%3A3%3A4.jsonl",
    ],
)
def test_a_file_under_a_prefix_is_fetched(site, tmp_path, name):
    urls = ImportUrls([f"{site.url}/public"])
    assert urls.fetch(f"{site.url}/public/{name}", tmp_path / "file", 100).read_bytes() == ROWS


@pytest.mark.parametrize(
    "way",
    [
        "..",
        "%2e%2e",
        "%2E%2E",
        "%2e.",
        ".%2E",
        "%252e%252e",
        "%25252e%25252e",
        "%2%65%2%65",
        "%u002e%u002e",
        "%c0%ae%c0%ae",
        "%c0%2e%c0%2e",
        "%e0%80%ae%e0%80%ae",
        ".\t.",
        "\n..",
        ".\r.",
        "..\x00",
        ".%09.",
        "..%00",
        ".. ",
        "..%20",
        "...",
        "..;",
        "..;a=b",
        "%2e%2e%3b",
        "..%3Ba",
        "a/../..",
        "a%2f..%2f..",
        "a%2F%2E%2E%2f%2e%2e",
        "..%2f",
        "..%5c",
        "..\\",
        "a%5c..%5C..",
        "%",
        "a%",
        "%zz",
        ".",
        "%2e",
        "",
        "/",
        "x?/..",
        "x%3f/..",
        "x#/..",
        "x%23/..",
        "x@..",
        "x%40..",
        "x::file:///etc",
        "x%3a%3afile",
        "\x85..",
        "%c2%85..",
    ],
)
@pytest.mark.parametrize("tail", ["/private/rows.jsonl", ""])
def test_no_other_spelling_leads_out_of_it(site, tmp_path, way, tail):
    urls = ImportUrls([f"{site.url}/public"])
    for uri in (f"{site.url}/public/{way}{tail}", f"{site.url}/public/my rows/{way}/{way}{tail}"):
        with pytest.raises(InvalidField, match="is not under an import URL; allowed: http://127"):
            urls.fetch(uri, tmp_path / "file", 100)
    assert site.asked == []


@pytest.mark.parametrize("name", ["100%/rows", "50%25 off/rows", "me@here/rows", "a b/%2e%2e/rows"])
def test_names_of_an_object_store_have_no_escapes(tmp_path, name):
    """What is one in a URL of HTTP is a part of the name there."""
    memory = fsspec.filesystem("memory")
    memory.pipe(f"/bucket/{name}", ROWS)
    urls = ImportUrls(["memory://bucket"])
    assert urls.fetch(f"memory://bucket/{name}", tmp_path / "file", 100).read_bytes() == ROWS
    for way in ("..", "a/../..", "", ".", "x?/..", "x#/..", "x::file:///etc"):
        with pytest.raises(InvalidField, match=r"is not under an import URL; .* empty or of dots alone"):
            urls.fetch(f"memory://bucket/{way}/{name}", tmp_path / "file", 100)


@pytest.mark.parametrize(
    "uri", ["{}public@127.0.0.1/rows", "{}.example/public/rows", "{}@/public/rows", "{}:0/public/rows"]
)
def test_another_host_is_refused(site, tmp_path, uri):
    with pytest.raises(InvalidField, match="is not under an import URL"):
        ImportUrls([site.url]).fetch(uri.format(site.url), tmp_path / "file", 100)
    assert site.asked == []
