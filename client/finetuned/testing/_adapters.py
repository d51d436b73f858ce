"""AdapterService of the fake server; files are kept as they come, without a look at their tensors."""

# ruff: noqa: N802 - the methods have the names of the RPCs

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import final

import grpc

from finetuned.errors import (
    AdapterIncompatible,
    InvalidAdapterFiles,
    InvalidField,
    InvalidUpload,
    ResourceInUse,
)
from finetuned.testing._plan import refuse_continued
from finetuned.testing._store import Store, check_name, lookup, page
from finetuned.testing._versions import (
    adapter_of,
    add_version,
    check_etag,
    check_served,
    describe,
    resolve,
    set_alias,
)
from finetuned.v1 import adapter_service_pb2 as pb
from finetuned.v1 import common_pb2
from finetuned.v1.adapter_service_pb2_grpc import AdapterServiceServicer

_ADAPTER = "tenants/{}/adapters/{}"
_ALIAS = "tenants/{}/adapters/{}/aliases/{}"
_FILES = {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
_REQUIRED = _FILES - {"manifest.json"}
_CHUNK_BYTES = 1024


@final
class FakeAdapters(AdapterServiceServicer):
    def __init__(self, store: Store) -> None:
        self._store = store

    def GetAdapter(
        self, request: pb.GetAdapterRequest, context: grpc.ServicerContext
    ) -> pb.GetAdapterResponse:
        check_name(request.name, _ADAPTER)
        with self._store.lock:
            return pb.GetAdapterResponse(adapter=describe(lookup(self._store.adapters, request.name)))

    def ListAdapters(
        self, request: pb.ListAdaptersRequest, context: grpc.ServicerContext
    ) -> pb.ListAdaptersResponse:
        check_name(request.parent, "tenants/{}", "parent")
        with self._store.lock:
            found = [
                describe(state)
                for name, state in sorted(self._store.adapters.items())
                if name.startswith(request.parent + "/")
            ]
            items, token = page(found, request)
            return pb.ListAdaptersResponse(adapters=items, next_page_token=token)

    def DeleteAdapter(
        self, request: pb.DeleteAdapterRequest, context: grpc.ServicerContext
    ) -> pb.DeleteAdapterResponse:
        check_name(request.name, _ADAPTER)
        with self._store.lock:
            lookup(self._store.adapters, request.name)
            refuse_continued(self._store, request.name, whole_adapter=True)
            del self._store.adapters[request.name]
            return pb.DeleteAdapterResponse()

    def GetAdapterVersion(
        self, request: pb.GetAdapterVersionRequest, context: grpc.ServicerContext
    ) -> pb.GetAdapterVersionResponse:
        with self._store.lock:
            return pb.GetAdapterVersionResponse(version=self._resolved(request.name))

    def ListAdapterVersions(
        self, request: pb.ListAdapterVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ListAdapterVersionsResponse:
        check_name(request.parent, _ADAPTER, "parent")
        with self._store.lock:
            state = lookup(self._store.adapters, request.parent)
            found = [
                version
                for _, version in sorted(state.versions.items(), reverse=True)
                if request.method in {common_pb2.METHOD_UNSPECIFIED, version.method}
                and (version.compatible or not request.compatible_only)
            ]
            items, token = page(found, request)
            return pb.ListAdapterVersionsResponse(versions=items, next_page_token=token)

    def DeleteAdapterVersion(
        self, request: pb.DeleteAdapterVersionRequest, context: grpc.ServicerContext
    ) -> pb.DeleteAdapterVersionResponse:
        check_name(request.name, r"tenants/{}/adapters/{}/versions/[1-9][0-9]*")
        with self._store.lock:
            state, number = resolve(self._store, request.name)
            users = [alias.name for alias in state.aliases.values() if alias.version == request.name]
            if users:
                raise ResourceInUse(
                    f"{request.name!r} is named by {users[0]!r}", metadata={"used_by": users[0]}
                )
            refuse_continued(self._store, request.name)
            del state.versions[number], state.files[number]
            return pb.DeleteAdapterVersionResponse()

    def ImportAdapter(
        self, request_iterator: Iterator[pb.ImportAdapterRequest], context: grpc.ServicerContext
    ) -> pb.ImportAdapterResponse:
        first = next(request_iterator, pb.ImportAdapterRequest())
        if first.WhichOneof("step") != "start":
            raise InvalidUpload("the first message is not `start`")
        start = first.start
        check_name(start.adapter, _ADAPTER, "start.adapter")
        if start.WhichOneof("base") is None or not (
            start.expected_base_digest or start.accept_unverified_base
        ):
            raise InvalidField.one("start.base", "is not set")
        with self._store.lock:
            held = self._store.bases[self._store.resident].digest
        if start.expected_base_digest not in {"", held}:
            raise AdapterIncompatible(
                "the adapter was made for another base",
                metadata={
                    "adapter_base_digest": start.expected_base_digest,
                    "server_base_digest": held,
                },
            )
        files = _receive(request_iterator)

        def make() -> pb.ImportAdapterResponse:
            lineage = pb.Lineage(source=start.source)
            version = add_version(self._store, start.adapter, files, lineage, rank=16)
            version.base_verified = not start.accept_unverified_base
            return pb.ImportAdapterResponse(version=version)

        with self._store.lock:
            return self._store.once(adapter_of(start.adapter), start.request_id, start, make)

    def ExportAdapter(
        self, request: pb.ExportAdapterRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ExportAdapterResponse]:
        with self._store.lock:
            state, number = resolve(self._store, request.name)
            version = state.versions[number]
            name, files = version.name, {**state.files[number], "manifest.json": _manifest(version)}
        for file_name, data in sorted(files.items()):
            for offset in range(0, len(data), _CHUNK_BYTES):
                piece = data[offset : offset + _CHUNK_BYTES]
                chunk = pb.AdapterFileChunk(file_name=file_name, offset=offset, data=piece)
                yield pb.ExportAdapterResponse(version=name, chunk=chunk)

    def LoadAdapter(
        self, request: pb.LoadAdapterRequest, context: grpc.ServicerContext
    ) -> pb.LoadAdapterResponse:
        wanted = request.residency or common_pb2.RESIDENCY_DEVICE
        if wanted == common_pb2.RESIDENCY_STORED:
            raise InvalidField.one("residency", "is STORED; allowed: HOST, DEVICE")
        with self._store.lock:
            version = self._resolved(request.name)
            check_served(self._store, version)
            version.residency[0].residency = wanted
            version.residency[0].pinned = request.pin
            version.residency[0].resident_bytes = version.size_bytes
            return pb.LoadAdapterResponse(version=version)

    def UnloadAdapter(
        self, request: pb.UnloadAdapterRequest, context: grpc.ServicerContext
    ) -> pb.UnloadAdapterResponse:
        wanted = request.residency or common_pb2.RESIDENCY_STORED
        if wanted == common_pb2.RESIDENCY_DEVICE:
            raise InvalidField.one("residency", "is DEVICE; allowed: STORED, HOST")
        with self._store.lock:
            version = self._resolved(request.name)
            if version.residency[0].residency == common_pb2.RESIDENCY_STORED:
                wanted = common_pb2.RESIDENCY_STORED  # an unload brings nothing into memory
            version.residency[0].residency = wanted
            version.residency[0].pinned = False
            version.residency[0].resident_bytes = (
                0 if wanted == common_pb2.RESIDENCY_STORED else version.size_bytes
            )
            return pb.UnloadAdapterResponse(version=version)

    def ListResidentVersions(
        self, request: pb.ListResidentVersionsRequest, context: grpc.ServicerContext
    ) -> pb.ListResidentVersionsResponse:
        check_name(request.parent, "tenants/{}", "parent")
        with self._store.lock:
            found = [
                version
                for name, state in sorted(self._store.adapters.items())
                if name.startswith(request.parent + "/")
                for _, version in sorted(state.versions.items())
                if version.residency[0].residency != common_pb2.RESIDENCY_STORED
            ]
            items, token = page(found, request)
            return pb.ListResidentVersionsResponse(versions=items, next_page_token=token)

    def GetAlias(self, request: pb.GetAliasRequest, context: grpc.ServicerContext) -> pb.GetAliasResponse:
        check_name(request.name, _ALIAS)
        with self._store.lock:
            aliases = lookup(self._store.adapters, adapter_of(request.name)).aliases
            named = {alias.name: alias for alias in aliases.values()}
            return pb.GetAliasResponse(alias=lookup(named, request.name))

    def ListAliases(
        self, request: pb.ListAliasesRequest, context: grpc.ServicerContext
    ) -> pb.ListAliasesResponse:
        check_name(request.parent, _ADAPTER, "parent")
        with self._store.lock:
            aliases = lookup(self._store.adapters, request.parent).aliases
            found = [alias for _, alias in sorted(aliases.items())]
            items, token = page(found, request)
            return pb.ListAliasesResponse(aliases=items, next_page_token=token)

    def SetAlias(self, request: pb.SetAliasRequest, context: grpc.ServicerContext) -> pb.SetAliasResponse:
        check_name(request.name, _ALIAS)
        with self._store.lock:
            return pb.SetAliasResponse(
                alias=set_alias(self._store, request.name, request.version, request.etag)
            )

    def DeleteAlias(
        self, request: pb.DeleteAliasRequest, context: grpc.ServicerContext
    ) -> pb.DeleteAliasResponse:
        check_name(request.name, _ALIAS)
        last = request.name.rpartition("/")[2]
        adapter = adapter_of(request.name)
        with self._store.lock:
            aliases = lookup(self._store.adapters, adapter).aliases
            found = lookup({alias.name: alias for alias in aliases.values()}, request.name)
            check_etag(found, request.etag)
            if last == "default":
                raise ResourceInUse(
                    "the alias 'default' stays as long as its adapter", metadata={"used_by": adapter}
                )
            del aliases[last]
            return pb.DeleteAliasResponse()

    def _resolved(self, name: str) -> pb.AdapterVersion:
        state, number = resolve(self._store, name)
        return state.versions[number]


def _manifest(version: pb.AdapterVersion) -> bytes:
    facts = {"name": version.name, "digest": version.digest, "base_digest": version.base_digest}
    return json.dumps(facts, indent=1).encode()


def _receive(messages: Iterator[pb.ImportAdapterRequest]) -> dict[str, bytes]:
    files: dict[str, bytearray] = {}
    for message in messages:
        step = message.WhichOneof("step")
        if step == "finish":
            return _whole(files)
        if step != "chunk":
            raise InvalidUpload(f"got {step or 'an empty message'}; allowed: chunk, finish")
        chunk = message.chunk
        if chunk.file_name not in _FILES:
            raise InvalidUpload(f"{chunk.file_name!r} is not one of {sorted(_FILES)}")
        data = files.setdefault(chunk.file_name, bytearray())
        if chunk.offset != len(data):
            raise InvalidUpload(f"a chunk of {chunk.file_name} starts at {chunk.offset}, not {len(data)}")
        data += chunk.data
    raise InvalidUpload("the stream ended without finish; nothing is stored")


def _whole(files: dict[str, bytearray]) -> dict[str, bytes]:
    missing = _REQUIRED - set(files)
    if missing:
        raise InvalidAdapterFiles(f"{', '.join(sorted(missing))} did not come")
    # What a manifest says is of another server's version.
    return {name: bytes(data) for name, data in files.items() if name in _REQUIRED}
