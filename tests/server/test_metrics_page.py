"""What a running server tells Prometheus after it has answered, refused, trained and quantized."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from finetuned import Client, GenerateRequest, Lora, Optimization, RawText
from finetuned.cli.app import app
from finetuned.errors import NotFound
from metrics_page import ROOT, families, promtool, scrape
from tiny_models import save_tiny_adapter
from tiny_server import TinyServer, make_data_directory, running
from tiny_worker import eventually
from typer.testing import CliRunner

NAMING = [*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("deploy/alerts/**/*.yaml")]
"""Where metrics are named."""
NO_METRICS = {"finetuned_service"}
STEPS = 9 * 8
"""Of nine sequences together, a token each."""
PROMPT = RawText("what's the weather like in Paris today?")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a server that has done all that it can do."""
    directory = tmp_path_factory.mktemp("metrics")
    make_data_directory(directory)
    with running(directory / "data") as server, Client(server.endpoint) as client:
        use(client, server, directory)
        # The engine's figures are a second old at most, and may be of the middle of the last reply.
        eventually(lambda: value(scrape(server.metrics_url), "finetuned_engine_step_sequences_sum") >= STEPS)
        page = scrape(server.metrics_url)
        assert 'finetuned_adapter_info{adapter="tenants/default/adapters/measured/versions/1"' in page
        return page


def use(client: Client, server: TinyServer, directory: Path) -> None:
    rows = directory / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "say {n}", "completion": "{n} it is"}}\n' for n in range(20)))
    client.datasets.upload(rows, "rows")
    settings = Optimization(max_steps=4, batch_rows=4, checkpoint_interval_steps=2)
    job = client.train(dataset="rows", adapter="measured", lora=Lora(rank=4), optimization=settings)
    client.jobs.wait(job.name, timeout_seconds=180.0).check()
    client.jobs.wait(client.quantize("INT8", "tiny-int8").name, timeout_seconds=180.0).check()
    made = save_tiny_adapter(directory / "imported", server.base_directory, seed=3, rank=4).directory
    client.adapters.import_directory(made, "imported", accept_unverified_base=True)
    client.adapters.load("imported")
    client.adapters.unload("imported")
    client.generate_many([GenerateRequest(PROMPT, plain_base=True, max_tokens=8, ignore_eos=True)] * 8)
    with pytest.raises(NotFound):
        client.generate(PROMPT, adapter="missing", max_tokens=1)
    client.generate(PROMPT, adapter="measured", max_tokens=8, ignore_eos=True)


def test_promtool_finds_no_fault_with_the_page(used: str) -> None:
    assert promtool("check", "metrics", stdin=used) == ""


def test_promtool_would_find_fault() -> None:
    with pytest.raises(AssertionError, match="no help text"):
        promtool("check", "metrics", stdin="# TYPE finetuned_x_total counter\nfinetuned_x_total 1\n")


def value(page: str, name: str, **labels: str) -> float:
    written = ",".join(f'{key}="{labels[key]}"' for key in sorted(labels))
    series = f"{name}{{{written}}}" if written else name
    (found,) = re.findall(rf"^{re.escape(series)} (\S+)$", page, re.MULTILINE)
    return float(found)


def test_figures_tell_what_was_done(used: str) -> None:
    assert value(used, "finetuned_sequences_total", finish="length", model="base") == 8
    assert value(used, "finetuned_tokens_total", kind="completion", model="adapter") == 8
    assert value(used, "finetuned_time_to_first_token_seconds_count", model="base") == 8
    assert value(used, "finetuned_inter_token_seconds_count", model="base") == 8 * 7
    assert value(used, "finetuned_refusals_total", reason="RESOURCE_NOT_FOUND") == 1
    assert value(used, "finetuned_adapter_load_seconds_count", tier="device") == 2
    assert value(used, "finetuned_adapter_evictions_total", tier="device") == 1
    assert value(used, "finetuned_engine_step_sequences_sum") >= STEPS
    assert value(used, "finetuned_training_step_seconds_count") == 4
    assert 4 * 4 * 8 < value(used, "finetuned_training_tokens_total") < 4 * 4 * 100
    assert value(used, "finetuned_job_checkpoints_total") >= 2
    assert value(used, "finetuned_jobs", kind="train", state="succeeded") == 1
    assert value(used, "finetuned_jobs_ended_total", kind="quantize", state="succeeded", fault="") == 1
    for process in ("server", "engine"):
        resident = value(used, "finetuned_process_resident_bytes", process=process)
        assert resident > value(used, "finetuned_process_private_bytes", process=process) > 0
    assert value(used, "finetuned_process_resident_bytes", process="jobs") == 0
    assert 0 < value(used, "finetuned_data_disk_free_bytes") <= value(used, "finetuned_data_disk_size_bytes")


def test_every_metric_is_documented_as_it_is(used: str) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    documented = [line for line in text.splitlines() if line.startswith("| `finetuned_")]
    labels = {line.split("`")[1]: line.split(" | ")[2] for line in documented}
    expected = [family.row(labels.get(name)) for name, family in families(used).items()]
    missing = "\n".join(row for row in expected if row not in documented)
    assert sorted(documented) == sorted(expected), f"docs/metrics.md lacks:\n{missing}"


def named_in(path: Path) -> set[str]:
    return set(re.findall(r"\bfinetuned_[a-z0-9_]+\b(?!\.)", path.read_text())) - NO_METRICS


@pytest.mark.parametrize("path", NAMING, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_metric_that_is_named_somewhere_exists(used: str, path: Path) -> None:
    known = {name for family in families(used).values() for name in (family.name, *family.series)}
    assert named_in(path) - known == set()


def test_every_series_that_an_alert_asks_for_exists(used: str) -> None:
    """Also the labels: a rule on a label that nobody sets would be silent for ever."""
    rules = (ROOT / "deploy" / "alerts" / "finetuned.yaml").read_text()
    series = re.findall(r"^(finetuned_\w+)(?:\{(.*)\})? \S+$", used, re.MULTILINE)
    for name, selector in set(re.findall(r"(finetuned_[a-z0-9_]+)(?:\{([^}]*)\})?", rules)):
        wanted = {part for part in selector.split(",") if part and "=~" not in part}
        assert any(n == name and wanted <= set(labels.split(",")) for n, labels in series), (name, selector)


def test_the_command_shows_the_page_to_people(client: Client, server: TinyServer) -> None:
    client.generate(PROMPT, plain_base=True, max_tokens=1)
    shown = CliRunner().invoke(
        app, ["metrics", "sequences", "--url", server.metrics_url], env={"COLUMNS": "200"}
    )
    assert shown.exit_code == 0, shown.output
    assert "finetuned_sequences_total" in shown.stdout
