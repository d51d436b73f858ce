"""Rows: what is accepted, what is refused and in which words, and the canonical spelling."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finetuned_service.datasets.rows import (
    Chat,
    ChatMessage,
    PromptCompletion,
    Row,
    RowKind,
    Text,
    kind_of,
    parse_row,
    read_rows,
    to_json,
)
from finetuned_service.errors import InvalidData
from finetuned_service.text.values import ROLES
from hypothesis import given
from hypothesis import strategies as st

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
    ],
)
def test_rows_are_parsed(obj: object, row: Row, kind: RowKind) -> None:
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
            "the row has no fields; expected {prompt, completion} or {messages} or {text}",
        ),
        (
            {"label": 1, "image": 2},
            "the row has the fields 'label', 'image'; expected {prompt, completion} or {messages} or {text}",
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
    assert len(message) < 300
    many = refusal({f"f{n}": n for n in range(100_000)})
    assert "'f7' and 99992 more" in many
    assert len(many) < 300


CONTENT = st.text(min_size=1).filter(lambda text: bool(text.strip()))
TURNS = st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3).map(
    lambda pairs: Chat(
        tuple(
            m for asked, told in pairs for m in (ChatMessage("user", asked), ChatMessage("assistant", told))
        )
    )
)
ROWS = st.one_of(st.builds(PromptCompletion, st.text(), CONTENT), st.builds(Text, CONTENT), TURNS)


@given(row=ROWS)
def test_canonical_spelling_round_trips_on_one_line(row: Row) -> None:
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
    assert expected == set(RowKind)
