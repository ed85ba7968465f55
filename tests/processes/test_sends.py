"""Durable sends in a real cluster: each takes effect once and in order, whoever is killed."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import PerdureError, RemoteError, SyncClient
from perdure.ids import id_from_name, slot_of

from .cluster import ROOT, Cluster, running_cluster

pytestmark = pytest.mark.processes

APP = Path(__file__).with_name("sends_app.py")
BANK = ROOT / "examples" / "bank.py"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(APP, tmp_path / "data", workers=2) as running:
        yield running


def names_on(worker: int, namespace: str, count: int) -> list[str]:
    """Names of objects that live on a worker of two."""
    found = []
    number = 0
    while len(found) < count:
        name = f"{namespace.lower()}-{number}"
        if (slot_of(id_from_name(namespace, name).key, 1_024) >= 512) == bool(worker):
            found.append(name)
        number += 1
    return found


def stubborn(call: Callable[..., Any], *args: Any, tries: int = 50) -> Any:
    """Repeats a call that may be repeated, whatever happens to the cluster meanwhile."""
    for attempt in range(tries):
        try:
            return call(*args)
        except RemoteError:
            raise
        except PerdureError:
            if attempt == tries - 1:
                raise
    raise AssertionError


@contextlib.contextmanager
def feeding(cluster: Cluster, feeders: list[str], sinks: list[str], batch: int = 5) -> Iterator[None]:
    """Feeders that are made to send without a pause, each in a thread of its own."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def feed(name: str) -> None:
        try:
            with cluster.connect() as client:
                feeder = client.get("Feeder", name)
                done = 0
                while not stop.is_set():
                    done = stubborn(feeder.feed, done, sinks, batch)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=feed, args=(name,)) for name in feeders]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors, errors


def wait_for_size(cluster: Cluster, client: SyncClient, sink: str, size: int) -> None:
    cluster.wait_until(
        f"{sink} has got {size} messages", lambda: stubborn(client.get("Sink", sink).size) >= size, 40.0
    )


def check_all_arrived(cluster: Cluster, feeders: list[str], sinks: list[str]) -> int:
    """Every number of every feeder is at every sink, once and in order; how many there are."""
    with cluster.connect() as client:
        sent = {name: stubborn(client.get("Feeder", name).sent) for name in feeders}
        for sink in sinks:
            wait_for_size(cluster, client, sink, sum(sent.values()))
            taken = stubborn(client.get("Sink", sink).taken)
            assert taken == {name: list(range(count)) for name, count in sent.items() if count}
        for feeder in [client.get("Feeder", name) for name in feeders]:
            cluster.wait_until("nothing is left to be sent", lambda f=feeder: stubborn(f.pending) == 0)
    return sum(sent.values()) * len(sinks)


def sizes(client: SyncClient, sinks: list[str]) -> int:
    return sum(stubborn(client.get("Sink", sink).size) for sink in sinks)


@pytest.mark.parametrize("victim", ["sender", "target"])
def test_each_send_takes_effect_once_and_in_order_while_a_side_is_killed_under_load(
    cluster: Cluster, victim: str
) -> None:
    feeders, sinks = names_on(0, "Feeder", 3), names_on(1, "Sink", 3)
    with cluster.connect() as client, feeding(cluster, feeders, sinks):
        for _ in range(4):
            before = sizes(client, sinks)
            cluster.wait_until("messages arrive", lambda seen=before: sizes(client, sinks) > seen + 100)
            cluster.kill(cluster.worker_pids[0 if victim == "sender" else 1])
    assert check_all_arrived(cluster, feeders, sinks) > 400


def test_what_a_turn_sent_that_raised_never_arrives(cluster: Cluster) -> None:
    feeders, sinks = names_on(0, "Feeder", 2), names_on(1, "Sink", 2) + names_on(0, "Sink", 1)
    with cluster.connect() as client:
        for name in feeders:
            feeder = client.get("Feeder", name)
            feeder.feed(0, sinks, 2)
            with pytest.raises(RemoteError):
                feeder.feed_and_raise(sinks)
            feeder.feed(1, sinks, 2)
    assert check_all_arrived(cluster, feeders, sinks) == 24


def test_sends_wait_for_a_target_that_is_down_for_a_while_and_others_do_not(cluster: Cluster) -> None:
    feeders = names_on(0, "Feeder", 2)
    (down,), (up,) = names_on(1, "Sink", 1), names_on(0, "Sink", 1)
    with cluster.connect() as client:
        feeder = client.get("Feeder", feeders[0])
        feeder.feed(0, [down, up], 10)
        wait_for_size(cluster, client, down, 10)
        cluster.kill(cluster.worker_pids[1], signal.SIGSTOP)  # the supervisor finds that out, and kills it
        feeder.feed(1, [down, up], 10)
        wait_for_size(cluster, client, up, 20)
    assert check_all_arrived(cluster, feeders[:1], [down, up]) == 40


def test_pending_sends_of_a_cluster_that_was_killed_go_when_it_is_started_again(cluster: Cluster) -> None:
    feeders, sinks = names_on(0, "Feeder", 2), names_on(1, "Sink", 2)
    with cluster.connect() as client:
        for name in feeders:
            assert client.get("Feeder", name).feed(0, sinks, 50, 1.5) == 1
    cluster.kill_all()
    cluster.start()
    with cluster.connect() as client:
        for sink in sinks:
            wait_for_size(cluster, client, sink, 100)
            taken = client.get("Sink", sink).taken()
            # All were due at the same time or nearly so: they come once, in no order that was promised.
            assert {name: sorted(numbers) for name, numbers in taken.items()} == {
                name: list(range(50)) for name in feeders
            }


def test_an_ordered_stop_with_sends_on_their_way_loses_none(cluster: Cluster) -> None:
    feeders, sinks = names_on(0, "Feeder", 3), names_on(1, "Sink", 3)
    with cluster.connect() as client:
        for batch in range(10):
            for name in feeders:
                client.get("Feeder", name).feed(batch, sinks, 20)
    cluster.stop()
    cluster.start()
    assert check_all_arrived(cluster, feeders, sinks) == 1_800


# --- examples/bank.py


def test_the_sum_of_the_bank_is_the_same_at_every_quiet_point_also_under_kill_9(tmp_path: Path) -> None:
    names = [f"account-{number}" for number in range(8)]
    rng = random.Random(54)
    with running_cluster(BANK, tmp_path / "data", workers=2) as cluster, cluster.connect() as client:
        accounts = {name: client.get("Account", name) for name in names}
        for account in accounts.values():
            account.deposit(1_000)
        for _ in range(3):
            with transferring(cluster, names):
                for _ in range(2):
                    before = sum(stats["turns"] for stats in cluster.stats())
                    cluster.kill(cluster.worker_pids[rng.randrange(2)])
                    cluster.wait_until(
                        "transfers go on",
                        lambda seen=before: sum(s["turns"] for s in cluster.stats()) > min(seen, 200),
                    )

            def quiet() -> list[int]:
                states = [stubborn(account.state) for account in accounts.values()]
                return [] if any(on_the_way for _, on_the_way in states) else [held for held, _ in states]

            balances = cluster.wait_until("no money is on its way", quiet)
            assert sum(balances) == 8_000
            assert min(balances) >= 0
    assert len(set(balances)) > 1


@contextlib.contextmanager
def transferring(cluster: Cluster, names: list[str]) -> Iterator[None]:
    """Random transfers from several threads; a call whose outcome is unknown is not repeated."""
    stop = threading.Event()

    def transfer(seed: int) -> None:
        rng = random.Random(seed)
        with cluster.connect() as client:
            while not stop.is_set():
                giver, taker = rng.sample(names, 2)
                with contextlib.suppress(PerdureError):
                    client.get("Account", giver).transfer(taker, rng.randint(1, 300))

    threads = [threading.Thread(target=transfer, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
