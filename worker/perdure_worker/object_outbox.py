"""`ctx.outbox`: what an object has sent and what has not ended, for the object itself to see and to mend.

Runs in the worker's event loop.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from perdure.errors import InvalidArgument
from perdure.ids import ObjectId
from perdure.outbox import OutboxMessage
from perdure_storage import keys
from perdure_worker.messages import DEAD, PLANNED, Message, read_message

if TYPE_CHECKING:
    from perdure_worker.resident import Resident
    from perdure_worker.writes import Writes

__all__ = ["ObjectOutbox"]

_TAIL_BYTES = 25
# Inside the class `list` is the method.
_Messages = list[OutboxMessage]


class ObjectOutbox:
    """See `perdure.outbox.Outbox`."""

    __slots__ = ("_host", "_resident")

    def __init__(self, host: Writes, resident: Resident) -> None:
        self._host = host
        self._resident = resident

    async def list(
        self, *, dead: bool | None = None, limit: int = 100, cursor: str | None = None
    ) -> _Messages:
        """See `perdure.outbox.Outbox.list`."""
        most = self._host.limits.list_entries_max
        if type(limit) is not int or not 1 <= limit <= most:
            raise InvalidArgument(f"the limit of a list is 1 to {most}, not {limit!r:.80}")
        prefix = self._resident.row_prefix()
        base = prefix + keys.OUTBOX
        start, stop = base, base + PLANNED
        if dead is not None:
            start, stop = (base + DEAD, stop) if dead else (start, base + DEAD)
        if cursor is not None:
            start = max(start, base + _tail(cursor) + b"\x00")
        found: _Messages = []
        storage = self._host.storage_of(self._resident)
        for row, record in storage._merged(start, stop, reverse=False):
            found.append(_shown(read_message(prefix, row, record)))
            if len(found) == limit:
                break
        return found

    def retry(self, message_id: str) -> bool:
        """See `perdure.outbox.Outbox.retry`."""
        message = self._take_dead(message_id)
        if message is None:
            return False
        self._host.sends.plan_again(self._resident, message)
        self._remove(message)
        return True

    def drop(self, message_id: str) -> bool:
        """See `perdure.outbox.Outbox.drop`."""
        message = self._take_dead(message_id)
        if message is None:
            return False
        self._remove(message)
        return True

    def _take_dead(self, message_id: str) -> Message | None:
        self._host.check_turn(self._resident)
        tail = _tail(message_id)
        if tail[:1] != DEAD:
            return None
        prefix = self._resident.row_prefix()
        row = prefix + keys.OUTBOX + tail
        record = self._host.storage_of(self._resident)._read(row)
        return None if record is None else read_message(prefix, row, record)

    def _remove(self, message: Message) -> None:
        self._host.storage_of(self._resident)._put_row(message.row, None)


def _tail(message_id: str) -> bytes:
    try:
        tail = bytes.fromhex(message_id)
    except (ValueError, TypeError):
        tail = b""
    if len(tail) != _TAIL_BYTES:
        raise InvalidArgument(f"this is no id of a message: {message_id!r:.80}; ctx.outbox.list() gives them")
    return tail


def _shown(message: Message) -> OutboxMessage:
    args, kwargs = message.arguments()
    return OutboxMessage(
        id=message.tail.hex(),
        namespace=message.namespace,
        target=ObjectId(message.key, message.name),
        method=message.method,
        args=args,
        kwargs=kwargs or {},
        sent_at=datetime.fromtimestamp(message.sent_ms / 1000, UTC),
        due_at=datetime.fromtimestamp(message.at_ms / 1000, UTC) if message.at_ms else None,
        attempts=message.attempts,
        error=message.error,
        dead=message.lane == DEAD,
    )
