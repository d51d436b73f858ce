"""A linear layer over what the base encodes, alone or beside what another layout does to the base.

`head` in adapter_config.json describes it; its tensors are `base_model.model.classifier.weight [outputs, width]` and
`.bias [outputs]`, as PEFT names a classifier among its modules to save. PEFT has no type for a head alone: `peft_type`
is HEAD, which only we read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from finetuned_service.adapters.config_keys import CONFIG_FILE, ConfigKeys
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.head import CLASSIFIER, HEAD_KEY, Head
from finetuned_service.adapters.layouts.layout import PREFIX, Layout, Shape
from finetuned_service.adapters.site_ops import Project, SiteOp
from finetuned_service.errors import InvalidAdapterFiles, Violation
from finetuned_service.vocabulary import Method

HEAD_TYPE = "HEAD"
"""What `peft_type` says of a head alone."""
WEIGHT, BIAS = "weight", "bias"


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """See `Layout`."""

    head: Head
    body: Layout | None
    """What happens to the base; None leaves it as it is."""

    @property
    def method(self) -> Method:
        return Method.HEAD if self.body is None else self.body.method

    @property
    def tensors_expected(self) -> str:
        own = f"{PREFIX}{CLASSIFIER}.{WEIGHT} and .{BIAS}"
        if self.body is None:
            return f"does not belong to a head; expected {own}"
        return f"{self.body.tensors_expected}, or {own}"

    def split(self, tensor: str) -> tuple[str, str] | None:
        module, _, part = tensor.removeprefix(PREFIX).rpartition(".")
        if tensor.startswith(PREFIX) and module == CLASSIFIER and part in {WEIGHT, BIAS}:
            return module, part
        return None if self.body is None else self.body.split(tensor)

    def shapes(self, module: str, base: BaseGeometry) -> Mapping[str, Shape] | None:
        if module == CLASSIFIER:
            return {WEIGHT: (self.head.outputs, base.width), BIAS: (self.head.outputs,)}
        return None if self.body is None else self.body.shapes(module, base)

    def changeable(self, base: BaseGeometry) -> Iterable[str]:
        yield CLASSIFIER
        if self.body is not None:
            yield from self.body.changeable(base)

    @property
    def named_targets(self) -> Mapping[str, tuple[str, ...]]:
        return {} if self.body is None else self.body.named_targets

    def targets(self, module: str) -> bool | None:
        return module == CLASSIFIER or (self.body is not None and self.body.targets(module))

    def rank_of(self, module: str) -> int:
        return 0 if self.body is None or module == CLASSIFIER else self.body.rank_of(module)

    def ops(self, module: str, parts: Collection[str], base: BaseGeometry) -> tuple[SiteOp[str], ...]:
        if module == CLASSIFIER:
            return (Project(f"{PREFIX}{module}.{WEIGHT}", f"{PREFIX}{module}.{BIAS}"),)
        return () if self.body is None else self.body.ops(module, parts, base)

    def spelled_out(self, modules: Iterable[str]) -> dict[str, object]:
        described: dict[str, object] = {HEAD_KEY: self.head.model_dump(mode="json")}
        if self.body is None:
            return {"peft_type": HEAD_TYPE, **described}
        return self.body.spelled_out(module for module in modules if module != CLASSIFIER) | described

    def written(self, modules: Iterable[str]) -> dict[str, object]:
        described: dict[str, object] = {HEAD_KEY: self.head.model_dump(mode="json")}
        if self.body is None:
            return {"peft_type": HEAD_TYPE, **described, "inference_mode": True}
        own = self.body.written(module for module in modules if module != CLASSIFIER)
        # For PEFT a head is one more module to save; the digest does not count it among them.
        saved: Any = own.get("modules_to_save", [])
        return {**own, **described, "modules_to_save": [*saved, CLASSIFIER]}


def read_head(keys: ConfigKeys, *, body_saves: bool) -> Head | None:
    """The head that a configuration describes; None without one. `body_saves` is whether what it is over may have
    modules to save of its own.

    Raises:
        InvalidAdapterFiles: it is described wrongly.
    """
    described = keys.get(HEAD_KEY)
    if described is None:
        return None
    if not body_saves:
        keys.one_of("modules_to_save", ([CLASSIFIER], None), default=None)
    try:
        return Head.model_validate(described)
    except ValidationError as error:
        violations = [
            Violation(f"{CONFIG_FILE}: {'.'.join(map(str, (HEAD_KEY, *e['loc'])))}", e["msg"])
            for e in error.errors()
        ]
        raise InvalidAdapterFiles(
            f"{violations[0].field} {violations[0].description}", violations=violations
        ) from error


def read_head_alone(keys: ConfigKeys) -> None:
    """Nothing else is said in a configuration whose type is HEAD.

    Raises:
        InvalidAdapterFiles: with a violation for every key that says more.
    """
    if keys.get(HEAD_KEY) is None:
        violation = Violation(
            f"{CONFIG_FILE}: {HEAD_KEY}", f"is missing; an adapter of type {HEAD_TYPE} has it"
        )
        raise InvalidAdapterFiles(f"{violation.field} {violation.description}", violations=[violation])
    keys.one_of("peft_type", (HEAD_TYPE,))
    keys.task_type()
    keys.others_are_off()
    keys.refuse_if_wrong()
