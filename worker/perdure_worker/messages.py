"""A durable send as a row: what of it stands in the sender's outbox, and how it is found again.  Pure.

    sender's object prefix | OUTBOX | lane u8 | first half of the target's id (16 bytes) | sequence u64 BE

Rows of one lane and target are neighbours in the order in which they were sent, so that what a pair of
sender and target still has to say is read with one seek, however much the sender has for others.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final

from perdure import codec
from perdure_storage import keys
from perdure_storage.records import seal, unseal

__all__ = ["CLIENT_MARK", "DEAD", "DELAYED", "ORDERED", "PLANNED", "Message", "lane_bounds", "read_message"]

ORDERED: Final = b"\x00"
"""Delivered in the order of their sequences, each pair for itself."""
DELAYED: Final = b"\x01"
"""Delivered when their time has come."""
DEAD: Final = b"\x02"
"""Given up; kept until somebody retries or drops them."""
CLIENT_MARK: Final = b"send"
"""How the client of every message's request id ends: its target keeps records of these for longer."""
PLANNED: Final = b"\xff"
"""Only in a running turn's write-set: it has no sequence before its commit."""

_TARGET_BYTES: Final = 16
_ID_BYTES: Final = keys.ID_BYTES
_CLIENT_BYTES: Final = 12
_ELEMENTS: Final = 9


class Message:
    """One durable send."""

    __slots__ = (
        "at_ms",
        "attempts",
        "body",
        "error",
        "key",
        "lane",
        "method",
        "name",
        "namespace",
        "prefix",
        "sent_ms",
        "sequence",
    )

    def __init__(
        self, prefix: bytes, namespace: str, key: bytes, name: str | None, method: str, body: bytes
    ) -> None:
        self.prefix = prefix
        """Key prefix of the sender's rows."""
        self.lane = ORDERED
        self.sequence = 0
        """Grows with every send of a worker: microseconds since the epoch, where the clock allows it."""
        self.namespace = namespace
        self.key = key
        """The target's id."""
        self.name = name
        self.method = method
        self.body = body
        """``[args, kwargs]`` encoded."""
        self.at_ms = 0
        """Not before this time of the wall clock; 0 for at once."""
        self.sent_ms = 0
        """When it was committed."""
        self.attempts = 0
        """Failed deliveries that count."""
        self.error: str | None = None
        """Why the last of them failed."""

    @property
    def pair(self) -> bytes:
        """Sender and target: what is ordered."""
        return self.prefix + self.key[:_TARGET_BYTES]

    @property
    def tail(self) -> bytes:
        """What follows the kind byte in the row's key."""
        return self.lane + self.key[:_TARGET_BYTES] + self.sequence.to_bytes(8, "big")

    @property
    def row(self) -> bytes:
        """Key of its row."""
        return self.prefix + keys.OUTBOX + self.tail

    @property
    def due_row(self) -> bytes:
        """Key of its row in the due index; a dead message has none."""
        return keys.due_key_of(self.at_ms, self.row)

    @property
    def size(self) -> int:
        """Bytes that count against limits."""
        return len(self.body) + len(self.prefix) + 128

    @property
    def client(self) -> bytes:
        """Client of its request id.

        That of the sender for ordered ones, so that a target keeps few records of each sender; one of its
        own for a delayed one, which may be delivered long after others that were sent later.
        """
        own = b"" if self.lane == ORDERED else self.sequence.to_bytes(8, "big")
        sender = self.prefix[-_ID_BYTES:]
        return blake2b(b"perdure send" + sender + own, digest_size=_CLIENT_BYTES).digest() + CLIENT_MARK

    def record(self) -> bytes:
        """What its row holds."""
        payload = [
            *(self.namespace, self.key, self.name, self.method, self.body),
            *(self.at_ms, self.sent_ms, self.attempts, self.error),
        ]
        return seal(self.row, codec.encode(payload))

    def arguments(self) -> tuple[list[Any], dict[str, Any] | None]:
        """Positional arguments and those by keyword, fresh."""
        args, kwargs = codec.decode(self.body)
        return args, kwargs


def read_message(prefix: bytes, row: bytes, record: bytes) -> Message:
    """The message of a row of the outbox; raises `StorageError` when the record is damaged."""
    payload = codec.decode(unseal(row, record))
    namespace, key, name, method, body, at_ms, sent_ms, attempts, error = payload[:_ELEMENTS]
    message = Message(prefix, namespace, key, name, method, body)
    tail = row[len(prefix) + 1 :]
    message.lane = tail[:1]
    message.sequence = int.from_bytes(tail[-8:], "big")
    message.at_ms, message.sent_ms, message.attempts, message.error = at_ms, sent_ms, attempts, error
    return message


def lane_bounds(prefix: bytes, lane: bytes, target: bytes = b"", after: int = -1) -> tuple[bytes, bytes]:
    """``(start, stop)`` of a sender's rows in a lane: all, or those to one target above a sequence."""
    start = prefix + keys.OUTBOX + lane + target[:_TARGET_BYTES]
    stop = keys.prefix_end(start)
    return (start if after < 0 else start + (after + 1).to_bytes(8, "big")), stop
