"""Links to workers' doors: the right incarnation, told of its death at once, silent after its goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zmq

from perdure import codec, protocol
from perdure.links import DoorLinks
from perdure.protocol import Header
from perdure.slotmap import Seat, SlotMap, contiguous_ranges

from .fake_cluster import BusyDoor, Door, Message, end_context, in_loop, soon

BATCH = protocol.header(protocol.BATCH)


def map_of(*doors: Door | None) -> SlotMap:
    seats = tuple(Seat(door.epoch, door.endpoint) if door is not None else Seat(0, "") for door in doors)
    return SlotMap(1, tuple(contiguous_ranges(64, len(seats))), seats)


@dataclass
class Caller:
    """Who owns the links; keeps what they tell."""

    links: DoorLinks = field(init=False)
    messages: asyncio.Queue[tuple[int, int, Header, bytes]] = field(default_factory=asyncio.Queue)
    deaths: asyncio.Queue[tuple[int, int]] = field(default_factory=asyncio.Queue)
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    told: list[str] = field(default_factory=list)
    """Messages and deaths in the order in which they were told."""

    def on_message(self, worker: int, epoch: int, header: Header, body: bytes) -> None:
        self.told.append("message")
        self.messages.put_nowait((worker, epoch, header, body))

    def on_death(self, worker: int, epoch: int) -> None:
        self.told.append("death")
        self.deaths.put_nowait((worker, epoch))

    async def send(self, worker: int, epoch: int, body: bytes = b"\x90") -> None:
        """Sends as soon as the link takes it, as a client does after each drain and now and then."""
        loop = asyncio.get_running_loop()
        sent = loop.create_future()

        def again() -> None:
            if self.links.send(worker, epoch, BATCH, body):
                sent.set_result(None)
            else:
                loop.call_later(0.001, again)

        again()
        await soon(sent)


@contextlib.asynccontextmanager
async def linked(folder: Path, workers: int = 1) -> AsyncIterator[tuple[Caller, list[Door]]]:
    """A caller with links to the doors of some workers at epoch 1."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    caller = Caller()
    caller.links = DoorLinks(
        asyncio.get_running_loop(),
        context,
        on_message=caller.on_message,
        on_death=caller.on_death,
        on_drained=caller.drained.set,
    )
    doors = [Door(folder, worker, 1) for worker in range(workers)]
    caller.links.follow(map_of(*doors))
    try:
        yield caller, doors
    finally:
        caller.links.close()
        for door in doors:
            await door.close()
        end_context(context)


async def reply(door: Door, message: Message, value: Any) -> None:
    await door.send_replies(message.identity, [[1, 0, value]])


@in_loop
async def test_a_message_reaches_the_door_of_its_worker_and_the_reply_comes_back(tmp_path: Path) -> None:
    async with linked(tmp_path, 2) as (caller, doors):
        await caller.send(1, 1, b"\x91\x05")
        message = await doors[1].take()
        assert message.body == b"\x91\x05"
        assert doors[0].received.empty()
        await reply(doors[1], message, "five")
        worker, epoch, header, body = await soon(caller.messages.get())
        assert (worker, epoch, header.kind, header.number) == (1, 1, protocol.REPLIES, 1)
        assert codec.decode(body) == [[1, 0, "five"]]
        await soon(caller.drained.wait())


@in_loop
async def test_nothing_is_sent_to_an_incarnation_that_has_no_link(tmp_path: Path) -> None:
    async with linked(tmp_path) as (caller, doors):
        await caller.send(0, 1)
        assert caller.links.send(0, 2, BATCH, b"\x90") is False
        assert caller.links.send(1, 1, BATCH, b"\x90") is False
        await doors[0].take()
        assert doors[0].received.empty()


@in_loop
async def test_a_link_that_is_not_connected_yet_takes_nothing(tmp_path: Path) -> None:
    async with linked(tmp_path) as (caller, _):
        nobody = SlotMap(2, (range(64),), (Seat(2, f"ipc://{tmp_path}/nobody"),))
        caller.links.follow(nobody)
        assert caller.links.send(0, 2, BATCH, b"\x90") is False


@in_loop
async def test_the_death_of_an_incarnation_is_told_at_once_and_once(tmp_path: Path) -> None:
    async with linked(tmp_path, 2) as (caller, doors):
        await caller.send(0, 1)
        await caller.send(1, 1)
        await doors[0].take()
        await doors[0].close()
        assert await asyncio.wait_for(caller.deaths.get(), 1.0) == (0, 1)
        assert caller.links.send(0, 1, BATCH, b"\x90") is False
        # The neighbour's link is as it was.
        message = await doors[1].take()
        await reply(doors[1], message, None)
        await soon(caller.messages.get())
        assert caller.told == ["death", "message"]


@in_loop
async def test_replies_that_were_on_their_way_are_read_before_the_death_is_told(tmp_path: Path) -> None:
    async with linked(tmp_path) as (caller, doors):
        await caller.send(0, 1)
        message = await doors[0].take()
        for number in range(20):
            await reply(doors[0], message, number)
        await doors[0].close(linger_ms=1000)  # as for a process that died with its replies in the kernel
        assert await soon(caller.deaths.get()) == (0, 1)
        assert caller.told == ["message"] * 20 + ["death"]


@in_loop
async def test_what_a_gone_incarnation_still_said_can_be_read_before_its_calls_are_given_up(
    tmp_path: Path,
) -> None:
    async with linked(tmp_path) as (caller, _):
        (folder := tmp_path / "busy").mkdir()
        door = BusyDoor(folder)
        alone = SlotMap(2, (range(64),), (Seat(1, door.endpoint),))
        caller.links.close()
        caller.links.follow(alone)
        await caller.send(0, 1)
        identity, _body = door.take()
        for number in range(100):
            door.send(identity, codec.encode([[number, 0, None]]), protocol.header(protocol.REPLIES, 0, 1))
        door.close()
        caller.links.read_gone(alone)
        assert not caller.told, "who is not gone is read in its turn"
        while len(caller.told) < 100:
            caller.links.read_gone(alone.with_seat(0, Seat(2, "ipc://successor")))
        assert caller.told == ["message"] * 100


@in_loop
async def test_a_new_incarnation_gets_a_link_of_its_own(tmp_path: Path) -> None:
    async with linked(tmp_path) as (caller, doors):
        await caller.send(0, 1)
        await doors[0].take()
        old, new = doors[0], Door(tmp_path, 0, 2)
        doors.append(new)
        caller.links.follow(map_of(new))
        assert caller.links.send(0, 1, BATCH, b"\x90") is False
        await caller.send(0, 2, b"\x91\x02")
        assert (await new.take()).body == b"\x91\x02"
        assert old.received.empty()


@in_loop
async def test_following_the_same_map_again_keeps_the_links(tmp_path: Path) -> None:
    async with linked(tmp_path, 2) as (caller, doors):
        await caller.send(0, 1)
        first = await doors[0].take()
        for _ in range(3):
            caller.links.follow(map_of(*doors))
        assert caller.links.send(0, 1, BATCH, b"\x91\x07") is True
        again = await doors[0].take()
        assert again.identity == first.identity


@in_loop
async def test_a_worker_has_no_link_to_itself(tmp_path: Path) -> None:
    async with linked(tmp_path, 2) as (caller, doors):
        caller.links.close()
        caller.links.follow(map_of(*doors), skip=0)
        await caller.send(1, 1)
        assert caller.links.send(0, 1, BATCH, b"\x90") is False


@in_loop
async def test_a_worker_that_is_down_has_no_link(tmp_path: Path) -> None:
    async with linked(tmp_path, 2) as (caller, doors):
        caller.links.follow(map_of(None, doors[1]))
        await caller.send(1, 1)
        assert caller.links.send(0, 1, BATCH, b"\x90") is False


@in_loop
async def test_a_goodbye_is_acknowledged_and_nothing_is_sent_afterwards(tmp_path: Path) -> None:
    async with linked(tmp_path) as (caller, doors):
        (door,) = doors
        await caller.send(0, 1)
        message = await door.take()
        await door.goodbye(message.identity)
        acknowledged = await door.take(protocol.GOODBYE_ACK)
        assert (acknowledged.header.worker, acknowledged.header.number) == (0, 1)
        assert caller.links.send(0, 1, BATCH, b"\x90") is False
        # A goodbye that is repeated is not acknowledged again; what the door still has to say is heard.
        await door.goodbye(message.identity)
        await reply(door, message, "last")
        await soon(caller.messages.get())
        assert door.seen == [protocol.BATCH, protocol.GOODBYE_ACK]
        await door.close()
        assert await soon(caller.deaths.get()) == (0, 1)
        assert door.seen == [protocol.BATCH, protocol.GOODBYE_ACK]


@in_loop
async def test_a_message_that_cannot_be_understood_is_logged_and_the_next_one_is_heard(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(tmp_path) as (caller, doors):
        await caller.send(0, 1)
        message = await doors[0].take()
        with caplog.at_level(logging.WARNING, "perdure.links"):
            for frames in ((b"junk",), (b"\x02" * 16, b"")):
                await doors[0].socket.send_multipart((message.identity, *frames))
            # No header of three frames is a message either.
            await doors[0].socket.send_multipart((message.identity, BATCH, b"", b""))
            await reply(doors[0], message, "good")
            await soon(caller.messages.get())
        assert caller.told == ["message"]
        assert "was not understood" in caplog.text


@in_loop
async def test_a_door_that_cannot_be_linked_is_tried_again_by_the_next_look(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with linked(tmp_path) as (caller, doors):
        nonsense = Seat(2, "no endpoint at all")
        seats = (nonsense, Seat(1, doors[0].endpoint))
        caller.links.close()
        caller.links.follow(SlotMap(2, tuple(contiguous_ranges(64, 2)), seats))
        await caller.send(1, 1)
        assert caller.links.send(0, 2, BATCH, b"\x90") is False
        assert "no link to the door no endpoint at all" in caplog.text
        caller.links.follow(map_of(doors[0]))
        await caller.send(0, 1)
