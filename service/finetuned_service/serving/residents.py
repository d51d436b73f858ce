"""Brings adapters into memory and out of it: for each tenant what it asked for, whatever others have."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from finetuned_service.adapters.memory import served_bytes
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.adapters.versions import AdapterVersion
from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.engine.client import EngineClient
from finetuned_service.engine.messages import AdapterHandle, Residency, Snapshot
from finetuned_service.errors import FinetunedError
from finetuned_service.serving.holders import Holders, Pinned
from finetuned_service.serving.pin_shares import PinShares


@dataclass(frozen=True, slots=True)
class Residents:
    """The adapters of one engine."""

    engine: EngineClient
    registry: AdapterRegistry
    base: BaseManifest
    shares: PinShares
    holders: Holders = field(default_factory=Holders)
    """Whose weights are in memory."""

    async def load(
        self, version: AdapterVersion, tier: Residency, *, pin: bool, within_share: bool = False
    ) -> Snapshot:
        """Bring a version's weights to a tier, and keep them there if asked, `within_share` only as far as that leaves others
        theirs; answers when they are there. What is pinned stays so until it is unloaded.

        Raises:
            QuotaExceeded: before anything is changed, see `PinShares`.
            FinetunedError: from the engine; then nothing is pinned but what other calls pinned.
        """
        digest, tenant = version.manifest.digest, version.tenant
        pinned = (
            Pinned(digest, tenant, tier, served_bytes(version.manifest.parameters, self.base))
            if pin
            else None
        )
        if pinned is not None and within_share:
            self.shares.refuse_above(pinned, self.holders.all_pinned())
        claim = self.holders.claim(digest, tenant, pinned)
        try:
            snapshot = await self._bring(digest, tier)
        except FinetunedError:
            self.holders.refuse(claim)
            await self._keep_pins(digest)
            raise
        except asyncio.CancelledError:
            self.holders.grant(claim)  # the engine goes on without the caller
            raise
        self.holders.grant(claim)
        await self.leave_unnamed(tenant, [digest])  # deleted meanwhile
        return snapshot

    async def unload(self, version: AdapterVersion, tier: Residency = Residency.STORED) -> Snapshot:
        """Let a version's weights fall to STORED or HOST, unless another tenant has pinned the same higher up; those that are
        not in memory stay out of it.

        Sequences that use them finish; the memory is free after the last.

        Raises:
            FinetunedError: from the engine.
        """
        digest, tenant = version.manifest.digest, version.tenant
        if tier is Residency.STORED:
            self.holders.leave(digest, tenant)
        else:
            self.holders.unpin(digest, tenant)
        try:
            return await self._bring(digest, tier, lowers=True)
        except FinetunedError:
            await self._keep_pins(digest)
            raise

    @asynccontextmanager
    async def running(self, version: AdapterVersion, sequences: int) -> AsyncGenerator[None]:
        """Around the sequences that a call runs with the version: it may be deleted meanwhile, they find its files."""
        digest, tenant = version.manifest.digest, version.tenant
        self.holders.used(digest, tenant)
        self.registry.readers.begin(digest)
        try:
            with self.holders.running(digest, tenant, sequences):
                yield
        finally:
            if self.registry.readers.end(digest):
                await asyncio.to_thread(self.registry.drop_unnamed, [digest])
                await self.forget_unnamed([digest])

    async def leave_unnamed(self, tenant: str, digests: Collection[str]) -> None:
        """After a deletion: a tenant holds no weights that none of its versions has; it could not name them to unpin them."""
        for digest in await asyncio.to_thread(self.registry.unnamed_by, tenant, digests):
            self.holders.leave(digest, tenant)
            with suppress(FinetunedError):  # an engine that is not there holds nothing
                await self._bring(digest, Residency.STORED)

    async def forget_unnamed(self, digests: Iterable[str]) -> None:
        """Free the memory of weights that are gone from the store."""
        for digest in digests:
            if not self.registry.directory_of(digest).exists():
                self.holders.forget(digest)
                with suppress(FinetunedError):  # an engine that is not there holds nothing
                    await self._bring(digest, Residency.STORED)

    async def _keep_pins(self, digest: str) -> None:
        """The engine has refused a call and let go of the weights: what others, or earlier calls, pinned is pinned again, and
        calls that were sent meanwhile, with the refused pin, pin nothing else.
        """
        # What the caller is to hear of is the first refusal.
        with suppress(FinetunedError):
            if self.holders.pinned(digest) is not Residency.STORED:
                await self._bring(digest, Residency.STORED)
                return
        with suppress(FinetunedError):
            await self._set(digest, Residency.DEVICE, self.holders.pinned(digest), lowers=True)

    async def _bring(self, digest: str, tier: Residency, *, lowers: bool = False) -> Snapshot:
        """To a tier, or where somebody keeps it if that is higher up."""
        tier, pinned = self.holders.at_least(digest, tier)
        return await self._set(digest, tier, self.holders.pinned(digest), lowers=lowers and not pinned)

    async def _set(self, digest: str, tier: Residency, kept: Residency, *, lowers: bool) -> Snapshot:
        handle = AdapterHandle(digest, str(self.registry.directory_of(digest)))
        pinned = kept is not Residency.STORED
        return await self.engine.set_residency(handle, tier, pinned=pinned, kept=kept, lowers=lowers)
