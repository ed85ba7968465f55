"""The shell around the routing core, run in the test's own loop where the test must hold that loop."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgpack
import pytest
import uvloop
import zmq

from perdure import codec, protocol
from perdure.limits import Limits
from perdure.slotmap import Seat, SlotMap, contiguous_ranges
from perdure_router.config import RouterConfig
from perdure_router.process import RouterProcess

CALLS = 4 * Limits().read_budget_messages


class Peers:
    """The supervisor, one door and one client, all of them sockets in the hand of the test."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.control = self.bound("control")
        self.door = self.bound("w0.e1")
        self.client, self.watcher = self.connected(), self.connected()
        self.router = b""
        """The router's identity at the control socket."""

    def bound(self, name: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.ROUTER)
        socket.set_hwm(0)
        socket.bind(f"ipc://{self.run}/{name}")
        return socket

    def connected(self) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.DEALER)
        socket.set_hwm(0)
        socket.connect(f"ipc://{self.run}/router")
        return socket

    def send_map(self, version: int, endpoint: str) -> None:
        slot_map = SlotMap(version, tuple(contiguous_ranges(8, 1)), (Seat(1, endpoint),))
        message = codec.encode({"type": "map", "map": slot_map.to_wire()})
        self.control.send_multipart([self.router, message])

    async def play(self, scene: Callable[[Peers], Awaitable[None]], limits: Limits) -> None:
        """Runs the scene beside a router in one loop, and stops the router."""
        config = RouterConfig((f"ipc://{self.run}/router",), f"ipc://{self.run}/control", 1, os.getpid())
        stopping = asyncio.Event()
        router = RouterProcess(config, asyncio.get_running_loop(), limits, stopping)
        running = asyncio.create_task(router.run())
        try:
            self.router, _ = await receive(self.control)
            await scene(self)
        finally:  # a scene that fails must leave no sockets to the tests that follow
            stopping.set()
            await running


def play(peers: Peers, scene: Callable[[Peers], Awaitable[None]], limits: Limits | None = None) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(peers.play(scene, limits or Limits()))


@pytest.fixture
def peers() -> Iterator[Peers]:
    with tempfile.TemporaryDirectory(prefix="perdure") as run:
        peers = Peers(Path(run))
        try:
            yield peers
        finally:
            peers.context.destroy(linger=0)


async def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    """The next message; the loop goes on meanwhile."""
    deadline = time.monotonic() + 10
    while not socket.poll(0):
        assert time.monotonic() < deadline, "no message came"
        await asyncio.sleep(0.001)  # sleep: the router runs in this loop and must get its turn
    return socket.recv_multipart()


def test_what_a_worker_said_before_its_death_is_heard_before_the_news_of_it(peers: Peers) -> None:
    async def scene(peers: Peers) -> None:
        peers.send_map(1, f"ipc://{peers.run}/w0.e1")
        # A call that comes before the map is refused; who greets gets the map as soon as it is there.
        peers.watcher.send_multipart([protocol.header(protocol.HELLO), b""])
        await receive(peers.watcher)
        for sequence in range(CALLS):
            peers.client.send_multipart([protocol.call_header(bytes(32), sequence), b""])
        entries: list[list[bytes]] = []
        while len(entries) < CALLS:
            identity, _, body = await receive(peers.door)
            flat = msgpack.unpackb(body)
            entries += [flat[at : at + 3] for at in range(0, len(flat), 3)]
        # One message for each reply: more of them than the router reads before it looks at the rest.
        for origin, header, _ in entries:
            sequence = protocol.read_call_header(header).sequence
            reply = [origin, protocol.header(protocol.REPLY, 0, 1, sequence), b"\x93answer"]
            bundle = [protocol.header(protocol.BUNDLE, 0, 1), msgpack.packb(reply)]
            peers.door.send_multipart([identity, *bundle])
        time.sleep(0.3)  # sleep: holds the router's loop until ZeroMQ's threads have delivered all of it
        peers.send_map(2, "")
        time.sleep(0.1)  # sleep: as above
        bodies = {(await receive(peers.client))[1] for _ in range(CALLS)}
        assert bodies == {b"\x93answer"}

    play(peers, scene)


def test_time_passes_in_the_core_and_silent_clients_are_forgotten(peers: Peers) -> None:
    deadline = time.monotonic() + 10

    async def clients() -> int:
        assert time.monotonic() < deadline
        while (message := codec.decode((await receive(peers.control))[1]))["type"] != "beat":
            pass
        count: int = message["stats"]["clients"]
        return count

    async def scene(peers: Peers) -> None:
        peers.client.send_multipart([protocol.header(protocol.HELLO), b""])
        while await clients() == 0:
            pass
        while await clients() == 1:
            pass

    play(peers, scene, Limits(heartbeat_interval_s=0.01, client_forgotten_s=0.1))
