"""Listings of a namespace: one page of objects from all workers.  Pure; runs in the user's process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from perdure.errors import InvalidArgument, UnknownNamespace
from perdure.ids import ObjectId

__all__ = ["ListedObject", "Listing", "merge_listings", "next_cursor"]


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One stored object, as its worker saw it when it was asked."""

    id: ObjectId
    """With `name` set for named objects."""
    size_bytes: int
    """What the object has on disk, keys included: exact up to 64 rows or 64 KiB.  Beyond that the rest is
    the store's estimate, which knows tables and not the last few MiB written."""
    live: bool
    """Whether the object is in memory."""
    next_alarm: datetime | None
    """When its soonest alarm is due or tried again, in UTC; None without one that waits."""

    @property
    def name(self) -> str | None:
        """The object's name, None for one with a unique id."""
        return self.id.name


@dataclass(frozen=True)
class Listing:
    """One page of a namespace's objects, unique ids first, then names in UTF-8 byte order.

    A page may have fewer objects than were asked for although more follow.
    """

    entries: list[ListedObject]
    cursor: str | None
    """Give it to the next call; None when this page is the last."""

    @property
    def ids(self) -> list[ObjectId]:
        """The ids on this page, with `name` set for named objects."""
        return [entry.id for entry in self.entries]

    @property
    def names(self) -> list[str]:
        """The names on this page."""
        return [entry.id.name for entry in self.entries if entry.id.name is not None]


def next_cursor(cursor: str | None) -> bytes:
    """The position that a cursor stands for; raises `InvalidArgument` for what is none."""
    try:
        return bytes.fromhex(cursor or "")
    except (ValueError, TypeError):
        raise InvalidArgument(f"not a cursor of a listing: {cursor!r:.80}") from None


def merge_listings(answers: list[list[Any]], limit: int, namespace: str) -> Listing:
    """Joins the workers' answers ``[more, rows, known]`` into one page.

    Raises `UnknownNamespace` when no worker knows the namespace, neither a class nor a stored object of it.

    Rows are ``[position, id, name, size, live, next alarm in ms or None]``, sorted by position.  A worker
    that stopped early has told nothing of what lies behind its last row, so the page ends there.
    """
    if not any(known for _, _, known, *_ in answers):
        raise UnknownNamespace(
            f"no class of namespace {namespace!r} is loaded, and nothing of one is stored",
            namespace=namespace,
        )
    told = min((bytes(rows[-1][0]) for more, rows, *_ in answers if more), default=None)
    rows = sorted((row for _, rows, *_ in answers for row in rows), key=lambda row: bytes(row[0]))
    page = [row for row in rows if told is None or bytes(row[0]) <= told][:limit]
    more = len(page) < len(rows) or told is not None
    cursor = bytes(page[-1][0]).hex() if more and page else None
    return Listing([_listed(*row[:6]) for row in page], cursor)


def _listed(_: bytes, key: bytes, name: str | None, size: int, live: bool, alarm: int | None) -> ListedObject:
    next_alarm = None if alarm is None else datetime.fromtimestamp(alarm / 1000, UTC)
    return ListedObject(ObjectId(key, name), size, live, next_alarm)
