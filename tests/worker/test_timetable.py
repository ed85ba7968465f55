"""The timetable: nothing before its time, nothing lost, bounded batches, whatever the wall clock does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from perdure.errors import StorageError
from perdure.limits import Limits
from perdure_storage import keys
from perdure_storage.engine import Scan
from perdure_storage.keys import DueRow
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_storage.records import seal
from perdure_worker.timetable import Timetable
from worker.host_scene import SteppedLoop

OBJECT_ID = bytes(range(32))
START_MS = 1_700_000_000_000
LIMITS = Limits(due_batch_rows=3, due_page_rows=10, due_rows_max=20)


def row(at_ms: int, name: str = "a", kind: bytes = keys.ALARM) -> bytes:
    return keys.due_key(START_MS + at_ms, kind, 5, "Room", OBJECT_ID, name.encode())


class Scene:
    """A timetable with a loop and a wall clock that tests move; looks every 50 ms as the host does."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.loop = SteppedLoop()
        self.step_s = 0.0  # by how much somebody set the wall clock
        self.engine = MemoryEngine(disk)
        self.broken = False
        self.given: list[tuple[int, int]] = []  # time of the row, time of the wall clock
        self.batches: list[int] = []
        self.room = True
        self.table = Timetable(self.scan, self.loop, self.wall_clock, self.start, LIMITS)
        self.table.serve(keys.ALARM, self.serve, lambda: self.room)

    def wall_clock(self) -> float:
        return START_MS / 1000 - 1_000 + self.loop.now + self.step_s

    def scan(self, start: bytes, stop: bytes) -> Scan:
        if self.broken:
            raise StorageError("unreadable")
        return self.engine.scan(start, stop)

    def start(self) -> None:
        self.batches.append(-len(self.given))
        self.table.start()
        self.batches[-1] += len(self.given)

    def serve(self, due: DueRow) -> None:
        self.given.append((due.at_ms - START_MS, self.table.now_ms() - START_MS))

    def put(self, *rows: bytes) -> None:
        """Commits rows."""
        self.engine.disk.apply([(key, seal(key, b"")) for key in rows])
        self.table.committed([(key, True) for key in rows])

    def delete(self, *rows: bytes) -> None:
        self.engine.disk.apply([(key, None) for key in rows])
        self.table.committed([(key, False) for key in rows])

    def settle(self) -> None:
        for _ in range(1_000):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            if self.loop.at_rest:
                return
        raise AssertionError("the loop never comes to rest")

    def advance(self, seconds: float) -> None:
        target = self.loop.now + seconds
        while self.loop.now < target:
            look_at = min(target, self.loop.now + 0.05)
            while (when := self.loop.next_timer) is not None and when <= look_at:
                self.loop.now = max(self.loop.now, when)
                self.settle()
            self.loop.now = look_at
            self.table.look()
            self.settle()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.loop.close()


def test_a_row_is_given_out_at_its_millisecond_and_not_before(scene: Scene) -> None:
    scene.put(row(1_234), row(777), row(780))
    scene.advance(3)
    assert [at for at, _ in scene.given] == [777, 780, 1_234]
    assert all(0 <= now - at <= 2 for at, now in scene.given)


def test_a_deleted_row_is_not_given_out(scene: Scene) -> None:
    scene.put(row(500))
    scene.advance(0.49)
    scene.delete(row(500))
    scene.advance(1)
    assert scene.given == []


def test_a_clock_set_back_delays_and_never_gives_out_early(scene: Scene) -> None:
    scene.put(row(1_000))
    scene.advance(0.98)  # its timer runs already
    scene.step_s = -10.0
    scene.advance(9)
    assert scene.given == []
    scene.advance(2)
    assert [now - at <= 2 for at, now in scene.given] == [True]


def test_a_clock_set_forward_gives_out_what_it_passed_once_and_soon(scene: Scene) -> None:
    scene.put(row(3_600_000), row(10_000))
    scene.advance(1)
    scene.step_s = 7_200.0
    scene.advance(0.1)
    assert [at for at, _ in scene.given] == [10_000, 3_600_000]
    scene.step_s = 0.0
    scene.advance(20_000)
    assert len(scene.given) == 2


def test_what_was_due_while_nobody_ran_is_given_out_at_the_first_look() -> None:
    disk = MemoryDisk()
    for at_ms in (-5_000, -1, 60_000):
        disk.apply([(row(at_ms), seal(row(at_ms), b""))])
    scene = Scene(disk)
    scene.table.look()
    scene.settle()
    assert [at for at, _ in scene.given] == [-5_000, -1]
    scene.loop.close()


def test_many_rows_at_once_are_given_out_in_bounded_batches_with_the_loop_in_between(scene: Scene) -> None:
    between: list[Any] = []

    def look_in() -> None:
        between.append(len(scene.given))
        if len(scene.given) < 100:
            scene.loop.call_soon(look_in)

    scene.put(*(row(0, f"{number:03}") for number in range(100)))
    scene.loop.call_soon(look_in)
    scene.settle()
    assert len(scene.given) == 100
    assert max(scene.batches) == LIMITS.due_batch_rows
    assert between == sorted(between)
    assert max(b - a for a, b in itertools.pairwise(between)) <= LIMITS.due_batch_rows


def test_nothing_is_given_out_while_there_is_no_room(scene: Scene) -> None:
    scene.room = False
    scene.put(row(0))
    scene.advance(1)
    assert scene.given == []
    assert scene.table.stats() == {"due_rows_known": 1, "due_late_ms": 1_000}
    scene.room = True
    scene.table.look()
    scene.settle()
    assert len(scene.given) == 1
    assert scene.table.stats() == {"due_rows_known": 0, "due_late_ms": 0}


def test_a_stopped_worker_gives_out_nothing_more(scene: Scene) -> None:
    scene.put(row(40), row(400))
    scene.advance(0.01)  # its timer runs
    scene.table.stop()
    scene.advance(1)
    assert scene.given == []


def test_a_row_that_was_given_back_is_given_out_again(scene: Scene) -> None:
    scene.put(row(0))
    scene.settle()
    scene.table.again(row(0))
    scene.advance(0.1)
    assert [at for at, _ in scene.given] == [0, 0]


def test_a_store_that_cannot_be_read_is_asked_again_after_a_pause(scene: Scene) -> None:
    scene.engine.disk.apply([(row(0), seal(row(0), b""))])
    scene.broken = True
    scene.advance(1)
    scene.broken = False
    scene.advance(1)
    assert scene.given == []
    scene.advance(5)
    assert len(scene.given) == 1


def test_a_row_that_nobody_serves_does_not_stop_the_others(scene: Scene) -> None:
    scene.put(row(0, kind=b"\x09"), row(1))
    scene.advance(0.1)
    assert [at for at, _ in scene.given] == [1]
