"""From a JSON schema or a regular expression to a grammar for llguidance, with all that it may cost bounded.

llguidance (https://github.com/guidance-ai/llguidance, MIT) computes for every position of a reply which tokens
the grammar allows. Its own limits count expressions and states; they do not see that counted repetitions
inside counted repetitions make a single state expensive (`(a{1000}){1000}` takes seconds), so those are
counted here first.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from finetuned_service.errors import InvalidField
from finetuned_service.text.repetitions import repeated_characters

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions  # it is in the stub only

MAX_CONSTRAINT_BYTES = 65_536
MAX_PATTERN_BYTES = 16_384
"""Of all regular expressions in a constraint."""
MAX_REPEATED_CHARACTERS = 10_000
_VERBOSE = re.compile(r"(?<!\\)(?:\\\\)*\(\?[a-zA-Z]*x")
"""The flag that puts comments and spaces between a group and its count."""
_CHECK_SECONDS = 0.1
"""Of processor time."""
_JSON_OPTIONS: JsonCompileOptions = {
    # Room for indented JSON, but not for a reply of nothing but spaces.
    "whitespace_flexible": True,
    "whitespace_pattern": r"[ \n]{1,16}",
    "lenient": False,
    "coerce_one_of": False,
}
"""Whatever a schema's own `x-guidance` says."""


def limits() -> LLParserLimits:
    """What a grammar may cost; a step's share is a few milliseconds, its states some 20 MB."""
    return LLParserLimits(
        max_items_in_row=500,
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=10_000,
        max_grammar_size=100_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def json_schema_grammar(schema: str, field: str) -> str:
    """The grammar of what a JSON schema allows.

    Raises:
        InvalidField: it is too long, no object, not a JSON schema, more than can be kept to, or allows nothing.
    """
    _check_length(schema, field)
    try:
        parsed: Any = json.loads(schema)
        patterns = list(_patterns(parsed))
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_JSON_OPTIONS)
    except (ValueError, RecursionError) as error:
        raise InvalidField.one(
            field, f"is not a JSON schema: {_line(error)}; expected a JSON object with nesting below 100"
        ) from error
    _check_patterns(patterns, field)
    _check(grammar, field)
    return grammar


def regex_grammar(pattern: str, field: str, *, after_space: bool = False) -> str:
    """The grammar of what a regular expression matches as a whole; `after_space` of a space and that.

    Raises:
        InvalidField: it is too long, no regular expression, more than can be kept to, or matches nothing.
    """
    _check_length(pattern, field)
    _check_patterns([pattern], field)
    grammar = LLMatcher.grammar_from_regex(pattern)
    _check(grammar, field)
    return _after_space(grammar) if after_space else grammar


def _after_space(grammar: str) -> str:
    """Of a regular expression that was found right by itself: written into one pattern its anchors would be inside."""
    whole: Any = json.loads(grammar)
    rules = whole["grammars"][0]
    rules["lark_grammar"] = f'start: " " body\nbody: {rules["lark_grammar"].removeprefix("start: ")}'
    return json.dumps(whole)


def _check_length(text: str, field: str) -> None:
    length = len(text.encode())
    if length == 0:
        raise InvalidField.one(field, "is empty; leave it unset to allow anything")
    if length > MAX_CONSTRAINT_BYTES:
        raise InvalidField.one(field, f"has {length} bytes; allowed: up to {MAX_CONSTRAINT_BYTES}")


def _check_patterns(patterns: list[str], field: str) -> None:
    length = sum(len(pattern.encode()) for pattern in patterns)
    if length > MAX_PATTERN_BYTES:
        raise InvalidField.one(
            field, f"has {length} bytes of regular expressions; allowed: up to {MAX_PATTERN_BYTES}"
        )
    if any(_VERBOSE.search(pattern) for pattern in patterns):
        raise InvalidField.one(field, "uses the flag x of regular expressions; write it without the flag")
    found = sum(repeated_characters(pattern) for pattern in patterns)
    if found > MAX_REPEATED_CHARACTERS:
        raise InvalidField.one(
            field,
            f"repeats {found} characters when its counted repetitions are written out; allowed: up to "
            f"{MAX_REPEATED_CHARACTERS}. Use smaller counts, or * and + for those inside others",
        )


def _check(grammar: str, field: str) -> None:
    began = time.thread_time()
    matcher = LLMatcher(_bytes_tokenizer(), grammar, limits=limits(), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()  # finds what allows nothing at all
        if matcher.is_error():
            raise InvalidField.one(field, "allows no reply at all; a reply must be possible")
    if matcher.is_error():
        raise InvalidField.one(
            field, f"cannot be kept to: {_line(matcher.get_error())}; leave out or simplify what is named"
        )
    if time.thread_time() - began > _CHECK_SECONDS:
        raise InvalidField.one(field, "is too complex; use fewer or smaller repetitions and alternatives")


def _patterns(schema: Any) -> Iterator[str]:
    """The regular expressions in a JSON schema: of `pattern`, and the keys of `patternProperties`."""
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "pattern" and isinstance(value, str):
                yield value
            elif key == "patternProperties" and isinstance(value, dict):
                yield from (str(name) for name in value)
            yield from _patterns(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _patterns(item)


def _line(error: object) -> str:
    """The first lines of what llguidance says, as one of at most 300 characters."""
    return " ".join(str(error).split())[:300]


class _Bytes:
    """A vocabulary of all bytes and an end: enough to check a grammar, and there at once."""

    eos_token_id = 256
    bos_token_id = None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (256,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def _bytes_tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])
