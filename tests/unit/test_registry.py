"""The registry of adapters: versions, aliases and the files that they share."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path
from tempfile import mkdtemp

import pytest
from finetuned_service.adapters.aliases import DEFAULT_ALIAS, PREVIOUS
from finetuned_service.adapters.manifest import AdapterManifest
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.errors import EtagMismatch, InvalidField, NotFound, RequestIdReused, ResourceInUse
from finetuned_service.jobs.queue import Ending, JobQueue
from finetuned_service.jobs.states import JobState
from finetuned_service.jobs.store import JobStore
from finetuned_service.names import AdapterSelector
from finetuned_service.storage.idempotency import RequestKey
from finetuned_service.storage.pages import PageRequest
from finetuned_service.vocabulary import Method, Task
from tiny_jobs import train_job
from tiny_limits import stored_limits

TENANT = "acme"
NO_REQUEST = RequestKey.of(TENANT, "", b"")
BASE_DIGEST = "sha256:" + "b" * 64


@pytest.fixture
def weights(tmp_path):
    """Where weights lie under their digest."""
    directory = tmp_path / "adapters"
    directory.mkdir()
    return directory


@pytest.fixture
def registry(database, weights):
    return AdapterRegistry(database, weights, stored_limits(weights.parent))


@pytest.fixture
def stage(tmp_path):
    """Makes a directory of checked files on their way in."""

    def make(content: str):
        directory = Path(mkdtemp(dir=tmp_path))
        (directory / "adapter_model.safetensors").write_text(content)
        return directory

    return make


@pytest.fixture
def add(registry, stage):
    """Adds a version whose digest is made of one letter."""

    def make(
        letter: str,
        adapter: str = "redact",
        *,
        tenant: str = TENANT,
        request: RequestKey = NO_REQUEST,
        method: Method = Method.LORA,
        base_digest: str = BASE_DIGEST,
    ):
        def manifest(name: str) -> AdapterManifest:
            return manifest_of(name, letter, method=method, base_digest=base_digest)

        return registry.import_version(tenant, adapter, stage(letter), manifest, 1, request)

    return make


def manifest_of(
    name: str, letter: str, *, method: Method = Method.LORA, base_digest: str = BASE_DIGEST
) -> AdapterManifest:
    return AdapterManifest(
        name=name,
        digest="sha256:" + letter * 64,
        base_digest=base_digest,
        base_root_digest=base_digest,
        method=method,
        task=Task.TEXT_GENERATION,
        parameters=1,
        modules=1,
        size_bytes=1,
        create_time=datetime(2026, 1, 1, tzinfo=UTC),
    )


def at(
    adapter: str = "redact", *, alias: str | None = None, version: int | None = None, tenant: str = TENANT
):
    return AdapterSelector(tenant, adapter, version, alias)


def version_name(number: int, adapter: str = "redact") -> str:
    return f"tenants/{TENANT}/adapters/{adapter}/versions/{number}"


def stored(weights) -> list[str]:
    """The first letters of the digests whose files are there."""
    return sorted(path.name[0] for path in weights.iterdir())


# Versions


def test_versions_are_numbered_from_1_and_resolve_by_every_name(add, registry):
    first, second = add("a"), add("b")
    assert (first.name, second.name) == (version_name(1), version_name(2))
    assert registry.resolve(at()) == first
    assert registry.resolve(at(alias=DEFAULT_ALIAS)) == first
    assert registry.resolve(at(version=2)) == second
    assert (second.directory / "adapter_model.safetensors").read_text() == "b"


def test_the_first_version_becomes_default_and_later_ones_do_not_move_it(add, registry):
    add("a")
    add("b")
    alias = registry.alias(at(alias=DEFAULT_ALIAS))
    assert (alias.version, alias.previous_version) == (1, None)


@pytest.mark.parametrize(
    ("selector", "missing"),
    [
        (at("absent"), "adapters/absent"),
        (at("absent", version=1), "adapters/absent"),
        (at(version=2), "adapters/redact/versions/2"),
        (at(alias="prod"), "adapters/redact/aliases/prod"),
        (at(tenant="other"), "tenants/other/adapters/redact"),
    ],
)
def test_what_is_missing_is_named(add, registry, selector, missing):
    add("a")
    with pytest.raises(NotFound) as refusal:
        registry.resolve(selector)
    assert refusal.value.metadata["resource"].endswith(missing)


def test_the_number_of_a_deleted_version_is_not_used_again(add, registry):
    add("a")
    add("b")
    registry.delete_version(at(version=2))
    assert add("c").version == 3


def test_the_numbers_of_a_deleted_adapter_are_not_used_again(add, registry):
    add("a")
    add("b")
    registry.delete_adapter(at())
    for call in (registry.get, registry.resolve, registry.delete_adapter):
        with pytest.raises(NotFound):
            call(at())
    assert registry.list(TENANT, PageRequest()).items == ()
    again = add("c")
    assert again.version == 3
    assert registry.alias(at(alias=DEFAULT_ALIAS)).version == 3
    found = registry.get(at())
    assert (found.version_count, found.latest_version) == (1, 3)


def test_publications_at_the_same_time_get_different_numbers(add, registry):
    made: list[int] = []
    threads = [
        threading.Thread(target=lambda letter=letter: made.append(add(letter).version)) for letter in "abcdef"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [1, 2, 3, 4, 5, 6]
    assert registry.get(at()).version_count == 6


def test_a_transaction_that_fails_leaves_no_version_and_may_be_repeated(database, registry, stage, weights):
    staged = stage("a")

    def publish(*, fails: bool):
        with database.begin() as connection:
            version = registry.add_version(
                connection, TENANT, "redact", staged, lambda n: manifest_of(n, "a")
            )
            if fails:
                raise LookupError("after the files moved")
            return version

    with pytest.raises(LookupError):
        publish(fails=True)
    assert registry.current(TENANT, "redact", DEFAULT_ALIAS) is None
    version = publish(fails=False)
    assert (version.version, stored(weights)) == (1, ["a"])
    assert (version.directory / "adapter_model.safetensors").read_text() == "a"


# Repeated requests


def test_a_repeated_import_gives_the_same_version(add, registry):
    request = RequestKey.of(TENANT, "r1", b"body")
    assert add("a", request=request) == add("a", request=request)
    assert registry.get(at()).version_count == 1


def test_another_import_under_the_same_request_id_is_refused(add):
    add("a", request=RequestKey.of(TENANT, "r1", b"body"))
    with pytest.raises(RequestIdReused):
        add("b", request=RequestKey.of(TENANT, "r1", b"else"))


def test_a_repeated_import_of_a_deleted_version_says_so(add, registry):
    request = RequestKey.of(TENANT, "r1", b"body")
    add("a")
    add("b", request=request)
    registry.delete_version(at(version=2))
    with pytest.raises(NotFound, match="deleted since"):
        add("b", request=request)


# Files under their digest


def test_files_are_kept_until_the_last_version_of_any_tenant_is_gone(add, registry, weights):
    add("a")
    add("b")
    add("a", adapter="copy")
    add("a", tenant="other")
    registry.delete_adapter(at())
    assert stored(weights) == ["a"]
    registry.delete_adapter(at("copy"))
    assert stored(weights) == ["a"]
    assert registry.delete_adapter(at(tenant="other")) == ("sha256:" + "a" * 64,)
    assert stored(weights) == []


def test_the_same_weights_twice_in_one_adapter_are_two_versions_of_one_directory(add, registry, weights):
    first, second = add("a"), add("a")
    assert (first.version, second.version) == (1, 2)
    assert first.directory == second.directory
    registry.delete_version(at(version=2))
    assert stored(weights) == ["a"]


def test_deleting_and_publishing_the_same_weights_never_loses_files(add, registry, weights):
    add("k")

    def churn() -> None:
        for _ in range(5):
            registry.delete_version(at(version=add("a").version))

    threads = [threading.Thread(target=churn) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored(weights) == ["k"]
    last = add("a")
    assert (last.version, (last.directory / "adapter_model.safetensors").exists()) == (17, True)


# Deleting


def test_a_version_that_aliases_name_stays(add, registry):
    add("a")
    registry.set_alias(at(alias="prod"), version_name(1), "")
    with pytest.raises(ResourceInUse, match="default, prod"):
        registry.delete_version(at(version=1))
    assert registry.resolve(at(version=1)).version == 1


def test_the_default_alias_stays_as_long_as_its_adapter(add, registry):
    add("a")
    with pytest.raises(ResourceInUse, match="stays as long as its adapter"):
        registry.delete_alias(at(alias=DEFAULT_ALIAS), "")


def test_deleting_one_adapter_leaves_the_same_name_of_another_tenant(add, registry):
    add("a")
    add("b", tenant="other")
    registry.delete_adapter(at())
    assert registry.resolve(at(tenant="other")).manifest.digest == "sha256:" + "b" * 64


# Aliases


def test_an_alias_moves_and_goes_back_one_step(add, registry):
    for letter in "abc":
        add(letter)
    prod = at(alias="prod")
    moves = [registry.set_alias(prod, version, "").version for version in (version_name(2), version_name(3))]
    assert moves == [2, 3]
    assert registry.set_alias(prod, PREVIOUS, "").version == 2
    assert registry.set_alias(prod, PREVIOUS, "").version == 3


def test_a_repeated_move_keeps_the_way_back(add, registry):
    for letter in "ab":
        add(letter)
    prod = at(alias="prod")
    registry.set_alias(prod, version_name(1), "")
    moved = registry.set_alias(prod, version_name(2), "")
    assert registry.set_alias(prod, version_name(2), "") == moved
    assert registry.set_alias(prod, PREVIOUS, "").version == 1


def test_going_back_needs_somewhere_to_go(add, registry):
    for letter in "ab":
        add(letter)
    prod = at(alias="prod")
    with pytest.raises(NotFound, match="no previous version"):
        registry.set_alias(prod, PREVIOUS, "")
    registry.set_alias(prod, version_name(1), "")
    with pytest.raises(NotFound, match="no previous version"):
        registry.set_alias(prod, PREVIOUS, "")


def test_a_deleted_version_is_no_way_back(add, registry):
    for letter in "abc":
        add(letter)
    prod = at(alias="prod")
    registry.set_alias(prod, version_name(2), "")
    registry.set_alias(prod, version_name(3), "")
    registry.delete_version(at(version=2))
    assert registry.alias(prod).previous_version is None
    with pytest.raises(NotFound, match="no previous version"):
        registry.set_alias(prod, PREVIOUS, "")
    assert registry.alias(prod).version == 3


@pytest.mark.parametrize(
    ("version", "error"),
    [
        (version_name(9), NotFound),
        (version_name(1, adapter="copy"), InvalidField),
        ("tenants/other/adapters/redact/versions/1", InvalidField),
        (f"tenants/{TENANT}/adapters/redact", InvalidField),
        (f"tenants/{TENANT}/adapters/redact/aliases/default", InvalidField),
        ("", InvalidField),
        ("Previous", InvalidField),
    ],
)
def test_an_alias_points_only_to_versions_of_its_adapter(add, registry, version, error):
    add("a")
    add("a", adapter="copy")
    with pytest.raises(error):
        registry.set_alias(at(alias="prod"), version, "")
    assert [alias.alias for alias in registry.aliases(at(), PageRequest()).items] == ["default"]


def test_an_alias_of_a_missing_adapter_is_refused(registry):
    with pytest.raises(NotFound):
        registry.set_alias(at("absent", alias="prod"), version_name(1, "absent"), "")


def test_of_two_that_read_the_same_etag_one_moves_the_alias(add, registry):
    for letter in "abc":
        add(letter)
    prod = at(alias="prod")
    read = registry.set_alias(prod, version_name(1), "").etag
    outcomes: list[object] = []

    def move(number: int) -> None:
        try:
            outcomes.append(registry.set_alias(prod, version_name(number), read).version)
        except EtagMismatch as error:
            outcomes.append(error)

    threads = [threading.Thread(target=move, args=(number,)) for number in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [outcome for outcome in outcomes if isinstance(outcome, int)]
    (loser,) = [outcome for outcome in outcomes if isinstance(outcome, EtagMismatch)]
    current = registry.alias(prod)
    assert (current.version, current.previous_version) == (winner, 1)
    assert (loser.status, loser.metadata) == ("ABORTED", {"current_etag": current.etag})


def test_an_etag_protects_deleting_and_creating(add, registry):
    for letter in "ab":
        add(letter)
    prod = at(alias="prod")
    with pytest.raises(EtagMismatch, match="does not exist"):
        registry.set_alias(prod, version_name(1), "1-0")
    old = registry.set_alias(prod, version_name(1), "").etag
    new = registry.set_alias(prod, version_name(2), old).etag
    with pytest.raises(EtagMismatch):
        registry.delete_alias(prod, old)
    registry.delete_alias(prod, new)
    with pytest.raises(NotFound):
        registry.alias(prod)
    with pytest.raises(NotFound):
        registry.delete_alias(prod, "")


def test_the_etag_of_an_alias_made_anew_is_not_an_old_one(add, registry):
    for letter in "ab":
        add(letter)
    prod = at(alias="prod")
    old = registry.set_alias(prod, version_name(1), "").etag
    registry.delete_alias(prod, old)
    registry.set_alias(prod, version_name(2), "")
    with pytest.raises(EtagMismatch):
        registry.set_alias(prod, version_name(1), old)


def test_promote_moves_with_the_callers_transaction(add, registry, database):
    for letter in "ab":
        add(letter)

    def fail():
        with database.begin() as connection:
            registry.promote(connection, TENANT, "redact", "prod", 2)
            assert registry.current_in(connection, TENANT, "redact", "prod").version == 2
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert registry.current(TENANT, "redact", "prod") is None


# Lists


def test_lists_come_in_pages(add, registry):
    for adapter in ("a1", "a2", "a3"):
        add("a", adapter=adapter)
    add("a", adapter="a4", tenant="other")
    first = registry.list(TENANT, PageRequest.parse(2, ""))
    rest = registry.list(TENANT, PageRequest.parse(2, first.next_token))
    assert [item.adapter for item in (*first.items, *rest.items)] == ["a1", "a2", "a3"]
    assert rest.next_token == ""


def test_versions_come_newest_first_in_pages(add, registry):
    for letter in "abcde":
        add(letter)
    first = registry.versions(at(), PageRequest.parse(2, ""))
    second = registry.versions(at(), PageRequest.parse(2, first.next_token))
    third = registry.versions(at(), PageRequest.parse(2, second.next_token))
    pages = [[item.version for item in page.items] for page in (first, second, third)]
    assert (pages, third.next_token) == ([[5, 4], [3, 2], [1]], "")


def test_versions_are_kept_by_method_and_base(add, registry):
    add("a")
    add("b", method=Method.IA3)
    add("c", base_digest="sha256:" + "c" * 64)
    assert [v.version for v in registry.versions(at(), PageRequest(), method="IA3").items] == [2]
    matching = registry.versions(at(), PageRequest(), method="LORA", base_digest=BASE_DIGEST)
    assert [v.version for v in matching.items] == [1]
    with pytest.raises(NotFound):
        registry.versions(at("absent"), PageRequest())


def test_aliases_come_in_order_of_name_in_pages(add, registry):
    add("a")
    for alias in ("prod", "canary"):
        registry.set_alias(at(alias=alias), version_name(1), "")
    first = registry.aliases(at(), PageRequest.parse(2, ""))
    rest = registry.aliases(at(), PageRequest.parse(2, first.next_token))
    assert [alias.alias for alias in (*first.items, *rest.items)] == ["canary", "default", "prod"]
    assert [alias.alias for alias in registry.get(at()).aliases] == ["canary", "default", "prod"]


def test_weights_that_an_unfinished_job_continues_from_are_not_deleted(registry, add, database, tmp_path):
    for _ in range(2):
        add("a")
    add("a", "redact-2")
    store, queue = JobStore(database, stored_limits(tmp_path)), JobQueue(database)
    job = store.create(train_job(adapter="new", continue_from=version_name(2)), NO_REQUEST)
    for call, name in (
        (lambda: registry.delete_version(at(version=2)), version_name(2)),
        (lambda: registry.delete_adapter(at()), at().adapter_name),
    ):
        with pytest.raises(ResourceInUse, match=f"^{name} is what {job.name} goes on from; cancel") as raised:
            call()
        assert raised.value.metadata == {"used_by": job.name}
    registry.delete_adapter(at("redact-2"))
    add("a")
    registry.delete_version(at(version=3))
    _, lease = queue.claim("worker", 60.0)
    with pytest.raises(ResourceInUse):
        registry.delete_version(at(version=2))
    queue.release(lease, Ending(JobState.FAILED))
    registry.delete_version(at(version=2))
    registry.delete_adapter(at())
