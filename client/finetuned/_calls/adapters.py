"""The verbs of `client.adapters`."""

# ruff: noqa: D417 - `names` is filled in by `_verbs.py`; callers never see it

from __future__ import annotations

import json
from pathlib import Path

from finetuned import _convert as convert
from finetuned._calls.call import Call, Kind, Page, SendCall, StreamCall, new_request_id
from finetuned._calls.call import Method as Rpc
from finetuned._calls.upload import AdapterFiles
from finetuned._names import Names
from finetuned.errors import InvalidAdapterFiles, InvalidField
from finetuned.v1 import adapter_service_pb2 as pb
from finetuned.v1 import common_pb2
from finetuned.values.adapters import Adapter, AdapterVersion
from finetuned.values.common import Method, Residency

_SERVICE = "AdapterService"
REQUIRED_FILES = ("adapter_config.json", "adapter_model.safetensors")
MANIFEST_FILE = "manifest.json"


def _version(
    answer: pb.GetAdapterVersionResponse
    | pb.ImportAdapterResponse
    | pb.LoadAdapterResponse
    | pb.UnloadAdapterResponse,
) -> AdapterVersion:
    return convert.read(answer.version, AdapterVersion)


def get(names: Names, name: str) -> Call[Adapter]:
    """One adapter with its aliases.

    Raises:
        NotFound: there is none of this name.
    """

    def adapter(answer: pb.GetAdapterResponse) -> Adapter:
        return convert.read(answer.adapter, Adapter)

    request = pb.GetAdapterRequest(name=names.adapter(name))
    return Call(Rpc(_SERVICE, "GetAdapter", pb.GetAdapterResponse), request, adapter)


def list_all(names: Names, *, page_size: int = 0) -> Call[Page[Adapter]]:
    """The tenant's adapters in order of name, read page by page."""

    def page(answer: pb.ListAdaptersResponse) -> Page[Adapter]:
        return Page(tuple(convert.read(item, Adapter) for item in answer.adapters), answer.next_page_token)

    request = pb.ListAdaptersRequest(parent=names.parent, page_size=page_size)
    return Call(Rpc(_SERVICE, "ListAdapters", pb.ListAdaptersResponse), request, page)


def delete(names: Names, name: str) -> Call[None]:
    """Delete an adapter with all versions and aliases; running requests finish.

    Raises:
        NotFound: there is none of this name.
    """
    request = pb.DeleteAdapterRequest(name=names.adapter(name))
    method = Rpc(_SERVICE, "DeleteAdapter", pb.DeleteAdapterResponse)
    return Call(method, request, lambda _: None, Kind.WRITE, repeatable=False)


def version(names: Names, name: str) -> Call[AdapterVersion]:
    """The version that a name means: "redact@3" itself, "redact@prod" by alias, "redact" by "default".

    Raises:
        NotFound: there is no such version or alias.
    """
    request = pb.GetAdapterVersionRequest(name=names.adapter_like(name))
    return Call(Rpc(_SERVICE, "GetAdapterVersion", pb.GetAdapterVersionResponse), request, _version)


def versions(
    names: Names,
    name: str,
    *,
    method: Method = Method.UNKNOWN,
    compatible_only: bool = False,
    page_size: int = 0,
) -> Call[Page[AdapterVersion]]:
    """The versions of an adapter, newest first, read page by page.

    Args:
        name: the adapter.
        method: keep only versions made with this method; UNKNOWN keeps all.
        compatible_only: keep only versions that the server's base can serve.
        page_size: versions in one answer; 0 leaves it to the service.
    """

    def page(answer: pb.ListAdapterVersionsResponse) -> Page[AdapterVersion]:
        items = tuple(convert.read(item, AdapterVersion) for item in answer.versions)
        return Page(items, answer.next_page_token)

    request = pb.ListAdapterVersionsRequest(
        parent=names.adapter(name),
        page_size=page_size,
        method=convert.enum_name(common_pb2.Method.DESCRIPTOR, method),
        compatible_only=compatible_only,
    )
    return Call(Rpc(_SERVICE, "ListAdapterVersions", pb.ListAdapterVersionsResponse), request, page)


def delete_version(names: Names, name: str) -> Call[None]:
    """Delete a version that no alias names, for example "redact@3"; running requests finish.

    Raises:
        NotFound: there is no such version.
        ResourceInUse: an alias names it.
    """
    request = pb.DeleteAdapterVersionRequest(name=names.version(name))
    method = Rpc(_SERVICE, "DeleteAdapterVersion", pb.DeleteAdapterVersionResponse)
    return Call(method, request, lambda _: None, Kind.WRITE, repeatable=False)


def import_directory(
    names: Names,
    directory: str | Path,
    adapter: str,
    *,
    expected_base_digest: str | None = None,
    accept_unverified_base: bool = False,
    source: str = "",
) -> SendCall[AdapterVersion]:
    """Store files in PEFT's layout as the next version of an adapter.

    Args:
        directory: holds adapter_config.json and adapter_model.safetensors; manifest.json if exported here.
        adapter: the adapter's name; it is made if it does not exist.
        expected_base_digest: the base it was trained on; without it, the one that manifest.json names.
        accept_unverified_base: take it although nobody knows its base; the manifest records that.
        source: a free text that the manifest records; the directory's name by default.

    Raises:
        InvalidField: the base is neither named, nor in manifest.json, nor accepted unverified.
        InvalidAdapterFiles: a file is missing or is refused; nothing is stored.
        AdapterIncompatible: it was trained on another base.
    """
    root = Path(directory)
    missing = [name for name in REQUIRED_FILES if not (root / name).is_file()]
    if missing:
        raise InvalidAdapterFiles(f"{root} has no {' and no '.join(missing)}; expected PEFT's layout")
    manifest = root / MANIFEST_FILE
    known_base = expected_base_digest or (None if accept_unverified_base else _base_digest(manifest))
    if known_base is None and not accept_unverified_base:
        raise InvalidField.one(
            "base",
            "is not known; give expected_base_digest (`server_info().base.digest` is the server's), "
            "or accept_unverified_base=True",
        )
    start = pb.ImportAdapterStart(
        adapter=names.adapter(adapter), source=source or root.resolve().name, request_id=new_request_id()
    )
    if known_base is not None:
        start.expected_base_digest = known_base
    else:
        start.accept_unverified_base = True
    files = [root / name for name in REQUIRED_FILES] + ([manifest] if manifest.is_file() else [])
    return SendCall(
        Rpc(_SERVICE, "ImportAdapter", pb.ImportAdapterResponse),
        AdapterFiles(start, tuple(files)).messages,
        _version,
    )


def _base_digest(manifest: Path) -> str | None:
    if not manifest.is_file():
        return None
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
    except ValueError:
        raise InvalidAdapterFiles(
            f"{manifest} is not JSON; remove it, or give expected_base_digest"
        ) from None
    digest = found.get("base_digest") if isinstance(found, dict) else None
    return digest if isinstance(digest, str) else None


def export(names: Names, name: str) -> StreamCall[pb.ExportAdapterResponse]:
    """The chunks of a version's files; `_export.py` writes them."""

    def chunk(answer: pb.ExportAdapterResponse) -> pb.ExportAdapterResponse:
        return answer

    method = Rpc(_SERVICE, "ExportAdapter", pb.ExportAdapterResponse)
    return StreamCall(method, pb.ExportAdapterRequest(name=names.adapter_like(name)), chunk, Kind.TRANSFER)


def load(
    names: Names, name: str, *, residency: Residency = Residency.DEVICE, pin: bool = False
) -> Call[AdapterVersion]:
    """Bring a version's weights to the server's memory before the first request needs them.

    Args:
        name: a version, an alias or an adapter.
        residency: HOST or DEVICE.
        pin: keep them until `unload`.

    Raises:
        AdapterIncompatible: the server's base cannot serve it.
        ResourceExhausted: pinned weights leave no room.
    """
    request = pb.LoadAdapterRequest(
        name=names.adapter_like(name),
        residency=convert.enum_name(common_pb2.Residency.DESCRIPTOR, residency),
        pin=pin,
    )
    return Call(Rpc(_SERVICE, "LoadAdapter", pb.LoadAdapterResponse), request, _version, Kind.LOAD)


def unload(names: Names, name: str, *, residency: Residency = Residency.STORED) -> Call[AdapterVersion]:
    """Remove the pin of a version and free its memory when no running request needs it.

    Args:
        name: a version, an alias or an adapter.
        residency: STORED, or HOST to free the device only.
    """
    request = pb.UnloadAdapterRequest(
        name=names.adapter_like(name),
        residency=convert.enum_name(common_pb2.Residency.DESCRIPTOR, residency),
    )
    return Call(Rpc(_SERVICE, "UnloadAdapter", pb.UnloadAdapterResponse), request, _version, Kind.LOAD)


def resident(names: Names, *, page_size: int = 0) -> Call[Page[AdapterVersion]]:
    """The tenant's versions that are in the server's memory, with where they are, read page by page."""

    def page(answer: pb.ListResidentVersionsResponse) -> Page[AdapterVersion]:
        items = tuple(convert.read(item, AdapterVersion) for item in answer.versions)
        return Page(items, answer.next_page_token)

    request = pb.ListResidentVersionsRequest(parent=names.parent, page_size=page_size)
    return Call(Rpc(_SERVICE, "ListResidentVersions", pb.ListResidentVersionsResponse), request, page)
