"""What every engine promises; each test runs on all of them."""

from __future__ import annotations

import threading

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    rule,
    run_state_machine_as_test,
)

from perdure_storage.engine import Engine

KEYS = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.sampled_from([b"a", b"a\x00", b"a\xff", b"a\xff\xff", b"b", b"\x00", b"\xff"]),
)
EVERYTHING = (b"", b"\xff" * 8)


def write(engine: Engine, *rows: tuple[bytes, bytes | None]) -> None:
    batch = engine.new_batch()
    for key, value in rows:
        if value is None:
            batch.delete(key)
        else:
            batch.put(key, value)
    engine.write(batch)


def test_a_written_row_is_read_back_and_a_missing_one_is_none(engine: Engine) -> None:
    write(engine, (b"a", b"1"), (b"empty", b""))
    assert engine.get(b"a") == b"1"
    assert engine.get(b"empty") == b""
    assert engine.get(b"b") is None


def test_what_is_only_in_a_batch_is_not_in_the_store(engine: Engine) -> None:
    batch = engine.new_batch()
    batch.put(b"a", b"1")
    assert engine.get(b"a") is None


def test_the_last_write_of_a_key_in_a_batch_wins(engine: Engine) -> None:
    write(engine, (b"a", b"1"), (b"a", None), (b"a", b"2"), (b"b", b"1"), (b"b", None))
    assert engine.get(b"a") == b"2"
    assert engine.get(b"b") is None


def test_deleting_a_missing_key_does_nothing(engine: Engine) -> None:
    write(engine, (b"a", b"1"), (b"b", None))
    with engine.scan(*EVERYTHING) as rows:
        assert list(rows) == [(b"a", b"1")]


def test_a_scan_holds_its_start_and_not_its_stop_in_both_directions(engine: Engine) -> None:
    write(engine, *((bytes([byte]), b"") for byte in b"abcde"))
    with engine.scan(b"b", b"d") as rows:
        assert [key for key, _ in rows] == [b"b", b"c"]
    with engine.scan(b"b", b"d", reverse=True) as rows:
        assert [key for key, _ in rows] == [b"c", b"b"]


@pytest.mark.parametrize(("start", "stop"), [(b"b", b"b"), (b"d", b"b"), (b"x", b"z")])
def test_a_scan_of_an_empty_or_contradicting_range_gives_nothing(
    engine: Engine, start: bytes, stop: bytes
) -> None:
    write(engine, *((bytes([byte]), b"") for byte in b"abcde"))
    for reverse in (False, True):
        with engine.scan(start, stop, reverse=reverse) as rows:
            assert list(rows) == []


def test_a_scan_sees_the_instant_of_its_creation(engine: Engine) -> None:
    write(engine, (b"a", b"1"), (b"c", b"1"))
    with engine.scan(*EVERYTHING) as rows:
        write(engine, (b"a", b"2"), (b"b", b"2"), (b"c", None))
        assert list(rows) == [(b"a", b"1"), (b"c", b"1")]


def test_a_scan_can_be_left_early_and_closed_twice(engine: Engine) -> None:
    write(engine, (b"a", b"1"), (b"b", b"1"))
    rows = engine.scan(*EVERYTHING)
    assert next(rows) == (b"a", b"1")
    rows.close()
    rows.close()
    with pytest.raises(RuntimeError):
        next(rows)


def test_a_snapshot_keeps_its_instant_until_it_is_closed(engine: Engine) -> None:
    write(engine, (b"a", b"1"))
    with engine.snapshot() as snapshot:
        write(engine, (b"a", b"2"), (b"b", b"2"))
        assert snapshot.get(b"a") == b"1"
        assert snapshot.get(b"b") is None
        with snapshot.scan(*EVERYTHING) as rows:
            assert list(rows) == [(b"a", b"1")]
        with engine.scan(*EVERYTHING) as rows:
            assert list(rows) == [(b"a", b"2"), (b"b", b"2")]
    snapshot.close()
    with pytest.raises(RuntimeError):
        snapshot.get(b"a")


def test_stats_name_the_engine_and_count_its_writes(engine: Engine) -> None:
    before = engine.stats()
    write(engine, (b"a", b"1"))
    after = engine.stats()
    assert after["engine"] in {"leveldb", "memory"}
    assert (before["writes"], after["writes"]) == (0, 1)


def test_a_closed_engine_refuses_every_use_and_may_be_closed_again(engine: Engine) -> None:
    batch = engine.new_batch()
    batch.put(b"a", b"1")
    engine.close()
    engine.close()
    for use in (
        lambda: engine.get(b"a"),
        lambda: engine.scan(*EVERYTHING),
        engine.new_batch,
        engine.snapshot,
        lambda: engine.write(batch),
    ):
        with pytest.raises(RuntimeError):
            use()


def test_reads_beside_a_writing_thread_never_see_half_a_batch(engine: Engine) -> None:
    write(engine, (b"a", b"0"), (b"b", b"0"))
    enough_reads = threading.Event()

    def keep_writing() -> None:
        number = 0
        while not enough_reads.is_set():
            number += 1
            value = str(number).encode()
            write(engine, (b"a", value), (b"b", value))

    thread = threading.Thread(target=keep_writing)
    thread.start()
    seen = set()
    try:
        while len(seen) < 20:
            with engine.scan(*EVERYTHING) as rows:
                values = {value for _, value in rows}
            assert len(values) == 1
            seen |= values
    finally:
        enough_reads.set()
        thread.join()


class EngineAgainstDict(RuleBasedStateMachine):
    """An engine does what a sorted dict does."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.model: dict[bytes, bytes] = {}
        with engine.scan(*EVERYTHING) as rows:
            leftovers = [(key, None) for key, _ in rows]
        write(engine, *leftovers)

    @rule(rows=st.lists(st.tuples(KEYS, st.one_of(st.none(), st.binary(max_size=4))), min_size=1, max_size=5))
    def write(self, rows: list[tuple[bytes, bytes | None]]) -> None:
        write(self.engine, *rows)
        for key, value in rows:
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value

    @rule(start=KEYS, stop=KEYS, reverse=st.booleans())
    def scan(self, start: bytes, stop: bytes, reverse: bool) -> None:
        expected = sorted(((k, v) for k, v in self.model.items() if start <= k < stop), reverse=reverse)
        with self.engine.scan(start, stop, reverse=reverse) as rows:
            assert list(rows) == expected

    @rule(key=KEYS)
    def get(self, key: bytes) -> None:
        assert self.engine.get(key) == self.model.get(key)


def test_an_engine_behaves_as_a_sorted_dict(engine: Engine) -> None:
    run_state_machine_as_test(
        lambda: EngineAgainstDict(engine),
        settings=settings(max_examples=40, stateful_step_count=15, deadline=None),
    )
