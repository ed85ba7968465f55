"""Connections over real sockets: deadlines, bounds, and what two readers could understand differently."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.http_scene import (
    UPGRADE,
    Scene,
    echo,
    limits,
    read_all,
    respond,
    run,
    serving,
    status_of,
    until,
)
from perdure_gateway.connections import Phase

HEAD = b"POST / HTTP/1.1\r\nhost: h\r\n"


async def cut_after(scene: Scene, data: bytes) -> tuple[bytes, float]:
    """What came until the server ended the connection by itself, and when that was."""
    loop = asyncio.get_running_loop()
    reader, writer = await scene.connect()
    writer.write(data)
    began = loop.time()
    answer = await read_all(reader)
    writer.close()
    return answer, loop.time() - began


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"", b"408 Request Timeout"),
        (b"GET / HTTP/1.1\r\nhost: h\r\n", b"408 Request Timeout"),
        (HEAD + b"content-length: 5\r\n\r\nab", b"408 Request Timeout"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\na", b"408 Request Timeout"),
        (b"GET / HTTP/1.1\r\nhost: h\r\n\r\n", b"200 OK"),
    ],
    ids=["nothing", "half a head", "half a body", "half a chunk", "idle after an answer"],
)
def test_a_client_that_sends_nothing_more_is_cut_off_at_its_deadline(sent: bytes, told: bytes) -> None:
    bounds = limits(http_head_s=0.2, http_body_idle_s=0.2, http_keep_alive_s=0.2, http_linger_s=0.1)

    async def scenario() -> tuple[bytes, float]:
        async with serving(bounds=bounds) as scene:
            return await cut_after(scene, sent)

    answer, seconds = run(scenario)
    assert answer.startswith(b"HTTP/1.1 " + told)
    assert 0.1 < seconds < 5


def test_headers_that_drip_are_cut_off_however_steady_they_come() -> None:
    async def scenario() -> tuple[bytes, int]:
        async with serving(bounds=limits(http_head_s=0.3, http_linger_s=0.1)) as scene:
            reader, writer = await scene.connect()
            writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n")
            end = asyncio.ensure_future(read_all(reader))
            drops = 0
            while not (await asyncio.wait((end,), timeout=0.02))[0]:
                writer.write(b"a: b\r\n")
                drops += 1
            writer.close()
            return end.result(), drops

    answer, drops = run(scenario)
    assert status_of(answer) == 408
    assert drops < 100


def test_a_body_below_the_minimum_rate_is_cut_off_and_one_above_it_is_not() -> None:
    bounds = limits(http_body_idle_s=0.25, http_body_rate_bytes=2_000, http_linger_s=0.1)

    async def post(scene: Scene, piece: bytes) -> bytes:
        reader, writer = await scene.connect()
        writer.write(HEAD + b"connection: close\r\ncontent-length: 6000\r\n\r\n")
        end = asyncio.ensure_future(read_all(reader))
        sent = 0
        while sent < 6_000 and not (await asyncio.wait((end,), timeout=0.02))[0]:
            writer.write(piece)
            sent += len(piece)
        answer = await end
        writer.close()
        return answer

    async def scenario() -> tuple[bytes, bytes]:
        async with serving(bounds=bounds) as scene:
            return await post(scene, b"x"), await post(scene, b"x" * 500)

    slow, fast = run(scenario)
    assert status_of(slow) == 408
    assert fast.endswith(b"POST / 6000")


def test_a_body_that_the_application_does_not_want_yet_has_no_deadline() -> None:
    wanted = asyncio.Event()

    async def patient(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await wanted.wait()
            await echo(scope, receive, send)

    async def scenario() -> bytes:
        async with serving(patient, limits(http_body_idle_s=0.1, http_head_s=0.1)) as scene:
            body = b"x" * 1_000_000
            request = HEAD + b"connection: close\r\ncontent-length: 1000000\r\n\r\n" + body
            answer = asyncio.create_task(scene.ask(request))
            done, _ = await asyncio.wait((answer,), timeout=0.6)
            assert not done
            wanted.set()
            return await answer

    assert run(scenario).endswith(b"POST / 1000000")


@pytest.mark.parametrize(
    "head",
    [
        b"content-length: 4\r\ntransfer-encoding: chunked\r\n",
        b"content-length: 1\r\ncontent-length: 2\r\n",
        b"content-length: 1, 1\r\n",
        b"content-length: +1\r\n",
        b"transfer-encoding: xchunked\r\n",
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"a: b\r\n c\r\n",
        b"a: b\rc: d\r\n",
        b"a: b\nc: d\r\n",
        b"a : b\r\n",
        b"a: \x00\r\n",
        b"host: other\r\n",
    ],
)
def test_a_request_that_two_readers_could_read_differently_is_refused(head: bytes) -> None:
    reached = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            reached.append(scope)
            await echo(scope, receive, send)

    async def scenario() -> bytes:
        async with serving(app, limits(http_linger_s=0.05)) as scene:
            return await scene.ask(b"POST / HTTP/1.1\r\nhost: h\r\n" + head + b"\r\n0\r\n\r\n")

    answer = run(scenario)
    assert status_of(answer) in (400, 501)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert not reached


@pytest.mark.parametrize(
    "request_head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\nhost: h\n\n",
        b"POST / HTTP/1.0\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT h:443 HTTP/1.1\r\nhost: h\r\n\r\n",
        b"CONNECT / HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET http://other/ HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2.0\r\nhost: h\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
    ],
    ids=["no host", "bare LF", "chunked in 1.0", "a tunnel", "CONNECT", "two hosts", "0.9", "2.0", "TLS"],
)
def test_what_is_no_request_of_http_is_answered_with_an_error(request_head: bytes) -> None:
    async def scenario() -> bytes:
        async with serving(bounds=limits(http_linger_s=0.05)) as scene:
            return await scene.ask(request_head)

    assert status_of(run(scenario)) in (400, 501, 505)


def test_a_target_with_the_host_of_the_host_header_is_a_path() -> None:
    async def scenario() -> bytes:
        async with serving() as scene:
            return await scene.ask(b"GET http://H:80/a HTTP/1.1\r\nhost: h:80\r\nconnection: close\r\n\r\n")

    assert run(scenario).endswith(b"GET /a 0")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: h\r\na: " + b"x" * 70_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\n" + b"".join(b"h%d: 1\r\n" % n for n in range(300)) + b"\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\na: " + b"x" * 5_000_000,
    ],
    ids=["a value", "a path", "many", "without end"],
)
def test_headers_beyond_the_limit_are_refused(head: bytes) -> None:
    async def scenario() -> bytes:
        async with serving(bounds=limits(http_linger_s=0.05)) as scene:
            return await scene.ask(head)

    assert status_of(run(scenario)) == 431


def test_an_early_answer_reaches_a_client_that_still_sends_its_body() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await respond(send, 413, b"too large")

    async def scenario() -> bytes:
        async with serving(app, limits(http_linger_s=0.2)) as scene:
            return await scene.ask(HEAD + b"content-length: 900000\r\n\r\n" + b"x" * 900_000)

    answer = run(scenario)
    assert status_of(answer) == 413
    assert answer.endswith(b"too large")


def test_a_client_may_go_on_sending_for_a_moment_after_an_early_answer() -> None:
    """Else it would be reset while it writes, and many clients never look at the answer then."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await respond(send, 413, b"too large")

    async def scenario() -> bytes:
        async with serving(app, limits(http_linger_s=60.0)) as scene:
            reader, writer = await scene.connect()
            writer.write(HEAD + b"content-length: 900000\r\n\r\n" + b"x" * 100)
            await reader.readuntil(b"too large")
            [connection] = scene.server.server_state.connections
            for sent in range(1, 21):
                writer.write(b"x" * 10_000)
                await until(lambda sent=sent: connection._received >= sent * 10_000)
            return await read_all(reader)

    assert run(scenario) == b""


def test_what_follows_an_unread_body_is_no_further_request() -> None:
    """The rest of a refused body must not be taken for the next request of the connection."""
    paths = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            paths.append(scope["path"])
            await respond(send, 413, b"no")

    async def scenario() -> bytes:
        async with serving(app, limits(http_linger_s=0.1)) as scene:
            reader, writer = await scene.connect()
            writer.write(HEAD + b"content-length: 100000\r\n\r\n")
            await reader.readuntil(b"no")
            writer.write(b"GET /smuggled HTTP/1.1\r\nhost: h\r\n\r\n")
            rest = await read_all(reader)
            writer.close()
            return rest

    assert run(scenario) == b""
    assert paths == ["/"]


def test_requests_that_come_together_are_answered_in_order() -> None:
    async def scenario() -> bytes:
        async with serving() as scene:
            request = b"GET /%d HTTP/1.1\r\nhost: h\r\n%b\r\n"
            several = b"".join(request % (number, b"") for number in range(20))
            return await scene.ask(several + request % (20, b"connection: close\r\n"))

    answer = run(scenario)
    assert [answer.index(b"GET /%d " % n) for n in range(21)] == sorted(
        answer.index(b"GET /%d " % n) for n in range(21)
    )


def test_connections_over_the_bound_of_one_address_are_refused_and_room_is_made_again() -> None:
    async def scenario() -> tuple[bytes, bytes, int]:
        bounds = limits(http_connections_per_ip_max=2, http_linger_s=0.05)
        async with serving(bounds=bounds, exempt=()) as scene:
            first, second = await scene.connect(), await scene.connect()
            refused = await scene.ask(b"")
            for _, writer in (first, second):
                writer.close()
                await writer.wait_closed()
            await until(lambda: not scene.server.rules.admission.connections)
            return refused, await scene.get(), scene.server.rules.admission.refused

    refused, served, count = run(scenario)
    assert status_of(refused) == 503
    assert b"retry-after: 1" in refused
    assert status_of(served) == 200
    assert count == 1


def test_a_client_that_does_not_take_its_response_is_cut_off() -> None:
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1_000):
            await send({"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True})
            message = asyncio.ensure_future(receive())
            done, _ = await asyncio.wait((message,), timeout=0)
            if done and message.result()["type"] == "http.disconnect":
                left.set()
                return
            message.cancel()

    async def scenario() -> None:
        async with serving(app, limits(http_write_stall_s=0.2)) as scene:
            _, writer = await scene.connect()
            writer.transport.pause_reading()
            writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
            await left.wait()

    run(scenario)


def test_an_idle_connection_is_held_by_a_phase_and_no_timer_of_its_own() -> None:
    async def scenario() -> list[Phase]:
        async with serving() as scene:
            reader, writer = await scene.connect()
            writer.write(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
            await reader.readuntil(b"GET / 0")
            phases = [connection._phase for connection in scene.server.server_state.connections]
            assert all(c.timeout_keep_alive_task is None for c in scene.server.server_state.connections)
            writer.close()
            return phases

    assert run(scenario) == [Phase.IDLE]


def test_what_follows_on_a_chunked_body_adds_no_headers() -> None:
    """A proxy in front has not looked at it; there may stand who the user is."""
    headers = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await echo(scope, receive, send)
            headers.append(dict(scope["headers"]))

    async def scenario() -> bytes:
        async with serving(app) as scene:
            chunks = b"1\r\na\r\n0\r\nx-user: root\r\n\r\n"
            return await scene.ask(HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + chunks)

    assert run(scenario).endswith(b"POST / 1")
    assert [b"x-user" in found for found in headers] == [False]


@pytest.mark.parametrize("field", [b"a: b\r\n" * 1_000, b"a" * 6_000], ids=["many", "one without end"])
def test_what_follows_on_a_chunked_body_is_bounded(field: bytes) -> None:
    async def scenario() -> tuple[bytes, int]:
        async with serving(bounds=limits(http_linger_s=0.05)) as scene:
            reader, writer = await scene.connect()
            writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n")
            end, sent = asyncio.ensure_future(read_all(reader)), 0
            while not (await asyncio.wait((end,), timeout=0.001))[0] and sent < 20_000_000:
                writer.write(field)
                sent += len(field)
            writer.close()
            return await end, sent

    answer, sent = run(scenario)
    assert status_of(answer) == 431
    assert sent < 5_000_000


@pytest.mark.parametrize(
    "request_head",
    [
        b"POST / HTTP/1.1\r\nupgrade: websocket\r\ncontent-length: 4\r\n" + UPGRADE + b"\r\nabcd",
        b"GET / HTTP/1.1\r\nupgrade: websocket\r\ncontent-length: 4\r\n" + UPGRADE + b"\r\n",
        b"GET / HTTP/1.1\r\nupgrade: websocket\r\ncookie: " + b"x" * 9_000 + b"\r\n" + UPGRADE + b"\r\n",
        b"GET / HTTP/1.1\r\nupgrade: websocket\r\n" + b"a: b\r\n" * 200 + UPGRADE + b"\r\n",
        b"GET / HTTP/1.0\r\nupgrade: websocket\r\n" + UPGRADE + b"\r\n",
    ],
    ids=["POST", "a body", "a long header", "many headers", "HTTP/1.0"],
)
def test_an_upgrade_that_cannot_be_read_is_answered_and_holds_no_connection(request_head: bytes) -> None:
    async def scenario() -> tuple[bytes, int]:
        async with serving(bounds=limits(http_linger_s=0.05)) as scene:
            answer = await scene.ask(request_head)
            await until(lambda: not scene.server.server_state.connections)
            return answer, scene.server.rules.admission.connections

    answer, held = run(scenario)
    assert status_of(answer) == 400
    assert held == 0


def test_an_upgrade_to_what_is_not_spoken_here_is_an_ordinary_request_and_the_last_one() -> None:
    async def scenario() -> bytes:
        async with serving() as scene:
            return await scene.ask(
                b"GET /a HTTP/1.1\r\nhost: h\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
            )

    answer = run(scenario)
    assert answer.endswith(b"GET /a 0")
    assert b"connection: close" in answer.lower()


def test_an_early_answer_of_headers_alone_arrives_before_the_end() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await respond(send, 413, b"too large")

    async def scenario() -> bytes:
        async with serving(app, bounds=limits(http_linger_s=0.05)) as scene:
            return await scene.ask(b"HEAD / HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nab")

    assert status_of(run(scenario)) == 413
