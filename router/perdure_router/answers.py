"""The answers that the router gives in its own name, as (origin, header, body).  Pure; router process.

They say "not executed", except `failed_call` with `OutcomeUnknown`; docs/PROTOCOL.md describes them.
"""

from __future__ import annotations

import msgpack

from perdure import codec, protocol
from perdure.errors import NotExecuted, OutcomeUnknown, PerdureError, to_wire
from perdure_router.links import Entry

__all__ = ["failed_call", "goodbye", "pong", "refused", "refused_batch", "slot_map", "stale"]


def slot_map(origin: bytes, version: int, map_body: bytes) -> Entry:
    """MAP: `map_body` is the encoded map."""
    return origin, protocol.header(protocol.MAP, number=version), map_body


def pong(origin: bytes, version: int) -> Entry:
    """PONG: the client's map is the current one."""
    return origin, protocol.header(protocol.PONG, number=version), b""


def goodbye(origin: bytes) -> Entry:
    """GOODBYE: the router stops."""
    return origin, protocol.header(protocol.GOODBYE), b""


def stale(origin: bytes, worker: int, version: int, map_body: bytes | None, batch: bytes) -> Entry:
    """STALE: the batch comes back, with the encoded map to group its calls by."""
    header = protocol.header(protocol.STALE, worker, version)
    encoded_map = map_body if map_body is not None else codec.encode(None)
    return origin, header, b"".join((protocol.array_header(2), encoded_map, msgpack.packb(batch)))


def refused(origin: bytes, error: PerdureError, worker: int = 0) -> Entry:
    """REFUSED for what could not be understood or is too large to be sent back."""
    return origin, protocol.header(protocol.REFUSED, worker), msgpack.packb(to_wire(error))


def refused_batch(origin: bytes, worker: int, error: NotExecuted, batch: bytes) -> Entry:
    """REFUSED with the batch as its fourth element, from which the client learns which calls it was."""
    return origin, protocol.header(protocol.REFUSED, worker), msgpack.packb([*to_wire(error), batch])


def failed_call(origin: bytes, sequence: bytes, error: NotExecuted | OutcomeUnknown) -> Entry:
    """REPLY to a raw call; `sequence` is as in its header, eight bytes."""
    number = int.from_bytes(sequence, "big")
    reply = msgpack.packb([number, protocol.STATUS_ERROR, to_wire(error)])
    return origin, protocol.header(protocol.REPLY, stamp=number), reply
