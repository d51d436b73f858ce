"""The page that a List call asks for."""

from __future__ import annotations

from typing import Any

from finetuned_service.storage.pages import PageRequest


def page_request(request: Any) -> PageRequest:
    """Which page of which list: its tokens are good for this call with this parent and these filters.

    Raises:
        InvalidField: the size is out of range, or the token is another list's.
    """
    listed = type(request)()
    listed.CopyFrom(request)
    for field in ("page_size", "page_token"):
        listed.ClearField(field)
    named = type(request).DESCRIPTOR.full_name.encode() + b"\0"
    return PageRequest.parse(
        request.page_size, request.page_token, named + listed.SerializeToString(deterministic=True)
    )
