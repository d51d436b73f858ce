"""Small random encoders and vision models, saved as transformers saves them, and imported as bases."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetuned_service.bases.convert import import_directory
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, ResNetConfig, ResNetForImageClassification

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "under",
    "over",
    "mat",
    "tree",
    "house",
    "good",
    "bad",
    "fine",
    "awful",
    "happy",
    "sad",
]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
DISTIL_SIZES: dict[str, Any] = {
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}


def word_pieces() -> Tokenizer:
    """BERT's kind: lower case, `[CLS] … [SEP]` around a text, words cut into pieces."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [*SPECIAL, *WORDS, *letters, *(f"##{letter}" for letter in letters), "##s", ".", ","]
    vocabulary = {piece: place for place, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer


def save_encoder(directory: Path, model_type: str = "bert", *, seed: int = 0, **settings: Any) -> Path:
    """A random encoder with a tokenizer of word pieces; returns the directory."""
    tokenizer = word_pieces()
    sizes = DISTIL_SIZES if model_type == "distilbert" else SIZES
    config = AutoConfig.for_model(
        model_type, **{"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0, **sizes, **settings}
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "cls_token": "[CLS]", "sep_token": "[SEP]"})
    )
    return directory


IMAGE_SETTINGS: dict[str, Any] = {
    "size": {"height": 16, "width": 16},
    "resample": 2,
    "image_mean": [0.5],
    "image_std": [0.25],
}


def save_resnet(
    directory: Path,
    *,
    seed: int = 0,
    images: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A random ResNet of one channel under a head of 3 labels; its BatchNorms hold statistics."""
    config = ResNetConfig(
        num_channels=1,
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        num_labels=3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ResNetForImageClassification(config)
        model.train()
        with torch.no_grad():
            for _ in range(3):
                model(pixel_values=torch.randn(8, 1, 16, 16))
        model.eval().to(dtype).save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(
        json.dumps(IMAGE_SETTINGS if images is None else images)
    )
    return directory


VISION_SIZES: dict[str, dict[str, Any]] = {
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
    "convnextv2": {
        "num_stages": 2,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "patch_size": 2,
        "image_size": 16,
    },
    "convnext": {
        "num_stages": 2,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "patch_size": 2,
        "image_size": 16,
    },
}


def save_vision(directory: Path, model_type: str, *, seed: int = 0) -> Path:
    """A random vision model of one channel, without a head; its BatchNorms hold statistics."""
    config = AutoConfig.for_model(model_type, num_channels=1, **VISION_SIZES[model_type])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config).train()
        with torch.no_grad():
            for _ in range(3):
                model(pixel_values=torch.randn(8, 1, 16, 16))
        model.eval().save_pretrained(directory)
    (directory / "preprocessor_config.json").write_text(json.dumps(IMAGE_SETTINGS))
    return directory


def make_vision_base(directory: Path, model_type: str = "resnet", **settings: Any) -> Path:
    """The base's directory; its source lies beside it."""
    if model_type == "resnet":
        return make_resnet_base(directory, **settings)
    source = directory.with_name(f"{directory.name}-source")
    import_directory(save_vision(source, model_type, **settings), directory)
    return directory


def make_encoder_base(directory: Path, model_type: str = "bert", **settings: Any) -> Path:
    """The base's directory; its source lies beside it."""
    import_directory(
        save_encoder(directory.with_name(f"{directory.name}-source"), model_type, **settings), directory
    )
    return directory


def make_resnet_base(directory: Path, **settings: Any) -> Path:
    """The base's directory; its source lies beside it."""
    import_directory(save_resnet(directory.with_name(f"{directory.name}-source"), **settings), directory)
    return directory


def png(values: Sequence[Sequence[int]] | np.ndarray[Any, Any], media_type: str = "image/png") -> bytes:
    """Rows of grey values as an encoded image."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(values, dtype=np.uint8)).save(file, format=media_type.rpartition("/")[2])
    return file.getvalue()


def random_image(seed: int, height: int = 16, width: int = 16) -> bytes:
    """Grey noise as PNG."""
    return png(np.random.default_rng(seed).integers(0, 256, (height, width)))
