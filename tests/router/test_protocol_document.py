"""docs/PROTOCOL.md is true: its tables and bytes are computed again, and its program calls an object."""

from __future__ import annotations

import inspect
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from perdure import codec, errors, ids, protocol
from perdure.limits import KIB, MIB, Limits
from perdure.slotmap import Seat, SlotMap, contiguous_ranges

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "PROTOCOL.md").read_text("utf-8")
CLIENT_ID = bytes(range(16))
COUNTER = ids.id_from_name("Counter", "my-counter")
ITEM = protocol.Item(1, "Counter", COUNTER.key, "my-counter", "increment", [], {"by": 2}, 30_000, None)
CALL = [protocol.call_header(COUNTER.key, 1), codec.encode([CLIENT_ID, list(ITEM)])]
REPLY = [protocol.header(protocol.REPLY, 0, 17, 1), codec.encode([1, protocol.STATUS_RESULT, 3])]
LIMITS = Limits()


def table(heading: str, which: int = 0) -> list[list[str]]:
    """The cells of the table whose first line is `heading`; `which` of several counts from 0."""
    parts = PAGE.split(f"\n| {heading} |")
    assert len(parts) > which + 1, f"the page has no table '{heading}'"
    rows = parts[which + 1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found, f"the page has no block of {language}"
    return found[1]


def hex_blocks() -> Iterator[bytes]:
    """The bytes of each labelled group of lines in the hex example."""
    for group in re.split(r"^\w+", block("hex"), flags=re.MULTILINE)[1:]:
        yield bytes.fromhex(group)


def test_the_example_holds_the_bytes_that_our_own_code_makes() -> None:
    assert list(hex_blocks()) == [*CALL, *REPLY]
    assert COUNTER.key.hex() in PAGE
    assert f"slot {ids.slot_of(COUNTER.key, LIMITS.slots)} of {LIMITS.slots:,}" in PAGE


def test_the_headers_have_the_fields_at_their_places() -> None:
    heading = "offset | bytes | field | meaning"
    common, of_call = [[(int(row[0]), int(row[1])) for row in table(heading, which)] for which in (0, 1)]
    values = {(0, 1): 1, (1, 1): 5, (2, 2): 0x0203, (4, 4): 0x04050607, (8, 8): 0x08090A0B0C0D0E0F}
    header = protocol.header(protocol.BATCH, 0x0203, 0x04050607, 0x08090A0B0C0D0E0F)
    assert common == list(values)
    assert {place: int.from_bytes(header[place[0] :][: place[1]], "big") for place in common} == values
    (id_at, id_size), (sequence_at, sequence_size) = of_call
    header = protocol.call_header(COUNTER.key, 2**40 + 1, stamp=9)
    assert header[id_at:][:id_size] == COUNTER.key
    assert header[sequence_at:] == (2**40 + 1).to_bytes(sequence_size, "big")
    assert f"{len(header)} bytes" in PAGE


def test_all_kinds_are_listed_under_their_numbers() -> None:
    kinds = {int(row[0]): row[1] for row in table("kind | name | from → to | worker, number | body")}
    ours = {
        value: name
        for name, value in vars(protocol).items()
        if name in protocol.__all__ and type(value) is int and name != "VERSION" and "STATUS" not in name
    }
    assert kinds == ours


STATUSES = ("RESULT", "RAISED", "ERROR", "ITEM", "END")


def test_statuses_and_items_are_listed_in_their_order() -> None:
    statuses = [row[0] for row in table("status | payload | what happened")]
    ours = [f"{getattr(protocol, 'STATUS_' + name)} {name}" for name in STATUSES]
    assert statuses == ours
    fields = [row[0].replace(" ", "_") for row in table("element | type | meaning")]
    assert fields == list(protocol.Item._fields)


def test_all_errors_are_listed_with_their_facts() -> None:
    rows = {row[0].strip("`"): row[2] for row in table("code | did it run? | facts | what to do")}
    del rows["any other"]
    travelling = {
        cls
        for _, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.PerdureError) and cls not in (errors.PerdureError, errors.RemoteError)
    }
    assert set(rows) == {cls.__name__ for cls in travelling}
    for cls in travelling:
        assert re.findall(r"`(\w+)`", rows[cls.__name__]) == list(cls.fact_names)
        assert type(errors.from_wire(cls.__name__, "", {})) is cls


@pytest.mark.parametrize(
    ("code", "data", "value"),
    [
        (1, msgpack.packb([1, 2]), (1, 2)),
        (2, msgpack.packb([1, 2]), {1, 2}),
        (3, msgpack.packb([1, 2]), frozenset({1, 2})),
        (4, (2**70).to_bytes(9, "big", signed=True), 2**70),
        (5, b"2024-05-06T07:08:09+02:00", None),
        (6, b"2024-05-06", None),
        (7, b"1.50", None),
        (8, bytes(range(16)), None),
    ],
)
def test_extension_types_have_their_codes_and_layout(code: int, data: bytes, value: object) -> None:
    names = {int(row[0]): row[1].replace("big integer", "int") for row in table("code | type | data")}
    decoded = codec.decode(msgpack.packb(msgpack.ExtType(code, data)))
    assert type(decoded).__name__.lower() == names[code].lower()
    assert value is None or decoded == value
    assert codec.encode(decoded) == msgpack.packb(msgpack.ExtType(code, data))
    assert len(names) == 8


def test_the_slot_map_has_the_keys_that_are_listed() -> None:
    slot_map = SlotMap(7, tuple(contiguous_ranges(8, 2)), (Seat(3, "ipc://a"), Seat(1, "")), "boot")
    wire = slot_map.to_wire()
    assert [row[0].strip("`") for row in table("key | value")] == list(wire)
    assert (wire["ranges"], wire["workers"]) == ([[0, 4], [4, 8]], [[3, "ipc://a"], [1, ""]])


def test_the_limits_are_those_of_the_code() -> None:
    limits = [row[1] for row in table("what | limit")]
    assert limits == [
        f"{LIMITS.message_bytes_max // MIB} MiB",
        f"{LIMITS.message_bytes_max // MIB} MiB + {LIMITS.wire_overhead_bytes // KIB} KiB",
        f"{LIMITS.batch_calls_max - 1:,}",
        f"{LIMITS.namespace_chars_max} characters",
        f"{LIMITS.name_bytes_max} bytes of UTF-8",
        f"{LIMITS.chain_depth_max}",
    ]
    for text in (
        f"holds at most {LIMITS.router_queue_bytes_max // MIB} MiB",
        f"remembers {LIMITS.raw_calls_in_flight_max:,} raw calls",
        f"held up to {LIMITS.reply_queue_bytes_max // MIB} MiB",
        f"silent for {LIMITS.client_forgotten_s:g} s",
        f"waited for {LIMITS.goodbye_timeout_s:g} s at most",
        f"the default of {LIMITS.call_timeout_s:g} s",
        f"hold {LIMITS.containers_max:,} lists and maps",
    ):
        assert text in " ".join(PAGE.split()), text


def test_the_program_of_the_page_calls_an_object(tmp_path: Path) -> None:
    program = tmp_path / "client.py"
    program.write_text(block("python"))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.linger = 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        command = [sys.executable, str(program), f"tcp://127.0.0.1:{port}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            try:
                assert router.poll(20_000), "the program sent nothing"
                origin, header, body = router.recv_multipart()
                client_id, item = codec.decode(body)
                router.send_multipart([origin, *REPLY])
                output, complaints = client.communicate(timeout=20)
            finally:
                client.kill()
    assert (header, item, len(client_id)) == (CALL[0], list(ITEM), 16)
    assert (output, complaints, client.returncode) == (b"3\n", b"", 0)
    assert struct.calcsize(">BBHIQ32sQ") == len(header)
