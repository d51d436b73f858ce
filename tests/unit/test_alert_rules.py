"""Alert rules: Prometheus understands them, each fires and is silent when it should, each is explained."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from metrics_page import ROOT, promtool

ALERTS = ROOT / "deploy" / "alerts"
TESTS = sorted((ALERTS / "tests").glob("*.yaml"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ALERTS / "finetuned.yaml").read_text())["groups"]
    for rule in group["rules"]
]


def test_prometheus_understands_the_rules() -> None:
    assert f"SUCCESS: {len(RULES)} rules found" in promtool("check", "rules", ALERTS / "finetuned.yaml")


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_each_fires_when_it_should(path: object) -> None:
    assert "SUCCESS" in promtool("test", "rules", str(path))


def test_each_is_tried_on_series_that_raise_it_and_on_others() -> None:
    tried: dict[bool, set[str]] = {True: set(), False: set()}
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                tried[bool(case["exp_alerts"])].add(case["alertname"])
    names = {rule["alert"] for rule in RULES}
    assert (tried[True], tried[False]) == (names, names)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_says_how_bad_it_is_and_where_it_is_explained(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


def test_the_runbook_explains_the_rules_and_nothing_else() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text()
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert [section.split("\n", 1)[0] for section in sections] == [rule["alert"] for rule in RULES]
    for section in sections:
        assert all(f"**{word}**" in section for word in ("Means", "Look", "Do")), section


def test_the_runbook_names_settings_and_log_lines_that_exist() -> None:
    named = set(re.findall(r"`([a-z]+_[a-z_]+)", (ROOT / "docs" / "runbook.md").read_text()))
    source = "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    metrics = {name for name in named if name.startswith("finetuned_")}
    assert {name for name in named - metrics if not re.search(rf"\b{name}\b", source)} == set()
