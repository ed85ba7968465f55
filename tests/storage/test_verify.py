"""`check_rows` finds every kind of damage that a store's rows can have, and nothing in a whole one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.codec import encode
from perdure.ids import id_from_name, new_unique_id, slot_of
from perdure_storage import keys
from perdure_storage.engine import Engine
from perdure_storage.leveldb import LevelDBEngine
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_storage.records import seal, seal_number
from perdure_storage.verify import PROBLEMS_MAX, RowsReport, check_rows

SLOTS = 16
NAMES = ["lobby", "garden", "größe"]


def prefix_of(object_id: bytes) -> bytes:
    return keys.object_prefix(slot_of(object_id, SLOTS), "Room", object_id)


def object_rows(name: str | None, object_id: bytes) -> dict[bytes, bytes]:
    """What a worker stores for an object."""
    prefix = prefix_of(object_id)
    rows = {
        prefix + keys.META: encode({"name": name}),
        prefix + keys.FIELD + b"value": encode(1),
        prefix + keys.VALUE + b"k": encode(2),
        keys.names_key("Room", name, object_id): keys.names_value(slot_of(object_id, SLOTS), object_id),
    }
    return {key: seal(key, payload) for key, payload in rows.items()}


def whole_store() -> dict[bytes, bytes]:
    rows = {key: seal_number(key, 1) for key in (keys.FORMAT_KEY, keys.EPOCH_KEY, keys.SEQUENCE_KEY)}
    for name in NAMES:
        rows |= object_rows(name, id_from_name("Room", name).key)
    rows |= object_rows(None, new_unique_id("Room").key)
    for key, payload in (
        (ALARM, encode([5_000_000, 1, 5_000, bytes(8), None])),
        (DUE, b""),
        (SOCKET, encode([[], encode(None), 0, None])),
        (SOCKET_INDEX, b""),
        (prefix_of(LOBBY) + keys.SOCKET, encode(["ping", "pong"])),
        (FRAMES, encode([])),
    ):
        rows[key] = seal(key, payload)
    return rows


def check(rows: dict[bytes, bytes], slots: range = range(SLOTS)) -> RowsReport:
    disk = MemoryDisk()
    disk.apply([*rows.items()])
    return check_rows(MemoryEngine(disk), slots, SLOTS)


LOBBY = id_from_name("Room", "lobby").key
META = prefix_of(LOBBY) + keys.META
INDEX = keys.names_key("Room", "lobby", LOBBY)
ALARM = prefix_of(LOBBY) + keys.ALARM + b"tea"
DUE = keys.due_key_of(5_000, ALARM)
SOCKET = prefix_of(LOBBY) + keys.SOCKET + b"gateway of tests" + bytes(8)
SOCKET_INDEX = keys.socket_index_key(b"gateway of tests" + bytes(8), prefix_of(LOBBY))
FRAMES = keys.frames_key(b"gateway of tests", 1, 1)
STRANGER = id_from_name("Room", "nobody").key


def put(rows: dict[bytes, bytes], key: bytes, payload: bytes) -> None:
    rows[key] = seal(key, payload)


def flip(rows: dict[bytes, bytes], key: bytes) -> None:
    rows[key] = rows[key][:-1] + bytes([rows[key][-1] ^ 1])


def elsewhere(rows: dict[bytes, bytes]) -> None:
    """The object's rows stand under another slot than its id says."""
    wrong = keys.object_prefix((slot_of(LOBBY, SLOTS) + 1) % SLOTS, "Room", LOBBY)
    put(rows, wrong + keys.VALUE + b"k", encode(1))


DAMAGES: dict[str, tuple[Callable[[dict[bytes, bytes]], object], str]] = {
    "a value": (lambda rows: flip(rows, prefix_of(LOBBY) + keys.VALUE + b"k"), "checksum"),
    "a field": (lambda rows: flip(rows, prefix_of(LOBBY) + keys.FIELD + b"value"), "checksum"),
    "META": (lambda rows: flip(rows, META), "checksum"),
    "the names row": (lambda rows: flip(rows, INDEX), "checksum"),
    "the sequence": (lambda rows: flip(rows, keys.SEQUENCE_KEY), "checksum"),
    "a record in the wrong place": (lambda rows: rows.update({META: rows[INDEX]}), "checksum"),
    "no META": (lambda rows: rows.pop(META), "has rows and no META"),
    "no names row": (lambda rows: rows.pop(INDEX), "does not lead to Room/lobby"),
    "a names row that leads elsewhere": (
        lambda rows: put(rows, INDEX, keys.names_value(slot_of(STRANGER, SLOTS), STRANGER)),
        "which is not stored",
    ),
    "a names row of nothing": (
        lambda rows: put(rows, keys.names_key("Room", "nobody", STRANGER), keys.names_value(1, STRANGER)),
        "Room/nobody, which is not stored",
    ),
    "a name that is another's": (lambda rows: put(rows, META, encode({"name": "x"})), "does not lead to"),
    "META that is none": (lambda rows: put(rows, META, encode([1])), "META of Room/"),
    "a wrong slot": (elsewhere, "not in its own"),
    "a kind of the future": (lambda rows: put(rows, prefix_of(LOBBY) + b"\x40", b""), "a kind that this"),
    "a region of the future": (lambda rows: put(rows, b"\xf0later", b""), "a region that this version"),
    "no object row": (lambda rows: put(rows, keys.OBJECTS_REGION + b"\x00\x03\x01", b""), "not the key of"),
    "an alarm that is not in the due index": (lambda rows: rows.pop(DUE), "missing in the due index"),
    "an alarm that is due at another time": (
        lambda rows: put(rows, ALARM, encode([7_000_000, 1, 7_000, bytes(8), None])),
        "missing in the due index",
    ),
    "an alarm that is none": (lambda rows: put(rows, ALARM, encode(None)), "alarm 01"),
    "a due row of nothing": (lambda rows: rows.pop(ALARM), "which is not stored"),
    "no due row": (
        lambda rows: put(rows, keys.DUE_REGION + bytes(9), b""),
        "not the key of a row of the due",
    ),
    "a damaged due row": (lambda rows: flip(rows, DUE), "checksum"),
    "a socket that its gateway does not have": (
        lambda rows: rows.pop(SOCKET_INDEX),
        "missing among those of its gateway",
    ),
    "a socket of a gateway that no object has": (lambda rows: rows.pop(SOCKET), "which is not stored"),
    "a damaged row by gateway": (lambda rows: flip(rows, SOCKET_INDEX), "checksum"),
    "no row by gateway": (
        lambda rows: put(rows, keys.SOCKETS_REGION + bytes(9), b""),
        "not the key of a socket",
    ),
    "no key of a socket": (
        lambda rows: put(rows, prefix_of(LOBBY) + keys.SOCKET + b"x", b""),
        "has no key of a socket",
    ),
    "damaged frames": (lambda rows: flip(rows, FRAMES), "checksum"),
    "no place of frames": (lambda rows: put(rows, FRAMES + b"x", b""), "not the key of frames"),
    "no names key": (lambda rows: put(rows, keys.NAMES_REGION + b"\x01a\x07", bytes(34)), "names row"),
}


def test_a_whole_store_has_no_problems_and_its_objects_are_counted() -> None:
    rows = whole_store()
    report = check(rows)
    assert (report.problems, report.problem_count) == ([], 0)
    assert (report.objects, report.rows) == (len(NAMES) + 1, len(rows))


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(damage: str) -> None:
    rows = whole_store()
    harm, words = DAMAGES[damage]
    harm(rows)
    report = check(rows)
    assert report.problem_count > 0
    assert any(words in problem for problem in report.problems), report.problems


def test_rows_of_slots_that_the_store_does_not_own_are_found() -> None:
    rows = whole_store()
    slot = slot_of(LOBBY, SLOTS)
    for slots in (range(slot), range(slot + 1, SLOTS)):
        assert any("does not own" in problem for problem in check(rows, slots).problems)


def test_problems_are_counted_when_there_are_too_many_to_tell() -> None:
    rows = whole_store()
    for number in range(PROBLEMS_MAX + 20):
        put(rows, b"\xf0%d" % number, b"")
    report = check(rows)
    assert (len(report.problems), report.problem_count) == (PROBLEMS_MAX, PROBLEMS_MAX + 20)


def test_an_unreadable_block_hides_the_rest_of_its_slot_and_no_more(tmp_path: Path) -> None:
    engine: Engine = LevelDBEngine(tmp_path / "db", create=True)
    batch = engine.new_batch()
    rows = whole_store()
    for number in range(400):
        rows |= object_rows(f"n{number}", id_from_name("Room", f"n{number}").key)
    for key, record in rows.items():
        batch.put(key, record)
    engine.write(batch)
    engine.close()
    LevelDBEngine(tmp_path / "db").close()  # what was in the log becomes a table
    table = max((tmp_path / "db").glob("*.ldb"), key=lambda file: file.stat().st_size)
    content = bytearray(table.read_bytes())
    content[len(content) // 3] ^= 1
    table.write_bytes(content)
    engine = LevelDBEngine(tmp_path / "db")
    report = check_rows(engine, range(SLOTS), SLOTS)
    engine.close()
    assert any("cannot be read from disk" in problem for problem in report.problems)
    assert len(rows) * 0.6 < report.rows < len(rows)
