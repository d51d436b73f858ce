"""What `base_source` understands, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuned_service.bases.packaged import PACKAGED_BASES
from finetuned_service.bases.source import (
    DirectorySource,
    HubSource,
    PackagedSource,
    RemoteSource,
    default_name,
    parse_source,
)
from finetuned_service.errors import InvalidField
from finetuned_service.settings import Settings
from pydantic import ValidationError

SMOLLM2 = PackagedSource(PACKAGED_BASES["smollm2-135m-instruct"])


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        ("/models/My_Model.v2", DirectorySource(Path("/models/My_Model.v2")), "my-model-v2"),
        ("models/x", DirectorySource(Path("models/x")), "x"),
        ("file:///models/a%20b/x", DirectorySource(Path("/models/a b/x")), "x"),
        ("smollm2-135m-instruct", SMOLLM2, "smollm2-135m-instruct"),
        ("packaged:smollm2-135m-instruct", SMOLLM2, "smollm2-135m-instruct"),
        ("hf://acme/Tiny-1.5", HubSource("acme/Tiny-1.5", "main"), "tiny-1-5"),
        ("hf://acme/tiny@refs/pr/3", HubSource("acme/tiny", "refs/pr/3"), "tiny"),
        ("s3://models/tiny/v1/", RemoteSource("s3://models/tiny/v1"), "v1"),
        ("memory://models/tiny", RemoteSource("memory://models/tiny"), "tiny"),
    ],
)
def test_every_kind_of_source_is_read(text, source, name):
    assert parse_source(text) == source
    assert default_name(source) == name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; allowed: a directory"),
        ("packaged:gpt-9", "no packaged base is called 'gpt-9'"),
        ("hf://tiny", "expected hf://org/name"),
        ("hf://acme/tiny/file.bin", "expected hf://org/name"),
        ("file://models/x", "three slashes"),
        ("s3:models/x", "allowed: a directory"),
        ("s3://models/x?versionId=3", "allowed: a directory"),
    ],
)
def test_a_source_that_is_none_is_refused(text, message):
    with pytest.raises(InvalidField, match=message):
        parse_source(text)


def test_credentials_in_a_source_are_refused_and_not_told_again():
    with pytest.raises(InvalidField, match=r"credentials in it.*environment") as caught:
        parse_source("s3://AKIAKEY:secret@models/tiny")
    assert "secret" not in caught.value.message
    assert "AKIAKEY" not in caught.value.message


def test_a_source_asks_for_a_name_of_its_own():
    with pytest.raises(ValidationError, match="set base to a name of its own"):
        Settings(base_source="s3://models/tiny")
    assert Settings(base="tiny", base_source="s3://models/tiny").base == "tiny"


def test_a_digest_that_is_none_is_refused():
    with pytest.raises(ValidationError, match="base_digest"):
        Settings(base_digest="sha256:1234")
