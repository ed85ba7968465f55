"""Pipes are bounded in bytes: of large messages ZeroMQ takes few, and more when those have left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from perdure.channel import Channel, WouldBlock, open_context, open_router
from perdure.limits import Limits

from .fake_cluster import PATIENCE_S, end_context, in_loop, soon


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = open_context()
    yield context
    end_context(context)


@in_loop
async def test_large_messages_are_bounded_in_bytes_until_they_have_left(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/door"
    hellos: asyncio.Queue[list[bytes]] = asyncio.Queue()
    channel = Channel(asyncio.get_running_loop(), open_router(context, [endpoint]), hellos.put_nowait)
    silent, other = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    for name, dealer in ((b"silent", silent), (b"other", other)):
        dealer.setsockopt(zmq.ROUTING_ID, name)
        dealer.setsockopt(zmq.RCVHWM, 1)
        dealer.connect(endpoint)
        dealer.send(b"hello")
        await soon(hellos.get())
    large = bytes(Limits().pipe_bytes_max // 4)
    sent = await send_until_it_would_block(channel, b"silent", large)
    # What the kernel and the other side's ZeroMQ hold comes on top.
    assert 4 <= sent <= 8
    assert channel.unsent_bytes <= Limits().pipe_bytes_max
    channel.send((b"silent", b"small"))
    channel.send((b"other", large))
    received = [await receive(silent) for _ in range(sent)]
    assert {len(each) for each in received} == {len(large)}
    assert await receive(silent) == b"small"
    assert await receive(other) == large
    huge = bytes(2 * Limits().pipe_bytes_max)  # goes alone, when nothing else is on its way
    await send_when_there_is_room(channel, b"silent", huge)
    with pytest.raises(WouldBlock):
        channel.send((b"silent", large))
    assert await receive(silent) == huge
    await send_when_there_is_room(channel, b"silent", large)
    silent.close(0)
    other.close(0)
    channel.close()


async def send_until_it_would_block(channel: Channel, peer: bytes, body: bytes) -> int:
    """How many of the messages were taken until none left any more for a while."""
    sent, refused_since = 0, time.monotonic()
    while time.monotonic() - refused_since < 0.2:
        try:
            channel.send((peer, body))
        except WouldBlock:
            await asyncio.sleep(0.001)  # sleep: ZeroMQ's thread works meanwhile
        else:
            sent, refused_since = sent + 1, time.monotonic()
    return sent


async def send_when_there_is_room(channel: Channel, peer: bytes, body: bytes) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return channel.send((peer, body))
        except WouldBlock:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)  # sleep: as above


async def receive(dealer: zmq.Socket[bytes]) -> bytes:
    """The next message of a plain socket, whose one frame is given."""
    assert await asyncio.to_thread(dealer.poll, int(PATIENCE_S * 1000))
    return dealer.recv()
