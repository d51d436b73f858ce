"""What a constraint may be: refused before anything runs, with what was found and what is allowed."""

from __future__ import annotations

import json

import pytest
from finetuned_service.errors import InvalidField
from finetuned_service.text.grammar import json_schema_grammar, regex_grammar
from finetuned_service.text.repetitions import repeated_characters

FIELD = "generate.json_schema"


def nested(levels):
    schema = '{"type": "string"}'
    for _ in range(levels):
        schema = f'{{"type": "array", "items": {schema}}}'
    return schema


ALLOWED_SCHEMAS = {
    "anything": {},
    "an object": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "itself": {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"},
    "very many items": {"type": "array", "items": {"type": "string"}, "minItems": 10**9, "maxItems": 10**9},
    "very long": {"type": "string", "minLength": 10**6},
    "many choices": {"enum": [f"choice {i}" for i in range(2000)]},
    "a property called pattern": {"properties": {"pattern": {"type": "string"}}},
}
REFUSED_SCHEMAS = {
    "no JSON": ("{", "is not a JSON schema"),
    "no object": ("[]", "is not a JSON schema"),
    "true": ("true", "is not a JSON schema"),
    "empty": ("", "is empty; leave it unset"),
    "unknown type": ('{"type": "strin"}', "cannot be kept to: Invalid type: strin"),
    "fetched": ('{"$ref": "http://example.com/a.json"}', "cannot be kept to"),
    "nowhere": ('{"$ref": "#/$defs/none"}', "cannot be kept to"),
    "only itself": ('{"$ref": "#"}', "allows no reply at all"),
    "what cannot be kept to": (
        '{"not": {"type": "string"}}',
        'cannot be kept to: Unimplemented keys: ["not"]',
    ),
    "lenient by itself": ('{"x-guidance": {"lenient": true}, "uniqueItems": true}', "uniqueItems"),
    "too long": (json.dumps({"enum": ["x" * 70_000]}), "bytes; allowed: up to 65536"),
    "too deep": (nested(1500), "is not a JSON schema"),
    "brackets": ("[" * 60_000, "is not a JSON schema"),
    "combinations": (
        json.dumps(
            {
                "allOf": [
                    {
                        "anyOf": [
                            {"properties": {f"p{i}": {"type": "string"}}},
                            {"properties": {f"q{i}": {"type": "integer"}}},
                        ]
                    }
                    for i in range(16)
                ]
            }
        ),
        "too large",
    ),
    "explosive pattern": ('{"type": "string", "pattern": "^(a{1000}){1000}$"}', "repeats 1000000 characters"),
    "explosive key": ('{"patternProperties": {"(a{1000}){1000}": {}}}', "repeats 1000000 characters"),
    "look-ahead": ('{"type": "string", "pattern": "(?=a)b"}', "look-around"),
}
REFUSED_PATTERNS = {
    "unclosed": ("(", "unclosed group"),
    "explosive": (
        "(a{1000}){1000}",
        "repeats 1000000 characters when its counted repetitions are written out",
    ),
    "explosive, in between": ("((a{30}b){30}c){30}", "allowed: up to 10000"),
    "explosive, without an upper count": ("(a{100,}){50}", "repeats 50000 characters"),
    "explosive, with a space": ("(?x) (a{1000}) {1000}", "uses the flag x"),
    "backreference": (r"(a)\1", "backreferences are not supported"),
    "look-behind": ("(?<=a)b", "look-around"),
    "matches nothing": (r"[^\s\S]", "allows no reply at all"),
    "too long": ("a" * 16_385, "has 16385 bytes of regular expressions; allowed: up to 16384"),
    "far too long": ("a" * 65_537, "has 65537 bytes; allowed: up to 65536"),
}


@pytest.mark.parametrize("name", ALLOWED_SCHEMAS)
def test_a_schema_that_can_be_kept_to_is_a_grammar(name):
    assert json_schema_grammar(json.dumps(ALLOWED_SCHEMAS[name]), FIELD)


@pytest.mark.parametrize("name", REFUSED_SCHEMAS)
def test_a_schema_that_cannot_is_refused(name):
    schema, said = REFUSED_SCHEMAS[name]
    with pytest.raises(InvalidField) as refusal:
        json_schema_grammar(schema, FIELD)
    assert said in refusal.value.message
    assert [violation.field for violation in refusal.value.violations] == [FIELD]
    assert len(refusal.value.message) < 500


@pytest.mark.parametrize("pattern", [r"\d{4}-\d{2}-\d{2}", "yes|no", r"(- .{1,80}\n){1,20}", r"\p{Greek}+"])
def test_a_pattern_that_can_be_kept_to_is_a_grammar(pattern):
    assert regex_grammar(pattern, "generate.regex")


@pytest.mark.parametrize("after_space", [False, True])
@pytest.mark.parametrize("pattern", ["a)(b", "a)|(?:.*"])
def test_a_pattern_is_judged_by_itself(pattern, after_space):
    with pytest.raises(InvalidField, match="unopened group"):
        regex_grammar(pattern, "generate.regex", after_space=after_space)


@pytest.mark.parametrize("name", REFUSED_PATTERNS)
def test_a_pattern_that_cannot_is_refused(name):
    pattern, said = REFUSED_PATTERNS[name]
    with pytest.raises(InvalidField) as refusal:
        regex_grammar(pattern, "generate.regex")
    assert said in refusal.value.message
    assert [violation.field for violation in refusal.value.violations] == ["generate.regex"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", 0),
        ("abc[def]+(gh)*", 0),
        (r"\d{4}-\d{2}", 6),
        ("(ab{3}){10}", 40),
        ("a{2,5}b", 5),
        ("(a{3,}){2}", 60),
        ("(a{1000}){1000}", 1_000_000),
        ("(a{1000})+{40}", 40_000),
        (r"(a{1000}\)){1000}", 1_001_000),
        ("(a{1000}[)]){1000}", 1_001_000),
        ("(a{1000}[[x])]){1000}", 1_001_000),
        ("(a{1000}[])]){1000}", 1_001_000),
        (r"(a{1000}[^\])]){1000}", 1_001_000),
        (r"\x{1000}\p{Greek}{3}", 3),
        ("(((a{2}){3}", 6),
        ("a{2}){3}", 5),
        ("a{ 2 }", 2),
        ("{x}{", 0),
        ("a{0}", 1),
        ("\\", 0),
    ],
)
def test_counted_repetitions_are_written_out(pattern, expected):
    assert repeated_characters(pattern) == expected
