"""The settings of each method: gaps filled from the base, what does not fit it refused. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from finetuned_service.adapters.geometry import linear_shapes
from finetuned_service.adapters.lora_config import LoraConfig, is_end
from finetuned_service.bases.family import context_of, family_of, width_of
from finetuned_service.bases.inputs import base_inputs
from finetuned_service.bases.manifest import WEIGHTS_FILE, read_config
from finetuned_service.errors import FinetunedError, InvalidField
from finetuned_service.jobs.values import Ia3Settings, LoraSettings, TrainSpec
from finetuned_service.vocabulary import Family, Method, Pooling

_LARGEST_ELEMENT_BYTES = 4
_ANY_TOKENS = 2**20
_USUAL_LABELS = 1000
"""How many are in the data is not known before it is read."""

IA3_OUTPUTS = ("k_proj", "v_proj", "c_attn")
"""Keys and values, in the names of the architectures served."""
IA3_FEEDFORWARD = ("down_proj", "mlp.c_proj")
"""The last product of a feed-forward."""

SETTINGS_OF: Mapping[Method, str] = {Method.LORA: "lora", Method.HEAD: "head", Method.IA3: "ia3"}
"""Which part of a TrainSpec holds a method's settings."""


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What the defaults of a TrainSpec depend on in a base."""

    hidden_size: int
    context_tokens: int
    linear_modules: tuple[str, ...]
    """Full names of the linear modules in the numbered layers, sorted."""
    pooling: Pooling | None = None
    """A text encoder's own; None for others."""

    @classmethod
    def of_directory(cls, directory: Path) -> BaseFacts:
        """Read config.json and the header of model.safetensors."""
        config = read_config(directory)
        family = family_of(config)
        return cls(
            hidden_size=width_of(config),
            # Images have no length.
            context_tokens=_ANY_TOKENS if family is Family.VISION else context_of(config),
            linear_modules=tuple(sorted(linear_shapes(directory / WEIGHTS_FILE))),
            pooling=base_inputs(config)[0] if family is Family.ENCODER else None,
        )

    @property
    def linear_kinds(self) -> tuple[str, ...]:
        """Last parts of their names, sorted."""
        return tuple(sorted({name.rpartition(".")[2] for name in self.linear_modules}))


def resolve_method(spec: TrainSpec, base: BaseFacts) -> TrainSpec:
    """The same spec with the defaults of its method written back."""
    match spec.method:
        case Method.LORA:
            return spec.model_copy(update={"lora": _lora(spec.lora, base)})
        case Method.IA3:
            return spec.model_copy(update={"ia3": _ia3(spec.ia3, base)})
        case Method.HEAD:
            head = spec.head.model_copy(update={"pooling": spec.head.pooling or base.pooling})
            return spec.model_copy(update={"head": head})


def refuse_method(spec: TrainSpec, base: BaseFacts) -> list[FinetunedError]:
    """What of a resolved spec's method does not fit the base."""
    match spec.method:
        case Method.LORA:
            return [*_lora_refusals(spec.lora, base)]
        case Method.IA3:
            return [*_ia3_refusals(spec.ia3, base)]
        case Method.HEAD:
            return []


def adapter_bytes(spec: TrainSpec, base_directory: Path) -> int:
    """The most that the tensors of a resolved spec's adapter take, in 32 bits."""
    shapes = linear_shapes(base_directory / WEIGHTS_FILE)
    match spec.method:
        case Method.LORA:
            config = lora_config(spec.lora)
            elements = sum(
                config.rank_of(name) * (out_features + in_features) + out_features * config.decomposed
                for name, (out_features, in_features) in shapes.items()
                if config.targets(name)
            )
        case Method.IA3:
            elements = sum(
                max(shape) for name, shape in shapes.items() if _is_any_end(spec.ia3.target_modules, name)
            )
        case Method.HEAD:
            elements = _USUAL_LABELS * (width_of(read_config(base_directory)) + 1)
    return elements * _LARGEST_ELEMENT_BYTES


def lora_config(settings: LoraSettings) -> LoraConfig:
    """What the files of an adapter trained with resolved settings will say."""
    return LoraConfig(
        rank=settings.rank,
        alpha=2.0 * settings.rank if settings.alpha is None else settings.alpha,
        rank_stabilized=settings.rank_stabilized,
        decomposed=settings.decomposed,
        rank_pattern=settings.rank_pattern,
        alpha_pattern=settings.alpha_pattern,
        target_modules=settings.target_modules,
    )


def _lora(lora: LoraSettings, base: BaseFacts) -> LoraSettings:
    return lora.model_copy(
        update={
            "alpha": 2.0 * lora.rank if lora.alpha is None else lora.alpha,
            "target_modules": tuple(sorted(set(lora.target_modules))) or base.linear_kinds,
        }
    )


def _ia3(ia3: Ia3Settings, base: BaseFacts) -> Ia3Settings:
    usual = (name for name in (*IA3_OUTPUTS, *IA3_FEEDFORWARD) if _matches(name, base))
    targets = tuple(sorted(set(ia3.target_modules) or usual))
    feedforward = ia3.feedforward_modules
    if feedforward is None:
        last = [name for name in base.linear_modules if _is_any_end(IA3_FEEDFORWARD, name)]
        feedforward = tuple(target for target in targets if any(is_end(target, name) for name in last))
    return ia3.model_copy(
        update={"target_modules": targets, "feedforward_modules": tuple(sorted(set(feedforward)))}
    )


def _lora_refusals(lora: LoraSettings, base: BaseFacts) -> Iterator[FinetunedError]:
    yield from _unknown("spec.lora.target_modules", lora.target_modules, base)
    targeted = [name for name in base.linear_modules if _is_any_end(lora.target_modules, name)]
    for field, pattern in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        unused = [key for key in pattern if not any(is_end(key, name) for name in targeted)]
        if unused:
            yield InvalidField.one(
                f"spec.lora.{field}",
                f"names {_quoted(unused)}, which no target module has as its name or a dotted end of it; leave it "
                f"out, or add it to target_modules",
            )


def _ia3_refusals(ia3: Ia3Settings, base: BaseFacts) -> Iterator[FinetunedError]:
    yield from _unknown("spec.ia3.target_modules", ia3.target_modules, base)
    strays = sorted(set(ia3.feedforward_modules or ()) - set(ia3.target_modules))
    if strays:
        yield InvalidField.one(
            "spec.ia3.feedforward_modules",
            f"names {_quoted(strays)}; allowed are names from target_modules: {', '.join(ia3.target_modules)}",
        )
    if not ia3.target_modules:
        yield InvalidField.one(
            "spec.ia3.target_modules",
            f"is empty, and this base has none of the usual ones; name some of {', '.join(base.linear_kinds)}",
        )


def _unknown(field: str, targets: Iterable[str], base: BaseFacts) -> Iterator[FinetunedError]:
    unknown = sorted(target for target in targets if not _matches(target, base))
    if unknown:
        yield InvalidField.one(
            field,
            f"names {_quoted(unknown)}; the base's linear modules are "
            f"{', '.join(base.linear_kinds)} (leave it empty for the default)",
        )


def _matches(end: str, base: BaseFacts) -> bool:
    return any(is_end(end, name) for name in base.linear_modules)


def _is_any_end(ends: Iterable[str], name: str) -> bool:
    return any(is_end(end, name) for end in ends)


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
