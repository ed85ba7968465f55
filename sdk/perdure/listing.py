"""Listings of a namespace: one page of names from all workers.  Pure; runs in the user's process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from perdure.errors import InvalidArgument
from perdure.ids import ObjectId

__all__ = ["Listing", "merge_listings", "next_cursor"]


@dataclass(frozen=True)
class Listing:
    """One page of a namespace's objects, unique ids first, then names in UTF-8 byte order."""

    ids: list[ObjectId]
    """With `name` set for named objects."""
    cursor: str | None
    """Give it to the next call; None when this page is the last."""

    @property
    def names(self) -> list[str]:
        """The names on this page."""
        return [entry.name for entry in self.ids if entry.name is not None]


def next_cursor(cursor: str | None) -> bytes:
    """The position that a cursor stands for; raises `InvalidArgument` for what is none."""
    try:
        return bytes.fromhex(cursor or "")
    except (ValueError, TypeError):
        raise InvalidArgument(f"not a cursor of a listing: {cursor!r:.80}") from None


def merge_listings(namespace: str, pages: list[list[Any]], limit: int) -> Listing:
    """Joins the workers' sorted rows ``[position, id, name]`` into one page."""
    rows = sorted((row for page in pages for row in page), key=lambda row: bytes(row[0]))
    page = rows[:limit]
    more = len(rows) > limit or any(len(part) == limit for part in pages)
    cursor = bytes(page[-1][0]).hex() if more and page else None
    return Listing([ObjectId(key, name) for _, key, name in page], cursor)
