"""The report of a job as a real browser shows it: Chromium, without a network."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest
from both_clients import write_rows
from finetuned.cli.job_report import html_report
from finetuned.testing import FakeServer
from job_reports import classified, events, finished_job
from PIL import Image


def chromium(tmp_path: Path, page: Path, *arguments: str) -> bytes:
    """Open the page and do as the arguments say; everything that would be fetched fails."""
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    apart = [f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    done = subprocess.run([*command, *apart, *arguments, page.as_uri()], capture_output=True, check=True)
    return done.stdout


@pytest.fixture
def page(tmp_path: Path) -> Path:
    with FakeServer() as server:
        job, _ = finished_job(server, str(write_rows(tmp_path / "rows.jsonl")))
    path = tmp_path / "report.html"
    path.write_text(html_report(classified(job), events()), encoding="utf-8")
    return path


def test_a_browser_shows_curves_tables_and_text_that_does_not_run(tmp_path: Path, page: Path) -> None:
    shot = tmp_path / "shot.png"
    dom = chromium(tmp_path, page, f"--screenshot={shot}", "--window-size=1000,1600", "--dump-dom").decode()
    if not shot.exists():
        chromium(tmp_path, page, f"--screenshot={shot}", "--window-size=1000,1600")
    assert "taken</title>" not in dom
    assert dom.count("<svg") == 3
    titles = ("Loss, nats per row", "macro_f1 on the held-out rows", "Learning rate")
    assert all(f"<h2>{title}</h2>" in dom for title in titles)
    assert all(f'id="{table}"' in dom for table in ("metrics", "confusion-1", "samples", "data", "labels"))
    image = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    colors = {color for _, color in image.getcolors(2**24) or []}
    # The line of the training loss, the one of the held-out loss, and the ground of a warning.
    assert {(31, 111, 178), (200, 87, 27), (255, 243, 214)} <= colors
