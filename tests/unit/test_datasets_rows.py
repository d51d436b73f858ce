"""Rows: what is accepted, what is refused and in which words, and the canonical spelling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetuned_service.datasets.kinds import (
    KIND_OF_TYPE,
    DatasetRow,
    LabelledImage,
    RowKind,
    classes_of,
    kind_of,
    labels_of,
)
from finetuned_service.datasets.rows import parse_row, read_rows, rows_of, stored_rows, to_json
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import (
    ROLES,
    Chat,
    ChatMessage,
    LabelledText,
    LabelledTokens,
    MultiLabelText,
    Pair,
    Preference,
    PromptCompletion,
    Row,
    ScoredPair,
    ScoredText,
    Text,
)
from hypothesis import given
from hypothesis import strategies as st

SHAPES = (
    "{prompt, completion}, {messages}, {text}, {text, label}, {text, labels}, {text, score}, {tokens, tags}, "
    "{anchor, positive}, {sentence1, sentence2, score}, {prompt, chosen, rejected}, {image, label}"
)
USER = {"role": "user", "content": "a"}
ASSISTANT = {"role": "assistant", "content": "b"}
SYSTEM = {"role": "system", "content": "c"}


@pytest.mark.parametrize(
    ("obj", "row", "kind"),
    [
        ({"completion": "b", "prompt": "a"}, PromptCompletion("a", "b"), RowKind.PROMPT_COMPLETION),
        ({"prompt": "", "completion": " b\n"}, PromptCompletion("", " b\n"), RowKind.PROMPT_COMPLETION),
        ({"text": "a"}, Text("a"), RowKind.TEXT),
        (
            {"messages": [SYSTEM, USER, ASSISTANT]},
            Chat((ChatMessage("system", "c"), ChatMessage("user", "a"), ChatMessage("assistant", "b"))),
            RowKind.CHAT,
        ),
        (
            {"messages": [USER, USER, ASSISTANT, ASSISTANT]},
            Chat((*[ChatMessage("user", "a")] * 2, *[ChatMessage("assistant", "b")] * 2)),
            RowKind.CHAT,
        ),
        ({"text": "a", "label": "x"}, LabelledText("a", "x"), RowKind.LABELLED_TEXT),
        (
            {"text": "a", "text_pair": "b", "label": 1},
            LabelledText("a", "1", "b"),
            RowKind.LABELLED_TEXT,
        ),
        ({"text": "a", "labels": ["y", "x"]}, MultiLabelText("a", ("x", "y")), RowKind.MULTI_LABEL_TEXT),
        ({"text": "a", "labels": []}, MultiLabelText("a", ()), RowKind.MULTI_LABEL_TEXT),
        ({"text": "a", "score": 1}, ScoredText("a", 1.0), RowKind.SCORED_TEXT),
        (
            {"tokens": ["Ada", "Byron", "ran"], "tags": ["B-PER", "I-PER", "O"]},
            LabelledTokens(("Ada", "Byron", "ran"), ("B-PER", "I-PER", "O")),
            RowKind.LABELLED_TOKENS,
        ),
        ({"anchor": "a", "positive": "b"}, Pair("a", "b"), RowKind.PAIR),
        ({"query": "a", "positive": "b", "negative": "c"}, Pair("a", "b", ("c",)), RowKind.PAIR),
        ({"anchor": "a", "positive": "b", "negatives": ["c", "d"]}, Pair("a", "b", ("c", "d")), RowKind.PAIR),
        (
            {"sentence1": "a", "sentence2": "b", "score": -0.5},
            ScoredPair("a", "b", -0.5),
            RowKind.SCORED_PAIR,
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c"},
            Preference((ChatMessage("user", "a"),), "b", "c"),
            RowKind.PREFERENCE,
        ),
        (
            {"messages": [SYSTEM, USER], "chosen": "b", "rejected": "c"},
            Preference((ChatMessage("system", "c"), ChatMessage("user", "a")), "b", "c"),
            RowKind.PREFERENCE,
        ),
        ({"image": "iVA=", "label": "cat"}, LabelledImage(b"\x89P", "cat"), RowKind.LABELLED_IMAGE),
    ],
)
def test_rows_are_parsed(obj: object, row: DatasetRow, kind: RowKind) -> None:
    assert row == parse_row(obj)
    assert kind == kind_of(row)


def refusal(obj: object) -> str:
    with pytest.raises(InvalidData) as caught:
        parse_row(obj)
    return caught.value.message


@pytest.mark.parametrize(
    ("obj", "message"),
    [
        ([], "the row is a list; expected an object"),
        (None, "the row is null; expected an object"),
        (
            {},
            f"the row has no fields; expected one of {SHAPES}",
        ),
        (
            {"name": 1, "year": 2},
            f"the row has the fields 'name', 'year'; expected one of {SHAPES}",
        ),
        (
            {"text": "a", "labl": "b"},
            (
                "unknown field 'labl': a LABELLED_TEXT row has the fields text, label, text_pair; "
                "did you mean 'label'?"
            ),
        ),
        ({"text": "a", "label": ""}, "label is empty; name the class or remove the row"),
        (
            {"text": "a", "label": "cat "},
            "label is 'cat ', with white space at an end, and would be another class than 'cat'; remove it",
        ),
        ({"text": "a", "label": None}, "label is null; expected a string"),
        ({"text": "a", "label": 1.5}, "label is a number; expected a string"),
        (
            {"text": "a", "label": "x" * 257},
            "label has 257 characters; the name of a class has at most 256",
        ),
        ({"text": "a", "labels": "x"}, "labels is a string; expected a list"),
        ({"text": "a", "labels": ["x", "y", "x"]}, "labels has 'x' twice; keep one"),
        ({"text": "a", "score": "1"}, "score is a string; expected a number"),
        ({"text": "a", "score": True}, "score is a boolean; expected a number"),
        (
            {"text": "a", "score": float("nan")},
            "score is nan; expected a finite number: correct it or remove the row",
        ),
        (
            {"text": "a", "score": 10**400},
            "score is inf; expected a finite number: correct it or remove the row",
        ),
        ({"tokens": [], "tags": []}, "tokens is an empty list; expected the words of a sentence"),
        (
            {"tokens": ["a", "b"], "tags": ["O"]},
            "has 2 tokens and 1 tags; each token needs one tag",
        ),
        (
            {"tokens": ["a", " "], "tags": ["O", "O"]},
            "tokens[1] is empty: there is nothing to learn from the row; fill it or remove the row",
        ),
        (
            {"tokens": ["a", "b"], "tags": ["B-LOC", "I-PER"]},
            (
                "tags[1] is 'I-PER' with no entity 'PER' open before it; the first tag of an entity is "
                "'B-PER' (BIO, BIOES) or 'S-PER' (BIOES)"
            ),
        ),
        (
            {"anchor": "a", "positive": "b", "negatives": ["b"]},
            "has its positive among the negatives; remove it there",
        ),
        (
            {"anchor": "a", "positive": "b", "negatives": ["c"], "negative": "c"},
            "has both negative and negatives; keep one",
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            "has the same text chosen and rejected: there is nothing to prefer; remove the row",
        ),
        (
            {"messages": [USER, ASSISTANT], "chosen": "b", "rejected": "c"},
            "messages ends with a assistant turn; what chosen and rejected answer is a user turn",
        ),
        (
            {"image": "iVA", "label": "cat"},
            "image is not base64 (Incorrect padding); expected a whole image file in base64",
        ),
        (
            {"prompt": "a", "completoin": "b"},
            (
                "unknown field 'completoin': a PROMPT_COMPLETION row has the fields prompt, completion; "
                "did you mean 'completion'?"
            ),
        ),
        (
            {"promt": "a", "complete": "b"},
            (
                "unknown field 'promt': a PROMPT_COMPLETION row has the fields prompt, completion; "
                "did you mean 'prompt'?"
            ),
        ),
        (
            {"text": "a", "id": 7},
            "unknown field 'id': a TEXT row has the fields text; remove it",
        ),
        (
            {"message": [USER, ASSISTANT]},
            "unknown field 'message': a CHAT row has the fields messages; did you mean 'messages'?",
        ),
        (
            {"prompt": "a"},
            "lacks the field 'completion': a PROMPT_COMPLETION row has the fields prompt, completion",
        ),
        (
            {"prompt": "a", "completion": "b", "text": "c"},
            "unknown field 'text': a PROMPT_COMPLETION row has the fields prompt, completion; remove it",
        ),
        ({"prompt": 1, "completion": "b"}, "prompt is a number; expected a string"),
        ({"prompt": True, "completion": "b"}, "prompt is a boolean; expected a string"),
        ({"prompt": "a", "completion": None}, "completion is null; expected a string"),
        (
            {"prompt": "a", "completion": ""},
            "completion is empty: there is nothing to learn from the row; fill it or remove the row",
        ),
        (
            {"text": " \n\t"},
            "text is empty: there is nothing to learn from the row; fill it or remove the row",
        ),
        (
            {"text": "ab\ud800"},
            "text has half of a surrogate pair at character 2; write whole characters",
        ),
        ({"messages": "hi"}, "messages is a string; expected a list of {role, content} objects"),
        ({"messages": []}, "messages is an empty list; expected a list of {role, content} objects"),
        ({"messages": [USER, "hi"]}, "messages[1] is a string; expected an object"),
        (
            {"messages": [{"role": "user", "contents": "a"}]},
            "unknown field 'contents': messages[0] has the fields role, content; did you mean 'content'?",
        ),
        (
            {"messages": [{"role": "user"}]},
            "lacks the field 'content': messages[0] has the fields role, content",
        ),
        (
            {"messages": [{"role": "human", "content": "a"}]},
            "messages[0].role is 'human'; allowed: system, user, assistant",
        ),
        (
            {"messages": [{"role": ["user"], "content": "a"}]},
            "messages[0].role is a list; allowed: system, user, assistant",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            "messages[0].content is a list; expected a string",
        ),
        (
            {"messages": [USER, SYSTEM, ASSISTANT]},
            "messages[1] is a system turn; only the first message may be one",
        ),
        (
            {"messages": [SYSTEM, USER]},
            "messages has no assistant turn: there is nothing to learn from the row; add one",
        ),
        (
            {"messages": [SYSTEM, ASSISTANT, USER, ASSISTANT]},
            "messages has an assistant turn before any user turn; begin with what is answered",
        ),
        (
            {"messages": [USER, ASSISTANT, USER]},
            "messages ends with a user turn that nobody answers; end with an assistant turn",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}]},
            "messages[1].content is empty: there is nothing to learn from the row; fill it or remove the row",
        ),
    ],
)
def test_rows_are_refused_in_words_that_help(obj: object, message: str) -> None:
    assert message == refusal(obj)


def test_refusals_stay_short_and_printable_whatever_the_names() -> None:
    message = refusal({"\ud800" * 3 + "x" * 1_000_000: 1})
    assert message.encode().decode() == message
    assert len(message) < 400
    many = refusal({f"f{n}": n for n in range(100_000)})
    assert "'f7' and 99992 more" in many
    assert len(many) < 400


CONTENT = st.text(min_size=1).filter(lambda text: bool(text.strip()))
TURNS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3).map(
    lambda pairs: Chat(
        tuple(
            m for asked, told in pairs for m in (ChatMessage("user", asked), ChatMessage("assistant", told))
        )
    )
)
ROWS = st.one_of(st.builds(PromptCompletion, st.text(), CONTENT), st.builds(Text, CONTENT), TURNS)
LABEL = st.text(min_size=1, max_size=9).map(str.strip).filter(bool)
SCORE = st.floats(allow_nan=False, allow_infinity=False)
OPTIONAL = st.just("") | CONTENT
ALL_ROWS = st.one_of(
    ROWS,
    st.builds(LabelledText, CONTENT, LABEL, OPTIONAL),
    st.builds(MultiLabelText, CONTENT, st.sets(LABEL).map(lambda found: tuple(sorted(found))), OPTIONAL),
    st.builds(ScoredText, CONTENT, SCORE, OPTIONAL),
    st.lists(CONTENT, min_size=1).map(lambda words: LabelledTokens(tuple(words), ("O",) * len(words))),
    st.builds(Pair, CONTENT, st.just("a"), st.lists(st.just("b") | st.just("c")).map(tuple)),
    st.builds(ScoredPair, CONTENT, CONTENT, SCORE),
    st.builds(Preference, CONTENT.map(lambda text: (ChatMessage("user", text),)), st.just("a"), st.just("b")),
    st.builds(LabelledImage, st.binary(min_size=1), LABEL),
)


@given(row=ALL_ROWS)
def test_canonical_spelling_round_trips_on_one_line(row: DatasetRow) -> None:
    spelled = to_json(row)
    assert "\n" not in spelled
    assert row == parse_row(json.loads(spelled))
    assert spelled == to_json(parse_row(json.loads(json.dumps(json.loads(spelled), indent=2))))


def test_canonical_spelling_is_fixed() -> None:
    """Digests of stored datasets depend on these bytes."""
    assert to_json(PromptCompletion('"é"\n', "🎉\u2028")) == '{"prompt":"\\"é\\"\\n","completion":"🎉\u2028"}'
    assert to_json(Text("a / b")) == '{"text":"a / b"}'
    chat = Chat((ChatMessage("user", "a"), ChatMessage("assistant", "b")))
    assert to_json(chat) == (
        '{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}'
    )


@given(rows=st.lists(ROWS, max_size=5))
def test_stored_rows_are_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"".join(to_json(row).encode() + b"\n" for row in rows))
    assert rows == list(read_rows(path))
    assert rows == list(stored_rows(path))


def test_rows_are_read_as_one_class_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text":"a","label":"x"}\n{"text":"b","label":"y"}\n')
    assert list(rows_of(path, LabelledText)) == [LabelledText("a", "x"), LabelledText("b", "y")]
    with pytest.raises(InvalidData, match="line 1 is a LABELLED_TEXT row; expected SCORED_TEXT rows"):
        list(rows_of(path, ScoredText))
    with pytest.raises(InvalidData, match="expected PROMPT_COMPLETION, CHAT or TEXT rows"):
        list(read_rows(path))


def test_labels_are_what_must_be_told_apart() -> None:
    tagged = LabelledTokens(("a", "b", "c", "d", "e"), ("B-PER", "I-PER", "O", "S-LOC", "NN"))
    assert labels_of(tagged) == ("LOC", "NN", "PER")
    assert classes_of(tagged) == ("B-PER", "I-PER", "NN", "O", "S-LOC")
    assert (
        labels_of(MultiLabelText("a", ("x", "y")))
        == classes_of(MultiLabelText("a", ("x", "y")))
        == ("x", "y")
    )
    assert classes_of(LabelledImage(b"", "cat")) == ("cat",)
    assert labels_of(ScoredText("a", 1.0)) == ()


@pytest.mark.parametrize("damage", [b'{"text": "a', b'{"txet":"a"}\n', b"\xff\n", b"\n"])
def test_a_damaged_store_is_told_by_line(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text":"a"}\n' + damage)
    with pytest.raises(InvalidData, match="line 2 of a stored dataset is damaged"):
        list(read_rows(path))


def test_roles_are_the_contracts() -> None:
    assert ROLES == ("system", "user", "assistant")


def test_row_kinds_are_the_contracts() -> None:
    from finetuned.v1 import dataset_service_pb2

    names = dataset_service_pb2.RowKind.keys()
    expected = {name.removeprefix("ROW_KIND_") for name in names} - {"UNSPECIFIED"}
    assert expected == set(RowKind) == set(KIND_OF_TYPE.values())
