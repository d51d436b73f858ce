"""The layouts of adapter files, one a module; `parse_layout` finds the one that a configuration names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from finetuned_service.adapters.config_keys import CONFIG_FILE, ConfigKeys, load_config, shown
from finetuned_service.adapters.layouts.bottleneck import BottleneckLayout
from finetuned_service.adapters.layouts.head import HEAD_TYPE, HeadLayout, read_head, read_head_alone
from finetuned_service.adapters.layouts.ia3 import Ia3Layout
from finetuned_service.adapters.layouts.layout import PREFIX, Layout
from finetuned_service.adapters.layouts.lora import LoraLayout
from finetuned_service.adapters.layouts.parameters import PARAMETERS_TYPE, ParametersLayout
from finetuned_service.adapters.lora_config import read_lora_config
from finetuned_service.errors import InvalidAdapterFiles, Violation

__all__ = ["PREFIX", "Layout", "parse_layout"]

_PEFT_TYPES: Mapping[str, Callable[[ConfigKeys], Layout | None]] = {
    "LORA": lambda keys: LoraLayout(read_lora_config(keys), keys.task_type(), keys.boolean("fan_in_fan_out")),
    "IA3": Ia3Layout.read,
    HEAD_TYPE: read_head_alone,
    "BOTTLENECK": BottleneckLayout.read,
    PARAMETERS_TYPE: ParametersLayout.read,
}
"""What each type does to the base; None leaves it as it is."""


def parse_layout(raw: bytes) -> Layout:
    """Read the bytes of an adapter_config.json.

    Raises:
        InvalidAdapterFiles: with a violation for every key that is missing, wrong or not supported.
    """
    config = load_config(raw)
    peft_type = config.get("peft_type")
    read = _PEFT_TYPES.get(peft_type) if isinstance(peft_type, str) else None
    if read is None:
        allowed = ", ".join(_PEFT_TYPES)
        violation = Violation(f"{CONFIG_FILE}: peft_type", f"is {shown(peft_type)}; allowed: {allowed}")
        raise InvalidAdapterFiles(f"{violation.field} {violation.description}", violations=[violation])
    keys = ConfigKeys(config)
    head = read_head(keys, body_saves=peft_type in {"LORA", "IA3"})
    body = read(keys)
    if head is not None:
        return HeadLayout(head, body)
    assert body is not None, "a type that leaves the base as it is has a head"
    return body
