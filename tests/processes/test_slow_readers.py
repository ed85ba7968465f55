"""A client that does not read costs a real cluster a bounded number of bytes, and nobody else notices."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from perdure import Overloaded, SyncClient, connect, protocol
from perdure.limits import Limits

from .cluster import DEADLINE_S, POLL_S, Cluster, running_cluster

pytestmark = pytest.mark.processes

ZOO = Path(__file__).with_name("zoo.py")
MIB = 1 << 20
BLOB_BYTES = 8 * MIB
BLOBS = 150
QUIET_LOOKS = 5
COPIES = 5
"""Of one result, on its way through a process: a worker has the value, its reply, the message and the bundle,
the router the frame in ZeroMQ, the one in Python and what is unpacked of it, and both one in a pipe."""
GROWTH_BYTES_MAX = Limits().reply_queue_bytes_max + COPIES * BLOB_BYTES + 24 * MIB
"""What is held, what is on its way, and what malloc and the interpreter take besides; 67 to 92 MB of it are
seen.  A router that reads ahead without a bound took 117 MB under load and 159 once."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(ZOO, tmp_path / "data", workers=1) as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> Iterator[SyncClient]:
    with cluster.connect() as connected:
        yield connected


def peak_bytes(pid: int) -> int:
    """The most memory that the process ever had."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peaks(pids: list[int]) -> list[int]:
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    return [peak_bytes(pid) for pid in pids]


@pytest.fixture
def silent(cluster: Cluster) -> Iterator[zmq.Socket[bytes]]:
    """A raw client that never reads, and whose ZeroMQ reads ahead one message only."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVHWM, 1)
    yield socket
    socket.close()
    context.term()


def wait_until_no_turn_starts(client: SyncClient) -> int:
    """Returns when the calls of whoever does not read have had their turn or were refused."""
    deadline = time.monotonic() + DEADLINE_S
    turns: list[int] = []
    while len(turns) < QUIET_LOOKS or len(set(turns[-QUIET_LOOKS:])) > 1 or turns[-1] < 4:
        assert time.monotonic() < deadline
        time.sleep(10 * POLL_S)  # sleep: pause between two looks at what another process does
        turns.append(client.stats()[0]["turns"])
    return turns[-1]


def calls_for_blobs(client: SyncClient, count: int) -> list[list[object]]:
    key = client.id_from_name("Odd", "large").key
    return [
        [number, "Odd", key, "large", "blob", [BLOB_BYTES], None, 30_000, None]
        for number in range(1, count + 1)
    ]


@pytest.mark.parametrize("where", ["door", "router"])
@pytest.mark.parametrize("how", ["one by one", "at once"])
def test_a_client_that_does_not_read_costs_a_bounded_number_of_bytes(
    cluster: Cluster, client: SyncClient, silent: zmq.Socket[bytes], where: str, how: str
) -> None:
    client.get("Odd", "large").remember(1)
    slot_map = client.slot_map
    assert slot_map is not None
    pids = [cluster.router_pid, *cluster.worker_pids]
    before = forget_peaks(pids)
    silent.connect(cluster.url if where == "router" else slot_map.seats[0].endpoint)
    calls = calls_for_blobs(client, BLOBS)
    if how == "at once":
        header = protocol.header(protocol.BATCH, 0, slot_map.version)
        silent.send_multipart([header, msgpack.packb([b"c" * 16, *calls])])
    else:
        key = client.id_from_name("Odd", "large").key
        for call in calls:
            silent.send_multipart([protocol.call_header(key, call[0]), msgpack.packb([b"c" * 16, call])])  # type: ignore[arg-type]
    wait_until_no_turn_starts(client)
    assert client.get("Odd", "large").remember(2) == (1, 1)
    grown = [peak_bytes(pid) - size for pid, size in zip(pids, before, strict=True)]

    assert max(grown) < GROWTH_BYTES_MAX
    assert [cluster.router_pid, *cluster.worker_pids] == pids


def test_a_router_that_is_late_is_sent_one_large_result_at_a_time(
    cluster: Cluster, client: SyncClient
) -> None:
    client.get("Odd", "large").remember(1)
    slot_map = client.slot_map
    assert slot_map is not None
    seat = slot_map.seats[0]
    calls = msgpack.packb([b"c" * 16, *calls_for_blobs(client, 4)])
    batch = protocol.header(protocol.BATCH, 0, slot_map.version)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with context, context.socket(zmq.DEALER) as router:  # its ZeroMQ reads all that comes
        router.setsockopt(zmq.LINGER, 0)
        router.connect(seat.endpoint)
        header = protocol.header(protocol.BUNDLE, 0, seat.epoch)
        router.send_multipart([header, msgpack.packb([b"origin", batch, calls])])
        wait_until_no_turn_starts(client)
        for number in range(4):
            assert router.poll(DEADLINE_S * 1000)
            _, body = router.recv_multipart()
            assert BLOB_BYTES < len(body) < 2 * BLOB_BYTES
            # Another answer of this worker behind it, and nothing has come here meanwhile.
            assert client.get("Odd", "large").remember(2)
            assert not router.poll(10 * POLL_S * 1000), number
            taken = protocol.header(protocol.TAKEN, 0, seat.epoch, len(body))
            router.send_multipart([taken, b""])


@pytest.mark.parametrize("where", ["door", "router"])
def test_a_client_that_reads_gets_results_of_any_total_size_in_bounded_memory(
    cluster: Cluster, where: str
) -> None:
    pids = [cluster.router_pid, *cluster.worker_pids]

    async def gather() -> list[bytes]:
        async with connect(cluster.url, direct=where == "door") as client:
            objects = [client.get("Odd", f"large-{number % 10}") for number in range(BLOBS // 3)]
            return await asyncio.gather(*[each.blob(BLOB_BYTES) for each in objects])

    before = forget_peaks(pids)
    results = asyncio.run(gather())
    assert [len(result) for result in results] == [BLOB_BYTES] * (BLOBS // 3)
    grown = [peak_bytes(pid) - size for pid, size in zip(pids, before, strict=True)]
    assert max(grown) < GROWTH_BYTES_MAX


def test_calls_of_a_client_that_does_not_read_are_refused_while_others_are_served(
    cluster: Cluster, client: SyncClient, silent: zmq.Socket[bytes]
) -> None:
    client.get("Odd", "large").remember(1)
    slot_map = client.slot_map
    assert slot_map is not None
    silent.connect(slot_map.seats[0].endpoint)
    header = protocol.header(protocol.BATCH, 0, slot_map.version)
    silent.send_multipart([header, msgpack.packb([b"c" * 16, *calls_for_blobs(client, 50)])])
    ran = wait_until_no_turn_starts(client)
    assert ran < 50
    assert client.get("Odd", "large").remember(2) == (1, 1)
    # It reads at last: every call has an answer, those that did not run among them.
    answers: dict[int, int] = {}
    errors: set[str] = set()
    while len(answers) < 50:
        assert silent.poll(DEADLINE_S * 1000)
        for sequence, status, payload in msgpack.unpackb(silent.recv_multipart()[1]):
            answers[sequence] = status
            if status == protocol.STATUS_ERROR:
                errors.add(payload[0])
    assert errors == {Overloaded.__name__}
    refused = [status for status in answers.values() if status == protocol.STATUS_ERROR]
    assert 0 < len(refused) < 50
