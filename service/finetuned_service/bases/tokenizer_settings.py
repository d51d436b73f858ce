"""Whether the tokenizer_config.json and the tokenizer.json of a model agree on letters and spaces. Torch-free.

Text is encoded as tokenizer.json says. Some classes of transformers make parts of it anew from tokenizer_config.json, or from
what is usual for the class, so that `AutoTokenizer`, and whoever trained with it, gets other ids where the two disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finetuned_service.bases.json_files import read_object
from finetuned_service.errors import InvalidField

SENTENCE_FILE = "sentence_bert_config.json"
_Object = Mapping[str, Any]


class _Setting(NamedTuple):
    """One that both files have."""

    key: str
    """In tokenizer_config.json."""
    wanted: Any
    """Its value there, or the class's own."""
    found: Any
    """What tokenizer.json does; None: it has no such part."""


def check_tokenizer(source: Path, config: _Object) -> None:
    """Refuse a tokenizer.json that the files beside it contradict, where transformers and sentence-transformers take their word.

    Args:
        source: with tokenizer.json; tokenizer_config.json and sentence_bert_config.json are read where they exist.
        config: config.json.

    Raises:
        InvalidField: they do; names the setting and both values.
    """
    path = source / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    tokenizer = read_object(source / "tokenizer.json")
    _check_sentences(source, tokenizer)
    name = _class_name(settings, config)
    if (read := _CLASSES.get(name)) is None:
        return
    for key, wanted, found in read(settings, tokenizer):
        if wanted is found:
            continue
        who = "" if settings.get(key) is not None else f", which {name} takes where the file does not say"
        raise InvalidField.one(
            "source",
            f"its tokenizer_config.json has {key} {wanted}{who}, its tokenizer.json {found or False}; transformers takes the "
            f"first, so it would make other tokens. Correct the one that is wrong: {key} in tokenizer_config.json, or "
            "tokenizer.json by `AutoTokenizer.from_pretrained(directory).save_pretrained(directory)`",
        )


def _check_sentences(source: Path, tokenizer: _Object) -> None:
    path = source / SENTENCE_FILE
    if not path.is_file() or not read_object(path).get("do_lower_case"):
        return
    normalizer = tokenizer.get("normalizer")
    if _part(normalizer, "Lowercase") is None and not (_part(normalizer, "BertNormalizer") or {}).get(
        "lowercase"
    ):
        raise InvalidField.one(
            "source",
            f"its {SENTENCE_FILE} has do_lower_case True, its tokenizer.json False; sentence-transformers takes the first, so "
            "it would make other tokens: set do_lower_case to false, or put a Lowercase into tokenizer.json's normalizer",
        )


def _class_name(settings: _Object, config: _Object) -> str:
    """Of transformers' class, as `AutoTokenizer` finds it; "" for one that takes tokenizer.json as it is."""
    model_type = config.get("model_type")
    if model_type == "mistral":
        return ""
    if model_type == "qwen2":
        return "Qwen2Tokenizer"
    named = (
        settings.get("tokenizer_class")
        or config.get("tokenizer_class")
        or _USUAL_CLASSES.get(str(model_type), "")
    )
    return str(named).removesuffix("Fast")


def _bert(settings: _Object, tokenizer: _Object) -> Iterator[_Setting]:
    normalizer = _part(tokenizer.get("normalizer"), "BertNormalizer") or {}
    lower, found_lower = settings.get("do_lower_case", True), normalizer.get("lowercase")
    yield _Setting("do_lower_case", lower, found_lower)
    accents, found_accents = settings.get("strip_accents"), normalizer.get("strip_accents")
    # Not said, accents go where capitals go.
    yield _Setting(
        "strip_accents",
        lower if accents is None else accents,
        found_lower if found_accents is None else found_accents,
    )
    yield _Setting(
        "tokenize_chinese_chars",
        settings.get("tokenize_chinese_chars", True),
        normalizer.get("handle_chinese_chars"),
    )


def _byte_level(settings: _Object, tokenizer: _Object) -> Iterator[_Setting]:
    cut = _part(tokenizer.get("pre_tokenizer"), "ByteLevel") or {}
    yield _Setting(
        "add_prefix_space", settings.get("add_prefix_space") or False, cut.get("add_prefix_space", False)
    )


def _sentence_pieces(settings: _Object, tokenizer: _Object) -> Iterator[_Setting]:
    cut = _part(tokenizer.get("pre_tokenizer"), "Metaspace") or {}
    yield _Setting("add_prefix_space", settings.get("add_prefix_space", True), _prepends(cut))


def _albert(settings: _Object, tokenizer: _Object) -> Iterator[_Setting]:
    yield from _sentence_pieces(settings, tokenizer)
    normalizer = tokenizer.get("normalizer")
    lowers, strips = (_part(normalizer, kind) is not None for kind in ("Lowercase", "StripAccents"))
    yield _Setting("do_lower_case", settings.get("do_lower_case", True), lowers)
    yield _Setting("keep_accents", settings.get("keep_accents", False), not strips)


def _llama(settings: _Object, tokenizer: _Object) -> Iterator[_Setting]:
    wanted = settings.get("add_prefix_space")
    cut = _part(tokenizer.get("pre_tokenizer"), "Metaspace")
    by_normalizer = _part(tokenizer.get("normalizer"), "Prepend") is not None
    # Of bytes transformers takes tokenizer.json as it is.
    if wanted is not None and _part(tokenizer.get("pre_tokenizer"), "ByteLevel") is None:
        yield _Setting(
            "add_prefix_space", wanted, by_normalizer or (cut is not None and bool(_prepends(cut)))
        )


def _prepends(metaspace: _Object) -> Any:
    """Whether a space comes before every word; "first": before the first one alone."""
    scheme = metaspace.get("prepend_scheme")
    if scheme is None:
        return metaspace.get("add_prefix_space")
    return {"always": True, "never": False}.get(scheme, scheme)


def _part(steps: Any, kind: str) -> _Object | None:
    """The step of that kind in a normalizer or pre-tokenizer of tokenizer.json, alone or in a sequence."""
    match steps:
        case {"type": "Sequence", **rest}:
            inner = rest.get("normalizers") or rest.get("pretokenizers") or []
            return next((found for step in inner if (found := _part(step, kind)) is not None), None)
        case {"type": name} if name == kind:
            return steps
        case _:
            return None


_CLASSES: Mapping[str, Callable[[_Object, _Object], Iterator[_Setting]]] = {
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), _bert),
    **dict.fromkeys(("GPT2Tokenizer", "RobertaTokenizer", "Qwen2Tokenizer"), _byte_level),
    **dict.fromkeys(("CamembertTokenizer", "XLMRobertaTokenizer"), _sentence_pieces),
    "AlbertTokenizer": _albert,
    "LlamaTokenizer": _llama,
}
_USUAL_CLASSES = {
    **dict.fromkeys(("bert", "distilbert", "electra"), "BertTokenizer"),
    "albert": "AlbertTokenizer",
    "camembert": "CamembertTokenizer",
    "gpt2": "GPT2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
}
"""Model type → the class where no file names one."""
