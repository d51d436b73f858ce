"""Small real tokenizers in a base's file layout, trained on a few sentences in milliseconds.

Two families: byte-level BPE (GPT-2, Llama 3, SmolLM) and BPE with byte fallback (Llama 2, Gemma).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = (
    "You are a helpful assistant that answers in one line.",
    "system user assistant: please deploy version v0.8.1 of uploader to production",
    "what's the weather like in Paris today? It's sunny, 21 degrees.",
    "Größe, façade, naïve, Ελληνικά, русский, 日本語, 👩‍👩‍👧 🎉",
    'def add(a, b):\n    return a + b\n\n{"key": [1, 2, 3]}',
    "\n\n\n\n a \n\n\n\n b \n\n c \n\n",  # so that newlines merge, as they do in real vocabularies
)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

BRACKETS = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('system turns are not supported') }}{% endif %}{% endfor %}"
)


def byte_level() -> Tokenizer:
    """Byte-level BPE with ChatML's control tokens; `<|endoftext|>` is 0, `<|im_end|>` is 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # Added tokens that are no control tokens are decoded, each in a way of its own.
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("two words"), AddedToken("Gruß")])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """BPE on characters with `<0x00>` to `<0xFF>` for the others, as in Llama 2; `</s>` is 2."""
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=200, show_progress=False, limit_alphabet=50)
    trained.train_from_iterator(CORPUS, trainer)
    learned: dict[str, Any] = json.loads(trained.to_str())["model"]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]
    tokenizer = Tokenizer(
        models.BPE(
            {word: place for place, word in enumerate(words)},
            [(left, right) for left, right in learned["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def write_tokenizer(
    directory: Path,
    tokenizer: Tokenizer | None = None,
    *,
    template: str | None = CHATML,
    eos_token: str = "<|im_end|>",
    **config: Any,
) -> Path:
    """Write the files of a base that say what text is; returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level()).save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos_token, **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory


def write_byte_fallback(directory: Path, *, template: str | None = BRACKETS) -> Path:
    return write_tokenizer(directory, byte_fallback(), template=template, eos_token="</s>", bos_token="<s>")
