"""Image and chart against checkov's policies. It lives in an environment of its own (`make deploy-check` builds
it): it pins half of ours to other versions.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import helm_python
import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKOV = ROOT / ".venv-checkov" / "bin" / "checkov"
DIGEST = f"sha256:{'b' * 64}"

VALUE_SETS: dict[str, dict[str, Any]] = {
    "as it stands": {},
    "pinned and watched": {
        "image": {"digest": DIGEST},
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
    },
}
CHART_EXCEPTIONS = {
    "CKV_K8S_9",  # the worker has no readiness probe: one that fails must not take the server out of its Service
    "CKV_K8S_15",  # tags of releases do not move and a digest cannot: pulling always would add a way to fail
    "CKV_K8S_43",  # the digest is the operator's to set (`image.digest`); one of the value sets does
}
IMAGE_EXCEPTIONS = {
    "CKV_DOCKER_7",  # it reads the build argument in FROM as an image without a tag; its default has one
}


def failed(framework: str, file: Path) -> set[str]:
    """Ids of the policies that the file does not meet; it must meet some, or nothing was looked at."""
    command = [
        str(CHECKOV),
        "--file",
        str(file),
        "--framework",
        framework,
        "--output",
        "json",
        "--skip-download",
    ]
    environment = {**os.environ, "LOG_LEVEL": "ERROR"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=120)
    found = json.loads(done.stdout)
    assert found["summary"]["passed"] > 20, done.stderr
    assert found["summary"]["parsing_errors"] == 0
    return {check["check_id"] for check in found["results"]["failed_checks"]}


@pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)
def test_the_chart_meets_the_policies(tmp_path: Path, values: dict[str, Any]) -> None:
    with helm_python.Chart.load(str(ROOT / "deploy" / "helm" / "finetuned")) as chart:
        files = chart.render(values, name="demo", namespace="prod")
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text("\n---\n".join(text for name, text in files.items() if name.endswith(".yaml")))
    allowed = CHART_EXCEPTIONS - ({"CKV_K8S_43"} if "image" in values else set())
    assert failed("kubernetes", rendered) <= allowed


def test_the_image_meets_the_policies() -> None:
    assert failed("dockerfile", ROOT / "Dockerfile") <= IMAGE_EXCEPTIONS


def test_a_policy_that_is_not_met_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    text = (ROOT / "Dockerfile").read_text()
    file.write_text("\n".join(line for line in text.splitlines() if not line.startswith("USER")))
    assert "CKV_DOCKER_3" in failed("dockerfile", file)
