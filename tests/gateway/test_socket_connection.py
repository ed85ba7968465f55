"""Real WebSocket connections of the gateway's server: the protocol's edges, ends, pings and slow readers.

The client's part is the websockets library's, or single frames that no library would write.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Opcode

from sdk.fake_cluster import in_both_loops, in_loop, soon

from .gateway_scene import LATER
from .server_scene import Served, served

TEXT, BINARY, CONT = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
PING, PONG, CLOSE = Opcode.PING, Opcode.PONG, Opcode.CLOSE


def echo(server: Served) -> None:
    """The worker sends back whatever comes."""
    worker = server.scene.worker

    def handle(item: Any) -> int:
        key, data = item.args
        number = int.from_bytes(key[16:], "big")
        kind = 0 if isinstance(data, str) else 1
        server.scene.background.append(asyncio.ensure_future(worker.send([kind, data, [number]])))
        return 0

    worker.frame = handle


def close_body(code: int, reason: bytes = b"") -> bytes:
    return struct.pack("!H", code) + reason


def subfolder(folder: Path) -> Path:
    made = folder / str(len(list(folder.iterdir())))
    made.mkdir()
    return made


# --- a library's client


@in_both_loops
async def test_text_and_binary_come_back_up_to_the_limit_of_size(tmp_path: Path) -> None:
    async with served(subfolder(tmp_path), socket_frame_bytes_max=70_000) as server:
        echo(server)
        async with connect(server.url, max_size=None) as client:
            assert client.response.headers.get("sec-websocket-extensions") is None  # offered: deflate
            for data in ("", "é", b"", b"\x00\xff", "x" * 126, b"y" * 66_000, "z" * 70_000):
                await client.send(data)
                assert await soon(client.recv()) == data
            await client.send("x" * 70_001)
            with pytest.raises(ConnectionClosed) as caught:
                await soon(client.recv())
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
        assert (await soon(server.scene.worker.ends.get()))[1:4:2] == [1009, False]


@in_loop
async def test_a_clients_close_is_answered_with_its_code_and_told_once(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        async with connect(server.url) as client:
            await client.close(4321, "enough")
            assert client.close_code == 4321
        assert (await soon(server.scene.worker.ends.get()))[1:] == [4321, "enough", True, None]
        wire = await server.wire()
        wire.says(CLOSE, b"")
        assert await wire.closed_with() == 1005
        assert (await soon(server.scene.worker.ends.get()))[1:4] == [1005, "", True]
        assert server.scene.worker.ends.empty()


@in_both_loops
async def test_a_client_that_vanishes_is_told_as_1006_once(tmp_path: Path) -> None:
    async with served(subfolder(tmp_path)) as server:
        reset, ended = await server.wire(), await server.wire()
        reset.vanish()
        assert (await soon(server.scene.worker.ends.get()))[1:] == [1006, "", False, None]
        ended.writer.close()  # FIN without a close
        assert (await soon(server.scene.worker.ends.get()))[1:] == [1006, "", False, None]
        assert server.scene.worker.ends.empty()
        assert len(server.scene.link) == 0


@in_loop
async def test_a_denied_upgrade_is_an_http_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with served(tmp_path) as server:
        server.scene.worker.fetch = lambda item: [403, [[b"x-why", b"no"]], b"members only", None]
        with pytest.raises(InvalidStatus) as caught:
            await soon(connect(server.url).__aenter__())
        response = caught.value.response
        assert (response.status_code, response.body, response.headers["x-why"]) == (
            403,
            b"members only",
            "no",
        )
    assert not [record for record in caplog.records if record.levelname == "ERROR"]  # nobody did wrong


@in_loop
async def test_frames_written_before_the_objects_close_arrive_before_it(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        async with connect(server.url) as client:
            number = server.scene.worker.number()
            frames = [[0, str(n), [number]] for n in range(100)]
            await server.scene.worker.send(*frames, [2, [4000, "x"], [number]])
            for n in range(100):
                assert await soon(client.recv()) == str(n)
            with pytest.raises(ConnectionClosed) as caught:
                await soon(client.recv())
            assert caught.value.rcvd is not None
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4000, "x")
        assert server.scene.worker.ends.empty()


# --- the protocol's edges (RFC 6455)


@in_loop
async def test_a_message_in_fragments_with_control_frames_between_them_is_one_message(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        echo(server)
        wire = await server.wire()
        wire.says(TEXT, b"frag", fin=False)
        wire.says(PING, b"p" * 125)
        wire.says(CONT, "é".encode()[:1], fin=False)
        wire.says(PONG, b"unasked")
        wire.says(CONT, b"", fin=False)
        wire.says(CONT, "é".encode()[1:], fin=True)
        assert (await wire.frame(PONG)).data == b"p" * 125
        assert (await wire.frame(TEXT)).data == "fragé".encode()


VIOLATIONS = {
    "a reserved bit": lambda wire: wire.says(TEXT, b"x", rsv1=True),
    "a reserved bit of a control frame": lambda wire: wire.says(PING, b"x", rsv3=True),
    "a reserved opcode": lambda wire: wire.write(b"\x83\x80\0\0\0\0"),
    "a reserved control opcode": lambda wire: wire.write(b"\x8b\x80\0\0\0\0"),
    "an unmasked frame": lambda wire: wire.write(b"\x81\x01x"),
    "a large control frame": lambda wire: wire.says(PING, b"x" * 126),
    "a control frame in fragments": lambda wire: wire.says(PING, b"x", fin=False),
    "a continuation of nothing": lambda wire: wire.says(CONT, b"x"),
    "a new message within another": lambda wire: (wire.says(TEXT, b"a", fin=False), wire.says(TEXT, b"b")),
    "a close with half a code": lambda wire: wire.says(CLOSE, b"\x03"),
    "a close with a code of nobody": lambda wire: wire.says(CLOSE, close_body(999)),
    "a close that cannot be sent": lambda wire: wire.says(CLOSE, close_body(1005)),
    "a close that says it was lost": lambda wire: wire.says(CLOSE, close_body(1006)),
    "a close of a future standard": lambda wire: wire.says(CLOSE, close_body(2999)),
    "a close out of range": lambda wire: wire.says(CLOSE, close_body(5000)),
}


@in_loop
async def test_what_the_protocol_forbids_ends_the_connection_with_1002(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        for what, violate in VIOLATIONS.items():
            wire = await server.wire()
            violate(wire)
            assert await wire.closed_with() == 1002, what
            end = await soon(server.scene.worker.ends.get())
            assert (end[1], end[3]) == (1002, False), what
        assert server.scene.worker.frames.empty()


@in_loop
async def test_text_that_is_no_utf8_ends_the_connection_with_1007(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        for parts in ([b"\xff"], [b"ok \xc3"], [b"\xed\xa0\x80"], [b"\xf4\x90\x80\x80"], [b"\xc3", b"("]):
            wire = await server.wire()
            for index, part in enumerate(parts):
                wire.says(CONT if index else TEXT, part, fin=index == len(parts) - 1)
            assert await wire.closed_with() == 1007, parts
            assert (await soon(server.scene.worker.ends.get()))[1] == 1007
        assert server.scene.worker.frames.empty()


@in_loop
async def test_a_close_reason_that_is_no_utf8_ends_the_connection_with_1007(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        wire = await server.wire()
        wire.says(CLOSE, close_body(1000, b"\xff"))
        assert await wire.closed_with() == 1007


@in_loop
async def test_codes_that_may_be_sent_are_answered_and_told(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        for code in (1000, 1001, 1003, 1007, 1014, 3000, 4999):
            wire = await server.wire()
            wire.says(CLOSE, close_body(code, b"why"))
            assert await wire.closed_with() == code
            assert (await soon(server.scene.worker.ends.get()))[1:3] == [code, "why"]


@in_loop
async def test_a_frame_that_claims_to_be_huge_is_refused_before_it_comes(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        wire = await server.wire()
        wire.write(b"\x82\xff" + (1 << 30).to_bytes(8, "big") + b"\0\0\0\0")
        assert await wire.closed_with() == 1009


@in_loop
async def test_fragments_count_together_for_the_limit(tmp_path: Path) -> None:
    async with served(tmp_path, socket_frame_bytes_max=1_000) as server:
        wire = await server.wire()
        for index in range(3):
            wire.says(CONT if index else BINARY, b"x" * 400, fin=False)
        assert await wire.closed_with() == 1009


@in_loop
async def test_bytes_after_a_close_are_ignored(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        wire = await server.wire()
        wire.says(CLOSE, close_body(1000))
        wire.says(TEXT, b"late")
        assert await wire.closed_with() == 1000
        assert (await soon(server.scene.worker.ends.get()))[1] == 1000
        assert server.scene.worker.frames.empty()


# --- pings and silence


@in_loop
async def test_a_client_that_answers_no_ping_is_gone(tmp_path: Path) -> None:
    async with served(tmp_path, socket_ping_s=0.05, socket_ping_timeout_s=0.1) as server:
        wire = await server.wire()
        assert (await wire.event()).opcode is PING
        assert (await soon(server.scene.worker.ends.get()))[1:4] == [1006, "", False]
        assert len(server.scene.link) == 0


@in_loop
async def test_a_client_that_answers_pings_stays(tmp_path: Path) -> None:
    async with served(tmp_path, socket_ping_s=0.02, socket_ping_timeout_s=0.2) as server:
        wire = await server.wire()
        for _ in range(20):
            wire.says(PONG, (await wire.frame(PING)).data)
        assert len(server.scene.link) == 1


@in_loop
async def test_a_client_that_waits_for_its_object_is_not_taken_for_gone(tmp_path: Path) -> None:
    async with served(tmp_path, socket_ping_s=0.02, socket_ping_timeout_s=0.02) as server:
        server.scene.worker.frame = lambda item: LATER
        wire = await server.wire()
        wire.says(TEXT, b"one")
        wire.says(TEXT, b"two")  # read, and then nothing more until the first is handled
        assert (await soon(server.scene.worker.frames.get()))[1] == "one"
        for _ in range(10):  # each a ping whose answer nobody reads
            await wire.frame(PING)
        assert len(server.scene.link) == 1
        wire.vanish()
        await server.scene.worker.answer()
        assert (await soon(server.scene.worker.frames.get()))[1] == "two"
        await server.scene.worker.answer()
        assert (await soon(server.scene.worker.ends.get()))[1] == 1006


def narrow(server: Served) -> Any:
    """A connection with small buffers in the kernel."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect(("127.0.0.1", server.port))
    return client


@in_loop
async def test_a_client_that_reads_nothing_is_closed_and_cut_and_others_get_all(tmp_path: Path) -> None:
    limits: dict[str, Any] = {"socket_queue_bytes_max": 200_000, "socket_close_wait_s": 0.2}
    async with served(tmp_path, **limits) as server:
        quick = await server.wire()
        slow = narrow(server)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        key = b"GET /here HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        await loop.sock_sendall(
            slow, key + b"sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        while b"\r\n\r\n" not in await soon(loop.sock_recv(slow, 4_096)):
            pass
        numbers = [server.scene.worker.number(0), server.scene.worker.number(1)]
        data = b"x" * 100_000
        for _ in range(60):  # more than the kernel and the server's buffers take
            await server.scene.worker.send([1, data, numbers])
            assert (await quick.frame(BINARY)).data == data
        end = await soon(server.scene.worker.ends.get())
        assert end[1:4] == [1013, "too slow", False]
        while len(server.server.server_state.connections) > 1:  # cut, although its buffers are full
            assert (await soon(server.scene.worker.marks.get()))[0] == server.scene.link.gateway_id
        slow.close()
        assert server.scene.worker.ends.empty()
        assert len(server.scene.link) == 1


# --- the end of the server


@in_loop
async def test_a_server_that_stops_says_1001_and_waits_until_the_objects_know(tmp_path: Path) -> None:
    async with served(tmp_path) as server:
        worker = server.scene.worker
        worker.closed = lambda item: LATER
        async with connect(server.url) as client:
            server.server.should_exit = True
            with pytest.raises(ConnectionClosed) as caught:
                await soon(client.recv())
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1001
        assert (await soon(worker.ends.get()))[1:4] == [1001, "the server is stopping", False]
        assert server.server.server_state.tasks
        await worker.answer()
        while server.server.server_state.tasks:
            await soon(worker.marks.get())
