"""Held-out rows as questions, with and without the baseline's prompt, and what the engine makes of them."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from finetuned_service.jobs.events import Notice, Progress
from finetuned_service.jobs.pace import Stopped
from finetuned_service.jobs.specs import Baseline, BaselineExample, EvaluationOptions
from finetuned_service.text.supervision import EncodedRow, encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import Chat, ChatMessage, PromptCompletion, Text
from finetuned_service.training.evaluate import Evaluator, TokenScoring, _kv_tokens
from finetuned_service.training.questions import (
    Question,
    encode_prompt,
    encode_scored,
    matches,
    questions,
)
from own_layouts import save_bottleneck, save_parameters
from tiny_models import load_plain, oracle_tokens, save_tiny_adapter
from tiny_tokenizers import write_byte_fallback, write_tokenizer
from training_tasks import Reports, make_base

ROW = PromptCompletion("say 12", "one two")
CHAT = Chat(
    (
        ChatMessage("system", "Be brief."),
        ChatMessage("user", "say 1"),
        ChatMessage("assistant", "one"),
        ChatMessage("user", "say 2"),
        ChatMessage("assistant", "two"),
    )
)
BASELINE = Baseline(
    instruction="Spell it.",
    examples=(
        BaselineExample(prompt="say 7", completion="seven"),
        BaselineExample(prompt="say 8", completion="eight"),
    ),
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BaseTokenizer:
    return BaseTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("chatml")))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / "tiny")


def supervised_text(tokenizer: BaseTokenizer, encoded) -> str:
    marked = [i for i, flag in zip(encoded.token_ids, encoded.supervised, strict=True) if flag]
    return tokenizer.decode(marked)


def test_a_row_asks_for_its_last_answer():
    assert questions([ROW, CHAT, Text("no question")], limit=9) == [
        Question((ChatMessage("user", "say 12"),), "one two"),
        Question(CHAT.messages[:-1], "two"),
    ]
    assert questions([CHAT], limit=1)[0].prompt == "say 2"


def test_few_questions_are_spread_over_all_rows():
    rows = [PromptCompletion(str(n), "x") for n in range(10)]
    assert [question.prompt for question in questions(rows, limit=4)] == ["0", "2", "5", "7"]
    assert questions(rows, limit=0) == []


def test_white_space_around_an_answer_does_not_count():
    assert matches(" one two\n", "one two")
    assert not matches("one  two", "one two")
    assert not matches("One two", "one two")


def test_the_baseline_gets_its_instruction_and_examples_as_earlier_turns(tokenizer):
    (question,) = questions([ROW], limit=1)
    expected = (
        ChatMessage("system", "Spell it."),
        ChatMessage("user", "say 7"),
        ChatMessage("assistant", "seven"),
        ChatMessage("user", "say 8"),
        ChatMessage("assistant", "eight"),
        ChatMessage("user", "say 12"),
    )
    assert encode_prompt(tokenizer, question, BASELINE) == tokenizer.encode_conversation(expected)
    assert encode_prompt(tokenizer, question, Baseline()) == tokenizer.encode_conversation(question.messages)


def test_a_rows_own_system_turn_follows_the_instruction(tokenizer):
    (question,) = questions([CHAT], limit=1)
    text = tokenizer.decode(encode_prompt(tokenizer, question, BASELINE))
    assert text.startswith("system\nSpell it.\n\nBe brief.\nuser\nsay 7\n")


def test_only_the_rows_own_answers_are_scored(tokenizer):
    for row, answers in ((ROW, "one two"), (CHAT, "onetwo")):
        scored = encode_scored(tokenizer, row, BASELINE)
        alone = encode_scored(tokenizer, row, Baseline())
        assert alone == encode_row(tokenizer, row)
        assert supervised_text(tokenizer, scored) == supervised_text(tokenizer, alone) == answers
        assert sum(scored.supervised) == sum(alone.supervised)
    text = Text("as it is")
    assert encode_scored(tokenizer, text, BASELINE) == encode_row(tokenizer, text)


def test_where_the_template_has_no_system_role_the_instruction_opens_the_first_turn(tmp_path):
    tokenizer = BaseTokenizer.load(write_byte_fallback(tmp_path))
    (question,) = questions([ROW], limit=1)
    folded = [
        ChatMessage("user", "Spell it.\n\nsay 7"),
        ChatMessage("assistant", "seven"),
        ChatMessage("user", "say 8"),
        ChatMessage("assistant", "eight"),
        ChatMessage("user", "say 12"),
    ]
    assert encode_prompt(tokenizer, question, BASELINE) == tokenizer.encode_conversation(folded)
    assert supervised_text(tokenizer, encode_scored(tokenizer, ROW, BASELINE)) == "one two"


def evaluator(base: Path, reports: Reports, **changes) -> Evaluator:
    rows = changes.pop("rows", [PromptCompletion(f"say {n}", "one two three") for n in range(5)])
    asked = questions(rows, limit=3)
    settings = {
        "tokenizer": BaseTokenizer.load(base),
        "base_directory": base,
        "compute": "plain",
        "cache_directory": "",
        "threads": 1,
        "options": EvaluationOptions(generation_max_tokens=6, baseline=BASELINE),
        "scoring": TokenScoring(rows, asked),
        "asked": asked,
        "report": reports,
        "stop": threading.Event(),
    }
    return Evaluator(**{**settings, **changes})


@pytest.mark.parametrize("method", ["dora", "bottleneck", "layers"])
def test_adapters_of_every_method_are_evaluated_on_the_path_that_serves_them(tmp_path, method):
    base = make_base(tmp_path / "base", dtype=torch.bfloat16, head_dim=16)
    adapter = {
        "dora": lambda to: save_tiny_adapter(to, base, seed=1, use_dora=True),
        "bottleneck": lambda to: save_bottleneck(to, base, ["model.layers.0.mlp"], seed=2),
        "layers": lambda to: save_parameters(
            to, base, ["model.layers.1.mlp.up_proj.weight"], method="LAYERS", seed=3
        ),
    }[method](tmp_path / method)
    losses = []
    for compute in ("plain", "native"):
        evaluated = evaluator(base, Reports(), compute=compute).evaluate("adapter", adapter.handle)
        losses.append(next(metric.value for metric in evaluated.metrics if metric.name == "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_answers_and_loss_are_those_of_plain_transformers(base):
    reports = Reports()
    made = evaluator(base, reports)
    evaluated = made.evaluate("baseline")
    plain = load_plain(base)
    tokenizer = made.tokenizer
    prompts = [encode_prompt(tokenizer, question, BASELINE) for question in made.asked]
    expected = [oracle_tokens(plain, prompt, 6) for prompt in prompts]
    ends = [next((place for place, i in enumerate(ids) if i == 2), len(ids)) for ids in expected]
    assert list(evaluated.answers) == [
        tokenizer.decode(ids[:end]) for ids, end in zip(expected, ends, strict=True)
    ]
    losses = []
    for row in made.scoring.scored_rows:
        encoded = encode_scored(tokenizer, row, BASELINE)
        with torch.no_grad():
            log_probabilities = plain(input_ids=torch.tensor([encoded.token_ids])).logits[0].log_softmax(-1)
        marked = [place for place, flag in enumerate(encoded.supervised) if flag]
        losses += [-log_probabilities[place - 1, encoded.token_ids[place]].item() for place in marked]
    loss, exact_match = evaluated.metrics
    assert (loss.name, exact_match.name, exact_match.value) == ("loss", "exact_match", 0.0)
    assert loss.value == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    progress = reports.of(Progress)
    assert [(progress[0].step, progress[-1].step, progress[-1].total_steps)] == [(0, 8, 8)]
    assert {report.phase for report in progress} == {"baseline"}


def test_rows_that_do_not_fit_the_context_are_left_out_and_told(base):
    reports = Reports()
    long_row = PromptCompletion("say " * 300, "one")
    made = evaluator(base, reports, rows=[long_row, ROW])
    evaluated = made.evaluate("baseline")
    alone = evaluator(base, Reports(), rows=[ROW]).evaluate("baseline")
    assert evaluated.metrics[0] == alone.metrics[0]
    assert evaluated.answers == ("", *alone.answers)
    (notice,) = reports.of(Notice)
    assert notice.text.startswith("1 of 2 held-out rows with the prompt of the baseline are longer")


def test_a_stop_gives_the_evaluation_up(base):
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        evaluator(base, Reports(), stop=stop).evaluate("baseline")


def test_what_is_known_is_not_measured_again(base, tmp_path):
    first, again, other = Reports(), Reports(), Reports()
    kept = tmp_path / "baseline.json"
    found = evaluator(base, first).evaluate_once("baseline", None, kept, "task")
    assert evaluator(base, again).evaluate_once("baseline", None, kept, "task") == found
    assert again.all == []
    evaluator(base, other).evaluate_once("baseline", None, kept, "another task")
    assert other.of(Progress)


def test_the_kv_cache_of_an_evaluation_is_as_large_as_its_rows_ask_for():
    """On a GPU all of it is taken, and contexts have 131,072 tokens."""
    row = EncodedRow(list(range(700)), [True] * 700)
    assert _kv_tokens([[1] * 30, [1] * 90], [10, 16], [row], 131_072) == 1024
    assert _kv_tokens([[1] * 600] * 3, [40] * 3, [], 131_072) == 2048
    assert _kv_tokens([[1] * 600] * 300, [40] * 300, [row], 131_072) == 32_768
    assert _kv_tokens([[1] * 40_000], [100], [row], 131_072) == 40_448
    # What the context does not hold is not computed.
    assert _kv_tokens([[1] * 10], [5], [row], 512) == 512
    assert _kv_tokens([], [], [], 512) == 512
