"""The verbs of `client.bases`."""

from __future__ import annotations

from finetuned import _convert as convert
from finetuned._calls.call import Call, Kind, Method, Page
from finetuned._names import Names
from finetuned.v1 import base_service_pb2 as pb
from finetuned.values.bases import Base

_SERVICE = "BaseService"


def get(names: Names, name: str) -> Call[Base]:
    """One base.

    Raises:
        NotFound: there is none of this name.
    """

    def base(answer: pb.GetBaseResponse) -> Base:
        return convert.read(answer.base, Base)

    return Call(
        Method(_SERVICE, "GetBase", pb.GetBaseResponse), pb.GetBaseRequest(name=names.base(name)), base
    )


def list_all(names: Names, *, page_size: int = 0) -> Call[Page[Base]]:
    """The shared bases and the tenant's own, in order of name, read page by page."""

    def page(answer: pb.ListBasesResponse) -> Page[Base]:
        return Page(tuple(convert.read(item, Base) for item in answer.bases), answer.next_page_token)

    request = pb.ListBasesRequest(parent=names.parent, page_size=page_size)
    return Call(Method(_SERVICE, "ListBases", pb.ListBasesResponse), request, page)


def delete(names: Names, name: str) -> Call[None]:
    """Delete a base that nothing uses.

    Raises:
        NotFound: there is none of this name.
        ResourceInUse: it is resident, or something was made from it.
    """
    method = Method(_SERVICE, "DeleteBase", pb.DeleteBaseResponse)
    request = pb.DeleteBaseRequest(name=names.base(name))
    return Call(method, request, lambda _: None, Kind.WRITE, repeatable=False)
