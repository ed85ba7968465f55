"""Streams of a real cluster: order, flow control, readers and workers that go away."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from perdure import OutcomeUnknown, RemoteError, SyncClient, connect, protocol
from perdure.ids import id_from_name
from perdure.limits import Limits

from .cluster import DEADLINE_S, Cluster, environment, running_cluster
from .test_calls import on_other_workers

pytestmark = pytest.mark.processes

APP = Path(__file__).with_name("stream_app.py")
LIMITS = Limits()
MANY = 10_000
ENDLESS = 10**9


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(APP, tmp_path_factory.mktemp("streams") / "data") as running:
        yield running


@pytest.fixture(params=[True, False], ids=["direct", "through-the-router"])
def direct(request: pytest.FixtureRequest) -> Any:
    return request.param


def fresh() -> str:
    return f"feed-{uuid.uuid4().hex}"


def made(client: SyncClient, name: str) -> tuple[int, str]:
    state: tuple[int, str] = client.get("Feed", name).state()
    return state


def test_ten_thousand_items_arrive_in_order_for_async_and_sync_readers(
    cluster: Cluster, direct: bool
) -> None:
    async def story() -> None:
        async with connect(cluster.url, direct=direct) as client:
            feed = client.get("Feed", fresh())
            assert [number async for number in feed.count(MANY)] == list(range(MANY))
            assert [number async for number in feed.record(MANY)] == list(range(MANY))
            assert await feed.state() == (MANY, "end")
            streams = [_all(client.get("Feed", fresh()).count(1_000)) for _ in range(20)]
            assert await asyncio.gather(*streams) == [list(range(1_000))] * 20

    asyncio.run(story())
    with cluster.connect(direct=direct) as client:
        assert list(client.get("Feed", fresh()).record(MANY)) == list(range(MANY))


async def _all(call: Any) -> list[Any]:
    return [item async for item in call]


def test_a_slow_reader_holds_its_producer_a_window_ahead(cluster: Cluster, direct: bool) -> None:
    name, window = fresh(), LIMITS.stream_window_items

    async def story() -> tuple[int, str]:
        async with connect(cluster.url, direct=direct) as client, connect(cluster.url) as other:
            taken = 0
            async for _ in client.get("Feed", name).record(ENDLESS):
                taken += 1
                if taken % 200 == 0:
                    # The producer had all the time of these calls on the same worker to run away.
                    for _ in range(20):
                        await _call_beside(other, name)
                if taken == 2_000:
                    break
            return await client.get("Feed", name).state()

    count, ended = asyncio.run(story())
    assert 2_000 <= count <= 2_000 + window
    assert ended == "GeneratorExit"


async def _call_beside(client: Any, name: str) -> None:
    """A call to another object of the same worker."""
    worker = client.slot_map.worker_of(id_from_name("Feed", name).key)
    beside = next(
        candidate
        for number in range(1_000)
        if client.slot_map.worker_of(id_from_name("Feed", candidate := f"beside-{number}").key) == worker
    )
    await client.get("Feed", beside).state()


def test_a_reader_that_leaves_ends_a_producer_that_waits_for_something_else(
    cluster: Cluster, direct: bool
) -> None:
    name = fresh()
    with cluster.connect(direct=direct) as client:
        for number in client.get("Feed", name).quiet():
            assert number == 0
            break
        assert made(client, name) == (0, "cleaned up")


def test_an_error_comes_after_the_items_and_what_was_yielded_before_stays(
    cluster: Cluster, direct: bool
) -> None:
    name = fresh()
    with cluster.connect(direct=direct) as client:
        stream = client.get("Feed", name).fail()
        assert [next(stream), next(stream)] == [0, 1]
        with pytest.raises(RemoteError, match="no more"):
            next(stream)
        assert made(client, name) == (1, "")


def test_objects_read_streams_of_objects_on_both_workers(cluster: Cluster) -> None:
    with cluster.connect() as client:
        reader = client.get("Reader", "reader")
        for name in on_other_workers(client, "Feed", 2):
            assert reader.total(name, MANY) == (MANY, sum(range(MANY)))
            assert reader.first(name) == 0
            assert made(client, name)[1] == "GeneratorExit"


READER = """
import os, sys
from perdure import connect_sync
client = connect_sync(sys.argv[1], direct=sys.argv[2] == "True").__enter__()
stream = client.get("Feed", sys.argv[3]).record(10**9)
next(stream)
print("reading", flush=True)
sys.stdin.read()
"""


def test_the_producer_of_a_reader_that_is_killed_ends_soon(cluster: Cluster, direct: bool) -> None:
    name = fresh()
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, cluster.url, str(direct), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )
    assert reader.stdout is not None
    assert reader.stdin is not None
    assert reader.stdout.readline() == b"reading\n"
    reader.kill()
    reader.wait(DEADLINE_S)
    reader.stdin.close()
    reader.stdout.close()
    with cluster.connect() as client:
        # Well before the producer would give up a reader that is silent.
        stub = client.get("Feed", name, timeout=LIMITS.stream_idle_max_s / 2)
        count, ended = stub.state()
        # A sync client takes items in lots of a quarter of the window.
        assert LIMITS.stream_window_items <= count <= LIMITS.stream_window_items * 5 / 4
        assert ended == "GeneratorExit"


def test_a_client_that_closes_ends_its_producers(cluster: Cluster, direct: bool) -> None:
    names = [fresh() for _ in range(3)]
    with cluster.connect(direct=direct) as client:
        streams = [client.get("Feed", name).record(ENDLESS) for name in names]
        assert [next(stream) for stream in streams] == [0, 0, 0]
    with cluster.connect() as client:
        for name in names:
            stub = client.get("Feed", name, timeout=LIMITS.stream_idle_max_s / 2)
            assert stub.state()[1] == "GeneratorExit"


def test_a_raw_client_reads_a_stream_with_nothing_but_the_protocol(cluster: Cluster) -> None:
    name, total = fresh(), 1_000
    key = id_from_name("Feed", name).key
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(cluster.url)
    try:
        client = os.urandom(16)
        item = [1, "Feed", key, name, "count", [total], None, 30_000, None]
        socket.send_multipart([protocol.call_header(key, 1), msgpack.packb([client, item])])
        items: list[int] = []
        while True:
            assert socket.poll(DEADLINE_S * 1000), f"nothing comes after {len(items)} items"
            header, body = socket.recv_multipart()
            _, kind, worker, epoch, sequence = struct.unpack(">BBHIQ", header)
            if kind == 14:  # STREAM: the worker asks whether we are there
                continue
            assert sequence == 1
            number, status, payload = msgpack.unpackb(body)
            assert number == 1
            if kind == 8:
                break
            assert (kind, status) == (15, 3)
            items.append(payload)
            if len(items) % 100 == 0:
                news = struct.pack(">BBHIQ", 1, 14, worker, epoch, 0)
                socket.send_multipart([news, msgpack.packb([client, [1, len(items)]])])
        assert (status, payload) == (4, total)
        assert items == list(range(total))
    finally:
        context.destroy(linger=0)


def test_a_worker_killed_in_the_middle_ends_its_streams_and_keeps_what_was_yielded(
    tmp_path: Path, direct: bool
) -> None:
    with running_cluster(APP, tmp_path / "data") as cluster, cluster.connect(direct=direct) as client:
        (name,) = on_other_workers(client, "Feed", 1)
        stream = client.get("Feed", name).record(ENDLESS)
        seen = [next(stream) for _ in range(1_000)]
        cluster.kill(cluster.worker_pids[0])

        def rest() -> None:
            while True:
                seen.append(next(stream))

        with pytest.raises(OutcomeUnknown, match="while this stream was open"):
            rest()
        assert seen == list(range(len(seen)))
        count, ended = made(client, name)
        assert len(seen) <= count <= len(seen) + LIMITS.stream_window_items
        assert ended == ""
        assert next(client.get("Feed", name).record(ENDLESS)) == count, "the next stream goes on from there"


def test_a_cluster_that_stops_ends_open_streams_in_order(tmp_path: Path, direct: bool) -> None:
    with running_cluster(APP, tmp_path / "data") as cluster:
        name = fresh()
        with cluster.connect(direct=direct) as client:
            stream = client.get("Feed", name).record(ENDLESS)
            assert next(stream) == 0
            cluster.supervisor.send_signal(signal.SIGTERM)

            def rest() -> None:
                while True:
                    next(stream)

            with pytest.raises(OutcomeUnknown):
                rest()
            assert cluster.supervisor.wait(DEADLINE_S) == 0
        assert "cut off" not in cluster.log_text()
        cluster.start()
        with cluster.connect() as client:
            assert made(client, name)[1] == "GeneratorExit"
