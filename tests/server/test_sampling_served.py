"""Sampling features from client to engine and back: samples, constraints, penalties, refusals."""

from __future__ import annotations

import dataclasses
import json
import re

import grpc
import jsonschema
import pytest
from finetuned import AsyncClient, Client, GenerateRequest, RawText, Reply, Truncation
from finetuned.errors import InvalidField, PromptTooLong, ResourceExhausted
from finetuned.v1 import serving_service_pb2 as pb
from finetuned.v1 import serving_service_pb2_grpc as grpc_pb
from finetuned_service.rpc import serving
from finetuned_service.text.tokenizer import BaseTokenizer
from google.protobuf.descriptor import Descriptor
from tiny_server import TinyServer

PROMPT = RawText("one two three")
DRAWN = {"plain_base": True, "temperature": 1.5, "seed": 3, "max_tokens": 12, "ignore_eos": True}
SCHEMA = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}


def request_of(*texts: str, **settings) -> pb.ServeAdapterRequest:
    inputs = [pb.Input(content=pb.Content(parts=[{"text": text}])) for text in texts]
    request = pb.ServeAdapterRequest(
        parent="tenants/default", inputs=inputs, generate=pb.Generate(**settings)
    )
    request.plain_base.SetInParent()
    return request


def test_samples_are_streams_of_their_own_and_the_same_every_time(client: Client) -> None:
    def sample() -> Reply:
        return client.generate(PROMPT, n=3, **DRAWN)

    reply = sample()
    assert len({part.text for part in reply.samples}) == 3
    assert [len(part.token_ids) for part in reply.samples] == [12] * 3
    assert (reply.text, reply.token_ids) == (reply.samples[0].text, reply.samples[0].token_ids)
    assert sample().samples == reply.samples
    assert client.generate(PROMPT, **DRAWN).text == reply.text
    # Any of them alone, by the seed that the contract tells.
    assert client.generate(PROMPT, **{**DRAWN, "seed": 3 + 2 * 64}).text == reply.samples[2].text
    assert reply.usage.completion_tokens == 36
    assert reply.usage.prompt_tokens == client.generate(PROMPT, **DRAWN).usage.prompt_tokens


async def test_samples_reach_the_asynchronous_client(server: TinyServer, client: Client) -> None:
    async with AsyncClient(server.endpoint) as other:
        reply = await other.generate(PROMPT, n=2, **DRAWN)
    assert reply.samples == client.generate(PROMPT, n=2, **DRAWN).samples


def test_deltas_outcomes_and_batch_texts_are_in_the_order_of_inputs_then_samples(
    channel: grpc.Channel,
) -> None:
    stub = grpc_pb.ServingServiceStub(channel)
    request = request_of("one two", "three", n=2, temperature=1.5, seed=5, max_tokens=6, ignore_eos=True)
    texts = dict.fromkeys([(0, 0), (0, 1), (1, 0), (1, 1)], "")
    for answer in stub.ServeAdapter(request):
        if answer.WhichOneof("event") == "delta":
            texts[answer.delta.input, answer.delta.sample] += answer.delta.text
        elif answer.WhichOneof("event") == "done":
            assert len(answer.done.outcomes) == 4
    batch = stub.BatchServeAdapter(pb.BatchServeAdapterRequest(parent="tenants/default", requests=[request]))
    (item,) = batch.items
    assert list(item.reply.texts) == list(texts.values())
    assert len(set(texts.values())) == 4
    assert len(item.reply.done.outcomes) == 4


def test_many_requests_take_samples_and_constraints(client: Client) -> None:
    regex = GenerateRequest(PROMPT, plain_base=True, regex="(yes|no)!", max_tokens=20)
    several = GenerateRequest(PROMPT, n=2, **DRAWN)
    first, second, bad = client.generate_many(
        [regex, several, GenerateRequest(PROMPT, plain_base=True, regex="(")]
    )
    assert isinstance(first, Reply)
    assert isinstance(second, Reply)
    assert re.fullmatch("(yes|no)!", first.text)
    assert [part.text for part in second.samples] == [
        part.text for part in client.generate(PROMPT, n=2, **DRAWN).samples
    ]
    assert isinstance(bad, InvalidField)


def test_tokens_and_logprobs_of_many_requests_are_those_of_single_ones(client: Client) -> None:
    plain = GenerateRequest(PROMPT, plain_base=True, max_tokens=5, ignore_eos=True)
    several = GenerateRequest(PROMPT, n=2, logprobs=3, **DRAWN)
    first, second = client.generate_many([plain, several])
    assert isinstance(first, Reply)
    assert isinstance(second, Reply)
    alone = client.generate(PROMPT, plain_base=True, max_tokens=5, ignore_eos=True)
    assert (first.token_ids, first.logprobs) == (alone.token_ids, ())
    assert len(first.token_ids) == 5
    drawn = client.generate(PROMPT, n=2, logprobs=3, **DRAWN)
    for actual, expected in zip(second.samples, drawn.samples, strict=True):
        assert actual.token_ids == expected.token_ids
        assert [entry.top_token_ids for entry in actual.logprobs] == [
            entry.top_token_ids for entry in expected.logprobs
        ]
        assert len(actual.logprobs) == len(actual.token_ids)


def test_what_a_message_does_not_hold_fails_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is too large would lose all replies."""
    asked = GenerateRequest(PROMPT, plain_base=True, max_tokens=8, ignore_eos=True, logprobs=20)
    monkeypatch.setattr(serving, "MAX_MESSAGE_BYTES", serving._MESSAGE_MARGIN_BYTES + 5000)
    replies = client.generate_many([asked] * 6)
    given = [reply for reply in replies if isinstance(reply, Reply)]
    assert 0 < len(given) < 6
    refused = [reply for reply in replies if isinstance(reply, ResourceExhausted)]
    assert len(refused) == 6 - len(given)
    assert "ask for fewer requests in one call, or fewer logprobs" in str(refused[0])


def test_samples_of_a_batch_fill_the_engine_but_not_its_queue(client: Client) -> None:
    """4 run and 4 wait: 6 requests of 3 samples at once would find no place."""
    replies = client.generate_many([GenerateRequest(PROMPT, n=3, **DRAWN)] * 6)
    assert [isinstance(reply, Reply) for reply in replies] == [True] * 6


@pytest.mark.parametrize("seed", range(4))
def test_a_reply_follows_its_schema(client: Client, seed: int) -> None:
    reply = client.generate(
        PROMPT, plain_base=True, temperature=3.0, seed=seed, json_schema={**SCHEMA, "additionalProperties": False},
        max_tokens=150,
    )  # fmt: skip
    assert reply.finish_reason == "END"
    jsonschema.validate(json.loads(reply.text), SCHEMA)


def test_a_stop_string_still_ends_a_constrained_reply(client: Client) -> None:
    reply = client.generate(PROMPT, plain_base=True, regex="ab;cd", stop=[";"], max_tokens=20)
    assert (reply.text, reply.finish_reason, reply.stop) == ("ab", "STOP", ";")


def test_stop_strings_count_after_the_shortest_reply(client: Client) -> None:
    asked = {"plain_base": True, "regex": "a{9}", "stop": ["a"], "max_tokens": 20}
    assert client.generate(PROMPT, **asked).text == ""
    reply = client.generate(PROMPT, min_tokens=2, **asked)
    assert (set(reply.text), reply.finish_reason) == ({"a"}, "STOP")
    assert reply.usage.completion_tokens > 2


def test_biases_and_penalties_change_what_is_said(client: Client, server: TinyServer) -> None:
    tokenizer = BaseTokenizer.load(server.base_directory)
    (letter,) = tokenizer.encode("q")
    asked = {"plain_base": True, "max_tokens": 8, "ignore_eos": True, "logprobs": 1}
    biased = client.generate(PROMPT, logit_bias={letter: 100.0}, **asked)
    assert biased.text == "q" * 8
    # The model's own opinion, not that of the bias.
    assert all(entry.top_token_ids != (letter,) and entry.logprob < -1 for entry in biased.logprobs)
    varied = client.generate(
        PROMPT, logit_bias={letter: 100.0}, frequency_penalty=2.0, presence_penalty=2.0, **asked
    )
    assert varied.token_ids[0] == letter
    plain = client.generate(PROMPT, **asked)
    other = client.generate(PROMPT, repetition_penalty=10.0, **asked)
    assert plain.token_ids != other.token_ids


def test_the_extremes_of_what_is_allowed_are_served(client: Client) -> None:
    greedy = client.generate(PROMPT, plain_base=True, max_tokens=6, ignore_eos=True)
    drawn = client.generate(PROMPT, plain_base=True, temperature=1e-40, seed=1, max_tokens=6, ignore_eos=True)
    assert drawn.token_ids == greedy.token_ids
    reply = client.generate(PROMPT, repetition_penalty=1e-40, **DRAWN)
    assert len(reply.token_ids) == 12


def test_times_and_tokens_are_told_also_when_a_stop_string_ends_the_reply(client: Client) -> None:
    whole = client.generate(PROMPT, plain_base=True, max_tokens=40, ignore_eos=True)
    stop = whole.text[10:13]
    for reply in (
        whole,
        client.generate(PROMPT, plain_base=True, max_tokens=40, ignore_eos=True, stop=[stop]),
    ):
        assert reply.usage.prompt_tokens > 0
        assert reply.usage.completion_tokens > 0
        assert reply.timing.prefill_seconds > 0
        assert reply.timing.decode_seconds > 0


@pytest.mark.parametrize(("delta_tokens", "sizes"), [(None, [1] * 12), (5, [1, 5, 5, 1]), (2**20, [1, 11])])
def test_tokens_come_together_where_that_is_wanted(
    client: Client, delta_tokens: int | None, sizes: list[int]
) -> None:
    asked = {"plain_base": True, "max_tokens": 12, "ignore_eos": True, "logprobs": 1}
    with client.stream(PROMPT, delta_tokens=delta_tokens, **asked) as stream:
        deltas = list(stream)
    # A reader that is slower than the engine is told more at once.
    assert len(deltas) <= len(sizes)
    assert sum(len(delta.token_ids) for delta in deltas) == sum(sizes)
    assert stream.finish() == dataclasses.replace(
        client.generate(PROMPT, **asked), timing=stream.finish().timing
    )


def test_a_stop_string_is_found_as_soon_as_it_is_made(client: Client) -> None:
    asked = {"plain_base": True, "regex": "a{40}", "stop": ["aaa"], "max_tokens": 60}
    reply = client.generate(PROMPT, **asked)
    assert (reply.text, reply.stop) == ("", "aaa")
    assert reply.usage.completion_tokens < 20


REFUSED = {
    "n": {"n": 0},
    "n of a greedy reply": {"n": 2, "temperature": 0.0},
    "n of too many": {"n": 17},
    "min_tokens": {"min_tokens": 13},
    "repetition_penalty": {"repetition_penalty": 0.0},
    "presence_penalty": {"presence_penalty": 3.0},
    "frequency_penalty": {"frequency_penalty": -3.0},
    "logit_bias": {"logit_bias": {100_000: 1.0}},
    "stop_token_ids": {"stop_token_ids": [100_000]},
    "json_schema": {"json_schema": "{"},
    "json_schema that explodes": {"json_schema": {"type": "string", "pattern": "^(a{1000}){1000}$"}},
    "regex": {"regex": "(a{1000}){1000}"},
    "delta_tokens": {"delta_tokens": 0},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_out_of_range_is_refused_by_its_name(client: Client, name: str) -> None:
    field = name.partition(" ")[0]
    settings = {**DRAWN, **REFUSED[name]}
    with pytest.raises(InvalidField) as raised:
        client.generate(PROMPT, **settings)
    (given,) = client.generate_many([GenerateRequest(PROMPT, **settings)])
    assert isinstance(given, InvalidField)
    for refusal in (raised.value, given):
        assert refusal.violations[0].field.startswith(f"generate.{field}")
    assert client.server_info().load.queued_sequences == 0


def test_two_constraints_are_refused_before_anything_is_sent(client: Client) -> None:
    with pytest.raises(InvalidField, match="both json_schema and regex are given"):
        client.generate(PROMPT, plain_base=True, json_schema={}, regex="a")


def test_more_replies_than_a_request_may_have_are_refused(channel: grpc.Channel) -> None:
    stub = grpc_pb.ServingServiceStub(channel)
    with pytest.raises(grpc.RpcError) as refusal:
        list(stub.ServeAdapter(request_of(*["a"] * 5, n=16, temperature=1.0)))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "5 inputs with 16 samples each; allowed: 64 replies" in refusal.value.details()


def test_limits_of_samples_and_constraints_are_told(client: Client) -> None:
    limits = client.server_info().limits
    assert (limits.max_samples, limits.max_replies, limits.max_constraint_bytes) == (16, 64, 65_536)


def test_a_long_prompt_is_cut_only_when_asked(client: Client) -> None:
    long = RawText("word " * 400)
    with pytest.raises(PromptTooLong):
        client.generate(long, plain_base=True, max_tokens=4)
    reply = client.generate(long, plain_base=True, max_tokens=4, truncation=Truncation.KEEP_END)
    assert reply.truncated_tokens > 0


def test_no_field_of_a_request_is_a_chat_template() -> None:
    def fields(message: Descriptor, seen: set[str]) -> set[str]:
        if message.full_name in seen:
            return set()
        seen.add(message.full_name)
        found = {field.name for field in message.fields}
        for field in message.fields:
            if field.message_type is not None:
                found |= fields(field.message_type, seen)
        return found

    names = fields(pb.ServeAdapterRequest.DESCRIPTOR, set())
    assert {"conversation", "messages"} <= names
    assert not [name for name in names if "template" in name or "jinja" in name]


def test_a_template_in_a_message_is_only_text(client: Client, server: TinyServer) -> None:
    tokenizer = BaseTokenizer.load(server.base_directory)
    text = "{{ 7 * 7 }}{% for i in range(9) %}x{% endfor %}"
    reply = client.generate(text, plain_base=True, max_tokens=1)
    rendered = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert reply.usage.prompt_tokens == len(tokenizer.encode(rendered))
