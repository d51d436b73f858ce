"""Names for the adapters in labels: at most so many, so that the number of series stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from finetuned_service.engine.messages import AdapterResidency, Residency
from finetuned_service.errors import FinetunedError

_TIERS = {Residency.DEVICE: 0, Residency.HOST: 1, Residency.STORED: 2}


@dataclass(frozen=True, slots=True)
class AdapterNames:
    """Which adapters are named, and how."""

    most: int
    """So many at once; 0 names none."""
    names: Callable[[Sequence[str]], Mapping[str, str]]
    """The names of versions by digest; one without a name is shown by its digest."""

    def chosen(self, adapters: Sequence[AdapterResidency]) -> list[tuple[str, AdapterResidency]]:
        """The adapters to be named, with their names: those that run first, then by tier and size."""
        order = sorted(
            adapters, key=lambda a: (-a.running_sequences, _TIERS[a.residency], -a.resident_bytes, a.digest)
        )[: self.most]
        return list(zip(self.named([a.digest for a in order]), order, strict=True))

    def named(self, digests: Sequence[str]) -> list[str]:
        """The names of as many of the digests as may be named."""
        shown = digests[: self.most]
        try:
            known = self.names(shown) if shown else {}
        except FinetunedError:
            # The store does not answer; the page does all the same.
            known = {}
        return [known.get(digest, digest) for digest in shown]
