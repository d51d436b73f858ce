"""Whether a directory may become a base, told from its small files before any weight is read.

Torch-free. Refuses what would run code (pickles, a model class of its own) or load something else
than it says (an adapter beside the model, weights in a format that is not ours).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from finetuned_service.bases.family import ENCODER_CLASSES, REFUSED_TYPES, family_of
from finetuned_service.bases.inputs import declare_inputs
from finetuned_service.bases.json_files import read_object
from finetuned_service.bases.processor import IMAGE_FILE
from finetuned_service.bases.sentence import MODULES_FILE, POOLING_FILE
from finetuned_service.bases.tokenizer_settings import SENTENCE_FILE, check_tokenizer
from finetuned_service.digests import read_safetensors_header
from finetuned_service.errors import InvalidAdapterFiles, InvalidField, Unimplemented
from finetuned_service.vocabulary import Family

MODEL_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
}
"""model_type → the class of transformers that serves it: decoders of linear layers."""

ROPE_TYPES = frozenset({"default", "dynamic", "linear", "llama3", "yarn"})
"""Rotary embeddings whose angles depend on the position alone, so that a row is what it is whatever stands beside it;
those of "dynamic" change beyond `max_position_embeddings`, where no row comes.
"""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Copied as they are; everything else is left behind. generation_config.json is written by the model."""

DESCRIPTION_FILES = (
    "config.json",
    *TOKENIZER_FILES,
    IMAGE_FILE,
    MODULES_FILE,
    POOLING_FILE,
    SENTENCE_FILE,
)
"""The small files that say what a base is."""

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})


def check_importable(source: Path) -> None:
    """Refuse a directory that cannot become a base.

    Raises:
        InvalidField: naming what is missing or wrong, with the remedy.
        Unimplemented: for an architecture that this build does not serve.
    """
    if not source.is_dir():
        found = "is not a directory" if source.exists() else "does not exist"
        raise InvalidField.one(
            "source",
            f"{source.name!r} {found}; expected a directory with config.json and safetensors weights",
        )
    try:
        names = frozenset(path.name for path in source.iterdir())
    except PermissionError as error:
        raise InvalidField.one(
            "source", f"{source.name!r} may not be read by the server's user; give it the right to"
        ) from error
    check_names(names)
    check_small_files(source)
    weights = sorted(source / name for name in names if is_weights(name))
    for path in weights:
        try:
            read_safetensors_header(path)
        except InvalidAdapterFiles as error:
            raise InvalidField.one("source", error.message) from error
        except OSError as error:
            raise InvalidField.one("source", f"its {path.name} cannot be read: {error.strerror}") from error


def is_weights(name: str) -> bool:
    """Whether a file of that name is taken for weights of the model."""
    return name.startswith("model") and name.endswith(".safetensors")


def check_names(names: frozenset[str]) -> None:
    """Refuse by the names of the files alone.

    Raises:
        InvalidField: naming what is missing or wrong, with the remedy.
    """
    if not any(map(is_weights, names)):
        pickles = sorted(name for name in names if Path(name).suffix in PICKLE_SUFFIXES)
        found = (
            f"its weights are pickles ({', '.join(pickles[:3])}), which can run code when they are read"
            if pickles
            else "it has no model*.safetensors"
        )
        raise InvalidField.one(
            "source",
            f"{found}; on a machine where you trust them, load the model with transformers and "
            "`model.save_pretrained(directory)`, which writes safetensors",
        )
    if "adapter_config.json" in names:
        raise InvalidField.one(
            "source",
            "it holds adapter_config.json, so it is an adapter; import it as an adapter, or merge it first",
        )
    if "config.json" not in names:
        raise InvalidField.one("source", "it has no config.json")


def check_small_files(source: Path) -> None:
    """Refuse by config.json and what lies beside it.

    Raises:
        InvalidField: it cannot be read, or says what is not allowed.
        Unimplemented: for an architecture that this build does not serve.
    """
    config = read_object(source / "config.json")
    _check_config(config)
    if family_of(config) is not Family.VISION:
        if not (source / "tokenizer.json").is_file():
            raise InvalidField.one(
                "source",
                "it has no tokenizer.json (the fast tokenizer); write it with "
                "`AutoTokenizer.from_pretrained(directory).save_pretrained(directory)`",
            )
        check_tokenizer(source, config)
    declare_inputs(source, config)


def _check_config(config: dict[str, Any]) -> None:
    if "auto_map" in config:
        raise InvalidField.one(
            "source",
            "config.json names Python code of its own (auto_map), which is never run; if transformers has the "
            "architecture itself, remove auto_map from the file",
        )
    if config.get("quantization_config") is not None:
        raise InvalidField.one(
            "source",
            "its weights are quantized already (quantization_config); import the unquantized model and "
            "use Quantize, which measures what is lost",
        )
    model_type = str(config.get("model_type"))
    if model_type in ENCODER_CLASSES:
        _check_encoder(config, ENCODER_CLASSES[model_type].name)
        return
    if model_type not in MODEL_CLASSES:
        because = f" ({REFUSED_TYPES[model_type]})" if model_type in REFUSED_TYPES else ""
        raise Unimplemented.feature(
            f"a base of model type {model_type!r}{because}", ", ".join([*MODEL_CLASSES, *ENCODER_CLASSES])
        )
    expected = [MODEL_CLASSES[model_type]]
    if config.get("architectures") != expected:
        raise InvalidField.one(
            "source",
            f"config.json has architectures {config.get('architectures')!r}; a base of model type "
            f"{model_type!r} has {expected!r}",
        )
    if config.get("add_cross_attention"):
        raise Unimplemented.feature(
            f"a base of model type {model_type!r} with cross attention", "decoders alone"
        )
    rope = _rope_type(config)
    if rope not in ROPE_TYPES:
        raise Unimplemented.feature(
            f"rotary embeddings of type {rope!r}, whose angles depend on the longest sequence of a batch",
            ", ".join(sorted(ROPE_TYPES)),
        )


def _rope_type(config: dict[str, Any]) -> str:
    """As transformers reads it, under its new and its old names."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    found = (rope.get("rope_type") or rope.get("type")) if isinstance(rope, dict) else None
    return str(found or "default")


def _check_encoder(config: dict[str, Any], class_name: str) -> None:
    """The bare model, or the model under a head, which is left behind."""
    stem = class_name.removesuffix("Model")
    found = config.get("architectures")
    names: list[Any] = found if isinstance(found, list) else []
    if len(names) != 1 or not (names[0] == class_name or str(names[0]).startswith(f"{stem}For")):
        raise InvalidField.one(
            "source",
            f"config.json has architectures {found!r}; a base of model type {config['model_type']!r} has "
            f"[{class_name!r}], or one with a head ({stem}For...), whose head is left behind",
        )
    if config.get("is_decoder") or config.get("add_cross_attention"):
        raise Unimplemented.feature(f"{class_name} as a decoder (is_decoder)", "encoders")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise Unimplemented.feature(
            f"position_embedding_type {config['position_embedding_type']!r}", "absolute positions"
        )


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the tokenizer's files; a chat template inside tokenizer_config.json gets its own file too."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    settings_path = target / "tokenizer_config.json"
    template_path = target / "chat_template.jinja"
    if settings_path.is_file() and not template_path.exists():
        template = read_object(settings_path).get("chat_template")
        if isinstance(template, str):
            template_path.write_text(template, encoding="utf-8")
