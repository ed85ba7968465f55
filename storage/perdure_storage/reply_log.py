"""Recorded replies of clients that tell which of their calls have ended: rows, and their folding.  Pure.

    0x00 | "replies" | place u16     the log: what one commit group recorded, for each client a part
    0x00 | "client" | client id 16   one client: what it has told, and what it may still ask for

    part = [client id, flush, last, floor, [straggler, ...], dropped, {sequence: [object prefix, reply]}]
    client row = time u32, then the same list without the id

Guarantees: a group costs one row however many calls it recorded; places of the log are written over in
turn, so there is nothing to delete; `fold` brings all that is in the log to the clients' rows, in one
batch.  What a client has told belongs to all its calls wherever they ran: of two
states the one with the greater flush number holds, and records are united.

Runs in workers (`perdure_worker/recorded.py` fills the log) and where the number of workers changes.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any, Final

import msgpack

from perdure_storage import keys
from perdure_storage.engine import Engine
from perdure_storage.errors import DamagedRecord
from perdure_storage.records import seal, unseal

__all__ = [
    "ClientRecord",
    "client_key",
    "client_rows",
    "fold",
    "lacks_clients",
    "merge_clients",
    "place_key",
    "read_client",
]

_TIME_BYTES: Final = 4
_BATCH_BYTES_MAX: Final = 1 << 20

Record = tuple[bytes, bytes | None]
"""Prefix of the object's rows, and the encoded reply; None for one too large to be kept."""


class ClientRecord:
    """What is known of one client."""

    __slots__ = ("dropped", "floor", "flush", "last", "records", "stragglers", "time_s")

    def __init__(self) -> None:
        self.time_s = 0
        """When it was written, in seconds since the epoch."""
        self.flush = 0
        self.last = 0
        self.floor = 0
        self.stragglers: tuple[int, ...] = ()
        self.dropped = 0
        self.records: dict[int, Record] = {}

    def merge(self, other: ClientRecord) -> None:
        """Takes what `other` knows besides."""
        if other.flush > self.flush:
            self.flush, self.last, self.floor = other.flush, other.last, other.floor
            self.stragglers = other.stragglers
        self.dropped = max(self.dropped, other.dropped)
        self.records.update(other.records)

    def drop_ended(self) -> None:
        """Forgets replies that nobody will ask for."""
        floor, stragglers = self.floor, self.stragglers
        self.records = {
            sequence: record
            for sequence, record in self.records.items()
            if sequence >= floor or sequence in stragglers
        }

    def payload(self, time_s: int) -> bytes:
        """What its row holds."""
        fields = (self.flush, self.last, self.floor, self.stragglers, self.dropped, self.records)
        packed: bytes = msgpack.packb(fields)  # not strict: a tuple is written as a list
        return time_s.to_bytes(_TIME_BYTES, "big") + packed


def place_key(place: int) -> bytes:
    """Key of one row of the log."""
    return keys.REPLIES_PREFIX + place.to_bytes(2, "big")


def client_key(client: bytes) -> bytes:
    """Key of a client's row."""
    return keys.CLIENT_PREFIX + client


def read_client(engine: Engine, client: bytes) -> ClientRecord | None:
    """What is stored of a client; None when nothing is.  Raises `StorageError` for a damaged row."""
    key = client_key(client)
    record = engine.get(key)
    return None if record is None else _read_client(key, record)


def client_rows(engine: Engine, start: bytes = b"") -> Generator[tuple[bytes, ClientRecord], None, None]:
    """All clients whose id is `start` or above."""
    with engine.scan(keys.CLIENT_PREFIX + start, keys.prefix_end(keys.CLIENT_PREFIX)) as rows:
        for key, record in rows:
            yield key[len(keys.CLIENT_PREFIX) :], _read_client(key, record)


def fold(engine: Engine, now_s: int) -> None:
    """Empties the log into the clients' rows: at the start of a worker, and before slots move.

    Raises `StorageError` for damaged rows.  Only while nobody else writes.
    """
    found: dict[bytes, ClientRecord] = {}
    places = []
    with engine.scan(keys.REPLIES_PREFIX, keys.prefix_end(keys.REPLIES_PREFIX)) as rows:
        for key, record in rows:
            places.append(key)
            for client, part in _read_parts(key, record):
                found.setdefault(client, ClientRecord()).merge(part)
    if not places:
        return
    batch = engine.new_batch()
    for client, told in found.items():
        stored = read_client(engine, client)
        if stored is not None:
            told.merge(stored)
        told.drop_ended()
        key = client_key(client)
        batch.put(key, seal(key, told.payload(now_s)))
    for key in places:
        batch.delete(key)
    engine.write(batch)


def merge_clients(source: Engine, destination: Engine, slots: range) -> None:
    """Adds what `source`, whose log is folded, knows of clients: of their calls, those at objects in `slots`.

    May be repeated, and what it adds is true whoever owns the slots in the end.
    """
    batch, size = destination.new_batch(), 0
    for client, told in _of_slots(source, slots):
        stored = read_client(destination, client)
        time_s = told.time_s
        if stored is not None:
            time_s = max(time_s, stored.time_s)
            told.merge(stored)
        told.drop_ended()
        key, payload = client_key(client), told.payload(time_s)
        batch.put(key, seal(key, payload))
        size += len(key) + len(payload)
        if size > _BATCH_BYTES_MAX:
            destination.write(batch)
            batch, size = destination.new_batch(), 0
    if size:
        destination.write(batch)


def lacks_clients(source: Engine, destination: Engine, slots: range) -> bool:
    """Whether `merge_clients` has still to be called."""
    for client, told in _of_slots(source, slots):
        stored = read_client(destination, client)
        if stored is None or stored.flush < told.flush or stored.dropped < told.dropped:
            return True
        told.merge(stored)
        told.drop_ended()
        if told.records.items() - stored.records.items():
            return True
    return False


def _of_slots(store: Engine, slots: range) -> Generator[tuple[bytes, ClientRecord], None, None]:
    for client, told in client_rows(store):
        told.records = {
            sequence: record
            for sequence, record in told.records.items()
            if keys.slot_of_prefix(record[0]) in slots
        }
        yield client, told


def _read_parts(key: bytes, record: bytes) -> Iterator[tuple[bytes, ClientRecord]]:
    parts = _decode(key, unseal(key, record))
    for part in parts if type(parts) is list else [None]:
        if type(part) is not list or not part or type(part[0]) is not bytes:
            raise DamagedRecord(f"row {key.hex()} holds what is no part of a client", key=key)
        yield part[0], _record_of(key, part[1:])


def _read_client(key: bytes, record: bytes) -> ClientRecord:
    payload = unseal(key, record)
    told = _record_of(key, _decode(key, payload[_TIME_BYTES:]))
    told.time_s = int.from_bytes(payload[:_TIME_BYTES], "big")
    return told


def _decode(key: bytes, payload: bytes) -> Any:
    try:
        return msgpack.unpackb(payload, strict_map_key=False)
    except Exception as error:  # msgpack raises many kinds
        raise DamagedRecord(f"row {key.hex()} holds what cannot be read: {error}", key=key) from None


def _record_of(key: bytes, fields: Any) -> ClientRecord:
    told = ClientRecord()
    try:
        told.flush, told.last, told.floor, stragglers, told.dropped, records = fields
        told.stragglers = tuple(stragglers)
        told.records = {sequence: (prefix, reply) for sequence, (prefix, reply) in records.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise DamagedRecord(f"row {key.hex()} holds what is no record: {error}", key=key) from None
    return told
