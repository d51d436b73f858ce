"""Pages of List calls: opaque tokens that carry the last key of the page before, and the list that they are of."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from finetuned_service.errors import InvalidField

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 16 * 1024 * 1024
"""Of a page whose items may be large: a quarter of what a message may have."""

_KEY = re.compile(r"[a-z0-9/-]{1,200}")
"""Ids, names and numbers: nothing else has ever been put into a token."""
_NUMBER = re.compile(r"[0-9]{1,18}")
"""Fits the 64 bits of a database's integer."""
_MARK_CHARACTERS = 16
_NOT_OURS = (
    "is not a next_page_token of this list; a token is good for the call, the parent and the filters that it came from. "
    "Leave it empty to begin with the first page"
)

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """`after` is the key of the last item already seen; empty starts at the beginning."""

    size: int = DEFAULT_PAGE_SIZE
    after: str = ""
    mark: str = ""
    """In the tokens of this list, and of no other."""

    @classmethod
    def parse(cls, page_size: int, page_token: str, listed: bytes = b"") -> PageRequest:
        """A List call's fields.

        Args:
            page_size: as asked for.
            page_token: alike.
            listed: tells the list from all others: the call, its parent, its filters.

        Raises:
            InvalidField: the size is out of range, or the token was never handed out for this list.
        """
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            raise InvalidField.one(
                "page_size",
                f"is {page_size}; allowed: 0 (meaning {DEFAULT_PAGE_SIZE}) to {MAX_PAGE_SIZE}",
            )
        mark = hashlib.sha256(listed).hexdigest()[:_MARK_CHARACTERS] if listed else ""
        return cls(page_size or DEFAULT_PAGE_SIZE, _key(page_token, mark) if page_token else "", mark)

    def token_after(self, key: str) -> str:
        """The token of the page that begins behind an item."""
        return base64.urlsafe_b64encode(f"{self.mark}.{key}".encode()).decode()

    def after_number(self, default: int) -> int:
        """The key as a number, for lists in numeric order."""
        if not self.after:
            return default
        if not _NUMBER.fullmatch(self.after):
            raise InvalidField.one("page_token", _NOT_OURS)
        return int(self.after)


def _key(page_token: str, mark: str) -> str:
    try:
        found, _, key = (
            base64.b64decode(page_token, altchars=b"-_", validate=True).decode("ascii").partition(".")
        )
    except (binascii.Error, ValueError):
        found = key = ""
    if found != mark or not _KEY.fullmatch(key):
        raise InvalidField.one("page_token", _NOT_OURS)
    return key


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page; `next_token` is empty on the last."""

    items: tuple[Item, ...]
    next_token: str = ""


def page_of(items: list[tuple[str, Item]], asked: PageRequest) -> Page[Item]:
    """The page from one (key, item) pair more than was asked for: the extra one says that there is more."""
    kept = items[: asked.size]
    more = len(items) > asked.size
    token = asked.token_after(kept[-1][0]) if more and kept else ""
    return Page(tuple(item for _, item in kept), token)


def page_that_fits(
    items: Iterable[tuple[str, Item]], asked: PageRequest, bytes_of: Callable[[Item], int]
) -> Page[Item]:
    """`page_of`, ended before the item with which it would have more than `MAX_PAGE_BYTES`; its first one is always on it.
    No further item is read.
    """
    kept: list[tuple[str, Item]] = []
    size_bytes = 0
    for key, item in items:
        size_bytes += bytes_of(item)
        if kept and size_bytes > MAX_PAGE_BYTES:
            return page_of([*kept, (key, item)], replace(asked, size=min(asked.size, len(kept))))
        kept.append((key, item))
    return page_of(kept, asked)
