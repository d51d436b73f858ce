"""Does what the Dockerfile says, in a directory that stands for the image's root.

Its own lines are run: only paths are moved under the directory, and pip finds the libraries of the test's
environment installed instead of asking an index. No container engine is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[1]
_IMAGE_PATHS = re.compile(r"(?<![\w/.])/(?=(?:opt|data|src|tmp)\b)")
NO_COMPILER = {"COMPILER": ""}


class Image:
    """A root file system, and the environment and commands that come with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._system_path = f"{_python_named_python(root / 'bin')}:{os.environ['PATH']}"
        self.env = {"PATH": self._system_path}
        self.workdir, self.uid, self.gid = root, os.getuid(), os.getgid()
        self.entrypoint: list[str] = []
        self.command: list[str] = []
        self.healthcheck: list[str] = []
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o1777)

    @classmethod
    def build(cls, root: Path, arguments: dict[str, str]) -> Image:
        """What `docker build` leaves: stages share the root, so that COPY --from finds its source in place."""
        image = cls(root)
        given = dict(arguments)
        for step in instructions():
            name, value = step["instruction"], step["value"]
            match name:
                case "ARG":
                    key, _, default = value.partition("=")
                    given.setdefault(key, default)
                case "FROM":
                    shutil.rmtree(root / "src", ignore_errors=True)
                    image.workdir, image.env = root, {"PATH": image._system_path}
                case "RUN":
                    image._run(value, given)
                case "COPY":
                    image._copy(value)
                case _:
                    image._set(name, value)
        return image

    def as_user(self, command: list[str]) -> list[str]:
        """The command as the image's user: without privileges, but for reading and entering any directory,
        since the interpreter of the tests may lie in the home of another user."""
        if os.geteuid() != 0:
            return command
        allowed = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"]
        ids = [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups", "--no-new-privs"]
        return ["setpriv", *ids, "--bounding-set=-all,+dac_read_search", *allowed, *command]

    def make_read_only(self) -> None:
        for path in (self.root / "opt").rglob("*"):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)

    def files(self) -> dict[str, int]:
        """Everything but what is mounted for writing, with the time of its last change."""
        paths = (self.root / "opt").rglob("*")
        return {str(path): path.lstat().st_mtime_ns for path in paths}

    def _set(self, name: str, value: str) -> None:
        match name:
            case "ENV":
                for key, setting in re.findall(r"(\w+)=(\S+)", value):
                    self.env[key] = self._moved(setting).replace("$PATH", self.env["PATH"])
            case "WORKDIR":
                self.workdir = Path(self._moved(value))
                self.workdir.mkdir(parents=True, exist_ok=True)
            case "USER":
                self.uid, self.gid = self._ids(value)
            case "ENTRYPOINT":
                self.entrypoint = json.loads(value)
            case "CMD":
                self.command = json.loads(value)
            case "HEALTHCHECK":
                self.healthcheck = json.loads(value.partition("CMD ")[2])
            case _:
                assert name in {"COMMENT", "EXPOSE", "LABEL"}, f"a step of an unknown kind: {name}"

    def _run(self, line: str, arguments: dict[str, str]) -> None:
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
        script = "set -e; " + self._moved(line)
        if os.geteuid() != 0:  # only root may give files away
            script = script.replace("65532:65532", f"{self.uid}:{self.gid}")
        environment = self.env | arguments | offline
        subprocess.run(["/bin/sh", "-c", script], check=True, cwd=self.workdir, env=environment)
        for packages in self.root.glob("opt/*/lib/python*/site-packages"):
            borrowed = [path for path in sys.path if path.endswith("site-packages")]
            (packages / "zz_borrowed.pth").write_text("\n".join(borrowed))
            # The one that comes with Python 3.11 is older than torch asks for, and would hide the borrowed one.
            for bundled in packages.glob("setuptools*"):
                shutil.rmtree(bundled)

    def _copy(self, line: str) -> None:
        *sources, target = line.split()
        if sources[0].startswith("--from="):
            assert sources[1:] == [target], "a copy between stages keeps its place"
            return
        for source in (ROOT / name for name in sources):
            place = self.workdir / target
            if source.is_dir():
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, place)

    def _ids(self, value: str) -> tuple[int, int]:
        uid, gid = map(int, value.split(":"))  # numbers, so that Kubernetes can tell it is not root
        assert uid != 0
        return (uid, gid) if os.geteuid() == 0 else (self.uid, self.gid)

    def _moved(self, text: str) -> str:
        return _IMAGE_PATHS.sub(f"{self.root}/", text)


def instructions() -> list[dict[str, Any]]:
    """The Dockerfile's, in order."""
    with (ROOT / "Dockerfile").open("rb") as file:
        return DockerfileParser(fileobj=file).structure


def _python_named_python(directory: Path) -> Path:
    """A directory with a `python`, as the base image has one."""
    directory.mkdir(parents=True)
    program = directory / "python"
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    program.write_text(f'#!/bin/sh\nexec "{base}" "$@"\n')
    program.chmod(0o755)
    return directory
