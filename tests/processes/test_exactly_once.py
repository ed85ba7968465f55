"""Calls take effect once, whatever dies between their first try and their answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from perdure import InvalidArgument, OutcomeUnknown, SyncClient, protocol
from perdure.ids import id_from_name

from .cluster import Cluster, running_cluster

ZOO = Path(__file__).with_name("zoo.py")
CLIENT = b"a raw client's i"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(ZOO, tmp_path / "data", workers=2) as running:
        yield running


class Writer:
    """Increments one counter from a thread, and keeps every answer and error."""

    def __init__(self, client: SyncClient, name: str) -> None:
        self.name = name
        self.answers: list[int] = []
        self.errors: list[Exception] = []
        self.slowest_s = 0.0
        self._stub = client.get("Counter", name, timeout=20.0)
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            began = time.monotonic()
            try:
                self.answers.append(self._stub.increment())
            except Exception as error:
                self.errors.append(error)
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(60)
        assert not self._thread.is_alive(), "a call hangs"


def kill_workers_under_load(cluster: Cluster, client: SyncClient, kills: int) -> list[Writer]:
    running = [Writer(client, f"w{number}") for number in range(8)]
    try:
        for number in range(kills):
            goal = [len(writer.answers) + 10 for writer in running]
            cluster.wait_until(
                "all writers go on",
                lambda goal=goal: all(
                    len(w.answers) + len(w.errors) >= g for w, g in zip(running, goal, strict=True)
                ),
            )
            cluster.kill(cluster.worker_pids[number % 2])
    finally:
        for writer in running:
            writer.stop()
    return running


@pytest.mark.parametrize("direct", [True, False])
def test_kill_9_under_load_counts_every_acknowledged_increment_once_and_shows_no_error(
    cluster: Cluster, direct: bool
) -> None:
    with cluster.connect(direct=direct) as client:
        for writer in kill_workers_under_load(cluster, client, 6):
            assert not writer.errors
            assert writer.answers == list(range(1, len(writer.answers) + 1))
            assert client.get("Counter", writer.name).get() == len(writer.answers)


def test_clients_that_do_not_retry_see_unknown_outcomes_within_a_second(cluster: Cluster) -> None:
    with cluster.connect(retry=False) as client:
        name = next(n for n in map(str, range(100)) if owner(client, n) == 0)
        outcome: list[Any] = []

        def nap() -> None:
            try:
                client.get("Odd", name).nap(20.0)
            except Exception as error:
                outcome.append((time.monotonic(), error))

        thread = threading.Thread(target=nap)
        turns = cluster.stats()[0]["turns"]
        thread.start()
        cluster.wait_until("it runs", lambda: cluster.stats()[0]["turns"] > turns)
        killed = time.monotonic()
        cluster.kill(cluster.worker_pids[0])
        thread.join(20)
        ((ended, error),) = outcome
        assert isinstance(error, OutcomeUnknown)
        assert ended - killed < 1.0


def owner(client: SyncClient, name: str, namespace: str = "Odd") -> int:
    slot_map = client.slot_map
    assert slot_map is not None
    return slot_map.worker_of(id_from_name(namespace, name).key)


def test_the_router_may_be_killed_under_clients_that_know_no_other_way(cluster: Cluster) -> None:
    with cluster.connect(direct=False) as client:
        writers = [Writer(client, f"r{number}") for number in range(4)]
        try:
            for _ in range(3):
                goal = [len(writer.answers) + 5 for writer in writers]
                cluster.wait_until(
                    "all writers go on",
                    lambda goal=goal: all(len(w.answers) >= g for w, g in zip(writers, goal, strict=True)),
                )
                cluster.kill(cluster.router_pid)
        finally:
            for writer in writers:
                writer.stop()
        for writer in writers:
            assert not writer.errors
            assert client.get("Counter", writer.name).get() == len(writer.answers)


# --- between first try and retry


def raw_call(cluster: Cluster, sequence: int, name: str) -> Any:
    """One increment as a raw client sends it, with a connection of its own: [status, payload]."""
    key = id_from_name("Counter", name).key
    item = [sequence, "Counter", key, name, "increment", [], None, 10_000, None]
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(cluster.url)
        for _ in range(100):
            socket.send_multipart([protocol.call_header(key, sequence), msgpack.packb([CLIENT, item])])
            assert socket.poll(20_000), "no answer"
            status, payload = msgpack.unpackb(socket.recv_multipart()[1])[1:]
            if not (status == protocol.STATUS_ERROR and payload[0] == "ShardUnavailable"):
                return [status, payload]
            cluster.wait_until("workers are up", lambda: cluster.stats())
    raise AssertionError("the worker never comes")


def test_a_retry_after_a_cold_restart_of_everything_gets_the_recorded_reply(cluster: Cluster) -> None:
    assert [raw_call(cluster, number, "cold") for number in (1, 2, 3)] == [[0, 1], [0, 2], [0, 3]]
    cluster.stop()
    cluster.start()
    assert raw_call(cluster, 3, "cold") == [0, 3]
    cluster.kill_all()
    cluster.start()
    assert [raw_call(cluster, number, "cold") for number in (3, 2, 4)] == [[0, 3], [0, 2], [0, 4]]


def test_a_request_id_of_ones_own_takes_effect_once_whoever_sends_it(cluster: Cluster) -> None:
    with cluster.connect() as client:
        stub = client.get("Counter", "own", request_id="order 7")
        assert (stub.increment(5), stub.increment()) == (5, 6)
    cluster.stop()
    cluster.start()
    with cluster.connect(direct=False) as client:
        stub = client.get("Counter", "own", request_id="order 7")
        assert (stub.increment(5), stub.increment(), stub.increment()) == (5, 6, 7)
        with pytest.raises(InvalidArgument, match="another method or other arguments"):
            client.get("Counter", "own", request_id="order 7").increment(6)
        assert client.get("Counter", "own").get() == 7


def test_an_object_killed_after_its_call_took_effect_elsewhere_runs_again_and_that_call_does_not(
    cluster: Cluster,
) -> None:
    with cluster.connect() as client:
        names = map(str, range(1_000))
        caller = next(name for name in names if owner(client, name, "Caller") == 0)
        counter = next(name for name in names if owner(client, name, "Counter") == 1)
        answers: list[int] = []
        target = client.get("Caller", caller, timeout=30.0)
        thread = threading.Thread(target=lambda: answers.append(target.add_to_and_linger(counter, 1.0)))
        thread.start()
        value = client.get("Counter", counter)
        cluster.wait_until("the call elsewhere took effect", lambda: value.get() == 1)
        cluster.kill(cluster.worker_pids[0])
        thread.join(30)
        assert answers == [1]
        assert (value.get(), target.get()) == (1, 1)
