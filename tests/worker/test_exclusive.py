"""`ctx.exclusive()`: who is kept out, who is next, and that it is given back whatever happens."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from perdure import DurableObject, Limits, RemoteError, durable, interleaved
from worker.host_scene import Scene, results, take_time

GATES: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
LOG: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    GATES.clear()
    LOG.clear()


def open_gates(scene: Scene, *names: str) -> None:
    for name in names:
        scene.do(GATES[name].set)


class Room(DurableObject):
    value: int = durable(0)

    @interleaved
    async def walk(self, tag: str) -> str:
        LOG.append(f"in {tag}")
        await GATES[tag].wait()
        LOG.append(f"out {tag}")
        return tag

    @interleaved
    async def lock(self, tag: str, raises: bool = False) -> str:
        async with self.ctx.exclusive():
            LOG.append(f"lock {tag}")
            self.value += 1
            try:
                await GATES[tag].wait()
            finally:
                LOG.append(f"unlock {tag}")
            if raises:
                raise LookupError("inside of the block")
        await take_time(0)
        LOG.append(f"end {tag}")
        return tag

    @interleaved
    async def loop_lock(self, times: int) -> None:
        for _ in range(times):
            async with self.ctx.exclusive():
                LOG.append("again")
                await take_time(0)

    @interleaved
    async def nest(self, how: str) -> str:
        async def inner() -> None:
            async with self.ctx.exclusive():
                LOG.append("never")

        async with self.ctx.exclusive():
            try:
                if how == "in a task":
                    await asyncio.create_task(inner())
                elif how == "the same":
                    block = self.ctx.exclusive()
                    await block.__aenter__()
                else:
                    await inner()
            except RuntimeError as error:
                return str(error)
        return "entered"

    @interleaved
    async def enter_twice(self) -> None:
        block = self.ctx.exclusive()
        async with block, block:
            pass

    async def serial(self) -> str:
        async with self.ctx.exclusive(), self.ctx.exclusive():
            await take_time(0)
        return "serial"

    @interleaved
    async def call_self(self, method: str, *args: Any) -> Any:
        async with self.ctx.exclusive():
            return await getattr(self.ctx.get(Room, str(self.id.name)), method)(*args)

    @interleaved
    async def call_through(self, other: str, method: str) -> Any:
        async with self.ctx.exclusive():
            return await self.ctx.get(Room, other).pass_on(str(self.id.name), method)

    async def pass_on(self, other: str, method: str) -> Any:
        return await getattr(self.ctx.get(Room, other), method)()

    @interleaved
    async def call_when(self, gate: str) -> Any:
        await GATES[gate].wait()
        return await self.ctx.get(Room, str(self.id.name)).look()

    @interleaved
    async def look(self) -> int:
        LOG.append("look")
        return self.value

    @interleaved
    async def leave_open(self, gate: str) -> None:
        await self.ctx.exclusive().__aenter__()
        await GATES[gate].wait()

    @interleaved
    async def wait_in_task(self, gate: str, child_gate: str) -> None:
        async def child() -> None:
            await GATES[child_gate].wait()
            try:
                async with self.ctx.exclusive():
                    LOG.append("entered")
                    await GATES["of the turn"].wait()
            except asyncio.CancelledError:
                LOG.append("gone")

        self.task = asyncio.create_task(child())
        await GATES[gate].wait()
        GATES["of the turn"].set()
        if gate == "joins":
            await self.task

    @interleaved
    async def lock_in_time(self, gate: str) -> str:
        async def child() -> str:
            await GATES[gate].wait()
            try:
                async with asyncio.timeout(1), self.ctx.exclusive():
                    return "in time"
            except TimeoutError:
                async with self.ctx.exclusive():
                    return "too late, then again"

        return await asyncio.create_task(child())

    @interleaved
    async def read_modify_write(self, locked: bool) -> None:
        if locked:
            async with self.ctx.exclusive():
                value = self.value
                await take_time(0.01)
                self.value = value + 1
        else:
            value = self.value
            await take_time(0.01)
            self.value = value + 1

    @interleaved
    async def from_outside(self) -> None:
        async def late() -> None:
            await GATES["late"].wait()
            try:
                async with self.ctx.exclusive():
                    LOG.append("never")
            except RuntimeError as error:
                LOG.append(str(error))

        self.task = asyncio.create_task(late())


def test_nobody_starts_or_goes_on_while_a_turn_is_exclusive(make_scene: Any) -> None:
    scene: Scene = make_scene(Room)
    walker = scene.start(Room, "a", "walk", "1")
    scene.start(Room, "a", "lock", "L")
    later = scene.start(Room, "a", "walk", "2")
    open_gates(scene, "1", "2")
    assert LOG == ["in 1", "lock L"]
    assert not walker.answered
    open_gates(scene, "L")
    scene.commit()
    assert LOG[:3] == ["in 1", "lock L", "unlock L"]
    assert sorted(LOG[3:]) == ["end L", "in 2", "out 1", "out 2"]
    assert (walker.result(), later.result()) == ("1", "2")


def test_who_waits_is_served_first_come_first_served(make_scene: Any) -> None:
    scene = make_scene(Room)
    with scene.one_message():
        calls = [scene.start(Room, "a", "walk", "0")]
        calls += [scene.start(Room, "a", "lock", tag) for tag in "123"]
    assert LOG == ["in 0", "lock 1"]  # the others start when the block ends
    open_gates(scene, "1", "0", "3", "2")
    scene.commit()
    assert [word for word in LOG if word.startswith("lock")] == ["lock 1", "lock 2", "lock 3"]
    assert len(results(calls)) == 4


def test_turns_that_are_inside_wait_for_each_others_blocks_in_order(make_scene: Any) -> None:
    class Late(Room):
        @interleaved
        async def lock_when(self, gate: str, tag: str) -> str:
            await GATES[gate].wait()
            return await self.lock(tag)

    scene = make_scene(Late)
    calls = [scene.start(Late, "a", "lock_when", "go", tag) for tag in "123"]
    open_gates(scene, "go")
    assert LOG == ["lock 1"]
    open_gates(scene, "2")
    assert LOG == ["lock 1"]
    open_gates(scene, "1")
    assert [word for word in LOG if "lock" in word] == ["lock 1", "unlock 1", "lock 2", "unlock 2", "lock 3"]
    open_gates(scene, "3")
    scene.commit()
    assert results(calls) == ["1", "2", "3"]


def test_a_turn_that_takes_block_after_block_does_not_keep_the_others_out(make_scene: Any) -> None:
    scene = make_scene(Room)
    GATES["1"].set()
    with scene.one_message():
        scene.start(Room, "a", "loop_lock", 50)
        scene.start(Room, "a", "walk", "1")
        scene.start(Room, "a", "loop_lock", 50)
    scene.commit()
    assert LOG.index("out 1") < 10
    assert LOG.count("again") == 100


def test_a_read_an_await_and_a_write_are_one_step_when_they_are_exclusive(make_scene: Any) -> None:
    scene = make_scene(Room)
    for locked, expected in ((True, 10), (False, 1)):
        name = str(locked)
        with scene.one_message():
            calls = [scene.start(Room, name, "read_modify_write", locked) for _ in range(10)]
        scene.advance(1)
        scene.commit()
        results(calls)
        assert scene.fields(Room, name) == {"value": expected}


def test_what_the_block_writes_is_committed_where_it_suspends(make_scene: Any) -> None:
    scene = make_scene(Room)
    scene.start(Room, "a", "lock", "L")
    scene.commit()
    assert scene.fields(Room, "a") == {"value": 1}


@pytest.mark.parametrize("how", ["directly", "in a task", "the same"])
def test_a_block_inside_of_a_block_of_the_same_turn_is_an_error(make_scene: Any, how: str) -> None:
    scene = make_scene(Room)
    assert "already" in scene.call(Room, "a", "nest", how)
    assert "never" not in LOG
    open_gates(scene, "L")
    assert scene.call(Room, "a", "lock", "L") == "L"


def test_one_block_cannot_be_entered_twice(make_scene: Any) -> None:
    scene = make_scene(Room)
    with pytest.raises(RemoteError, match="entered already"):
        scene.call(Room, "a", "enter_twice")
    open_gates(scene, "L")
    assert scene.call(Room, "a", "lock", "L") == "L"


def test_in_a_serial_method_it_does_nothing(make_scene: Any) -> None:
    assert make_scene(Room).call(Room, "a", "serial") == "serial"


def test_outside_of_a_turn_it_is_an_error(make_scene: Any) -> None:
    scene = make_scene(Room)
    scene.call(Room, "a", "from_outside")
    open_gates(scene, "late")
    assert LOG == ["ctx.exclusive() is for the methods of the object; this code runs in no turn"]


def test_a_raise_gives_it_back(make_scene: Any) -> None:
    scene = make_scene(Room)
    walker = scene.start(Room, "a", "walk", "1")
    failing = scene.start(Room, "a", "lock", "L", True)
    open_gates(scene, "1", "L")
    scene.commit()
    assert "inside of the block" in str(failing.error())
    assert walker.result() == "1"


def test_the_turn_limit_ends_the_holder_and_who_waits_and_the_rest_goes_on(make_scene: Any) -> None:
    scene = make_scene(Room, limits=Limits(turn_max_s=5))
    holder = scene.start(Room, "a", "lock", "L", timeout_ms=1_000)
    scene.advance(3)
    walker = scene.start(Room, "a", "walk", "1")
    GATES["1"].set()
    scene.advance(2.5)
    scene.commit()
    assert "TurnLimit" in str(holder.error())
    assert walker.result() == "1"


def test_a_turn_that_is_cancelled_while_it_waits_does_not_get_it_later(make_scene: Any) -> None:
    class Late(Room):
        @interleaved
        async def lock_when(self, gate: str, tag: str) -> str:
            await GATES[gate].wait()
            return await self.lock(tag)

    scene = make_scene(Late, limits=Limits(turn_max_s=5))
    waiter = scene.start(Late, "a", "lock_when", "go", "W", timeout_ms=1_000)
    scene.advance(2)
    holder = scene.start(Late, "a", "lock", "L")
    last = scene.start(Late, "a", "walk", "1")
    open_gates(scene, "go", "1")
    scene.advance(3.5)  # the waiter's limit
    open_gates(scene, "L")
    scene.advance(0)
    scene.commit()
    assert "TurnLimit" in str(waiter.error())
    assert holder.result() == "L"
    assert last.result() == "1"
    assert "lock W" not in LOG


def test_an_abort_beside_a_block_ends_it_too(make_scene: Any) -> None:
    class Ending(Room):
        @interleaved
        async def lock_and_abort(self, gate: str) -> None:
            async with self.ctx.exclusive():
                await GATES[gate].wait()
                self.ctx.abort("enough")

    scene = make_scene(Ending)
    walker = scene.start(Ending, "a", "walk", "1")
    aborting = scene.start(Ending, "a", "lock_and_abort", "go")
    waiting = scene.start(Ending, "a", "walk", "2")
    open_gates(scene, "1", "go")
    scene.commit()
    for call in (walker, aborting, waiting):
        assert "enough" in str(call.error())
    assert LOG == ["in 1"]
    open_gates(scene, "L")
    assert scene.call(Ending, "a", "lock", "L") == "L"


def test_a_turn_that_ends_without_leaving_the_block_gives_it_back(make_scene: Any) -> None:
    scene = make_scene(Room)
    walker = scene.start(Room, "a", "walk", "1")
    scene.start(Room, "a", "leave_open", "go")
    open_gates(scene, "1")
    assert not walker.answered
    open_gates(scene, "go")
    assert walker.result() == "1"


def test_who_gives_up_waiting_can_wait_again(make_scene: Any) -> None:
    scene = make_scene(Room)
    patient = scene.start(Room, "a", "lock_in_time", "go")
    scene.start(Room, "a", "lock", "L")
    open_gates(scene, "go")
    scene.advance(2)
    open_gates(scene, "L")
    scene.commit()
    assert patient.result() == "too late, then again"


@pytest.mark.parametrize("ticks", range(8))
def test_a_task_that_is_cancelled_as_it_gets_the_block_gives_it_back(make_scene: Any, ticks: int) -> None:
    scene = make_scene(Room)
    turn = scene.start(Room, "a", "wait_in_task", "joins", "child")
    scene.start(Room, "a", "lock", "L")
    open_gates(scene, "child")

    def cancel_after(left: int) -> None:
        if left:
            scene.loop.call_soon(cancel_after, left - 1)
        else:
            scene.resident(Room, "a").instance.task.cancel()

    def begin() -> None:
        GATES["L"].set()
        cancel_after(ticks)

    scene.do(begin)
    open_gates(scene, "joins", "M")
    scene.commit()
    assert turn.answered
    assert scene.call(Room, "a", "lock", "M") == "M"


def test_a_task_that_outlives_its_turn_stops_waiting_for_it(make_scene: Any) -> None:
    scene = make_scene(Room)
    ending = scene.start(Room, "a", "wait_in_task", "go", "child")
    holder = scene.start(Room, "a", "lock", "L")
    open_gates(scene, "go", "child", "L")
    scene.commit()
    ending.result()
    assert "gone" in LOG
    assert "entered" not in LOG
    assert holder.result() == "L"


def test_a_turn_goes_on_while_its_own_task_is_in_the_block(make_scene: Any) -> None:
    scene = make_scene(Room)
    turn = scene.start(Room, "a", "wait_in_task", "joins", "child")
    scene.start(Room, "a", "lock", "L")
    open_gates(scene, "child", "joins", "L")
    scene.commit()
    turn.result()
    assert LOG.count("entered") == 1


@pytest.mark.parametrize("method", ["look", "serial"])
@pytest.mark.parametrize("way", ["call_self", "call_through"])
def test_a_call_out_of_a_block_that_comes_back_is_a_deadlock_at_once(
    make_scene: Any, way: str, method: str
) -> None:
    scene = make_scene(Room)
    args = [method] if way == "call_self" else ["b", method]
    call = scene.start(Room, "a", way, *args)
    scene.commit()
    assert "Room/a -> " in str(call.error())
    assert "look" not in LOG


def test_a_call_of_another_turn_to_its_own_object_waits_for_the_block(make_scene: Any) -> None:
    scene = make_scene(Room)
    caller = scene.start(Room, "a", "call_when", "go")
    scene.start(Room, "a", "lock", "L")
    scene.commit()
    open_gates(scene, "go")
    assert not caller.answered
    open_gates(scene, "L")
    scene.commit()
    assert caller.result() == 1
    assert LOG == ["lock L", "unlock L", "end L", "look"]


def test_a_call_to_itself_that_meets_the_block_of_its_caller_is_a_deadlock_too(make_scene: Any) -> None:
    class Sending(Room):
        @interleaved
        async def send_before(self) -> Any:
            call = self.ctx.get(Sending, "a").look()
            async with self.ctx.exclusive():
                await GATES["L"].wait()
                LOG.append("block")
            return await call

    scene = make_scene(Sending)
    sent = scene.start(Sending, "a", "send_before")
    open_gates(scene, "L")
    scene.commit()
    # It may be awaited in the block, and cannot run there.
    assert "Sending/a -> Sending/a: the object waits for this call" in str(sent.error())
    assert LOG == ["block"]
