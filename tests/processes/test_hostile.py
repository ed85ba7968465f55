"""Junk at the doors of a real cluster: refused or counted, nobody else notices, nothing grows."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from perdure import SyncClient, protocol
from perdure.limits import Limits

from .cluster import Cluster, running_cluster

pytestmark = pytest.mark.processes

ZOO = Path(__file__).with_name("zoo.py")
GROWTH_BYTES_MAX = 60 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(ZOO, tmp_path_factory.mktemp("hostile") / "data", workers=1) as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> Iterator[SyncClient]:
    with cluster.connect() as connected:
        yield connected


@pytest.fixture(params=["router", "door"])
def peer(cluster: Cluster, client: SyncClient, request: pytest.FixtureRequest) -> Iterator[zmq.Socket[bytes]]:
    client.get("Counter", "witness").get()
    slot_map = client.slot_map
    assert slot_map is not None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 10_000)
    socket.connect(cluster.url if request.param == "router" else slot_map.seats[0].endpoint)
    yield socket
    socket.close()
    context.term()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def still_serves(client: SyncClient) -> None:
    before = client.get("Counter", "witness").get()
    assert client.get("Counter", "witness").increment() == before + 1


def ask(peer: zmq.Socket[bytes], client: SyncClient, item: list[Any], sequence: int = 1) -> Any:
    """Sends one call as a raw client does; its reply [status, payload]."""
    key = client.id_from_name("Counter", "target").key
    peer.send_multipart(
        [protocol.call_header(key, sequence), msgpack.packb([b"c" * 16, item], strict_types=False)]
    )
    header, body = peer.recv_multipart()
    assert protocol.read_header(header).kind == protocol.REPLY
    return msgpack.unpackb(body)[1:]


def item(client: SyncClient, **changes: Any) -> list[Any]:
    fields = {
        "sequence": 1,
        "namespace": "Counter",
        "key": client.id_from_name("Counter", "target").key,
        "name": "target",
        "method": "get",
        "args": [],
        "kwargs": None,
        "timeout_ms": 1000,
        "context": None,
    }
    return list((fields | changes).values())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"namespace": "Nowhere", "name": None}, "UnknownNamespace"),
        ({"namespace": 7}, "UnknownNamespace"),
        ({"method": "__init__"}, "UnknownMethod"),
        ({"method": "_changes"}, "UnknownMethod"),
        ({"key": b"x" * 32, "name": None}, "InvalidArgument"),
        ({"key": b"short", "name": None}, "InvalidArgument"),
        ({"name": "another"}, "InvalidArgument"),
        ({"args": "text"}, "InvalidArgument"),
        ({"args": [1, 2, 3]}, "InvalidArgument"),
        ({"kwargs": {"nothing": 1}}, "InvalidArgument"),
        ({"kwargs": [1]}, "InvalidArgument"),
        ({"timeout_ms": "soon"}, "InvalidArgument"),
        ({"context": 5}, "InvalidArgument"),
        ({"context": [5, None]}, "InvalidArgument"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_call_gets_a_typed_error(
    cluster: Cluster, client: SyncClient, peer: zmq.Socket[bytes], changes: dict[str, Any], error: str
) -> None:
    client.get("Counter", "target").get()
    status, payload = ask(peer, client, item(client, **changes))
    assert status == protocol.STATUS_ERROR
    assert payload[0] == error
    still_serves(client)


def test_junk_of_every_shape_is_survived_counted_and_forgotten(
    cluster: Cluster, client: SyncClient, peer: zmq.Socket[bytes]
) -> None:
    still_serves(client)
    pids = [cluster.router_pid, *cluster.worker_pids]
    before = [resident_bytes(pid) for pid in pids]
    chance = random.Random(7)
    key = client.id_from_name("Counter", "target").key
    batch = protocol.header(protocol.BATCH, 0, client.slot_map.version)  # type: ignore[union-attr]
    bomb = b"\xdd" + (5_000_000).to_bytes(4, "big") + b"\x80" * 5_000_000
    messages: list[list[bytes]] = [
        [b""],
        [b"", b""],
        [b"x"] * 10,
        [batch],
        [batch, b""],
        [batch, b"\xc1"],
        [batch, bomb],
        [batch, msgpack.packb([b"c" * 16, *[[]] * 5000])],
        [batch, msgpack.packb([b"c" * 16, None, 1, "x", [], {}, [1, 2]])],
        [protocol.header(protocol.BATCH, 999, 0), b"\x90"],
        [protocol.header(99), b"\x90"],
        [protocol.header(protocol.BUNDLE), bomb],
        [protocol.header(protocol.BUNDLE), msgpack.packb([b"a", b"b"])],
        [protocol.call_header(key, 1), bomb],
        [protocol.call_header(key, 1), b"\x80" * 5_000_000],
        [protocol.call_header(key, 1), b"\x91" * 100_000],
        [protocol.call_header(key, 1)[:40], b""],
        [bytes((2,)) + batch[1:], b""],
    ]
    for _ in range(300):
        messages.append([chance.randbytes(chance.randrange(80)) for _ in range(chance.randrange(1, 4))])
        messages.append([batch, chance.randbytes(chance.randrange(200))])
    for message in messages:
        peer.send_multipart(message)
    # Behind all of it the same peer is served: its connection keeps the order.
    peer.send_multipart(
        [protocol.call_header(key, 77), msgpack.packb([b"c" * 16, item(client, sequence=77)])]
    )
    while True:
        header, body = peer.recv_multipart()
        if len(header) == 16 and header[1] == protocol.REPLY and msgpack.unpackb(body)[0] == 77:
            break
    still_serves(client)
    assert [cluster.router_pid, *cluster.worker_pids] == pids, "nobody died"
    grown = [resident_bytes(pid) - size for pid, size in zip(pids, before, strict=True)]
    assert max(grown) < GROWTH_BYTES_MAX


def test_a_message_over_zeromqs_own_limit_cuts_off_only_its_sender(
    cluster: Cluster, client: SyncClient, peer: zmq.Socket[bytes]
) -> None:
    pids = [cluster.router_pid, *cluster.worker_pids]
    batch = protocol.header(protocol.BATCH, 0, 0)
    peer.send_multipart([batch, bytes(Limits.message_bytes_max + Limits.wire_overhead_bytes + 1)])
    for _ in range(5):
        still_serves(client)
    assert [cluster.router_pid, *cluster.worker_pids] == pids
