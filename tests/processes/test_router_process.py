"""A real router process between a supervisor, doors and clients that the tests play themselves."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from perdure import codec, protocol
from perdure.limits import Limits
from router.process_scene import (
    HELLO,
    PATIENCE_S,
    Cluster,
    Socket,
    batch,
    call,
    error_of,
    reach,
    reap,
    serve,
    spawn_python,
)

pytestmark = pytest.mark.processes

LIMITS = Limits()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="perdure") as run:
        cluster = Cluster(Path(run))
        yield cluster
        cluster.end()


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_clients_reach_workers_over_ipc_and_tcp(cluster: Cluster) -> None:
    doors = [cluster.bound("w0.e1"), cluster.bound("w1.e1")]
    slot_map = cluster.slot_map(1, "w0.e1", "w1.e1")
    cluster.start(slot_map, endpoints=[f"ipc://{cluster.run}/router", "tcp://127.0.0.1:*"])
    for endpoint in cluster.endpoints:
        client = cluster.client(endpoint)
        client.send(HELLO)
        kind, body = client.answer()
        assert (kind, codec.decode(body)) == (protocol.MAP, slot_map.to_wire())
        for worker, door in enumerate(doors):
            client.send(batch(worker, 1, b"\x93%d" % worker))
            serve(door, 1)
            assert client.answer() == (protocol.REPLIES, b"\x93%d" % worker)
            client.send(call(worker, 77))
            serve(door, 1)
            header, body = client.receive()
            assert protocol.read_header(header)[:4] == (protocol.REPLY, worker, 1, 77)
    stats = cluster.stats(lambda stats: stats["answers"] == 8)
    assert (stats["batches"], stats["calls"], stats["map_version"], stats["doors"]) == (4, 4, 1, 2)


def test_a_killed_router_is_back_within_a_second_and_its_clients_are_served_again(cluster: Cluster) -> None:
    door = cluster.bound("w0.e1")
    slot_map = cluster.slot_map(1, "w0.e1", "")
    router = cluster.start(slot_map)
    client = cluster.client()
    reach(client, door, call(0, 1))
    serve(door, 1)
    client.answer()
    seconds = []
    for sequence in range(2, 5):
        reap(router)
        started = time.monotonic()
        router = cluster.start(slot_map)
        fresh = cluster.client()
        fresh.send(HELLO)  # the map comes by another socket: a call could overtake it
        assert fresh.answer()[0] == protocol.MAP
        fresh.send(call(0, sequence))
        serve(door, 1)
        fresh.answer()
        seconds.append(time.monotonic() - started)
        client.send(call(0, sequence))  # this connection saw its router die
        serve(door, 1)
        client.answer()
    # Three tries, since other tests may hold the processors; measured 0.08 s.
    assert min(seconds) < 1.0


def test_a_worker_that_cannot_be_reached_yet_delays_only_its_own_calls(cluster: Cluster) -> None:
    there = cluster.bound("w1.e1")
    cluster.start(cluster.slot_map(1, "w0.e1", "w1.e1"))
    client = cluster.client()
    reach(client, there, call(1, 0))
    serve(there, 1)
    client.answer()
    client.send(call(0, 1))
    client.send(call(1, 2))
    assert len(serve(there, 1)) == 1
    assert client.answer()[0] == protocol.REPLY
    late = cluster.bound("w0.e1")
    serve(late, 1)
    assert client.answer()[0] == protocol.REPLY


def test_at_a_death_callers_learn_at_once_what_happened_to_their_calls(cluster: Cluster) -> None:
    door = cluster.bound("w0.e1")
    cluster.start(cluster.slot_map(1, "w0.e1", "w1.e1"))
    client = cluster.client()
    client.send(HELLO)
    assert client.answer()[0] == protocol.MAP
    client.send(call(0, 1))
    door.receive()
    client.send(call(1, 2))  # nobody has ever listened at the other door
    client.send(batch(1, 1, b"\x93waits"))
    cluster.stats(lambda stats: stats["batches"] == 1)
    new = cluster.slot_map(2, "w0.e2", "", epochs=(2, 1))
    asked = time.monotonic()
    cluster.tell({"type": "map", "map": new.to_wire()})
    assert error_of(client.answer()) == (1, "OutcomeUnknown")
    assert error_of(client.answer()) == (2, "ShardUnavailable")
    kind, body = client.answer()
    assert (kind, codec.decode(body)) == (protocol.STALE, [new.to_wire(), b"\x93waits"])
    assert client.answer() == (protocol.MAP, codec.encode(new.to_wire()))
    assert time.monotonic() - asked < 1.0
    successor = cluster.bound("w0.e2")
    client.send(call(0, 3))
    serve(successor, 1, epoch=2)
    assert client.answer()[0] == protocol.REPLY


def test_a_closing_door_hears_the_acknowledgement_as_the_last_message(cluster: Cluster) -> None:
    door = cluster.bound("w0.e1")
    cluster.start(cluster.slot_map(1, "w0.e1", ""))
    client = cluster.client()
    reach(client, door, call(0, 1))
    identity, _, _ = door.receive()
    door.send([identity, protocol.header(protocol.GOODBYE, 0, 1), b""])
    assert protocol.read_header(door.receive()[1])[:3] == (protocol.GOODBYE_ACK, 0, 1)
    client.send(call(0, 2))
    assert error_of(client.answer()) == (2, "ShardUnavailable")
    assert door.silent()


def test_a_client_that_does_not_read_delays_nobody_and_loses_nothing_below_the_limit(
    cluster: Cluster,
) -> None:
    cluster.start(cluster.slot_map(1, "", ""))
    slow, other = cluster.client(), cluster.client()
    slow.zmq.setsockopt(zmq.RCVHWM, 1)
    calls = 30_000  # ZeroMQ holds 10,000 of the answers for one peer
    for sequence in range(calls):
        slow.send(call(0, sequence))
    cluster.stats(lambda stats: stats["unavailable"] == calls)
    stats = cluster.stats()
    assert stats["backlog_bytes"] > 0
    other.send(HELLO)
    assert other.answer()[0] == protocol.MAP
    received = []
    for sequence in range(calls, calls + 2_000):  # answers that could overtake those that wait
        slow.send(call(0, sequence))
        received += [error_of(slow.answer())[0] for _ in range(16)]
    assert received == list(range(calls + 2_000))
    assert cluster.stats(lambda stats: stats["backlog_bytes"] == 0)["answers_dropped"] == 0


def junk(client: Socket, rng: random.Random) -> None:
    """One round of messages that are none; the header of each part that looks like one is broken."""
    client.send([b""])
    client.send([b"", b""])
    client.send([b"x"] * 10)
    client.send([protocol.header(protocol.BATCH, 0, 1)])
    client.send([protocol.header(protocol.BATCH, 60_000, 1), b"no such worker"])
    client.send([protocol.header(protocol.BUNDLE, 0, 1), msgpack.packb([b"o", b"h", b"b"])])
    client.send([protocol.header(99), rng.randbytes(1_000)])
    client.send([protocol.header(protocol.CALL), b"a header of the wrong length"])
    client.send([b"\2" + protocol.header(protocol.HELLO)[1:], b"a later version"])
    for _ in range(10):
        parts = [rng.randbytes(rng.randrange(3, 60)) for _ in range(rng.randrange(1, 6))]
        client.send([b"\xff" + part for part in parts])


def test_junk_is_counted_while_others_are_served_and_the_process_does_not_grow(cluster: Cluster) -> None:
    door = cluster.bound("w0.e1")
    router = cluster.start(
        cluster.slot_map(1, "w0.e1", ""), endpoints=[f"ipc://{cluster.run}/router", "tcp://127.0.0.1:*"]
    )
    rng = random.Random(7)
    good = cluster.client()

    def attack() -> None:
        for endpoint in cluster.endpoints:
            peer = cluster.client(endpoint)
            for _ in range(20):
                junk(peer, rng)
            peer.send([protocol.header(protocol.BATCH, 0, 1), bytes(LIMITS.message_bytes_max + 60_000)])
            kinds = {peer.answer()[0] for _ in range(20 * 19 + 1)}
            assert kinds == {protocol.REFUSED}
            # What is larger still, ZeroMQ cuts off together with its sender.
            peer.send([protocol.header(protocol.BATCH, 0, 1), bytes(LIMITS.message_bytes_max + 100_000)])
            peer.zmq.close(linger=1_000)
            good.send(call(0, 1))
            serve(door, 1)
            assert good.answer()[0] == protocol.REPLY
        port = int(cluster.endpoints[1].rpartition(":")[2])
        for _ in range(20):  # no ZeroMQ at all
            with socket.create_connection(("127.0.0.1", port)) as plain:
                plain.sendall(rng.randbytes(200))

    attack()
    before = resident_bytes(router.pid)
    for _ in range(3):
        attack()
    rounds = 4 * 2 * 20
    stats = cluster.stats(lambda stats: stats["calls"] == 8)
    assert resident_bytes(router.pid) - before < 16 * 2**20
    assert stats["malformed_worker"] == rounds
    assert stats["malformed_kind"] == 2 * rounds
    assert stats["malformed_frames"] >= 4 * rounds
    # ZeroMQ takes some of the plain TCP junk for messages of its first protocol, and delivers it.
    assert 16 * rounds <= stats["malformed_frames"] + stats["malformed_header"] < 17 * rounds
    assert stats["oversize"] == 4 * 2
    assert (stats["queued_bytes"], stats["calls_in_flight"], stats["clients"]) == (0, 0, 0)


def test_junk_of_the_supervisor_is_survived_and_logged(cluster: Cluster) -> None:
    router = cluster.start()
    for frame in (
        b"",
        b"\xc1",
        codec.encode([1]),
        codec.encode({"type": "map", "map": {}}),
        codec.encode({}),
    ):
        cluster.control.send([cluster.identity, frame])
    cluster.control.send([cluster.identity, b"", b""])
    cluster.tell({"type": "map", "map": cluster.slot_map(3, "", "").to_wire()})
    client = cluster.client()
    client.send(HELLO)
    assert client.answer()[0] == protocol.MAP
    router.terminate()
    _, log = router.communicate(timeout=PATIENCE_S)
    assert log.count(b"does not understand") == 6
    assert b"Traceback" not in log


@pytest.mark.parametrize("how", ["SIGTERM", "stop message"])
def test_an_ordered_stop_refuses_new_calls_answers_old_ones_and_says_goodbye(
    cluster: Cluster, how: str
) -> None:
    door = cluster.bound("w0.e1")
    router = cluster.start(cluster.slot_map(1, "w0.e1", ""))
    library, raw = cluster.client(), cluster.client()
    library.send(HELLO)
    library.answer()
    raw.send(call(0, 1))
    identity, _, body = door.receive()
    origin = msgpack.unpackb(body)[0]
    asked = time.monotonic()
    router.send_signal(signal.SIGINT)  # only the supervisor orders who stops when
    if how == "SIGTERM":
        router.send_signal(signal.SIGTERM)
    else:
        cluster.tell({"type": "stop"})
    assert library.answer() == (protocol.GOODBYE, b"")
    raw.send(call(0, 2))
    assert error_of(raw.answer()) == (2, "ShardUnavailable")
    library.send(batch(0, 1, b"\x93late"))
    kind, body = library.answer()
    assert (kind, codec.decode(body)[3]) == (protocol.REFUSED, b"\x93late")
    reply = [origin, protocol.header(protocol.REPLY, 0, 1, 1), b"\x93done"]
    door.send([identity, protocol.header(protocol.BUNDLE, 0, 1), msgpack.packb(reply)])
    assert raw.answer() == (protocol.REPLY, b"\x93done")
    library.send([protocol.header(protocol.GOODBYE_ACK), b""])
    while router.poll() is None:  # strangers who go on talking delay nothing
        assert time.monotonic() - asked < LIMITS.goodbye_timeout_s
        with contextlib.suppress(zmq.Again):
            raw.send([protocol.header(protocol.PING), b""], zmq.NOBLOCK)
        raw.zmq.poll(10)
    assert router.returncode == 0


def test_an_ordered_stop_does_not_wait_for_silent_clients(cluster: Cluster) -> None:
    router = cluster.start(cluster.slot_map(1, "", ""))
    library = cluster.client()
    library.send(HELLO)
    library.answer()
    asked = time.monotonic()
    router.terminate()
    assert router.wait(PATIENCE_S) == 0
    assert time.monotonic() - asked < LIMITS.goodbye_timeout_s
    assert library.answer()[0] == protocol.GOODBYE


def test_at_the_end_of_an_ordered_stop_callers_without_an_answer_learn_so(cluster: Cluster) -> None:
    door = cluster.bound("w0.e1")
    router = cluster.start(cluster.slot_map(1, "w0.e1", ""))
    raw = cluster.client()
    reach(raw, door, call(0, 1))
    door.receive()
    router.terminate()
    assert router.wait(PATIENCE_S) == 0
    assert error_of(raw.answer()) == (1, "OutcomeUnknown")


def test_the_router_ends_with_its_supervisor(cluster: Cluster) -> None:
    config = {
        "endpoints": [f"ipc://{cluster.run}/router"],
        "control": f"ipc://{cluster.run}/control",
        "epoch": 1,
    }
    supervisor = spawn_python(
        "-c",
        "import json, os, subprocess, sys\n"
        f"config = {{**{config!r}, 'parent': os.getpid()}}\n"
        "subprocess.run([sys.executable, '-P', '-m', 'perdure_router', json.dumps(config)])",
    )
    cluster.epoch = 1
    pid = cluster.heard("ready")["pid"]
    descriptor = os.pidfd_open(pid)
    reap(supervisor)
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    ended = poller.poll(PATIENCE_S * 1000)
    os.close(descriptor)
    assert ended


def test_a_router_whose_supervisor_is_gone_already_does_not_start(cluster: Cluster) -> None:
    router = cluster.spawn(parent=1)
    router.communicate(timeout=PATIENCE_S)
    assert router.returncode == 0
    assert cluster.control.silent()


def test_a_router_that_cannot_read_its_configuration_names_what_is_wrong(cluster: Cluster) -> None:
    router = cluster.spawn(epoch="x")
    _, errors = router.communicate(timeout=PATIENCE_S)
    assert (router.returncode, errors) == (1, b"epoch: expected int, got 'x'\n")


def test_a_router_that_cannot_bind_says_why_and_ends(cluster: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        router = cluster.spawn(endpoints=[f"tcp://127.0.0.1:{taken.getsockname()[1]}"])
        _, log = router.communicate(timeout=PATIENCE_S)
    assert router.returncode == 1
    assert b"Address already in use" in log
