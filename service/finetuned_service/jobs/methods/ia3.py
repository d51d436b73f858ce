"""IA3: settings resolved and checked. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from finetuned_service.adapters.lora_config import is_end
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.methods.base import BaseFacts, is_any_end, quoted, unknown_targets
from finetuned_service.jobs.methods.saved import saved_refusals
from finetuned_service.jobs.specs import Ia3Settings

IA3_OUTPUTS = ("k_proj", "v_proj", "c_attn", "key", "value", "k_lin", "v_lin")
"""Keys and values, in the names of the architectures served."""
IA3_FEEDFORWARD = ("down_proj", "mlp.c_proj", "output.dense", "lin2", "ffn_output")
"""The last product of a feed-forward."""


def resolve_ia3(ia3: Ia3Settings, base: BaseFacts) -> Ia3Settings:
    """The same settings with the defaults written back."""
    usual = (name for name in (*IA3_OUTPUTS, *IA3_FEEDFORWARD) if base.has(name))
    targets = tuple(sorted(set(ia3.target_modules) or usual))
    feedforward = ia3.feedforward_modules
    if feedforward is None:
        last = [name for name in base.linear_modules if is_any_end(IA3_FEEDFORWARD, name)]
        feedforward = tuple(target for target in targets if any(is_end(target, name) for name in last))
    return ia3.model_copy(
        update={
            "target_modules": targets,
            "feedforward_modules": tuple(sorted(set(feedforward))),
            "modules_to_save": tuple(sorted(set(ia3.modules_to_save))),
        }
    )


def ia3_refusals(ia3: Ia3Settings, base: BaseFacts) -> Iterator[FinetunedError]:
    """What of resolved settings does not fit the base."""
    yield from unknown_targets("spec.ia3.target_modules", ia3.target_modules, base)
    strays = sorted(set(ia3.feedforward_modules or ()) - set(ia3.target_modules))
    if strays:
        yield InvalidField.one(
            "spec.ia3.feedforward_modules",
            f"names {quoted(strays)}; allowed are names from target_modules: {', '.join(ia3.target_modules)}",
        )
    yield from saved_refusals(ia3.modules_to_save, ia3.target_modules, base, "spec.ia3")
    if not ia3.target_modules:
        yield InvalidField.one(
            "spec.ia3.target_modules",
            f"is empty, and this base has none of the usual ones; name some of {', '.join(base.linear_kinds)}",
        )


def ia3_elements(settings: Ia3Settings, shapes: Mapping[str, tuple[int, int]]) -> int:
    """The most numbers in the gains of resolved settings; `shapes` are (out, in) by linear module."""
    return sum(max(shape) for name, shape in shapes.items() if is_any_end(settings.target_modules, name))
