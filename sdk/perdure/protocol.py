"""The wire: headers, kinds of message, calls and replies.  Used by clients, the router and workers.

Every message has two frames: a fixed binary header, which is all that the router reads, and a body in
msgpack.  docs/PROTOCOL.md is the same thing for readers who write a client in another language.
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

from perdure.errors import InvalidArgument

__all__ = [
    "BATCH",
    "BUNDLE",
    "CALL",
    "FRAMES",
    "GOODBYE",
    "GOODBYE_ACK",
    "HELLO",
    "MAP",
    "PART",
    "PING",
    "PONG",
    "PULL",
    "REFUSED",
    "REPLIES",
    "REPLY",
    "REPLY_ITEM",
    "SOCKETS",
    "STALE",
    "STATUS_END",
    "STATUS_ERROR",
    "STATUS_ITEM",
    "STATUS_RAISED",
    "STATUS_RESULT",
    "STREAM",
    "TAKEN",
    "VERSION",
    "BadHeader",
    "CallHeader",
    "Header",
    "Item",
    "array_header",
    "call_header",
    "header",
    "read_call_header",
    "read_header",
]

VERSION: Final = 1
"""First byte of every header; a peer of another version is refused, not guessed at."""

# Kinds of message.  Numbers are never reused.
HELLO: Final = 1  # client -> router: "send me the slot map"; body: {"client": 16 bytes}
PING: Final = 2  # client -> router: number = version of the map that the client has; empty body
PONG: Final = 3  # router -> client: the map is still that one; empty body
MAP: Final = 4  # router -> client, answers HELLO and comes by itself on a change; body: the slot map
BATCH: Final = 5  # client -> router or door: number = map version; body: [client, item, item, ...]
REPLIES: Final = 6  # door -> client: number = epoch; body: [reply, reply, ...]
CALL: Final = 7  # raw client -> router: one call, routed by object id; body: [client, item]
REPLY: Final = 8  # router -> raw client: stamp = the call's sequence; body: one reply
STALE: Final = 9  # router or door -> client: body: [slot map or nil, body of the batch]; nothing ran
BUNDLE: Final = 10  # router <-> door: many clients' messages; body: [origin, header, body, ...]
GOODBYE: Final = 11  # door -> peer: closing; answer with GOODBYE_ACK and send nothing more
GOODBYE_ACK: Final = 12  # peer -> door: the last message that this door gets from me
REFUSED: Final = 13  # router or door -> peer: a message could not be understood; body: [code, text, facts]
STREAM: Final = 14  # reader -> door or router: number = epoch; body: [client, [sequence, items taken], ...]
#                     door -> reader, without a body: are you there?  The router returns it if not
REPLY_ITEM: Final = 15  # router -> raw client: as REPLY, but one item of a stream: more comes
FRAMES: Final = 16  # door -> gateway: number = epoch; body: what objects send to their sockets
SOCKETS: Final = 17  # gateway -> door: number = epoch; body: that it lives, and which FRAMES it has taken
PULL: Final = 18  # door -> gateway: number = epoch; body: which parts of request bodies are wanted next
PART: Final = 19  # gateway -> door: number = epoch; body: parts of request bodies
TAKEN: Final = 20  # router -> door: number = epoch; stamp = bytes of large BUNDLEs that it has read

# `client` in these bodies is the client's id (16 bytes), or [client id, flush number, last, floor,
# stragglers...]: as of that flush, `last` is the sequence of its latest call, and all of its calls have ended
# but those from `floor` on and the stragglers (sequences).

# Outcomes in a reply [sequence, status, payload].
STATUS_RESULT: Final = 0  # payload: the result
STATUS_RAISED: Final = 1  # payload: what `remote_errors.dump_exception` made
STATUS_ERROR: Final = 2  # payload: what `errors.to_wire` made
STATUS_ITEM: Final = 3  # payload: one value of a stream; more comes
STATUS_END: Final = 4  # payload: how many items the stream had

_HEADER = struct.Struct(">BBHIQ")
_CALL_HEADER = struct.Struct(">BBHIQ32sQ")


class BadHeader(InvalidArgument):
    """The first frame is no header of this version of the protocol."""


class Header(NamedTuple):
    """What the router knows of a message without reading its body."""

    kind: int
    worker: int
    """Index of the worker that the message is for, or comes from."""
    number: int
    """Version of the slot map (requests) or epoch of the worker (replies)."""
    stamp: int
    """Sender's clock in ms on the server's monotonic clock, 0 if unknown; in REPLY the call's sequence, in
    TAKEN a number of bytes."""


class CallHeader(NamedTuple):
    """The header of CALL: it carries what routes and identifies a single call."""

    stamp: int
    object_id: bytes
    sequence: int


def header(kind: int, worker: int = 0, number: int = 0, stamp: int = 0) -> bytes:
    """16 bytes."""
    return _HEADER.pack(VERSION, kind, worker, number, stamp)


def call_header(object_id: bytes, sequence: int, stamp: int = 0) -> bytes:
    """56 bytes; raises `InvalidArgument` when the id has not 32."""
    if len(object_id) != 32:  # `struct` would fill it up, and the call would go to another object
        raise InvalidArgument(f"an object id has 32 bytes, this one {len(object_id)}")
    return _CALL_HEADER.pack(VERSION, CALL, 0, 0, stamp, object_id, sequence)


def read_header(frame: bytes) -> Header:
    """The header in a frame; raises `BadHeader`.  CALL's longer header is read by `read_call_header`."""
    if len(frame) < _HEADER.size:
        raise BadHeader(f"a header has {_HEADER.size} bytes or more, this one {len(frame)}")
    version, kind, worker, number, stamp = _HEADER.unpack_from(frame)
    if version != VERSION:
        raise BadHeader(f"this peer speaks protocol version {VERSION}, the message is of version {version}")
    if len(frame) != (_CALL_HEADER.size if kind == CALL else _HEADER.size):
        raise BadHeader(f"a header of kind {kind} cannot have {len(frame)} bytes")
    return Header(kind, worker, number, stamp)


def read_call_header(frame: bytes) -> CallHeader:
    """The header of a CALL that `read_header` accepted."""
    _, _, _, _, stamp, object_id, sequence = _CALL_HEADER.unpack(frame)
    return CallHeader(stamp, object_id, sequence)


def array_header(count: int) -> bytes:
    """msgpack's header of a list of `count` elements, so that encoded elements can simply be joined."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


class Item(NamedTuple):
    """One call inside a batch, in wire order.  Readers ignore elements behind the ninth."""

    sequence: int
    """Grows with each call of a client; (client id, sequence) is the request id."""
    namespace: str
    object_id: bytes
    """32 bytes; empty for a call to the worker itself (`list`, `stats`)."""
    name: str | None
    """The name that the id was made from, if the caller knows it."""
    method: str
    args: list[Any]
    kwargs: dict[str, Any] | None
    timeout_ms: int
    """Time left when the message was stamped; 0 or less means the default deadline."""
    context: list[Any] | None
    """``[chain, request]`` of calls that say more than a client's own; readers ignore what follows.

    chain: [id, label] of each object whose turn waits for this call, outermost first, or None.  request:
    ``[client id, sequence, path, floor]``, the request id of a call whose id is not (the batch's client id,
    its own sequence), or None.
    """
