"""The shell around the routing core, run in the test's own loop where the test must hold that loop."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
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
        self.client = self.context.socket(zmq.DEALER)
        self.client.set_hwm(0)
        self.config = RouterConfig((f"ipc://{run}/router",), f"ipc://{run}/control", 1, os.getpid())

    def bound(self, name: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(zmq.ROUTER)
        socket.set_hwm(0)
        socket.bind(f"ipc://{self.run}/{name}")
        return socket

    def slot_map(self, version: int, endpoint: str) -> bytes:
        slot_map = SlotMap(version, tuple(contiguous_ranges(8, 1)), (Seat(1, endpoint),))
        return codec.encode({"type": "map", "map": slot_map.to_wire()})


@pytest.fixture()
def peers() -> Iterator[Peers]:
    with tempfile.TemporaryDirectory(prefix="perdure") as run:
        peers = Peers(Path(run))
        yield peers
        peers.context.destroy(linger=0)


async def receive(socket: zmq.Socket[bytes]) -> list[bytes]:
    """The next message; the loop goes on meanwhile."""
    deadline = time.monotonic() + 10
    while not socket.poll(0):
        assert time.monotonic() < deadline, "no message came"
        await asyncio.sleep(0.001)  # sleep: lets the router run in this loop
    return socket.recv_multipart()


def run_beside(router: asyncio.Task[None] | None, peers: Peers, scene: object) -> None:
    """Runs `scene(router's identity at the control socket)` beside a router in one loop, and stops it."""

    async def play() -> None:
        stopping = asyncio.Event()
        process = RouterProcess(peers.config, asyncio.get_running_loop(), Limits(), stopping)
        running = asyncio.create_task(process.run())
        identity, _ = await receive(peers.control)
        peers.client.connect(peers.config.endpoints[0])
        await scene(identity)  # type: ignore[operator]
        stopping.set()
        await running

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(play())
