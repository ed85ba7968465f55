"""Keys on disk are injective and ordered, whatever bytes names and keys hold."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure_storage import keys

SEPARATORS = ["/", "\0", ":", "\x01", "\x02", "\x7f", "\u0080", "\uffff", "\U0010ffff", "a"]
TEXTS = st.one_of(st.text(max_size=12), st.text(alphabet=SEPARATORS, max_size=6))
NAMESPACES = TEXTS.filter(lambda text: len(text.encode()) <= 255)
# Ids that differ only at their ends, and the ones at the edges.
IDS = st.one_of(
    st.binary(min_size=32, max_size=32),
    st.sampled_from([bytes(32), b"\xff" * 32, b"\x01" * 31 + b"\x00", b"\x01" * 31 + b"\x02"]),
)
KINDS = st.sampled_from([keys.META, keys.FIELD, keys.VALUE, keys.ALARM, keys.REPLY, keys.OUTBOX, keys.SOCKET])
SLOTS = st.integers(0, keys.SLOTS_MAX - 1)
ROWS = st.tuples(SLOTS, NAMESPACES, IDS, KINDS, st.one_of(TEXTS.map(str.encode), st.binary(max_size=6)))
NAMES = st.tuples(NAMESPACES, st.one_of(st.none(), TEXTS), IDS)
PREFIXES = st.binary(min_size=1, max_size=5).filter(lambda prefix: prefix.strip(b"\xff"))

TIMES = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 300))


def due_key(at_ms: int, row: tuple[int, str, bytes, bytes, bytes]) -> bytes:
    slot, namespace, object_id, kind, key = row
    return keys.due_key(at_ms, kind, slot, namespace, object_id, key)


def row_key(row: tuple[int, str, bytes, bytes, bytes]) -> bytes:
    slot, namespace, object_id, kind, key = row
    return keys.object_prefix(slot, namespace, object_id) + kind + key


@given(ROWS)
def test_an_object_row_reads_back_as_what_it_was_made_from(row: tuple[int, str, bytes, bytes, bytes]) -> None:
    assert keys.parse_object_row(row_key(row)) == row


@given(ROWS, ROWS)
def test_rows_are_equal_only_for_equal_parts_and_sorted_by_them(
    a: tuple[int, str, bytes, bytes, bytes], b: tuple[int, str, bytes, bytes, bytes]
) -> None:
    def order(row: tuple[int, str, bytes, bytes, bytes]) -> tuple[object, ...]:
        namespace = row[1].encode()
        return row[0], len(namespace), namespace, *row[2:]

    assert (row_key(a) == row_key(b)) == (a == b)
    assert (row_key(a) < row_key(b)) == (order(a) < order(b))


@given(TIMES, ROWS)
def test_a_due_row_reads_back_as_what_it_was_made_from(
    at_ms: int, row: tuple[int, str, bytes, bytes, bytes]
) -> None:
    found = keys.parse_due_row(due_key(at_ms, row))
    assert (found.slot, found.namespace, found.object_id, found.kind, found.key) == row
    assert found.at_ms == keys.due_at_ms(due_key(at_ms, row)) == at_ms
    assert keys.due_key_of(at_ms, row_key(row)) == due_key(at_ms, row)


@given(TIMES, ROWS, TIMES, ROWS)
def test_due_rows_are_equal_only_for_equal_parts_and_the_soonest_come_first(
    at_ms: int,
    row: tuple[int, str, bytes, bytes, bytes],
    other_at_ms: int,
    other: tuple[int, str, bytes, bytes, bytes],
) -> None:
    a, b = due_key(at_ms, row), due_key(other_at_ms, other)
    assert (a == b) == ((at_ms, row) == (other_at_ms, other))
    if at_ms != other_at_ms:
        assert (a < b) == (at_ms < other_at_ms)


def test_what_is_no_due_row_is_refused() -> None:
    whole = keys.due_key(7, keys.ALARM, 5, "Room", bytes(32), b"")
    assert keys.parse_due_row(whole).key == b""
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match="due index"):
            keys.parse_due_row(whole[:cut])
    with pytest.raises(ValueError, match="due index"):
        keys.parse_due_row(keys.OBJECTS_REGION + whole[1:])
    with pytest.raises(OverflowError):
        keys.due_key(-1, keys.ALARM, 5, "Room", bytes(32), b"")


GATEWAYS = st.binary(min_size=16, max_size=16)
NUMBERS = st.one_of(st.integers(0, (1 << 64) - 1), st.integers(0, 300))


@given(GATEWAYS, NUMBERS, SLOTS, NAMESPACES, IDS)
def test_a_socket_of_a_gateway_reads_back_as_what_it_was_made_from(
    gateway: bytes, number: int, slot: int, namespace: str, object_id: bytes
) -> None:
    socket = gateway + number.to_bytes(8, "big")
    prefix = keys.object_prefix(slot, namespace, object_id)
    row = keys.socket_index_key(socket, prefix)
    assert row.startswith(keys.sockets_prefix(gateway))
    found = keys.parse_socket_row(row)
    assert found == (gateway, slot, namespace, object_id, number)
    assert (found.socket, found.object_row) == (socket, prefix + keys.SOCKET + socket)
    for cut in range(len(row)):
        with pytest.raises(ValueError, match="socket of a gateway"):
            keys.parse_socket_row(row[:cut])
    with pytest.raises(ValueError, match="socket of a gateway"):
        keys.parse_socket_row(row + b"x")


POSITIONS = st.tuples(st.integers(0, (1 << 32) - 1), NUMBERS)


@given(GATEWAYS, POSITIONS, POSITIONS)
def test_records_of_frames_stand_in_the_order_of_epochs_and_counters(
    gateway: bytes, a: tuple[int, int], b: tuple[int, int]
) -> None:
    rows = keys.frames_key(gateway, *a), keys.frames_key(gateway, *b)
    assert [keys.frames_position(row) for row in rows] == [a, b]
    assert (rows[0] < rows[1], rows[0] == rows[1]) == (a < b, a == b)
    assert all(row.startswith(keys.frames_prefix(gateway)) for row in rows)


def test_what_is_no_record_of_frames_and_no_id_of_a_gateway_is_refused() -> None:
    for row in (b"", keys.frames_key(bytes(16), 1, 1)[:-1], keys.SOCKETS_REGION + bytes(28)):
        with pytest.raises(ValueError, match="frames"):
            keys.frames_position(row)
    for prefix in (keys.frames_prefix, keys.sockets_prefix):
        with pytest.raises(ValueError, match="16 bytes"):
            prefix(bytes(15))


@given(SLOTS, NAMESPACES, IDS, NAMESPACES, IDS, KINDS, st.binary(max_size=6))
def test_no_row_of_another_object_lies_within_an_objects_range(
    slot: int, namespace: str, object_id: bytes, other_ns: str, other_id: bytes, kind: bytes, key: bytes
) -> None:
    prefix = keys.object_prefix(slot, namespace, object_id)
    row = keys.object_prefix(slot, other_ns, other_id) + kind + key
    is_own = (namespace, object_id) == (other_ns, other_id)
    assert (prefix <= row < keys.prefix_end(prefix)) == is_own


@given(NAMES, NAMES)
def test_two_objects_share_a_row_of_the_names_index_only_under_one_name(
    a: tuple[str, str | None, bytes], b: tuple[str, str | None, bytes]
) -> None:
    def what_counts(row: tuple[str, str | None, bytes]) -> tuple[object, ...]:
        return row if row[1] is None else row[:2]

    assert (keys.names_key(*a) == keys.names_key(*b)) == (what_counts(a) == what_counts(b))


@given(NAMES, SLOTS)
def test_a_names_row_reads_back_as_what_it_was_made_from(
    row: tuple[str, str | None, bytes], slot: int
) -> None:
    namespace, name, object_id = row
    assert keys.parse_names_row(keys.names_key(*row)) == (
        namespace,
        name,
        object_id if name is None else None,
    )
    assert keys.parse_names_value(keys.names_value(slot, object_id)) == (slot, object_id)


@given(NAMESPACES, st.lists(TEXTS, unique=True), IDS)
def test_names_of_a_namespace_are_neighbours_in_text_order(
    namespace: str, names: list[str], object_id: bytes
) -> None:
    rows = sorted(keys.names_key(namespace, name, object_id) for name in names)
    assert [keys.parse_names_row(row).name for row in rows] == sorted(names)
    start = keys.names_prefix(namespace, named=True)
    assert all(start <= row < keys.prefix_end(start) for row in rows)
    assert not start <= keys.names_key(namespace, None, object_id) < keys.prefix_end(start)


@given(PREFIXES, st.binary(max_size=5))
def test_a_prefix_end_lies_above_every_key_with_the_prefix_and_below_no_other(
    prefix: bytes, key: bytes
) -> None:
    end = keys.prefix_end(prefix)
    assert prefix + key < end
    assert (prefix <= key < end) == key.startswith(prefix)


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"\x01", b"\x02"), (b"\x01a\xff", b"\x01b"), (b"\x01\xff\xff", b"\x02")]
)
def test_trailing_ff_bytes_of_a_prefix_are_dropped_from_its_end(prefix: bytes, end: bytes) -> None:
    assert keys.prefix_end(prefix) == end


@pytest.mark.parametrize("prefix", [b"", b"\xff", b"\xff\xff"])
def test_a_prefix_without_an_end_is_refused(prefix: bytes) -> None:
    with pytest.raises(ValueError, match="no upper bound"):
        keys.prefix_end(prefix)


@given(SLOTS, SLOTS, ROWS)
def test_slot_bounds_hold_exactly_the_rows_of_their_slots(
    a: int, b: int, row: tuple[int, str, bytes, bytes, bytes]
) -> None:
    slots = range(min(a, b), max(a, b) + 1)
    start, stop = keys.slot_bounds(slots)
    assert (start <= row_key(row) < stop) == (row[0] in slots)


def test_the_bounds_of_all_slots_hold_the_last_one_and_no_names() -> None:
    start, stop = keys.slot_bounds(range(keys.SLOTS_MAX))
    last = keys.object_prefix(keys.SLOTS_MAX - 1, "\U0010ffff" * 60, b"\xff" * 32) + b"\xff" * 9
    assert start <= last < stop
    assert not start <= keys.names_key("", None, bytes(32)) < stop


@pytest.mark.parametrize("slots", [range(0, 10, 2), range(-1, 3), range(3, 1), range(keys.SLOTS_MAX + 1)])
def test_slots_that_are_no_contiguous_run_have_no_bounds(slots: range) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        keys.slot_bounds(slots)


@pytest.mark.parametrize(
    ("slot", "namespace", "object_id", "word"),
    [
        (-1, "Room", bytes(32), "slot"),
        (keys.SLOTS_MAX, "Room", bytes(32), "slot"),
        (0, "Room", bytes(31), "32 bytes"),
        (0, "Room", bytes(33), "32 bytes"),
        (0, "é" * 128, bytes(32), "namespace"),
    ],
)
def test_parts_that_do_not_fit_into_a_row_are_refused(
    slot: int, namespace: str, object_id: bytes, word: str
) -> None:
    with pytest.raises(ValueError, match=word):
        keys.object_prefix(slot, namespace, object_id)


@pytest.mark.parametrize(
    "row", [b"", b"\x00epoch", b"\x01", b"\x01\x00\x00\x04Room", b"\x01\x00\x00\x00" + bytes(32)]
)
def test_bytes_that_are_no_object_row_are_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match="not the key of an object row"):
        keys.parse_object_row(row)


@pytest.mark.parametrize("row", [b"", b"\x02", b"\x02\x04Room", b"\x02\x04Room\x02x", b"\x01\x04Room\x01x"])
def test_bytes_that_are_no_names_row_are_refused(row: bytes) -> None:
    with pytest.raises(ValueError, match="not the key of a names-index row"):
        keys.parse_names_row(row)


def test_bytes_that_are_no_names_value_are_refused() -> None:
    with pytest.raises(ValueError, match="not the value"):
        keys.parse_names_value(bytes(33))
