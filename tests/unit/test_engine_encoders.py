"""Bases that encode, against transformers' own forward: packed without padding, batched with others, or alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned_service.bases.convert import import_directory
from finetuned_service.bases.family import ENCODER_CLASSES
from finetuned_service.bases.images import prepare_image
from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import read_config, read_manifest
from finetuned_service.engine.choose import load_model
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.encoders.model import EncoderModel
from finetuned_service.engine.loop import EngineLoop
from finetuned_service.engine.messages import Encode, Encoded, Failed, Pixels, Sampling, Started, Submit
from finetuned_service.errors import StartRefused
from finetuned_service.text.tokenizer import BaseTokenizer
from finetuned_service.vocabulary import Family, Pooling
from tiny_encoders import make_encoder_base, make_resnet_base, random_image
from transformers import AutoModel, PreTrainedTokenizerFast, ResNetForImageClassification

TEXT_TYPES = [name for name, found in ENCODER_CLASSES.items() if found.family is Family.ENCODER]
INPUTS = [(2, 7, 9, 3), (2, 5, 3), (2, 8, 8, 3), (2, *range(5, 30), 3), (2, 6, 3)]


def run(directory: Path, requests: list[Submit], **config: Any) -> list[np.ndarray[Any, Any]]:
    """What all requests become, by the loop that serves."""
    settings = {"max_running_sequences": 8, "max_prefill_tokens": 32, "kv_capacity_tokens": 256, **config}
    loop = EngineLoop(load_model(directory), EngineConfig(str(directory), **settings))
    for request in requests:
        loop.deliver(request)
    found: dict[int, np.ndarray[Any, Any]] = {}
    started: set[int] = set()
    while len(found) < len(requests):
        for event in loop.step():
            match event:
                case Started(request_id=request_id, modules_changed=0):
                    started.add(request_id)
                case Encoded(request_id=request_id, data=data, width=width):
                    found[request_id] = np.frombuffer(data, "<f4").reshape(-1, width)
                case _:
                    pytest.fail(f"unexpected: {event}")
    loop.close()
    assert started == set(found)
    return [found[request.request_id] for request in requests]


def texts(pooling: Pooling | None, inputs: list[tuple[int, ...]] = INPUTS) -> list[Submit]:
    return [
        Submit(number, token_ids, None, Sampling(1), encode=Encode(pooling))
        for number, token_ids in enumerate(inputs)
    ]


@torch.inference_mode()
def expected_rows(directory: Path, inputs: list[tuple[int, ...]] = INPUTS) -> list[torch.Tensor]:
    model: Any = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    return [model(input_ids=torch.tensor([token_ids])).last_hidden_state[0] for token_ids in inputs]


@pytest.mark.parametrize("model_type", TEXT_TYPES)
def test_packed_inputs_equal_transformers_one_by_one(tmp_path: Path, model_type: str) -> None:
    directory = make_encoder_base(tmp_path / "base", model_type)
    rows = run(directory, texts(None))
    for found, expected in zip(rows, expected_rows(directory), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=5e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"return_dict": False},
        {"chunk_size_feed_forward": 4},
        {"output_attentions": True},
        {"output_hidden_states": True},
    ],
)
def test_how_a_config_wants_its_model_called_changes_nothing(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    plain = make_encoder_base(tmp_path / "plain")
    rows = run(plain, texts(None))
    source = tmp_path / "plain-source"
    for directory in (source, plain):
        config: dict[str, Any] = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | settings))
    imported = import_directory(source, tmp_path / "base")
    assert imported.digest == read_manifest(plain).digest
    # Also a base that came into the store with the setting.
    for directory in (plain, tmp_path / "base"):
        for found, expected in zip(run(directory, texts(None)), rows, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta"])
def test_pairs_equal_transformers_own(tmp_path: Path, model_type: str) -> None:
    directory = make_encoder_base(tmp_path / "base", model_type)
    pairs = [("the cat sat", "a dog"), ("good", "bad birds ran under the tree")]
    tokenizer, module = BaseTokenizer.load(directory, generates=False), AutoModel.from_pretrained(directory)
    theirs: Any = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    encoded = [tokenizer.encode_spans(*pair) for pair in pairs]
    single = tokenizer.encode_spans("the cat sat")
    requests = [
        Submit(i, text.token_ids, None, Sampling(1), encode=Encode(None, text.second_start))
        for i, text in enumerate([*encoded, single])
    ]
    found = run(directory, requests)
    for text, rows, pair in zip([*encoded, single], found, [*pairs, ("the cat sat",)], strict=True):
        expected = theirs(*pair, return_tensors="pt", return_token_type_ids=model_type != "distilbert")
        assert text.token_ids == tuple(expected["input_ids"][0].tolist())
        with torch.no_grad():
            wanted = module(**expected).last_hidden_state[0]
        np.testing.assert_allclose(rows, wanted.numpy(), atol=5e-5)


@pytest.mark.parametrize("most", [5, 7, 8, 11])
def test_the_longer_text_of_a_pair_is_cut_first(tmp_path: Path, most: int) -> None:
    directory = make_encoder_base(tmp_path / "base")
    first, second = "the cat sat on the mat", "a dog ran"
    text = BaseTokenizer.load(directory, generates=False).encode_spans(first, second)
    theirs: Any = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    expected = theirs(first, second, truncation="longest_first", max_length=most)["input_ids"]
    assert text.only(text.kept(most, from_end=False)).token_ids == tuple(expected)
    assert len(text.only(text.kept(most, from_end=True)).token_ids) == most


def test_pooling_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    directory = make_encoder_base(tmp_path / "base")
    expected = expected_rows(directory)
    for pooling, by_hand in (
        (Pooling.MEAN, [rows.mean(0) for rows in expected]),
        (Pooling.CLS, [rows[0] for rows in expected]),
        (Pooling.LAST, [rows[-1] for rows in expected]),
    ):
        found = run(directory, texts(pooling))
        for one, other in zip(found, by_hand, strict=True):
            np.testing.assert_allclose(one, other[None].numpy(), atol=5e-5)


def test_an_input_longer_than_the_step_is_computed_whole(tmp_path: Path) -> None:
    directory = make_encoder_base(tmp_path / "base")
    longest = (2, *(5 + n % 40 for n in range(38)), 3)
    inputs = [(2, 5, 3), longest, (2, 6, 3)]
    found = run(directory, texts(None, inputs), max_prefill_tokens=16)
    for one, other in zip(found, expected_rows(directory, inputs), strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=5e-5)


def test_images_of_several_sizes_equal_transformers_with_frozen_statistics(tmp_path: Path) -> None:
    directory = make_resnet_base(tmp_path / "base")
    _, form = base_inputs(read_config(directory))
    assert form is not None
    prepared = [prepare_image(random_image(seed), "image/png", form, "x") for seed in range(5)]
    requests = [
        Submit(i, (0,), None, Sampling(1), encode=Encode(Pooling.MEAN), pixels=Pixels(p.data, p.shape))
        for i, p in enumerate(prepared)
    ]
    larger = torch.arange(2 * 24 * 24, dtype=torch.float32).sin().view(2, 1, 24, 24)
    for i, image in enumerate(larger):
        pixels = Pixels(image.numpy().tobytes(), (1, 24, 24))
        requests.insert(2 * i, Submit(10 + i, (0,), None, Sampling(1), encode=Encode(None), pixels=pixels))
    found = run(directory, requests)
    source = ResNetForImageClassification.from_pretrained(directory.with_name("base-source")).eval()
    for request, vector in zip(requests, found, strict=True):
        assert request.pixels is not None
        image = torch.frombuffer(bytearray(request.pixels.data), dtype=torch.float32)
        with torch.no_grad():
            expected = source.resnet(image.view(1, *request.pixels.shape)).pooler_output.flatten(1)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)
    assert EncoderModel.load(directory).fingerprint() == read_manifest(directory).digest


def test_what_cannot_be_computed_is_refused(tmp_path: Path) -> None:
    directory = make_encoder_base(tmp_path / "base")
    model = EncoderModel.load(directory)
    loop = EngineLoop(model, EngineConfig(str(directory)))
    loop.deliver(Submit(1, (2, 3), None, Sampling(1)))
    loop.deliver(Submit(2, tuple(range(41)), None, Sampling(1), encode=Encode(None)))
    loop.deliver(Submit(3, (10_000,), None, Sampling(1), encode=Encode(None)))
    reasons = [event.error["reason"] for event in loop.step() if isinstance(event, Failed)]
    loop.close()
    assert reasons == ["INVALID_FIELD", "PROMPT_TOO_LONG", "INVALID_FIELD"]
    with pytest.raises(StartRefused, match="base encodes: choose compute"):
        load_model(directory, compute="native")
