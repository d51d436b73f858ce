"""The verbs of `client.adapters` that read and move aliases."""

# ruff: noqa: D417 - `names` is filled in by `_verbs.py`; callers never see it

from __future__ import annotations

from finetuned import _convert as convert
from finetuned._calls.call import Call, Kind, Method, Page
from finetuned._names import Names
from finetuned.v1 import adapter_service_pb2 as pb
from finetuned.values.adapters import Alias

_SERVICE = "AdapterService"


def _alias(answer: pb.GetAliasResponse | pb.SetAliasResponse) -> Alias:
    return convert.read(answer.alias, Alias)


def alias(names: Names, name: str) -> Call[Alias]:
    """One alias: "redact@prod"; "redact" means its alias "default".

    Raises:
        NotFound: there is no such alias.
    """
    request = pb.GetAliasRequest(name=names.alias(name))
    return Call(Method(_SERVICE, "GetAlias", pb.GetAliasResponse), request, _alias)


def aliases(names: Names, name: str, *, page_size: int = 0) -> Call[Page[Alias]]:
    """The aliases of an adapter in order of name, read page by page."""

    def page(answer: pb.ListAliasesResponse) -> Page[Alias]:
        return Page(tuple(convert.read(item, Alias) for item in answer.aliases), answer.next_page_token)

    request = pb.ListAliasesRequest(parent=names.adapter(name), page_size=page_size)
    return Call(Method(_SERVICE, "ListAliases", pb.ListAliasesResponse), request, page)


def set_alias(names: Names, name: str, version: int | str, *, etag: str = "") -> Call[Alias]:
    """Point an alias at a version, atomically; it is made if it does not exist.

    Args:
        name: "redact@prod"; "redact" means its alias "default".
        version: a number, "redact@3" or a full name.
        etag: move it only if it is still as it was when this etag was read.

    Raises:
        NotFound: there is no such version.
        EtagMismatch: the alias moved since.
    """
    full = names.alias(name)
    adapter = full.partition("/aliases/")[0]
    number = str(version)
    target = f"{adapter}/versions/{number}" if number.isdecimal() else names.version(number)
    return _move(full, target, etag)


def rollback(names: Names, name: str, *, etag: str = "") -> Call[Alias]:
    """Point an alias at the version that it pointed to before.

    Raises:
        NotFound: there is no such alias, or it has not moved yet.
        EtagMismatch: the alias moved since the etag was read.
    """
    return _move(names.alias(name), "previous", etag)


def _move(alias_name: str, target: str, etag: str) -> Call[Alias]:
    # A repeated move would forget where the alias pointed before, and a repeated rollback would undo
    # itself: not repeatable.
    request = pb.SetAliasRequest(name=alias_name, version=target, etag=etag)
    method = Method(_SERVICE, "SetAlias", pb.SetAliasResponse)
    return Call(method, request, _alias, Kind.WRITE, repeatable=False)


def delete_alias(names: Names, name: str) -> Call[None]:
    """Delete an alias, for example "redact@canary".

    Raises:
        NotFound: there is no such alias.
        ResourceInUse: "default" stays as long as its adapter.
    """
    request = pb.DeleteAliasRequest(name=names.alias(name))
    method = Method(_SERVICE, "DeleteAlias", pb.DeleteAliasResponse)
    return Call(method, request, lambda _: None, Kind.WRITE, repeatable=False)
