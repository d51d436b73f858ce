"""What happens to adapters, versions and aliases in the fake store; the caller holds the lock."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from finetuned.errors import AdapterIncompatible, EtagMismatch, InvalidField, NotFound
from finetuned.testing._store import REPLICA, AdapterState, Store, check_name, lookup
from finetuned.v1 import adapter_service_pb2 as pb
from finetuned.v1 import common_pb2

SELECTOR = r"tenants/{}/adapters/{}(?:/versions/([1-9][0-9]*)|/aliases/{})?"


def adapter_of(name: str) -> str:
    return "/".join(name.split("/")[:4])


def add_version(
    store: Store,
    adapter: str,
    files: Mapping[str, bytes],
    lineage: pb.Lineage,
    *,
    rank: int,
    base: str = "",
    method: str = "LORA",
    task: common_pb2.Task = common_pb2.TASK_TEXT_GENERATION,
) -> pb.AdapterVersion:
    """The next version, of a base (the server's if empty); the first one gets the alias "default"."""
    base_digest = store.bases[base or store.resident].digest
    state = store.adapters.setdefault(
        adapter, AdapterState(pb.Adapter(name=adapter, create_time=store.now()), {}, {}, {})
    )
    state.last_version += 1
    number = state.last_version
    content = hashlib.sha256(b"".join(files[name] for name in sorted(files)))
    version = pb.AdapterVersion(
        name=f"{adapter}/versions/{number}",
        digest="sha256:" + content.hexdigest(),
        base_digest=base_digest,
        base_root_digest=base_digest,
        base_verified=True,
        method=f"METHOD_{method}",
        task=task,
        lineage=lineage,
        size_bytes=sum(len(data) for data in files.values()),
        parameters=64 * max(rank, 1),
        modules=8,
        rank=rank,
        create_time=store.now(),
    )
    judge(store, version)
    version.residency.add(replica=REPLICA, residency=common_pb2.RESIDENCY_STORED)
    state.versions[number] = version
    state.files[number] = dict(files)
    if "default" not in state.aliases:
        set_alias(store, f"{adapter}/aliases/default", version.name)
    return version


def describe(state: AdapterState) -> pb.Adapter:
    """The adapter with what is derived from its versions and aliases."""
    adapter = pb.Adapter()
    adapter.CopyFrom(state.adapter)
    adapter.latest_version = f"{adapter.name}/versions/{max(state.versions)}" if state.versions else ""
    adapter.version_count = len(state.versions)
    adapter.aliases.extend(alias for _, alias in sorted(state.aliases.items()))
    default = state.versions[int(state.aliases["default"].version.rpartition("/")[2])]
    adapter.state = default.state
    adapter.incompatible_reason = default.incompatible_reason
    return adapter


def judge(store: Store, version: pb.AdapterVersion) -> None:
    """Write into a version whether the server's base can serve it."""
    base = store.bases[store.resident]
    fits = version.base_digest == base.digest
    version.compatible = fits
    version.state = pb.ADAPTER_STATE_READY if fits else pb.ADAPTER_STATE_INCOMPATIBLE
    version.incompatible_reason = (
        "" if fits else f"it was made for the base {version.base_digest}; this server holds {base.digest}"
    )


def check_served(store: Store, version: pb.AdapterVersion) -> None:
    """Refuse a version of another base.

    Raises:
        AdapterIncompatible: naming both digests, and the job that can be run again.
    """
    if not version.compatible:
        job = version.lineage.job
        raise AdapterIncompatible(
            f"{version.name} cannot be served: {version.incompatible_reason}. Train it again on this base",
            metadata={
                "adapter_base_digest": version.base_digest,
                "server_base_digest": store.bases[store.resident].digest,
            }
            | ({"job": job} if job else {}),
        )


def resolve(store: Store, name: str, field: str = "name") -> tuple[AdapterState, int]:
    """The adapter and the number of the version that a version, an alias or an adapter means."""
    _, _, number, alias = check_name(name, SELECTOR, field)
    state = lookup(store.adapters, adapter_of(name))
    if not number:
        aliased = state.aliases.get(alias or "default")
        if aliased is None:
            raise NotFound(f"{name!r} does not exist or is not yours", metadata={"resource": name})
        number = aliased.version.rpartition("/")[2]
    if int(number) not in state.versions:
        raise NotFound(f"{name!r} does not exist or is not yours", metadata={"resource": name})
    return state, int(number)


def check_etag(alias: pb.Alias, etag: str) -> None:
    """Refuse a change of an alias that has moved since the etag was read.

    Raises:
        EtagMismatch: with the etag it has now.
    """
    if etag and etag != alias.etag:
        raise EtagMismatch(
            f"{alias.name!r} has changed since it was read", metadata={"current_etag": alias.etag}
        )


def set_alias(store: Store, name: str, target: str, etag: str = "") -> pb.Alias:
    """Move or make an alias.

    Raises:
        EtagMismatch: it moved since the etag was read.
        NotFound: there is no such version, or "previous" of an alias that has not moved.
        InvalidField: it is a version of another adapter.
    """
    state = lookup(store.adapters, adapter_of(name))
    last = name.rpartition("/")[2]
    alias = state.aliases.get(last) or pb.Alias(name=name)
    check_etag(alias, etag)
    if target == "previous":
        if not alias.previous_version:
            raise NotFound(
                f"{name!r} has not moved; there is no previous version", metadata={"resource": name}
            )
        target = alias.previous_version
    if not re.fullmatch(rf"{re.escape(adapter_of(name))}/versions/[1-9][0-9]*", target):
        raise InvalidField.one("version", f"is {target!r}; allowed: a version of this adapter, or 'previous'")
    _, number = resolve(store, target, "version")
    moved = pb.Alias(
        name=name,
        version=f"{adapter_of(name)}/versions/{number}",
        previous_version=alias.version,
        etag=str(int(alias.etag or 0) + 1),
        update_time=store.now(),
    )
    state.aliases[last] = moved
    return moved
