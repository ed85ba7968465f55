"""Stubs and calls: every public name is a method, and a call is awaited as any coroutine is."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import enum
import gc
from dataclasses import dataclass, field
from typing import Any

import pytest

from perdure.errors import InvalidArgument, PerdureError, ShardUnavailable
from perdure.ids import ObjectId, id_from_name, new_unique_id
from perdure.limits import Limits
from perdure.methods import Method, callable_methods
from perdure.object import DurableObject
from perdure.slotmap import Seat, SlotMap
from perdure.stub import Call, Stub, Target, make_target

from .fake_cluster import in_both_loops, in_loop, soon

LIMITS = Limits()


class Color(enum.StrEnum):
    RED = "red"


@dataclass
class Point:
    x: int


class Board(DurableObject):
    async def paint(self, at: Point, color: Color = Color.RED) -> Point:
        return at


@dataclass
class Sent:
    """A call that a stub started."""

    target: Target
    method: str
    args: list[Any]
    kwargs: dict[str, Any] | None
    spec: Method | None


@dataclass
class Recorder:
    """Starts calls by writing them down."""

    sent: list[Sent] = field(default_factory=list)
    refused: list[PerdureError] = field(default_factory=list)

    def start(self, target: Target, method: str, args: list[Any], kwargs: Any, spec: Method | None) -> str:
        self.sent.append(Sent(target, method, args, kwargs, spec))
        return f"sent {method}"

    def refuse(self, error: PerdureError) -> str:
        self.refused.append(error)
        return "refused"


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def stub_of(recorder: Recorder, cls: type | None = None) -> Any:
    methods = callable_methods(cls, DurableObject) if cls is not None else {}
    return Stub(make_target("Board", "a", None, methods), recorder)


# --- stubs


@pytest.mark.parametrize(
    "name", ["get", "put", "send", "start", "options", "refuse", "id", "name", "target", "close", "cancel"]
)
def test_every_public_name_is_a_remote_method(recorder: Recorder, name: str) -> None:
    assert getattr(stub_of(recorder), name)(1) == f"sent {name}"
    assert recorder.sent == [Sent(make_target("Board", "a", None, {}), name, [1], None, None)]


def test_making_a_stub_or_naming_a_method_sends_nothing(recorder: Recorder) -> None:
    stub = stub_of(recorder)
    method = stub.paint
    assert stub.paint is method, "found in the instance the second time"
    assert not recorder.sent
    assert repr(stub) == "<stub of Board/a>"


def test_a_stub_of_an_object_without_a_name_shows_its_id(recorder: Recorder) -> None:
    unique = new_unique_id("Board")
    assert repr(Stub(make_target("Board", unique, None, {}), recorder)) == f"<stub of Board/{unique}>"


@pytest.mark.parametrize("name", ["_private", "__secret", "__len__", "_perdure_nothing"])
def test_a_name_with_an_underscore_is_no_method(recorder: Recorder, name: str) -> None:
    with pytest.raises(AttributeError, match="only public methods"):
        getattr(stub_of(recorder), name)


def test_an_attribute_of_an_object_cannot_be_set_through_a_stub(recorder: Recorder) -> None:
    stub = stub_of(recorder)
    with pytest.raises(AttributeError, match="'value' cannot be set through a stub"):
        stub.value = 5
    assert stub.value() == "sent value"


def test_a_copied_stub_speaks_for_the_same_object(recorder: Recorder) -> None:
    stub = stub_of(recorder)
    stub.paint(1)
    copy.copy(stub).paint(2)
    first, second = recorder.sent
    assert first.target == second.target


def test_arguments_that_need_no_conversion_are_sent_as_they_are(recorder: Recorder) -> None:
    stub_of(recorder).m(None, True, 2**80, 0.5, "x", b"y")
    assert recorder.sent[0].args == [None, True, 2**80, 0.5, "x", b"y"]


def test_arguments_are_sent_as_plain_values(recorder: Recorder) -> None:
    stub_of(recorder).m(Point(1), [Color.RED], by={"at": Point(2)})
    (sent,) = recorder.sent
    assert (sent.args, sent.kwargs) == ([{"x": 1}, ["red"]], {"by": {"at": {"x": 2}}})
    assert type(sent.args[1][0]) is str
    stub_of(recorder, Board).paint(Point(3), color=Color.RED)
    assert (recorder.sent[1].args, recorder.sent[1].kwargs) == ([{"x": 3}], {"color": "red"})
    assert recorder.sent[1].spec is not None


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((object(),), {}),
        ((), {"by": object()}),
        (([1, {"a": object()}],), {}),
        (({1: 2},), {}),
        (({"a": ["\ud800"]},), {}),
    ],
)
@pytest.mark.parametrize("cls", [None, Board], ids=["untyped", "typed"])
def test_an_argument_that_cannot_travel_is_refused_before_anything_is_sent(
    recorder: Recorder, args: Any, kwargs: Any, cls: type | None
) -> None:
    assert stub_of(recorder, cls).paint(*args, **kwargs) == "refused"
    (error,) = recorder.refused
    assert isinstance(error, InvalidArgument)
    assert str(error).startswith("Board.paint(): an argument cannot be sent: ")
    assert not recorder.sent


# --- targets


def test_a_target_knows_what_decides_the_slot() -> None:
    slot_map = SlotMap(1, (range(7), range(7, 16)), (Seat(1, "a"), Seat(1, "b")))
    for number in range(200):
        target = make_target("Board", f"board-{number}", None, {})
        assert slot_map.owners[target.hashed % 16] == slot_map.worker_of(target.object_id)


def test_a_target_is_made_from_a_name_or_an_id() -> None:
    named = id_from_name("Board", "a")
    assert make_target("Board", "a", None, {})[:3] == ("Board", named.key, "a")
    assert make_target("Board", named, None, {})[:3] == ("Board", named.key, "a")
    assert make_target("Board", ObjectId(named.key), None, {})[:3] == ("Board", named.key, None)
    assert make_target("Board", Color.RED, None, {}).name == "red"
    for wrong in (id_from_name("Other", "a"), ObjectId(b"short"), "", None, 5, b"a"):
        with pytest.raises(InvalidArgument):
            make_target("Board", wrong, None, {})  # type: ignore[arg-type]


def test_a_deadline_is_30_seconds_where_none_is_named() -> None:
    assert make_target("Board", "a", None, {}).timeout_s == LIMITS.call_timeout_s == 30.0


@pytest.mark.parametrize("timeout", [0.001, 1, 30.0, LIMITS.call_timeout_max_s])
def test_a_deadline_may_be_named(timeout: float) -> None:
    assert make_target("Board", "a", timeout, {}).timeout_s == timeout


@pytest.mark.parametrize(
    "timeout", [0, -1, LIMITS.call_timeout_max_s + 1, float("nan"), float("inf"), "5", [1]]
)
def test_a_deadline_that_is_none_is_a_clear_error(timeout: Any) -> None:
    with pytest.raises(InvalidArgument, match="a timeout is more than 0 and at most 3600 s"):
        make_target("Board", "a", timeout, {})


# --- calls


def call_of() -> tuple[Call[Any], asyncio.Future[Any]]:
    future = asyncio.get_running_loop().create_future()
    return Call(future), future


async def in_a_moment(future: asyncio.Future[Any], value: Any) -> None:
    """The outcome comes when whoever is to wait for it waits."""
    loop = asyncio.get_running_loop()
    loop.call_soon(loop.call_soon, loop.call_soon, set_outcome, future, value)


def set_outcome(future: asyncio.Future[Any], value: Any) -> None:
    if isinstance(value, Exception):
        future.set_exception(value)
    else:
        future.set_result(value)


async def as_task(call: Call[Any]) -> Any:
    return await asyncio.create_task(call)  # type: ignore[arg-type]


async def in_group(call: Call[Any]) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(call)  # type: ignore[arg-type]
    return task.result()


async def gathered(call: Call[Any]) -> Any:
    return (await asyncio.gather(call))[0]


async def waited_for(call: Call[Any]) -> Any:
    return await asyncio.wait_for(call, 10)


async def as_future(call: Call[Any]) -> Any:
    return await asyncio.ensure_future(call)


async def under_timeout(call: Call[Any]) -> Any:
    async with asyncio.timeout(10):
        return await call


async def shielded(call: Call[Any]) -> Any:
    return await asyncio.shield(call)


async def awaited(call: Call[Any]) -> Any:
    return await call


async def threaded(call: Call[Any]) -> Any:
    loop = asyncio.get_running_loop()
    other = asyncio.run_coroutine_threadsafe(call, loop)  # type: ignore[arg-type]
    return await asyncio.wrap_future(other)


async def in_a_context(call: Call[Any]) -> Any:
    return await asyncio.create_task(call, context=contextvars.copy_context())  # type: ignore[arg-type]


WAYS = [
    awaited,
    as_task,
    in_group,
    gathered,
    waited_for,
    as_future,
    under_timeout,
    shielded,
    threaded,
    in_a_context,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("early", [True, False], ids=["outcome is there", "outcome comes later"])
def test_a_call_is_awaited_in_every_way_that_a_coroutine_is(way: Any, early: bool) -> None:
    @in_both_loops
    async def check() -> None:
        for outcome in ("a result", ShardUnavailable("down")):
            call, future = call_of()
            if early:
                set_outcome(future, outcome)
            else:
                await in_a_moment(future, outcome)
            if isinstance(outcome, Exception):
                with pytest.raises((ShardUnavailable, ExceptionGroup)):
                    await soon(way(call))
            else:
                assert await soon(way(call)) == outcome

    check()


@in_loop
async def test_a_call_is_awaited_as_often_as_one_likes() -> None:
    call, future = call_of()
    await in_a_moment(future, 5)
    assert [await call, await call, await asyncio.create_task(as_coroutine(call)), await call] == [5] * 4
    assert await asyncio.gather(call, call) == [5, 5]
    failing, future = call_of()
    future.set_exception(ShardUnavailable("down"))
    for _ in range(3):
        with pytest.raises(ShardUnavailable):
            await failing


async def as_coroutine(call: Call[Any]) -> Any:
    return await call


@in_loop
async def test_tasks_may_wait_for_one_call_together() -> None:
    call, future = call_of()
    tasks = [asyncio.create_task(as_coroutine(call)) for _ in range(3)]
    await in_a_moment(future, 5)
    assert await asyncio.gather(*tasks) == [5, 5, 5]


@in_loop
async def test_a_cancelled_task_stops_waiting_and_the_outcome_is_dropped() -> None:
    call, future = call_of()
    task = asyncio.create_task(as_coroutine(call))
    driven, other = call_of()
    tasks = [task, asyncio.create_task(driven)]  # type: ignore[arg-type]
    asyncio.get_running_loop().call_soon(lambda: [waiting.cancel() for waiting in tasks])
    for waiting in tasks:
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert future.cancelled()
    assert other.cancelled()


@in_loop
async def test_a_task_that_is_cancelled_before_it_begins_leaves_no_error_behind() -> None:
    calls = [call_of() for _ in range(3)]

    async def start_and_fail() -> None:
        async with asyncio.TaskGroup() as group:
            for call, _ in calls:
                group.create_task(call)  # type: ignore[arg-type]
            raise LookupError("before any of them ran")

    with pytest.raises(ExceptionGroup, match="unhandled errors"):
        await start_and_fail()
    # As the client does with a reply that comes late: to whom nobody waits, none is given.
    assert all(future.cancelled() for _, future in calls)
    gc.collect()


@in_loop
async def test_a_call_that_nobody_awaits_is_quiet_when_it_succeeds() -> None:
    call, future = call_of()
    del call
    future.set_result(5)
    gc.collect()


@in_loop
async def test_a_call_may_be_closed_at_any_time() -> None:
    call, future = call_of()
    call.close()
    future.set_result(5)
    assert await call == 5
    started, _ = call_of()
    started.send(None)
    started.close()


@in_loop
async def test_a_task_that_drives_a_call_can_be_shown() -> None:
    asyncio.get_running_loop().set_debug(True)
    call, future = call_of()
    task = asyncio.create_task(call)  # type: ignore[arg-type]
    assert "Call" in repr(task)
    future.set_result(5)
    assert await task == 5
