"""What is stored of an alarm, and what a time is.  Pure.

An alarm is a row of its object (`keys.ALARM`, its name) and, while it is not dead, a row of the due index
with the time of its next run.  Times are microseconds since the epoch, those of the index milliseconds,
rounded up, so that no alarm is early.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any, NamedTuple

from perdure import codec
from perdure.alarm import Alarm
from perdure.errors import StorageError

__all__ = ["AlarmRow", "due_ms_of", "instant", "microseconds", "request_client"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_FIRST_US = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


class AlarmRow(NamedTuple):
    """The stored state of an alarm."""

    at_us: int
    """What it was set to."""
    attempt: int
    """Number of its next run."""
    next_ms: int | None
    """When that is due, as in the due index; None when it is dead."""
    nonce: bytes
    """Random, new with each arming: two alarms of one name and time are two requests."""
    error: str | None
    """Why its last run failed."""

    def encode(self) -> bytes:
        """The payload of its row."""
        return codec.encode(list(self))

    @classmethod
    def decode(cls, payload: bytes) -> AlarmRow:
        """What `encode` made, by this version or a later one that knows more."""
        values: list[Any] = codec.decode(payload)
        return cls(*values[: len(cls._fields)])

    def seen(self, name: str) -> Alarm:
        """The alarm as its object sees it; of a dead one `attempt` is that of its last run."""
        dead = self.next_ms is None
        return Alarm(name, instant(self.at_us), self.attempt - dead, dead, self.error)


def microseconds(when: Any, now_us: int) -> int:
    """The time that `when` means: an aware datetime, a timedelta from now, seconds since the epoch.

    Raises `StorageError` for anything else.
    """
    if isinstance(when, datetime):
        if when.utcoffset() is None:
            raise StorageError(
                "the time of an alarm is an aware datetime, and this one has no time zone: "
                "datetime.now(UTC) + ..., or a timedelta from now"
            )
        at_us = (when - _EPOCH) // timedelta(microseconds=1)
    elif isinstance(when, timedelta):
        at_us = now_us + when // timedelta(microseconds=1)
    elif isinstance(when, int | float) and not isinstance(when, bool) and math.isfinite(when):
        at_us = round(when * 1_000_000)
    else:
        raise StorageError(
            "the time of an alarm is an aware datetime, a timedelta from now or seconds since the epoch, "
            f"not {when!r:.80}"
        )
    if not _FIRST_US <= at_us <= _LAST_US:
        raise StorageError(f"the time of an alarm is within the years 1 to 9999, not {when!r:.80}")
    return at_us


def instant(at_us: int) -> datetime:
    """The time as users see it."""
    return _EPOCH + timedelta(microseconds=at_us)


def due_ms_of(at_us: int) -> int:
    """The first whole millisecond that is not before it; the index knows none before the epoch."""
    return max(0, -(-at_us // 1000))


def request_client(object_key: bytes, name: bytes, row: AlarmRow) -> bytes:
    """The client id of what the handler's run calls: every run of one arming makes the same requests."""
    digest = blake2b(b"perdure alarm", digest_size=16)
    for part in (object_key, name, row.at_us.to_bytes(9, "big", signed=True), row.nonce):
        digest.update(len(part).to_bytes(4, "big") + part)
    return digest.digest()
