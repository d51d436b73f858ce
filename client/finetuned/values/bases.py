"""Bases: frozen pretrained models."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import final

from finetuned.values.common import ModelFamily, WeightFormat


@final
@dataclass(frozen=True, slots=True)
class Base:
    name: str
    """`bases/{base}` (shared) or `tenants/{tenant}/bases/{base}`"""
    digest: str
    """`sha256:` over the sorted tensors and the canonical configuration."""
    root_digest: str
    """The digest of the base that this one was derived from, or its own."""
    architecture: str
    weight_format: WeightFormat
    parameters: int
    weight_bytes: int
    context_tokens: int
    source: str
    recipe: str
    """How it was derived; empty for a base that was not."""
    resident: bool
    """Whether this server holds it in memory."""
    create_time: datetime | None
    family: ModelFamily
