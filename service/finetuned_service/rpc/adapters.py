"""AdapterService: adapters, versions, aliases, import and export, residency."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from finetuned.v1 import adapter_service_pb2 as pb
from finetuned.v1 import adapter_service_pb2_grpc as grpc_pb
from finetuned.v1 import common_pb2 as common
from grpc import aio

from finetuned_service.adapters.aliases import Alias
from finetuned_service.adapters.registry import AdapterRegistry
from finetuned_service.adapters.transfer import AdapterImports, export_chunks
from finetuned_service.adapters.versions import Adapter, AdapterVersion
from finetuned_service.engine.messages import Residency, Snapshot
from finetuned_service.errors import FinetunedError, InvalidField, InvalidUpload
from finetuned_service.names import AdapterSelector, parse_tenant
from finetuned_service.rpc.convert.adapters import adapter_to_proto, alias_to_proto, version_to_proto
from finetuned_service.rpc.convert.common import enum_name, method_from_proto
from finetuned_service.rpc.page_request import page_request
from finetuned_service.rpc.request_key import request_key
from finetuned_service.rpc.turns import to_the_end
from finetuned_service.serving.service import Serving, check_compatible, incompatible_reason
from finetuned_service.tenancy.caller import Role, current_caller

MAX_SOURCE_CHARACTERS = 1000


class AdapterServicer(grpc_pb.AdapterServiceServicer):
    def __init__(self, registry: AdapterRegistry, serving: Serving, imports: AdapterImports) -> None:
        self._registry = registry
        self._serving = serving
        self._imports = imports

    async def GetAdapter(  # noqa: N802 - the contract's name
        self,
        request: pb.GetAdapterRequest,
        context: aio.ServicerContext[pb.GetAdapterRequest, pb.GetAdapterResponse],
    ) -> pb.GetAdapterResponse:
        adapter = await asyncio.to_thread(self._registry.get, _adapter_selector(request.name))
        return pb.GetAdapterResponse(adapter=self._adapter(adapter))

    async def ListAdapters(  # noqa: N802 - the contract's name
        self,
        request: pb.ListAdaptersRequest,
        context: aio.ServicerContext[pb.ListAdaptersRequest, pb.ListAdaptersResponse],
    ) -> pb.ListAdaptersResponse:
        page = await asyncio.to_thread(
            self._registry.list,
            parse_tenant(request.parent),
            page_request(request),
        )
        return pb.ListAdaptersResponse(
            adapters=[self._adapter(adapter) for adapter in page.items], next_page_token=page.next_token
        )

    async def DeleteAdapter(  # noqa: N802 - the contract's name
        self,
        request: pb.DeleteAdapterRequest,
        context: aio.ServicerContext[pb.DeleteAdapterRequest, pb.DeleteAdapterResponse],
    ) -> pb.DeleteAdapterResponse:
        selector = _adapter_selector(request.name)

        async def delete() -> None:
            digests = await asyncio.to_thread(self._registry.delete_adapter, selector)
            await self._serving.residents.leave_unnamed(selector.tenant, digests)

        # Also of the memory, although the caller has gone in between.
        await to_the_end(delete())
        return pb.DeleteAdapterResponse()

    async def GetAdapterVersion(  # noqa: N802 - the contract's name
        self,
        request: pb.GetAdapterVersionRequest,
        context: aio.ServicerContext[pb.GetAdapterVersionRequest, pb.GetAdapterVersionResponse],
    ) -> pb.GetAdapterVersionResponse:
        version = await asyncio.to_thread(self._registry.resolve, AdapterSelector.parse(request.name))
        return pb.GetAdapterVersionResponse(version=self._version(version, await self._snapshot()))

    async def ListAdapterVersions(  # noqa: N802 - the contract's name
        self,
        request: pb.ListAdapterVersionsRequest,
        context: aio.ServicerContext[pb.ListAdapterVersionsRequest, pb.ListAdapterVersionsResponse],
    ) -> pb.ListAdapterVersionsResponse:
        page = await asyncio.to_thread(
            self._registry.versions,
            _adapter_selector(request.parent, "parent"),
            page_request(request),
            method=method_from_proto(request.method, "method") or "",
            base_digest=self._serving.base.digest if request.compatible_only else "",
        )
        snapshot = await self._snapshot()
        versions = [self._version(version, snapshot) for version in page.items]
        return pb.ListAdapterVersionsResponse(versions=versions, next_page_token=page.next_token)

    async def DeleteAdapterVersion(  # noqa: N802 - the contract's name
        self,
        request: pb.DeleteAdapterVersionRequest,
        context: aio.ServicerContext[pb.DeleteAdapterVersionRequest, pb.DeleteAdapterVersionResponse],
    ) -> pb.DeleteAdapterVersionResponse:
        selector = AdapterSelector.parse(request.name)
        if selector.version is None:
            raise InvalidField.one("name", f"is {request.name!r}; name the version: '…/versions/{{number}}'")

        async def delete() -> None:
            version = await asyncio.to_thread(self._registry.delete_version, selector)
            await self._serving.residents.leave_unnamed(version.tenant, [version.manifest.digest])

        await to_the_end(delete())
        return pb.DeleteAdapterVersionResponse()

    async def ImportAdapter(  # noqa: N802 - the contract's name
        self,
        request_iterator: AsyncIterator[pb.ImportAdapterRequest],
        context: aio.ServicerContext[pb.ImportAdapterRequest, pb.ImportAdapterResponse],
    ) -> pb.ImportAdapterResponse:
        start: pb.ImportAdapterStart | None = None
        with self._imports.staging() as staged:
            async for request in request_iterator:
                step = request.WhichOneof("step")
                if (start is None) != (step == "start"):
                    raise InvalidUpload(f"got {step or 'an empty message'}; the first message is start, once")
                match step:
                    case "start":
                        start = request.start
                        selector = _adapter_selector(start.adapter, "start.adapter")
                        if len(start.source) > MAX_SOURCE_CHARACTERS:
                            found = f"has {len(start.source)} characters; allowed: {MAX_SOURCE_CHARACTERS}"
                            raise InvalidField.one("start.source", found)
                        self._imports.check_base(_base_claim(start))
                        key = request_key(selector.tenant, start)
                        await asyncio.to_thread(
                            self._registry.refuse_full, selector.tenant, selector.adapter, key
                        )
                    case "chunk":
                        chunk = request.chunk
                        await asyncio.to_thread(staged.append, chunk.file_name, chunk.offset, chunk.data)
                    case "finish" if start is not None:
                        selector = _adapter_selector(start.adapter, "start.adapter")
                        version = await asyncio.to_thread(
                            self._imports.finish,
                            staged,
                            selector,
                            _base_claim(start),
                            start.source,
                            request_key(selector.tenant, start),
                        )
                        return pb.ImportAdapterResponse(
                            version=self._version(version, await self._snapshot())
                        )
                    case _:
                        raise InvalidUpload("got an empty message; allowed: start, chunk, finish")
        raise InvalidUpload("the stream ended without finish; nothing is stored")

    async def ExportAdapter(  # noqa: N802 - the contract's name
        self,
        request: pb.ExportAdapterRequest,
        context: aio.ServicerContext[pb.ExportAdapterRequest, pb.ExportAdapterResponse],
    ) -> AsyncIterator[pb.ExportAdapterResponse]:
        version = await asyncio.to_thread(self._registry.resolve, AdapterSelector.parse(request.name))
        chunks = export_chunks(version)
        while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
            part = pb.AdapterFileChunk(file_name=chunk.file_name, offset=chunk.offset, data=chunk.data)
            yield pb.ExportAdapterResponse(version=version.name, chunk=part)

    async def LoadAdapter(  # noqa: N802 - the contract's name
        self,
        request: pb.LoadAdapterRequest,
        context: aio.ServicerContext[pb.LoadAdapterRequest, pb.LoadAdapterResponse],
    ) -> pb.LoadAdapterResponse:
        version = await asyncio.to_thread(self._registry.resolve, AdapterSelector.parse(request.name))
        name = enum_name(common.Residency, request.residency, "RESIDENCY_", "residency")
        wanted = Residency(name or Residency.DEVICE)
        if wanted is Residency.STORED:
            raise InvalidField.one("residency", "is RESIDENCY_STORED; to free memory call UnloadAdapter")
        check_compatible(version, self._serving.base)
        # What an admin pins is for all, as what the server's own user does who needs no key.
        within_share = current_caller().role is not Role.ADMIN
        snapshot = await to_the_end(
            self._serving.residents.load(version, wanted, pin=request.pin, within_share=within_share)
        )
        return pb.LoadAdapterResponse(version=self._version(version, snapshot))

    async def UnloadAdapter(  # noqa: N802 - the contract's name
        self,
        request: pb.UnloadAdapterRequest,
        context: aio.ServicerContext[pb.UnloadAdapterRequest, pb.UnloadAdapterResponse],
    ) -> pb.UnloadAdapterResponse:
        version = await asyncio.to_thread(self._registry.resolve, AdapterSelector.parse(request.name))
        name = enum_name(common.Residency, request.residency, "RESIDENCY_", "residency")
        wanted = Residency(name or Residency.STORED)
        if wanted is Residency.DEVICE:
            raise InvalidField.one(
                "residency",
                "is RESIDENCY_DEVICE; allowed: STORED, HOST. To bring weights there call LoadAdapter",
            )
        snapshot = await to_the_end(self._serving.residents.unload(version, wanted))
        return pb.UnloadAdapterResponse(version=self._version(version, snapshot))

    async def ListResidentVersions(  # noqa: N802 - the contract's name
        self,
        request: pb.ListResidentVersionsRequest,
        context: aio.ServicerContext[pb.ListResidentVersionsRequest, pb.ListResidentVersionsResponse],
    ) -> pb.ListResidentVersionsResponse:
        tenant = parse_tenant(request.parent)
        wanted = page_request(request)
        snapshot = await self._snapshot()
        digests = self._serving.residents.holders.used_by(tenant, snapshot.adapters if snapshot else ())
        page = await asyncio.to_thread(self._registry.versions_of, tenant, digests, wanted)
        versions = [self._version(version, snapshot) for version in page.items]
        return pb.ListResidentVersionsResponse(versions=versions, next_page_token=page.next_token)

    async def GetAlias(  # noqa: N802 - the contract's name
        self,
        request: pb.GetAliasRequest,
        context: aio.ServicerContext[pb.GetAliasRequest, pb.GetAliasResponse],
    ) -> pb.GetAliasResponse:
        alias: Alias = await asyncio.to_thread(self._registry.alias, _alias_selector(request.name))
        return pb.GetAliasResponse(alias=alias_to_proto(alias))

    async def ListAliases(  # noqa: N802 - the contract's name
        self,
        request: pb.ListAliasesRequest,
        context: aio.ServicerContext[pb.ListAliasesRequest, pb.ListAliasesResponse],
    ) -> pb.ListAliasesResponse:
        page = await asyncio.to_thread(
            self._registry.aliases,
            _adapter_selector(request.parent, "parent"),
            page_request(request),
        )
        return pb.ListAliasesResponse(
            aliases=[alias_to_proto(alias) for alias in page.items], next_page_token=page.next_token
        )

    async def SetAlias(  # noqa: N802 - the contract's name
        self,
        request: pb.SetAliasRequest,
        context: aio.ServicerContext[pb.SetAliasRequest, pb.SetAliasResponse],
    ) -> pb.SetAliasResponse:
        alias = await asyncio.to_thread(
            self._registry.set_alias, _alias_selector(request.name), request.version, request.etag
        )
        return pb.SetAliasResponse(alias=alias_to_proto(alias))

    async def DeleteAlias(  # noqa: N802 - the contract's name
        self,
        request: pb.DeleteAliasRequest,
        context: aio.ServicerContext[pb.DeleteAliasRequest, pb.DeleteAliasResponse],
    ) -> pb.DeleteAliasResponse:
        await asyncio.to_thread(self._registry.delete_alias, _alias_selector(request.name), request.etag)
        return pb.DeleteAliasResponse()

    async def _snapshot(self) -> Snapshot | None:
        """Where adapters are; a starting or restarting engine holds none."""
        try:
            return await self._serving.engine.inspect()
        except FinetunedError:
            return None

    def _adapter(self, adapter: Adapter) -> pb.Adapter:
        reason = incompatible_reason(adapter.base_digest, self._serving.base)
        return adapter_to_proto(adapter, incompatible_reason=reason)

    def _version(self, version: AdapterVersion, snapshot: Snapshot | None) -> pb.AdapterVersion:
        residency = self._serving.residents.holders.seen_by(
            version.tenant, version.manifest.digest, snapshot.adapters if snapshot else ()
        )
        return version_to_proto(
            version,
            incompatible_reason=incompatible_reason(version.manifest.base_digest, self._serving.base),
            expire_time=self._registry.expire_time(version),
            residency=residency,
            replica=self._serving.replica,
        )


def _adapter_selector(name: str, field: str = "name") -> AdapterSelector:
    selector = AdapterSelector.parse(name, field)
    if selector.version is not None or selector.alias is not None:
        raise InvalidField.one(
            field, f"is {name!r}; expected an adapter, 'tenants/{{tenant}}/adapters/{{adapter}}'"
        )
    return selector


def _alias_selector(name: str) -> AdapterSelector:
    selector = AdapterSelector.parse(name)
    if selector.alias is None:
        raise InvalidField.one("name", f"is {name!r}; expected 'tenants/…/adapters/…/aliases/{{alias}}'")
    return selector


def _base_claim(start: pb.ImportAdapterStart) -> str | None:
    """The digest that the caller expects, or None for an unverified base."""
    match start.WhichOneof("base"):
        case "expected_base_digest":
            return start.expected_base_digest
        case "accept_unverified_base" if start.accept_unverified_base:
            return None
        case _:
            raise InvalidField.one(
                "start.base",
                "is not set: give expected_base_digest (GetServerInfo tells this server's), or set "
                "accept_unverified_base",
            )
