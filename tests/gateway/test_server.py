"""The server around connections: its start, its stop, proxies, and how many connections it can take."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

import pytest

from gateway.http_scene import Scene, echo, limits, respond, serving, status_of
from perdure.limits import Limits
from perdure_gateway.server import connections_bound


async def who(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the client's address and the scheme."""
    if scope["type"] == "http":
        await respond(send, 200, f"{scope['client'][0]} {scope['scheme']}".encode())


FORWARDED = b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n%b\r\n" % (
    b"x-forwarded-for: 203.0.113.9, 192.0.2.1\r\nx-forwarded-proto: https\r\n"
)


@pytest.mark.parametrize(
    ("trusted", "seen"),
    [
        ((), b"127.0.0.1 http"),
        (("10.0.0.0/8",), b"127.0.0.1 http"),
        (("127.0.0.1",), b"192.0.2.1 https"),
        (("127.0.0.0/8", "192.0.2.0/24"), b"203.0.113.9 https"),
    ],
)
def test_forwarded_addresses_are_believed_of_trusted_proxies_only(trusted: Any, seen: bytes) -> None:
    async def scenario() -> bytes:
        async with serving(who, trusted_proxies=trusted) as scene:
            return await scene.ask(FORWARDED)

    assert asyncio.run(scenario()).endswith(seen)


def test_a_stop_lets_a_running_request_end_and_takes_no_new_one() -> None:
    async def scenario() -> tuple[bytes, bool]:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                begun.set()
                await go_on.wait()
                await echo(scope, receive, send)

        async with serving(slow) as scene:
            idle, _ = await scene.connect()
            running = asyncio.create_task(scene.get("/slow"))
            await begun.wait()
            scene.server.should_exit = True
            assert await idle.read() == b"", "an idle connection is closed at once"
            refused = await is_refused(scene)
            go_on.set()
            return await running, refused

    answer, refused = asyncio.run(scenario())
    assert status_of(answer) == 200
    assert b"connection: close" in answer
    assert refused


async def is_refused(scene: Scene) -> bool:
    try:
        await scene.connect()
    except ConnectionRefusedError:
        return True
    return False


def test_the_lifespan_of_the_application_is_run() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while scope["type"] == "lifespan":
            message = await receive()
            seen.append(message["type"])
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def scenario() -> None:
        async with serving(app, limits()):
            assert seen == ["lifespan.startup"]

    asyncio.run(scenario())
    assert seen == ["lifespan.startup", "lifespan.shutdown"]


def test_connections_leave_descriptors_for_everything_else() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1_000, hard))
        assert connections_bound(Limits()) == 1_000 - Limits().http_spare_descriptors
        assert connections_bound(limits(http_connections_max=10)) == 10
        assert connections_bound(limits(http_spare_descriptors=2_000)) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
