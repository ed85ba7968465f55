"""Transactions and snapshots in turns: commit points, failures and tasks that outlive their turn."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure import DurableObject, RemoteError, durable
from worker.host_scene import Scene


class Other(DurableObject):
    async def hear(self) -> None:
        """Another object to call."""


class Shelf(DurableObject):
    value: int = durable(0)

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.log: list[Any] = []

    async def fill(self, names: list[str]) -> None:
        self.storage.put_many(dict.fromkeys(names, 1))

    async def read(self) -> dict[str, Any]:
        return await self.storage.list()

    async def move(self, source: str, target: str) -> None:
        async with self.storage.transaction() as txn:
            txn.put(target, await txn.get(source))
            txn.delete(source)

    async def undone(self, catch: bool) -> str:
        self.value += 1
        self.storage.put("before", 1)
        try:
            async with self.storage.transaction() as txn:
                self.value += 10
                txn.put("inside", 1)
                raise ValueError("undone")
        except ValueError:
            if not catch:
                raise
        return "caught"

    async def call_inside(self, fail: bool) -> None:
        async with self.storage.transaction() as txn:
            txn.put("inside", 1)
            self.storage.put("beside", 1)
            await self.ctx.get(Other, "other").hear()
            await self.go.wait()
            if fail:
                raise ValueError("undone")

    async def release(self) -> None:
        self.go.set()

    async def transaction_in_a_task(self) -> None:
        async def later() -> None:
            try:
                async with self.storage.transaction() as txn:
                    txn.put("inside", 1)
                    await self.go.wait()
            except Exception as error:
                self.log.append(str(error))

        self.task = asyncio.create_task(later())
        await asyncio.sleep(0)  # sleep: the task opens its transaction

    async def look(self) -> list[Any]:
        self.go.set()
        await self.task
        return self.log

    async def keep_snapshot(self) -> None:
        self.view = self.storage.snapshot()

    async def read_kept_snapshot(self) -> None:
        await self.view.list()

    async def pages(self) -> list[str]:
        found: list[str] = []
        with self.storage.snapshot() as view:
            while page := await view.list(limit=2, keys_only=True, cursor=found[-1] if found else None):
                found += page
                self.storage.delete_many(page)
                self.storage.put(page[-1] + "+", 1)
                await self.storage.sync()
        return found


def test_a_transaction_is_part_of_its_turns_commit(make_scene: Any) -> None:
    scene: Scene = make_scene(Shelf)
    scene.call(Shelf, "s", "fill", ["a"])
    commits = scene.committer.durable
    scene.call(Shelf, "s", "move", "a", "b")
    assert scene.values(Shelf, "s") == {"b": 1}
    assert scene.committer.durable == commits + 1


def test_a_rolled_back_transaction_leaves_the_rest_of_its_turn_alone_fields_included(make_scene: Any) -> None:
    scene: Scene = make_scene(Shelf)
    assert scene.call(Shelf, "s", "undone", True) == "caught"
    assert scene.values(Shelf, "s") == {"before": 1}
    assert scene.fields(Shelf, "s") == {"value": 11}


def test_a_turn_that_its_transaction_ends_with_an_error_leaves_no_trace(make_scene: Any) -> None:
    scene: Scene = make_scene(Shelf)
    with pytest.raises(RemoteError, match="undone"):
        scene.call(Shelf, "s", "undone", False)
    assert scene.values(Shelf, "s") == scene.fields(Shelf, "s") == {}


@pytest.mark.parametrize("fail", [False, True])
def test_a_call_to_another_object_inside_commits_only_what_was_written_outside(
    make_scene: Any, fail: bool
) -> None:
    scene: Scene = make_scene(Shelf, Other)
    sent = scene.start(Shelf, "s", "call_inside", fail)
    scene.commit()
    assert scene.values(Shelf, "s") == {"beside": 1}
    assert not sent.answered
    scene.do(scene.resident(Shelf, "s").instance.go.set)
    scene.commit()
    assert sent.answered
    assert scene.values(Shelf, "s") == ({"beside": 1} if fail else {"beside": 1, "inside": 1})


def test_a_transaction_left_open_by_a_task_ends_with_its_turn_as_rolled_back(make_scene: Any) -> None:
    scene: Scene = make_scene(Shelf)
    scene.call(Shelf, "s", "fill", ["a"])
    scene.call(Shelf, "s", "transaction_in_a_task")
    scene.call(Shelf, "s", "move", "a", "b")
    assert scene.call(Shelf, "s", "look") == ["this transaction was rolled back when its turn ended"]
    assert scene.call(Shelf, "s", "read") == scene.values(Shelf, "s") == {"b": 1}


def test_a_snapshot_that_was_kept_is_closed_soon_after_its_turn(make_scene: Any) -> None:
    scene: Scene = make_scene(Shelf)
    scene.call(Shelf, "s", "keep_snapshot")
    assert len(scene.host._backend.open_views) == 1
    scene.do(scene.tick)
    assert not scene.host._backend.open_views
    scene.call(Shelf, "s", "keep_snapshot")
    with pytest.raises(RemoteError, match="snapshot has ended"):
        scene.call(Shelf, "s", "read_kept_snapshot")


def test_pages_of_a_snapshot_are_one_listing_although_the_turn_commits_between_them(make_scene: Any) -> None:
    scene: Scene = make_scene(Shelf)
    names = ["a", "b", "c", "d", "e"]
    scene.call(Shelf, "s", "fill", names)
    assert scene.call(Shelf, "s", "pages") == names
    assert scene.call(Shelf, "s", "read") == {"b+": 1, "d+": 1, "e+": 1}
