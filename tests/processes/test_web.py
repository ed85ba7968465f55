"""HTTP to objects of a real cluster: large bodies both ways, other workers, a worker that is killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import OutcomeUnknown, SyncClient, WebReply, connect
from perdure.limits import Limits

from .cluster import DEADLINE_S, Cluster, running_cluster
from .test_calls import on_other_workers

pytestmark = pytest.mark.processes

APP = Path(__file__).with_name("web_app.py")
LIMITS = Limits()
BLOCK = os.urandom(70_000)
MANY = 150
"""Blocks: ten megabytes, forty parts."""
WHOLE = hashlib.sha256(BLOCK * MANY).hexdigest()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(APP, tmp_path_factory.mktemp("web") / "data") as running:
        yield running


def fresh() -> str:
    return f"site-{uuid.uuid4().hex}"


async def blocks() -> AsyncIterator[bytes]:
    for _ in range(MANY):
        yield BLOCK


def test_a_large_body_arrives_whole_from_bytes_from_a_source_and_from_threads(cluster: Cluster) -> None:
    async def story() -> None:
        async with connect(cluster.url) as client:
            for body in (BLOCK * MANY, blocks()):
                reply = await client.get("Site", fresh()).fetch("/digest", method="POST", body=body)
                assert reply.json() == {"size": len(BLOCK) * MANY, "sha256": WHOLE}

    asyncio.run(story())
    with cluster.connect() as client:
        reply = client.get("Site", fresh()).fetch("/digest", method="POST", body=iter([BLOCK] * MANY))
        assert reply.json()["sha256"] == WHOLE
    with cluster.connect(direct=False) as client:
        reply = client.get("Site", fresh()).fetch("/digest", method="POST", body=[BLOCK] * MANY)
        assert reply.json()["sha256"] == WHOLE


def test_a_large_body_is_read_as_fast_as_the_object_takes_it_and_comes_back_streamed(
    cluster: Cluster,
) -> None:
    async def story() -> None:
        given = taken = 0

        async def source() -> AsyncIterator[bytes]:
            nonlocal given
            for _ in range(MANY):
                given += len(BLOCK)
                # What the object may have: two windows and the parts on their way.
                assert given - taken <= LIMITS.stream_window_bytes + 4 * LIMITS.http_body_inline_bytes
                yield BLOCK

        async with connect(cluster.url) as client:
            reply = await client.get("Site", fresh()).fetch("/echo", method="POST", body=source())
            digest = hashlib.sha256()
            async for chunk in reply.chunks:
                taken += len(chunk)
                digest.update(chunk)
            assert digest.hexdigest() == WHOLE

    asyncio.run(story())


def test_objects_send_large_bodies_to_objects_of_both_workers(cluster: Cluster) -> None:
    with cluster.connect() as client:
        for name in on_other_workers(client, "Site", 2):
            relay = client.get("Site", fresh())
            reply = relay.fetch(f"/relay?to={name}&n=20")
            expected = hashlib.sha256(bytes(2_000_000)).hexdigest()
            assert reply.json() == {"size": 2_000_000, "sha256": expected}


def test_a_reader_that_leaves_ends_a_streamed_response(cluster: Cluster) -> None:
    with cluster.connect() as client:
        site = client.get("Site", fresh())
        with site.fetch("/endless") as reply:
            assert len(next(reply.chunks)) == 10_000
        hits, _, ended = site.state()
        assert (hits > 0, ended) == (True, "cleaned up")
        assert site.fetch("/nowhere").status == 404


def test_an_idempotency_key_gives_the_recorded_response_after_a_cold_restart(tmp_path: Path) -> None:
    with running_cluster(APP, tmp_path / "data") as cluster:
        with cluster.connect() as client:
            assert client.get("Site", "s", request_id="key").fetch("/hit").text == "1"
        cluster.kill_all()
        cluster.start()
        with cluster.connect() as client:
            assert client.get("Site", "s", request_id="key").fetch("/hit").text == "1"
            assert client.get("Site", "s").fetch("/hit").text == "2"


def test_a_worker_killed_while_it_reads_a_body_ends_in_the_response_or_a_typed_error(tmp_path: Path) -> None:
    with running_cluster(APP, tmp_path / "data") as cluster:

        async def story(body_is_bytes: bool) -> Any:
            async with connect(cluster.url) as client, asyncio.timeout(DEADLINE_S):
                name, reached, go = fresh(), asyncio.Event(), asyncio.Event()

                async def source() -> AsyncIterator[bytes]:
                    for number in range(MANY):
                        if number == MANY // 2:
                            reached.set()
                            await go.wait()
                        yield BLOCK

                body: Any = BLOCK * MANY if body_is_bytes else source()
                worker = client.slot_map.worker_of(client.id_from_name("Site", name).key)
                asked = asyncio.create_task(
                    client.get("Site", name).fetch("/digest", method="POST", body=body)
                )
                if not body_is_bytes:
                    await reached.wait()
                else:
                    await client.get("Site", fresh()).state()
                await asyncio.to_thread(cluster.kill, cluster.worker_pids[worker])
                go.set()
                try:
                    outcome: Any = await asked
                except OutcomeUnknown as error:
                    outcome = error
                return outcome, await client.get("Site", name).state()

        outcome, (hits, _, _) = asyncio.run(story(True))
        assert isinstance(outcome, WebReply), "bytes can be given again"
        assert (outcome.json()["sha256"], hits) == (WHOLE, 1)
        outcome, (hits, taken, _) = asyncio.run(story(False))
        assert isinstance(outcome, OutcomeUnknown), "half of the source was read, and went with the worker"
        assert hits == 0
        assert 0 < taken < len(BLOCK) * MANY


def test_a_worker_killed_while_it_streams_a_response_ends_the_stream_with_a_typed_error(
    tmp_path: Path,
) -> None:
    with running_cluster(APP, tmp_path / "data", workers=1) as cluster, cluster.connect() as client:
        _read_until_killed(cluster, client)


def _read_until_killed(cluster: Cluster, client: SyncClient) -> None:
    reply = client.get("Site", "s").fetch("/endless")
    chunks = reply.chunks
    seen = sum(len(next(chunks)) for _ in range(500))
    cluster.kill(cluster.worker_pids[0])

    def rest() -> None:
        nonlocal seen
        while True:
            seen += len(next(chunks))

    with pytest.raises(OutcomeUnknown, match="while this stream was open"):
        rest()
    hits, _, ended = client.get("Site", "s").state()
    assert seen <= hits * 10_000
    assert ended == ""
