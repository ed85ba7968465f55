"""WebSockets over the death of their worker: nothing is lost, nothing comes twice, the order is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, running_cluster
from .socket_gateway import Gateway

pytestmark = pytest.mark.processes

APP = Path(__file__).with_name("socket_app.py")
SOCKETS, MESSAGES = 4, 60


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(APP, tmp_path / "data", workers=1) as running:
        yield running


@pytest.fixture
def make_gateway(cluster: Cluster) -> Iterator[Callable[[], Gateway]]:
    gateways: list[Gateway] = []

    def make() -> Gateway:
        gateways.append(Gateway(cluster.url))
        return gateways[-1]

    yield make
    for gateway in gateways:
        gateway.close()


def test_a_worker_that_is_killed_in_a_stream_of_messages_loses_repeats_and_reorders_none(
    cluster: Cluster, make_gateway: Callable[[], Gateway]
) -> None:
    gateway = make_gateway()
    numbers = [gateway.upgrade("r") for _ in range(SOCKETS)]
    talks = [gateway.talk("r", number, MESSAGES) for number in numbers]

    def handled() -> int:
        return SOCKETS * MESSAGES - sum(map(len, talks))

    for share in (0.2, 0.5, 0.7):
        gateway.until(
            "some messages were handled", lambda share=share: handled() > share * SOCKETS * MESSAGES
        )
        before = set(gateway.epochs)
        cluster.kill(cluster.worker_pids[0])
        gateway.until("there is another worker", lambda before=before: gateway.epochs > before)
    gateway.until("all messages were handled", lambda: not any(talks))
    total = SOCKETS * MESSAGES
    gateway.until("all frames came", lambda: all(len(gateway.got[number]) >= total for number in numbers))
    with cluster.connect() as client:
        assert client.get("Room", "r").total() == total
    first, *others = (gateway.got[number] for number in numbers)
    assert [int(text.split()[0]) for text in first] == [*range(1, total + 1)]
    assert all(other == first for other in others)
    for number in numbers:  # each one's own, in the order in which it sent them
        mine = [text.split()[1] for text in first if text.split()[1].startswith(f"{number}:")]
        assert mine == [f"{number}:{index}" for index in range(MESSAGES)]
    assert len(gateway.epochs) == 4


def test_a_gateway_that_falls_silent_is_lost_once_also_when_the_worker_dies_meanwhile(
    cluster: Cluster, make_gateway: Callable[[], Gateway]
) -> None:
    gone, other = make_gateway(), make_gateway()
    for path in ("/a", "/b", "/c"):
        gone.upgrade("r", path)
    kept = other.upgrade("r", "/kept")
    with cluster.connect() as client:

        def ends() -> list[list[object]]:
            other.step()
            return sorted(client.get("Room", "r").ends())

        expected = [[path, 1006, "", False] for path in ("/a", "/b", "/c")]
        gone.silent = True
        cluster.wait_until("a socket has ended", ends)
        cluster.kill(cluster.worker_pids[0])
        cluster.wait_until("all have ended", lambda: ends() == expected)
        talk = other.talk("r", kept, 1)
        other.until("the other one's go on", lambda: not talk and kept in other.got)
        gone.silent = False
        gone.until("it is told", lambda: gone.told_lost)
        assert ends() == expected
