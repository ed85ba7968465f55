"""Turns from their first step to their answer: order, failures, limits, and what they cost."""

from __future__ import annotations

import asyncio
import contextvars
import decimal
import gc
import threading
import weakref
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, TypedDict
from uuid import UUID

import pytest

from perdure import DurableObject, Limits, RemoteError, durable, register_exception
from perdure.errors import InvalidArgument, MessageTooLarge
from worker.host_scene import Scene, results, take_time

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")


@register_exception
class TooPoor(Exception):
    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} are missing")
        self.missing = missing


class Colour(Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: float


class Order(TypedDict):
    item: str
    count: int


class Thing(DurableObject):
    value: int = durable(0)
    items: list[int] = durable(default_factory=list)

    def __init__(self) -> None:
        self.log: list[str] = []
        self.go = asyncio.Event()

    async def increment(self, by: int = 1) -> int:
        self.value += by
        return self.value

    def plain(self) -> int:
        self.value += 1
        return self.value

    async def get(self) -> tuple[int, list[int]]:
        return self.value, self.items

    async def look(self) -> list[str]:
        return self.log

    async def echo(self, value: Any) -> Any:
        return value

    async def visit(self, tag: str, awaited: str) -> str:
        self.log.append(f"in {tag}")
        if awaited == "sleep":
            await take_time(1)
        elif awaited == "sync":
            self.storage.put(tag, 1)
            await self.storage.sync()
        elif awaited == "object":
            await self.ctx.get(Thing, "other").increment()
        self.log.append(f"out {tag}")
        return tag

    async def write_and_raise(self, error: str, suspend: bool, inside: bool = True) -> None:
        self.value = 99
        self.items.append(99)
        self.storage.put("key", "lost")
        if suspend:
            await take_time(1)
        if error == "stop":
            next(iter([]))
        raise {
            "plain": ValueError("no"),
            "keyboard": KeyboardInterrupt("keys"),
            "exit": SystemExit(3),
            "cancelled": asyncio.CancelledError("mine"),
            "generator": GeneratorExit("odd"),
            "registered": TooPoor(7),
        }[error]

    def plain_stop(self) -> None:
        self.value = 99
        next(iter([]))

    async def chain_of_errors(self) -> None:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise LookupError("outer") from error

    async def write_and_return(self, what: str) -> Any:
        self.value = 99
        self.storage.put("key", "lost")
        cycle: list[Any] = []
        cycle.append(cycle)
        return {
            "lock": threading.Lock(),
            "surrogate": "\ud800",
            "surrogate inside": ["\ud800"],
            "cycle": cycle,
            "int keys": {1: 2},
            "class": Thing,
            "large": "x" * 5_000,
        }[what]

    async def wrong_result(self) -> int:
        self.value = 99
        return "text"  # type: ignore[return-value]

    async def write_call_raise(self, other: str) -> None:
        self.value = 1
        self.storage.put("before", 1)
        await self.ctx.get(Thing, other).increment()
        self.value = 2
        self.storage.put("after", 1)
        raise ValueError("after the call")

    async def move(self, point: Point, colour: Colour, order: Order, size: Literal["s", "m"] | None) -> Point:
        assert (colour, order["count"], size) == (Colour.RED, 2, "s")
        return Point(point.x + 1, point.y / 2)

    async def set_variable(self, text: str, suspend: bool) -> str:
        before = VARIABLE.get()
        VARIABLE.set(text)
        if suspend:
            await take_time(0)
        return f"{before} {VARIABLE.get()}"

    async def precision(self) -> int:
        return decimal.getcontext().prec

    async def hold(self) -> None:
        await self.go.wait()

    async def outstay(self, swallow: bool, commit: bool) -> str:
        self.value = 99
        self.storage.put("key", "lost")
        while True:
            try:
                await take_time(1_000)
            except asyncio.CancelledError:
                self.log.append("cancelled")
                if commit:
                    await self.storage.sync()
                if not swallow:
                    raise
                if self.log.count("cancelled") == 3:
                    return "as if nothing had happened"


def count_tasks(loop: asyncio.AbstractEventLoop) -> list[str]:
    made: list[str] = []

    def factory(loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        made.append(coro.__qualname__)
        return asyncio.Task(coro, loop=loop, **options)

    loop.set_task_factory(factory)
    return made


# --- cost


@pytest.mark.parametrize("method", ["increment", "plain", "get"])
def test_a_method_that_does_not_suspend_creates_no_task_and_runs_in_the_tick_of_its_arrival(
    make_scene: Any, method: str
) -> None:
    scene = make_scene(Thing)
    made = count_tasks(scene.loop)
    before = scene.host.turns
    sent = []
    with scene.one_message():
        sent = [scene.start(Thing, name, method) for name in "abc"]
    assert scene.host.turns == before + 3
    scene.commit()
    assert len(results(sent)) == 3
    assert made == []


# --- one turn at a time


@pytest.mark.parametrize("awaited", ["sleep", "sync", "object"])
def test_two_calls_to_one_object_never_overlap_whatever_the_first_awaits(
    make_scene: Any, awaited: str
) -> None:
    scene = make_scene(Thing)
    with scene.one_message():
        calls = [scene.start(Thing, "a", "visit", tag, awaited) for tag in ("1", "2", "3")]
    calls.append(scene.start(Thing, "a", "visit", "4", awaited))
    for _ in range(20):
        scene.commit()
        scene.advance(0.5)
    assert results(calls) == ["1", "2", "3", "4"]
    log = scene.call(Thing, "a", "look")
    assert log == [f"{step} {tag}" for tag in "1234" for step in ("in", "out")]


def test_a_method_that_awaits_for_a_second_does_not_delay_other_objects(make_scene: Any) -> None:
    scene = make_scene(Thing)
    slow = scene.start(Thing, "slow", "visit", "x", "sleep")
    assert scene.call(Thing, "quick", "increment") == 1
    assert not slow.answered
    scene.advance(1)
    assert slow.result() == "x"


def test_thousands_of_waiting_calls_run_in_order_without_recursion(make_scene: Any) -> None:
    scene = make_scene(Thing, limits=Limits(mailbox_calls_max=10_000, start_batch_turns=300))
    holder = scene.start(Thing, "a", "hold")
    for _ in range(3):
        with scene.one_message():
            calls = [scene.start(Thing, "a", "increment") for _ in range(2_000)]
    scene.resident(Thing, "a").instance.go.set()
    scene.commit()
    assert holder.result() is None
    assert results(calls) == list(range(4_001, 6_001))


# --- context variables


@pytest.mark.parametrize("suspend", [False, True])
def test_context_variables_set_in_a_turn_last_to_its_end_and_leak_into_no_other(
    make_scene: Any, suspend: bool
) -> None:
    scene = make_scene(Thing)
    with scene.one_message():
        calls = [scene.start(Thing, name, "set_variable", name, suspend) for name in "aab"]
    scene.commit()
    assert results(calls) == ["nothing a", "nothing a", "nothing b"]
    assert VARIABLE.get() == "nothing"


def test_all_turns_begin_with_the_variables_of_the_worker_whoever_woke_it(make_scene: Any) -> None:
    # The application sets decimals' precision, which is a context variable, while it is loaded.
    with decimal.localcontext() as context:
        context.prec = 50
        scene = make_scene(Thing)
    at_once = scene.start(Thing, "a", "precision")
    holder = scene.start(Thing, "a", "hold")
    after_another_turn = scene.start(Thing, "a", "precision")
    scene.resident(Thing, "a").instance.go.set()
    scene.commit()
    assert [call.result() for call in (at_once, holder, after_another_turn)] == [50, None, 50]


# --- values


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        -1,
        2**70,
        -(2**64),
        1.5,
        float("inf"),
        "ä\0",
        b"\xff",
        [1, [2]],
        {"a": {"b": 1}},
        (1, (2,)),
        {1, 2},
        frozenset({"x"}),
        datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
        datetime(2024, 1, 2),
        date(2024, 1, 2),
        Decimal("1.10"),
        UUID(int=5),
    ],
    ids=repr,
)
def test_every_value_of_the_wire_comes_back_as_itself(make_scene: Any, value: Any) -> None:
    result = make_scene(Thing).call(Thing, "a", "echo", value)
    assert type(result) is type(value)
    assert result == value


def test_nan_comes_back_as_nan(make_scene: Any) -> None:
    result = make_scene(Thing).call(Thing, "a", "echo", float("nan"))
    assert result != result


def test_arguments_and_results_convert_by_annotation(make_scene: Any) -> None:
    scene = make_scene(Thing)
    order = {"item": "tea", "count": 2}
    assert scene.call(Thing, "a", "move", {"x": 1, "y": 3}, "red", order, "s") == {"x": 2, "y": 1.5}
    with pytest.raises(InvalidArgument, match=r"point.*x"):
        scene.call(Thing, "a", "move", {"x": "1", "y": 3}, "red", order, "s")


@pytest.mark.parametrize(
    "what", ["lock", "surrogate", "surrogate inside", "cycle", "int keys", "class", "large"]
)
def test_a_result_that_cannot_be_sent_fails_its_turn_alone_and_nothing_is_written(
    make_scene: Any, what: str
) -> None:
    scene = make_scene(Thing, limits=Limits(message_bytes_max=4_000))
    with scene.one_message():
        failing = scene.start(Thing, "a", "write_and_return", what)
        neighbour = scene.start(Thing, "b", "increment")
        follower = scene.start(Thing, "a", "get")
    scene.commit()
    assert isinstance(failing.error(), MessageTooLarge if what == "large" else RemoteError)
    assert neighbour.result() == 1
    assert follower.result() == (0, [])
    assert scene.fields(Thing, "a") == scene.values(Thing, "a") == {}


def test_a_result_of_another_type_than_annotated_fails_its_turn(make_scene: Any) -> None:
    scene = make_scene(Thing)
    with pytest.raises(RemoteError, match="its result must be int"):
        scene.call(Thing, "a", "wrong_result")
    assert scene.call(Thing, "a", "get") == (0, [])


# --- exceptions


@pytest.mark.parametrize("suspend", [False, True])
@pytest.mark.parametrize(
    ("error", "name"),
    [
        ("plain", "ValueError"),
        ("stop", "RuntimeError"),
        ("keyboard", "KeyboardInterrupt"),
        ("exit", "SystemExit"),
        ("cancelled", "asyncio.exceptions.CancelledError"),
        ("generator", "GeneratorExit"),
    ],
)
def test_a_turn_that_raises_leaves_no_trace_but_its_error(
    make_scene: Any, error: str, name: str, suspend: bool
) -> None:
    scene = make_scene(Thing)
    scene.call(Thing, "a", "increment", 5)
    failing = scene.start(Thing, "a", "write_and_raise", error, suspend)
    scene.advance(1)
    scene.commit()
    raised = failing.error()
    assert isinstance(raised, RemoteError)
    assert raised.type_name == name
    assert raised.object_id == "Thing/a"
    assert scene.call(Thing, "a", "get") == (5, [])
    assert scene.fields(Thing, "a") == {"value": 5}
    assert scene.values(Thing, "a") == {}


def test_a_plain_method_that_raises_stop_iteration_has_failed(make_scene: Any) -> None:
    scene = make_scene(Thing)
    with pytest.raises(RemoteError, match="StopIteration"):
        scene.call(Thing, "a", "plain_stop")
    assert scene.call(Thing, "a", "get") == (0, [])


def test_a_registered_exception_arrives_as_itself_with_its_attributes(make_scene: Any) -> None:
    with pytest.raises(TooPoor, match="7 are missing") as caught:
        make_scene(Thing).call(Thing, "a", "write_and_raise", "registered", False)
    assert caught.value.missing == 7


def test_an_exception_arrives_with_its_causes_and_without_a_traceback(make_scene: Any) -> None:
    raised = make_scene(Thing).start(Thing, "a", "chain_of_errors").error()
    assert isinstance(raised, RemoteError)
    assert raised.causes == [("KeyError", "'inner'")]
    assert raised.traceback is None


def test_a_traceback_travels_where_the_worker_is_told_so(make_scene: Any) -> None:
    raised = make_scene(Thing, tracebacks=True).start(Thing, "a", "chain_of_errors").error()
    assert isinstance(raised, RemoteError)
    assert "in chain_of_errors" in (raised.traceback or "")


def test_a_raised_exception_is_freed_without_the_garbage_collector(make_scene: Any) -> None:
    class Witness(Exception):
        pass

    seen: list[weakref.ref[Witness]] = []

    class Raising(DurableObject):
        async def fail(self, suspend: bool) -> None:
            if suspend:
                await take_time(1)
            error = Witness()
            seen.append(weakref.ref(error))
            try:
                raise error
            finally:
                del error

    scene = make_scene(Raising)
    gc.collect()
    gc.disable()
    try:
        scene.start(Raising, "a", "fail", False)
        scene.start(Raising, "a", "fail", True)
        scene.advance(2)
        assert [reference() for reference in seen] == [None, None]
    finally:
        gc.enable()


def test_what_a_turn_wrote_before_it_called_another_object_stays_when_it_raises_afterwards(
    make_scene: Any,
) -> None:
    scene = make_scene(Thing)
    failing = scene.start(Thing, "a", "write_call_raise", "b")
    scene.commit()
    assert isinstance(failing.error(), RemoteError)
    assert scene.call(Thing, "a", "get") == (1, [])
    assert scene.fields(Thing, "a") == {"value": 1}
    assert scene.values(Thing, "a") == {"before": 1}
    assert scene.fields(Thing, "b") == {"value": 1}


# --- the turn limit


@pytest.mark.parametrize(("swallow", "cancellations"), [(False, 1), (True, 3)])
@pytest.mark.parametrize("commit", [False, True])
def test_a_turn_over_its_limit_is_cancelled_and_leaves_no_trace_even_if_it_swallows_the_cancellation(
    make_scene: Any, swallow: bool, cancellations: int, commit: bool
) -> None:
    scene = make_scene(Thing, limits=Limits(turn_max_s=5))
    scene.call(Thing, "a", "increment", 5)
    cut = scene.start(Thing, "a", "outstay", swallow and not commit, commit, timeout_ms=1_000)
    follower = scene.start(Thing, "a", "get")
    scene.advance(4.9)
    assert not cut.answered
    scene.advance(0.2)
    assert cut.answered == (not swallow or commit)
    scene.advance(2)
    scene.commit()
    raised = cut.error()
    assert isinstance(raised, RemoteError)
    assert raised.type_name == "perdure_worker.execution.TurnLimit"
    assert follower.result() == (5, [])
    assert scene.values(Thing, "a") == {}
    log = scene.call(Thing, "a", "look")
    assert log == ["cancelled"] * (1 if commit else cancellations)


def test_a_turn_that_ends_in_time_is_not_cancelled_later(make_scene: Any) -> None:
    scene = make_scene(Thing, limits=Limits(turn_max_s=5))
    assert scene.start(Thing, "a", "visit", "x", "sleep") is not None
    scene.advance(1)
    holder = scene.start(Thing, "a", "hold")
    scene.advance(4.5)
    scene.resident(Thing, "a").instance.go.set()
    scene.commit()
    assert holder.result() is None


def test_a_caller_whose_peer_is_gone_does_not_end_the_turn(make_scene: Any) -> None:
    scene: Scene = make_scene(Thing)
    scene.start(Thing, "a", "visit", "x", "sleep", peer=scene.peer(b"leaving"))
    scene.peers.forget(b"leaving")
    scene.advance(1)
    assert scene.call(Thing, "a", "look") == ["in x", "out x"]
