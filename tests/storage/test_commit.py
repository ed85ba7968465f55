"""Group commit: what becomes durable when, who is told, and what a failed write does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perdure_storage.commit import (
    Committer,
    GroupCommit,
    InlineCommitter,
    read_sequence,
)
from perdure_storage.engine import Engine
from perdure_storage.keys import SEQUENCE_KEY
from perdure_storage.leveldb import LevelDBEngine
from perdure_storage.memory import MemoryBatch, MemoryDisk, MemoryEngine

KIB = 1024


class Stepper:
    """A committer whose groups are written, and whose notices arrive, when the test says so."""

    def __init__(self, engine: Engine | None = None, *, group_bytes_max: int = KIB) -> None:
        self.engine = engine or MemoryEngine()
        self.jobs: list[Callable[[], None]] = []
        self.notices: list[Callable[[], None]] = []
        self.told: list[int] = []
        self.committer = Committer(
            self.engine,
            notify=lambda callback, group: self.notices.append(lambda: callback(group)),
            on_durable=self.told.append,
            group_bytes_max=group_bytes_max,
            on_failure=raise_it,
            submit=self.jobs.append,
        )

    def write(self) -> None:
        """The commit thread's work for one group."""
        self.jobs.pop(0)()

    def tell(self) -> None:
        """The loop thread runs the notice of one group."""
        self.notices.pop(0)()


def raise_it(error: BaseException) -> NoReturn:
    raise error


# --- with a stepped thread


def test_what_is_put_is_durable_and_told_only_after_its_group_is_written() -> None:
    stepper = Stepper()
    committer = stepper.committer
    assert (committer.group, committer.durable, committer.dirty) == (1, 0, False)
    committer.put(b"a", b"1")
    assert committer.dirty
    committer.flush()
    assert (committer.group, committer.durable, committer.dirty) == (2, 0, False)
    assert stepper.engine.get(b"a") is None
    stepper.write()
    assert stepper.engine.get(b"a") == b"1"
    assert (committer.durable, stepper.told) == (0, [])
    stepper.tell()
    assert (committer.durable, stepper.told) == (1, [1])


def test_an_empty_group_is_not_written() -> None:
    stepper = Stepper()
    stepper.committer.flush()
    assert (stepper.jobs, stepper.committer.group) == ([], 1)


def test_while_a_group_is_written_all_later_writes_share_the_next_one() -> None:
    stepper = Stepper()
    committer = stepper.committer
    committer.put(b"a", b"1")
    committer.flush()
    for key in (b"b", b"c", b"d"):
        committer.put(key, b"1")
        committer.flush()
        assert committer.group == 2
    stepper.write()
    stepper.tell()
    assert (len(stepper.jobs), committer.group) == (1, 3)  # handed over without another flush
    stepper.write()
    stepper.tell()
    assert [stepper.engine.get(key) for key in (b"b", b"c", b"d")] == [b"1"] * 3
    assert stepper.told == [1, 2]


def test_the_next_group_is_on_its_way_before_the_outputs_of_the_finished_one() -> None:
    stepper = Stepper()
    stepper.committer.put(b"a", b"1")
    stepper.committer.flush()
    stepper.committer.put(b"b", b"1")
    stepper.write()
    seen: list[int] = []
    stepper.committer._on_durable = lambda group: seen.append(len(stepper.jobs))
    stepper.tell()
    assert seen == [1]


def test_a_group_at_its_size_limit_is_closed_although_the_thread_is_busy() -> None:
    stepper = Stepper(group_bytes_max=100)
    committer = stepper.committer
    committer.put(b"a", b"1")
    committer.flush()
    committer.put(b"b", bytes(98))
    committer.flush()
    assert committer.group == 2
    committer.put(b"c", b"")
    committer.flush()
    assert committer.group == 3
    committer.put(b"d", b"1")
    committer.flush()
    assert (committer.group, len(stepper.jobs)) == (3, 1)
    for _ in range(3):
        stepper.write()
        stepper.tell()
    assert stepper.told == [1, 2, 3]
    assert stepper.engine.get(b"d") == b"1"


def test_uncommitted_bytes_count_keys_and_values_until_their_group_is_durable() -> None:
    stepper = Stepper()
    committer = stepper.committer
    committer.put(b"key", b"value")
    committer.delete(b"gone")
    assert committer.uncommitted_bytes == 12
    committer.flush()
    committer.put(b"b", b"1")
    assert committer.uncommitted_bytes == 14
    stepper.write()
    assert committer.uncommitted_bytes == 14
    stepper.tell()
    assert committer.uncommitted_bytes == 2
    stepper.write()
    stepper.tell()
    assert committer.uncommitted_bytes == 0


def test_deletes_and_puts_of_one_key_keep_their_order_over_groups() -> None:
    stepper = Stepper()
    for write in (
        lambda: stepper.committer.put(b"a", b"1"),
        lambda: stepper.committer.delete(b"a"),
        lambda: stepper.committer.put(b"a", b"2"),
    ):
        write()
        stepper.committer.flush()
        stepper.write()
        stepper.tell()
    assert stepper.engine.get(b"a") == b"2"


def test_a_write_that_is_no_bytes_fails_alone_and_is_not_counted(tmp_path: Path) -> None:
    stepper = Stepper(LevelDBEngine(tmp_path / "db", create=True))
    with pytest.raises(TypeError):
        stepper.committer.put(b"a", "text")  # type: ignore[arg-type]
    assert not stepper.committer.dirty
    stepper.committer.close()


def test_the_commit_sequence_grows_by_one_with_each_group_over_restarts() -> None:
    disk = MemoryDisk()
    for expected in (1, 2, 3):
        stepper = Stepper(MemoryEngine(disk))
        assert stepper.committer.sequence == expected - 1
        stepper.committer.put(b"a", b"1")
        stepper.committer.flush()
        stepper.write()
        assert read_sequence(stepper.engine) == expected
        assert stepper.committer.sequence == expected - 1
        stepper.tell()
        assert stepper.committer.sequence == expected


def test_a_group_is_on_disk_together_with_its_sequence_number_or_not_at_all() -> None:
    def faults() -> None:
        raise OSError(28, "No space left on device")

    stepper = Stepper(MemoryEngine(faults=faults))
    stepper.committer.put(b"a", b"1")
    stepper.committer.flush()
    with pytest.raises(OSError, match="No space"):
        stepper.write()
    assert stepper.engine.get(b"a") is None
    assert stepper.engine.get(SEQUENCE_KEY) is None


def test_after_a_failed_write_nothing_is_told_and_nothing_more_is_written() -> None:
    failing = True

    def faults() -> None:
        if failing:
            raise OSError(5, "Input/output error")

    engine = MemoryEngine(faults=faults)
    stepper = Stepper(engine)
    stepper.committer.put(b"a", b"1")
    stepper.committer.flush()
    stepper.committer.put(b"b", b"1")
    with pytest.raises(OSError, match="Input/output"):
        stepper.write()
    failing = False
    stepper.committer.flush()
    assert (stepper.jobs, stepper.notices, stepper.told) == ([], [], [])
    stepper.committer.close()
    assert (stepper.told, stepper.committer.durable) == ([], 0)
    assert len(engine.disk) == 0


def test_closing_before_a_submitted_group_is_written_is_an_error() -> None:
    stepper = Stepper()
    stepper.committer.put(b"a", b"1")
    stepper.committer.flush()
    with pytest.raises(RuntimeError, match="run its job"):
        stepper.committer.close()


def test_a_write_that_fails_while_closing_is_never_acknowledged() -> None:
    failures: list[BaseException] = []
    failing = False

    def faults() -> None:
        if failing:
            raise OSError(5, "Input/output error")

    told: list[int] = []
    committer = InlineCommitter(
        MemoryEngine(faults=faults), on_durable=told.append, group_bytes_max=KIB, on_failure=failures.append
    )
    committer.put(b"a", b"1")
    failing = True
    committer.close()
    assert (told, committer.durable, len(failures)) == ([], 0, 1)


# --- the pure part against a model


class GroupsAgainstModel(RuleBasedStateMachine):
    """Any order of events keeps the groups in order, their writes complete and the byte counts right."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = GroupCommit(MemoryBatch, sequence=40, group_bytes_max=30)
        self.put: dict[int, list[tuple[bytes, bytes | None]]] = {}
        self.handed_over: list[int] = []

    @rule(key=st.binary(min_size=1, max_size=10), value=st.one_of(st.none(), st.binary(max_size=20)))
    def write(self, key: bytes, value: bytes | None) -> None:
        self.put.setdefault(self.groups.group, []).append((key, value))
        if value is None:
            self.groups.delete(key)
        else:
            self.groups.put(key, value)

    @rule()
    def flush(self) -> None:
        was_idle = self.groups.in_flight is None
        group = self.groups.flush()
        self.take(group)
        if was_idle:
            assert not self.groups.dirty

    @precondition(lambda self: self.groups.in_flight is not None)
    @rule()
    def written(self) -> None:
        in_flight = self.groups.in_flight
        assert in_flight is not None
        following = self.groups.written(in_flight.group)
        assert self.groups.durable == in_flight.group
        assert following is not None or not self.groups.dirty
        self.take(following)

    def take(self, group: Any) -> None:
        if group is not None:
            *writes, (key, _) = group.batch.writes
            assert (writes, key) == (self.put[group.group], SEQUENCE_KEY)
            self.handed_over.append(group.group)

    @invariant()
    def holds(self) -> None:
        self.groups.validate()
        assert self.handed_over == list(range(1, len(self.handed_over) + 1))
        assert self.groups.sequence == 40 + self.groups.durable
        waiting = [row for group, rows in self.put.items() if group > self.groups.durable for row in rows]
        assert self.groups.uncommitted_bytes == sum(len(k) + len(v or b"") for k, v in waiting)


TestGroupsAgainstModel = GroupsAgainstModel.TestCase


def test_a_notice_for_a_group_that_is_not_in_flight_is_a_defect_and_says_so() -> None:
    groups = GroupCommit(MemoryBatch, sequence=0, group_bytes_max=30)
    groups.put(b"a", b"1")
    groups.flush()
    with pytest.raises(RuntimeError, match="not in flight"):
        groups.written(2)


# --- inline


def test_an_inline_committer_makes_a_group_durable_within_flush() -> None:
    told: list[int] = []
    engine = MemoryEngine()
    committer = InlineCommitter(engine, on_durable=told.append, group_bytes_max=KIB)
    committer.put(b"a", b"1")
    committer.flush()
    assert (engine.get(b"a"), committer.durable, told) == (b"1", 1, [1])
    committer.put(b"b", b"1")
    committer.close()
    assert (MemoryEngine(engine.disk).get(b"b"), told) == (b"1", [1, 2])


def test_an_inline_committer_raises_the_error_of_its_write_and_goes_no_further() -> None:
    def faults() -> None:
        raise OSError(28, "No space left on device")

    told: list[int] = []
    committer = InlineCommitter(MemoryEngine(faults=faults), on_durable=told.append, group_bytes_max=KIB)
    committer.put(b"a", b"1")
    with pytest.raises(OSError, match="No space"):
        committer.flush()
    committer.flush()
    committer.close()
    assert told == []


def test_close_writes_what_on_durable_puts_during_it() -> None:
    engine = MemoryEngine()
    committer: InlineCommitter

    def on_durable(group: int) -> None:
        if group < 3:
            committer.put(b"%d" % group, b"1")

    committer = InlineCommitter(engine, on_durable=on_durable, group_bytes_max=KIB)
    committer.put(b"0", b"1")
    committer.close()
    disk = MemoryEngine(engine.disk)
    assert [disk.get(b"%d" % group) for group in range(3)] == [b"1"] * 3
