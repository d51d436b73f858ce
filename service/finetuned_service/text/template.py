"""A base's chat template: Jinja text that comes with the weights, run in a sandbox.

Follows transformers' `apply_chat_template` in what a template may use: trimmed blocks,
`{% break %}`, `{% generation %}`, `tojson` without HTML escapes, `raise_exception`,
`strftime_now`, and the special tokens by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from finetuned_service.errors import InvalidField
from finetuned_service.text.values import ChatMessage


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for other tools; here it only prints its body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are jinja2's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates pass it by position too
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - as above
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _local_time() -> datetime:
    return datetime.now().astimezone()


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        special_tokens: variables such as `bos_token` and `eos_token`.
        clock: what `strftime_now` tells; some templates put the date into the system turn.

    Raises:
        InvalidField: the text is not a Jinja template.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], *, clock: Callable[[], datetime] = _local_time
    ) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson

        def strftime_now(pattern: str) -> str:
            return clock().strftime(pattern)

        additions: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": strftime_now}
        environment.globals.update(additions)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise InvalidField.one(
                "base", f"has a chat template that is not a Jinja template: {error}"
            ) from error
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[ChatMessage], *, add_generation_prompt: bool) -> str:
        """The conversation as one string.

        Raises:
            InvalidField: there are no messages, or the template refuses them.
        """
        if not messages:
            raise InvalidField.one("messages", "is empty; expected at least one message")
        try:
            return self._template.render(
                messages=[{"role": m.role, "content": m.content} for m in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except Exception as error:  # the template is the base's own program: whatever it raises, it refuses
            raise InvalidField.one("messages", f"are refused by the base's chat template: {error}") from error
