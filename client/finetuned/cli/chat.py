"""`finetuned chat`: a conversation on the terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import final

import typer
from rich.markup import escape

from finetuned import Client, Message, Role
from finetuned.cli.generation import (
    Adapter,
    FrequencyPenalty,
    JsonSchema,
    LogitBias,
    MaxTokens,
    MinTokens,
    PlainBase,
    PresencePenalty,
    Regex,
    RepetitionPenalty,
    Sampling,
    Seed,
    Stop,
    System,
    Temperature,
    TopK,
    TopP,
    check_model,
    read_biases,
    read_schema,
)
from finetuned.cli.output import err, print_json
from finetuned.cli.session import AsJson, connect
from finetuned.errors import FinetunedError, InvalidArgument, NotFound

HELP = "/adapter NAME and /base change who answers, /reset forgets the conversation, /quit ends it"


@final
@dataclass(slots=True)
class Conversation:
    """One conversation with whoever answers now."""

    client: Client
    adapter: str | None
    sampling: Sampling
    as_json: bool
    start: tuple[Message, ...] = ()
    turns: list[Message] = field(default_factory=list[Message])

    def command(self, line: str) -> bool:
        """Carry out a line that begins with "/"; False ends the conversation."""
        name, _, argument = line.partition(" ")
        match name:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self.turns.clear()
            case "/base":
                self.adapter = None
            case "/adapter" if argument.strip():
                self.adapter = argument.strip()
            case _:
                err().print(f"[dim]{HELP}[/dim]")
        return True

    def answer(self, text: str) -> None:
        """Ask, show the reply as it comes, and remember both; a refusal is told and forgotten."""
        asked = [*self.start, *self.turns, Message(Role.USER, text)]
        with self.client.stream(
            asked, adapter=self.adapter, plain_base=self.adapter is None, **self.sampling
        ) as stream:
            for delta in stream:
                if not self.as_json:
                    print(delta.text, end="", flush=True)
            reply = stream.finish()
        if self.as_json:
            print_json(reply, line=True)
        else:
            print(flush=True)
            err().print(f"[dim]{escape(reply.served_by.label)}, {reply.usage.completion_tokens} tokens[/dim]")
        self.turns += [Message(Role.USER, text), Message(Role.ASSISTANT, reply.text)]


def chat(
    context: typer.Context,
    *,
    adapter: Adapter = None,
    plain_base: PlainBase = False,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Stop = None,
    min_tokens: MinTokens = None,
    repetition_penalty: RepetitionPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    logit_bias: LogitBias = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    as_json: AsJson = False,
) -> None:
    """Talk to an adapter or to the plain base; /help tells what else can be typed."""
    check_model(adapter, plain_base=plain_base)
    sampling = Sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=tuple(stop or ()),
        n=None,
        min_tokens=min_tokens,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=read_biases(logit_bias),
        json_schema=read_schema(json_schema),
        regex=regex,
    )
    start = (Message(Role.SYSTEM, system),) if system else ()
    with connect(context) as client:
        conversation = Conversation(client, adapter, sampling, as_json, start)
        talk(conversation)


def talk(conversation: Conversation) -> None:
    """Read lines until the end of the input or /quit."""
    interactive = sys.stdin.isatty()
    if interactive:
        err().print(f"[dim]{HELP}[/dim]")
    while True:
        try:
            line = input("> " if interactive else "").strip()
        except EOFError:
            return
        if not line:
            continue
        if line.startswith("/"):
            if not conversation.command(line):
                return
            continue
        try:
            conversation.answer(line)
        except (InvalidArgument, NotFound) as error:
            if not interactive:
                raise
            _tell(error)


def _tell(error: FinetunedError) -> None:
    err().print(f"[red]{escape(error.message)}[/red]")
