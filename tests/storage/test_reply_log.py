"""Rows of recorded replies alone; test_recorded.py has them in a worker, test_reshard.py moves them."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from perdure.errors import StorageError
from perdure_storage import keys
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_storage.records import seal
from perdure_storage.reply_log import (
    ClientRecord,
    client_key,
    client_rows,
    fold,
    lacks_clients,
    merge_clients,
    place_key,
    read_client,
)

ME, YOU = b"m" * 16, b"y" * 16


def prefix(slot: int) -> bytes:
    return keys.object_prefix(slot, "Room", bytes(32))


def client(flush: int, floor: int, *records: int, stragglers: tuple[int, ...] = (), dropped: int = 0) -> Any:
    told = ClientRecord()
    told.flush, told.last, told.floor, told.stragglers, told.dropped = flush, 99, floor, stragglers, dropped
    told.records = {number: (prefix(number), b"%d" % number) for number in records}
    return told


def store(
    log: list[list[tuple[bytes, ClientRecord]]], clients: dict[bytes, ClientRecord] | None = None
) -> MemoryEngine:
    disk = MemoryDisk()
    for place, parts in enumerate(log):
        fields = [(who, t.flush, t.last, t.floor, t.stragglers, t.dropped, t.records) for who, t in parts]
        disk.apply([(place_key(place), seal(place_key(place), msgpack.packb(fields)))])
    for who, told in (clients or {}).items():
        disk.apply([(client_key(who), seal(client_key(who), told.payload(5)))])
    return MemoryEngine(disk)


def known(engine: MemoryEngine, who: bytes = ME) -> Any:
    told = read_client(engine, who)
    return told and (told.flush, told.floor, told.stragglers, told.dropped, set(told.records))


def test_folding_unites_what_the_log_and_the_clients_row_say_by_the_latest_news() -> None:
    engine = store(
        [
            [(ME, client(3, 9, 9, 10, stragglers=(2,))), (YOU, client(7, 1, 1))],
            [(ME, client(2, 4, 4, 5, 8, dropped=1))],
        ],
        {ME: client(1, 1, 1, 2, 3)},
    )
    fold(engine, 77)
    assert known(engine) == (3, 9, (2,), 1, {2, 9, 10})
    assert known(engine, YOU) == (7, 1, (), 0, {1})
    assert engine.disk.between(keys.REPLIES_PREFIX, keys.prefix_end(keys.REPLIES_PREFIX)) == []
    assert [(who, told.time_s) for who, told in client_rows(engine)] == [(ME, 77), (YOU, 77)]
    writes = engine.stats()["writes"]
    fold(engine, 78)
    assert engine.stats()["writes"] == writes, "with nothing in the log nothing is written"


def test_records_and_notes_come_back_as_they_were() -> None:
    told = client(1, 1, 5)
    told.records[6] = (prefix(6), None)
    engine = store([[(ME, told)]])
    fold(engine, 0)
    stored = read_client(engine, ME)
    assert stored is not None
    assert stored.records == {5: (prefix(5), b"5"), 6: (prefix(6), None)}


def test_a_store_learns_what_another_knows_of_the_slots_that_it_gets() -> None:
    source = store([], {ME: client(9, 3, 3, 4, 5, 6), YOU: client(1, 1, 4)})
    destination = store([], {ME: client(4, 1, 1, 2, 8)})
    assert lacks_clients(source, destination, range(4, 6))
    merge_clients(source, destination, range(4, 6))
    assert known(destination) == (9, 3, (), 0, {4, 5, 8})
    assert known(destination, YOU) == (1, 1, (), 0, {4})
    assert not lacks_clients(source, destination, range(4, 6))
    assert lacks_clients(source, destination, range(6, 7))
    merge_clients(store([], {ME: client(2, 1, 4)}), destination, range(4, 6))
    assert known(destination) == (9, 3, (), 0, {4, 5, 8}), "older news change nothing"


@pytest.mark.parametrize(
    "payload",
    [
        b"\xc1",
        b"\x01",
        b"\x91\x01",
        b"\x91\x92\x01\x02",
        b"\x91\x97\xc4\x01c\x01\x01\x01\x01\x01\x01",
        b"\x91\x90",
    ],
)
def test_a_row_of_the_log_that_makes_no_sense_is_a_typed_error(payload: bytes) -> None:
    disk = MemoryDisk()
    disk.apply([(place_key(0), seal(place_key(0), payload))])
    with pytest.raises(StorageError):
        fold(MemoryEngine(disk), 0)


def test_a_damaged_row_of_a_client_is_a_typed_error() -> None:
    engine = store([], {ME: client(1, 1, 1)})
    record = engine.get(client_key(ME))
    assert record is not None
    for damaged in (record[:-1] + b"?", seal(client_key(ME), b"1234\xc1")):
        engine.disk.apply([(client_key(ME), damaged)])
        with pytest.raises(StorageError):
            read_client(engine, ME)
