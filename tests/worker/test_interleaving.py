"""Turns of interleaved methods beside each other: who runs when, what a span is, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest

from perdure import (
    DeadlineExceeded,
    DeadlockError,
    DurableObject,
    Limits,
    Overloaded,
    RemoteError,
    durable,
    interleaved,
)
from worker.host_scene import Scene, results, take_time


class Stage:
    """What the objects of one test share with it: events to wait for, by name, and what happened."""

    def __init__(self) -> None:
        self.gates: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.log: list[str] = []
        self.incarnations = 0

    def open(self, scene: Scene, *names: str) -> None:
        for name in names:
            scene.do(self.gates[name].set)


STAGES: list[Stage] = []


@pytest.fixture(autouse=True)
def stage() -> Iterator[Stage]:
    STAGES[:] = [Stage()]
    yield STAGES[0]
    STAGES.clear()


async def wait_for(gate: str) -> None:
    await STAGES[0].gates[gate].wait()


class Desk(DurableObject):
    value: int = durable(0)
    items: list[Any] = durable(default_factory=list)

    def __init__(self) -> None:
        STAGES[0].incarnations += 1

    def note(self, text: str) -> None:
        STAGES[0].log.append(text)

    @interleaved
    async def beside(self, tag: str, gate: str = "") -> str:
        self.note(f"in {tag}")
        await wait_for(gate or tag)
        self.note(f"out {tag}")
        return tag

    async def alone(self, tag: str, gate: str = "") -> str:
        self.note(f"in {tag}")
        if gate:
            await wait_for(gate)
        self.note(f"out {tag}")
        return tag

    async def look(self) -> tuple[int, list[Any]]:
        return self.value, self.items

    # --- what spans write

    @interleaved
    async def write(self, tag: str, before: int, end: str, after: int = 0) -> int:
        self.value += before
        self.items.append(f"{tag} before")
        self.storage.put(f"{tag} before", 1)
        await wait_for(tag)
        if end == "call":
            await self.ctx.get(Desk, "other").look()
        self.value += after
        self.items.append(f"{tag} after")
        self.storage.put(f"{tag} after", 1)
        if end == "raise":
            raise LookupError("the second span")
        if end == "abort":
            self.ctx.abort("enough")
        return self.value

    @interleaved
    def plain(self, by: int) -> int:
        self.value += by
        if self.value > 100:
            raise OverflowError("too much")
        return self.value

    @interleaved
    async def no_wait(self, key: str) -> Any:
        """Storage is nothing that others get in at."""
        before = await self.storage.get(key, 0)
        self.storage.put(key, before + 1)
        await self.storage.get_many([key])
        await self.storage.list(prefix=key)
        return await self.storage.get(key)

    @interleaved
    async def read(self, key: str, gate: str) -> tuple[Any, Any]:
        first = await self.storage.get(key, "nothing")
        await wait_for(gate)
        return first, await self.storage.get(key, "nothing")

    @interleaved
    async def put(self, key: str, value: Any) -> None:
        self.storage.put(key, value)

    @interleaved
    async def spoil(self, gate: str, later: str) -> None:
        self.storage.put("spoilt", 1)
        self.value = "text"  # type: ignore[assignment]
        await wait_for(gate)
        self.storage.put(later, 1)

    @interleaved
    async def keep_list(self, gate: str) -> None:
        items = self.items
        items.append("one")
        await wait_for(gate)
        items.append("two")

    @interleaved
    async def append_and_raise(self, gate: str) -> None:
        await wait_for(gate)
        self.value = 99
        raise LookupError("no")

    @interleaved
    async def raise_at_once(self) -> None:
        self.value = 99
        raise LookupError("no")

    @interleaved
    async def with_task(self, gate: str, end: str, spoil: bool = False) -> None:
        async def child() -> None:
            await wait_for(gate)
            self.storage.put("of a task", 1)
            self.value = "text" if spoil else self.value + 7  # type: ignore[assignment]

        task = asyncio.create_task(child())
        await wait_for(end)
        await task

    @interleaved
    async def outlive(self, gate: str) -> None:
        async def child() -> None:
            await wait_for(gate)
            try:
                self.storage.put("late", 1)
            except Exception as error:
                self.note(type(error).__name__)

        self.task = asyncio.create_task(child())
        await take_time(0)

    @interleaved
    async def swallow_with_task(self, gate: str, end: str) -> None:
        async def child() -> None:
            await wait_for(gate)
            try:
                self.storage.put("late", 1)
            except Exception as error:
                self.note(type(error).__name__)

        self.task = asyncio.create_task(child())
        with contextlib.suppress(asyncio.CancelledError):
            await wait_for("never")
        await wait_for(end)

    @interleaved
    async def commit_in_task(self, gate: str) -> None:
        async def child() -> None:
            self.value += 1
            await self.storage.sync()

        await asyncio.gather(child(), child())
        await wait_for(gate)

    @interleaved
    async def clear(self, gate: str, end: str) -> None:
        await self.storage.delete_all()
        if end == "at once":
            raise LookupError("no")
        await wait_for(gate)
        raise LookupError("no")

    # --- calls

    @interleaved
    async def ask_self(self, method: str, *args: Any) -> Any:
        return await getattr(self.ctx.get(Desk, str(self.id.name)), method)(*args)

    @interleaved
    async def ask_self_when(self, gate: str, method: str, *args: Any) -> Any:
        await wait_for(gate)
        return await getattr(self.ctx.get(Desk, str(self.id.name)), method)(*args)

    @interleaved
    async def ask_through(self, other: str, method: str, *args: Any) -> Any:
        return await self.ctx.get(Desk, other).pass_on(str(self.id.name), method, *args)

    async def pass_on(self, other: str, method: str, *args: Any) -> Any:
        return await getattr(self.ctx.get(Desk, other), method)(*args)

    # --- endings

    @interleaved
    async def abort(self, how: str) -> None:
        if how == "in a task":
            task = asyncio.create_task(self._abort())
            try:
                await asyncio.wait([task])
            finally:
                task.exception()
                self.value = 99
        await self._abort()

    async def _abort(self) -> None:
        self.value = 99
        self.storage.put("lost", 1)
        self.ctx.abort("enough")

    @interleaved
    async def clean_up(self, tag: str, swallow: bool = False) -> str:
        self.value += 1
        try:
            await wait_for(tag)
        except asyncio.CancelledError:
            self.note(f"cancelled {tag}")
            self.value = 55
            self.storage.put("clean up", 1)
            if not swallow:
                raise
            await wait_for(f"cleaned {tag}")
            self.storage.put("clean up", 2)
        return tag

    @interleaved
    async def own_error(self) -> None:
        raise KeyError("mine")


# --- who runs when


def test_interleaved_calls_run_beside_each_other_while_they_await(make_scene: Any, stage: Stage) -> None:
    scene: Scene = make_scene(Desk)
    one, two = scene.start(Desk, "a", "beside", "1"), scene.start(Desk, "a", "beside", "2")
    assert stage.log == ["in 1", "in 2"]
    stage.open(scene, "2")
    assert stage.log == ["in 1", "in 2", "out 2"]
    assert two.result() == "2"
    assert not one.answered
    stage.open(scene, "1")
    assert one.result() == "1"


def test_calls_of_one_message_run_beside_each_other_too(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    with scene.one_message():
        calls = [scene.start(Desk, "a", "beside", str(n), "go") for n in range(5)]
    assert stage.log == [f"in {n}" for n in range(5)]
    stage.open(scene, "go")
    assert results(calls) == [str(n) for n in range(5)]


def test_a_serial_call_waits_until_no_turn_is_inside_and_then_runs_alone(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "beside", "1")
    scene.start(Desk, "a", "beside", "2")
    scene.start(Desk, "a", "alone", "S", "s")
    stage.open(scene, "1")
    assert "in S" not in stage.log
    stage.open(scene, "2")
    assert stage.log[-2:] == ["out 2", "in S"]
    scene.start(Desk, "a", "beside", "3")
    assert "in 3" not in stage.log
    stage.open(scene, "s")
    assert stage.log[-2:] == ["out S", "in 3"]


def test_a_serial_call_is_not_starved_by_interleaved_ones_that_come_after_it(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "beside", "0")
    serial = scene.start(Desk, "a", "alone", "S")
    for n in range(1, 20):
        scene.start(Desk, "a", "beside", str(n))
    assert stage.log == ["in 0"]
    stage.open(scene, "0")
    assert serial.result() == "S"
    assert stage.log == ["in 0", "out 0", "in S", "out S", *(f"in {n}" for n in range(1, 20))]


def test_interleaved_calls_go_on_when_the_serial_call_ahead_of_them_expires(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "beside", "0")
    serial = scene.start(Desk, "a", "alone", "S", timeout_ms=100)
    scene.start(Desk, "a", "beside", "1")
    scene.advance(0.2)
    scene.settle()
    assert type(serial.error()) is DeadlineExceeded
    assert stage.log == ["in 0", "in 1"]


def test_calls_that_wait_for_the_start_of_their_object_run_in_order(make_scene: Any, stage: Stage) -> None:
    class Slow(Desk):
        async def on_start(self) -> None:
            await wait_for("start")

    scene = make_scene(Slow)
    for tag in "12":
        scene.start(Slow, "a", "beside", tag)
    scene.start(Slow, "a", "alone", "S")
    scene.start(Slow, "a", "beside", "3")
    stage.open(scene, "start")
    assert stage.log == ["in 1", "in 2"]
    stage.open(scene, "1", "2")
    assert stage.log == ["in 1", "in 2", "out 1", "out 2", "in S", "out S", "in 3"]


def test_storage_is_no_wait_that_others_get_in_at(make_scene: Any) -> None:
    scene = make_scene(Desk)
    with scene.one_message():
        calls = [scene.start(Desk, "a", "no_wait", "key") for _ in range(10)]
    scene.commit()
    assert results(calls) == list(range(1, 11))


def test_a_plain_interleaved_method_is_one_span(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "beside", "1")
    assert scene.call(Desk, "a", "plain", 60) == 60
    with pytest.raises(RemoteError, match="too much"):
        scene.call(Desk, "a", "plain", 60)
    stage.open(scene, "1")
    assert scene.call(Desk, "a", "plain", 40) == 100
    assert scene.fields(Desk, "a") == {"value": 100}


def test_the_mailbox_bound_holds_behind_turns_that_are_inside(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk, limits=Limits(mailbox_calls_max=2))
    scene.start(Desk, "a", "beside", "1")
    waiting = [scene.start(Desk, "a", "alone", str(n)) for n in range(3)]
    assert type(waiting[2].error()) is Overloaded
    stage.open(scene, "1")
    assert results(waiting[:2]) == ["0", "1"]


# --- spans


def test_what_a_span_wrote_is_committed_where_it_suspends(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    call = scene.start(Desk, "a", "write", "1", 5, "return", 10)
    scene.commit()
    assert scene.fields(Desk, "a") == {"value": 5, "items": ["1 before"]}
    assert scene.values(Desk, "a") == {"1 before": 1}
    assert not call.answered
    stage.open(scene, "1")
    assert not call.answered
    scene.commit()
    assert call.result() == 15
    assert scene.fields(Desk, "a") == {"value": 15, "items": ["1 before", "1 after"]}


def test_a_raise_discards_the_current_span_only(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    failing = scene.start(Desk, "a", "write", "1", 5, "raise", 10)
    other = scene.start(Desk, "a", "write", "2", 100, "return", 1000)
    stage.open(scene, "1")
    scene.commit()
    assert isinstance(failing.error(), RemoteError)
    assert "the second span" in str(failing.error())
    stage.open(scene, "2")
    scene.commit()
    assert other.result() == 1105
    expected = 1105, ["1 before", "2 before", "2 after"]
    assert scene.call(Desk, "a", "look") == expected
    assert scene.fields(Desk, "a") == {"value": 1105, "items": expected[1]}
    assert scene.values(Desk, "a") == {"1 before": 1, "2 before": 1, "2 after": 1}


def test_a_crash_in_mid_span_keeps_the_spans_before_it(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "write", "1", 5, "return", 10)
    scene.commit()
    stage.open(scene, "1")  # the last span has run, and is not on disk
    restarted = make_scene(Desk, disk=scene.disk.copy())
    assert restarted.call(Desk, "a", "look") == (5, ["1 before"])
    assert restarted.values(Desk, "a") == {"1 before": 1}


def test_an_answer_waits_for_the_spans_of_its_turn_and_of_others_that_it_could_see(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    writer = scene.start(Desk, "a", "write", "1", 5, "return")
    reader = scene.start(Desk, "a", "plain", 0)
    assert not reader.answered
    scene.commit()
    assert reader.result() == 5
    assert not writer.answered


def test_a_field_that_cannot_be_saved_at_a_suspension_fails_its_turn_alone(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    other = scene.start(Desk, "a", "write", "1", 5, "return", 10)
    bad = scene.start(Desk, "a", "spoil", "never", "later")
    scene.commit()
    assert "Desk.value cannot be saved" in str(bad.error())
    stage.open(scene, "1")
    scene.commit()
    assert other.result() == 15
    assert scene.values(Desk, "a") == {"1 before": 1, "1 after": 1}


def test_a_list_that_another_turn_did_not_change_stays_the_same_list_when_that_turn_raises(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    keeping = scene.start(Desk, "a", "keep_list", "keep")
    scene.start(Desk, "a", "append_and_raise", "raise")
    stage.open(scene, "raise", "keep")
    scene.commit()
    keeping.result()
    assert scene.fields(Desk, "a") == {"items": ["one", "two"]}


def test_a_read_sees_what_was_put_before_it_and_no_more(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    early = scene.start(Desk, "a", "read", "key", "go")
    scene.start(Desk, "a", "put", "key", "new")
    late = scene.start(Desk, "a", "read", "key", "go")
    stage.open(scene, "go")
    scene.commit()
    assert early.result() == ("nothing", "new")
    assert late.result() == ("new", "new")


def test_delete_all_is_undone_in_its_span_and_stays_after_it(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    scene.call(Desk, "a", "plain", 7)
    scene.call(Desk, "a", "put", "key", 1)
    assert isinstance(scene.start(Desk, "a", "clear", "go", "at once").error(), RemoteError)
    assert scene.call(Desk, "a", "look") == (7, [])
    assert scene.values(Desk, "a") == {"key": 1}
    scene.start(Desk, "a", "clear", "go", "later")
    stage.open(scene, "go")
    assert scene.call(Desk, "a", "look") == (0, [])
    assert scene.values(Desk, "a") == scene.fields(Desk, "a") == {}
    assert scene.listed(Desk) == []


# --- tasks that turns start


@pytest.mark.parametrize("suspended", [True, False])
def test_what_a_task_of_a_turn_wrote_survives_the_failing_span_of_another_turn(
    make_scene: Any, stage: Stage, suspended: bool
) -> None:
    scene = make_scene(Desk)
    owner = scene.start(Desk, "a", "with_task", "write", "end")
    failing = [scene.start(Desk, "a", "append_and_raise", "raise")] if suspended else []
    stage.open(scene, "write", "raise")
    failing = failing or [scene.start(Desk, "a", "raise_at_once")]
    scene.commit()
    assert isinstance(failing[0].error(), RemoteError)
    stage.open(scene, "end")
    scene.commit()
    owner.result()
    assert scene.values(Desk, "a") == {"of a task": 1}
    assert scene.fields(Desk, "a") == {"value": 7}


def test_tasks_of_a_turn_can_sync_and_their_writes_are_not_lost(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    call = scene.start(Desk, "a", "commit_in_task", "end")
    scene.commit()
    assert scene.fields(Desk, "a") == {"value": 2}
    stage.open(scene, "end")
    call.result()


def test_a_task_that_spoils_a_field_fails_the_turns_inside_and_leaves_no_trace(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    owner = scene.start(Desk, "a", "with_task", "write", "end", True)
    stage.open(scene, "write", "end")
    scene.commit()
    assert "Desk.value cannot be saved" in str(owner.error())
    assert scene.call(Desk, "a", "look") == (0, [])


def test_a_task_that_outlives_its_turn_cannot_write_beside_other_turns(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    scene.call(Desk, "a", "outlive", "late")
    scene.start(Desk, "a", "beside", "1")
    stage.open(scene, "late")
    assert stage.log == ["in 1", "StorageError"]
    assert scene.values(Desk, "a") == {}


def test_a_task_of_a_turn_that_cannot_end_well_cannot_write(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk, limits=Limits(turn_max_s=5))
    cut = scene.start(Desk, "a", "swallow_with_task", "late", "end")
    scene.advance(5.5)
    stage.open(scene, "late")
    assert stage.log == ["StorageError"]
    stage.open(scene, "end")
    scene.commit()
    assert "TurnLimit" in str(cut.error())
    assert scene.values(Desk, "a") == {}


# --- calls to itself


def test_an_interleaved_turn_can_call_an_interleaved_method_of_its_own_object(make_scene: Any) -> None:
    scene = make_scene(Desk)
    assert scene.call(Desk, "a", "ask_self", "plain", 3) == 3
    assert scene.call(Desk, "a", "ask_through", "b", "plain", 4) == 7


def test_a_call_to_itself_does_not_wait_behind_a_serial_call_that_waits_for_the_turn(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    calling = scene.start(Desk, "a", "ask_self_when", "go", "plain", 3)
    serial = scene.start(Desk, "a", "alone", "S")
    behind = scene.start(Desk, "a", "beside", "1")
    stage.open(scene, "go")
    scene.commit()
    assert calling.result() == 3
    assert serial.result() == "S"
    assert not behind.answered


@pytest.mark.parametrize("way", ["ask_self", "ask_through"])
def test_an_interleaved_turn_that_calls_a_serial_method_of_its_own_object_is_a_deadlock(
    make_scene: Any, way: str
) -> None:
    scene = make_scene(Desk)
    args = ["look"] if way == "ask_self" else ["b", "look"]
    call = scene.start(Desk, "a", way, *args)
    scene.commit()
    assert type(call.error()) in (DeadlockError, RemoteError)
    assert "Desk/a -> " in str(call.error())


def test_calls_of_an_object_to_itself_are_limited_in_depth(make_scene: Any) -> None:
    class Deep(DurableObject):
        @interleaved
        async def down(self) -> None:
            await self.ctx.get(Deep, "a").down()

    scene = make_scene(Deep, limits=Limits(chain_depth_max=5))
    call = scene.start(Deep, "a", "down")
    scene.commit()
    assert "chain_depth_max" in str(call.error())


# --- endings


def test_turns_inside_are_cancelled_by_an_abort_and_nothing_they_do_then_counts(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    inside = [scene.start(Desk, "a", "clean_up", "1"), scene.start(Desk, "a", "clean_up", "2", True)]
    scene.commit()
    with scene.one_message():
        aborting = scene.start(Desk, "a", "abort", "at once")
        waiting = scene.start(Desk, "a", "look")
    scene.commit()
    assert stage.log == ["cancelled 1", "cancelled 2"]
    late = scene.start(Desk, "a", "plain", 100)
    scene.commit()
    assert not any(call.answered for call in (inside[1], waiting, late))  # it still cleans up
    stage.open(scene, "cleaned 2")
    scene.commit()
    for call in (*inside, aborting, waiting, late):
        assert isinstance(call.error(), RemoteError)
        assert "enough" in str(call.error())
    assert stage.incarnations == 1
    assert scene.call(Desk, "a", "look") == (2, [])
    assert stage.incarnations == 2
    assert scene.values(Desk, "a") == {}
    assert scene.host.busy == 0


def test_an_abort_in_a_later_span_or_a_task_ends_all_turns(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    inside = scene.start(Desk, "a", "clean_up", "1")
    later = scene.start(Desk, "a", "write", "2", 5, "abort", 10)
    in_task = scene.start(Desk, "b", "abort", "in a task")
    beside = scene.start(Desk, "b", "beside", "3")
    stage.open(scene, "2")
    scene.commit()
    for call in (inside, later, in_task):
        assert "enough" in str(call.error())
    assert not beside.answered  # it came after the abort, to the next incarnation
    assert scene.fields(Desk, "a") == {"value": 6, "items": ["2 before"]}
    assert scene.fields(Desk, "b") == scene.values(Desk, "b") == {}


def test_a_turn_over_its_limit_is_cancelled_and_the_others_go_on(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk, limits=Limits(turn_max_s=5))
    stage.open(scene, "cleaned 1")
    old = scene.start(Desk, "a", "clean_up", "1", True)
    scene.advance(3)
    young = scene.start(Desk, "a", "clean_up", "2")
    scene.advance(2.5)
    scene.commit()
    assert "TurnLimit" in str(old.error())
    assert not young.answered
    stage.open(scene, "2")
    scene.commit()
    assert young.result() == "2"
    assert scene.fields(Desk, "a") == {"value": 2}
    assert scene.values(Desk, "a") == {}


def test_a_failing_turn_leaves_the_others_inside(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    one = scene.start(Desk, "a", "beside", "1")
    assert "mine" in str(scene.start(Desk, "a", "own_error").error())
    stage.open(scene, "1")
    assert one.result() == "1"


def test_an_object_stays_in_memory_and_counts_as_busy_while_turns_are_inside(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk, idle_evict_s=1)
    calls = [scene.start(Desk, "a", "beside", tag) for tag in "12"]
    stage.open(scene, "1")
    scene.advance(10)
    assert scene.do(scene.host.evict_idle) == 0
    assert scene.host.busy == 1
    stage.open(scene, "2")
    assert results(calls) == ["1", "2"]
    assert scene.host.busy == 0
    scene.advance(10)
    assert scene.do(scene.host.evict_idle) == 1


def test_a_drain_lets_turns_inside_end_and_refuses_what_waits(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    inside = scene.start(Desk, "a", "write", "1", 5, "call")
    waiting = scene.start(Desk, "a", "look")
    scene.do(scene.host.drain)
    late = scene.start(Desk, "a", "beside", "2")
    for call in (waiting, late):
        assert "stopping" in str(call.error())
    assert scene.host.busy == 1
    stage.open(scene, "1")
    scene.commit()
    assert inside.result() == 5
    assert scene.host.busy == 0
