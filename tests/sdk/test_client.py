"""The asyncio client on real sockets: connecting, calling, losing routers and workers, closing."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from perdure import codec, protocol
from perdure.client import Client, connect
from perdure.errors import (
    InvalidArgument,
    MessageTooLarge,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    UnknownMethod,
)
from perdure.ids import ObjectId, id_from_name
from perdure.limits import Limits
from perdure.object import DurableObject
from perdure.protocol import Item
from perdure.slotmap import Seat

from .fake_cluster import FakeCluster, Message, fake_cluster, in_both_loops, in_loop, soon

DIRECT, ROUTED = None, ""
"""Boot ids of the cluster: of this machine, or of none."""


class Counter(DurableObject):
    async def increment(self, by: int = 1) -> int:
        return by

    async def pair(self) -> tuple[int, str]:
        return (1, "a")


def echo(item: Item) -> Any:
    """Serves any call with what it was called with."""
    return [item.method, item.args, item.kwargs or {}]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def name_at(cluster_map: Any, worker: int) -> str:
    names = (f"object-{number}" for number in range(10_000))
    return next(n for n in names if cluster_map.worker_of(id_from_name("Counter", n).key) == worker)


async def connected_to(cluster: FakeCluster, **options: Any) -> Client:
    client = connect(cluster.url, **options)
    await soon(client.__aenter__())
    return client


# --- connecting


@in_both_loops
async def check_that_a_client_learns_the_map(folder: Path) -> None:
    async with fake_cluster(folder, 2) as cluster, connect(cluster.url) as client:
        assert client.slot_map == cluster.router.slot_map


def test_a_client_learns_the_slot_map_when_it_connects(tmp_path: Path) -> None:
    check_that_a_client_learns_the_map(tmp_path)


@in_loop
async def test_connecting_to_nothing_fails_within_its_timeout_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    before, threads = descriptors(), threading.active_count()
    loop = asyncio.get_running_loop()
    began = loop.time()
    client = connect(f"ipc://{tmp_path}/nobody", timeout=0.2)
    with pytest.raises(ShardUnavailable, match=r"no router answered at ipc://.*within 0\.2 s"):
        await client.__aenter__()
    assert 0.2 <= loop.time() - began < 2.0
    assert (descriptors(), threading.active_count()) == (before, threads)
    await client.close()


@in_loop
async def test_connecting_waits_for_a_router_that_comes_late(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster:
        await cluster.router.close()
        connecting = asyncio.ensure_future(connected_to(cluster))
        cluster.open_router(cluster.slot_map)
        client = await soon(connecting)
        assert client.slot_map is not None
        await client.close()


@in_loop
async def test_connecting_waits_for_the_first_map_of_a_router(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster:
        first = cluster.slot_map
        cluster.router.slot_map = None
        connecting = asyncio.ensure_future(connected_to(cluster))
        while not cluster.router.clients:
            await asyncio.wait([connecting], timeout=0.01)
        assert not connecting.done()
        await cluster.router.publish(first)
        client = await soon(connecting)
        assert client.slot_map == first
        await client.close()


@in_loop
async def test_a_cancelled_connect_leaves_nothing_behind(tmp_path: Path) -> None:
    before, threads = descriptors(), threading.active_count()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), connect(f"ipc://{tmp_path}/nobody"):
            pytest.fail("there is nobody")
    assert (descriptors(), threading.active_count()) == (before, threads)


@pytest.mark.parametrize("url", ["nonsense", "", "tcp://localhost", "ipc:///" + "x" * 200])
def test_an_address_that_is_none_is_a_clear_error(url: str) -> None:
    @in_loop
    async def check() -> None:
        before = descriptors()
        client = connect(url)
        with pytest.raises(InvalidArgument, match="is no address of a router"):
            await client.__aenter__()
        await client.close()
        assert descriptors() == before

    check()


def test_without_an_address_the_environment_names_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_URL", "ipc:///somewhere")
    assert connect().url == "ipc:///somewhere"


@in_loop
async def test_a_client_that_was_not_entered_says_so(tmp_path: Path) -> None:
    client = connect(f"ipc://{tmp_path}/nobody")
    stub = client.get("Counter", "a")
    with pytest.raises(RuntimeError, match="async with connect"):
        stub.increment()
    with pytest.raises(RuntimeError, match="async with connect"):
        await client.list("Counter")
    await client.close()
    with pytest.raises(AttributeError, match="no attribute 'increment'"):
        client.increment  # type: ignore[attr-defined]  # noqa: B018


@in_loop
async def test_a_client_is_entered_once(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        with pytest.raises(RuntimeError, match="entered once"):
            await client.__aenter__()


# --- calling


@in_both_loops
async def check_calls(folder: Path, boot: str | None) -> None:
    async with fake_cluster(folder, 2, boot=boot) as cluster, connect(cluster.url) as client:
        for endpoint in (cluster.router, *cluster.doors):
            endpoint.serve = echo
        counter = client.get("Counter", "a")
        assert await counter.increment(1, "x", by=(2,)) == ["increment", [1, "x"], {"by": (2,)}]
        calls = [client.get("Counter", f"c{number}").m(number) for number in range(100)]
        assert [await call for call in calls] == [["m", [number], {}] for number in range(100)]
        seen = {protocol.BATCH in endpoint.seen for endpoint in cluster.doors}
        assert seen == {boot is None}
        assert (protocol.BATCH in cluster.router.seen) == (boot is not None)


@pytest.mark.parametrize("boot", [DIRECT, ROUTED, "another machine"])
def test_calls_go_to_doors_of_this_machine_and_through_the_router_otherwise(
    tmp_path: Path, boot: str | None
) -> None:
    check_calls(tmp_path, boot)


@in_loop
async def test_on_request_calls_go_through_the_router_on_the_same_machine_too(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url, direct=False) as client:
        cluster.router.serve = echo
        assert await client.get("Counter", "a").m() == ["m", [], {}]
        assert cluster.doors[0].seen == []


@in_loop
async def test_calls_go_through_the_router_when_the_doors_files_cannot_be_reached(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster:
        # As in a container that shares the kernel, or for another user than the cluster's.
        elsewhere = cluster.slot_map.with_seat(0, Seat(1, "ipc:///nowhere/w0.e1"))
        cluster.router.slot_map = elsewhere
        cluster.router.serve = echo
        async with connect(cluster.url) as client:
            assert await client.get("Counter", "a").m() == ["m", [], {}]


@in_loop
async def test_the_server_s_clock_is_only_taken_for_ours_on_the_same_machine(tmp_path: Path) -> None:
    for boot, known in ((DIRECT, True), ("another machine", False)):
        folder = tmp_path / f"{known}"
        folder.mkdir()
        async with fake_cluster(folder, boot=boot) as cluster, connect(cluster.url) as client:
            call = asyncio.ensure_future(client.get("Counter", "a").m())
            endpoint = cluster.doors[0] if boot is None else cluster.router
            message = await endpoint.take()
            assert bool(message.header.stamp) is known
            call.cancel()


@in_loop
async def test_results_are_converted_by_the_class_that_the_stub_was_made_from(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        cluster.doors[0].answer(lambda item: (1, "a"))
        assert await client.get(Counter, "a").pair() == (1, "a")
        cluster.doors[0].answer(lambda item: "no pair")
        with pytest.raises(TypeError, match=r"Counter\.pair\(\) took effect"):
            await client.get(Counter, "a").pair()


@in_loop
async def test_a_hundred_calls_on_one_stub_leave_in_call_order(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        counter = client.get("Counter", "a")
        calls = [counter.increment(number) for number in range(100)]
        message = await cluster.doors[0].take()
        assert [item.args for item in message.items] == [[number] for number in range(100)]
        await cluster.doors[0].reply(message, lambda item: item.args[0])
        assert [await call for call in calls] == list(range(100))


@in_loop
async def test_a_name_that_cannot_travel_is_refused_when_it_is_called(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        method = getattr(client.get("Counter", "a"), "\ud800")
        with pytest.raises(InvalidArgument, match="cannot be sent"):
            await method()


@in_loop
async def test_errors_of_the_server_are_raised_as_themselves(tmp_path: Path) -> None:
    def refuse(item: Item) -> Any:
        raise {"full": Overloaded("full", limit="mailbox_calls_max"), "other": UnknownMethod("?")}[
            item.method
        ]

    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        cluster.doors[0].answer(refuse)
        counter = client.get("Counter", "a")
        with pytest.raises(Overloaded) as caught:
            await counter.full()
        assert caught.value.limit == "mailbox_calls_max"
        with pytest.raises(UnknownMethod):
            await counter.other()


@in_loop
async def test_a_call_that_cannot_be_sent_fails_alone_when_it_is_awaited(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        cluster.doors[0].answer(echo)
        counter = client.get("Counter", "a")
        bad = [counter.m(object()), counter.m("\ud800"), counter.m(by={"a": object()})]
        large, good = counter.m(bytes(Limits().message_bytes_max)), counter.m(5)
        for call in bad:
            with pytest.raises(InvalidArgument, match="argument"):
                await call
        with pytest.raises(MessageTooLarge):
            await large
        assert await good == ["m", [5], {}]


@in_loop
async def test_names_and_ids_lead_to_the_same_object(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        cluster.doors[0].answer(lambda item: [item.object_id, item.name])
        named = client.id_from_name(Counter, "a")
        assert named == id_from_name("Counter", "a") == client.id_from_string("Counter", str(named))
        assert await client.get(Counter, "a").m() == [named.key, "a"]
        assert await client.get("Counter", named).m() == [named.key, "a"]
        assert await client.get("Counter", ObjectId(named.key)).m() == [named.key, None]
        unique = client.new_unique_id(Counter)
        assert await client.get(Counter, unique).m() == [unique.key, None]
        with pytest.raises(InvalidArgument, match="not made for namespace 'Other'"):
            client.get("Other", named)


@in_loop
async def test_a_listing_asks_all_workers_and_joins_their_pages(tmp_path: Path) -> None:
    def pages(worker: int) -> Any:
        def serve(item: Item) -> Any:
            assert item.method == "list"
            _, prefix, limit, after = item.args
            names = [f"{prefix}{number}" for number in range(worker, 6, 2)]
            facts = [100, False, None]
            rows = [
                [b"\1" + name.encode(), id_from_name("Counter", name).key, name, *facts] for name in names
            ]
            left = [row for row in rows if row[0] > after]
            return [len(left) > limit, left[:limit], True]

        return serve

    async with fake_cluster(tmp_path, 2) as cluster, connect(cluster.url) as client:
        for door in cluster.doors:
            door.answer(pages(door.worker))
        first = await client.list(Counter, prefix="p", limit=4)
        assert first.names == ["p0", "p1", "p2", "p3"]
        second = await client.list("Counter", prefix="p", limit=4, cursor=first.cursor)
        assert (second.names, second.cursor) == (["p4", "p5"], None)
        for limit in (0, -1, Limits().list_entries_max + 1, "3", 3.0, None, True):
            with pytest.raises(InvalidArgument, match="limit is an int of 1 to"):
                await client.list(Counter, limit=limit)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="cursor"):
            await client.list(Counter, cursor="no cursor")


@in_loop
async def test_a_listing_with_one_worker_that_fails_fails_once_and_quietly(tmp_path: Path) -> None:
    def fail(item: Item) -> Any:
        raise Overloaded("too much")

    async with fake_cluster(tmp_path, 3) as cluster, connect(cluster.url) as client:
        others = cluster.doors[1:]
        for door in others:
            door.answer(fail)
        listing = asyncio.ensure_future(client.list(Counter))
        message = await cluster.doors[0].take()
        # Replies of one worker come in order: when it answers this call, it has answered the listing.
        for door in others:
            with pytest.raises(Overloaded):
                await client.get("Counter", name_at(client.slot_map, door.worker)).m()
        await cluster.doors[0].reply(message, fail)
        with pytest.raises(Overloaded):
            await listing
        del listing
        gc.collect()


# --- closing


@in_loop
async def test_closing_ends_what_waits_and_leaves_no_socket_thread_or_noise(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster:
        before, threads = descriptors(), threading.active_count()
        client = await connected_to(cluster)
        counter = client.get("Counter", "a")
        awaited, _ignored = counter.increment(1), counter.increment(2)
        await cluster.doors[0].take()
        _unsent = counter.increment(3)
        await client.close()
        with pytest.raises(OutcomeUnknown, match="closed before the answer came"):
            await awaited
        await client.close()
        assert threading.active_count() == threads
        assert descriptors() <= before + 2, "the cluster's own ends of connections may be open for a moment"


@in_loop
async def test_a_call_on_a_closed_client_says_that_it_is_closed(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster:
        async with connect(cluster.url) as client:
            counter = client.get("Counter", "a")
        with pytest.raises(ShardUnavailable, match="this client is closed"):
            await counter.increment()
        with pytest.raises(ShardUnavailable, match="this client is closed"):
            await client.list("Counter")
        with pytest.raises(RuntimeError, match="entered once"):
            await client.__aenter__()


@in_loop
async def test_what_comes_from_the_router_and_is_no_message_is_reported_and_ignored(tmp_path: Path) -> None:
    reported: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(context["message"]))
    async with fake_cluster(tmp_path, boot=ROUTED) as cluster, connect(cluster.url) as client:
        call = asyncio.ensure_future(client.get("Counter", "a").m())
        message: Message = await cluster.router.take()
        junk = [
            (b"\x02" * 16, b""),
            (protocol.header(protocol.MAP), b"\xc1"),
            (protocol.header(protocol.MAP), codec.encode({"version": "x"})),
            (protocol.header(protocol.REPLIES, 0, 1), b"\xc1"),
            (protocol.header(protocol.STALE), b"\x90"),
            (protocol.header(protocol.REFUSED), b"\x90"),
        ]
        for header, body in junk:
            await cluster.router.send(message.identity, header, body)
        header = protocol.header(protocol.REPLIES, 0, 1)
        await cluster.router.send(message.identity, header, codec.encode([[1, 0, "good"]]))
        assert await soon(call) == "good"
    assert len(reported) == len(junk)
    assert all("the router sent what is no message" in text for text in reported)


@in_loop
async def test_a_gateway_is_told_of_each_door_and_exchanges_further_kinds_of_message(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster:
        client = connect(cluster.url)
        links: asyncio.Queue[Any] = asyncio.Queue()
        heard: asyncio.Queue[Any] = asyncio.Queue()
        client.watch_links(lambda *link: links.put_nowait(link))
        client.handle(protocol.FRAMES, lambda *message: heard.put_nowait(message))
        async with client:
            assert await soon(links.get()) == (0, 1)
            assert client.send_to(0, 1, protocol.SOCKETS, b"\x91\x01")
            message = await cluster.doors[0].take(protocol.SOCKETS)
            assert (message.header.worker, message.header.number, message.body) == (0, 1, b"\x91\x01")
            for kind in (protocol.PULL, protocol.FRAMES):  # nobody handles the first
                await cluster.doors[0].send(message.identity, protocol.header(kind, 0, 1), b"\x90")
            assert await soon(heard.get()) == (0, 1, b"\x90")

            await cluster.restart(0)
            await cluster.router.publish(cluster.slot_map)
            assert await soon(links.get()) == (0, 2)
            assert not client.send_to(0, 1, protocol.SOCKETS, b"")
        assert not client.send_to(0, 2, protocol.SOCKETS, b"")
