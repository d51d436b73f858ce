"""Loads a base, whatever its format: for measuring, and for the engine that serves it.

Importing this module also teaches transformers the `quant_method` of INT8 bases, so that a plain
`AutoModelForCausalLM.from_pretrained(directory)` loads them as it does any prequantized checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin, QuantizationMethod

from finetuned_service.bases.device import CPU
from finetuned_service.bases.family import ENCODER_CLASSES
from finetuned_service.bases.int8 import METHOD, Int8Embedding, Int8Linear
from finetuned_service.bases.manifest import WEIGHTS_FILE, read_config
from finetuned_service.bases.resident import put_on
from finetuned_service.digests import read_safetensors_header

_CALLED_PLAINLY: Mapping[str, Any] = {
    "return_dict": True,
    "chunk_size_feed_forward": 0,
    "output_attentions": False,
    "output_hidden_states": False,
}
"""Outputs have names and are what is asked for; inputs have any length."""


def called_plainly(config: Mapping[str, Any]) -> dict[str, Any]:
    """What overrides those settings of a config.json that say how a model is called, not what it computes."""
    return {key: value for key, value in _CALLED_PLAINLY.items() if key in config}


def dtype_of(model: Any) -> torch.dtype:
    """In which a base of transformers computes: that of its frozen parameters, whatever trains in their places."""
    frozen = (p.dtype for p in model.parameters() if not p.requires_grad and p.is_floating_point())
    found: torch.dtype = next(frozen, model.dtype)
    return found


def load_base(
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    device: torch.device = CPU,
) -> Any:
    """The model in `directory`, in eval mode; on a CPU its tensors are mapped from the file where they are not cast,
    on a GPU they are those that a server beside this process holds, where it has told of them (`resident.py`).

    Linear modules of an INT8 base are `Int8Linear`, those of an NF4 base `Nf4Linear`; both are `nn.Linear`. No forward
    rewrites their weights, in whatever mode.

    Args:
        directory: a base in the store: a causal LM with its head, an encoder without one.
        dtype: of everything that is not packed, and of the computation; None is as stored.
        attn_implementation: transformers' name of one; None takes its default.
        device: where it goes.
    """
    config = read_config(directory)
    encoder = ENCODER_CLASSES.get(config["model_type"])
    automatic: Any = AutoModelForCausalLM if encoder is None else AutoModel
    options: dict[str, Any] = (
        {"add_pooling_layer": False} if encoder is not None and encoder.has_pooling_layer else {}
    )
    options |= called_plainly(config)
    quantization = config.get("quantization_config") or {}
    packed = quantization.get("quant_method") == "bitsandbytes"
    if packed and torch.cuda.is_available():
        options["device_map"] = {"": "cpu"}  # else transformers puts it on a GPU, whatever is asked for
    model: Any = automatic.from_pretrained(
        directory,
        dtype=dtype or "auto",
        attn_implementation=attn_implementation,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        **options,
    )
    if packed:
        from finetuned_service.bases.nf4 import replace_4bit  # noqa: PLC0415 - slow to import, and only NF4 needs it

        replace_4bit(model)
    put_on(model, device, directory)
    return model.eval()


def stored_tensors(model: nn.Module, directory: Path) -> dict[str, Callable[[], Tensor]]:
    """For each tensor of model.safetensors, how to read it from memory: what a digest of the resident
    base is taken over.

    Ask before modules are wrapped, since the file's names are those of the bare model; the readers keep
    working afterwards.

    Args:
        model: from `load_base`, in the dtype it is stored in.
        directory: where it was loaded from.
    """
    readers: dict[str, Callable[[], Tensor]] = {}
    for info in read_safetensors_header(directory / WEIGHTS_FILE):
        module, packed, part = info.name.partition(".weight.")
        if packed:  # bitsandbytes keeps a 4-bit weight's scales in an object beside it
            readers[info.name] = partial(_packed_part, model.get_submodule(module), part)
        else:
            module, _, attribute = info.name.rpartition(".")
            readers[info.name] = partial(getattr, model.get_submodule(module), attribute)
    return readers


def _packed_part(linear: Any, part: str) -> Tensor:
    parts: dict[str, Tensor] = linear.weight.quant_state.as_dict(packed=True)
    return parts[part]


@torch.no_grad()
def dense_weight(linear: nn.Module) -> Tensor:
    """The weight `[out, in]` of a linear module of a base, in the dtype it computes in; a packed one is unpacked."""
    module: Any = linear
    if isinstance(linear, Int8Linear):
        return linear.unpacked()
    if hasattr(module.weight, "quant_state"):
        from finetuned_service.bases.nf4 import dequantize_blocks  # noqa: PLC0415 - slow to import, and only NF4 needs it

        return dequantize_blocks(module.weight, module.weight.quant_state)
    weight: Tensor = module.weight
    return weight


class Int8Config(QuantizationConfigMixin):
    """`quantization_config` of an INT8 base; its attributes are what config.json holds."""

    def __init__(self, *, quant_method: str = METHOD, modules_to_not_convert: Sequence[str] = ()) -> None:
        # transformers' own list of methods is closed; its registry accepts any string.
        self.quant_method = cast("QuantizationMethod", quant_method)
        self.modules_to_not_convert = list(modules_to_not_convert)


class Int8Quantizer(HfQuantizer):
    """transformers' hook between building a model on the meta device and filling it from the file."""

    quantization_config: Int8Config

    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  # untyped there
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]  # untyped there
        return False

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        kept = set(self.quantization_config.modules_to_not_convert)
        for name, module in list(model.named_modules()):
            if name not in kept and (replacement := _replacement(module)) is not None:
                model.set_submodule(name, replacement)
        # A scale is tied wherever its weight is.
        model.all_tied_weights_keys |= {
            f"{target}_scale": f"{source}_scale"
            for target, source in model.all_tied_weights_keys.items()
            if target.removesuffix(".weight") not in kept
        }


def _replacement(module: nn.Module) -> nn.Module | None:
    match module:
        case nn.Linear():
            return Int8Linear(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,  # pyright: ignore[reportUnnecessaryComparison]  # torch's annotation leaves None out
                dtype=module.weight.dtype,
                device=module.weight.device,
            )
        case Conv1D():
            # Quantized weights lie as [out, in], here as in bitsandbytes.
            in_features, out_features = module.weight.shape
            return Int8Linear(
                in_features,
                out_features,
                bias=True,
                dtype=module.weight.dtype,
                device=module.weight.device,
            )
        case nn.Embedding():
            return Int8Embedding(
                module.num_embeddings,
                module.embedding_dim,
                dtype=module.weight.dtype,
                device=module.weight.device,
            )
        case _:
            return None


# Called, not used as decorators: those would hide the classes' types.
register_quantization_config(METHOD)(Int8Config)
register_quantizer(METHOD)(Int8Quantizer)
