"""What ends a reply: all that the base's files name, since training may end answers with any of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finetuned_service.engine.choose import load_model
from finetuned_service.text.supervision import encode_row
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.text.values import PromptCompletion
from tiny_models import save_tiny_base
from tiny_tokenizers import byte_level, write_tokenizer

END_OF_TEXT, END_OF_TURN = 0, 2


@pytest.mark.parametrize("compute", ["plain", "native"])
@pytest.mark.parametrize("named", [END_OF_TEXT, [END_OF_TEXT, 7], None])
def test_what_training_ends_with_ends_a_reply_whatever_the_model_names(
    tmp_path: Path, compute: str, named: int | list[int] | None
) -> None:
    size = byte_level().get_vocab_size()
    base = save_tiny_base(tmp_path, vocab_size=size, dtype=torch.bfloat16, head_dim=16, eos_token_id=named)
    write_tokenizer(base)  # whose end of sequence is that of a turn
    ends = load_model(base, compute=compute).end_token_ids
    trained = encode_row(BaseTokenizer.load(base), PromptCompletion("say it", "it"))
    assert trained.token_ids[-1] == END_OF_TURN
    of_model = [] if named is None else named if isinstance(named, list) else [named]
    assert ends == {END_OF_TURN, *of_model}


def test_without_a_tokenizer_the_model_names_them_alone(tmp_path: Path) -> None:
    assert load_model(save_tiny_base(tmp_path, eos_token_id=7), compute="plain").end_token_ids == {7}
