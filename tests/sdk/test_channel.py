"""ZeroMQ sockets on an event loop: no message waits for a wake-up that does not come."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import select
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zmq

from perdure.channel import Channel, PeerGone, WouldBlock, open_dealer, open_router
from perdure.limits import Limits

from .fake_cluster import PATIENCE_S, end_context, in_both_loops, in_loop, soon

BUDGET = Limits().read_budget_messages
HIGH_WATER = Limits().pipe_messages_max


@dataclass
class Inbox:
    """Collects what a channel receives."""

    messages: list[list[bytes]] = field(default_factory=list)
    drains: int = 0
    awaited: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def take(self, frames: list[bytes]) -> None:
        self.messages.append(frames)
        if len(self.messages) >= self.awaited:
            self.arrived.set()

    def drained(self) -> None:
        self.drains += 1

    async def has(self, count: int) -> None:
        self.awaited = count
        if len(self.messages) < count:
            self.arrived.clear()
            await soon(self.arrived.wait())


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    end_context(context)


@dataclass
class Pair:
    """A dealer's channel, whose messages are in `inbox`, and its peer, a plain ROUTER that knows its name."""

    channel: Channel
    inbox: Inbox
    router: zmq.Socket[bytes]
    identity: bytes

    def push(self, body: bytes) -> None:
        """A message to the channel."""
        self.router.send_multipart((self.identity, body))

    def push_numbers(self, count: int) -> None:
        """Numbered messages, as fast as the pipe takes them."""
        for number in range(count):
            self.push(number.to_bytes(4, "big"))

    @property
    def numbers(self) -> list[int]:
        return [int.from_bytes(frames[0], "big") for frames in self.inbox.messages]


@contextlib.asynccontextmanager
async def paired(context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> AsyncIterator[Pair]:
    # Not one that a closed socket had: ZeroMQ unlinks its path some time later.
    endpoint = f"ipc://{folder}/door-{secrets.token_hex(4)}"
    router = open_router(context, [endpoint])
    router.setsockopt(zmq.SNDTIMEO, int(PATIENCE_S * 1000))
    inbox = Inbox()
    loop = asyncio.get_running_loop()
    channel = Channel(loop, open_dealer(context, endpoint), inbox.take, inbox.drained)
    await send_when_connected(channel, b"hello")
    readable = router.poll(int(PATIENCE_S * 1000))
    assert readable
    identity, hello = router.recv_multipart()
    assert hello == b"hello"
    # Until the look that follows the send, a message may come without a signal: that look would see it.
    while channel._scheduled:
        await asyncio.sleep(0)  # sleep: one tick of the loop
    try:
        yield Pair(channel, inbox, router, identity)
    finally:
        channel.close()
        router.close(0)


async def send_when_connected(channel: Channel, body: bytes) -> None:
    """The first message, as soon as the connection takes it."""
    loop = asyncio.get_running_loop()
    sent = loop.create_future()

    def again() -> None:
        try:
            channel.send((body,))
        except WouldBlock:
            loop.call_later(0.001, again)
        else:
            sent.set_result(None)

    again()
    await soon(sent)


def is_signalled(socket: zmq.Socket[bytes]) -> bool:
    """Whether the socket's descriptor would wake a loop now."""
    return bool(select.select([socket.getsockopt(zmq.FD)], [], [], 0)[0])


def wait_for_signal(socket: zmq.Socket[bytes]) -> None:
    assert select.select([socket.getsockopt(zmq.FD)], [], [], PATIENCE_S)[0]


# --- receiving


def test_a_burst_larger_than_the_read_budget_is_read_without_further_wake_ups(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    @in_both_loops
    async def check() -> None:
        async with paired(context, tmp_path) as pair:
            count = 10_000
            # In a thread: the pipe takes less than that while nobody reads.
            pushed = asyncio.get_running_loop().run_in_executor(None, pair.push_numbers, count)
            await pair.inbox.has(count)
            await soon(pushed)
            assert pair.numbers == list(range(count))
            assert pair.channel.messages_received == count
            # No drain took more than its budget, so that others had their turn in between.
            assert pair.inbox.drains >= count // BUDGET

    check()


@in_loop
async def test_a_burst_that_is_there_in_full_before_the_first_look_is_read(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    async with paired(context, tmp_path) as pair:
        # Nothing of the loop runs here, so all of this is one edge of the descriptor.
        pair.push_numbers(3 * BUDGET)
        await pair.inbox.has(3 * BUDGET)
        assert pair.numbers == list(range(3 * BUDGET))


@in_loop
async def test_other_work_of_the_loop_gets_its_turn_during_a_burst(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    async with paired(context, tmp_path) as pair:
        counts: list[int] = []
        loop = asyncio.get_running_loop()

        def work() -> None:
            counts.append(len(pair.inbox.messages))
            if counts[-1] < 3 * BUDGET:
                loop.call_soon(work)

        pair.push_numbers(3 * BUDGET)
        work()
        await pair.inbox.has(3 * BUDGET)
        # A drain that the descriptor asked for, and one that an earlier drain did.
        assert max(after - before for before, after in itertools.pairwise(counts)) <= 2 * BUDGET


@in_loop
async def test_messages_stay_in_the_socket_while_none_may_be_read_and_come_then_in_order(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    async with paired(context, tmp_path) as pair:
        full = False

        def take(frames: list[bytes]) -> None:
            nonlocal full
            pair.inbox.take(frames)
            full = len(pair.inbox.messages) == 3

        pair.channel._on_message, pair.channel._may_read = take, lambda: not full
        pair.push_numbers(100)
        await pair.inbox.has(3)
        for _ in range(100):
            await asyncio.sleep(0)  # sleep: one tick of the loop
        assert pair.numbers == [0, 1, 2]
        full = False
        await pair.inbox.has(100)
        assert pair.numbers == list(range(100))


@in_loop
async def test_messages_that_came_before_the_channel_are_read(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    router = open_router(context, [f"ipc://{tmp_path}/door"])
    dealer = context.socket(zmq.DEALER)
    dealer.connect(f"ipc://{tmp_path}/door")
    dealer.send_multipart((b"early", b"bird"))
    wait_for_signal(router)
    while not router.getsockopt(zmq.EVENTS) & zmq.POLLIN:
        wait_for_signal(router)
    inbox = Inbox()
    channel = Channel(asyncio.get_running_loop(), router, inbox.take)
    await inbox.has(1)
    assert inbox.messages[0][1:] == [b"early", b"bird"]
    dealer.close(0)
    channel.close()


@in_loop
async def test_a_message_of_many_frames_arrives_whole(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    async with paired(context, tmp_path) as pair:
        frames = [bytes([number]) * number for number in range(50)]
        pair.router.send_multipart((pair.identity, *frames))
        await pair.inbox.has(1)
        assert pair.inbox.messages == [frames]


@pytest.mark.parametrize("look_now", [False, True])
@in_loop
async def test_a_message_that_came_while_sending_is_seen_though_the_send_took_the_edge(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, look_now: bool
) -> None:
    async with paired(context, tmp_path) as pair:
        assert not is_signalled(pair.channel.socket)
        pair.push(b"in")
        take_the_edge(pair.channel.socket, lambda: pair.channel.send((b"out",), look_now=look_now))
        await pair.inbox.has(1)
        assert pair.inbox.messages == [[b"in"]]


@pytest.mark.parametrize("look_now", [False, True])
@in_loop
async def test_a_message_that_came_while_a_send_failed_is_seen_too(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, look_now: bool
) -> None:
    def fail_to_send() -> None:
        with pytest.raises(PeerGone):
            channel.send((b"nobody", b"out"), look_now=look_now)

    inbox = Inbox()
    router = open_router(context, [f"ipc://{tmp_path}/door"])
    channel = Channel(asyncio.get_running_loop(), router, inbox.take)
    dealer = context.socket(zmq.DEALER)
    dealer.connect(f"ipc://{tmp_path}/door")
    dealer.send(b"hello")
    await inbox.has(1)
    dealer.send(b"in")
    take_the_edge(router, fail_to_send)
    await inbox.has(2)
    assert inbox.messages[1][1] == b"in"
    dealer.close(0)
    channel.close()


def take_the_edge(socket: zmq.Socket[bytes], send: Callable[[], None]) -> None:
    """A message comes, and before the loop looks a send swallows the sign of it."""
    wait_for_signal(socket)
    for _ in range(100):
        send()
        if not is_signalled(socket):
            return
        # ZeroMQ looks at its mailbox in a send at most once a millisecond.
        select.select([], [], [], 0.001)
    pytest.fail("no send took the edge")


def fill_the_pipe(channel: Channel) -> int:
    """How many numbered messages it took."""
    for number in range(10 * HIGH_WATER):
        try:
            channel.send((number.to_bytes(4, "big"), b"body"))
        except WouldBlock:
            return number
    pytest.fail("the pipe never is full")


@in_loop
async def test_an_error_in_the_handler_does_not_stall_the_channel(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    async with paired(context, tmp_path) as pair:
        take = pair.inbox.take

        def stumble(frames: list[bytes]) -> None:
            take(frames)
            if len(pair.inbox.messages) % 3 == 0:
                raise LookupError("a bug of ours")

        pair.channel._on_message = stumble
        for number in range(BUDGET):
            pair.push(bytes([number % 256]))
        await pair.inbox.has(BUDGET)
    assert len(problems) == BUDGET // 3
    assert all(isinstance(problem["exception"], LookupError) for problem in problems)


@in_loop
async def test_a_handler_may_close_its_channel_and_hears_no_more(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    async with paired(context, tmp_path) as pair:
        take = pair.inbox.take

        def close_after_two(frames: list[bytes]) -> None:
            take(frames)
            if len(pair.inbox.messages) == 2:
                pair.channel.close()

        pair.channel._on_message = close_after_two
        for _ in range(5):
            pair.push(b"x")
        await pair.inbox.has(2)
        await in_three_turns_of_the_loop()
        assert len(pair.inbox.messages) == 2
        assert pair.channel.closed
        pair.channel.close()


async def in_three_turns_of_the_loop() -> None:
    loop = asyncio.get_running_loop()
    for _ in range(3):
        turned = loop.create_future()
        loop.call_soon(turned.set_result, None)
        await turned


# --- sending


@in_loop
async def test_a_full_pipe_would_block_and_takes_more_when_it_has_drained(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    async with paired(context, tmp_path) as pair:
        sent = fill_the_pipe(pair.channel)
        assert sent >= HIGH_WATER // 2
        received = 0
        while received < sent:
            assert pair.router.poll(int(PATIENCE_S * 1000))
            _, number, _ = pair.router.recv_multipart()
            assert int.from_bytes(number, "big") == received
            received += 1
        await send_when_connected(pair.channel, b"again")
        assert pair.router.poll(int(PATIENCE_S * 1000))


@in_loop
async def test_nothing_is_sent_before_there_is_a_connection(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    inbox = Inbox()
    channel = Channel(
        asyncio.get_running_loop(), open_dealer(context, f"ipc://{tmp_path}/nobody"), inbox.take
    )
    with pytest.raises(WouldBlock):
        channel.send((b"header", b"body"))
    channel.close()


@in_loop
async def test_sending_to_an_unknown_peer_says_that_it_is_gone(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    inbox = Inbox()
    router = open_router(context, [f"ipc://{tmp_path}/door"])
    channel = Channel(asyncio.get_running_loop(), router, inbox.take)
    with pytest.raises(PeerGone):
        channel.send((b"nobody", b"header", b"body"))
    channel.close()


@in_loop
async def test_sending_through_a_closed_channel_says_that_it_is_gone(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    async with paired(context, tmp_path) as pair:
        pair.channel.close()
        with pytest.raises(PeerGone):
            pair.channel.send((b"header", b"body"))
        await in_three_turns_of_the_loop()


@in_loop
async def test_a_drain_of_slow_messages_lets_the_loop_do_other_work(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    async with paired(context, tmp_path) as pair:
        loop = asyncio.get_running_loop()
        other_work: list[int] = []

        def take(frames: list[bytes]) -> None:
            until = time.monotonic() + Limits.read_budget_s / 2
            while time.monotonic() < until:
                pass
            pair.inbox.take(frames)
            if len(pair.inbox.messages) == 1:
                loop.call_soon(lambda: other_work.append(len(pair.inbox.messages)))

        pair.channel._on_message = take
        for _ in range(20):
            pair.push(b"slow")
        await pair.inbox.has(20)
        assert other_work[0] < 20
