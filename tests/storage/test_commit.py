"""Group commit: what becomes durable when, who is told, and what a failed write does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perdure.errors import StorageError
from perdure_storage.commit import (
    EXIT_COMMIT_FAILED,
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


# --- with the real thread


class Waiting:
    """A committer on a running loop; `durable(group)` waits until that group was told."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        self.told: list[int] = []
        self.changed = asyncio.Event()
        self.threads: set[int] = set()
        self.committer = Committer(
            engine,
            notify=loop.call_soon_threadsafe,
            on_durable=self.on_durable,
            group_bytes_max=KIB,
            **options,
        )

    def on_durable(self, group: int) -> None:
        self.told.append(group)
        self.threads.add(threading.get_ident())
        self.changed.set()

    async def durable(self, group: int) -> None:
        while self.committer.durable < group:
            self.changed.clear()
            await self.changed.wait()


def test_groups_become_durable_in_order_through_the_thread(engine: Engine) -> None:
    async def main() -> None:
        waiting = Waiting(engine)
        committer = waiting.committer
        for number in range(300):
            committer.put(b"%d" % number, b"x" * (number % 50))
            committer.flush()
            if number % 50 == 0:
                await waiting.durable(committer.durable + 1)
        last = committer.group if committer.dirty else committer.group - 1
        await waiting.durable(last)
        assert waiting.told == list(range(1, last + 1))
        assert waiting.threads == {threading.get_ident()}
        assert committer.uncommitted_bytes == 0
        assert [engine.get(b"%d" % number) for number in range(300)] == [b"x" * (n % 50) for n in range(300)]
        committer.close()

    asyncio.run(main())


def test_close_makes_everything_durable_tells_of_it_and_refuses_later_writes(tmp_path: Path) -> None:
    async def main() -> None:
        waiting = Waiting(LevelDBEngine(tmp_path / "db", create=True))
        committer = waiting.committer
        for number in range(100):
            committer.put(b"%d" % number, bytes(100))
            committer.flush()
        expected = committer.group if committer.dirty else committer.group - 1
        committer.close()
        assert committer.durable == expected
        assert waiting.told == list(range(1, expected + 1))
        assert all(thread.name != "perdure-commit" for thread in threading.enumerate())
        with pytest.raises(StorageError, match="closed"):
            committer.put(b"late", b"1")
        with pytest.raises(StorageError, match="closed"):
            committer.delete(b"late")
        committer.close()
        # The thread's own notices, which may still be queued in the loop, tell nothing twice.
        done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        await done
        assert waiting.told == list(range(1, expected + 1))

    asyncio.run(main())
    engine = LevelDBEngine(tmp_path / "db")
    assert all(engine.get(b"%d" % number) == bytes(100) for number in range(100))
    engine.close()


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


def test_the_loop_runs_on_while_the_thread_waits_for_the_disk() -> None:
    disk_may_go_on = threading.Event()

    async def main() -> None:
        waiting = Waiting(MemoryEngine(faults=lambda: assert_true(disk_may_go_on.wait(10))))
        committer = waiting.committer
        committer.put(b"a", b"1")
        committer.flush()
        for _ in range(10):
            committer.put(b"b", b"1")
            committer.flush()
        assert (committer.group, waiting.told) == (2, [])
        disk_may_go_on.set()
        await waiting.durable(2)
        committer.close()

    asyncio.run(main())


def assert_true(value: bool) -> None:
    assert value


def test_a_failed_write_in_the_thread_is_reported_and_never_acknowledged() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        failed = loop.create_future()

        def on_failure(error: BaseException) -> None:
            loop.call_soon_threadsafe(failed.set_result, error)

        def faults() -> None:
            raise OSError(28, "No space left on device")

        engine = MemoryEngine(faults=faults)
        waiting = Waiting(engine, on_failure=on_failure)
        waiting.committer.put(b"a", b"1")
        waiting.committer.flush()
        waiting.committer.put(b"b", b"1")
        assert isinstance(await failed, OSError)
        waiting.committer.flush()
        waiting.committer.close()
        assert (waiting.told, waiting.committer.durable, len(engine.disk)) == ([], 0, 0)

    asyncio.run(main())


DYING_PROCESS = """
import atexit, asyncio, sys
from perdure_storage.commit import Committer
from perdure_storage.memory import MemoryEngine

def faults():
    raise OSError(28, "No space left on device")

async def main():
    atexit.register(print, "exit handlers ran", flush=True)
    committer = Committer(
        MemoryEngine(faults=faults),
        notify=asyncio.get_running_loop().call_soon_threadsafe,
        on_durable=lambda group: print("acknowledged", flush=True),
        group_bytes_max=1024,
    )
    committer.put(b"a", b"1")
    committer.flush()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def run_dying_process(**options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", DYING_PROCESS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=30,
        check=False,
        stdout=subprocess.PIPE,
        **options,
    )


def test_a_failed_write_ends_the_process_at_once_with_one_line_and_exit_code_70() -> None:
    process = run_dying_process(stderr=subprocess.PIPE)
    assert process.returncode == EXIT_COMMIT_FAILED == 70
    assert process.stdout == b""
    assert process.stderr == (
        b"perdure: commit failed, the process ends: OSError: [Errno 28] No space left on device\n"
    )


def test_a_dying_process_does_not_wait_for_a_reader_of_its_stderr() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    try:
        assert run_dying_process(stderr=writer).returncode == EXIT_COMMIT_FAILED
    finally:
        os.close(reader)
        os.close(writer)


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
