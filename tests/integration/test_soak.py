"""`make soak`, short and on a tiny base: the same code, so that it works when half an hour of it is wanted."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from finetuned_service.storage.database import Database
from finetuned_service.storage.directory import DATABASE_FILE
from sqlalchemy import text
from tiny_models import save_tiny_base
from tiny_tokenizers import byte_level, write_tokenizer

# benchmarks/ is run from the repository's root, not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from finetuned import FinishReason, Reply, ServedBy, Timing, Usage

from benchmarks.soak.growth import MIB, growth, read
from benchmarks.soak.known import Known, Question
from benchmarks.soak.report import print_tables, save
from benchmarks.soak.run import Plan, soak

ROUNDS = 3


def test_a_short_soak_has_nothing_to_complain_of(tmp_path, capsys):
    base = save_tiny_base(
        tmp_path / "base",
        vocab_size=byte_level().get_vocab_size(),
        dtype=torch.bfloat16,
        hidden_size=96,
        intermediate_size=160,
        head_dim=16,
    )
    write_tokenizer(base)
    outcome = soak(
        Plan(
            tmp_path / "soak", str(base), minutes=0.0, rounds=ROUNDS, visitors=6, actions=10, rounds_per_job=2
        )
    )
    # Whether memory is flat shows after minutes, not seconds.
    grew = [item for item in outcome.growths if not item.flat and not item.quantity.endswith("_bytes")]
    assert (outcome.differences, outcome.findings.failures, outcome.log_errors, grew) == ([], [], [], [])
    assert outcome.findings.calls["cancel a job"] + outcome.findings.calls["train"] == 1
    assert outcome.pairs > 20
    save(tmp_path / "soak.json", outcome)
    assert len(json.loads((tmp_path / "soak.json").read_text())["at_rest"]) == ROUNDS
    print_tables(outcome)
    assert "engine" in capsys.readouterr().out


SECONDS = [60.0 * minute for minute in range(1, 31)]


@pytest.mark.parametrize(
    ("values", "flat"),
    [
        ([500 * MIB] * 30, True),
        ([(300 + 20 * min(n, 10)) * MIB for n in range(30)], True),  # it fills while it warms up
        ([500 * MIB + (40 * MIB if n % 7 == 0 else 0) for n in range(30)], True),  # single peaks
        ([500 * MIB + n * MIB for n in range(30)], False),
    ],
)
def test_memory_that_grows_is_told_from_memory_that_moves(values, flat):
    assert growth("engine", "rss_bytes", SECONDS, values).flat is flat


def test_the_files_of_connections_that_sqlite_keeps_are_no_growth(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path / DATABASE_FILE}")
    first = read(os.getpid())["descriptors"]
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(database.read()).execute(text("select 1 from sqlite_master")).all()
    # The pool keeps five of them, with their logs.
    kept = read(os.getpid())["descriptors"]
    assert kept <= first + 5
    with (tmp_path / "lost").open("w"):
        assert read(os.getpid())["descriptors"] == kept + 1


def test_a_descriptor_lost_now_and_then_is_growth():
    assert not growth("server", "descriptors", SECONDS, [26.0 + n // 8 for n in range(30)]).flat
    assert growth("server", "descriptors", SECONDS, [26.0 + n % 2 for n in range(30)]).flat
    # One more from the middle on is one, though a line through them gains more; two are growth.
    assert growth("server", "descriptors", SECONDS, [26.0 + (n > 19) for n in range(30)]).grown == 1.0
    assert not growth("server", "descriptors", SECONDS, [26.0 + 2 * (n > 19) for n in range(30)]).flat


def test_rounds_that_are_too_few_are_refused():
    with pytest.raises(ValueError, match="1 rounds are too few"):
        growth("engine", "threads", [1.0], [4.0])


def reply(text, token_ids, digest="sha256:a"):
    served_by = ServedBy("tenants/acme/adapters/x/versions/1", digest, "bases/b", "sha256:b", 14, "r")
    usage, timing = Usage(1, 0, len(token_ids)), Timing(0.0, 0.0, 0.0, 0.0)
    return Reply(text, served_by, FinishReason.LENGTH, "", 0, usage, timing, token_ids)


def test_a_reply_that_differs_from_the_first_is_noticed():
    known, question = Known(), Question(0, 4, 0.0, 0, 0)
    known.check(question, reply("ab", ()))  # of a batch: no ids
    known.check(question, reply("ab", (1, 2)))
    known.check(question, reply("ab", ()))
    known.check(question, reply("xy", (3, 4), "sha256:other"))
    known.check_beginning(question, "sha256:a", (1,))
    assert (known.compared, known.differences) == (3, [])
    known.check(question, reply("ac", (1, 3)))
    known.check_beginning(question, "sha256:a", (2,))
    assert (known.compared, len(known.differences)) == (5, 2)
    assert known.replies_per_question == 2.0
