"""What an object sees of its worker, and its calls to other objects: when they leave, and what they carry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from perdure import (
    DeadlineExceeded,
    DeadlockError,
    DurableObject,
    InvalidArgument,
    Limits,
    OutcomeUnknown,
    RemoteError,
    UnknownMethod,
    UnknownNamespace,
    blocking,
    codec,
    durable,
)
from perdure.ids import new_unique_id
from worker.host_scene import Scene, results, take_time


class Node(DurableObject):
    value: int = durable(0)

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.go = asyncio.Event()
        self.leftover: Callable[[], Any] = lambda: None
        self.leftover_error: BaseException | None = None

    async def increment(self, by: int = 1) -> int:
        self.value += by
        return self.value

    async def note(self, *what: Any) -> None:
        self.log.append(what)

    async def look(self) -> list[Any]:
        return self.log

    async def who(self) -> tuple[str | None, str]:
        return self.id.name, str(self.id)

    async def hold(self) -> int:
        await self.go.wait()
        return self.value

    async def through(self, names: list[str]) -> str:
        if not names:
            return "end"
        return str(await self.ctx.get(Node, names[0]).through(names[1:]))

    async def through_from_a_task(self, names: list[str]) -> str:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.through(names))
        return task.result()

    async def write_then_notes(self, other: str, count: int) -> None:
        calls = []
        for number in range(count):
            self.value += 1
            calls.append(self.ctx.get(Node, other).note(number))
        await asyncio.gather(*calls)

    async def note_without_waiting(self, other: str) -> None:
        self.ctx.get(Node, other).note("from", self.id.name)

    async def through_without_waiting(self, names: list[str]) -> None:
        self.ctx.get(Node, names[0]).through(names[1:])

    async def change_arguments_later(self, other: str) -> None:
        self.value += 1
        notes, more = [1], {"a": [1]}
        call = self.ctx.get(Node, other).note(notes, more)
        notes.append(2)
        more["a"].append(2)
        await call

    async def give_up(self, other: str) -> str:
        try:
            async with asyncio.timeout(1):
                await self.ctx.get(Node, other).hold()
        except TimeoutError:
            return "gave up"
        return "got it"

    async def impatient(self, other: str, timeout: float) -> int:
        result: int = await self.ctx.get(Node, other, timeout=timeout).hold()
        return result

    async def call_wrongly(self, how: str) -> None:
        if how == "value":
            await self.ctx.get(Node, "x").note(object())
        elif how == "method":
            await self.ctx.get(Node, "x").nothing()  # type: ignore[attr-defined]
        elif how == "namespace":
            await self.ctx.get("Nowhere", "x").anything()
        else:
            await self.ctx.get(Node, "x").increment("text")  # type: ignore[arg-type]

    @blocking
    def call_from_a_thread(self) -> None:
        self.ctx.get(Node, "x").increment()

    async def leave_behind(self, what: str) -> None:
        storage = self.storage

        async def leftover() -> None:
            await self.go.wait()
            try:
                if what == "put":
                    storage.put("key", 1)
                elif what == "put_many":
                    self.storage.put_many({"key": 1})
                elif what == "delete":
                    storage.delete("key")
                elif what == "delete_many":
                    storage.delete_many(["key"])
                elif what == "delete_all":
                    await storage.delete_all()
                elif what == "sync":
                    await storage.sync()
                elif what == "call":
                    await self.ctx.get(Node, "b").increment()
                elif what == "abort":
                    self.ctx.abort("from nowhere")
            except Exception as error:
                self.leftover_error = error

        self.storage.put("kept", 1)
        self.task = asyncio.create_task(leftover())

    async def read_later(self) -> None:
        async def leftover() -> None:
            await self.go.wait()
            self.log.append(await self.storage.get("kept"))

        self.storage.put("kept", 1)
        self.task = asyncio.create_task(leftover())

    async def linger(self) -> None:
        self.storage.put("mine", 1)
        await take_time(5)

    async def write_in_child_tasks(self, later: bool) -> None:
        if later:
            await take_time(0)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._put("a"))
            group.create_task(self._put("b"))
        done = asyncio.Event()
        asyncio.get_running_loop().call_later(1, lambda: (self.storage.put("c", 1), done.set()))
        await done.wait()

    async def _put(self, key: str) -> None:
        await take_time(1)
        self.storage.put(key, 1)
        await self.ctx.get(Node, "other").increment()


# --- identity


def test_an_object_knows_its_name_and_its_id(make_scene: Any) -> None:
    scene = make_scene(Node)
    unique = new_unique_id("Node")
    name, text = scene.call(Node, "ä", "who")
    assert name == "ä"
    assert len(text) == 64
    assert scene.call(Node, unique, "who") == (None, str(unique))


# --- when calls leave


def test_a_call_leaves_when_what_the_turn_wrote_before_it_is_on_disk(make_scene: Any) -> None:
    scene = make_scene(Node)
    calling = scene.start(Node, "a", "write_then_notes", "b", 1)
    assert not scene.is_live(Node, "b")
    scene.commit_one()
    assert scene.fields(Node, "a") == {"value": 1}
    assert scene.is_live(Node, "b")
    scene.commit()
    assert calling.result() is None


def test_a_call_of_a_turn_that_wrote_nothing_leaves_at_once(make_scene: Any) -> None:
    scene = make_scene(Node)
    assert scene.start(Node, "a", "through", ["b"]).result() == "end"
    assert not scene.jobs


def test_calls_to_one_object_arrive_in_the_order_in_which_they_were_made(make_scene: Any) -> None:
    scene = make_scene(Node)
    scene.call(Node, "a", "write_then_notes", "b", 50)
    assert scene.call(Node, "b", "look") == [(number,) for number in range(50)]


def test_a_call_carries_its_arguments_as_they_were_when_it_was_made(make_scene: Any) -> None:
    scene = make_scene(Node)
    scene.call(Node, "a", "change_arguments_later", "b")
    assert scene.call(Node, "b", "look") == [([1], {"a": [1]})]


def test_a_call_that_nobody_awaits_still_leaves(make_scene: Any) -> None:
    scene = make_scene(Node)
    assert scene.start(Node, "a", "note_without_waiting", "b").result() is None
    assert scene.call(Node, "b", "look") == [("from", "a")]


# --- how calls end


def test_a_caller_that_gives_up_does_not_end_the_turn_it_called(make_scene: Any) -> None:
    scene = make_scene(Node)
    calling = scene.start(Node, "a", "give_up", "b")
    scene.advance(1)
    assert calling.result() == "gave up"
    scene.start(Node, "b", "increment")
    scene.resident(Node, "b").instance.go.set()
    scene.commit()
    assert scene.call(Node, "b", "increment") == 2


def test_a_deadline_that_passes_during_the_turn_is_an_outcome_unknown(make_scene: Any) -> None:
    scene = make_scene(Node)
    calling = scene.start(Node, "a", "impatient", "b", 2.0)
    scene.advance(1.9)
    assert not calling.answered
    for _ in range(20):
        scene.advance(0.05)
    raised = calling.error()
    assert isinstance(raised, RemoteError)
    assert raised.type_name == f"perdure.errors.{OutcomeUnknown.__name__}"


def test_a_deadline_that_passes_before_the_turn_starts_means_not_executed(make_scene: Any) -> None:
    scene = make_scene(Node)
    scene.start(Node, "b", "hold")
    calling = scene.start(Node, "a", "impatient", "b", 2.0)
    for _ in range(42):
        scene.advance(0.05)
    raised = calling.error()
    assert isinstance(raised, RemoteError)
    assert raised.type_name == f"perdure.errors.{DeadlineExceeded.__name__}"


def test_a_call_has_no_more_time_than_the_turn_that_makes_it(make_scene: Any) -> None:
    scene = make_scene(Node)
    scene.start(Node, "b", "hold")
    calling = scene.start(Node, "a", "impatient", "b", 20.0, timeout_ms=1_000)
    for _ in range(22):
        scene.advance(0.05)
    assert "DeadlineExceeded" in str(calling.error())


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("value", InvalidArgument),
        ("method", UnknownMethod),
        ("namespace", UnknownNamespace),
        ("type", InvalidArgument),
    ],
)
def test_a_wrong_call_to_another_object_fails_in_the_method_that_made_it(
    make_scene: Any, how: str, error: type[Exception]
) -> None:
    with pytest.raises(RemoteError, match=error.__name__):
        make_scene(Node).call(Node, "a", "call_wrongly", how)


# --- chains


def test_a_call_back_into_its_own_chain_is_a_deadlock_at_once_that_names_the_cycle(make_scene: Any) -> None:
    scene = make_scene(Node)
    for names, cycle in ((["b", "a"], "a -> Node/b -> Node/a"), (["a"], "a -> Node/a")):
        with pytest.raises(RemoteError, match=f"Node/{cycle}") as caught:
            scene.start(Node, "a", "through", names).result()
        assert caught.value.type_name == "perdure.errors.DeadlockError"
    assert scene.start(Node, "a", "through", ["b", "c", "d"]).result() == "end"
    assert scene.start(Node, "a", "through_from_a_task", ["b"]).result() == "end"
    assert "Node/a" in str(scene.start(Node, "a", "through_from_a_task", ["b", "a"]).error())


def test_a_call_to_an_object_that_did_not_wait_for_it_is_no_deadlock(make_scene: Any) -> None:
    scene = make_scene(Node)
    calling = scene.start(Node, "a", "through_without_waiting", ["b", "a"])
    assert calling.result() is None
    assert scene.host.turns == 3
    assert scene.call(Node, "a", "look") == []


def test_the_depth_of_a_chain_is_limited(make_scene: Any) -> None:
    scene = make_scene(Node, limits=Limits(chain_depth_max=4))
    assert scene.start(Node, "0", "through", list("123")).result() == "end"
    with pytest.raises(RemoteError, match="chain_depth_max") as caught:
        scene.start(Node, "0", "through", list("1234")).result()
    assert caught.value.type_name == f"perdure.errors.{DeadlockError.__name__}"


# --- threads, and code that outlives its turn


def test_a_blocking_method_cannot_call_other_objects(make_scene: Any) -> None:
    scene: Scene = make_scene(Node)
    call = scene.start(Node, "a", "call_from_a_thread")
    scene.wait(lambda: call.answered)
    assert "@blocking" in str(call.error())


@pytest.mark.parametrize("later", [False, True])
def test_tasks_and_callbacks_of_a_turn_write_and_call_in_its_name(make_scene: Any, later: bool) -> None:
    scene = make_scene(Node)
    call = scene.start(Node, "a", "write_in_child_tasks", later)
    for _ in range(4):
        scene.advance(1)
        scene.commit()
    assert call.result() is None
    assert scene.values(Node, "a") == {"a": 1, "b": 1, "c": 1}
    assert scene.fields(Node, "other") == {"value": 2}


@pytest.mark.parametrize("beside_a_turn", [False, True])
@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("put", "StorageError"),
        ("put_many", "StorageError"),
        ("delete", "StorageError"),
        ("delete_many", "StorageError"),
        ("delete_all", "StorageError"),
        ("sync", "StorageError"),
        ("call", "RuntimeError"),
        ("abort", "RuntimeError"),
    ],
)
def test_a_task_that_outlives_its_turn_can_neither_write_nor_call_nor_join_another_turn(
    make_scene: Any, what: str, error: str, beside_a_turn: bool
) -> None:
    scene = make_scene(Node)
    scene.call(Node, "a", "leave_behind", what)
    instance = scene.resident(Node, "a").instance
    beside = scene.start(Node, "a", "linger") if beside_a_turn else None
    instance.go.set()
    scene.commit()
    assert type(instance.leftover_error).__name__ == error
    assert "turn" in str(instance.leftover_error)
    scene.advance(5)
    scene.commit()
    assert scene.values(Node, "a") == {"kept": 1} | ({"mine": 1} if beside else {})
    assert not scene.is_live(Node, "b")
    assert scene.call(Node, "a", "increment") == 1


def test_a_task_of_an_evicted_or_aborted_object_can_write_nowhere(make_scene: Any) -> None:
    scene = make_scene(Node, idle_evict_s=10)
    scene.call(Node, "a", "leave_behind", "put")
    old = scene.resident(Node, "a").instance
    scene.advance(20)
    assert scene.host.evict_idle() == 1
    linger = scene.start(Node, "a", "linger")
    old.go.set()
    scene.settle()
    assert type(old.leftover_error).__name__ == "StorageError"
    scene.advance(5)
    scene.commit()
    assert linger.result() is None
    assert scene.values(Node, "a") == {"kept": 1, "mine": 1}


def test_a_task_that_outlives_its_turn_can_read(make_scene: Any) -> None:
    scene = make_scene(Node)
    scene.call(Node, "a", "read_later")
    scene.resident(Node, "a").instance.go.set()
    assert scene.call(Node, "a", "look") == [1]


def test_two_objects_that_call_many_others_keep_their_calls_apart(make_scene: Any) -> None:
    scene = make_scene(Node)
    calls = [scene.start(Node, name, "write_then_notes", f"{name}-target", 3) for name in "ab"]
    scene.commit()
    assert results(calls) == [None, None]
    for name in "ab":
        assert scene.call(Node, f"{name}-target", "look") == [(0,), (1,), (2,)]


# --- request ids


def test_calls_of_a_turn_carry_the_turns_request_id_and_their_number(make_scene: Any) -> None:
    scene = make_scene(Node)
    seen = contexts_of(scene)
    scene.start(Node, "a", "through", ["b", "c"], request=[b"r" * 16, 9, b"", 4]).result()
    assert [context[1] for context in seen] == [
        [b"r" * 16, 9, b"\x00\x01", 4],
        [b"r" * 16, 9, b"\x00\x01\x00\x01", 4],
    ]
    seen.clear()
    call = scene.start(Node, "a", "through", ["b"])
    call.result()
    assert [context[1] for context in seen] == [[scene.client_id, call.sequence, b"\x00\x01", 1]]
    assert not scene.host.progress


def contexts_of(scene: Any) -> list[Any]:
    """The contexts of the calls that objects make from now on."""
    seen: list[Any] = []
    on_home = scene._on_home

    def look(body: bytes, stamp: int) -> None:
        seen.extend(item[8] for item in codec.decode(body)[1:])
        on_home(body, stamp)

    scene._on_home = look
    return seen
