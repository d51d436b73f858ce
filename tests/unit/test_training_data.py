"""Reading a job's rows: what is refused, shortened, held out; and the order in which rows are seen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from finetuned_service.errors import InvalidData, InvalidField
from finetuned_service.jobs.specs import TrainSpec
from finetuned_service.text.supervision import encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import PromptCompletion
from finetuned_service.training.data import JobData, read_job_data
from finetuned_service.training.order import RowOrder
from tiny_tokenizers import write_tokenizer
from tokenizers import Tokenizer
from training_tasks import counting_rows, write_rows


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BaseTokenizer:
    return BaseTokenizer.load(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def read(
    tmp_path: Path,
    tokenizer: BaseTokenizer,
    rows: list[dict[str, str]],
    heldout: list[dict[str, str]] | None = None,
    **options: Any,
) -> JobData:
    spec = TrainSpec.model_validate(
        {"dataset": "d", "adapter": "a", "data": {"max_row_tokens": 64, "holdout_fraction": 0.0, **options}}
    )
    eval_path = write_rows(tmp_path / "eval.jsonl", heldout) if heldout is not None else None
    return read_job_data(spec, tokenizer, write_rows(tmp_path / "train.jsonl", rows), eval_path)


LONG = {"prompt": "say 1", "completion": "one " * 60}
LONG_PROMPT = {"prompt": "say " * 60, "completion": "one"}


def test_rows_are_encoded_in_the_order_of_the_file(tmp_path, tokenizer):
    data = read(tmp_path, tokenizer, counting_rows(0, 3))
    assert [example.row for example in data.train] == [
        PromptCompletion(row["prompt"], row["completion"]) for row in counting_rows(0, 3)
    ]
    assert [example.encoded for example in data.train] == [
        encode_row(tokenizer, example.row) for example in data.train
    ]
    assert data.heldout == ()


def test_too_long_rows_are_refused_by_line(tmp_path, tokenizer):
    rows = [*counting_rows(0, 2), LONG, *counting_rows(2, 4), LONG_PROMPT]
    with pytest.raises(
        InvalidData, match=r"2 rows cannot be used; the first: line 3 has .* tokens"
    ) as refused:
        read(tmp_path, tokenizer, rows)
    assert [violation.field for violation in refused.value.violations] == ["line 3", "line 6"]
    assert refused.value.metadata == {"invalid_rows": "2"}


def test_lines_of_both_files_are_named_and_at_most_twenty(tmp_path, tokenizer):
    with pytest.raises(InvalidData) as refused:
        read(tmp_path, tokenizer, [LONG] * 19, [LONG] * 19)
    fields = [violation.field for violation in refused.value.violations]
    assert (len(fields), fields[0], fields[19]) == (20, "line 1", "eval_dataset line 1")
    assert refused.value.metadata == {"invalid_rows": "38"}


def test_long_rows_are_cut_unless_nothing_to_learn_is_left(tmp_path, tokenizer):
    data = read(tmp_path, tokenizer, [LONG, LONG_PROMPT, *counting_rows(0, 1)], long_rows="TRUNCATE")
    assert (data.report.truncated_rows, data.report.dropped_rows) == (1, 1)
    whole = encode_row(tokenizer, PromptCompletion(**LONG))
    assert data.train[0].encoded.token_ids == whole.token_ids[:64]
    assert data.train[0].encoded.supervised == whole.supervised[:64]


def test_long_rows_are_dropped(tmp_path, tokenizer):
    data = read(tmp_path, tokenizer, [LONG, *counting_rows(0, 2), LONG_PROMPT], long_rows="DROP")
    assert (data.report.train_rows, data.report.dropped_rows) == (2, 2)


def test_nothing_left_to_train_on_is_refused(tmp_path, tokenizer):
    with pytest.raises(InvalidData, match=r"all 2 rows are longer than max_row_tokens \(64\)"):
        read(tmp_path, tokenizer, [LONG, LONG], long_rows="DROP")


def test_rows_are_held_out_once(tmp_path, tokenizer):
    data = read(tmp_path, tokenizer, counting_rows(0, 20), holdout_fraction=0.25)
    rows = [example.row for example in (*data.train, *data.heldout)]
    assert (len(data.train), len(data.heldout)) == (15, 5)
    assert len(set(rows)) == 20


def test_a_file_of_held_out_rows_is_taken_as_it_is(tmp_path, tokenizer):
    data = read(tmp_path, tokenizer, counting_rows(0, 20), counting_rows(15, 22), holdout_fraction=0.25)
    assert (data.report.train_rows, data.report.eval_rows, data.report.leaked_rows) == (20, 7, 5)


def test_every_row_is_seen_once_an_epoch_in_an_order_of_its_own():
    order = RowOrder(rows=10, batch_rows=4, seed=0)
    seen = [index for step in range(5) for index in order.rows_of_step(step)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


def test_a_step_alone_tells_its_rows():
    walked = RowOrder(rows=10, batch_rows=4, seed=7)
    steps = [walked.rows_of_step(step) for step in range(9)]
    assert RowOrder(rows=10, batch_rows=4, seed=7).rows_of_step(8) == steps[8]
    assert RowOrder(rows=10, batch_rows=4, seed=8).rows_of_step(8) != steps[8]


def test_a_batch_may_be_larger_than_the_data():
    order = RowOrder(rows=3, batch_rows=8, seed=0)
    assert Counter(order.rows_of_step(0) + order.rows_of_step(1) + order.rows_of_step(2)) == dict.fromkeys(
        range(3), 8
    )


def test_the_order_is_the_same_on_every_python():
    assert RowOrder(rows=6, batch_rows=6, seed=0).rows_of_step(0) == [3, 5, 1, 2, 0, 4]


def test_a_token_without_an_embedding_is_a_fault_of_its_row(tmp_path: Path) -> None:
    """Of a tokenizer to which tokens were added and of a model that was never resized."""
    directory = write_tokenizer(tmp_path / "base")
    added = Tokenizer.from_file(str(directory / "tokenizer.json"))
    size = added.get_vocab_size()
    added.add_special_tokens(["[PAD]"])
    added.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps({"vocab_size": size}))
    tokenizer = BaseTokenizer.load(directory)
    rows = [*counting_rows(0, 3), {"prompt": "please [PAD]", "completion": "wait"}]
    with pytest.raises(
        InvalidData, match=rf"line 4 text: has the token '\[PAD\]' of id {size}, .* 0 to {size - 1}"
    ):
        read(tmp_path, tokenizer, rows)
    with pytest.raises(InvalidField, match=r"'\[PAD\]'"):
        tokenizer.encode_spans("a [PAD]")
    assert tokenizer.encode("please wait")
