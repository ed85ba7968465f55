"""One end of a connection: nothing is sent without one, and nothing that had arrived is lost with it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq

from perdure.channel import WouldBlock
from perdure.connection import Connection

from .fake_cluster import BATCH_HEADER, BusyDoor, end_context, in_both_loops, in_loop, soon

HANDSHAKE_S = 0.2
"""Many times what ZeroMQ takes for it."""


@dataclass
class User:
    """Who has a connection; `told` is what it heard, in order."""

    told: list[object] = field(default_factory=list)
    work_s: float = 0.0
    """How long each message takes."""
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    connection: Connection = field(init=False)

    def on_message(self, frames: list[bytes]) -> None:
        self.told.append(frames[1])
        busy_until = time.perf_counter() + self.work_s
        while time.perf_counter() < busy_until:
            pass

    def on_connected(self) -> None:
        self.told.append("connected")
        self.connected.set()

    def on_lost(self) -> None:
        self.told.append("lost")
        self.lost.set()

    def on_drained(self) -> None:
        pass

    def connect(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self.connection = Connection(
            asyncio.get_running_loop(),
            context,
            endpoint,
            on_message=self.on_message,
            on_drained=self.on_drained,
            on_connected=self.on_connected,
            on_lost=self.on_lost,
        )


@contextlib.asynccontextmanager
async def connecting(folder: Path) -> AsyncIterator[tuple[User, zmq.Context[zmq.Socket[bytes]]]]:
    """Somebody who connects to a door that is not there yet."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    user = User()
    user.connect(context, f"ipc://{folder}/w0.e1")
    try:
        yield user, context
    finally:
        user.connection.close()
        end_context(context)


@in_both_loops
async def check_a_life(folder: Path) -> None:
    async with connecting(folder) as (user, _):
        assert user.connection.connected is False
        with pytest.raises(WouldBlock, match="no connection"):
            user.connection.send((BATCH_HEADER, b"early"))
        door = BusyDoor(folder)
        await soon(user.connected.wait())
        user.connection.send((BATCH_HEADER, b"first"))
        identity, body = door.take()
        assert body == b"first"
        door.send(identity, b"reply")
        door.close()
        await soon(user.lost.wait())
        assert user.told == ["connected", b"reply", "lost"]
        assert user.connection.connected is False
        with pytest.raises(WouldBlock):
            user.connection.send((BATCH_HEADER, b"late"))


def test_a_connection_tells_that_it_stands_and_that_it_is_lost(tmp_path: Path) -> None:
    check_a_life(tmp_path)


@in_loop
async def test_nothing_is_sent_before_it_is_told_that_the_connection_stands(tmp_path: Path) -> None:
    async with connecting(tmp_path) as (user, _):
        door = BusyDoor(tmp_path)
        # The connection comes while somebody who has much to send keeps the loop from telling so.
        until = time.monotonic() + HANDSHAKE_S
        while time.monotonic() < until:
            with pytest.raises(WouldBlock, match="no connection"):
                user.connection.send((BATCH_HEADER, b"early"))
        await soon(user.connected.wait())
        user.connection.send((BATCH_HEADER, b"first"))
        assert door.take()[1] == b"first"
        door.close()


@in_loop
async def test_what_had_arrived_when_the_connection_broke_is_read_before_the_end_is_told(
    tmp_path: Path,
) -> None:
    async with connecting(tmp_path) as (user, _):
        door = BusyDoor(tmp_path)
        await soon(user.connected.wait())
        user.connection.send((BATCH_HEADER, b""))
        identity, _body = door.take()
        # The loop gets no turn until the other end is gone, and has more to read than it does in a moment.
        user.work_s = 0.0003
        for number in range(1_000):
            door.send(identity, b"%d" % number)
        door.close()
        await soon(user.lost.wait())
        assert user.told == ["connected", *[b"%d" % number for number in range(1_000)], "lost"]


@in_loop
async def test_what_has_arrived_can_be_read_without_waiting_for_the_loop(tmp_path: Path) -> None:
    async with connecting(tmp_path) as (user, _):
        door = BusyDoor(tmp_path)
        await soon(user.connected.wait())
        user.connection.send((BATCH_HEADER, b""))
        identity, _body = door.take()
        for number in range(1_000):
            door.send(identity, b"%d" % number)
        door.close()
        while len(user.told) < 1_001:
            user.connection.read_rest()
        assert user.told == ["connected", *[b"%d" % number for number in range(1_000)]]


@in_loop
async def test_nothing_is_sent_once_the_connection_has_broken_though_the_loop_does_not_know(
    tmp_path: Path,
) -> None:
    async with connecting(tmp_path) as (user, _):
        door = BusyDoor(tmp_path)
        await soon(user.connected.wait())
        door.close()
        refused_in_time(user)
        assert user.told == ["connected"]


def refused_in_time(user: User) -> None:
    """ZeroMQ's own thread has to notice the end; the loop gets no turn."""
    for _ in range(100_000):
        try:
            user.connection.send((BATCH_HEADER, b""))
        except WouldBlock:
            if not user.connection.connected:
                return
    pytest.fail("the end was never noticed")


@in_loop
async def test_what_zeromq_kept_of_a_lost_connection_never_reaches_the_successor(tmp_path: Path) -> None:
    async with connecting(tmp_path) as (user, context):
        door = BusyDoor(tmp_path)
        await soon(user.connected.wait())
        door.close()
        refused_in_time(user)
        await soon(user.lost.wait())
        user.connection.close()
        user.connected.clear()
        successor = BusyDoor(tmp_path)
        user.connect(context, successor.endpoint)
        await soon(user.connected.wait())
        user.connection.send((BATCH_HEADER, b"for the new one"))
        assert successor.take()[1] == b"for the new one"
        successor.close()


@in_loop
async def test_a_connection_that_was_lost_stays_lost_though_somebody_answers_again(tmp_path: Path) -> None:
    async with connecting(tmp_path) as (user, _):
        door = BusyDoor(tmp_path)
        await soon(user.connected.wait())
        door.close()
        successor = BusyDoor(tmp_path)
        await soon(user.lost.wait())
        # ZeroMQ connects again within 0.1 s; that is told to nobody, and nothing is sent there.
        user.connected.clear()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(user.connected.wait(), 0.3)
        assert user.told == ["connected", "lost"]
        with pytest.raises(WouldBlock):
            user.connection.send((BATCH_HEADER, b"for whom?"))
        successor.close()


@in_loop
async def test_a_closed_connection_tells_nothing_any_more(tmp_path: Path) -> None:
    async with connecting(tmp_path) as (user, _):
        door = BusyDoor(tmp_path)
        await soon(user.connected.wait())
        user.connection.send((BATCH_HEADER, b""))
        door.close()
        # The end is on its way to being told.
        while user.connection.connected:
            with contextlib.suppress(WouldBlock):
                user.connection.send((BATCH_HEADER, b""))
        user.connection.close()
        user.connection.close()
        with pytest.raises(WouldBlock):
            user.connection.send((BATCH_HEADER, b""))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(user.lost.wait(), 0.05)
        assert user.told == ["connected"]


@pytest.mark.parametrize("endpoint", ["nonsense", "", "ipc:///" + "x" * 200])
def test_an_endpoint_that_is_none_leaves_no_socket_behind(endpoint: str) -> None:
    @in_loop
    async def check() -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        with pytest.raises(zmq.ZMQError):
            User().connect(context, endpoint)
        end_context(context)

    check()


def test_without_descriptors_no_socket_is_left_behind(tmp_path: Path) -> None:
    @in_loop
    async def check() -> None:
        for sockets in (1, 2):
            context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
            context.set(zmq.MAX_SOCKETS, sockets)
            with pytest.raises(zmq.ZMQError):
                User().connect(context, f"ipc://{tmp_path}/nobody")
            end_context(context)

    check()
