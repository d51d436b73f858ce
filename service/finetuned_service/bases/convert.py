"""How bases get into the store: from a packaged GGUF file, or from a directory of Hugging Face's kind.

Both load the weights with transformers and write them anew in one form (one safetensors file, the
model class's own tensor names, one dtype), so that the digest does not depend on how the source was
cut into files. Nothing of the source is executed or unpickled. Both leave a complete base alone, so
running them again is cheap, and publish by rename, so an interrupted run leaves no base.

Imports torch: for command line and job processes, not for the RPC process.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from finetuned_service.bases.importable import check_importable, copy_tokenizer
from finetuned_service.bases.manifest import (
    MANIFEST_FILE,
    BaseManifest,
    describe_base,
    read_manifest,
    write_manifest,
)
from finetuned_service.bases.packaged import find_gguf, packaged_base
from finetuned_service.bases.publish import building
from finetuned_service.errors import AlreadyExists, InvalidField
from finetuned_service.names import BaseName
from finetuned_service.vocabulary import WeightFormat

Progress = Callable[[str, float], None]
"""Called with what is being done now and the fraction of the work that is behind."""

STORED_FORMATS = {
    torch.float32: WeightFormat.FP32,
    torch.float16: WeightFormat.FP16,
    torch.bfloat16: WeightFormat.BF16,
}

TOKENIZER_NOISE = ("is_local", "local_files_only", "name_or_path")
"""Keys that transformers writes into tokenizer_config.json about this machine, not about the tokenizer."""


def _silent(_text: str, _fraction: float) -> None:
    pass


def convert_packaged(base_id: str, directory: Path, progress: Progress = _silent) -> BaseManifest:
    """The packaged base `base_id` as bfloat16 in `directory`, made now if it is not there.

    bfloat16 holds what the GGUF's 4-bit blocks dequantize to in float32 up to rounding to 8 bits of
    significand; nothing is gained by more.

    Args:
        base_id: one of `packaged.PACKAGED_BASES`; also the base's name in the store.
        directory: where the base shall be; its parent is created.
        progress: told what is done at the moment.

    Raises:
        InvalidField: if no packaged base has that id.
        NotFound: if its Python package is not installed; the message says how to install it.
        AlreadyExists: if `directory` holds something else.
    """
    packaged = packaged_base(base_id)
    source = f"{packaged.requirement} (Python package), {Path(packaged.gguf_path).name}"
    with building(directory) as scratch:
        if (existing := _existing(directory, source)) is not None:
            return existing
        progress("checking the packaged file", 0.0)
        gguf = find_gguf(packaged)
        progress("restoring the weights from the packaged 4-bit file", 0.05)
        with _quiet():
            model: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent,
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.bfloat16,
                local_files_only=True,
            )
            # The result is a plain model; as "quantized" it could not be saved.
            model.is_quantized = False
            model.hf_quantizer = None
            vars(model.config).pop("quantization_config", None)
            vars(model.config).pop("_name_or_path", None)
            progress("writing the weights", 0.7)
            model.save_pretrained(scratch)
            progress("restoring the tokenizer", 0.8)
            tokenizer: Any = AutoTokenizer.from_pretrained(
                gguf.parent, gguf_file=gguf.name, local_files_only=True
            )
            tokenizer.save_pretrained(scratch)
        _drop_noise(scratch / "tokenizer_config.json")
        progress("computing the digest", 0.95)
        write_manifest(
            scratch,
            describe_base(
                scratch,
                name=BaseName(base_id),
                weight_format=WeightFormat.BF16,
                source=source,
                recipe=f"{packaged.weights_were} dequantized, rounded to BF16",
                lineage_note=(
                    f"These weights were restored from a 4-bit ({packaged.weights_were}) GGUF file. What that "
                    "rounding took from the original model is gone; quality figures of formats made from this "
                    "base compare with the restored weights, not with the original."
                ),
            ),
        )
    progress("done", 1.0)
    return read_manifest(directory)


def import_directory(
    source: Path, directory: Path, *, name: BaseName | None = None, progress: Progress = _silent
) -> BaseManifest:
    """A causal language model that `save_pretrained` or a model hub left in `source`, as a base.

    Args:
        source: holds config.json, safetensors weights (one file or shards) and tokenizer.json.
        directory: where the base shall be; its parent is created.
        name: the base's name in the store; None is `bases/` and the last part of `directory`.
        progress: told what is done at the moment.

    Raises:
        InvalidField: if `source` is not such a model: what was found, and the remedy.
        Unimplemented: if the architecture is not one this build serves.
        AlreadyExists: if `directory` holds something else.
    """
    name = name or BaseName.parse(f"bases/{directory.name}")
    origin = f"directory {source.resolve().name!r}"
    with building(directory) as scratch:
        if (existing := _existing(directory, origin)) is not None:
            return existing
        progress("checking the files", 0.0)
        check_importable(source)
        progress("reading the weights", 0.1)
        with _quiet():
            model = _load_whole(source)
            dtype: torch.dtype = model.dtype
            _check_finite(model)
            vars(model.config).pop("_name_or_path", None)
            progress("writing the weights", 0.5)
            model.save_pretrained(scratch, max_shard_size="1TB")
        copy_tokenizer(source, scratch)
        progress("computing the digest", 0.8)
        write_manifest(
            scratch,
            describe_base(scratch, name=name, weight_format=STORED_FORMATS[dtype], source=origin),
        )
    progress("done", 1.0)
    return read_manifest(directory)


def _existing(directory: Path, source: str) -> BaseManifest | None:
    if not directory.exists():
        return None
    if not (directory / MANIFEST_FILE).is_file():
        raise AlreadyExists(
            f"{directory.name!r} exists and is not a base (no {MANIFEST_FILE}); move it away, or choose another name"
        )
    manifest = read_manifest(directory)
    if manifest.source != source:
        raise AlreadyExists(
            f"{manifest.name} exists and was made from {manifest.source}; delete it, or choose another name"
        )
    return manifest


def _load_whole(source: Path) -> Any:
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, RuntimeError, ValueError, KeyError, StrictDataclassError) as error:
        raise InvalidField.one(
            "source", f"transformers cannot load the weights into the class that config.json names: {error}"
        ) from error
    model, info = loaded
    for fault, names in (("lacks", info["missing_keys"]), ("has unknown", info["unexpected_keys"])):
        if names:
            shown = ", ".join(sorted(names)[:5])
            raise InvalidField.one(
                "source",
                f"the checkpoint {fault} tensors ({len(names)}: {shown}); all of the model's and no others are "
                "expected: save it again with `model.save_pretrained(directory)`",
            )
    if model.dtype not in STORED_FORMATS:
        raise InvalidField.one(
            "source", f"the weights are {model.dtype}; allowed: {', '.join(STORED_FORMATS.values())}"
        )
    return model


def _check_finite(model: Any) -> None:
    for name, tensor in model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidField.one(
                "source", f"tensor {name!r} holds NaN or infinite values; get the checkpoint again"
            )


def _drop_noise(path: Path) -> None:
    settings: dict[str, Any] = json.loads(path.read_bytes())
    kept = {key: value for key, value in settings.items() if key not in TOKENIZER_NOISE}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """No progress bars of transformers: they would cut through those of the command line.

    The GGUF reader's bar has no switch, so standard error is held back; failures are exceptions.
    """
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
