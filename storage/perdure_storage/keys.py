"""Keys on disk: which bytes address a row. Pure; runs in workers, the supervisor and offline commands.

Guarantees: the mapping is injective (no two rows share a key, whatever bytes names and keys hold) and
order preserving (byte order of rows is slot, namespace with shorter ones first, id, kind, then UTF-8 order
of the user's key).
All rows of an object are neighbours, and so are all objects of a slot: reading an object is one seek,
moving a slot is one range. docs/DATA.md shows the bytes.

The first byte is the region:

    0x00  shard's own rows      0x00 name
                                0x00 | "suspect" | id 32        (who has ended its worker)
                                0x00 | "replies" | place u16    (the log of recorded replies, reply_log.py)
                                0x00 | "client" | client id 16  (what a client has told)
    0x01  object rows           0x01 | slot u16 | ns length u8 | ns | id 32 bytes | kind u8 | key
    0x02  names index           0x02 | ns length u8 | ns | 0x00 | id 32 bytes      (unique objects)
                                0x02 | ns length u8 | ns | 0x01 | name in UTF-8    (named objects)
    0x03  due index             0x03 | time u64 | kind u8 | slot u16 | ns length u8 | ns | id 32 bytes | key
    0x04  sockets by gateway    0x04 | gateway id 16 | slot u16 | ns length u8 | ns | id 32 bytes | number u64
    0x05  frames for gateways   0x05 | gateway id 16 | epoch u32 | counter u64

A row of the due index says when something is to be done for the object row of the same slot, namespace,
id, kind and key (an alarm, a send): the soonest of all objects of a worker come first.

The key of a socket is its gateway's id and its number there. Each has a row of its object (kind SOCKET) and
one by gateway, so that all of a gateway that is lost are found. What objects have sent to the sockets of a
gateway, and it has not taken, stands in the order in which it was committed.

Numbers are big-endian, so that their order is the order of their bytes. Only the last part of a row has
a free length, hence nothing needs a terminator or an escape.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "ALARM",
    "CLIENT_PREFIX",
    "DUE_REGION",
    "EPOCH_KEY",
    "FIELD",
    "FORMAT_KEY",
    "FRAMES_REGION",
    "GATEWAY_ID_BYTES",
    "META",
    "NAMES_REGION",
    "OBJECTS_REGION",
    "OUTBOX",
    "REPLIES_PREFIX",
    "REPLY",
    "RESERVED_REGION",
    "SENDS_KEY",
    "SEQUENCE_KEY",
    "SHARD_REGION",
    "SLOTS_MAX",
    "SOCKET",
    "SOCKETS_REGION",
    "SOCKET_KEY_BYTES",
    "SUSPECT_PREFIX",
    "VALUE",
    "DueRow",
    "NamesRow",
    "ObjectRow",
    "SocketRow",
    "due_at_ms",
    "due_key",
    "due_key_of",
    "frames_key",
    "frames_position",
    "frames_prefix",
    "names_key",
    "names_prefix",
    "names_value",
    "object_prefix",
    "parse_due_row",
    "parse_names_row",
    "parse_names_value",
    "parse_object_row",
    "parse_socket_row",
    "prefix_end",
    "slot_bounds",
    "slot_of_prefix",
    "socket_index_key",
    "sockets_prefix",
]

SHARD_REGION: Final = b"\x00"
OBJECTS_REGION: Final = b"\x01"
NAMES_REGION: Final = b"\x02"
DUE_REGION: Final = b"\x03"
SOCKETS_REGION: Final = b"\x04"
FRAMES_REGION: Final = b"\x05"
RESERVED_REGION: Final = b"\x06"
"""First region that this version does not write; rows at or above it belong to a newer one."""

FORMAT_KEY: Final = SHARD_REGION + b"format"
EPOCH_KEY: Final = SHARD_REGION + b"epoch"
SEQUENCE_KEY: Final = SHARD_REGION + b"seq"
SUSPECT_PREFIX: Final = SHARD_REGION + b"suspect"
"""Before the id of an object that has ended its worker."""
REPLIES_PREFIX: Final = SHARD_REGION + b"replies"
CLIENT_PREFIX: Final = SHARD_REGION + b"client"
SENDS_KEY: Final = SHARD_REGION + b"sends"
"""A sequence that no durable send of this store has reached."""

META: Final = b"\x00"
"""The object's record: a msgpack map with its `name` (None for unique objects)."""
FIELD: Final = b"\x01"
"""One `durable()` field; the key is the field's name."""
VALUE: Final = b"\x02"
"""One value of `self.storage`; the key is the user's."""
ALARM: Final = b"\x03"
"""One alarm; the key is its name. Under the empty key: how many alarms the object has."""
REPLY: Final = b"\x04"
OUTBOX: Final = b"\x05"
"""One durable send; the key is its lane, half of its target's id, and its sequence (docs/DATA.md)."""
SOCKET: Final = b"\x06"
"""One WebSocket; the key is the socket's. Under the empty key: the object's automatic response."""

ID_BYTES: Final = 32
GATEWAY_ID_BYTES: Final = 16
SOCKET_KEY_BYTES: Final = GATEWAY_ID_BYTES + 8
SLOTS_MAX: Final = 1 << 16
_NAMESPACE_BYTES_MAX: Final = 255
_TIME_BYTES: Final = 8
_DUE_KIND_AT: Final = 1 + _TIME_BYTES
_UNIQUE: Final = b"\x00"
_NAMED: Final = b"\x01"


class ObjectRow(NamedTuple):
    """What the key of an object row says; `kind` is one of the kind bytes above."""

    slot: int
    namespace: str
    object_id: bytes
    kind: bytes
    key: bytes


class DueRow(NamedTuple):
    """What the key of a row of the due index says: when `kind` and `key` of which object are due."""

    at_ms: int
    """Milliseconds since the epoch, by the wall clock."""
    kind: bytes
    slot: int
    namespace: str
    object_id: bytes
    key: bytes


class SocketRow(NamedTuple):
    """What the key of a row of the sockets by gateway says: which object has that socket."""

    gateway: bytes
    slot: int
    namespace: str
    object_id: bytes
    number: int

    @property
    def socket(self) -> bytes:
        """The socket's key."""
        return self.gateway + self.number.to_bytes(8, "big")

    @property
    def object_row(self) -> bytes:
        """Key of the object's own row of the socket."""
        return object_prefix(self.slot, self.namespace, self.object_id) + SOCKET + self.socket


class NamesRow(NamedTuple):
    """What the key of a names-index row says: `name` of a named object, else `object_id` of a unique one."""

    namespace: str
    name: str | None
    object_id: bytes | None


def object_prefix(slot: int, namespace: str, object_id: bytes) -> bytes:
    """Start of every row of one object, up to and without the kind byte.

    Raises ValueError for a slot over 65,535, a namespace over 255 bytes or an id that is not 32 bytes.
    """
    if not 0 <= slot < SLOTS_MAX:
        raise ValueError(f"slot {slot} is outside 0..{SLOTS_MAX - 1}")
    if len(object_id) != ID_BYTES:
        raise ValueError(f"an object id has {ID_BYTES} bytes, not {len(object_id)}")
    return OBJECTS_REGION + slot.to_bytes(2, "big") + _counted(namespace) + object_id


def parse_object_row(row: bytes) -> ObjectRow:
    """The parts of an object row's key; ValueError when `row` is not one."""
    ns_end = 4 + row[3] if len(row) > 3 else 0
    kind_at = ns_end + ID_BYTES
    if not row.startswith(OBJECTS_REGION) or ns_end == 0 or len(row) <= kind_at:
        raise ValueError(f"not the key of an object row: {row[:80].hex()}")
    return ObjectRow(
        slot=int.from_bytes(row[1:3], "big"),
        namespace=row[4:ns_end].decode(),
        object_id=row[ns_end:kind_at],
        kind=row[kind_at : kind_at + 1],
        key=row[kind_at + 1 :],
    )


def slot_of_prefix(prefix: bytes) -> int:
    """The slot of what `object_prefix` made."""
    return int.from_bytes(prefix[1:3], "big")


def slot_bounds(slots: range) -> tuple[bytes, bytes]:
    """``(start, stop)`` of the object rows of contiguous `slots`; stop is exclusive."""
    if slots.step != 1 or not 0 <= slots.start <= slots.stop <= SLOTS_MAX:
        raise ValueError(f"not a contiguous range of slots: {slots}")
    return _slot_start(slots.start), _slot_start(slots.stop)


def names_prefix(namespace: str, *, named: bool) -> bytes:
    """Start of the names-index rows of a namespace's named (or unique) objects."""
    return NAMES_REGION + _counted(namespace) + (_NAMED if named else _UNIQUE)


def names_key(namespace: str, name: str | None, object_id: bytes) -> bytes:
    """Key of an object's row in the names index: by name when it has one, else by id."""
    if name is None:
        return names_prefix(namespace, named=False) + object_id
    return names_prefix(namespace, named=True) + name.encode()


def names_value(slot: int, object_id: bytes) -> bytes:
    """What a names-index row holds (before it is sealed): slot u16 and the id, which a name alone lacks."""
    return slot.to_bytes(2, "big") + object_id


def parse_names_row(row: bytes) -> NamesRow:
    """The parts of a names-index key; ValueError when `row` is not one."""
    kind_at = 2 + row[1] if len(row) > 1 else 0
    kind = row[kind_at : kind_at + 1]
    if not row.startswith(NAMES_REGION) or kind_at == 0 or kind not in (_UNIQUE, _NAMED):
        raise ValueError(f"not the key of a names-index row: {row[:80].hex()}")
    namespace, rest = row[2:kind_at].decode(), row[kind_at + 1 :]
    if kind == _NAMED:
        return NamesRow(namespace, rest.decode(), None)
    return NamesRow(namespace, None, rest)


def parse_names_value(value: bytes) -> tuple[int, bytes]:
    """``(slot, object_id)`` of an unsealed names-index value; ValueError when it is not one."""
    if len(value) != 2 + ID_BYTES:
        raise ValueError(f"not the value of a names-index row: {value[:80].hex()}")
    return int.from_bytes(value[:2], "big"), value[2:]


def due_key(at_ms: int, kind: bytes, slot: int, namespace: str, object_id: bytes, key: bytes) -> bytes:
    """Key of the row of the due index for an object row; what it holds is an empty payload, sealed.

    Raises `OverflowError` for a time before the epoch, ValueError for what `object_prefix` refuses.
    """
    time = at_ms.to_bytes(_TIME_BYTES, "big")
    return DUE_REGION + time + kind + object_prefix(slot, namespace, object_id)[1:] + key


def due_key_of(at_ms: int, object_row: bytes) -> bytes:
    """As `due_key`, for the row of an object whose whole key is at hand."""
    kind_at = 4 + object_row[3] + ID_BYTES
    kind = object_row[kind_at : kind_at + 1]
    time = at_ms.to_bytes(_TIME_BYTES, "big")
    return DUE_REGION + time + kind + object_row[1:kind_at] + object_row[kind_at + 1 :]


def due_at_ms(row: bytes) -> int:
    """When a row of the due index is due: the one part that is needed of many rows."""
    return int.from_bytes(row[1:_DUE_KIND_AT], "big")


def parse_due_row(row: bytes) -> DueRow:
    """The parts of the key of a row of the due index; ValueError when `row` is not one."""
    ns_at = _DUE_KIND_AT + 4
    ns_end = ns_at + row[ns_at - 1] if len(row) >= ns_at else 0
    key_at = ns_end + ID_BYTES
    if not row.startswith(DUE_REGION) or ns_end == 0 or len(row) < key_at:
        raise ValueError(f"not the key of a row of the due index: {row[:80].hex()}")
    return DueRow(
        at_ms=due_at_ms(row),
        kind=row[_DUE_KIND_AT : _DUE_KIND_AT + 1],
        slot=int.from_bytes(row[_DUE_KIND_AT + 1 : ns_at - 1], "big"),
        namespace=row[ns_at:ns_end].decode(),
        object_id=row[ns_end:key_at],
        key=row[key_at:],
    )


def sockets_prefix(gateway: bytes) -> bytes:
    """Start of the rows of all sockets of a gateway; ValueError for an id that has not 16 bytes."""
    if len(gateway) != GATEWAY_ID_BYTES:
        raise ValueError(f"a gateway's id has {GATEWAY_ID_BYTES} bytes, not {len(gateway)}")
    return SOCKETS_REGION + gateway


def socket_index_key(socket: bytes, prefix: bytes) -> bytes:
    """Key of a socket among those of its gateway; `prefix` is its object's, what it holds is empty."""
    return sockets_prefix(socket[:GATEWAY_ID_BYTES]) + prefix[1:] + socket[GATEWAY_ID_BYTES:]


def parse_socket_row(row: bytes) -> SocketRow:
    """The parts of the key of a row of the sockets by gateway; ValueError when `row` is not one."""
    slot_at = 1 + GATEWAY_ID_BYTES
    ns_at = slot_at + 3
    ns_end = ns_at + row[ns_at - 1] if len(row) >= ns_at else 0
    number_at = ns_end + ID_BYTES
    if not row.startswith(SOCKETS_REGION) or ns_end == 0 or len(row) != number_at + 8:
        raise ValueError(f"not the key of a socket of a gateway: {row[:80].hex()}")
    return SocketRow(
        gateway=row[1:slot_at],
        slot=int.from_bytes(row[slot_at : slot_at + 2], "big"),
        namespace=row[ns_at:ns_end].decode(),
        object_id=row[ns_end:number_at],
        number=int.from_bytes(row[number_at:], "big"),
    )


def frames_prefix(gateway: bytes) -> bytes:
    """Start of the rows of all frames for a gateway; ValueError for an id that has not 16 bytes."""
    if len(gateway) != GATEWAY_ID_BYTES:
        raise ValueError(f"a gateway's id has {GATEWAY_ID_BYTES} bytes, not {len(gateway)}")
    return FRAMES_REGION + gateway


def frames_key(gateway: bytes, epoch: int, counter: int) -> bytes:
    """Key of a record of frames; that of epoch 0 and counter 0 says that the gateway was lost."""
    return frames_prefix(gateway) + epoch.to_bytes(4, "big") + counter.to_bytes(8, "big")


def frames_position(row: bytes) -> tuple[int, int]:
    """``(epoch, counter)`` of the key of a record of frames; ValueError when `row` is not one."""
    at = 1 + GATEWAY_ID_BYTES
    if not row.startswith(FRAMES_REGION) or len(row) != at + 12:
        raise ValueError(f"not the key of frames for a gateway: {row[:80].hex()}")
    return int.from_bytes(row[at : at + 4], "big"), int.from_bytes(row[at + 4 :], "big")


def prefix_end(prefix: bytes) -> bytes:
    """The smallest key above every key that starts with `prefix`: an exclusive upper bound.

    Trailing 0xff bytes are dropped before the last byte is raised: ``01 61 ff`` ends at ``01 62``.
    Raises ValueError for a prefix of nothing but 0xff, which has no such bound; no key of ours, all of
    which start with a region byte, is one.
    """
    stem = prefix.rstrip(b"\xff")
    if not stem:
        raise ValueError("a prefix of only 0xff bytes has no upper bound")
    return stem[:-1] + bytes((stem[-1] + 1,))


def _slot_start(slot: int) -> bytes:
    if slot == SLOTS_MAX:
        return prefix_end(OBJECTS_REGION)
    return OBJECTS_REGION + slot.to_bytes(2, "big")


def _counted(namespace: str) -> bytes:
    encoded = namespace.encode()
    if len(encoded) > _NAMESPACE_BYTES_MAX:
        raise ValueError(f"namespace of {len(encoded)} bytes is over {_NAMESPACE_BYTES_MAX}")
    return bytes((len(encoded),)) + encoded
