"""What comes back to a caller, read: replies, and batches that did not run.  Pure; runs in every caller.

Guarantees that bytes which are no such message raise `BadMessage`, and that one reply that cannot be
decoded is lost alone.
"""

from __future__ import annotations

from typing import Any

from perdure import codec, protocol
from perdure.codec import BadMessage
from perdure.errors import OutcomeUnknown, PerdureError, from_wire, to_wire
from perdure.slotmap import SlotMap, slot_map_from_wire

__all__ = ["read_refused", "read_replies", "read_stale"]


def read_replies(body: bytes) -> list[list[Any]]:
    """The replies ``[sequence, status, payload]`` of a REPLIES body.

    A reply that cannot be decoded becomes an `OutcomeUnknown` that says so.
    """
    try:
        replies = codec.decode(body)
    except BadMessage:
        return [reply for part in codec.split_array(body) if (reply := _read_alone(part)) is not None]
    if type(replies) is not list:
        raise BadMessage("replies are a list")
    return replies


def _list(body: bytes) -> list[Any]:
    parts = codec.decode(body)
    if type(parts) is not list:
        raise TypeError("its body is no list")
    return parts


def _read_alone(part: bytes) -> Any:
    try:
        return codec.decode(part)
    except BadMessage as error:
        unknown = OutcomeUnknown(
            f"the call was answered, but its result cannot be read here: {error}", reason="answered"
        )
    try:
        sequence = codec.decode(codec.split_array(part)[0])
    except (BadMessage, IndexError):
        return None  # nobody knows whose reply it was
    return [sequence, protocol.STATUS_ERROR, to_wire(unknown)]


def read_stale(body: bytes) -> tuple[SlotMap | None, list[int]]:
    """The slot map of a STALE body, and the calls that did not run.  Raises `InvalidArgument`."""
    try:
        wire_map, batch = _list(body)
        return None if wire_map is None else slot_map_from_wire(wire_map), _sequences(batch)
    except (TypeError, ValueError) as error:
        raise BadMessage(f"not a stale batch: {error}") from error


def read_refused(body: bytes) -> tuple[PerdureError, list[int]]:
    """Why a batch was refused, and the calls in it (none where it was not sent back)."""
    try:
        code, text, facts, batch = [*_list(body), None][:4]
        return from_wire(code, text, facts), _sequences(batch) if batch else []
    except (TypeError, ValueError) as error:
        raise BadMessage(f"not a refusal: {error}") from error


def _sequences(batch: bytes) -> list[int]:
    sequences = []
    for item in codec.split_array(batch)[1:]:
        fields = codec.split_array(item)
        sequence = codec.decode(fields[0]) if fields else None
        if type(sequence) is not int:
            raise BadMessage("a call's first element is its sequence, an integer")
        sequences.append(sequence)
    return sequences
