"""The image without a container engine: its build's steps are done, its server runs as its user, reads only
where it must, and its health check answers."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_steps import NO_COMPILER, ROOT, Image, instructions
from served_jobs import eventually
from tiny_server import make_data_directory


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    # Not pytest's directory: only its owner may enter that one.
    with tempfile.TemporaryDirectory(prefix="image-") as directory:
        Path(directory).chmod(0o755)
        built = Image.build(Path(directory) / "root", NO_COMPILER)
        built.make_read_only()
        yield built


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_let_in_and_nothing_else() -> None:
    copied = {
        word.removeprefix("./")
        for step in instructions()
        if step["instruction"] == "COPY" and not step["value"].startswith("--from")
        for word in step["value"].split()[:-1]
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == copied


def test_the_package_is_the_image_s_own(image: Image) -> None:
    program = "import finetuned, finetuned_service as s; print(finetuned.__file__, s.__file__)"
    said = subprocess.check_output(image.as_user(["python", "-c", program]), env=image.env, text=True)
    assert all(path.startswith(str(image.root / "opt")) for path in said.split())


def test_it_serves_as_its_user_from_a_read_only_tree(image: Image, tmp_path: Path) -> None:
    make_data_directory(tmp_path)
    data = image.root / "data"
    shutil.copytree(tmp_path / "data", data, dirs_exist_ok=True)
    for path in data.rglob("*"):
        os.chown(path, image.uid, image.gid)
    before = image.files()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        health = f"127.0.0.1:{free.getsockname()[1]}"
    environment = image.env | {
        "FINETUNED_BASE": "tiny",
        "FINETUNED_COMPUTE": "plain",
        "FINETUNED_KV_CACHE_TOKENS": "2048",
        "FINETUNED_LISTEN_ADDRESS": "127.0.0.1:0",
        "FINETUNED_METRICS_ADDRESS": "127.0.0.1:0",
        "FINETUNED_HEALTH_ADDRESS": health,
    }
    server = subprocess.Popen(
        image.as_user(image.entrypoint + image.command), cwd=image.workdir, env=environment
    )
    try:

        def healthy() -> bool:
            assert server.poll() is None, "the server ended"
            asked = subprocess.run(image.as_user(image.healthcheck), check=False, env=environment)
            return asked.returncode == 0

        eventually(healthy)
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert f"Uid:\t{image.uid}\t{image.uid}\t" in status
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
    refused = subprocess.run(image.as_user(image.healthcheck), check=False, env=environment)
    assert refused.returncode == 1
    assert image.files() == before
    assert (data / "finetuned.db").stat().st_uid == image.uid


def test_its_user_cannot_write_where_the_code_is(image: Image) -> None:
    touched = subprocess.run(
        image.as_user(["touch", str(image.root / "opt" / "finetuned" / "x")]), check=False
    )
    assert touched.returncode != 0
