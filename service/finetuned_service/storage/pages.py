"""Pages of List calls: opaque tokens that carry the last key of the page before."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Generic, TypeVar

from finetuned_service.errors import InvalidField

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

_KEY = re.compile(r"[a-z0-9/-]{1,200}")
"""Ids, names and numbers: nothing else has ever been put into a token."""
_NUMBER = re.compile(r"[0-9]{1,18}")
"""Fits the 64 bits of a database's integer."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """`after` is the key of the last item already seen; empty starts at the beginning."""

    size: int = DEFAULT_PAGE_SIZE
    after: str = ""

    @classmethod
    def parse(cls, page_size: int, page_token: str) -> PageRequest:
        """A List call's fields.

        Raises:
            InvalidField: the size is out of range, or the token was never handed out.
        """
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            raise InvalidField.one(
                "page_size",
                f"is {page_size}; allowed: 0 (meaning {DEFAULT_PAGE_SIZE}) to {MAX_PAGE_SIZE}",
            )
        return cls(page_size or DEFAULT_PAGE_SIZE, _key(page_token) if page_token else "")

    def after_number(self, default: int) -> int:
        """The key as a number, for lists in numeric order."""
        if not self.after:
            return default
        if not _NUMBER.fullmatch(self.after):
            raise InvalidField.one("page_token", "is not a next_page_token of this List call; leave it empty")
        return int(self.after)


def _key(page_token: str) -> str:
    try:
        key = base64.b64decode(page_token, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        key = ""
    if not _KEY.fullmatch(key):
        raise InvalidField.one(
            "page_token", f"is {page_token[:100]!r}, not a next_page_token of this List call; leave it empty"
        )
    return key


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page; `next_token` is empty on the last."""

    items: tuple[Item, ...]
    next_token: str = ""


def page_of(items: list[tuple[str, Item]], size: int) -> Page[Item]:
    """The page from `size + 1` fetched (key, item) pairs: the extra one says that there is more."""
    kept = items[:size]
    more = len(items) > size
    token = base64.urlsafe_b64encode(kept[-1][0].encode()).decode() if more and kept else ""
    return Page(tuple(item for _, item in kept), token)
