"""Text from both clients against the fake server: whole, streamed, many at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from both_clients import RETRIES, open_client, write_rows
from finetuned import FinishReason, GenerateRequest, Message, RawText, Reply, Truncation
from finetuned.errors import (
    InvalidField,
    NotFound,
    PromptTooLong,
    QueueFull,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from finetuned.testing import FakeServer
from finetuned.v1 import serving_service_pb2 as pb


@pytest.fixture(autouse=True)
def _adapter(fake_server: FakeServer, tmp_path: Path) -> None:
    with open_client("sync", fake_server.endpoint) as client:
        client.datasets.upload(write_rows(tmp_path / "rows.jsonl"))
        client.jobs.wait(client.train(dataset="rows", adapter="mine").name).check()


def test_generate_with_an_adapter(client: Any) -> None:
    reply = client.generate("hello you", adapter="mine")
    version = client.adapters.version("mine")
    assert reply.text == "[mine@1] hello you"
    assert reply.served_by.adapter_version == version.name
    assert reply.served_by.adapter_digest == version.digest
    assert reply.served_by.modules == version.modules
    assert reply.served_by.label == "mine@1"
    assert reply.finish_reason is FinishReason.END
    assert reply.usage.prompt_tokens == 2
    assert reply.usage.completion_tokens == 3
    assert len(reply.token_ids) == 3
    assert reply.timing.decode_seconds == 0.003


def test_generate_with_the_plain_base(client: Any) -> None:
    reply = client.generate("hello", plain_base=True)
    assert reply.text == "hello"
    assert reply.served_by.adapter_version == ""
    assert reply.served_by.label == "fake"
    assert reply.served_by.base_digest == client.server_info().base.digest


@pytest.mark.parametrize("name", ["mine", "mine@1", "mine@default", "tenants/a/adapters/mine/versions/1"])
def test_names_of_an_adapter(client: Any, name: str) -> None:
    assert client.generate("x", adapter=name).served_by.label == "mine@1"


def test_forms_of_a_prompt(client: Any, fake_server: FakeServer) -> None:
    conversation = [Message("system", "Be brief."), {"role": "user", "content": "hi"}]
    assert client.generate(conversation, plain_base=True).text == "hi"
    assert client.generate(RawText("as it stands"), plain_base=True).text == "as it stands"
    first, second = (messages[0].inputs[0] for messages in fake_server.requests("ServeAdapter"))
    assert [turn.role for turn in first.conversation.messages] == [1, 2]
    assert second.WhichOneof("form") == "content"


def test_settings_are_sent(client: Any, fake_server: FakeServer) -> None:
    reply = client.generate(
        "a b stop c",
        plain_base=True,
        max_tokens=9,
        temperature=0.5,
        top_k=4,
        top_p=0.9,
        seed=0,
        stop="stop",
        stop_token_ids=[5],
        truncation=Truncation.KEEP_END,
        logprobs=2,
        ignore_eos=True,
    )
    assert reply.text == "a b"
    assert reply.finish_reason is FinishReason.STOP
    assert reply.stop == "stop"
    assert [item.logprob for item in reply.logprobs] == [-0.5, -0.5]
    [[request]] = fake_server.requests("ServeAdapter")
    sent = request.generate
    assert (sent.max_tokens, sent.temperature, sent.top_k, sent.top_p) == (9, 0.5, 4, 0.9)
    assert sent.HasField("seed")
    assert (sent.seed, list(sent.stop), list(sent.stop_token_ids)) == (0, ["stop"], [5])
    assert (sent.truncation, sent.logprobs, sent.ignore_eos) == (2, 2, True)
    client.generate("a", plain_base=True)
    assert fake_server.requests("ServeAdapter")[1][0].generate == pb.Generate(delta_tokens=2**20)
    with client.stream("a", plain_base=True) as stream:
        stream.finish()
    assert fake_server.requests("ServeAdapter")[2][0].generate == pb.Generate()


def test_stream_tells_who_serves_before_the_first_delta(client: Any) -> None:
    with client.stream("hello you there", adapter="mine", max_tokens=3) as stream:
        assert stream.served_by.label == "mine@1"
        assert [delta.text for delta in stream] == ["[mine@1]", " hello", " you"]
        assert stream.finish() == client.generate("hello you there", adapter="mine", max_tokens=3)


def test_a_stream_can_wait_for_several_tokens(client: Any) -> None:
    with client.stream("a b c d e f", plain_base=True, delta_tokens=2, logprobs=1) as stream:
        deltas = list(stream)
    assert [delta.text for delta in deltas] == ["a", " b c", " d e", " f"]
    assert [len(delta.token_ids) for delta in deltas] == [1, 2, 2, 1]
    assert [len(delta.logprobs) for delta in deltas] == [1, 2, 2, 1]
    with client.stream("a b c", plain_base=True, delta_tokens=2, stop="x") as stream:
        assert len(list(stream)) == 3


def test_a_stream_left_early_is_cancelled(client: Any, fake_server: FakeServer) -> None:
    with client.stream("a b c", plain_base=True) as stream:
        assert next(stream).text == "a"
    assert [delta.text for delta in stream] == []


def test_the_model_must_be_named(client: Any, fake_server: FakeServer) -> None:
    with pytest.raises(InvalidField, match="neither is given"):
        client.generate("x")
    with pytest.raises(InvalidField, match="both are given"):
        client.generate("x", adapter="mine", plain_base=True)
    assert fake_server.calls("ServeAdapter") == 0


@pytest.mark.parametrize(
    "messages", [[{"role": "user"}], [{"role": "robot", "content": "x"}], [Message("unknown", "x")]]
)
def test_messages_that_are_none(client: Any, messages: Any) -> None:
    with pytest.raises(InvalidField, match="messages"):
        client.generate(messages, plain_base=True)


def test_refusals(client: Any) -> None:
    with pytest.raises(NotFound):
        client.generate("x", adapter="none")
    with pytest.raises(InvalidField) as refused:
        client.generate("x", plain_base=True, temperature=-1.0)
    assert refused.value.violations[0].field == "generate.temperature"
    with pytest.raises(InvalidField, match="at least 1"):
        client.generate("x", plain_base=True, max_tokens=0)
    with pytest.raises(PromptTooLong) as long:
        client.generate("x " * 3000, plain_base=True)
    assert long.value.metadata == {"prompt_tokens": "3000", "context_tokens": "2048"}
    with pytest.raises(TypeError, match="temprature"):
        client.generate("x", plain_base=True, temprature=1.0)


def test_a_full_queue_is_waited_for(client: Any, fake_server: FakeServer) -> None:
    full = QueueFull("the queue is full", metadata={"limit": "64"}, retry_after_seconds=0.002)
    fake_server.fail("ServeAdapter", full, times=2)
    assert client.generate("x", plain_base=True).text == "x"
    assert fake_server.calls("ServeAdapter") == 3
    fake_server.fail("ServeAdapter", full, times=99)
    with pytest.raises(QueueFull) as refused:
        client.generate("x", plain_base=True)
    assert refused.value.retry_after_seconds == 0.002
    assert fake_server.calls("ServeAdapter") == 3 + RETRIES.attempts


def test_a_wait_beyond_the_deadline_is_not_begun(client: Any, fake_server: FakeServer) -> None:
    fake_server.fail("ServeAdapter", QueueFull("full", retry_after_seconds=3600.0))
    with pytest.raises(QueueFull):
        client.generate("x", plain_base=True)
    assert fake_server.calls("ServeAdapter") == 1


def test_a_quota_without_a_time_is_not_tried_again(client: Any, fake_server: FakeServer) -> None:
    fake_server.fail("ServeAdapter", ResourceExhausted("too much"))
    with pytest.raises(ResourceExhausted):
        client.generate("x", plain_base=True)
    assert fake_server.calls("ServeAdapter") == 1


def test_a_server_that_fails_twice_before_the_first_message(client: Any, fake_server: FakeServer) -> None:
    fake_server.fail("ServeAdapter", times=2)
    assert client.generate("x", plain_base=True).text == "x"
    assert fake_server.calls("ServeAdapter") == 3


def test_nothing_is_repeated_after_the_first_message(client: Any, fake_server: FakeServer) -> None:
    fake_server.fail("ServeAdapter", after_messages=2)
    with client.stream("a b c", plain_base=True) as stream:
        assert next(stream).text == "a"
        with pytest.raises(Unavailable):
            stream.finish()
    assert fake_server.calls("ServeAdapter") == 1


def test_generate_many_mixes_models_and_keeps_the_order(client: Any) -> None:
    requests = [
        GenerateRequest("a", adapter="mine"),
        GenerateRequest("b", adapter="none"),
        GenerateRequest("c", plain_base=True, max_tokens=1),
    ]
    first, second, third = client.generate_many(requests)
    assert isinstance(first, Reply)
    assert first.text == "[mine@1] a"
    assert first.served_by.label == "mine@1"
    assert isinstance(second, NotFound)
    assert second.metadata == {"resource": "tenants/a/adapters/none"}
    assert isinstance(third, Reply)
    assert third.text == "c"
    assert third.usage.completion_tokens == 1


def test_generate_many_of_nothing(client: Any) -> None:
    with pytest.raises(InvalidField, match="1 to 1000"):
        client.generate_many([])


def test_usage(client: Any) -> None:
    client.train(dataset="rows", adapter="next")
    usage = client.usage()
    assert usage.name == "tenants/a/usage"
    assert {item.limit: item.used for item in usage.limits} == {
        "datasets": 1,
        "adapters": 1,
        "unfinished_jobs": 1,
    }
    assert all(item.allowed > item.used and not item.per_replica for item in usage.limits)


def test_server_info(client: Any) -> None:
    info = client.server_info()
    assert info.base.name == "bases/fake"
    assert info.resident_base_digest == info.base.digest
    assert info.limits.context_tokens == 2048
    assert [str(item) for item in info.weight_formats] == ["INT8", "NF4"]
    assert [str(item) for item in info.tasks] == ["text-generation"]


def test_wait_until_ready_outlasts_a_starting_server(client: Any, fake_server: FakeServer) -> None:
    starting = Unavailable("starting", retry_after_seconds=0.001)
    fake_server.fail("GetServerInfo", starting, times=RETRIES.attempts + 1)
    assert client.wait_until_ready().device == "cpu"
    fake_server.fail("GetServerInfo", starting, times=10_000)
    with pytest.raises(Unavailable, match="starting"):
        client.wait_until_ready(0.3)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_api_key_is_sent(kind: str) -> None:
    with FakeServer(api_key="secret") as server:
        with open_client(kind, server.endpoint, api_key="secret") as client:
            assert client.server_info().device == "cpu"
        with (
            open_client(kind, server.endpoint, api_key="wrong") as client,
            pytest.raises(Unauthenticated, match="FINETUNED_API_KEY"),
        ):
            client.server_info()


def test_samples_of_the_fake_are_told_apart(client: Any) -> None:
    reply = client.generate("hello", plain_base=True, n=3, temperature=1.0)
    assert [sample.text for sample in reply.samples] == ["hello", "hello (1)", "hello (2)"]
    assert reply.text == "hello"
    (several,) = client.generate_many([GenerateRequest("hello", plain_base=True, n=2, temperature=1.0)])
    assert [sample.text for sample in several.samples] == ["hello", "hello (1)"]


def test_a_constrained_reply_of_the_fake_is_the_prompt_itself(client: Any) -> None:
    asked = '{"on": true}'
    assert client.generate(asked, adapter="mine", json_schema={"type": "object"}).text == asked
    assert client.generate("yes", adapter="mine", regex="yes|no").text == "yes"


@pytest.mark.parametrize(
    "settings",
    [
        {"n": 2},
        {"n": 17, "temperature": 1.0},
        {"min_tokens": -1},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 3.0},
        {"frequency_penalty": -3.0},
        {"json_schema": "[]"},
        {"regex": "("},
        {"delta_tokens": 0},
        {"delta_tokens": 2**20 + 1},
    ],
)
def test_the_fake_refuses_what_a_server_refuses(client: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidField, match=f"generate.{next(iter(settings))}"):
        client.generate("hello", plain_base=True, **settings)
