"""The sockets' core on a client and a loop: fair writing, maps that change, ids that are given up."""

from __future__ import annotations

import asyncio
from pathlib import Path

from perdure.errors import ShardUnavailable
from perdure.stub import make_target
from sdk.fake_cluster import in_loop, soon

from .gateway_scene import ROOM, gateway_scene


class Written:
    """Notes in which turn of the loop it was asked to write."""

    def __init__(self, turns: list[int]) -> None:
        self.turns = turns
        self.wrote_in: int | None = None
        self.wrote = asyncio.Event()

    def write(self) -> None:
        self.wrote_in = self.turns[0]
        self.wrote.set()


@in_loop
async def test_a_broadcast_to_many_lets_others_have_their_turn(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path, socket_writes_per_tick=10) as scene:
        turns = [0]
        loop = asyncio.get_running_loop()

        def count() -> None:
            turns[0] += 1
            loop.call_soon(count)

        count()
        writers = [Written(turns) for _ in range(35)]
        for writer in writers:
            scene.link.write_soon(writer)
        for writer in writers:
            await soon(writer.wrote.wait())
        by_turn = [writer.wrote_in for writer in writers]
        assert [by_turn.count(turn) for turn in sorted(set(by_turn), key=int)] == [10, 10, 10, 5]
        turns[0] = -1_000_000_000  # the counting ends with the loop


@in_loop
async def test_sockets_of_different_workers_are_told_to_their_own_worker(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path, 2) as scene:
        slot_map = scene.cluster.slot_map
        targets = {}
        for number in range(50):
            target = make_target("Room", f"r{number}", None, {})
            targets.setdefault(slot_map.worker_of(target.object_id), target)
        assert scene.workers[1].marks.empty()
        for worker in (0, 1):
            browser = await scene.connected(target=targets[worker])
            assert (await soon(scene.workers[worker].marks.get()))[1:] == [0, 0]
            browser.leave(1000)
            assert (await soon(scene.workers[worker].ends.get()))[1] == 1000


@in_loop
async def test_a_gateway_id_that_was_given_up_ends_when_its_last_socket_does(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path, 2) as scene:
        slot_map = scene.cluster.slot_map
        owner = slot_map.worker_of(ROOM.object_id)
        other = next(
            target
            for number in range(50)
            if slot_map.worker_of((target := make_target("Room", f"r{number}", None, {})).object_id) != owner
        )
        old = scene.link.gateway_id
        lost, kept = await scene.connected(), await scene.connected(target=other)
        await scene.workers[owner].send_raw([None])
        assert (await lost.take())["code"] == 1001
        await lost.ended()
        # The other worker goes on with the old id.
        keeper = scene.workers[1 - owner]
        await keeper.send([0, "still here", [keeper.number()]])
        assert await kept.data() == "still here"
        kept.says("and so am I")
        assert (await soon(keeper.frames.get()))[1] == "and so am I"
        assert keeper.requests[-1]["socket"].startswith(old)
        assert scene.link.gateway_id != old
        kept.leave(1000)
        assert (await soon(keeper.ends.get()))[0].startswith(old)
        assert len(scene.link) == 0


@in_loop
async def test_a_message_that_meets_a_worker_that_is_away_is_handled_when_it_is_back(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        browser = await scene.connected()
        moving = [True]

        def frame(item: object) -> int:
            if moving:
                moving.clear()
                raise ShardUnavailable("moving")
            return 0

        scene.worker.frame = frame
        browser.says("one")
        assert [(await soon(scene.worker.frames.get()))[1] for _ in range(2)] == ["one", "one"]
        browser.says("two")
        assert (await soon(scene.worker.frames.get()))[1] == "two"


@in_loop
async def test_nothing_is_done_after_the_link_is_closed(tmp_path: Path) -> None:
    async with gateway_scene(tmp_path) as scene:
        browser = await scene.connected()
        scene.link.close()
        await scene.worker.send([0, "late", [scene.worker.number()]])
        browser.leave(1000)
        await browser.ended()
        assert len(scene.link) == 0
