"""Pages of List calls: opaque tokens that carry the last key of the page before."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Generic, TypeVar

from finetuned_service.errors import InvalidField

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """`after` is the key of the last item already seen; empty starts at the beginning."""

    size: int = DEFAULT_PAGE_SIZE
    after: str = ""

    @classmethod
    def parse(cls, page_size: int, page_token: str) -> PageRequest:
        if not 0 <= page_size <= MAX_PAGE_SIZE:
            raise InvalidField.one(
                "page_size",
                f"is {page_size}; allowed: 0 (meaning {DEFAULT_PAGE_SIZE}) to {MAX_PAGE_SIZE}",
            )
        try:
            after = base64.urlsafe_b64decode(page_token.encode()).decode()
        except (binascii.Error, UnicodeError) as error:
            raise InvalidField.one(
                "page_token", f"is {page_token!r}, not a next_page_token of this List call; leave it empty"
            ) from error
        return cls(page_size or DEFAULT_PAGE_SIZE, after)

    def after_number(self, default: int) -> int:
        """The key as a number, for lists in numeric order."""
        if not self.after:
            return default
        if not self.after.isdigit():
            raise InvalidField.one("page_token", "is not a next_page_token of this List call; leave it empty")
        return int(self.after)


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
