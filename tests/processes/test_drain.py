"""An ordered stop while turns run that call objects of other workers."""

from __future__ import annotations

import asyncio
import functools
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from perdure import Client, NotExecuted, OutcomeUnknown, PerdureError, codec, connect, protocol
from perdure.answers import read_refused
from perdure.exits import WorkerExit
from perdure.ids import id_from_name
from perdure.limits import MIB, Limits
from perdure_cli.errors import RunExit

from .cluster import DEADLINE_S, Cluster, running_cluster

pytestmark = pytest.mark.processes

APP = Path(__file__).with_name("drain_app.py")
LIMITS = Limits()
CALLERS = 12
TURN_S = 0.3
DETOUR_S = 0.2
RETRIES_END_S = 4.0
"""Calls are repeated for this long when the cluster is gone; ten times what a turn takes."""

ERRORS_MAX = 10_000
"""More than retries can give: a client that fails each call at once ends the test, and not the machine."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(APP, tmp_path / "data", workers=2, options=["--log-level", "debug"]) as running:
        yield running


def names_on(client: Client, worker: int, namespace: str, count: int) -> list[str]:
    """Names of objects that live on that worker."""
    slot_map = client.slot_map
    assert slot_map is not None
    candidates = (f"n{number}" for number in range(10_000))
    there = (name for name in candidates if slot_map.worker_of(id_from_name(namespace, name).key) == worker)
    return [next(there) for _ in range(count)]


class Load:
    """Callers that repeat their calls until `stopped`; counts what was answered and keeps the errors."""

    def __init__(self) -> None:
        self.stopped = False
        self.answered: Counter[str] = Counter()
        self.errors: list[PerdureError] = []
        self._news = asyncio.Event()

    async def repeat(self, kind: str, call: Callable[[], Awaitable[object]]) -> None:
        while not self.stopped and len(self.errors) < ERRORS_MAX:
            try:
                await call()
            except PerdureError as error:
                self.errors.append(error)
            else:
                self.answered[kind] += 1
                self._news.set()

    async def until(self, condition: Callable[[Counter[str]], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self.answered):
                self._news.clear()
                await self._news.wait()

    def unexpected(self) -> list[PerdureError]:
        return [error for error in self.errors if not isinstance(error, NotExecuted)]


def exit_codes(cluster: Cluster) -> list[int]:
    """Of the workers that ended so far."""
    return [
        line["code"]
        for line in cluster.log()
        if line["message"].startswith("worker-") and " ended: " in line["message"]
    ]


def errors_logged(cluster: Cluster) -> list[str]:
    """What went wrong in any process, uncaught exceptions of callbacks included."""
    return [line["message"] for line in cluster.log() if line["level"] in ("error", "critical")]


async def turns(client: Client, worker: int) -> int:
    """Turns that have begun on that worker."""
    return int((await client.stats())[worker]["turns"])


async def until_turns(client: Client, worker: int, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await turns(client, worker) < count:
            pass


def test_turns_that_call_objects_of_other_workers_end_before_any_door_closes(cluster: Cluster) -> None:
    load = Load()

    async def story() -> tuple[list[str], list[str]]:
        async with connect(cluster.url) as client, asyncio.TaskGroup() as callers:
            here, there = names_on(client, 0, "Slow", 2 * CALLERS), names_on(client, 1, "Slow", CALLERS)
            leaves = names_on(client, 1, "Leaf", 2 * CALLERS)
            calls: list[tuple[str, Callable[[], Awaitable[object]]]] = []
            for number in range(CALLERS):
                slow = client.get("Slow", here[number], timeout=RETRIES_END_S)
                calls.append(("direct", functools.partial(slow.pass_on, leaves[number], TURN_S)))
                detour = client.get("Slow", there[number], timeout=RETRIES_END_S)
                way, end = here[CALLERS + number], leaves[CALLERS + number]
                calls.append(("detour", functools.partial(detour.pass_on_through, way, end, DETOUR_S)))
            for leaf in names_on(client, 0, "Leaf", CALLERS) + leaves:
                calls.append(("read", client.get("Leaf", leaf, timeout=RETRIES_END_S).get))
            for call in calls:
                callers.create_task(load.repeat(*call))
            await load.until(lambda answered: min(answered["direct"], answered["detour"]) >= CALLERS)
            await asyncio.to_thread(cluster.stop)
            load.stopped = True
        return here + there, leaves

    slows, leaves = asyncio.run(story())
    assert load.errors, "the stop came while callers were at it"
    assert load.unexpected() == []
    assert errors_logged(cluster) == []
    cluster.start()
    with cluster.connect() as client:
        figures = [client.get("Slow", name).get() for name in slows]
        counted = sum(client.get("Leaf", name).get() for name in leaves)
    answered = load.answered["direct"] + load.answered["detour"]
    assert all(begun == ended for begun, ended in figures)
    assert sum(ended for _, ended in figures) == answered + load.answered["detour"]
    assert counted == answered


def test_a_worker_without_turns_serves_the_turns_of_the_others_until_they_end(
    cluster: Cluster, tmp_path: Path
) -> None:
    go = tmp_path / "go"

    async def story() -> int:
        async with connect(cluster.url) as client:
            (slow,), (leaf,) = names_on(client, 0, "Slow", 1), names_on(client, 1, "Leaf", 1)
            call = asyncio.ensure_future(client.get("Slow", slow).pass_on_when(str(go), leaf))
            await until_turns(client, 0, 1)
            stop = asyncio.ensure_future(asyncio.to_thread(cluster.stop))
            await asyncio.to_thread(
                cluster.wait_until,
                "the other worker has nothing left to do",
                lambda: "worker-1 runs no turn any more" in cluster.log_text(),
            )
            go.touch()
            # The leaf is not in memory yet, so that it has to be started by a worker that stops.
            counted = int(await call)
            await stop
            return counted

    assert asyncio.run(story()) == 1
    assert errors_logged(cluster) == []


def test_a_worker_that_is_stopped_alone_waits_for_no_other(cluster: Cluster, tmp_path: Path) -> None:
    go = tmp_path / "go"

    async def story() -> tuple[float, int]:
        async with connect(cluster.url) as client:
            (leaf,), (own,) = names_on(client, 1, "Leaf", 1), names_on(client, 0, "Leaf", 1)
            held = asyncio.ensure_future(client.get("Leaf", leaf).add_when(str(go)))
            await until_turns(client, 1, 1)
            began = time.monotonic()
            cluster.kill(cluster.worker_pids[0], signal.SIGTERM)
            await asyncio.to_thread(cluster.wait_until, "it has ended", lambda: exit_codes(cluster))
            assert await client.get("Leaf", own).add() == 1
            took = time.monotonic() - began
            assert not held.done()
            go.touch()
            return took, int(await held)

    took, counted = asyncio.run(story())
    assert took < LIMITS.drain_timeout_s / 2
    assert counted == 1
    assert exit_codes(cluster) == [WorkerExit.STOPPED]


def test_turns_elsewhere_that_call_a_worker_which_is_stopped_alone_go_on_with_its_successor(
    cluster: Cluster,
) -> None:
    load = Load()

    async def story() -> int:
        async with connect(cluster.url) as client:
            leaves = names_on(client, 0, "Leaf", 4)
            async with asyncio.TaskGroup() as callers:
                for name, leaf in zip(names_on(client, 1, "Slow", 4), leaves, strict=True):
                    # Mostly on their way, so that the leaves' worker finds a moment without turns.
                    call = functools.partial(client.get("Slow", name).pass_on, leaf, 0.02, 0.005)
                    callers.create_task(load.repeat(leaf, call))
                for stops in range(1, 4):
                    goal = load.answered + Counter(dict.fromkeys(leaves, 10))
                    await load.until(lambda answered, goal=goal: answered >= goal)
                    cluster.kill(cluster.worker_pids[0], signal.SIGTERM)
                    await asyncio.to_thread(
                        cluster.wait_until, "it has ended", lambda n=stops: len(exit_codes(cluster)) == n
                    )
                load.stopped = True
            return sum([await client.get("Leaf", leaf).get() for leaf in leaves])

    counted = asyncio.run(story())
    assert load.errors == []
    assert counted == load.answered.total()
    assert exit_codes(cluster) == [WorkerExit.STOPPED] * 3
    assert errors_logged(cluster) == []


class RawPeer:
    """A peer of worker 0's door that does what no link of ours does."""

    def __init__(self, client: Client) -> None:
        assert client.slot_map is not None
        (self._leaf,) = names_on(client, 0, "Leaf", 1)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, 1)
        self._socket.setsockopt(zmq.RCVTIMEO, int(DEADLINE_S * 1000))
        self._socket.connect(client.slot_map.seats[0].endpoint)

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy()

    def send(
        self, method: str, args: list[Any], *, count: int = 1, context: list[Any] | None = None
    ) -> bytes:
        key = id_from_name("Leaf", self._leaf).key
        calls = [[n + 1, "Leaf", key, self._leaf, method, args, None, 5_000, context] for n in range(count)]
        body = codec.encode([bytes(16), *calls])
        self._socket.send_multipart([protocol.header(protocol.BATCH, 0, 1), body])
        return body

    def receive(self) -> tuple[int, bytes]:
        """Kind and body of the next message."""
        header, body = self._socket.recv_multipart()
        return protocol.read_header(header).kind, body


def test_a_closing_door_gives_back_also_what_a_running_turn_elsewhere_asks(cluster: Cluster) -> None:
    async def story() -> None:
        async with connect(cluster.url) as client:
            with RawPeer(client) as peer:
                await asyncio.to_thread(exchange, peer)

    def exchange(peer: RawPeer) -> None:
        peer.send("add", [])
        assert peer.receive()[0] == protocol.REPLIES
        cluster.kill(cluster.worker_pids[0], signal.SIGTERM)
        assert peer.receive()[0] == protocol.GOODBYE
        # It does not acknowledge, so the door stays open for a while, for messages that were on their way.
        batch = peer.send("add", [], context=[[[bytes(32), "Slow/elsewhere"]], None])
        while (message := peer.receive())[0] == protocol.GOODBYE:
            pass
        kind, body = message
        assert kind == protocol.REFUSED
        error, sequences = read_refused(body)
        assert isinstance(error, NotExecuted)
        assert sequences == [1]
        assert batch in body

    asyncio.run(story())
    cluster.wait_until("it has ended", lambda: exit_codes(cluster))
    assert exit_codes(cluster) == [WorkerExit.STOPPED]


def test_a_peer_that_does_not_read_holds_up_a_stop_for_a_moment_only(cluster: Cluster) -> None:
    calls = 30

    async def story() -> float:
        async with connect(cluster.url) as client:
            with RawPeer(client) as peer:
                peer.send("pad", [MIB], count=calls)
                await until_turns(client, 0, calls)
                began = time.monotonic()
                cluster.kill(cluster.worker_pids[0], signal.SIGTERM)
                await asyncio.to_thread(cluster.wait_until, "it has ended", lambda: exit_codes(cluster))
                return time.monotonic() - began

    assert asyncio.run(story()) < LIMITS.drain_timeout_s / 2
    assert exit_codes(cluster) == [WorkerExit.STOPPED]
    assert errors_logged(cluster) == []


def test_turns_that_do_not_end_are_cut_off_in_time_and_the_exit_code_says_so(
    cluster: Cluster, tmp_path: Path
) -> None:
    never = str(tmp_path / "never")

    async def story() -> tuple[float, list[BaseException]]:
        async with connect(cluster.url, retry=False) as client:
            (refusing,), (blocking,) = names_on(client, 0, "Stubborn", 1), names_on(client, 1, "Stubborn", 1)
            calls = [
                asyncio.ensure_future(client.get("Stubborn", refusing).refuse(never)),
                asyncio.ensure_future(client.get("Stubborn", blocking).block(never)),
            ]
            for worker in (0, 1):
                await until_turns(client, worker, 1)
            began = time.monotonic()
            cluster.supervisor.terminate()
            code = await asyncio.to_thread(cluster.supervisor.wait, DEADLINE_S)
            assert code == RunExit.FORCED
            took = time.monotonic() - began
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            return took, [outcome for outcome in outcomes if isinstance(outcome, BaseException)]

    took, outcomes = asyncio.run(story())
    assert took < LIMITS.drain_timeout_s + LIMITS.goodbye_timeout_s + 2.0
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, OutcomeUnknown]
    assert exit_codes(cluster) == [WorkerExit.TURNS_CUT] * 2
    assert errors_logged(cluster) == ["worker stopped; turns that had not ended were cut off"] * 2
