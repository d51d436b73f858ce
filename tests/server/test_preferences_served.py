"""Preference training through a real server: from the pairs to the reply, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetuned import Client, DataOptions, Dpo, Objective, PromoteIf
from finetuned.errors import InvalidData, InvalidField
from served_jobs import finished, start


def write_pairs(path: Path, count: int = 20) -> Path:
    rows = [{"prompt": f"say {n}", "chosen": f"{n} it is", "rejected": f"no {n} today"} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_preferences_become_an_adapter_that_is_promoted_and_served(client: Client, tmp_path: Path) -> None:
    client.datasets.upload(write_pairs(tmp_path / "pairs.jsonl"), "pairs")
    better = PromoteIf(alias="polite", minimum=0.6)
    job = finished(
        client, start(client, "pairs", "polite", steps=12, dpo=Dpo(beta=0.5), promote_if=better)
    ).check()
    assert job.train is not None
    assert (job.train.objective, job.train.dpo) == (Objective.DPO, Dpo(beta=0.5, label_smoothing=0.0))
    figures = {"loss", "reward_accuracy", "reward_margin", "chosen_reward", "rejected_reward"}
    assert {metric.name for metric in job.metrics} == {*figures, "general_perplexity"}
    assert {metric.name for metric in job.baseline_metrics} == {*figures, "general_perplexity"}
    assert job.train_result is not None
    assert job.train_result.promoted is True
    assert job.train_result.promotion.startswith("polite moved: reward_accuracy")
    seen = [event.evaluation for event in client.jobs.events(job.name) if event.evaluation]
    assert {metric.name for metric in seen[1].metrics} == figures
    reply = client.generate("say 3", adapter="polite@polite", max_tokens=4)
    assert reply.served_by.adapter_digest == job.train_result.digest


def test_what_is_not_for_dpo_is_refused_before_the_start(
    client: Client, tmp_path: Path, tmp_rows: Path
) -> None:
    client.datasets.upload(tmp_rows, "answers")
    client.datasets.upload(write_pairs(tmp_path / "some.jsonl"), "some-pairs")
    before = len(list(client.jobs.list()))
    with pytest.raises(
        InvalidField, match=r"holds PROMPT_COMPLETION rows; .* OBJECTIVE_DPO trains on PREFERENCE"
    ):
        start(client, "answers", "refused", objective=Objective.DPO)
    with pytest.raises(InvalidField, match=r"holds PREFERENCE rows; .* OBJECTIVE_SFT trains on"):
        start(client, "some-pairs", "refused", objective=Objective.SFT)
    with pytest.raises(InvalidField, match=r"spec.dpo.beta is 0.0: input should be greater than 0"):
        start(client, "some-pairs", "refused", dpo=Dpo(beta=0.0))
    with pytest.raises(InvalidField, match=r"spec.dpo: is set, and the objective is OBJECTIVE_SFT"):
        start(client, "answers", "refused", dpo=Dpo(beta=0.2))
    with pytest.raises(InvalidField, match=r"spec.data.train_on_prompt: is on"):
        start(client, "some-pairs", "refused", data=DataOptions(train_on_prompt=True))
    assert len(list(client.jobs.list())) == before


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same text chosen and rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
        ({"prompt": "a", "chosen": " ", "rejected": "b"}, "chosen"),
        ({"prompt": "a", "chosen": "b"}, "rejected"),
    ],
    ids=["equal", "empty", "blank", "missing"],
)
def test_pairs_that_teach_nothing_are_refused_by_their_line(
    client: Client, tmp_path: Path, row: dict[str, str], said: str
) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", 2)
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(InvalidData, match=said) as refused:
        client.datasets.upload(path, "bad-pairs")
    assert [violation.field for violation in refused.value.violations] == ["line 3"]


def test_answers_longer_than_the_limit_are_named_by_line(client: Client, tmp_path: Path) -> None:
    path = write_pairs(tmp_path / "pairs.jsonl", 2)
    long_row = {"prompt": "a", "chosen": "b " * 300, "rejected": "c"}
    path.write_text(path.read_text() + json.dumps(long_row) + "\n")
    client.datasets.upload(path, "long-pairs")
    with pytest.raises(InvalidData, match=r"line 3 has \d+ tokens; max_row_tokens allows"):
        start(client, "long-pairs", "refused")
