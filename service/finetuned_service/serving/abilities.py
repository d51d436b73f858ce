"""What a base and its adapters can be asked for."""

from __future__ import annotations

from collections.abc import Mapping

from finetuned_service.adapters.versions import AdapterVersion
from finetuned_service.bases.manifest import BaseManifest
from finetuned_service.errors import InvalidField
from finetuned_service.serving.encoded_values import EncodeTask
from finetuned_service.vocabulary import Family, Task

WORDS: Mapping[Family, tuple[str, ...]] = {
    Family.DECODER: ("generate",),
    Family.ENCODER: ("embed", "classify", "tag_tokens"),
    Family.VISION: ("embed", "classify"),
}
"""The contract's words for what a base of each family can be asked for."""
_KINDS: Mapping[Family, str] = {
    Family.DECODER: "a decoder",
    Family.ENCODER: "a text encoder",
    Family.VISION: "a vision model",
}
_WORD_OF: Mapping[Task, str] = {
    Task.TEXT_GENERATION: "generate",
    Task.TEXT_CLASSIFICATION: "classify",
    Task.IMAGE_CLASSIFICATION: "classify",
    Task.TOKEN_CLASSIFICATION: "tag_tokens",
    Task.FEATURE_EXTRACTION: "embed",
}


def check_base_can(base: BaseManifest, word: str) -> None:
    """Refuse what bases of this family are not made for.

    Raises:
        InvalidField: naming what it can be asked for.
    """
    if word not in WORDS[base.family]:
        raise InvalidField.one(
            "task",
            f"is {word}; {base.name} is {_KINDS[base.family]} ({base.architecture}), which can be asked to "
            f"{', '.join(WORDS[base.family])}. Ask a server that holds another base",
        )


def check_weights_can(version: AdapterVersion | None, wanted: EncodeTask) -> None:
    """Refuse weights that were not trained for what is wanted.

    Raises:
        InvalidField: naming what they were trained for.
    """
    if version is None:
        if wanted.word != "embed":
            raise InvalidField.one(
                "model",
                f"is plain_base, which has no labels; name an adapter that was trained to {wanted.word}",
            )
    elif version.manifest.task not in wanted.tasks:
        raise InvalidField.one(
            "task",
            f"is {wanted.word}; {version.name} was trained for {version.manifest.task}: ask it to "
            f"{_WORD_OF[version.manifest.task]}, or name another adapter",
        )
