"""`finetuned metrics` reads Prometheus' text format from a page."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from finetuned.cli.app import app
from finetuned.cli.exit_codes import ExitCode
from finetuned.cli.metrics import Sample, parse
from typer.testing import CliRunner

PAGE = r"""# HELP finetuned_requests_total Requests.
# TYPE finetuned_requests_total counter
finetuned_requests_total{rpc="ServeAdapter",code="OK"} 12.0
finetuned_requests_created{rpc="ServeAdapter",code="OK"} 1.7e9
finetuned_seconds_bucket{le="0.1"} 3.0
finetuned_seconds_bucket{le="+Inf"} 4.0
finetuned_seconds_count 4.0
finetuned_seconds_sum 2.0
finetuned_idle_seconds_bucket{le="+Inf"} 0.0
finetuned_idle_seconds_count 0.0
finetuned_idle_seconds_sum 0.0
python_info{version="3.11"} 1.0
"""


@pytest.fixture
def url() -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(PAGE.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it is called by
            """Not on standard error."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def rows(output: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if "│" in line
    ]


def test_the_text_format() -> None:
    page = (
        'a{x="1,2",y="q\\"\\\\\\n"} 1.5 1700000000\n# a comment 3\n\nb NaN\nc_total -2e3\n not a sample !\n'
    )
    first, second, third = parse(page)
    assert first == Sample("a", {"x": "1,2", "y": 'q"\\\n'}, 1.5)
    assert second.name == "b"
    assert second.value != second.value
    assert third == Sample("c_total", {}, -2000.0)


def test_counters_and_histograms_for_people(url: str) -> None:
    result = CliRunner().invoke(app, ["metrics", "--url", url], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert rows(result.stdout) == [
        ["finetuned_requests_total", "rpc=ServeAdapter, code=OK", "12"],
        ["finetuned_seconds", "", "4 times, mean 0.5"],
        ["finetuned_idle_seconds", "", "0 times"],
    ]


def test_everything(url: str) -> None:
    result = CliRunner().invoke(app, ["metrics", "--url", url, "--all"], env={"COLUMNS": "200"})
    assert len(rows(result.stdout)) == 10
    assert "python_info" in result.stdout


def test_json_of_some(url: str) -> None:
    result = CliRunner().invoke(app, ["metrics", "requests", "--json"], env={"FINETUNED_METRICS_URL": url})
    assert json.loads(result.stdout)[0] == {
        "name": "finetuned_requests_total",
        "labels": {"rpc": "ServeAdapter", "code": "OK"},
        "value": 12.0,
    }


@pytest.mark.parametrize(
    ("page", "told"), [("http://127.0.0.1:1/metrics", "does not answer"), ("{url}/other", "answers 404")]
)
def test_no_page(url: str, page: str, told: str) -> None:
    result = CliRunner().invoke(app, ["metrics", "--url", page.format(url=url)])
    assert result.exit_code == ExitCode.UNAVAILABLE
    assert told in result.stderr


def test_no_url() -> None:
    result = CliRunner().invoke(app, ["metrics", "--url", "file:///etc/passwd"])
    assert result.exit_code == ExitCode.OTHER
    assert "http://" in result.stderr
