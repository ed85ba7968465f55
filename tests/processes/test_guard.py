"""Objects that misbehave, in real workers: their neighbours live, and the operator learns who it was."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import MessageTooLarge, NotExecuted, OutcomeUnknown, RemoteError, SyncClient, connect
from perdure.errors import PerdureError
from perdure.limits import Limits
from processes.cluster import DEADLINE_S, Cluster, running_cluster
from processes.zoo import Counter, Odd, Poison

APP = Path(__file__).with_name("zoo.py")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(APP, tmp_path / "data", workers=1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: Cluster) -> Iterator[SyncClient]:
    with cluster.connect(retry=False) as client:
        yield client


def kill_by(client: SyncClient, name: str, method: str, *args: Any) -> PerdureError:
    """The error of a call that ends the worker."""
    poison = client.get("Poison", name)
    with pytest.raises(PerdureError) as caught:
        getattr(poison, method)(*args)
    return caught.value


def lines_about(cluster: Cluster, **facts: Any) -> list[dict[str, Any]]:
    return [line for line in cluster.log() if facts.items() <= line.items()]


@pytest.mark.parametrize(
    ("method", "args", "why"),
    [
        ("crash_later", (), "SIGSEGV"),
        ("crash_in_thread", (), "SIGSEGV"),
        ("leave", (72,), "exit code 72"),
    ],
)
def test_an_object_that_kills_its_worker_three_times_is_quarantined_and_its_neighbours_live(
    cluster: Cluster, client: SyncClient, method: str, args: tuple[Any, ...], why: str
) -> None:
    neighbour = client.get(Counter, "neighbour")
    for deaths in range(1, 4):
        assert isinstance(kill_by(client, "bad", method, *args), OutcomeUnknown)
        assert neighbour.increment() == deaths
    began = time.monotonic()
    refused = kill_by(client, "bad", "fine")
    assert type(refused) is NotExecuted
    assert time.monotonic() - began < 1.0
    for part in ("Poison/bad", method, why, "3 times"):
        assert part in str(refused)
    assert client.get(Poison, "good").fine() == "fine"
    assert neighbour.increment() == 4
    assert cluster.stats()[0]["quarantined"] == 1
    assert lines_about(cluster, message="an object is quarantined: nothing of it runs", method=method)
    assert len(lines_about(cluster, process="supervisor", method=method)) == 3


def test_a_restart_of_the_whole_tries_a_quarantined_object_again(tmp_path: Path) -> None:
    with running_cluster(APP, tmp_path / "data", workers=1) as cluster:
        with cluster.connect(retry=False) as client:
            for _ in range(3):
                kill_by(client, "bad", "crash")
            assert type(kill_by(client, "bad", "fine")) is NotExecuted
        cluster.stop()
        cluster.start()
        with cluster.connect(retry=False) as client:
            assert client.get(Poison, "bad").fine() == "fine"
            kill_by(client, "bad", "abort")
            assert type(kill_by(client, "bad", "fine")) is NotExecuted


KILLED_S = Limits().heartbeat_interval_s + Limits().heartbeat_lost_s
"""From the last heartbeat, at the longest, until the supervisor kills."""
STARTS = 3
"""On a busy machine the rest may take as many times what a restart takes there, right afterwards."""


@pytest.mark.alone
@pytest.mark.parametrize(
    ("method", "place"), [("spin", "zoo.py"), ("hold", "zoo.py")], ids=["Python", "the interpreter's lock"]
)
def test_a_turn_that_never_lets_go_costs_a_restart_within_five_seconds_and_is_named(
    cluster: Cluster, client: SyncClient, method: str, place: str
) -> None:
    neighbour = client.get(Counter, "neighbour")
    neighbour.increment()
    (pid,) = cluster.worker_pids
    began = time.monotonic()
    assert isinstance(kill_by(client, "bad", method), OutcomeUnknown)
    assert neighbour.increment() == 2
    took_s = time.monotonic() - began
    (successor,) = cluster.worker_pids
    assert successor != pid
    with cluster.connect() as patient:
        assert patient.get(Counter, "neighbour").get() == 2
        began = time.monotonic()
        cluster.kill(successor)
        assert patient.get(Counter, "neighbour").get() == 2
        assert took_s < max(5.0, KILLED_S + STARTS * (time.monotonic() - began))
    assert client.get(Poison, "bad").fine() == "fine"
    lines = lines_about(cluster, method=method)
    assert any(line["object"].startswith("Poison/") for line in lines)
    assert any(place in line.get("stack", "") and method in line.get("stack", "") for line in lines)


def test_a_turn_that_blocks_for_a_while_is_logged_with_its_stack_and_counted(
    cluster: Cluster, client: SyncClient
) -> None:
    client.get(Poison, "slow").spin(0.4)
    client.get(Poison, "quick").spin(0.02)
    (line,) = cluster.wait_until(
        "it is logged", lambda: lines_about(cluster, message="a turn blocked the loop")
    )
    assert (line["object"], line["method"]) == ("Poison/slow", "spin")
    assert "zoo.py" in line["stack"]
    assert 0.3 < line["seconds"] < 5
    stats = cluster.stats()[0]
    assert stats["blocked_turns"] == 1
    assert stats["blocked_longest_ms"] > 300


def test_kills_from_outside_blame_no_object(cluster: Cluster, client: SyncClient) -> None:
    """The object's turn runs, and waits, at each kill."""
    for _ in range(4):
        before = cluster.stats()[0]["turns"]  # of this incarnation
        nap = threading.Thread(target=_nap, args=(client,), daemon=True)
        nap.start()
        cluster.wait_until("the turn runs", lambda before=before: cluster.stats()[0]["turns"] > before)
        cluster.kill(cluster.worker_pids[0])
        nap.join(DEADLINE_S)
    assert client.get(Odd, "unlucky").nap(0.0) == "rested"
    stats = cluster.stats()[0]
    assert (stats["quarantined"], stats["suspects"]) == (0, 0)


def _nap(client: SyncClient) -> None:
    with contextlib.suppress(PerdureError):
        client.get(Odd, "unlucky").nap(60.0)


def test_a_worker_that_was_stopped_from_outside_blames_no_object(
    cluster: Cluster, client: SyncClient
) -> None:
    (pid,) = cluster.worker_pids
    cluster.kill(pid, signal.SIGSTOP)
    cluster.wait_until("it is replaced", lambda: cluster.worker_pids != [pid])
    assert client.get(Counter, "any").increment() == 1
    assert cluster.stats()[0]["suspects"] == 0


def test_a_task_that_exits_ends_neither_the_worker_nor_other_turns(
    cluster: Cluster, client: SyncClient
) -> None:
    (pid,) = cluster.worker_pids
    error = kill_by(client, "one", "leave_in_task")
    assert isinstance(error, RemoteError)
    assert "SystemExit" in str(error)
    assert client.get(Poison, "one").fine() == "fine"
    assert cluster.worker_pids == [pid]


def test_a_result_over_the_limit_is_told_as_such(cluster: Cluster, client: SyncClient) -> None:
    error = kill_by(client, "one", "large", 33 << 20)
    assert isinstance(error, MessageTooLarge)
    assert error.size is not None
    assert error.size > 33 << 20
    assert client.get(Poison, "one").fine() == "fine"


@pytest.mark.alone
def test_a_clients_flood_of_many_objects_does_not_starve_anothers_single_call(
    cluster: Cluster, client: SyncClient
) -> None:
    single = client.get(Counter, "single", timeout=60.0)
    single.increment()
    flooding, flooded_s = threading.Event(), []

    async def flood() -> None:
        async with connect(cluster.url) as other:
            objects = [other.get(Poison, f"o{number}", timeout=60.0) for number in range(500)]
            calls = [asyncio.ensure_future(objects[n % 500].spin(0.0004)) for n in range(3_000)]
            flooding.set()
            began = time.monotonic()
            await asyncio.gather(*calls)
            flooded_s.append(time.monotonic() - began)

    thread = threading.Thread(target=lambda: asyncio.run(flood()), daemon=True)
    thread.start()
    assert flooding.wait(DEADLINE_S)
    latencies = []
    while thread.is_alive():
        began = time.monotonic()
        single.increment()
        latencies.append(time.monotonic() - began)
    thread.join(DEADLINE_S)
    assert flooded_s[0] > 1.2  # of turns alone
    assert len(latencies) > 5
    assert max(latencies) < flooded_s[0] / 2
