"""One WebSocket as its object sees it: `perdure.websocket.WebSocket`.

It knows its state and its attachment; what is done to it is the business of `ObjectSockets`.  Runs in the
worker's event loop, and in the thread of a `@blocking` method.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from perdure import codec
from perdure.errors import InvalidArgument
from perdure_storage import keys
from perdure_worker.socket_frames import BINARY, TEXT

if TYPE_CHECKING:
    from perdure_worker.sockets import ObjectSockets

__all__ = ["Socket", "State"]

_REASON_BYTES_MAX = 123  # RFC 6455: a control frame has 125 bytes at most, two of them the code


class State(IntEnum):
    """What may be done with a socket."""

    PENDING = 0
    """Accepted by a `fetch` that has not returned."""
    OPEN = 1
    CLOSED = 2
    """By the object."""
    GONE = 3
    """Its end was told, or its accept was undone."""


class Socket:
    """See `perdure.websocket.WebSocket`."""

    __slots__ = (
        "_accepted_ms",
        "_attachment",
        "_held",
        "_of",
        "_state",
        "gateway",
        "key",
        "number",
        "protocol",
        "tags",
    )

    def __init__(
        self,
        of: ObjectSockets,
        key: bytes,
        state: State,
        tags: tuple[str, ...],
        attachment: bytes,
        accepted_ms: int,
        protocol: str | None,
    ) -> None:
        self._of = of
        self._state = state
        self._attachment = attachment  # encoded
        self._accepted_ms = accepted_ms
        self._held: list[tuple[int, Any]] = []
        """What it was sent while it was pending."""
        self.key = key
        self.gateway = key[: keys.GATEWAY_ID_BYTES]
        self.number = int.from_bytes(key[keys.GATEWAY_ID_BYTES :], "big")
        self.tags = tags
        self.protocol = protocol

    def __repr__(self) -> str:
        return f"<WebSocket {self.id} {self._state.name.lower()}>"

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Socket) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def id(self) -> str:
        """See `WebSocket.id`."""
        return self.key.hex()

    @property
    def accepted_at(self) -> datetime:
        """See `WebSocket.accepted_at`."""
        return datetime.fromtimestamp(self._accepted_ms / 1000, UTC)

    @property
    def attachment(self) -> Any:
        """See `WebSocket.attachment`."""
        return codec.decode(self._attachment)

    @attachment.setter
    def attachment(self, value: Any) -> None:
        self._of.attach(self, value)

    def send(self, message: str | bytes) -> None:
        """See `WebSocket.send`."""
        kind = type(message)
        if kind is str:
            self._of.send(self, TEXT, message)
        elif kind is bytes:
            self._of.send(self, BINARY, message)
        elif isinstance(message, str):
            self._of.send(self, TEXT, str.__str__(message))
        elif isinstance(message, bytes | bytearray | memoryview):
            self._of.send(self, BINARY, bytes(message))
        else:
            raise InvalidArgument(f"a message is str or bytes, not {type(message).__name__}; see send_json")

    def send_json(self, value: Any) -> None:
        """See `WebSocket.send_json`."""
        self.send(json.dumps(value, separators=(",", ":"), ensure_ascii=False))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """See `WebSocket.close`."""
        self._of.close(self, _close_code(code), _close_reason(reason))


def _close_code(code: Any) -> int:
    if type(code) is not int or not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise InvalidArgument(f"a close code is 1000 to 1003, 1007 to 1014 or 3000 to 4999, not {code!r:.80}")
    return code


def _close_reason(reason: Any) -> str:
    try:
        size = len(reason.encode()) if isinstance(reason, str) else _REASON_BYTES_MAX + 1
    except UnicodeEncodeError:
        size = _REASON_BYTES_MAX + 1
    if size > _REASON_BYTES_MAX:
        raise InvalidArgument(f"a reason is text of at most {_REASON_BYTES_MAX} bytes, not {reason!r:.80}")
    return str.__str__(reason)
