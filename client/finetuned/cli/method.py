"""Options of `finetuned train` that name the method and its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import typer

from finetuned import Bottleneck, Full, Head, Ia3, Layers, Lora, Qlora, WeightFormat

T = TypeVar("T")

_KINDS: Mapping[str, type[Any]] = {
    "lora": Lora,
    "ia3": Ia3,
    "bottleneck": Bottleneck,
    "head": Head,
    "layers": Layers,
    "full": Full,
}
_QUANTIZED = (WeightFormat.INT8, WeightFormat.NF4)


def method_settings(
    method: str | None, options: Mapping[str, Any], weight_format: Callable[[], WeightFormat]
) -> dict[str, Any]:
    """The keyword of `client.train` that holds the method and its settings; none leaves it to the service.

    Args:
        method: as given; None is lora where there are options, and qlora where the base is quantized.
        options: settings by their names in the values of all methods; None and empty where not given.
        weight_format: of the base; asked only where that decides.

    Raises:
        typer.BadParameter: an option is not for the method.
    """
    # 0 is given: whether it can be used says the service.
    given = {
        name: value for name, value in options.items() if value is not False and value not in (None, (), {})
    }
    chosen = method or ("lora" if given else None)
    if chosen is None:
        return {}
    kind = _KINDS["lora" if chosen == "qlora" else chosen]
    strays = sorted(name for name in given if name not in kind.__dataclass_fields__)
    if strays:
        raise typer.BadParameter(f"{', '.join(strays)} is no setting of {chosen}", param_hint="--method")
    if method is None and weight_format() in _QUANTIZED:
        chosen = "qlora"
    settings = kind(**given)
    return {chosen: Qlora(lora=settings) if chosen == "qlora" else settings}


def by_name(option: str, what: str, given: Iterable[str], read: Callable[[str], T]) -> dict[str, T]:
    """Options such as `MODULE=NUMBER`, the number after the last "=".

    Raises:
        typer.BadParameter: one is not written as `what`.
    """
    found: dict[str, T] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        refusal = typer.BadParameter(f"is {text!r}; expected {what}", param_hint=option)
        if not name:
            raise refusal
        try:
            found[name] = read(number)
        except ValueError:
            raise refusal from None
    return found
