"""How bases get into the store: from a packaged GGUF file, or from a directory of Hugging Face's kind,
which a hub or an object store is fetched into first.

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
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as transformers_logging

from finetuned_service.bases.family import ENCODER_CLASSES
from finetuned_service.bases.fetch import Progress, fetch_files, require_room
from finetuned_service.bases.importable import check_importable, copy_tokenizer, is_weights
from finetuned_service.bases.inputs import declare_inputs
from finetuned_service.bases.load import called_plainly
from finetuned_service.bases.manifest import (
    CONFIG_FILE,
    MANIFEST_FILE,
    BaseManifest,
    describe_base,
    read_config,
    read_manifest,
    write_manifest,
)
from finetuned_service.bases.packaged import PackagedBase, find_weights, packaged_base
from finetuned_service.bases.publish import building, staging
from finetuned_service.bases.source import (
    BaseSource,
    DirectorySource,
    HubSource,
    PackagedSource,
    RemoteSource,
    refuse_other,
)
from finetuned_service.errors import AlreadyExists, InvalidField
from finetuned_service.names import BaseName
from finetuned_service.storage.files import refusing_full_disk
from finetuned_service.vocabulary import WeightFormat

STORED_FORMATS = {
    torch.float32: WeightFormat.FP32,
    torch.float16: WeightFormat.FP16,
    torch.bfloat16: WeightFormat.BF16,
}

TOKENIZER_NOISE = ("is_local", "local_files_only", "name_or_path")
"""Keys that transformers writes into tokenizer_config.json about this machine, not about the tokenizer."""

_BF16_OVER_GGUF = 4
"""16 bits instead of 4 and the scales of their blocks."""


def _silent(_text: str, _fraction: float) -> None:
    pass


def convert_packaged(base_id: str, directory: Path, progress: Progress = _silent) -> BaseManifest:
    """The packaged base `base_id` in `directory`, under its own name; see `add_base`."""
    source = PackagedSource(packaged_base(base_id))
    return add_base(source, directory, name=BaseName(base_id), progress=progress)


def import_directory(
    source: Path, directory: Path, *, name: BaseName | None = None, progress: Progress = _silent
) -> BaseManifest:
    """The model in the directory `source`; None names it `bases/` and the last part of `directory`."""
    name = name or BaseName.parse(f"bases/{directory.name}")
    return add_base(DirectorySource(source), directory, name=name, progress=progress)


def add_base(
    source: BaseSource,
    directory: Path,
    *,
    name: BaseName,
    expected_digest: str = "",
    progress: Progress = _silent,
) -> BaseManifest:
    """The base that `source` holds, in `directory`; made now if it is not there.

    Args:
        source: a causal language model: config.json, safetensors (one file or shards), tokenizer.json; or
            a packaged one.
        directory: where the base shall be; its parent is created.
        name: the base's name in the store.
        expected_digest: the base's digest ("sha256:…"); "" takes what is found.
        progress: told what is done at the moment.

    Raises:
        InvalidField: `source` is not such a model, cannot be read, or has another digest.
        Unimplemented: if the architecture is not one this build serves.
        NotFound: if its Python package is not installed; the message says how to install it.
        AlreadyExists: if `directory` holds something else.
        ResourceExhausted: the disk has no room for it.
        Unavailable: the source cannot be reached, or broke off.
    """
    with refusing_full_disk(), building(directory) as scratch:
        if (existing := _existing(directory, source, expected_digest)) is not None:
            return existing
        match source:
            case PackagedSource(packaged) if packaged.weights_were:
                about = _restore(packaged, scratch, progress)
            case PackagedSource(packaged):
                about = _rewrite(find_weights(packaged).parent, scratch, progress)
            case DirectorySource(path):
                about = _rewrite(path, scratch, progress)
            case HubSource() | RemoteSource():
                with staging(directory) as fetched:
                    commit = fetch_files(
                        source, fetched, lambda what, fraction: progress(what, 0.5 * fraction)
                    )
                    about = _rewrite(
                        fetched, scratch, lambda what, fraction: progress(what, 0.5 + 0.5 * fraction)
                    )
                fetched_at = f"fetched at commit {commit}" if commit else ""
                about["recipe"] = "; ".join(filter(None, (fetched_at, about["recipe"])))
        progress("computing the digest", 0.95)
        manifest = describe_base(scratch, name=name, source=source.origin, **about)
        if expected_digest not in {"", manifest.digest}:
            raise InvalidField.one(
                "digest",
                f"is {expected_digest}; the base in {source.origin} has {manifest.digest}. Nothing was put in "
                "place: if it is the base that you mean, give its digest, else correct the source",
            )
        write_manifest(scratch, manifest)
    progress("done", 1.0)
    return read_manifest(directory)


def _restore(packaged: PackagedBase, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Write a packaged base as bfloat16, which holds what the GGUF's 4-bit blocks dequantize to in float32
    up to rounding to 8 bits of significand; nothing is gained by more. Returns what the manifest says.
    """
    progress("checking the packaged file", 0.0)
    gguf = find_weights(packaged)
    require_room(scratch, _BF16_OVER_GGUF * gguf.stat().st_size)
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
    return {
        "weight_format": WeightFormat.BF16,
        "recipe": f"{packaged.weights_were} dequantized, rounded to BF16",
        "lineage_note": (
            f"These weights were restored from a 4-bit ({packaged.weights_were}) GGUF file. What that "
            "rounding took from the original model is gone; quality figures of formats made from this "
            "base compare with the restored weights, not with the original."
        ),
    }


def _rewrite(source: Path, scratch: Path, progress: Progress) -> dict[str, Any]:
    """Check a model of Hugging Face's kind and write it anew; returns what the manifest says."""
    progress("checking the files", 0.0)
    check_importable(source)
    require_room(scratch, sum(path.stat().st_size for path in source.iterdir() if is_weights(path.name)))
    progress("reading the weights", 0.1)
    with _quiet():
        model, left_behind = _load_whole(source)
        dtype: torch.dtype = model.dtype
        _check_finite(model)
        vars(model.config).pop("_name_or_path", None)
        _say_what_is_tied(model)
        progress("writing the weights", 0.5)
        with _blaming("save", OSError):
            model.save_pretrained(scratch, max_shard_size="1TB")
    _add_inputs(source, scratch)
    copy_tokenizer(source, scratch)
    return {"weight_format": STORED_FORMATS[dtype], "recipe": left_behind}


def _add_inputs(source: Path, scratch: Path) -> None:
    """Write what an encoder expects of its inputs into the base's config.json."""
    added = declare_inputs(source, read_config(source))
    if added:
        config = read_config(scratch) | added
        (scratch / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _existing(directory: Path, source: BaseSource, expected_digest: str) -> BaseManifest | None:
    if not directory.exists():
        return None
    if not (directory / MANIFEST_FILE).is_file():
        raise AlreadyExists(
            f"{directory.name!r} exists and is not a base (no {MANIFEST_FILE}); move it away, or choose another name"
        )
    manifest = read_manifest(directory)
    refuse_other(manifest, source, expected_digest)
    return manifest


def _load_whole(source: Path) -> tuple[Any, str]:
    """The model, and what of the checkpoint is left behind."""
    config = read_config(source)
    encoder = ENCODER_CLASSES.get(config["model_type"])
    automatic: Any = AutoModelForCausalLM if encoder is None else AutoModel
    options = {"add_pooling_layer": False} if encoder is not None and encoder.has_pooling_layer else {}
    with _blaming("load the weights into"):
        loaded: Any = automatic.from_pretrained(
            source,
            dtype="auto",
            # Whatever config.json asks for: the engine has its own.
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **called_plainly(config),
            **options,
        )
    model, info = loaded
    unexpected = set(info["unexpected_keys"])
    head = set[str]() if encoder is None else _of_heads(source, encoder.name, unexpected)
    for fault, names in (("lacks", info["missing_keys"]), ("has unknown", unexpected - head)):
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
    return model, f"without its head ({', '.join(sorted(head)[:5])})" if head else ""


@contextlib.contextmanager
def _blaming(what: str, *others: type[Exception]) -> Generator[None]:
    """Whatever transformers raises there comes of somebody's files: of settings that contradict each other it has many
    kinds of errors. `others` do not.
    """
    try:
        yield
    except (MemoryError, *others):
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise InvalidField.one(
            "source", f"transformers cannot {what} the class that config.json names: {said}"
        ) from error


def _say_what_is_tied(model: Any) -> None:
    """Of a checkpoint that ties its head to the embedding and brings one of its own, transformers keeps both: so says
    config.json.
    """
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False


def _of_heads(source: Path, class_name: str, unexpected: set[str]) -> set[str]:
    """Those that belong to a head over the encoder and not to the encoder itself."""
    pooling = {name for name in unexpected if name.rpartition("pooler.")[1]}
    return pooling if read_config(source)["architectures"] == [class_name] else unexpected


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
    """No progress bars and no reports of transformers: they would cut through those of the command line.

    The GGUF reader's bar has no switch, so standard error is held back; failures are exceptions.
    """
    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()
