"""Group commit: what is written while the disk is busy waits a moment for more, and never for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

from perdure_storage.commit import Committer
from perdure_storage.memory import MemoryEngine

KIB = 1024
A_MINUTE_S = 60.0
_PATIENCE_S = 10.0


class Scene:
    """A committer that gathers, on a disk that writes when the test says so."""

    def __init__(self, gather_s: float) -> None:
        self._allowed = threading.Semaphore(0)
        self._changed = asyncio.Event()
        self.on_disk_when_told: list[int | None] = []
        self.engine = MemoryEngine(faults=self._wait_for_disk)
        self.committer = Committer(
            self.engine,
            notify=asyncio.get_running_loop().call_soon_threadsafe,
            on_durable=self._on_durable,
            group_bytes_max=KIB,
            gather_s=gather_s,
            gather_bytes=100,
        )

    def _wait_for_disk(self) -> None:
        assert self._allowed.acquire(timeout=_PATIENCE_S)

    def _on_durable(self, group: int) -> None:
        self.on_disk_when_told.append(self.in_flight())
        self.committer.flush()  # as the worker does, when the answers have left
        self._changed.set()

    def in_flight(self) -> int | None:
        """The group that the disk works on."""
        group = self.committer.groups.in_flight
        return None if group is None else group.group

    def put(self, key: bytes, size: int = 1) -> None:
        """A write, and the end of a tick."""
        self.committer.put(key, bytes(size))
        self.committer.flush()

    def disk_writes(self, groups: int = 1) -> None:
        """So many groups get to the disk, as soon as they come."""
        self._allowed.release(groups)

    async def durable(self, group: int) -> None:
        """Waits until the group was told."""
        async with asyncio.timeout(_PATIENCE_S):
            while self.committer.durable < group:
                self._changed.clear()
                await self._changed.wait()


def run(story: Callable[[Scene], Awaitable[None]], gather_s: float = A_MINUTE_S) -> None:
    async def main() -> None:
        scene = Scene(gather_s)
        try:
            await story(scene)
        finally:
            scene.disk_writes(10)
            scene.committer.close()

    asyncio.run(main())


def test_what_was_put_while_the_disk_was_busy_waits_for_more_and_leaves_with_it() -> None:
    async def story(scene: Scene) -> None:
        scene.put(b"a")
        scene.put(b"b")
        scene.disk_writes(10)
        await scene.durable(1)
        assert (scene.in_flight(), scene.engine.get(b"b")) == (None, None)
        scene.committer.gathered()
        scene.put(b"c")
        await scene.durable(2)
        assert (scene.engine.get(b"b"), scene.engine.get(b"c")) == (b"\0", b"\0")
        assert (scene.committer.durable, scene.committer.dirty) == (2, False)

    run(story)


def test_it_does_not_wait_for_more_than_a_moment() -> None:
    async def story(scene: Scene) -> None:
        scene.put(b"a")
        scene.put(b"b")
        scene.disk_writes(10)
        await scene.durable(2)

    run(story, gather_s=0.001)


def test_a_write_that_finds_the_disk_idle_waits_for_nothing() -> None:
    async def story(scene: Scene) -> None:
        scene.disk_writes(10)
        for group in range(1, 5):
            scene.put(b"a")
            await scene.durable(group)

    run(story)


def test_what_is_large_enough_already_goes_to_the_disk_before_the_answers_leave() -> None:
    async def story(scene: Scene) -> None:
        scene.put(b"a")
        scene.put(b"b", 100)
        scene.disk_writes(10)
        await scene.durable(2)
        assert scene.on_disk_when_told == [2, None]

    run(story)


def test_what_grows_large_while_it_waits_leaves_at_once_and_so_does_the_next_write() -> None:
    async def story(scene: Scene) -> None:
        scene.put(b"a")
        scene.put(b"b")
        scene.disk_writes(10)
        await scene.durable(1)
        assert scene.in_flight() is None
        scene.put(b"c", 100)
        await scene.durable(2)
        scene.put(b"d")
        await scene.durable(3)

    run(story)


def test_the_end_of_an_earlier_wait_does_not_end_a_later_one() -> None:
    async def story(scene: Scene) -> None:
        committer = scene.committer
        scene.put(b"a")
        scene.put(b"b")
        scene.disk_writes()
        await scene.durable(1)
        committer.gathered()
        committer.flush()
        scene.put(b"c")
        scene.disk_writes()
        await scene.durable(2)
        committer._stop_gathering(1)  # as the thread would, had its time been up before the next job came
        assert scene.in_flight() is None
        committer._stop_gathering(2)
        assert scene.in_flight() == 3

    run(story)


def test_what_waits_is_on_disk_when_the_committer_has_been_closed() -> None:
    async def story(scene: Scene) -> None:
        scene.put(b"a")
        scene.put(b"b")
        scene.disk_writes(10)
        await scene.durable(1)
        assert scene.in_flight() is None
        disk = scene.engine.disk
        scene.committer.close()
        assert disk.get(b"b") == b"\0"

    run(story)
