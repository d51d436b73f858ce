"""The files of an adapter, checked in full before anything is changed.

Torch-free and without PEFT: the header of the safetensors file is parsed here, its bytes are looked at
through the page cache, and a pickle is never read. What passes can be served: the tensors are exactly
those that the configuration names (`layouts/` knows which), each fits its module of the base, every
number is finite.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetuned_service.adapters.config_keys import CONFIG_FILE, MAX_CONFIG_BYTES
from finetuned_service.adapters.geometry import BaseGeometry
from finetuned_service.adapters.head import Head
from finetuned_service.adapters.layouts import PREFIX, Layout, parse_layout
from finetuned_service.adapters.layouts.layout import Shape
from finetuned_service.adapters.lora_config import dotted_ends
from finetuned_service.digests import (
    TensorInfo,
    mapped_tensors,
    parse_safetensors_header,
    raw_safetensors_header,
    tensors_digest,
)
from finetuned_service.errors import InvalidAdapterFiles, Violation
from finetuned_service.storage.files import write_atomically
from finetuned_service.vocabulary import Method, Task

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterFacts",
    "BaseGeometry",
    "check_adapter",
    "check_entries",
    "check_names",
    "read_config",
    "read_raw_header",
    "spell_out_config",
]

WEIGHTS_FILE = "adapter_model.safetensors"
_ALLOWED_FILES = frozenset({CONFIG_FILE, WEIGHTS_FILE, "manifest.json", "README.md"})

MAX_ADAPTER_HEADER_BYTES = 8 * 1024 * 1024
"""A LoRA of 1,000 modules has a header of 300 kB; a larger one would only cost memory to parse."""

_EXPONENTS: Mapping[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""For each dtype allowed: integers of its width, and its exponent bits. All of them set is NaN or
infinity (IEEE 754), which works for bfloat16, too, that numpy does not know."""

_CHUNK_ELEMENTS = 256 * 1024


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What the files of an adapter say."""

    digest: str
    """Over the tensors and the configuration with every module spelled out."""
    method: Method
    task: Task
    rank: int
    """The largest."""
    modules: int
    """Modules of the base that it changes."""
    parameters: int
    size_bytes: int
    """Of the tensors."""
    dtype: str
    """F32, F16 or BF16; all that there are, sorted."""
    target_modules: tuple[str, ...]
    """Last parts of the changed modules' names, sorted."""
    head: Head | None = None
    """What its outputs mean, where it has a head; that counts as a module."""


def check_adapter(directory: Path, geometry: BaseGeometry, max_rank: int) -> AdapterFacts:
    """Check an adapter's files against a base; changes nothing.

    Args:
        directory: holds adapter_config.json and adapter_model.safetensors.
        geometry: of the base that will serve it.
        max_rank: the largest rank that the server serves.

    Raises:
        InvalidAdapterFiles: naming up to 20 keys or tensors that are wrong, and the number of all in the
            metadata `faults`.
    """
    layout, infos = _read(directory)
    task = _task_of(layout, geometry)
    modules = check_names(layout, infos, geometry, max_rank)
    digest = _finite_digest(directory, layout.spelled_out(modules))
    return AdapterFacts(
        digest=digest,
        method=layout.method,
        task=task,
        rank=max(layout.rank_of(module) for module in modules),
        modules=len(modules),
        parameters=sum(math.prod(info.shape) for info in infos),
        size_bytes=sum(info.end - info.start for info in infos),
        dtype=", ".join(sorted({info.dtype for info in infos})),
        target_modules=tuple(_last_parts(modules)),
        head=layout.head,
    )


def _changed_modules(layout: Layout, tensors: Iterable[TensorInfo]) -> dict[str, list[str]]:
    """The modules of the base that the tensors of a checked adapter change, sorted, and their parts."""
    changed: dict[str, list[str]] = {}
    for info in tensors:
        if (place := layout.split(info.name)) is not None:
            changed.setdefault(place[0], []).append(place[1])
    return dict(sorted(changed.items()))


def spell_out_config(directory: Path) -> None:
    """Rewrite a checked adapter's configuration with every module by its full name.

    Patterns, paths of the trainer's machine and keys without a meaning go; the digest stays, and PEFT
    reads the same adapter. What is stored and exported then carries nothing that nobody looked at.
    """
    layout, infos = _read(directory)
    spelled = layout.written(_changed_modules(layout, infos))
    write_atomically(directory / CONFIG_FILE, (json.dumps(spelled, indent=2) + "\n").encode())


def stored_digest(directory: Path) -> str:
    """The digest of a stored adapter, from its files as they are now; reads every byte of the weights.

    Raises:
        InvalidAdapterFiles: they cannot be read.
    """
    layout, infos = _read(directory)
    described = layout.spelled_out(_changed_modules(layout, infos))
    with mapped_tensors(directory / WEIGHTS_FILE) as tensors:
        return tensors_digest(tensors, described)


def stored_head(directory: Path) -> Head | None:
    """The head that an adapter's configuration describes; None without one.

    Raises:
        InvalidAdapterFiles: the configuration is wrong.
    """
    return _read_layout(directory).head


def _task_of(layout: Layout, base: BaseGeometry) -> Task:
    """What the adapter is for; what the base cannot be asked for is refused."""
    if layout.head is None:
        return Task.FEATURE_EXTRACTION if base.width else Task.TEXT_GENERATION
    if not base.width:
        raise InvalidAdapterFiles(
            f"{CONFIG_FILE}: head is for {layout.head.task}; this base generates text and takes no heads"
        )
    return layout.head.task


def _finite_digest(directory: Path, described: Mapping[str, object]) -> str:
    with mapped_tensors(directory / WEIGHTS_FILE) as tensors:
        _refuse(
            [
                Violation(name, "holds NaN or infinity; train again with a smaller learning rate")
                for name, dtype, _, data in tensors
                if not _all_finite(data, dtype)
            ]
        )
        return tensors_digest(tensors, described)


def _read(directory: Path) -> tuple[Layout, list[TensorInfo]]:
    check_entries(directory)
    return _read_layout(directory), _read_header(directory)


def _read_layout(directory: Path) -> Layout:
    return parse_layout(read_config(directory))


def _read_header(directory: Path) -> list[TensorInfo]:
    return parse_safetensors_header(WEIGHTS_FILE, *read_raw_header(directory))


def read_config(directory: Path) -> bytes:
    """An adapter's configuration, not looked into; cut off behind what is allowed."""
    with (directory / CONFIG_FILE).open("rb") as file:
        return file.read(MAX_CONFIG_BYTES + 1)


def read_raw_header(directory: Path) -> tuple[bytes, int]:
    """See `digests.raw_safetensors_header`, of an adapter's weights."""
    return raw_safetensors_header(directory / WEIGHTS_FILE, MAX_ADAPTER_HEADER_BYTES)


def check_entries(directory: Path) -> None:
    """The two files are there, they are files, and nothing else lies beside them.

    Raises:
        InvalidAdapterFiles: otherwise.
    """
    entries = {entry.name: entry.lstat() for entry in directory.iterdir()}
    violations = [
        Violation(name, "is missing; an adapter in PEFT's layout has it")
        for name in (CONFIG_FILE, WEIGHTS_FILE)
        if name not in entries
    ]
    for name, status in sorted(entries.items()):
        if name not in _ALLOWED_FILES:
            allowed = ", ".join(sorted(_ALLOWED_FILES))
            violations.append(Violation(ascii(name), f"does not belong to an adapter; allowed: {allowed}"))
        elif not stat.S_ISREG(status.st_mode):
            violations.append(Violation(name, "is not a plain file; links are not followed"))
    _refuse(violations)


def check_names(
    layout: Layout, infos: list[TensorInfo], base: BaseGeometry, max_rank: int
) -> dict[str, list[str]]:
    """The modules that the tensors change, sorted, with their parts, once names, shapes and dtypes are those
    expected.

    Raises:
        InvalidAdapterFiles: they are not; see `check_adapter`.
    """
    found: dict[str, dict[str, TensorInfo]] = {}
    violations = [*_wrong_as_a_whole(infos), *_unknown_targets(layout, base)]
    for info in infos:
        place = layout.split(info.name)
        if place is None:
            violations.append(Violation(_shown(info.name), layout.tensors_expected))
        elif layout.shapes(place[0], base) is None:
            violations.append(
                Violation(
                    _shown(info.name),
                    "changes a module that this base does not have or cannot adapt; this layout adapts "
                    f"{', '.join(_last_parts(layout.changeable(base)))}",
                )
            )
        elif layout.targets(place[0]) is False:
            violations.append(Violation(info.name, f"changes a module that {CONFIG_FILE} does not name"))
        else:
            found.setdefault(place[0], {})[place[1]] = info
    modules = sorted(found)
    expected = modules + [m for m in layout.changeable(base) if layout.targets(m) is True and m not in found]
    for module in expected:
        violations.extend(_check_module(module, found.get(module, {}), layout.shapes(module, base) or {}))
    largest = max((layout.rank_of(module) for module in expected), default=0)
    if largest > max_rank:
        violations.append(Violation(f"{CONFIG_FILE}: r", f"is {largest}; allowed: 1 to {max_rank}"))
    _refuse(violations)
    return {module: list(found[module]) for module in modules}


def _wrong_as_a_whole(infos: list[TensorInfo]) -> Iterator[Violation]:
    dtypes = sorted({info.dtype for info in infos})
    if not infos:
        yield Violation(WEIGHTS_FILE, "holds no tensors; an adapter changes at least one module")
    elif not _EXPONENTS.keys() >= set(dtypes):
        yield Violation(WEIGHTS_FILE, f"holds {', '.join(dtypes)}; expected {', '.join(_EXPONENTS)}")


def _unknown_targets(layout: Layout, base: BaseGeometry) -> Iterator[Violation]:
    changeable = list(layout.changeable(base))
    known = {end for module in changeable for end in dotted_ends(module)}
    for key, targets in layout.named_targets.items():
        for target in targets:
            # PEFT asks for no dot in front of these: see `layouts/saved.py`.
            is_end_of_a_name = key == "modules_to_save" and any(m.endswith(target) for m in changeable)
            if target not in known and not is_end_of_a_name:
                yield Violation(
                    f"{CONFIG_FILE}: {key}",
                    f"names {_shown(target)}, which this base does not have or cannot adapt; it adapts "
                    f"{', '.join(_last_parts(changeable))}",
                )


def _check_module(
    module: str, found: Mapping[str, TensorInfo], shapes: Mapping[str, Shape]
) -> Iterator[Violation]:
    dtypes = sorted({info.dtype for info in found.values()})
    if len(dtypes) > 1:
        # Of modules that are saved whole PEFT keeps the base's, and has its updates in float32.
        yield Violation(f"{PREFIX}{module}", f"holds {', '.join(dtypes)}; expected one dtype in a module")
    for part, expected in shapes.items():
        name, info = f"{PREFIX}{module}.{part}", found.get(part)
        if info is None:
            yield Violation(name, f"is missing; expected shape {list(expected)}")
        elif info.shape != expected:
            yield Violation(name, f"has shape {list(info.shape)[:8]}; expected {list(expected)}")


def _last_parts(modules: Iterable[str]) -> list[str]:
    return sorted({module.rpartition(".")[2] for module in modules})


def _all_finite(data: memoryview, dtype: str) -> bool:
    unsigned, exponent = _EXPONENTS[dtype]
    elements = np.frombuffer(data, dtype=unsigned)
    mask = unsigned(exponent)
    return not any(
        bool(((elements[start : start + _CHUNK_ELEMENTS] & mask) == mask).any())
        for start in range(0, elements.size, _CHUNK_ELEMENTS)
    )


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 120 else name[:120] + "...")


def _refuse(violations: list[Violation]) -> None:
    if not violations:
        return
    first, more = violations[0], len(violations) - 1
    rest = f" (and {more} more faults)" if more else ""
    raise InvalidAdapterFiles(
        f"{first.field} {first.description}{rest}",
        metadata={"faults": str(len(violations))},
        violations=violations,
    )
