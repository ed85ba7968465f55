"""The asyncio client when routers and workers die, stop, come back, or know other maps."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from perdure import protocol
from perdure.client import connect
from perdure.codec import encode as encoded
from perdure.errors import DeadlineExceeded, OutcomeUnknown, ShardUnavailable
from perdure.ids import id_from_name
from perdure.limits import Limits
from perdure.slotmap import Seat, SlotMap

from .fake_cluster import FakeCluster, fake_cluster, in_loop, soon

ROUTED = ""


def name_at(slot_map: SlotMap | None, worker: int) -> str:
    assert slot_map is not None
    names = (f"object-{number}" for number in range(10_000))
    return next(n for n in names if slot_map.worker_of(id_from_name("Counter", n).key) == worker)


def started(call: Any) -> asyncio.Future[Any]:
    """The call as a task, so that it can be looked at before it has ended."""
    return asyncio.ensure_future(call)


# --- workers


@in_loop
async def test_the_death_of_a_worker_ends_its_calls_at_once_and_no_others(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path, 2) as cluster, connect(cluster.url, retry=False) as client:
        stubs = [client.get("Counter", name_at(client.slot_map, worker)) for worker in (0, 1)]
        doomed, safe = (started(stub.m()) for stub in stubs)
        await cluster.doors[0].take()
        message = await cluster.doors[1].take()
        await cluster.doors[0].close()
        with pytest.raises(OutcomeUnknown, match="worker 0 died"):
            await asyncio.wait_for(doomed, 1.0)
        assert not safe.done()
        await cluster.doors[1].reply(message, lambda item: 5)
        assert await soon(safe) == 5


@in_loop
async def test_behind_a_router_the_death_of_a_worker_ends_its_calls_at_once_and_no_others(
    tmp_path: Path,
) -> None:
    async with fake_cluster(tmp_path, 2, boot=ROUTED) as cluster, connect(cluster.url, retry=False) as client:
        stubs = [client.get("Counter", name_at(client.slot_map, worker)) for worker in (0, 1)]
        doomed, safe = (started(stub.m()) for stub in stubs)
        messages = {message.header.worker: message for message in [await cluster.router.take() for _ in "01"]}
        assert client.slot_map is not None
        await cluster.router.publish(client.slot_map.with_seat(0, Seat(0, "")))
        with pytest.raises(OutcomeUnknown, match="worker 0 died"):
            await asyncio.wait_for(doomed, 1.0)
        assert not safe.done()
        header = protocol.header(protocol.REPLIES, 1, 1)
        replies = [[item.sequence, 0, 5] for item in messages[1].items]
        await cluster.router.send(messages[1].identity, header, encoded(replies))
        assert await soon(safe) == 5


@in_loop
async def test_calls_to_a_dead_worker_wait_for_its_successor(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        counter = client.get("Counter", "a")
        first = started(counter.m(0))
        await cluster.doors[0].take()
        waiting = [counter.m(number) for number in range(1, 3)]
        successor = await cluster.restart(0)
        waiting += [counter.m(number) for number in range(3, 5)]
        seen: list[int] = []
        successor.answer(lambda item: seen.append(item.args[0]) or item.args[0])
        await cluster.router.publish(cluster.slot_map)
        assert [await soon(call) for call in (first, *waiting)] == [0, 1, 2, 3, 4]
        assert seen == [0, 1, 2, 3, 4], "they arrive in the order in which they were made"


@in_loop
async def test_a_closing_door_is_acknowledged_and_its_calls_go_to_the_successor(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        counter = client.get("Counter", "a")
        running = started(counter.m("running"))
        message = await cluster.doors[0].take()
        old = cluster.doors[0]
        await old.goodbye(message.identity)
        await old.take(protocol.GOODBYE_ACK)
        waiting = started(counter.m("waiting"))
        await old.reply(message, lambda item: "done")
        assert await soon(running) == "done"
        assert old.seen == [protocol.BATCH, protocol.GOODBYE_ACK]
        successor = await cluster.restart(0)
        successor.answer(lambda item: item.args[0])
        await cluster.router.publish(cluster.slot_map)
        assert await soon(waiting) == "waiting"


@in_loop
async def test_a_batch_under_an_old_map_is_grouped_again_and_the_user_notices_nothing(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path, 1, boot=ROUTED) as cluster, connect(cluster.url) as client:
        calls = [started(client.get("Counter", f"c{number}").m(number)) for number in range(20)]
        message = await cluster.router.take()
        assert message.header.number == 1
        cluster.doors.append(cluster.open_door(1, 1))
        newer = cluster.slot_map
        body = protocol.array_header(2) + encoded(newer.to_wire()) + encoded(message.body)
        await cluster.router.send(message.identity, protocol.header(protocol.STALE, 0, newer.version), body)
        again = [await cluster.router.take() for _ in range(2)]
        assert {sent.header.worker for sent in again} == {0, 1}
        assert {sent.header.number for sent in again} == {newer.version}
        for sent in again:
            assert all(newer.worker_of(item.object_id) == sent.header.worker for item in sent.items)
        cluster.router.slot_map = newer
        for sent in again:
            header = protocol.header(protocol.REPLIES, sent.header.worker, 1)
            replies = [[item.sequence, 0, item.args[0]] for item in sent.items]
            await cluster.router.send(sent.identity, header, encoded(replies))
        assert [await soon(call) for call in calls] == list(range(20))


@in_loop
async def test_a_pushed_map_moves_calls_to_new_doors(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        cluster.doors[0].answer(lambda item: "old")
        assert await client.get("Counter", "a").m() == "old"
        cluster.doors = [cluster.doors[0], cluster.open_door(1, 1)]
        cluster.doors[1].answer(lambda item: "new")
        newer = cluster.slot_map
        moved = client.get("Counter", name_at(newer, 1))
        await cluster.router.publish(newer)
        # The map and the reply come through different sockets.
        while await soon(moved.m()) != "new":
            assert client.slot_map is not None
        assert client.slot_map == newer


@in_loop
async def test_a_worker_that_stays_down_ends_calls_at_their_deadline_as_not_executed(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster:
        cluster.router.slot_map = cluster.slot_map.with_seat(0, Seat(0, ""))
        async with connect(cluster.url) as client:
            loop = asyncio.get_running_loop()
            began = loop.time()
            with pytest.raises(ShardUnavailable, match="until the deadline; nothing happened"):
                await client.get("Counter", "a", timeout=0.2).m()
            assert 0.2 <= loop.time() - began < 1.0


@in_loop
async def test_a_door_that_is_not_there_ends_calls_at_their_deadline_as_not_executed(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path, 2) as cluster, connect(cluster.url) as client:
        await cluster.doors[0].close()
        stub = client.get("Counter", name_at(client.slot_map, 0), timeout=0.2)
        with pytest.raises((DeadlineExceeded, ShardUnavailable)):
            await stub.m()


@in_loop
async def test_an_answer_that_never_comes_is_an_unknown_outcome_soon_after_the_deadline(
    tmp_path: Path,
) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        loop = asyncio.get_running_loop()
        began = loop.time()
        call = started(client.get("Counter", "a", timeout=0.1).m())
        await cluster.doors[0].take()
        with pytest.raises(OutcomeUnknown, match="deadline"):
            await call
        assert 0.6 <= loop.time() - began < 1.5


# --- the router


@in_loop
async def test_without_its_router_a_direct_client_goes_on(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        counter = client.get("Counter", "a")
        open_call = started(counter.m("open"))
        message = await cluster.doors[0].take()
        await cluster.router.close()
        await cluster.doors[0].reply(message, lambda item: item.args[0])
        assert await soon(open_call) == "open"
        cluster.doors[0].answer(lambda item: item.args[0])
        for number in range(20):
            assert await soon(counter.m(number)) == number


@in_loop
async def test_a_router_that_comes_back_is_asked_for_the_map_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare_pings = dataclasses.replace(Limits(), client_ping_s=1000.0)
    monkeypatch.setattr("perdure.client._LIMITS", rare_pings)
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        await cluster.router.close()
        lost = started(client.get("Counter", "a").m(4))
        await cluster.doors[0].take()
        successor = await cluster.restart(0)
        successor.answer(lambda item: item.args[0])
        waiting = started(client.get("Counter", "a").m(5))
        cluster.open_router(cluster.slot_map)
        assert (await soon(lost), await soon(waiting)) == (4, 5)


@in_loop
async def test_the_death_of_the_router_ends_the_calls_that_it_carried_at_once(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path, boot=ROUTED) as cluster, connect(cluster.url, retry=False) as client:
        counter = client.get("Counter", "a")
        lost = started(counter.m("lost"))
        await cluster.router.take()
        await cluster.router.close()
        with pytest.raises(OutcomeUnknown, match="the router died"):
            await asyncio.wait_for(lost, 1.0)
        later = started(counter.m("later"))
        cluster.open_router(cluster.router.slot_map).serve = lambda item: item.args[0]
        assert await soon(later) == "later"


@in_loop
async def test_after_a_routers_goodbye_calls_wait_for_its_successor(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path, boot=ROUTED) as cluster, connect(cluster.url) as client:
        counter = client.get("Counter", "a")
        old = cluster.router
        await old.goodbye()
        await old.take(protocol.GOODBYE_ACK)
        waiting = [started(counter.m(number)) for number in range(3)]
        await restart_router_with_the_same_map(cluster)
        assert [await soon(call) for call in waiting] == [0, 1, 2]
        assert protocol.BATCH not in old.seen


async def restart_router_with_the_same_map(cluster: FakeCluster) -> None:
    """The map has not changed, so the successor greets with a PONG and no map."""
    cluster.version -= 1
    await cluster.router.close()
    cluster.open_router(cluster.slot_map).serve = lambda item: item.args[0]


@in_loop
async def test_a_router_that_took_its_goodbye_back_is_served_again(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path, boot=ROUTED) as cluster, connect(cluster.url) as client:
        await cluster.router.goodbye()
        await cluster.router.take(protocol.GOODBYE_ACK)
        waiting = started(client.get("Counter", "a").m(5))
        cluster.router.serve = lambda item: item.args[0]
        cluster.router.stopping = False
        # It stays, and answers the next ping: whoever answers is not closing.
        assert await soon(waiting) == 5


@in_loop
async def test_cancelling_the_wait_for_a_call_does_not_stop_others(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        counter = client.get("Counter", "a")
        tasks = [started(counter.m(number)) for number in range(3)]
        message = await cluster.doors[0].take()
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(counter.m("slow"), 0.01)
        await cluster.doors[0].reply(message, lambda item: item.args[0])
        assert [await soon(tasks[0]), await soon(tasks[2])] == [0, 2]
        # The reply to the cancelled one is dropped, and the client works on.
        cluster.doors[0].answer(lambda item: item.args[0])
        assert await soon(counter.m(7)) == 7
