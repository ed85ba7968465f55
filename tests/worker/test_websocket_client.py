"""Objects as WebSocket clients, against a real server: sends wait for the disk, sockets end with turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import uvloop
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK

from perdure import DurableObject, Limits, blocking, durable, interleaved
from perdure.errors import InvalidArgument, MessageTooLarge
from worker.host_scene import Scene, Sent

LIMITS = Limits(websocket_client_message_bytes_max=1_000, websocket_client_timeout_s=0.3)


class Dialer(DurableObject):
    """Opens sockets to the URL that it is given."""

    value: int = durable(0)

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.kept: Any = None

    async def echo(self, url: str, *messages: str | bytes) -> list[Any]:
        async with self.ctx.connect_websocket(url, headers={"x-who": "me"}, subprotocols=["a", "b"]) as ws:
            answers: list[Any] = [ws.subprotocol]
            for message in messages:
                await ws.send(message)
                answers.append(await ws.recv())
            return answers

    async def write_and_send(self, url: str) -> None:
        async with self.ctx.connect_websocket(url) as ws:
            self.value = 1
            await ws.send("one")
            self.value = 2
            raise LookupError("after the send")

    async def write_and_open(self, url: str) -> None:
        self.value = 1
        async with self.ctx.connect_websocket(url):
            pass

    async def write_and_leave(self, url: str) -> None:
        async with self.ctx.connect_websocket(url):
            self.value = 1

    async def all(self, url: str) -> list[Any]:
        async with self.ctx.connect_websocket(url) as ws:
            return [message async for message in ws]

    async def caught(self, url: str, what: str) -> str:
        """What an operation raises, with the socket's own limits."""
        async with self.ctx.connect_websocket(url) as ws:
            try:
                if what == "large":
                    await ws.send("x" * 1_001)
                elif what == "receive":
                    await ws.recv()
                elif what == "timeout":
                    await ws.recv(timeout=0.05)
                elif what == "type":
                    await ws.send(5)  # type: ignore[arg-type]
                elif what == "flood":
                    while True:
                        await ws.send(bytes(1_000))
            except Exception as error:
                self.errors.append(error)
                return type(error).__name__
        return "nothing"

    async def wait(self, url: str) -> None:
        async with self.ctx.connect_websocket(url) as ws:
            await ws.recv()

    @interleaved
    async def wait_beside(self, url: str) -> Any:
        async with self.ctx.connect_websocket(url) as ws:
            self.value += 1
            return await ws.recv()

    async def leave_in_a_task(self, url: str) -> None:
        opened = asyncio.Event()

        async def hold() -> None:
            async with self.ctx.connect_websocket(url) as ws:
                opened.set()
                await ws.recv()

        self.tasks.append(asyncio.create_task(hold()))
        await opened.wait()

    async def keep(self, url: str) -> None:
        async with self.ctx.connect_websocket(url) as ws:
            self.kept = ws

    async def use_kept(self) -> str:
        try:
            await self.kept.send("x")
        except RuntimeError as error:
            return str(error)
        return "sent"

    async def open_twice(self, url: str) -> str:
        dialled = self.ctx.connect_websocket(url)
        async with dialled:
            pass
        texts = []
        for use in (dialled.__aenter__, dialled.recv):
            try:
                await use()
            except RuntimeError as error:
                texts.append(str(error))
        return " ".join(texts)

    @blocking
    def in_a_thread(self, url: str) -> str:
        async def use() -> None:
            async with self.ctx.connect_websocket(url):
                pass

        try:
            asyncio.run(use())
        except RuntimeError as error:
            return str(error)
        return "opened"

    async def state(self) -> int:
        return self.value


class World:
    """A scene and a server in one real loop."""

    def __init__(self, limits: Limits = LIMITS, new_loop: Callable[[], Any] = uvloop.new_event_loop) -> None:
        self.loop = new_loop()
        self.scene = Scene(Dialer, loop=self.loop, limits=limits)
        self.received: list[Any] = []
        self.headers: list[Any] = []
        self.closes: list[tuple[int | None, str | None]] = []
        self.script: Callable[[ServerConnection], Any] = self.echo
        self.server: Server = self.loop.run_until_complete(self._serve())
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{port}/path"

    async def _serve(self) -> Server:
        def select(_: ServerConnection, offered: Any) -> Any:
            return "b" if "b" in offered else None

        return await serve(self._serve_one, "127.0.0.1", 0, select_subprotocol=select)

    async def _serve_one(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.headers.append(connection.request.headers)
        try:
            await self.script(connection)
            await connection.wait_closed()
        finally:
            self.closes.append((connection.close_code, connection.close_reason))

    async def echo(self, connection: ServerConnection) -> None:
        async for message in connection:
            self.received.append(message)
            await connection.send(message)

    def call(self, method: str, *args: Any, disk: bool = True) -> Sent:
        """Calls the object and waits for its answer; with `disk` every commit gets there at once."""
        sent = self.scene.start(Dialer, "d", method, *args)
        self.wait(lambda: sent.answered, disk=disk)
        return sent

    def wait(self, condition: Callable[[], bool], *, disk: bool = True) -> None:
        def look() -> bool:
            if disk:
                self.scene.commit()
            return condition()

        self.scene.wait(look)

    def close(self) -> None:
        self.server.close(close_connections=True)
        self.loop.run_until_complete(self.server.wait_closed())
        self.scene.close()


@pytest.fixture(params=[uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    world = World(new_loop=request.param)
    yield world
    world.close()


def test_texts_and_bytes_go_both_ways_with_headers_and_a_subprotocol(world: World) -> None:
    assert world.call("echo", world.url, "caf\u00e9", b"\0\xff").result() == ["b", "caf\u00e9", b"\0\xff"]
    assert world.received == ["caf\u00e9", b"\0\xff"]
    assert world.headers[0]["x-who"] == "me"
    world.wait(lambda: bool(world.closes))
    assert world.closes == [(1000, "")]


def test_a_message_leaves_when_what_was_written_before_it_is_durable(world: World) -> None:
    sent = world.scene.start(Dialer, "d", "write_and_send", world.url)
    world.wait(lambda: bool(world.scene.jobs), disk=False)
    world.scene.settle()
    assert world.received == []
    world.wait(lambda: sent.answered)
    world.wait(lambda: bool(world.closes))
    assert world.received == ["one"]
    assert world.closes == [(1011, "")], "the block has raised"
    assert world.call("state").result() == 1, "what was sent has happened, what came after it has not"


@pytest.mark.parametrize(("method", "seen"), [("write_and_open", 0), ("write_and_leave", 1)])
def test_opening_and_closing_wait_for_the_disk_too(world: World, method: str, seen: int) -> None:
    sent = world.scene.start(Dialer, "d", method, world.url)
    world.wait(lambda: bool(world.scene.jobs), disk=False)
    world.scene.settle()
    assert (len(world.headers), world.closes) == (seen, [])
    world.wait(lambda: sent.answered and bool(world.closes))
    assert world.closes == [(1000, "")]


def test_messages_are_iterated_over_until_the_peer_closes(world: World) -> None:
    async def three(connection: ServerConnection) -> None:
        for number in range(20):
            await connection.send(str(number))

    async def and_close(connection: ServerConnection) -> None:
        await three(connection)
        await connection.close(1000, "done")

    world.script = and_close
    assert world.call("all", world.url).result() == [str(number) for number in range(20)]


def test_a_peer_that_closes_is_an_error_with_its_code_and_reason(world: World) -> None:
    async def end(connection: ServerConnection) -> None:
        await connection.close(4000, "go away")

    world.script = end
    assert world.call("caught", world.url, "receive").result() == "ConnectionClosedError"
    (error,) = world.scene.resident(Dialer, "d").instance.errors
    assert isinstance(error, ConnectionClosedError)
    assert error.rcvd is not None
    assert (error.rcvd.code, error.rcvd.reason) == (4000, "go away")


@pytest.mark.parametrize(
    ("what", "kind"), [("large", MessageTooLarge), ("type", InvalidArgument), ("timeout", TimeoutError)]
)
def test_what_cannot_be_sent_or_does_not_come_is_told(world: World, what: str, kind: Any) -> None:
    world.call("caught", world.url, what)
    (error,) = world.scene.resident(Dialer, "d").instance.errors
    assert isinstance(error, kind)
    assert world.received == []


def test_a_message_that_is_too_large_to_be_received_closes_the_socket(world: World) -> None:
    async def flood(connection: ServerConnection) -> None:
        await connection.send("x" * 1_001)

    world.script = flood
    assert world.call("caught", world.url, "receive").result() == "ConnectionClosedError"
    world.wait(lambda: bool(world.closes))
    assert world.closes[0][0] == 1009


def test_a_peer_that_does_not_read_costs_a_bounded_time(world: World) -> None:
    async def deaf(connection: ServerConnection) -> None:
        connection.transport.pause_reading()
        await gone
        connection.transport.abort()

    gone = world.loop.create_future()
    world.script = deaf
    began = world.loop.time()
    try:
        assert world.call("caught", world.url, "flood").result() == "TimeoutError"
    finally:
        gone.set_result(None)
    assert world.loop.time() - began < 10, "sending and closing take 0.3 s each at most"


@pytest.mark.parametrize("url", ["http://x", "x"])
def test_what_is_no_url_of_a_websocket_is_refused(world: World, url: Any) -> None:
    with pytest.raises(Exception, match="ws:// or wss://"):
        world.call("echo", url).result()


def test_a_server_that_is_not_there_fails_the_turn(world: World) -> None:
    with pytest.raises(Exception, match=r"ConnectionRefusedError|OSError"):
        world.call("wait", "ws://127.0.0.1:1/").result()


def test_a_turn_that_is_cut_at_its_limit_takes_its_socket_along() -> None:
    world = World(replace(LIMITS, turn_max_s=0.2))
    sent = world.scene.start(Dialer, "d", "wait", world.url, timeout_ms=100)
    world.wait(lambda: sent.answered and bool(world.closes))
    with pytest.raises(Exception, match="ran longer than"):
        sent.result()
    assert world.closes == [(1006, "")]
    world.close()


def test_interleaved_turns_have_a_socket_each_and_commit_where_they_wait(world: World) -> None:
    waiting: list[ServerConnection] = []

    async def hold(connection: ServerConnection) -> None:
        waiting.append(connection)

    world.script = hold
    sents = [world.scene.start(Dialer, "d", "wait_beside", world.url) for _ in range(2)]
    world.wait(lambda: len(waiting) == 2)
    world.wait(lambda: world.scene.fields(Dialer, "d") == {"value": 2})
    for number, connection in enumerate(waiting):
        world.loop.run_until_complete(connection.send(str(number)))
    world.wait(lambda: all(sent.answered for sent in sents))
    assert {sent.result() for sent in sents} == {"0", "1"}


def test_a_socket_that_a_task_holds_is_cut_when_its_turn_has_ended(world: World) -> None:
    assert world.call("leave_in_a_task", world.url).result() is None
    world.wait(lambda: bool(world.closes))
    assert world.closes == [(1006, "")]
    (task,) = world.scene.resident(Dialer, "d").instance.tasks
    world.wait(task.done)
    assert isinstance(task.exception(), ConnectionClosedError | ConnectionClosedOK)


def test_a_socket_cannot_be_used_in_another_turn_nor_twice_nor_in_a_thread(world: World) -> None:
    world.call("keep", world.url)
    assert "belongs to the turn that opened it" in world.call("use_kept").result()
    texts = world.call("open_twice", world.url).result()
    assert "opened before" in texts
    assert "is not open" in texts
    assert "thread of its own" in world.call("in_a_thread", world.url).result()
