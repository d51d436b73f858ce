"""The command line against the fake server: what is printed, as JSON and as text, and exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from both_clients import write_rows
from finetuned import errors
from finetuned.cli.app import app
from finetuned.cli.exit_codes import MEANING, ExitCode, exit_code
from finetuned.errors import FinetunedError, Internal, InvalidData, Unauthenticated, Unavailable, Violation
from finetuned.testing import FakeServer
from typer.testing import CliRunner, Result

Run = Callable[..., Result]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


@pytest.fixture
def run(server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command line against the fake server, in an empty directory."""
    for name in ("TENANT", "API_KEY", "CA", "METRICS_URL"):
        monkeypatch.delenv(f"FINETUNED_{name}", raising=False)
    monkeypatch.setenv("FINETUNED_ENDPOINT", server.endpoint)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, expected: int = 0, typed: str | None = None) -> Result:
        result = CliRunner().invoke(app, list(arguments), input=typed)
        assert result.exit_code == expected, result.output
        return result

    return invoke


@pytest.fixture
def rows(run: Run) -> Path:
    """A file of rows that is uploaded as "rows"."""
    path = write_rows(Path("rows.jsonl"))
    run("dataset", "upload", "rows.jsonl")
    return path


@pytest.fixture
def mine(run: Run, rows: Path) -> str:
    """An adapter with one version."""
    run("train", "-d", "rows", "-a", "mine", "--json")
    return "mine"


def lines(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_dataset_upload(run: Run) -> None:
    write_rows(Path("rows.jsonl"))
    result = run("dataset", "upload", "rows.jsonl")
    assert "rows" in result.stdout
    assert "PROMPT_COMPLETION" in result.stdout
    assert "Next: finetuned train --dataset rows" in result.stderr
    stored = json.loads(run("dataset", "upload", "rows.jsonl", "--id", "other", "--json").stdout)
    assert stored["name"] == "tenants/default/datasets/other"
    assert (stored["rows"], stored["row_kind"]) == (3, "PROMPT_COMPLETION")
    assert json.loads(run("dataset", "get", "other", "--json").stdout) == stored


def test_dataset_upload_by_columns_shows_what_was_counted(run: Run) -> None:
    lines = ["sentence;a,mark", *[f"t{n},pos" for n in range(3)], "u,neg"]
    Path("marks.txt").write_text("\n".join(lines))
    columns = ["--format", "csv", "--column", "sentence;a=text", "--column", "mark=label"]
    shown = run("dataset", "upload", "marks.txt", *columns).stdout
    assert "LABELLED_TEXT" in shown
    assert "the most frequent label is 3.0 times the rarest" in shown
    assert re.search(r"pos\W+3\b", shown)
    assert "Length of rows in characters" in shown
    path = Path("marks.txt").absolute().as_uri()
    assert json.loads(run("dataset", "import", path, "again", *columns, "--json").stdout)["rows"] == 4
    result = run("dataset", "upload", "marks.txt", "--column", "text", expected=ExitCode.USAGE)
    assert "is not COLUMN=FIELD" in result.stderr


def test_dataset_upload_of_unusable_rows_lists_the_lines(run: Run) -> None:
    Path("bad.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"x": 1}\n')
    result = run("dataset", "upload", "bad.jsonl", expected=ExitCode.REFUSED)
    assert result.stdout == ""
    assert "1 rows are not usable" in result.stderr
    assert "line 2: expected a JSON object" in result.stderr
    told = json.loads(run("dataset", "upload", "bad.jsonl", "--json", expected=ExitCode.REFUSED).stderr)
    assert told["error"]["reason"] == "INVALID_DATA"
    assert told["error"]["code"] == "INVALID_ARGUMENT"
    assert [item["field"] for item in told["error"]["violations"]] == ["line 2"]


def test_what_users_wrote_is_no_markup(run: Run, tmp_path: Path) -> None:
    Path("rows.jsonl").write_text(
        "".join(f'{{"text": "{n}", "label": "{label}"}}\n' for n in "ab" for label in ("[/INST]", "[spam]"))
    )
    assert {"[/INST]", "[spam]"} <= set(run("dataset", "upload", "rows.jsonl").stdout.split())
    options = ("-d", "rows", "-a", "mine", "--task", "text-classification", "--name", "run [/2] [v2]")
    assert "run [/2] [v2]" in run("train", *options).output
    assert "run [/2] [v2]" in run("train", *options, "--dry-run").output


def test_events_tell_figures(run: Run, mine: str) -> None:
    (job,) = json.loads(run("jobs", "list", "--json").stdout)
    assert re.search(
        r"EvaluationFinished.*subject adapter.*loss \d", run("jobs", "events", job["name"]).stdout
    )


def test_dataset_list_import_delete(run: Run, rows: Path) -> None:
    imported = run("dataset", "import", rows.absolute().as_uri(), "again", "--json")
    names = [item["name"].rpartition("/")[2] for item in json.loads(run("dataset", "list", "--json").stdout)]
    assert names == ["again", "rows"]
    assert json.loads(imported.stdout)["source"].startswith("file:///")
    assert json.loads(run("dataset", "list", "--kind", "chat", "--json").stdout) == []
    assert "again" in run("dataset", "list").stdout
    assert "No datasets yet" in run("dataset", "list", "--kind", "text").stderr
    run("dataset", "delete", "again", typed="n\n", expected=ExitCode.OTHER)
    assert "deleted again" in run("dataset", "delete", "again", typed="y\n").stderr
    run("dataset", "delete", "rows", "--yes")
    result = run("dataset", "get", "rows", expected=ExitCode.NOT_FOUND)
    assert "tenants/default/datasets/rows" in result.stderr
    assert "dataset list" in result.stderr


def test_tenants_and_endpoints_stand_before_the_command(run: Run, rows: Path, server: FakeServer) -> None:
    result = run("--endpoint", server.endpoint, "--tenant", "b", "dataset", "list", "--json")
    assert json.loads(result.stdout) == []


def test_train_watches_and_tells_the_figures(run: Run, rows: Path) -> None:
    result = run("train", "--dataset", "rows", "--adapter", "mine", "--promote", "prod")
    for words in ("queued", "baseline: exact_match 0", "training 4/4", "loss 0.5000", "100 tokens/s"):
        assert words in result.stderr
    assert "adapter at step 4: exact_match 0.5" in result.stderr
    assert "Next: finetuned chat --adapter mine@1" in result.stderr
    table = [line for line in result.stdout.splitlines() if "exact_match" in line and "│" in line]
    assert [cell.strip() for cell in table[0].strip("│").split("│")] == ["exact_match", "0", "0.5"]
    assert "plain base" in result.stdout


def test_train_as_json_lines(run: Run, rows: Path) -> None:
    told = lines(run("train", "-d", "rows", "-a", "mine", "--json"))
    assert [item["event"]["number"] for item in told[:-1]] == list(range(1, 11))
    assert told[3]["event"]["progress"]["loss"] == 2.0
    assert told[-1]["job"]["state"] == "SUCCEEDED"
    assert told[-1]["job"]["train_result"]["version"] == "tenants/default/adapters/mine/versions/1"
    assert told[-1]["job"]["create_time"].startswith("2026-01-01T00:00:")


def test_train_sends_its_options(run: Run, rows: Path, server: FakeServer) -> None:
    baseline = {"instruction": "Do.", "examples": [{"prompt": "a", "completion": "b"}], "name": "other keys"}
    Path("baseline.json").write_text(json.dumps(baseline))
    options = (
        "train -d rows -a mine --eval-dataset rows --rank 4 --alpha 8 --dropout 0.1 --target-module q_proj "
        "--target-module v_proj --rank-stabilized --epochs 2 --max-steps 3 --batch-rows 4 "
        "--micro-batch-rows 2 --learning-rate 1e-3 --schedule linear --warmup-fraction 0.1 "
        "--weight-decay 0.2 --seed 5 --holdout-fraction 0.2 --max-row-tokens 64 --long-rows drop "
        "--train-on-prompt --evaluations 1 --patience 0 --generation-rows 7 --generation-max-tokens 8 "
        "--baseline baseline.json --promote prod --promote-metric loss --promote-minimum 0.5 "
        "--promote-if-better --name mine --detach --json"
    )
    job = json.loads(run(*options.split()).stdout)
    assert job["state"] == "QUEUED"
    spec = job["train"]
    assert spec["lora"] == {
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"],
        "rank_stabilized": True,
        "decomposed": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "modules_to_save": [],
    }
    assert spec["optimization"]["schedule"] == "LINEAR"
    assert spec["optimization"]["learning_rate"] == 1e-3
    assert (spec["optimization"]["epochs"], spec["optimization"]["max_steps"]) == (2.0, 3)
    assert spec["data"] == {
        "holdout_fraction": 0.2,
        "max_row_tokens": 64,
        "long_rows": "DROP",
        "train_on_prompt": True,
    }
    assert spec["evaluation"]["early_stopping_patience"] == 0
    assert spec["evaluation"]["baseline"] == {
        "instruction": "Do.",
        "examples": [{"prompt": "a", "completion": "b"}],
    }
    assert spec["promote_if"] == {
        "alias": "prod",
        "metric": "loss",
        "minimum": 0.5,
        "better_than_current": True,
    }
    assert job["display_name"] == "mine"


def test_train_by_another_method(run: Run, rows: Path, server: FakeServer) -> None:
    def trained(options: str) -> Any:
        return json.loads(run(*f"train -d rows -a mine --detach --json {options}".split()).stdout)["train"]

    dora = trained("--decomposed --rank-of q_proj=2 --rank-of v_proj=8 --alpha-of q_proj=1.5")["lora"]
    assert (dora["decomposed"], dora["rank_pattern"]) == (True, {"q_proj": 2, "v_proj": 8})
    assert dora["alpha_pattern"] == {"q_proj": 1.5}
    ia3 = trained("--method ia3 --target-module down_proj --feedforward-module down_proj")["ia3"]
    assert ia3 == {
        "target_modules": ["down_proj"],
        "feedforward_modules": ["down_proj"],
        "modules_to_save": [],
    }
    saved = trained("--method ia3 --save-module lm_head")["ia3"]
    assert saved["modules_to_save"] == ["lm_head"]
    bottleneck = trained("--method bottleneck --placement pfeiffer --reduction-factor 8 --activation relu")
    assert bottleneck["bottleneck"]["placement"] == "PFEIFFER"
    assert bottleneck["bottleneck"]["reduction_factor"] == 8.0
    layers = trained("--method layers --last 2 --layer 0 --layer 3 --module model.norm")["layers"]
    assert layers == {"last": 2, "layers": [0, 3], "modules": ["model.norm"]}
    wide = trained("--method bottleneck --width 24 --scaling 0.5")["bottleneck"]
    assert (wide["width"], wide["scaling"]) == (24, 0.5)
    assert trained("--method full")["full"] == {}
    assert trained("--method head --pooling cls")["head"] == {"pooling": "CLS"}
    steps = trained("--max-gradient-norm 0 --checkpoint-interval-steps 7")["optimization"]
    assert (steps["max_gradient_norm"], steps["checkpoint_interval_steps"]) == (0.0, 7)
    Path("labels.jsonl").write_text('{"text": "1", "label": "a=b"}\n{"text": "2", "label": "c"}\n' * 3)
    run("dataset", "upload", "labels.jsonl")
    labels = trained("-d labels --task text-classification --label-weight a=b=2")
    assert labels["classification"]["label_weights"] == {"a=b": 2.0}
    assert trained("--save-module lm_head")["lora"]["modules_to_save"] == ["lm_head"]
    run("quantize", "int8", "small")
    server.change_base("tenants/default/bases/small")
    assert trained("--method qlora --rank 4")["qlora"]["lora"]["rank"] == 4
    # No method is named, and this base takes no other.
    assert trained("--rank 4")["qlora"]["lora"]["rank"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--method ia3 --rank 4", "rank is no setting of ia3"),
        ("--last 2", "last is no setting of lora"),
        ("--method full --rank 4", "rank is no setting of full"),
        ("--method head --rank 0", "rank is no setting of head"),
        ("--rank-of q_proj", "is 'q_proj'; expected MODULE=RANK"),
        ("--rank-of 8", "is '8'; expected MODULE=RANK"),
        ("--alpha-of q_proj=much", "expected MODULE=ALPHA"),
        ("--label-weight spam=much", "expected LABEL=WEIGHT"),
    ],
)
def test_train_with_settings_of_another_method(run: Run, rows: Path, options: str, said: str) -> None:
    result = run(*f"train -d rows -a m {options}".split(), expected=ExitCode.USAGE)
    assert said in result.stderr


@pytest.mark.parametrize(
    ("options", "method", "setting"),
    [
        ("--alpha 0", "lora", "alpha"),
        ("--dropout 0", "lora", "dropout"),
        ("--method layers --last 0", "layers", "last"),
        ("--method bottleneck --reduction-factor 0", "bottleneck", "reduction_factor"),
    ],
)
def test_a_setting_of_0_is_sent(run: Run, rows: Path, options: str, method: str, setting: str) -> None:
    job = json.loads(run(*f"train -d rows -a m --detach --json {options}".split()).stdout)
    assert job["train"][method][setting] == 0
    result = run("train", "-d", "rows", "-a", "m", "--rank", "0", expected=ExitCode.REFUSED)
    assert "spec.lora.rank" in result.stderr


def test_train_shows_what_it_will_take_and_waits(run: Run, rows: Path) -> None:
    shown = run("train", "-d", "rows", "-a", "mine", "--pause-after-estimate")
    assert "paused (estimated)" in shown.stdout
    assert "572.2 MiB of memory (measured; allowed: 7.5 GiB)" in shown.stdout
    assert "finetuned jobs resume" in shown.stderr
    run("jobs", "resume", "job-1")
    watched = run("jobs", "watch", "job-1").stdout
    assert "(estimate +10%)" in watched


def test_train_dry_run_stores_nothing(run: Run, rows: Path) -> None:
    assert "(checked only)" in run("train", "-d", "rows", "-a", "mine", "--dry-run").stdout
    assert json.loads(run("jobs", "list", "--json").stdout) == []


@pytest.mark.parametrize(
    "text", ['{"examples": [{"prompt": 1, "completion": "b"}]}', '{"instruction": 2}', "[]"]
)
def test_a_baseline_of_something_else_than_text(run: Run, rows: Path, text: str) -> None:
    Path("baseline.json").write_text(text)
    result = run("train", "-d", "rows", "-a", "m", "--baseline", "baseline.json", expected=ExitCode.USAGE)
    assert "baseline.json holds no" in result.stderr


def test_train_with_unusable_options(run: Run, rows: Path) -> None:
    run("train", "-d", "rows", expected=ExitCode.USAGE)
    run("train", "-d", "rows", "-a", "m", "--schedule", "zigzag", expected=ExitCode.USAGE)
    result = run("train", "-d", "rows", "-a", "m", "--promote-minimum", "1", expected=ExitCode.USAGE)
    assert "--promote ALIAS" in result.stderr
    Path("bad.json").write_text('{"examples": [1]}')
    result = run("train", "-d", "rows", "-a", "m", "--baseline", "bad.json", expected=ExitCode.USAGE)
    assert "bad.json" in result.stderr
    result = run("train", "-d", "rows", "-a", "m", "--rank", "999", expected=ExitCode.REFUSED)
    assert "spec.lora.rank: is 999; allowed: 1 to 256" in result.stderr


def test_a_failed_job_has_its_own_exit_code(run: Run, rows: Path, server: FakeServer) -> None:
    server.fail_next_job(InvalidData("rows are too long", violations=[Violation("line 3", "is too long")]))
    result = run("train", "-d", "rows", "-a", "mine", expected=ExitCode.JOB_FAILED)
    assert "rows are too long" in result.stderr
    assert "line 3: is too long" in result.stderr
    watched = run("jobs", "watch", "job-1", "--json", expected=ExitCode.JOB_FAILED)
    assert lines(watched)[-1]["job"]["error"]["reason"] == "INVALID_DATA"
    assert json.loads(watched.stderr)["error"]["reason"] == "INVALID_DATA"


def test_jobs(run: Run, rows: Path) -> None:
    assert "Next: finetuned jobs watch job-1" in run("train", "-d", "rows", "-a", "a", "--detach").stderr
    run("quantize", "int8", "small", "--detach")
    listed = json.loads(run("jobs", "list", "--json").stdout)
    assert [item["name"].rpartition("/")[2] for item in listed] == ["job-2", "job-1"]
    found = json.loads(run("jobs", "list", "--kind", "train", "--state", "queued", "--json").stdout)
    assert [item["name"].rpartition("/")[2] for item in found] == ["job-1"]
    assert json.loads(run("jobs", "list", "--adapter", "other", "--json").stdout) == []
    assert "job-2" in run("jobs", "list").stdout
    assert "CANCELLED" in run("jobs", "cancel", "job-2", "--json").stdout
    run("jobs", "cancel", "job-2", expected=ExitCode.REFUSED)
    assert "job-2 is deleted" in run("jobs", "delete", "job-2").stderr
    run("jobs", "get", "job-2", expected=ExitCode.NOT_FOUND)
    assert "job-1 is paused" in run("jobs", "pause", "job-1").stderr
    assert "QUEUED" in run("jobs", "resume", "job-1", "--json").stdout
    run("jobs", "delete", "job-1", expected=ExitCode.REFUSED)
    assert "succeeded" in run("jobs", "watch", "job-1").stderr
    assert json.loads(run("jobs", "get", "job-1", "--json").stdout)["state"] == "SUCCEEDED"
    assert "a@1" in run("jobs", "get", "job-1").stdout
    assert [item["number"] for item in lines(run("jobs", "events", "job-1", "--json"))] == list(range(1, 13))
    assert "EvaluationFinished" in run("jobs", "events", "job-1").stdout


def test_figures_for_tensorboard(run: Run, rows: Path) -> None:
    run("train", "-d", "rows", "-a", "a", "--detach")
    refused = run("jobs", "tensorboard", "job-1", "--output", "logs", expected=ExitCode.REFUSED)
    assert "no figures for TensorBoard yet" in refused.stderr
    assert not Path("logs").exists()
    watched = run("jobs", "watch", "job-1")
    assert "finetuned jobs report job-1" in watched.stderr
    done = run("jobs", "tensorboard", "job-1", "--output", "logs")
    assert Path(done.stdout.strip()) == Path("logs", "job-1").resolve()
    assert "Next: tensorboard --logdir logs" in done.stderr
    assert [path.name for path in Path("logs", "job-1").iterdir()] == ["events.out.tfevents.000001"]


def test_quantize(run: Run) -> None:
    result = run("quantize", "nf4", "small")
    assert "2.0 KiB" in result.stdout
    assert "99.0%" not in result.stdout
    assert "95.0%" in result.stdout
    assert "Next: finetuned serve --base small" in result.stderr
    gated = run("quantize", "int8", "tiny", "--max-quality-drop", "0.001", expected=ExitCode.JOB_FAILED)
    assert "perplexity rises by 1.0%" in gated.stderr
    assert "10.1" in gated.stdout  # the report is shown all the same
    run("quantize", "int3", "x", expected=ExitCode.USAGE)
    run("quantize", "fp4", "x", expected=ExitCode.REFUSED)


def test_adapters(run: Run, mine: str) -> None:
    run("train", "-d", "rows", "-a", mine, "--json")
    assert json.loads(run("adapters", "list", "--json").stdout)[0]["version_count"] == 2
    assert "default -> mine@1" in run("adapters", "list").stdout
    versions = json.loads(run("adapters", "versions", mine, "--json").stdout)
    assert [item["name"].rpartition("/")[2] for item in versions] == ["2", "1"]
    assert "exact_match 0.5" in run("adapters", "versions", mine).stdout
    assert json.loads(run("adapters", "get", "mine@2", "--json").stdout) == versions[0]
    assert versions[1]["digest"] in run("adapters", "get", mine).stdout


def test_aliases(run: Run, mine: str) -> None:
    run("train", "-d", "rows", "-a", mine, "--json")
    assert "mine@prod -> mine@1" in run("adapters", "set-alias", "mine@prod", "1").stderr
    moved = json.loads(run("adapters", "set-alias", "mine@prod", "mine@2", "--json").stdout)
    assert moved["previous_version"].endswith("/1")
    result = run("adapters", "set-alias", "mine@prod", "1", "--etag", "x", expected=ExitCode.REFUSED)
    assert "has changed" in result.stderr
    assert "mine@prod -> mine@1, was mine@2" in run("adapters", "rollback", "mine@prod").stderr
    assert len(json.loads(run("adapters", "aliases", mine, "--json").stdout)) == 2
    assert "mine@default" in run("adapters", "aliases", mine).stdout
    assert "deleted" in run("adapters", "delete-alias", "mine@prod", "--yes").stderr
    run("adapters", "set-alias", "mine@prod", "9", expected=ExitCode.NOT_FOUND)


def test_adapters_in_and_out(run: Run, mine: str) -> None:
    assert "adapter_model.safetensors" in run("adapters", "export", mine, "out").stderr
    result = run("adapters", "export", mine, "out", expected=ExitCode.REFUSED)
    assert "not empty" in result.stderr
    assert json.loads(run("adapters", "export", mine, "two", "--json").stdout)["files"] == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "manifest.json",
    ]
    Path("out/manifest.json").unlink()  # it names the base
    refused = run("adapters", "import", "out", "other", expected=ExitCode.REFUSED)
    assert "expected_base_digest" in refused.stderr
    taken = run("adapters", "import", "out", "other", "--accept-unverified-base", "--json")
    assert not json.loads(taken.stdout)["base_verified"]
    assert "not verified" in run("adapters", "get", "other").stdout


def test_adapters_load_unload_delete(run: Run, mine: str) -> None:
    loaded = json.loads(run("adapters", "load", mine, "--residency", "host", "--pin", "--json").stdout)
    assert (loaded["residency"][0]["residency"], loaded["residency"][0]["pinned"]) == ("HOST", True)
    assert "host, pinned" in run("adapters", "get", mine).stdout
    assert "host" in run("adapters", "residency").stdout
    assert json.loads(run("adapters", "residency", "--json").stdout)[0]["name"] == loaded["name"]
    assert "host" in run("adapters", "unload", mine, "--residency", "host").stdout
    assert "stored" in run("adapters", "unload", mine).stdout
    assert json.loads(run("adapters", "residency", "--json").stdout) == []
    run("adapters", "delete", "mine@1", "--yes", expected=ExitCode.REFUSED)
    run("adapters", "delete", mine, typed="y\n")
    assert "No adapters yet" in run("adapters", "list").stderr


def test_usage(run: Run, rows: Path) -> None:
    shown = run("usage").stdout
    assert "tenants/default/usage" in shown
    assert "1 datasets" in shown
    found = json.loads(run("usage", "--json").stdout)
    assert found["limits"][0] == {
        "limit": "datasets",
        "used": 1,
        "allowed": 1_000_000,
        "unit": "datasets",
        "per_replica": False,
    }


def test_a_quota_leads_to_the_usage_and_not_to_another_server(
    run: Run, server: FakeServer, rows: Path
) -> None:
    message = "datasets of tenants/default: 10 are used"
    refusal = errors.QuotaExceeded(
        message, violations=[Violation("tenants/default", message)], retry_after_seconds=60.0
    )
    server.fail("ImportDataset", refusal)
    result = run("dataset", "import", "file:///rows.jsonl", "more", expected=ExitCode.UNAVAILABLE)
    assert result.stderr.count(message) == 1
    assert "finetuned usage" in result.stderr
    assert "finetuned serve" not in result.stderr


def test_info(run: Run) -> None:
    assert json.loads(run("info", "--json").stdout)["base"]["name"] == "bases/fake"
    result = run("info")
    assert "2048 tokens" in result.stdout
    assert "sha256:" + "ba5e" * 16 in result.stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, ExitCode.UNAVAILABLE),
        (Unauthenticated("no key"), ExitCode.NOT_ALLOWED),
        (Internal("internal fault 1f"), ExitCode.OTHER),
    ],
)
def test_failures_have_their_exit_code_and_no_traceback(
    run: Run,
    server: FakeServer,
    error: FinetunedError | None,
    code: ExitCode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits before it tries again
    server.fail("GetServerInfo", error, times=99)
    result = run("info", expected=code)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr


def test_every_error_has_an_exit_code_with_a_meaning() -> None:
    def tree(root: type[FinetunedError]) -> Iterator[type[FinetunedError]]:
        for cls in root.__subclasses__():
            yield cls
            yield from tree(cls)

    codes = {cls: exit_code(cls.__new__(cls)) for cls in tree(FinetunedError)}
    assert {cls.__name__ for cls, code in codes.items() if code is ExitCode.OTHER} == {"Internal"}
    assert codes[errors.QueueFull] is ExitCode.UNAVAILABLE
    assert codes[errors.JobFailed] is ExitCode.JOB_FAILED
    assert set(MEANING) == set(ExitCode)


def test_settings_that_make_no_sense(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("--tenant", "", "info", expected=ExitCode.USAGE)
    assert "tenant" in result.stderr
    monkeypatch.setenv("FINETUNED_CA", "/nowhere/ca.pem")
    result = run("info", expected=ExitCode.OTHER)
    assert "/nowhere/ca.pem" in result.stderr


def test_help_leads_on(run: Run) -> None:
    result = run("--help")
    for words in (
        "Where to begin",
        "finetuned serve",
        "Exit codes",
        "6 the job failed",
        "--install-completion",
    ):
        assert words in result.stdout
    for command in ("dataset", "jobs", "adapters", "train", "chat", "predict", "quantize", "metrics", "info"):
        assert command in result.stdout
        assert "Usage" in run(command, "--help").stdout
    assert run("--version").stdout.strip()


def test_a_service_that_is_down_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    result = run("--endpoint", "127.0.0.1:1", "info", expected=ExitCode.UNAVAILABLE)
    assert "cannot be reached" in result.stderr
    assert "finetuned serve" in result.stderr


def test_unavailable_is_what_a_lost_connection_is() -> None:
    assert exit_code(Unavailable("gone")) is ExitCode.UNAVAILABLE


def test_after_a_change_of_base_lists_say_so_and_rerun_mends_it(
    run: Run, mine: str, server: FakeServer
) -> None:
    server.change_base("bases/second")
    listed = run("adapters", "list")
    assert "incompatible" in listed.stdout
    assert "mine cannot be served: it was made for the base sha256:" in listed.stderr
    run("predict", "--adapter", "mine", "hello", expected=ExitCode.REFUSED)
    (job,) = json.loads(run("jobs", "list", "--json").stdout)
    run("jobs", "rerun", job["name"], "--base", "second", "--json")
    versions = run("adapters", "versions", mine).stdout
    assert "second" in versions
    assert "fake" in versions
    assert "ready" in versions


def test_predict_takes_samples_constraints_and_biases(run: Run, mine: str, tmp_path: Path) -> None:
    drawn = ("--temperature", "1", "--samples", "2", "--min-tokens", "1", "--logit-bias", "42=-100")
    both = run("predict", "--adapter", "mine", "hello", *drawn)
    assert both.stdout == "[mine@1] hello\n\n[mine@1] hello (1)\n"
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    assert run("predict", "--plain-base", "{}", "--json-schema", str(schema)).stdout == "{}\n"
    assert run("predict", "--plain-base", "yes", "--regex", "yes|no").stdout == "yes\n"
    for wrong in ("42", "x=1", "42=y"):
        refused = run("predict", "--plain-base", "hi", "--logit-bias", wrong, expected=ExitCode.USAGE)
        assert "ID=BIAS" in refused.stderr


def test_predict_labels_tags_and_vectors(run: Run, mine: str, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text('{"text": "call Ada"}\n\n{"text": "now"}\n')
    (tmp_path / "one.png").write_bytes(b"bytes")
    tagged = [
        json.loads(line)
        for line in run("predict", "--task", "tag", "-f", "texts.jsonl", "-a", mine).stdout.splitlines()
    ]
    assert [line["entities"] for line in tagged] == [
        [{"label": "NAME", "start": 5, "end": 8, "text": "Ada", "score": 0.9}],
        [],
    ]
    vector = json.loads(run("predict", "--task", "embed", "--image", "one.png", "--plain-base").stdout)
    assert (len(vector["values"]), vector["served_by"]) == (8, "fake")
    label = json.loads(run("predict", "some text", "--task", "classify", "-a", mine).stdout)
    assert {entry["label"] for entry in label["labels"]} == {"no", "yes"}
    assert label["served_by"] == "mine@1"


def test_predict_with_a_task_refuses_what_is_no_input(run: Run, mine: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    (tmp_path / "one.tiff").write_bytes(b"bytes")
    assert (
        "line 1 holds no" in run("predict", "--task", "tag", "-f", "bad.jsonl", "-a", mine, expected=2).output
    )
    assert (
        "one.tiff" in run("predict", "--task", "embed", "--image", "one.tiff", "-a", mine, expected=2).output
    )
    assert "no labels" in run("predict", "x", "--task", "classify", "--plain-base", expected=4).output
    run("predict", "--task", "embed", "-a", mine, expected=2)
    run("predict", "x", "--image", "one.tiff", "-a", mine, expected=2)
