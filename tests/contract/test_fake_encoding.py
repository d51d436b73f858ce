"""Both clients against the fake server, where no text is generated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from both_clients import write_rows
from finetuned import Image, Pooling, errors


def test_embed(client: Any) -> None:
    answers = client.embed(["one", "two", "one"], plain_base=True)
    first, second, third = answers
    assert first == third != second
    assert math.hypot(*first.values) == pytest.approx(1.0)
    assert (first.pooling, answers.served_by.label, len(answers)) == (Pooling.MEAN, "fake", 3)
    other = client.embed(Image(b"bytes"), plain_base=True, pooling=Pooling.CLS, normalize=False)
    assert (other[0].pooling, len(other[0].values)) == (Pooling.CLS, 8)
    with pytest.raises(errors.InvalidField, match="media_type"):
        client.embed(Image(b"bytes", "image/tiff"), plain_base=True)
    with pytest.raises(errors.InvalidField, match="neither is given"):
        client.embed("one")


def test_classify_and_tag(client: Any, tmp_path: Path) -> None:
    client.datasets.upload(write_rows(tmp_path / "rows.jsonl"), "rows")
    client.jobs.wait(client.train(dataset="rows", adapter="topics").name)
    found = client.classify("some text", adapter="topics")
    assert sorted(score.label for score in found[0].labels) == ["no", "yes"]
    assert found[0].label == found[0].labels[0].label
    assert found[0].value is None
    assert sum(score.score for score in found[0].labels) == pytest.approx(1.0)
    assert len(client.classify("some text", adapter="topics", top_k=1)[0].labels) == 1
    tagged = client.tag_tokens("call Ada now", adapter="topics")[0]
    assert [token.label for token in tagged.tokens] == ["O", "B-NAME", "O"]
    assert [(e.label, e.start, e.end, e.text) for e in tagged.entities] == [("NAME", 5, 8, "Ada")]
    with pytest.raises(errors.NotFound):
        client.classify("x", adapter="nobody")
