"""The due index in memory: the soonest rows first, none twice, none lost, however many there are on disk."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure_storage import keys
from perdure_storage.engine import Scan
from perdure_storage.memory import MemoryEngine
from perdure_storage.records import seal
from perdure_worker.due import DueIndex

OBJECT_ID = bytes(range(32))


def row(at_ms: int, name: str = "a", kind: bytes = keys.ALARM) -> bytes:
    return keys.due_key(at_ms, kind, 5, "Room", OBJECT_ID, name.encode())


class Store:
    """Rows on a disk in memory, and how many of them were read."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.scans = 0

    def put(self, *rows: bytes) -> None:
        self.engine.disk.apply([(key, seal(key, b"")) for key in rows])

    def delete(self, *rows: bytes) -> None:
        self.engine.disk.apply([(key, None) for key in rows])

    def scan(self, start: bytes, stop: bytes) -> Scan:
        self.scans += 1
        return self.engine.scan(start, stop)

    def index(self, *, page_rows: int = 4, rows_max: int = 8) -> DueIndex:
        return DueIndex(self.scan, page_rows=page_rows, rows_max=rows_max)


@pytest.fixture
def store() -> Store:
    return Store()


def times(index: DueIndex, now_ms: int, limit: int = 1_000) -> list[int]:
    return [due.at_ms for due in index.due(now_ms, limit)]


def test_rows_are_given_out_when_their_time_has_come_the_soonest_first(store: Store) -> None:
    index = store.index()
    for at_ms in (30, 10, 20):
        index.add(row(at_ms))
    store.put(row(10), row(20), row(30))
    assert index.next_at_ms == 10
    assert times(index, 9) == []
    assert times(index, 20) == [10, 20]
    assert index.next_at_ms == 30
    assert times(index, 1 << 50) == [30]
    assert index.next_at_ms is None


def test_a_row_says_what_is_due_for_whom(store: Store) -> None:
    index = store.index()
    store.put(row(7, "ring", keys.OUTBOX))
    assert index.due(7, 1) == [(7, keys.OUTBOX, 5, "Room", OBJECT_ID, b"ring")]


def test_no_more_than_asked_for_are_given_out_and_none_twice(store: Store) -> None:
    store.put(*(row(at_ms) for at_ms in range(10)))
    index = store.index()
    taken = [times(index, 100, limit=3) for _ in range(6)]
    assert [at_ms for some in taken for at_ms in some] == list(range(10))
    assert max(map(len, taken)) == 3


def test_a_deleted_row_is_not_given_out_and_one_added_twice_only_once(store: Store) -> None:
    index = store.index()
    store.put(row(1), row(2))
    assert index.next_at_ms == 1
    index.add(row(1))
    index.add(row(2))
    index.discard(row(1))
    index.discard(row(99))
    assert times(index, 100) == [2]


def test_rows_of_one_instant_do_not_hide_each_other(store: Store) -> None:
    index = store.index()
    index.due(0, 1)
    for name in "bca":
        index.add(row(5, name))
    assert [due.key for due in index.due(5, 9)] == [b"a", b"b", b"c"]


def test_a_start_reads_one_page_and_asking_again_reads_nothing(store: Store) -> None:
    store.put(*(row(at_ms) for at_ms in range(1_000, 2_000)))
    index = store.index(page_rows=10, rows_max=20)
    assert index.next_at_ms == 1_000
    assert (len(index), store.scans, index.complete) == (10, 1, False)
    for now_ms in range(1_000):
        assert not index.due(now_ms, 100)
    assert store.scans == 1


def test_memory_is_bounded_when_rows_are_added_and_none_is_lost(store: Store) -> None:
    index = store.index(page_rows=10, rows_max=20)
    assert index.next_at_ms is None
    numbers = list(range(500))
    random.Random(3).shuffle(numbers)
    for number in numbers:
        store.put(row(number))
        index.add(row(number))
        assert len(index) <= 20
    found: list[int] = []
    while taken := times(index, 1_000, limit=7):
        found += taken
        assert len(index) <= 20
    assert found == list(range(500))


def test_what_lies_beyond_the_page_is_read_when_it_is_near(store: Store) -> None:
    store.put(*(row(at_ms) for at_ms in range(8)))
    index = store.index(page_rows=4, rows_max=8)
    assert index.next_at_ms == 0
    store.put(row(6, "later"), row(2, "soon"))
    index.add(row(6, "later"))  # beyond the page: its place is on disk
    index.add(row(2, "soon"))
    store.delete(row(7))
    index.discard(row(7))
    due = [(found.at_ms, found.key) for _ in range(4) for found in index.due(100, 100)]
    expected = [(at_ms, b"a") for at_ms in range(7)] + [(6, b"later"), (2, b"soon")]
    assert due == sorted(expected)


def test_a_damaged_row_is_passed_over_and_stops_no_other(store: Store) -> None:
    damaged = keys.DUE_REGION + bytes(8) + b"junk"
    store.put(damaged, row(2))
    store.engine.disk.apply([(row(1), b"\x01junk!")])  # says all it can say in its key
    assert times(store.index(), 5) == [1, 2]


def test_a_store_that_cannot_be_read_is_an_error_and_not_an_empty_index(store: Store) -> None:
    store.put(row(1))
    index = store.index()
    store.engine.close()
    with pytest.raises(RuntimeError):
        index.due(5, 1)
    store.engine = MemoryEngine(store.engine.disk)
    assert times(index, 5) == [1]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 9), st.integers(0, 30)),
        st.tuples(st.just("delete"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("take"), st.integers(0, 30), st.integers(1, 3)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 4), st.integers(4, 8))
def test_it_behaves_as_a_sorted_list_of_all_rows_would(
    steps: list[tuple[str, int, int]], page_rows: int, rows_max: int
) -> None:
    store = Store()
    index = store.index(page_rows=page_rows, rows_max=rows_max)
    pending: set[bytes] = set()
    actions: dict[str, Callable[[int, int], None]] = {}

    def set_row(name: int, at_ms: int) -> None:
        # The clock of this model does not go back: no row is set before one that was given out.
        new = row(max(at_ms, reached), str(name))
        store.put(new)
        index.add(new)
        pending.add(new)

    def delete(name: int, _: int) -> None:
        for old in [old for old in pending if keys.parse_due_row(old).key == str(name).encode()]:
            store.delete(old)
            index.discard(old)
            pending.discard(old)

    def take(now_ms: int, limit: int) -> None:
        nonlocal reached
        expected = sorted(old for old in pending if keys.due_at_ms(old) <= now_ms)
        taken = [keys.due_key(*found) for found in index.due(now_ms, limit)]
        assert taken == expected[: len(taken)]
        assert len(taken) == min(limit, len(expected)) or 0 < len(taken) < limit  # up to the page's end
        for old in taken:
            store.delete(old)
            pending.discard(old)
            reached = max(reached, keys.due_at_ms(old) + 1)

    def restart(*_: int) -> None:
        nonlocal index
        index = store.index(page_rows=page_rows, rows_max=rows_max)

    reached = 0
    actions.update({"set": set_row, "delete": delete, "take": take, "restart": restart})
    for action, first, second in steps:
        actions[action](first, second)
        assert len(index) <= rows_max
        soonest = min(map(keys.due_at_ms, pending), default=None)
        assert index.next_at_ms == soonest
