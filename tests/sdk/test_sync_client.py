"""The client for threads, on real sockets: any thread may call, and every call ends."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from perdure import codec, protocol
from perdure.client import connect
from perdure.errors import (
    InvalidArgument,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
)
from perdure.ids import id_from_name
from perdure.limits import Limits
from perdure.object import DurableObject
from perdure.protocol import Item
from perdure.sync_client import SyncClient, connect_sync

from .fake_cluster import PATIENCE_S, FakeCluster, fake_cluster


class Counter(DurableObject):
    async def increment(self, by: int = 1) -> int:
        return by


class ClusterInThread:
    """A fake cluster with a loop of its own, for clients that block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self.cluster: FakeCluster
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        async with fake_cluster(self._folder, 2) as self.cluster:
            self._ready.set()
            await self._over.wait()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def do(self, work: Callable[[FakeCluster], Any]) -> Any:
        """Runs an async function in the cluster's loop."""
        return asyncio.run_coroutine_threadsafe(work(self.cluster), self._loop).result(PATIENCE_S)

    def answer(self, serve: Callable[[Item], Any]) -> None:
        for door in self.cluster.doors:
            door.answer(serve)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterInThread]:
    running = ClusterInThread(tmp_path)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(cluster: ClusterInThread) -> Iterator[SyncClient]:
    with connect_sync(cluster.cluster.url) as connected:
        yield connected


def echo(item: Item) -> Any:
    return [item.method, item.args]


# --- calling


def test_a_method_of_a_stub_returns_its_result(cluster: ClusterInThread, client: SyncClient) -> None:
    cluster.answer(echo)
    assert client.get("Counter", "a").increment(5) == ["increment", [5]]
    cluster.answer(lambda item: item.args[0])
    assert client.get(Counter, "a").increment(7) == 7


def test_many_threads_call_through_one_client(cluster: ClusterInThread, client: SyncClient) -> None:
    cluster.answer(lambda item: item.args[0])
    together = threading.Barrier(16)

    def work(thread: int) -> list[int]:
        counter = client.get("Counter", f"counter-{thread % 4}")
        together.wait(PATIENCE_S)
        return [counter.increment(thread * 1000 + number) for number in range(50)]

    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(work, range(16)))
    assert results == [[thread * 1000 + number for number in range(50)] for thread in range(16)]


def test_calls_of_threads_travel_together(cluster: ClusterInThread, client: SyncClient) -> None:
    """While one message is answered, what the threads call in the meantime gathers in the next one."""
    sizes: list[int] = []
    cluster.answer(lambda item: sizes.append(item.sequence))

    def work(_: int) -> None:
        for _ in range(50):
            client.get("Counter", "a").m()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    assert len(sizes) == 800
    assert len(cluster.cluster.doors[0].seen) + len(cluster.cluster.doors[1].seen) < 800


def test_errors_are_raised_where_the_call_was_made(cluster: ClusterInThread, client: SyncClient) -> None:
    def refuse(item: Item) -> Any:
        raise Overloaded("full", limit="mailbox_calls_max", retry_after=3.0)

    cluster.answer(refuse)
    with pytest.raises(Overloaded) as caught:
        client.get("Counter", "a").m()
    assert (caught.value.limit, caught.value.retry_after) == ("mailbox_calls_max", 3.0)


def test_what_cannot_be_sent_is_refused_at_once(cluster: ClusterInThread, client: SyncClient) -> None:
    cluster.answer(echo)
    for argument in (object(), "\ud800", {"a": object()}):
        with pytest.raises(InvalidArgument, match="argument"):
            client.get("Counter", "a").m(argument)
    with pytest.raises(InvalidArgument):
        client.get("Counter", "")
    assert client.get("Counter", "a").m() == ["m", []]


def test_a_method_that_raises_a_timeout_of_its_own_is_not_mistaken_for_a_silent_client(
    cluster: ClusterInThread, client: SyncClient
) -> None:
    class Impatient:
        result_exact = dict

        def load_result(self, value: Any) -> Any:
            raise TimeoutError("the user's own")

    cluster.answer(echo)
    target = client._client.target("Counter", "a", None)
    impatient: Any = Impatient()
    with pytest.raises(TimeoutError, match="the user's own"):
        client.start(target, "m", [], None, impatient)


def test_a_deadline_ends_a_call_that_nobody_answers(cluster: ClusterInThread, client: SyncClient) -> None:
    with pytest.raises(OutcomeUnknown, match="deadline"):
        client.get("Counter", "a", timeout=0.05).m()


def test_ids_and_listings_are_those_of_the_asyncio_client(
    cluster: ClusterInThread, client: SyncClient
) -> None:
    known = id_from_name("Counter", "a")
    assert client.id_from_name(Counter, "a") == client.id_from_string("Counter", str(known)) == known
    assert client.new_unique_id("Counter") != client.new_unique_id("Counter")
    cluster.answer(lambda item: [False, [[b"\1a", known.key, "a", 100, True, None]], True])
    page = client.list(Counter)
    assert page.names == ["a", "a"], "each of the two workers named one"
    assert (page.entries[0].size_bytes, page.entries[0].live, page.cursor) == (100, True, None)
    with pytest.raises(InvalidArgument, match="limit"):
        client.list(Counter, limit=0)
    cluster.answer(lambda item: {"live": 3})
    assert client.stats() == [{"live": 3}, {"live": 3}]
    assert client.slot_map == cluster.cluster.router.slot_map


# --- life


def test_connecting_to_nothing_fails_in_time_and_leaves_nothing_behind(tmp_path: Path) -> None:
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    client = connect_sync(f"ipc://{tmp_path}/nobody", timeout=0.1)
    with pytest.raises(ShardUnavailable, match="no router answered"):
        client.__enter__()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (before, threads)
    client.close()
    with pytest.raises(ShardUnavailable, match="this client is closed"):
        client.get("Counter", "a").m()


def test_a_client_that_was_never_entered_costs_nothing_and_says_what_is_missing(tmp_path: Path) -> None:
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    client = connect_sync(f"ipc://{tmp_path}/nobody")
    for use in (client.get("Counter", "a").m, lambda: client.list("Counter"), client.stats):
        with pytest.raises(RuntimeError, match="with connect_sync"):
            use()
    client.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (before, threads)


def test_a_closed_client_says_that_it_is_closed(cluster: ClusterInThread) -> None:
    threads = threading.active_count()
    with connect_sync(cluster.cluster.url) as client:
        counter = client.get("Counter", "a")
        cluster.answer(echo)
        counter.m()
    client.close()
    assert threading.active_count() == threads
    for use in (counter.m, lambda: client.list("Counter"), client.stats):
        with pytest.raises(ShardUnavailable, match="this client is closed"):
            use()
    with pytest.raises(RuntimeError, match="entered once"):
        client.__enter__()


def test_closing_ends_calls_that_other_threads_wait_for(cluster: ClusterInThread) -> None:
    client = connect_sync(cluster.cluster.url)
    client.__enter__()
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(client.get("Counter", "a").m)
        listing = pool.submit(client.list, "Counter")
        cluster.do(take_calls)
        client.close()
        with pytest.raises(OutcomeUnknown, match="closed before the answer came"):
            call.result(PATIENCE_S)
        with pytest.raises((OutcomeUnknown, ShardUnavailable), match="closed before the answer came"):
            listing.result(PATIENCE_S)


async def take_calls(cluster: FakeCluster) -> None:
    """Until the call and both workers' listings have arrived."""
    arrived = 0
    pending = {asyncio.ensure_future(door.received.get()) for door in cluster.doors}
    while arrived < 3:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
        assert done
        arrived += sum(len(codec.decode(task.result().body)) - 1 for task in done)
        assert {task.result().header.kind for task in done} == {protocol.BATCH}
        pending |= {asyncio.ensure_future(door.received.get()) for door in cluster.doors}
    for task in pending:
        task.cancel()


def test_every_call_ends_when_threads_call_while_the_client_closes(cluster: ClusterInThread) -> None:
    cluster.answer(echo)
    client = connect_sync(cluster.cluster.url)
    client.__enter__()
    first_calls = threading.Barrier(9)

    def call_until_closed(number: int) -> type[BaseException]:
        counter = client.get("Counter", f"counter-{number}")
        counter.m()
        first_calls.wait(PATIENCE_S)
        while True:
            try:
                counter.m()
            except (NotExecuted, OutcomeUnknown) as error:
                return type(error)

    with ThreadPoolExecutor(8) as pool:
        endings = [pool.submit(call_until_closed, number) for number in range(8)]
        first_calls.wait(PATIENCE_S)
        client.close()
        # Far below the 35 s after which a call gives up waiting for the client's thread.
        kinds = {ending.result(PATIENCE_S) for ending in endings}
    assert kinds <= {OutcomeUnknown, ShardUnavailable}


def test_closing_waits_until_a_call_that_began_before_is_in_good_hands(
    cluster: ClusterInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect_sync(cluster.cluster.url)
    client.__enter__()
    began, goes_on = threading.Event(), threading.Event()
    running_loop = client._running_loop

    def slow_running_loop() -> Any:
        loop = running_loop()
        began.set()
        assert goes_on.wait(PATIENCE_S)
        return loop

    monkeypatch.setattr(client, "_running_loop", slow_running_loop)
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(client.get("Counter", "a").m)
        assert began.wait(PATIENCE_S)
        closing = pool.submit(client.close)
        with pytest.raises(TimeoutError):
            closing.result(0.1)
        goes_on.set()
        with pytest.raises((OutcomeUnknown, ShardUnavailable), match="client was closed"):
            call.result(PATIENCE_S)
        closing.result(PATIENCE_S)


def test_an_error_in_the_block_closes_the_client(cluster: ClusterInThread) -> None:
    threads = threading.active_count()
    with pytest.raises(LookupError), connect_sync(cluster.cluster.url):
        raise LookupError("in the user's code")
    assert threading.active_count() == threads


def test_a_call_that_the_client_s_thread_does_not_answer_is_an_unknown_outcome(
    cluster: ClusterInThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.sync_client._MARGIN_S", -Limits().answer_grace_s)
    released = threading.Event()
    with connect_sync(cluster.cluster.url) as client:
        assert client._loop is not None
        client._loop.call_soon_threadsafe(released.wait, PATIENCE_S)
        with pytest.raises(OutcomeUnknown, match="thread gave no answer"):
            client.get("Counter", "a", timeout=0.05).m()
        released.set()


def test_the_asyncio_client_inside_is_not_shared() -> None:
    with pytest.raises(RuntimeError, match="async with connect"):
        connect("ipc:///nowhere").get("Counter", "a").m()
