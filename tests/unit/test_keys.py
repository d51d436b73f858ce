"""API keys: what is kept, what is refused, and the file that holds them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from finetuned_service.__main__ import main
from finetuned_service.errors import FinetunedError, StartRefused, Unauthenticated
from finetuned_service.tenancy.authenticator import Presented
from finetuned_service.tenancy.caller import Caller, Role, current_caller
from finetuned_service.tenancy.keys import MAX_KEYS, ApiKeys, new_key
from finetuned_service.tenancy.keys_file import KeysFile, read_keys

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def problem_of(call: Callable[[], object]) -> str:
    with pytest.raises(Unauthenticated) as caught:
        call()
    return caught.value.metadata["problem"]


def test_key_is_random_and_only_its_hash_is_kept() -> None:
    made = [new_key("acme", Role.USER, now=NOW, expire_time=None, note="") for _ in range(200)]
    assert len({text for text, _ in made}) == len({key.id for _, key in made}) == 200
    for text, key in made:
        assert re.fullmatch(r"ftk_[a-z2-7]{8}_[a-z2-7]{32}", text)
        secret = text.rpartition("_")[2]
        assert secret not in key.model_dump_json()
        assert key.sha256 not in repr(key)


def test_key_tells_its_tenant_and_role() -> None:
    text, key = new_key("acme", Role.ADMIN, now=NOW, expire_time=None, note="")
    assert ApiKeys(keys=(key,)).caller(text, NOW) == Caller("acme", Role.ADMIN, key.id)


def test_key_expires_to_the_moment() -> None:
    text, key = new_key("acme", Role.USER, now=NOW, expire_time=NOW + DAY, note="")
    keys = ApiKeys(keys=(key,))
    assert keys.caller(text, NOW + DAY - timedelta(microseconds=1)).tenant == "acme"
    assert problem_of(lambda: keys.caller(text, NOW + DAY)) == "EXPIRED"


def test_who_has_no_secret_learns_nothing_of_a_key() -> None:
    """An expired key, one of a deleted tenant and one that never was are the same without their secret."""
    _, expired = new_key("acme", Role.USER, now=NOW, expire_time=NOW, note="")
    _, deleted = new_key("past", Role.USER, now=NOW, expire_time=None, note="")
    keys = ApiKeys(keys=(expired, deleted), deleted_tenants={"past": NOW})
    said = set()
    for key_id in (expired.id, deleted.id, "aaaaaaaa"):
        with pytest.raises(Unauthenticated) as caught:
            keys.caller(f"ftk_{key_id}_{'a' * 32}", NOW)
        said.add((caught.value.message, str(caught.value.metadata)))
    assert len(said) == 1


def test_callers_are_known_in_calls_only() -> None:
    with pytest.raises(LookupError):
        current_caller()


def write(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


KEY = {
    "id": "aaaaaaaa",
    "tenant": "acme",
    "role": "user",
    "sha256": "0" * 64,
    "create_time": "2026-01-01T00:00:00Z",
}


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ("", "its content: Invalid JSON"),
        ("[]", "its content"),
        ('{"keys": [', "Invalid JSON"),
        ({"version": 2}, "version: Input should be 1"),
        ({"kees": []}, "kees: Extra inputs"),
        ({"keys": [{**KEY, "role": "root"}]}, "keys.0.role: Input should be 'user' or 'admin'"),
        ({"keys": [{**KEY, "tenant": "Acme"}]}, "keys.0.tenant"),
        ({"keys": [{**KEY, "tenant": "acme\n"}]}, "keys.0.tenant"),
        ({"keys": [{**KEY, "sha256": "ftk_aaaaaaaa_secret"}]}, "keys.0.sha256"),
        ({"keys": [{**KEY, "create_time": "2026-01-01T00:00:00"}]}, "keys.0.create_time"),
        ({"keys": [{**KEY, "expire_time": "soon"}]}, "keys.0.expire_time"),
        ({"keys": [{**KEY, "note": "n" * 201}]}, "keys.0.note"),
        ({"keys": [KEY, KEY]}, "two keys have the same id"),
        ({"keys": [{k: v for k, v in KEY.items() if k != "tenant"}]}, "keys.0.tenant: Field required"),
        ({"deleted_tenants": {"../x": "2026-01-01T00:00:00Z"}}, "deleted_tenants.../x"),
    ],
)
def test_malformed_file_is_refused_with_the_place_and_the_remedy(
    tmp_path: Path, document: Any, found: str
) -> None:
    path = write(tmp_path / "keys.json", document)
    with pytest.raises(StartRefused) as caught:
        KeysFile(path)
    assert str(path) in caught.value.message
    assert found in caught.value.message
    assert "finetuned keys" in caught.value.message
    assert "ftk_aaaaaaaa" not in caught.value.message


def test_file_that_is_missing_too_large_or_open_to_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(StartRefused, match=r"cannot be read: No such file.*finetuned keys create"):
        KeysFile(path)
    path.write_text("{}" + " " * 8 * 1024 * 1024)
    with pytest.raises(StartRefused, match="more than 8388608 bytes"):
        KeysFile(path)
    write(path, {}).chmod(0o666)
    with pytest.raises(StartRefused, match="chmod o-w"):
        KeysFile(path)


async def test_changed_file_is_read_again_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    text, key = new_key("acme", Role.USER, now=NOW, expire_time=None, note="")
    path = write(tmp_path / "keys.json", ApiKeys(keys=(key,)).model_dump_json())
    file = KeysFile(path, lambda: NOW)
    presented = Presented((f"Bearer {text}",))
    assert (await file.authenticate(presented)).tenant == "acme"
    for broken in ("{", None):
        if broken is None:
            path.unlink()
        else:
            write(path, broken)
        assert (await file.authenticate(presented)).tenant == "acme"
    # As the kubelet does: the file is a link, and what it leads to is another.
    write(tmp_path / "next.json", ApiKeys(deleted_tenants={"past": NOW}).model_dump_json())
    path.symlink_to(tmp_path / "next.json")
    with pytest.raises(Unauthenticated):
        await file.authenticate(presented)
    assert file.usable == 0


Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`finetuned keys …` on a data directory; returns standard output."""

    def call(*arguments: str) -> str:
        assert main(["keys", *arguments, "--data-dir", str(tmp_path)]) == 0
        return capsys.readouterr().out

    return call


def kept(directory: Path) -> ApiKeys:
    return read_keys(directory / "keys.json")


def test_created_key_is_shown_once(run: Run, tmp_path: Path) -> None:
    text = run("create", "--tenant", "acme", "--note", "ci").strip()
    caller = kept(tmp_path).caller(text, datetime.now(UTC))
    assert (caller.tenant, caller.role) == ("acme", Role.USER)
    listed = json.loads(run("list", "--json"))
    assert [(key["id"], key["note"], key["state"]) for key in listed] == [(caller.key_id, "ci", "active")]
    secret = text.rpartition("_")[2]
    for shown in (run("list"), json.dumps(listed), (tmp_path / "keys.json").read_text()):
        assert secret not in shown
    assert "sha256" not in listed[0]


def test_rotation_lets_both_keys_in_until_the_old_one_expires(run: Run, tmp_path: Path) -> None:
    old = json.loads(run("create", "--tenant", "acme", "--role", "admin", "--json"))
    new = json.loads(run("rotate", old["id"], "--overlap-hours", "2", "--expires-in-days", "30", "--json"))
    keys = kept(tmp_path)
    now = datetime.now(UTC)
    assert {keys.caller(each["key"], now).role for each in (old, new)} == {Role.ADMIN}
    later = now + timedelta(hours=2)
    assert problem_of(lambda: keys.caller(old["key"], later)) == "EXPIRED"
    assert keys.caller(new["key"], later).tenant == "acme"
    assert problem_of(lambda: keys.caller(new["key"], now + 31 * DAY)) == "EXPIRED"
    # A longer overlap does not make it live longer.
    again = run("rotate", old["id"], "--overlap-hours", "1000").strip()
    assert kept(tmp_path).find(old["id"]) == keys.find(old["id"])
    assert kept(tmp_path).caller(again, now).tenant == "acme"


def test_revoked_key_is_gone(run: Run, tmp_path: Path) -> None:
    text, other = (run("create", "--tenant", "acme").strip() for _ in range(2))
    run("revoke", text.split("_")[1])
    assert problem_of(lambda: kept(tmp_path).caller(text, datetime.now(UTC))) == "UNKNOWN"
    assert kept(tmp_path).caller(other, datetime.now(UTC)).tenant == "acme"


def test_keys_of_a_deleted_tenant_are_refused_until_it_is_restored(run: Run, tmp_path: Path) -> None:
    text = run("create", "--tenant", "acme").strip()
    run("delete-tenant", "acme")
    since = kept(tmp_path).deleted_tenants["acme"]
    assert problem_of(lambda: kept(tmp_path).caller(text, datetime.now(UTC))) == "TENANT_DELETED"
    assert json.loads(run("list", "--json"))[0]["state"] == "tenant deleted"
    run("delete-tenant", "acme")
    assert kept(tmp_path).deleted_tenants["acme"] == since
    run("restore-tenant", "acme")
    assert kept(tmp_path).caller(text, datetime.now(UTC)).tenant == "acme"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("create", "--tenant", "Acme"), "tenant: is 'Acme'"),
        (("create", "--tenant", "acme", "--note", "n" * 201), "has 201 characters; allowed: 200"),
        (("create", "--tenant", "past"), "finetuned keys restore-tenant past"),
        (("revoke", "aaaaaaaa"), "finetuned keys list"),
        (("rotate", "aaaaaaaa"), "there is no key 'aaaaaaaa'"),
        (("restore-tenant", "acme"), "is not deleted"),
        (("delete-tenant", "A"), "tenant: is 'A'"),
    ],
)
def test_refused_commands_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    path = write(tmp_path / "keys.json", {"deleted_tenants": {"past": "2026-01-01T00:00:00Z"}})
    before = path.read_bytes()
    assert main(["keys", *arguments, "--keys-file", str(path)]) == 1
    assert said in capsys.readouterr().err
    assert path.read_bytes() == before


def test_malformed_file_is_not_edited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "keys.json", "{")
    assert main(["keys", "create", "--tenant", "acme", "--keys-file", str(path)]) == 1
    assert "is malformed" in capsys.readouterr().err
    assert path.read_text() == "{"


def test_file_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["keys", "create", "--tenant", "acme", "--keys-file", str(tmp_path / "no" / "keys.json")]) == 1
    )
    assert "cannot be written" in capsys.readouterr().err


def test_file_holds_so_many_keys_and_no_more(tmp_path: Path) -> None:
    from finetuned_service.tenancy.cli import _with

    digits = "abcdefghijklmnop"
    many = tuple(
        {**KEY, "id": "".join(digits[(n >> 4 * place) & 15] for place in range(8))} for n in range(MAX_KEYS)
    )
    full = ApiKeys.model_validate({"keys": many})
    with pytest.raises(FinetunedError, match="10000, the most allowed"):
        _with(full, new_key("acme", Role.USER, now=NOW, expire_time=None, note="")[1])
