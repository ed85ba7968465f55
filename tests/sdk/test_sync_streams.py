"""Streams for threads: ``for item in stub.method()``, over real sockets."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import codec, protocol
from perdure.errors import InvalidArgument, OutcomeUnknown, RemoteError, ShardUnavailable
from perdure.limits import Limits
from perdure.remote_errors import dump_exception
from perdure.streams import STOP
from perdure.sync_client import SyncClient, connect_sync
from perdure.sync_streams import SyncStream

from .fake_cluster import PATIENCE_S, FakeCluster, Message, fake_cluster

LIMITS = Limits()
ITEM, END = protocol.STATUS_ITEM, protocol.STATUS_END


class StreamingCluster:
    """One worker in a thread of its own.  `numbers(n, end)` streams n numbers and ends if it is told to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._over: asyncio.Event
        self.cluster: FakeCluster
        self.stopped: list[int] = []
        self.news: list[list[int]] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with fake_cluster(self._folder) as self.cluster:
            self.door = self.cluster.doors[0]
            self.door.handled = self._handled  # type: ignore[method-assign]
            self._ready.set()
            await self._over.wait()

    async def _handled(self, message: Message) -> bool:
        if message.header.kind == protocol.STREAM:
            self.news += codec.decode(message.body)[1:]
            self.stopped += [sequence for sequence, taken in codec.decode(message.body)[1:] if taken == STOP]
        elif message.header.kind == protocol.BATCH:
            for item in message.items:
                await self.door.send_replies(message.identity, _replies(item.sequence, *item.args))
        return True

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def sees(self, condition: Any) -> bool:
        """Whether the condition holds soon, looked at in the cluster's loop."""

        async def look() -> None:
            while not condition():
                await asyncio.sleep(0.001)  # sleep: pause between two looks at another thread's work

        asyncio.run_coroutine_threadsafe(look(), self._loop).result(PATIENCE_S)
        return True


def _replies(sequence: int, count: int, end: Any = True) -> list[list[Any]]:
    replies: list[list[Any]] = [[sequence, ITEM, number] for number in range(count)]
    if end is True:
        replies.append([sequence, END, count])
    elif end == "raise":
        raised = dump_exception(LookupError("no more"), "Shop/a", with_traceback=False)
        replies.append([sequence, protocol.STATUS_RAISED, raised])
    elif end == "value":
        replies.append([sequence, protocol.STATUS_RESULT, 5])
    return replies


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[StreamingCluster]:
    running = StreamingCluster(tmp_path)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(cluster: StreamingCluster) -> Iterator[SyncClient]:
    with connect_sync(cluster.cluster.url) as connected:
        yield connected


def test_a_loop_over_a_call_gets_the_items_and_ends(client: SyncClient) -> None:
    shop = client.get("Shop", "a")
    assert list(shop.numbers(1_000)) == list(range(1_000))
    assert list(shop.numbers(0)) == []
    stream = shop.numbers(2)
    assert [*stream, *stream] == [0, 1]


def test_an_ordinary_method_gives_its_value(client: SyncClient) -> None:
    assert client.get("Shop", "a").numbers(0, "value") == 5


def test_errors_are_raised_in_the_loop_after_the_items_and_once(client: SyncClient) -> None:
    stream = client.get("Shop", "a").numbers(2, "raise")
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(RemoteError, match="no more"):
        next(stream)
    assert list(stream) == []


@pytest.mark.parametrize("way", ["break", "close", "with", "drop", "raise"])
def test_every_way_out_stops_the_producer(cluster: StreamingCluster, client: SyncClient, way: str) -> None:
    def read(stream: SyncStream[int]) -> None:
        for number in stream:
            if way == "raise":
                raise ZeroDivisionError
            if way in ("break", "drop"):
                break
            if number == 1:
                stream.close()

    shop = client.get("Shop", "a")
    if way == "with":
        with shop.numbers(3, False) as stream:
            assert next(stream) == 0
        assert list(stream) == []
    elif way == "raise":
        with pytest.raises(ZeroDivisionError):
            read(shop.numbers(3, False))
        gc.collect()
    else:
        read(shop.numbers(3, False))
    assert cluster.sees(lambda: cluster.stopped == [1])


def test_a_call_that_nobody_iterates_over_is_stopped(cluster: StreamingCluster, client: SyncClient) -> None:
    client.get("Shop", "a").numbers(3, False)
    assert cluster.sees(lambda: cluster.stopped == [1])


def test_the_producer_is_told_what_was_taken(cluster: StreamingCluster, client: SyncClient) -> None:
    count = LIMITS.stream_window_items
    stream = client.get("Shop", "a").numbers(count, False)
    for _ in range(count):
        next(stream)
    assert cluster.sees(lambda: cluster.news and cluster.news[-1] == [1, count])


def test_several_threads_read_streams_of_their_own_at_once(client: SyncClient) -> None:
    results: list[list[int]] = []

    def read() -> None:
        results.append(list(client.get("Shop", "a").numbers(500)))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert results == [list(range(500))] * 8


def test_a_silent_producer_is_given_up_after_the_timeout(
    cluster: StreamingCluster, client: SyncClient
) -> None:
    stream = client.get("Shop", "a", timeout=0.2).numbers(1, False)
    assert next(stream) == 0
    with pytest.raises(OutcomeUnknown, match="no item came for"):
        next(stream)
    assert cluster.sees(lambda: cluster.stopped == [1])


def test_a_client_that_closes_ends_its_streams(cluster: StreamingCluster) -> None:
    with connect_sync(cluster.cluster.url) as client:
        streams = [client.get("Shop", "a").numbers(1, False) for _ in range(3)]
        assert [next(stream) for stream in streams] == [0] * 3
        waiting = threading.Thread(target=_expect_unknown, args=(streams[0],))
        waiting.start()
        assert cluster.sees(lambda: [1, 1] in cluster.news)
    waiting.join(PATIENCE_S)
    assert not waiting.is_alive()
    assert cluster.sees(lambda: cluster.stopped == [1, 2, 3])
    with pytest.raises(ShardUnavailable):
        next(streams[1])
    streams[2].close()


def _expect_unknown(stream: SyncStream[int]) -> None:
    with pytest.raises(OutcomeUnknown, match="closed"):
        next(stream)


def test_an_argument_that_cannot_be_sent_is_an_error_of_the_call(client: SyncClient) -> None:
    with pytest.raises(InvalidArgument, match="cannot be sent"):
        client.get("Shop", "a").numbers(object())
