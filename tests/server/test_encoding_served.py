"""A real server that holds a text encoder, and one that holds a vision model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from both_clients import open_client
from finetuned import Client, Image, ModelFamily, Pooling, Task, Truncation, WeightFormat, errors
from finetuned.v1 import common_pb2 as common
from finetuned.v1 import serving_service_pb2 as pb
from finetuned.v1 import serving_service_pb2_grpc as grpc_pb
from server.refusals import refusal_of
from tiny_encoders import make_encoder_base, make_resnet_base, png, random_image, word_pieces
from tiny_server import TINY, TinyServer, running
from transformers import AutoModel, ResNetModel

TEXTS = ["the cat sat", "a dog", "The bird flew over the house.", "mats"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    data = tmp_path_factory.mktemp("encoder") / "data"
    make_encoder_base(data / "bases" / TINY)
    with running(data) as server:
        yield server


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyServer]:
    data = tmp_path_factory.mktemp("vision") / "data"
    make_resnet_base(data / "bases" / TINY)
    with running(data) as server:
        yield server


@torch.inference_mode()
def mean_pooled(directory: Path, text: str) -> np.ndarray[Any, Any]:
    model: Any = AutoModel.from_pretrained(directory).eval()
    token_ids = word_pieces().encode(text).ids
    vector = model(input_ids=torch.tensor([token_ids])).last_hidden_state[0].mean(0)
    return (vector / vector.norm()).numpy()


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_texts_become_the_vectors_of_sentence_transformers(encoder: TinyServer, kind: str) -> None:
    with open_client(kind, encoder.endpoint) as client:
        answers = client.embed(TEXTS, plain_base=True)
        last = client.embed(TEXTS[0], plain_base=True, pooling=Pooling.LAST, normalize=False)
        info = client.server_info()
    assert len(answers) == 4
    for text, embedding in zip(TEXTS, answers, strict=True):
        np.testing.assert_allclose(embedding.values, mean_pooled(encoder.base_directory, text), atol=2e-6)
        assert embedding.pooling is Pooling.MEAN
    assert (last[0].pooling, len(last[0].values)) == (Pooling.LAST, 32)
    assert np.linalg.norm(last[0].values) > 1.1
    assert (answers.served_by.modules, answers.served_by.base) == (0, "bases/tiny")
    assert answers.usage.prompt_tokens == sum(len(word_pieces().encode(text).ids) for text in TEXTS)
    assert answers.truncated_tokens == (0, 0, 0, 0)
    assert (info.base.family, info.tasks[0]) == (ModelFamily.ENCODER, Task.FEATURE_EXTRACTION)


def test_a_text_that_does_not_fit_is_cut_as_chosen(encoder: TinyServer) -> None:
    long = "cat " * 60 + "happy"
    with Client(encoder.endpoint) as client:
        with pytest.raises(errors.PromptTooLong, match="has 63 tokens; the context holds 40"):
            client.embed(long, plain_base=True)
        start = client.embed(long, plain_base=True, truncation=Truncation.KEEP_START)
        end = client.embed(long, plain_base=True, truncation=Truncation.KEEP_END)
        expected = client.embed(["cat " * 38, "cat " * 37 + "happy"], plain_base=True)
    assert start.truncated_tokens == end.truncated_tokens == (23,)
    np.testing.assert_allclose(start[0].values, expected[0].values, atol=1e-6)
    np.testing.assert_allclose(end[0].values, expected[1].values, atol=1e-6)


def content(*parts: common.Part) -> pb.Input:
    return pb.Input(content=pb.Content(parts=parts))


def ask(server: TinyServer, **request: Any) -> Any:
    """The refusal of a call with these fields; the plain base and a text unless they say otherwise."""
    fields = {
        "parent": "tenants/default",
        "plain_base": pb.PlainBase(),
        "inputs": [content(common.Part(text="the cat"))],
        **request,
    }
    with grpc.insecure_channel(server.endpoint) as channel:
        stub = grpc_pb.ServingServiceStub(channel)
        return refusal_of(lambda: stub.ServeAdapter(pb.ServeAdapterRequest(**fields)))


def test_what_an_encoder_cannot_do_is_refused_and_what_it_can_is_named(encoder: TinyServer) -> None:
    refused = ask(encoder, generate=pb.Generate())
    assert (refused.code, refused.reason, refused.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", ("task",))
    assert refused.message == (
        "task: is generate; bases/tiny is a text encoder (BertModel), which can be asked to embed, classify, "
        "tag_tokens. Ask a server that holds another base"
    )
    labels = ask(encoder, classify=pb.Classify())
    assert labels.fields == ("model",)
    assert "plain_base, which has no labels; name an adapter that was trained to classify" in labels.message
    with Client(encoder.endpoint) as client, pytest.raises(errors.NotFound):
        client.classify("the cat", adapter="nobody")


@pytest.mark.parametrize(
    ("request_fields", "field", "message"),
    [
        ({"embed": pb.Embed(), "inputs": []}, "inputs", "has 0 inputs; allowed: 1 to 64"),
        ({"embed": pb.Embed(), "inputs": [content(common.Part(text=" "))]}, "inputs[0]", "is empty"),
        ({"embed": pb.Embed(), "inputs": [pb.Input()]}, "inputs[0]", "is empty; give content"),
        ({"classify": pb.Classify(top_k=0)}, "classify.top_k", "is 0; allowed: at least 1"),
        (
            {"embed": pb.Embed(), "inputs": [content(common.Part(image=common.Image(data=b"x")))]},
            "inputs[0]",
            "is an image; this base takes text",
        ),
        (
            {
                "embed": pb.Embed(),
                "inputs": [pb.Input(conversation=pb.Conversation(messages=[common.Message()]))],
            },
            "inputs[0]",
            "is conversation; give content",
        ),
    ],
)
def test_inputs_that_an_encoder_does_not_take(
    encoder: TinyServer, request_fields: dict[str, Any], field: str, message: str
) -> None:
    refused = ask(encoder, **request_fields)
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", (field,))
    assert message in refused.message


def test_a_batch_embeds_and_each_request_fails_alone(encoder: TinyServer) -> None:
    good = pb.ServeAdapterRequest(
        plain_base=pb.PlainBase(),
        embed=pb.Embed(),
        inputs=[content(common.Part(text=text)) for text in TEXTS[:2]],
    )
    bad = pb.ServeAdapterRequest(
        plain_base=pb.PlainBase(), embed=pb.Embed(), inputs=[content(common.Part(image=common.Image()))]
    )
    request = pb.BatchServeAdapterRequest(parent="tenants/default", requests=[good, bad])
    with grpc.insecure_channel(encoder.endpoint) as channel:
        answer = grpc_pb.ServingServiceStub(channel).BatchServeAdapter(request)
    reply = answer.items[0].reply
    assert [result.input for result in reply.results] == [0, 1]
    assert list(reply.texts) == []
    np.testing.assert_allclose(
        reply.results[1].embedding.values, mean_pooled(encoder.base_directory, TEXTS[1]), atol=2e-6
    )
    assert answer.items[1].error.reason == "INVALID_FIELD"


def test_a_batch_of_many_inputs_fills_the_engine_but_not_its_queue(encoder: TinyServer) -> None:
    with Client(encoder.endpoint) as client:
        limits = client.server_info().limits
    inputs = [content(common.Part(text=text)) for text in TEXTS[:2]]
    one = pb.ServeAdapterRequest(plain_base=pb.PlainBase(), embed=pb.Embed(), inputs=inputs)
    count = limits.max_running_sequences + limits.max_queued_sequences  # twice the places there are
    request = pb.BatchServeAdapterRequest(parent="tenants/default", requests=[one] * count)
    with grpc.insecure_channel(encoder.endpoint) as channel:
        answer = grpc_pb.ServingServiceStub(channel).BatchServeAdapter(request)
    assert [item.error.reason for item in answer.items] == [""] * count
    assert [len(item.reply.results) for item in answer.items] == [len(inputs)] * count


def test_images_become_the_vectors_of_transformers(vision: TinyServer) -> None:
    images = [random_image(seed, 16, 16) for seed in range(3)]
    with Client(vision.endpoint) as client:
        answers = client.embed([Image(data) for data in images], plain_base=True, normalize=False)
        larger = client.embed(Image(random_image(7, 200, 90)), plain_base=True)
    model = ResNetModel.from_pretrained(vision.base_directory).eval()
    for data, embedding in zip(images, answers, strict=True):
        values = np.asarray(values_of_pillow(data), np.float32)
        with torch.no_grad():
            pixels = torch.tensor((values / 255 - 0.5) / 0.25)[None, None]
            expected = model(pixel_values=pixels).pooler_output.flatten()
        np.testing.assert_allclose(embedding.values, expected.numpy(), atol=1e-5)
        assert embedding.pooling is Pooling.UNKNOWN
    assert np.linalg.norm(larger[0].values) == pytest.approx(1.0)


def values_of_pillow(data: bytes) -> Any:
    import io

    from PIL import Image as PillowImage

    with PillowImage.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("image", "field", "message"),
    [
        (common.Image(data=b"GIF89a", media_type="image/png"), "inputs[0].image.data", "does not decode"),
        (common.Image(data=png(np.zeros((4, 4)))), "inputs[0].image.media_type", "is ''; allowed: image/png"),
        (
            common.Image(data=png(np.zeros((9000, 9000))), media_type="image/png"),
            "inputs[0].image.data",
            "9000 x 9000 pixels",
        ),
    ],
)
def test_images_that_cannot_be_used(vision: TinyServer, image: Any, field: str, message: str) -> None:
    refused = ask(vision, embed=pb.Embed(), inputs=[content(common.Part(image=image))])
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", (field,))
    assert message in refused.message


def test_text_for_a_vision_model_is_refused(vision: TinyServer) -> None:
    assert "is text; this base takes one image" in ask(vision, embed=pb.Embed()).message
    mixed = content(common.Part(text="x"), common.Part(image=common.Image()))
    assert "mixes an image with other parts" in ask(vision, embed=pb.Embed(), inputs=[mixed]).message
    assert "a vision model (ResNetModel), which can be asked to embed, classify" in (
        ask(vision, tag_tokens=pb.TagTokens()).message
    )


def test_jobs_that_a_base_cannot_do_are_refused(encoder: TinyServer, tmp_rows: Path) -> None:
    with Client(encoder.endpoint) as client:
        client.datasets.upload(tmp_rows, "rows")
        with pytest.raises(
            errors.InvalidField, match="text-generation; bases/tiny is a BertModel, which is for"
        ):
            client.train(dataset="rows", adapter="mine")
        with pytest.raises(errors.InvalidField, match="a BertModel; Quantize measures by perplexity"):
            client.quantize(WeightFormat.INT8, "small")
