"""Much work at once in a real worker: it stays alive, nothing is unknown, and neighbours are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure import Limits, connect
from processes.cluster import Cluster, running_cluster
from processes.zoo import Counter, Poison

APP = Path(__file__).with_name("zoo.py")
LIMITS = Limits()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(APP, tmp_path / "data", workers=1) as cluster:
        yield cluster


@pytest.mark.alone
@pytest.mark.parametrize(("objects", "direct"), [(32, True), (1, False)])
def test_seconds_of_work_in_one_batch_cost_no_heartbeat_and_a_neighbour_is_answered_meanwhile(
    cluster: Cluster, objects: int, direct: bool
) -> None:
    pids = cluster.worker_pids
    calls = 32
    each_s = 1.2 * LIMITS.heartbeat_lost_s / calls

    async def load() -> None:
        async with connect(cluster.url, direct=direct) as busy, connect(cluster.url) as quiet:
            neighbour = quiet.get(Counter, "neighbour")
            await neighbour.increment()
            bad = [busy.get(Poison, f"o{number % objects}", timeout=60.0) for number in range(calls)]
            flood = [asyncio.ensure_future(one.spin(each_s)) for one in bad]
            await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)
            assert await neighbour.increment() == 2
            assert not all(call.done() for call in flood)
            await asyncio.gather(*flood)

    asyncio.run(load())
    assert cluster.worker_pids == pids


def test_more_calls_at_once_than_a_worker_reads_ahead_are_all_answered(cluster: Cluster) -> None:
    calls, objects = 2 * LIMITS.waiting_items_max, 500

    async def load() -> None:
        async with connect(cluster.url) as client:
            counters = [client.get(Counter, f"o{number}", timeout=60.0) for number in range(objects)]
            values = await asyncio.gather(
                *(counters[number % objects].increment() for number in range(calls))
            )
            assert values == [number // objects + 1 for number in range(calls)]

    asyncio.run(load())
