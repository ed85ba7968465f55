"""docs/DATA.md shows the bytes as the code writes them: its examples are computed here again."""

from __future__ import annotations

import re
from pathlib import Path

import msgpack
import pytest

from perdure.codec import encode
from perdure.ids import id_from_name, slot_of
from perdure.limits import Limits
from perdure_storage import keys
from perdure_storage.records import FORMAT, seal, seal_number, unseal
from perdure_storage.reply_log import ClientRecord, client_key, place_key
from perdure_storage.shard import SHARD_FORMAT, marker_path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "DATA.md"
NAMESPACE, NAME = "Counter", "lobby"
OBJECT_ID = id_from_name(NAMESPACE, NAME).key
SLOT = slot_of(OBJECT_ID, Limits().slots)
PREFIX = keys.object_prefix(SLOT, NAMESPACE, OBJECT_ID)
ALARM_ROW = PREFIX + keys.ALARM + b"tea"
AT_US = 1_893_499_200_000_000
NONCE = bytes.fromhex("0123456789abcdef")
TARGET_ID = id_from_name(NAMESPACE, "annex").key
SENT_US = 1_893_456_000_000_000
SEND_ROW = PREFIX + keys.OUTBOX + b"\x00" + TARGET_ID[:16] + SENT_US.to_bytes(8, "big")
SEND = [NAMESPACE, TARGET_ID, "annex", "increment", encode([[2], None]), 0, SENT_US // 1000, 0, None]


SOCKET = bytes(range(16)) + (7).to_bytes(8, "big")
SOCKET_ROW = PREFIX + keys.SOCKET + SOCKET
FRAMES_ROW = keys.frames_key(SOCKET[:16], 3, 1)


CLIENT_ID = bytes.fromhex("00112233445566778899aabbccddeeff")
REPLY = encode([7, 0, 41])
PART = [CLIENT_ID, 3, 7, 7, (), 0, {7: (PREFIX, REPLY)}]


def client_payload() -> bytes:
    """What the client's row holds."""
    told = ClientRecord()
    told.flush, told.last, told.floor, told.records = 3, 7, 7, {7: (PREFIX, REPLY)}
    return told.payload(AT_US // 1_000_000)


def example_rows() -> dict[str, tuple[bytes, bytes]]:
    """Name -> key and record of the rows that the page shows."""
    payloads = {
        "META": (PREFIX + keys.META, encode({"name": NAME})),
        "FIELD value = 41": (PREFIX + keys.FIELD + b"value", encode(41)),
        'VALUE "größe" = 7': (PREFIX + keys.VALUE + "größe".encode(), encode(7)),
        'ALARM "tea"': (ALARM_ROW, encode([AT_US, 1, AT_US // 1000, NONCE, None])),
        "number of alarms": (PREFIX + keys.ALARM, encode(1)),
        'due index, "tea"': (keys.due_key_of(AT_US // 1000, ALARM_ROW), b""),
        "OUTBOX, a send to Counter/annex": (SEND_ROW, encode(SEND)),
        "due index, the send": (keys.due_key_of(0, SEND_ROW), b""),
        "log of replies, one to Counter/lobby": (place_key(0), msgpack.packb([PART])),
        "client, later": (client_key(CLIENT_ID), client_payload()),
        'SOCKET, with the tag "tea"': (SOCKET_ROW, encode([["tea"], encode(None), SENT_US // 1000, None])),
        "sockets, the same by its gateway": (keys.socket_index_key(SOCKET, PREFIX), b""),
        'frames, "hello" for socket 7': (FRAMES_ROW, encode([[0, "hello", [7]]])),
        "names index": (keys.names_key(NAMESPACE, NAME, OBJECT_ID), keys.names_value(SLOT, OBJECT_ID)),
    }
    numbers = {
        "format": (keys.FORMAT_KEY, SHARD_FORMAT),
        "epoch": (keys.EPOCH_KEY, 3),
        "commit sequence": (keys.SEQUENCE_KEY, 2),
        "bound of the sends": (keys.SENDS_KEY, SENT_US + 60_000_000),
    }
    rows = {name: (key, seal_number(key, number)) for name, (key, number) in numbers.items()}
    return rows | {name: (key, seal(key, payload)) for name, (key, payload) in payloads.items()}


def spaced(data: bytes, *sizes: int) -> str:
    """Hex with a space after each part; what is left over is the last part."""
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size].hex())
        at += size
    return " ".join(part for part in (*parts, data[at:].hex()) if part)


def shown(name: str, key: bytes, record: bytes) -> str:
    """One example as it stands on the page."""
    if key.startswith(keys.OBJECTS_REGION):
        sizes = (1, 2, 1, len(NAMESPACE), 32, 1)
    elif key.startswith(keys.NAMES_REGION):
        sizes = (1, 1, len(NAMESPACE), 1)
    elif key.startswith(keys.DUE_REGION):
        sizes = (1, 8, 1, 2, 1, len(NAMESPACE), 32)
    elif key.startswith(keys.SOCKETS_REGION):
        sizes = (1, 16, 2, 1, len(NAMESPACE), 32)
    elif key.startswith(keys.FRAMES_REGION):
        sizes = (1, 16, 4)
    else:
        sizes = (1,)
    return f"{name}\n  key    {spaced(key, *sizes)}\n  record {spaced(record, 1, 4)}\n"


@pytest.mark.parametrize("name", example_rows())
def test_the_page_shows_the_bytes_that_the_code_writes(name: str) -> None:
    assert shown(name, *example_rows()[name]) in PAGE.read_text("utf-8")


def test_every_example_on_the_page_is_one_that_is_checked() -> None:
    found = re.findall(r"^  key    (.*)\n  record (.*)$", PAGE.read_text("utf-8"), re.MULTILINE)
    pairs = {(bytes.fromhex(key), bytes.fromhex(record)) for key, record in found}
    assert pairs == set(example_rows().values())
    assert all(unseal(key, record) is not None for key, record in pairs)


def test_the_page_names_all_kinds_of_rows_with_their_numbers() -> None:
    page = PAGE.read_text("utf-8")
    for name in ("META", "FIELD", "VALUE", "ALARM", "REPLY", "OUTBOX", "SOCKET"):
        assert re.search(rf"\| {getattr(keys, name)[0]} \| {name} +\|", page), name


def test_the_page_names_formats_files_and_the_object_as_they_are() -> None:
    page = PAGE.read_text("utf-8")
    assert f"format of the store, now {SHARD_FORMAT}" in page
    assert f"format of the record, now {FORMAT}" in page
    assert marker_path(Path("shard-0000")).name in page
    assert f"slot {SLOT}" in page
    assert OBJECT_ID.hex() in page
