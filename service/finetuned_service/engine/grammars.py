"""Grammars made ready for the base's vocabulary, on a thread of their own beside the running batch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import final

import structlog
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer

from finetuned_service.engine.runner import Model
from finetuned_service.errors import FinetunedError, Internal, InvalidField, Unimplemented
from finetuned_service.text.grammar import limits

_log = structlog.get_logger()
_KEPT = 32


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A grammar for one request, at its beginning; or why there is none."""

    request_id: int
    matcher: LLMatcher | None = None
    error: FinetunedError | None = None


@final
class GrammarThread:
    """Makes one grammar after another; the last ones are kept for requests to come."""

    def __init__(self, model: Model, deliver: Callable[[Compiled], None]) -> None:
        """Args: deliver: called on the thread with each grammar."""
        self._model = model
        self._deliver = deliver
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        self._tokenizer: LLTokenizer | None = None
        self._known: OrderedDict[str, LLMatcher] = OrderedDict()

    def begin(self, request_id: int, grammar: str) -> None:
        """Make `grammar` ready for a request; `deliver` tells of it."""
        self._executor.submit(self._run, request_id, grammar)

    def close(self) -> None:
        """Wait for what runs; drop what has not begun."""
        self._executor.shutdown(cancel_futures=True)

    def _run(self, request_id: int, grammar: str) -> None:
        try:
            self._deliver(Compiled(request_id, self._matcher(grammar).deep_copy()))
        except FinetunedError as error:
            self._deliver(Compiled(request_id, error=error))
        except Exception:  # noqa: BLE001 - whatever it was ends that request, not the thread
            fault = Internal.opaque()
            _log.exception("grammar_failed", **fault.metadata)
            self._deliver(Compiled(request_id, error=fault))

    def _matcher(self, grammar: str) -> LLMatcher:
        found = self._known.pop(grammar, None)
        if found is None:
            found = LLMatcher(self._vocabulary(), grammar, limits=limits(), log_level=0)
            if found.is_error():
                raise InvalidField.one("generate.constraint", f"cannot be kept to: {found.get_error()[:300]}")
        self._known[grammar] = found
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found

    def _vocabulary(self) -> LLTokenizer:
        """Of the base; made when it is first needed, which takes a third of a second."""
        if self._tokenizer is None:
            text = (self._model.directory / "tokenizer.json").read_text(encoding="utf-8")
            # Tokens may have been added without embeddings: the reply cannot have them, and the grammar knows them.
            known = Tokenizer.from_str(text).get_vocab_size(with_added_tokens=True)
            size = max(known, self._model.vocabulary_tokens)
            ends = [token_id for token_id in sorted(self._model.end_token_ids) if token_id < size]
            try:
                self._tokenizer = LLTokenizer(text, n_vocab=size, eos_token=ends)
            except ValueError as error:
                raise Unimplemented.feature(
                    f"a constraint with this base's tokenizer ({str(error)[:200]})",
                    "tokenizers of bytes and with byte fallback",
                ) from error
        return self._tokenizer
