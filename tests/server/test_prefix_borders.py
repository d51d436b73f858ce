"""No request ever sees keys and values made with another adapter, version or tenant.

A server that shares beginnings of prompts is asked the same prompts under everything that could be mistaken for
something else. Every reply is compared, to the last bit, with an engine that has never seen anything else;
`cached_tokens` says whether something was reused.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from finetuned import Client, RawText, Reply
from finetuned_service.engine.config import EngineConfig
from finetuned_service.engine.messages import Sampling, Submit
from finetuned_service.engine.native.build import library_path
from finetuned_service.engine.native.library import PANEL, Library
from finetuned_service.engine.native.model import NativeModel
from finetuned_service.engine.offline import OfflineEngine
from finetuned_service.text.tokenizer import BaseTokenizer
from tiny_models import TinyAdapter, save_tiny_adapter
from tiny_server import TinyServer, make_data_directory, running

NEW_TOKENS = 8
TENANTS = ("acme", "globex")
CONFIG = EngineConfig(base_directory="", kv_capacity_tokens=1024, max_prefill_tokens=64)


@dataclass
class Stage:
    """The server, both tenants' clients, and what a cold engine would say."""

    server: TinyServer
    clients: dict[str, Client]
    model: NativeModel
    tokenizer: BaseTokenizer
    directory: Path
    versions: dict[str, TinyAdapter] = field(default_factory=dict)
    """By name of the version: what was imported as it."""

    def adapter(self, seed: int) -> TinyAdapter:
        """Weights, the same for the same seed."""
        directory = self.directory / str(seed)
        return save_tiny_adapter(directory, self.server.base_directory, seed=seed, spread=0.1)

    def bring(self, tenant: str, name: str, seed: int) -> str:
        """Import weights as the next version of an adapter; returns the version's name."""
        made, client = self.adapter(seed), self.clients[tenant]
        digest = client.server_info().base.digest
        version = client.adapters.import_directory(made.directory, name, expected_base_digest=digest).name
        self.versions[version] = made
        return version

    def ask(self, tenant: str, model: str | None, text: str) -> int:
        """Ask, compare with a cold engine, and tell how many tokens of the prompt were reused."""
        reply = self.clients[tenant].generate(
            RawText(text),
            adapter=model,
            plain_base=model is None,
            max_tokens=NEW_TOKENS,
            ignore_eos=True,
            logprobs=2,
        )
        assert reply.served_by.adapter_version.startswith(f"tenants/{tenant}/" if model else "")
        self.compare(reply, text)
        return reply.usage.cached_tokens

    def compare(self, reply: Reply, text: str) -> None:
        version = reply.served_by.adapter_version
        made = self.versions[version] if version else None
        assert reply.served_by.adapter_digest == (made.digest if made else "")
        sampling = Sampling(NEW_TOKENS, ignore_eos=True, logprobs=2)
        submit = Submit(1, tuple(self.tokenizer.encode(text)), made.handle if made else None, sampling)
        with OfflineEngine(self.model, CONFIG) as cold:
            (expected,) = cold.generate([submit])
        assert list(reply.token_ids) == expected.token_ids
        for told, own in zip(reply.logprobs, expected.logprobs, strict=True):
            assert (told.logprob, told.top_token_ids, told.top_logprobs) == (
                own.logprob,
                own.top_token_ids,
                own.top_logprobs,
            )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("borders")
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6, "num_key_value_heads": 2}
    base = make_data_directory(directory, dtype=torch.bfloat16, head_dim=16, **sizes)
    model = NativeModel.load(base, Library(library_path(str(directory / "cache"))))
    overrides = {"compute": "native", "cache_dir": directory / "cache", "max_queued_sequences": 32}
    with (
        running(directory / "data", **overrides) as server,
        Client(server.endpoint, tenant=TENANTS[0]) as one,
        Client(server.endpoint, tenant=TENANTS[1]) as other,
    ):
        clients = dict(zip(TENANTS, (one, other), strict=True))
        found = Stage(server, clients, model, BaseTokenizer.load(base), directory / "adapters")
        for place, tenant in enumerate(TENANTS):
            found.bring(tenant, "named-alike", seed=1 + place)
            found.bring(tenant, "equal", seed=9)
        yield found


def prompt(word: str) -> str:
    """A text of several blocks that no other test asks."""
    return f"{word}: please deploy version v0.8.1 of uploader to production " * 2


MODELS = ("named-alike", "equal", None)


def test_first_time_nothing_is_reused_second_time_it_is(stage: Stage) -> None:
    """Each under its own key, although the others have asked the same before."""
    text = prompt("one after the other")
    asked = [(tenant, model) for tenant in TENANTS for model in MODELS]
    assert [stage.ask(tenant, model, text) for tenant, model in asked] == [0] * len(asked)
    assert all(stage.ask(tenant, model, text) >= PANEL for tenant, model in asked)


def test_prompts_that_run_together_share_nothing_across_borders(stage: Stage) -> None:
    """What is running may be copied from, too."""
    asked = [(tenant, model) for tenant in TENANTS for model in MODELS]
    with ThreadPoolExecutor(len(asked)) as pool:
        for turn in range(3):
            text = prompt(f"together {turn}")
            assert list(pool.map(lambda one, text=text: stage.ask(*one, text), asked)) == [0] * len(asked)


def test_a_new_version_under_the_same_alias_starts_cold(stage: Stage) -> None:
    text = prompt("alias")
    stage.bring("acme", "moving", seed=20)
    assert stage.ask("acme", "moving", text) == 0
    assert stage.ask("acme", "moving", text) >= PANEL
    stage.bring("acme", "moving", seed=21)
    stage.clients["acme"].adapters.set_alias("moving", 2)
    assert stage.ask("acme", "moving", text) == 0
    stage.clients["acme"].adapters.rollback("moving")
    assert stage.ask("acme", "moving", text) >= PANEL


def test_a_deleted_adapter_leaves_nothing_to_the_next_of_its_name(stage: Stage) -> None:
    text = prompt("deleted")
    stage.bring("acme", "short-lived", seed=30)
    stage.ask("acme", "short-lived", text)
    stage.clients["acme"].adapters.delete("short-lived")
    stage.bring("acme", "short-lived", seed=31)
    assert stage.ask("acme", "short-lived", text) == 0


def test_weights_that_were_unloaded_and_came_back_say_the_same(stage: Stage) -> None:
    """What they computed before is still theirs."""
    text = prompt("reloaded")
    stage.bring("globex", "reloaded", seed=40)
    stage.ask("globex", "reloaded", text)
    stage.clients["globex"].adapters.unload("reloaded")
    stage.clients["globex"].adapters.load("reloaded")
    assert stage.ask("globex", "reloaded", text) >= PANEL
    assert stage.ask("acme", "equal", text) == 0


def test_an_adapter_that_is_the_base_in_name_only(stage: Stage) -> None:
    """After the base has answered and after another adapter of the same tenant has, nothing of them is used."""
    text = prompt("base")
    assert stage.ask("acme", None, text) == 0
    assert stage.ask("acme", "named-alike", text) == 0
    assert stage.ask("acme", "equal", text) == 0
    assert stage.ask("globex", None, text) == 0
