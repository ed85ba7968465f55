"""The life of an incarnation: its start, its failures and pauses, `ctx.abort`, and what waits for it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import DeadlineExceeded, DurableObject, Limits, RemoteError, StorageError, durable
from worker.host_scene import Scene, results, take_time


class Plan:
    """What the next starts of an object shall do; the tests write it, the classes below read it."""

    def __init__(self) -> None:
        self.starts: list[str] = []
        self.failures = 0
        self.go = asyncio.Event()


@pytest.fixture(autouse=True)
def plan() -> Plan:
    PLANS["plan"] = Plan()
    return PLANS["plan"]


PLANS: dict[str, Plan] = {"plan": Plan()}


class Starting(DurableObject):
    """An async `on_start` that waits for the test."""

    value: int = durable(0)

    def __init__(self) -> None:
        self.born_with = self.value

    async def on_start(self) -> None:
        plan = PLANS["plan"]
        plan.starts.append(f"begin {self.id.name} {self.value}")
        await plan.go.wait()
        plan.starts.append("end")
        if plan.failures:
            plan.failures -= 1
            self.value = 77
            self.storage.put("key", "lost")
            raise ValueError("not today")
        self.value += 100

    async def get(self) -> int:
        PLANS["plan"].starts.append("turn")
        return self.value

    async def set(self, value: int) -> None:
        self.value = value

    async def born(self) -> int:
        return self.born_with


class Quick(DurableObject):
    """Starts that end at once, or fail at once."""

    value: int = durable(0)

    def __init__(self) -> None:
        plan = PLANS["plan"]
        plan.starts.append("init")
        if plan.failures:
            plan.failures -= 1
            raise ValueError("not today")

    def on_start(self) -> None:
        PLANS["plan"].starts.append("on_start")

    async def increment(self) -> int:
        self.value += 1
        return self.value

    async def abort_now(self, how: str) -> str:
        self.value = 99
        self.storage.put("key", "lost")
        if how == "in a task":
            task = asyncio.create_task(self._abort())
            await asyncio.wait([task])
            task.exception()
            return "went on"
        if how == "in a group":
            async with asyncio.TaskGroup() as group:
                group.create_task(self._abort())
        try:
            if how == "later":
                await take_time(1)
            self.ctx.abort("enough")
        except BaseException:
            if how == "swallowed":
                return "went on"
            if how == "swallowed and committed":
                await self.storage.sync()
            if how == "swallowed and called":
                await self.ctx.get(Quick, "other").increment()
            raise

    async def _abort(self) -> None:
        self.ctx.abort("enough")

    async def hold(self) -> None:
        await PLANS["plan"].go.wait()

    async def write_and_abort(self) -> None:
        self.value = 5
        self.storage.put("kept", 1)
        written = asyncio.ensure_future(self.storage.sync())
        await take_time(0)
        written.cancel()
        self.value = 6
        self.ctx.abort("enough")


class AbortingStart(DurableObject):
    def on_start(self) -> None:
        PLANS["plan"].starts.append("on_start")
        self.storage.put("key", "lost")
        try:
            self.ctx.abort("never")
        except BaseException:
            if self.id.name != "swallowing":
                raise

    async def get(self) -> int:
        return 1


class Asking(DurableObject):
    """Calls other objects in `on_start`."""

    answer: int = 0

    async def on_start(self) -> None:
        other = "b" if self.id.name == "a" else "a"
        if self.id.name in ("a", "b"):
            self.answer = await self.ctx.get(Asking, other).get()
        else:
            self.answer = await self.ctx.get(Quick, "q").increment()

    async def get(self) -> int:
        return self.answer


@dataclass
class Picky:
    """Refuses what was stored of it while `refusing`."""

    text: str

    def __post_init__(self) -> None:
        if PLANS["plan"].failures:
            raise ValueError("no such text")


class Keeping(DurableObject):
    picky: Picky = durable(default_factory=lambda: Picky("x"))

    async def fail(self) -> None:
        PLANS["plan"].failures = 1
        raise LookupError("the turn's own")

    async def get(self) -> str:
        return self.picky.text


# --- on_start


def test_the_first_call_starts_the_object_once_and_calls_beside_it_wait_in_order(
    make_scene: Any, plan: Plan
) -> None:
    scene: Scene = make_scene(Starting)
    with scene.one_message():
        calls = [scene.start(Starting, "a", "get") for _ in range(2)]
    calls.append(scene.start(Starting, "a", "get"))
    assert plan.starts == ["begin a 0"]
    assert not any(call.answered for call in calls)
    plan.go.set()
    scene.commit()
    assert results(calls) == [100, 100, 100]
    assert plan.starts == ["begin a 0", "end", "turn", "turn", "turn"]
    assert scene.fields(Starting, "a") == {"value": 100}


def test_addressing_an_object_runs_nothing_and_stores_nothing(make_scene: Any, plan: Plan) -> None:
    scene = make_scene(Quick)
    scene.item(Quick, "a", "increment")
    assert plan.starts == []
    assert not scene.is_live(Quick, "a")


def test_the_constructor_sees_the_stored_fields_and_runs_before_on_start(make_scene: Any, plan: Plan) -> None:
    plan.go.set()
    scene = make_scene(Starting)
    assert scene.call(Starting, "a", "born") == 0
    restarted = make_scene(Starting, disk=scene.disk)
    assert restarted.call(Starting, "a", "born") == 100
    make_scene(Quick).call(Quick, "a", "increment")
    assert plan.starts[-2:] == ["init", "on_start"]


def test_what_on_start_wrote_is_held_back_with_the_first_answer(make_scene: Any, plan: Plan) -> None:
    plan.go.set()
    scene = make_scene(Starting)
    first = scene.start(Starting, "a", "get")
    assert not first.answered
    scene.commit()
    assert first.result() == 100


def test_a_start_that_fails_answers_all_waiting_calls_and_leaves_no_trace(
    make_scene: Any, plan: Plan
) -> None:
    scene = make_scene(Starting, Quick)
    plan.failures = 1
    with scene.one_message():
        calls = [scene.start(Starting, "a", "get") for _ in range(3)]
        neighbour = scene.start(Starting, "b", "get")
    plan.go.set()
    scene.commit()
    for call in calls:
        assert isinstance(call.error(), RemoteError)
        assert "not today" in str(call.error())
    assert neighbour.result() == 100
    assert scene.fields(Starting, "a") == scene.values(Starting, "a") == {}
    scene.advance(0.001)
    assert scene.call(Starting, "a", "get") == 100


def test_the_call_that_tries_again_waits_for_the_new_start_and_not_for_the_old_error(
    make_scene: Any, plan: Plan
) -> None:
    scene = make_scene(Starting)
    plan.failures = 1
    plan.go.set()
    assert isinstance(scene.start(Starting, "a", "get").error(), RemoteError)
    plan.go.clear()
    scene.advance(0.001)
    again = scene.start(Starting, "a", "get")
    assert not again.answered
    plan.go.set()
    scene.commit()
    assert again.result() == 100


def test_one_call_starts_a_failing_object_once(make_scene: Any, plan: Plan) -> None:
    scene = make_scene(Quick)
    plan.failures = 5
    with scene.one_message():
        calls = [scene.start(Quick, "a", "increment") for _ in range(3)]
    assert [type(call.error()) for call in calls] == [RemoteError] * 3
    assert plan.starts == ["init"]


def test_failing_starts_are_tried_again_at_once_and_then_with_growing_bounded_pauses(
    make_scene: Any, plan: Plan
) -> None:
    scene = make_scene(Quick, limits=Limits(start_backoff_max_s=0.4))
    plan.failures = 1_000_000
    tried: list[float] = []
    begin = scene.loop.time()
    while len(tried) < 7:
        before = len(plan.starts)
        assert isinstance(scene.start(Quick, "a", "increment").error(), RemoteError)
        if len(plan.starts) > before:
            tried.append(round(scene.loop.time() - begin, 2))
        scene.advance(0.01)
    pauses = [round(b - a, 2) for a, b in itertools.pairwise(tried)]
    assert pauses == [0.01, 0.11, 0.21, 0.41, 0.41, 0.41]


def test_a_start_that_has_failed_a_thousand_times_still_fails_in_order(make_scene: Any, plan: Plan) -> None:
    scene = make_scene(Quick, limits=Limits(start_backoff_max_s=0))
    plan.failures = 1_200
    for _ in range(1_200):
        assert isinstance(scene.start(Quick, "a", "increment").error(), RemoteError)
        scene.loop.now += 0.001
    assert scene.call(Quick, "a", "increment") == 1


def test_a_start_that_ended_well_forgets_earlier_failures(make_scene: Any, plan: Plan) -> None:
    scene = make_scene(Quick)
    plan.failures = 2
    for _ in range(2):
        assert isinstance(scene.start(Quick, "a", "increment").error(), RemoteError)
        scene.advance(0.2)
    assert scene.call(Quick, "a", "increment") == 1
    assert scene.resident(Quick, "a").trouble is None


def test_on_start_can_call_other_objects(make_scene: Any, plan: Plan) -> None:
    assert make_scene(Asking, Quick).call(Asking, "x", "get") == 1


def test_starts_that_wait_for_each_other_are_a_deadlock_at_once(make_scene: Any, plan: Plan) -> None:
    scene = make_scene(Asking, Quick)
    call = scene.start(Asking, "a", "get")
    scene.commit()
    assert isinstance(call.error(), RemoteError)
    assert "Asking/a -> Asking/b -> Asking/a" in str(call.error())


def test_a_start_that_never_ends_is_cancelled_at_the_turn_limit(make_scene: Any, plan: Plan) -> None:
    scene = make_scene(Starting, limits=Limits(turn_max_s=5))
    patient = scene.start(Starting, "a", "get", timeout_ms=60_000)
    hasty = scene.start(Starting, "a", "get", timeout_ms=1_000)
    scene.advance(1.1)
    assert type(hasty.error()) is DeadlineExceeded
    assert not patient.answered
    scene.advance(4)
    assert "TurnLimit" in str(patient.error())
    plan.go.set()
    scene.advance(0.001)
    assert scene.call(Starting, "a", "get") == 100


def test_a_damaged_row_is_a_storage_error_of_that_object_alone(make_scene: Any, plan: Plan) -> None:
    scene = make_scene(Quick)
    scene.call(Quick, "a", "increment")
    scene.call(Quick, "b", "increment")
    disk = scene.disk.copy()
    prefix = scene.resident(Quick, "a").row_prefix()
    ((key, record),) = [row for row in disk.between(prefix, prefix + b"\xff") if row[0].endswith(b"value")]
    disk.apply([(key, record[:-1] + b"\x63")])
    restarted = make_scene(Quick, disk=disk)
    damaged = restarted.start(Quick, "a", "increment")
    assert type(damaged.error()) is StorageError
    assert restarted.call(Quick, "b", "increment") == 2


# --- abort


@pytest.mark.parametrize(
    "how",
    [
        "at once",
        "later",
        "in a task",
        "in a group",
        "swallowed",
        "swallowed and committed",
        "swallowed and called",
    ],
)
def test_abort_drops_uncommitted_writes_tells_waiting_callers_and_the_next_call_starts_afresh(
    make_scene: Any, plan: Plan, how: str
) -> None:
    scene = make_scene(Quick)
    scene.call(Quick, "a", "increment")
    with scene.one_message():
        aborting = scene.start(Quick, "a", "abort_now", how)
        waiting = scene.start(Quick, "a", "increment") if how == "later" else None
    scene.advance(1)
    scene.commit()
    for call in (aborting, waiting):
        if call is not None:
            assert isinstance(call.error(), RemoteError)
            assert "enough" in str(call.error())
    plan.starts.clear()
    assert scene.call(Quick, "a", "increment") == 2
    assert plan.starts == ["init", "on_start"]
    assert scene.fields(Quick, "a") == {"value": 2}
    assert scene.values(Quick, "a") == {}
    assert not scene.is_live(Quick, "other")


def test_a_fresh_instance_waits_until_the_writes_of_the_aborted_one_are_on_disk(
    make_scene: Any, plan: Plan
) -> None:
    scene = make_scene(Quick)
    scene.call(Quick, "a", "increment")
    aborting = scene.start(Quick, "a", "write_and_abort")
    plan.starts.clear()
    with scene.one_message():
        following = [scene.start(Quick, "a", "increment") for _ in range(2)]
    assert plan.starts == []
    assert not aborting.answered
    scene.commit()
    assert plan.starts == ["init", "on_start"]
    assert isinstance(aborting.error(), RemoteError)
    assert results(following) == [6, 7]
    assert scene.values(Quick, "a") == {"kept": 1}


@pytest.mark.parametrize("name", ["raising", "swallowing"])
def test_abort_in_on_start_is_a_start_that_failed(make_scene: Any, plan: Plan, name: str) -> None:
    scene = make_scene(AbortingStart)
    for _ in range(10):
        assert "never" in str(scene.start(AbortingStart, name, "get").error())
        scene.advance(0.001)
    assert len(plan.starts) == 2
    assert scene.values(AbortingStart, name) == {}


def test_fields_that_cannot_be_put_back_end_the_incarnation_and_not_the_worker(
    make_scene: Any, plan: Plan
) -> None:
    scene = make_scene(Keeping)
    assert scene.call(Keeping, "a", "get") == "x"
    with scene.one_message():
        failing = scene.start(Keeping, "a", "fail")
        neighbour = scene.start(Keeping, "b", "fail")
    assert "the turn's own" in str(failing.error())
    assert neighbour.answered
    plan.failures = 0
    assert scene.call(Keeping, "a", "get") == "x"
