"""The raw client against a socket that plays the router."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from benchmarks.perdure_raw import RawClient, connect_raw
from perdure import codec, ids, protocol

TIMEOUT_S = 10.0
SHARD_UNAVAILABLE = ["ShardUnavailable", "the worker starts", {}]


class Router:
    """What a router receives and sends, message by message."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._client = b""

    def receive(self) -> tuple[protocol.CallHeader, list[Any]]:
        self._client, header, body = self._socket.recv_multipart()
        assert protocol.read_header(header).kind == protocol.CALL
        return protocol.read_call_header(header), codec.decode(body)

    def reply(self, sequence: int, status: int, payload: Any) -> None:
        header = protocol.header(protocol.REPLY, 0, 1, sequence)
        self._socket.send_multipart([self._client, header, msgpack.packb([sequence, status, payload])])

    def send(self, kind: int, body: Any) -> None:
        self._socket.send_multipart([self._client, protocol.header(kind), msgpack.packb(body)])


def play(folder: Path, scenario: Callable[[RawClient, Router], Awaitable[None]]) -> None:
    """Runs `scenario` with a client of three counters that is connected to a router."""

    async def run() -> None:
        url = f"ipc://{folder}/router"
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, int(TIMEOUT_S * 1000))
        try:
            socket.bind(url)
            with connect_raw(url, "Counter", 3) as client:
                async with asyncio.timeout(TIMEOUT_S):
                    await scenario(client, Router(socket))
        finally:
            socket.close()
            context.term()

    asyncio.run(run())


def test_each_call_is_one_message_as_the_protocol_says(tmp_path: Path) -> None:
    async def scenario(client: RawClient, router: Router) -> None:
        for index in (2, 0):
            client.increment(index)
        for sequence, name in ((1, "counter-00002"), (2, "counter-00000")):
            key = ids.id_from_name("Counter", name).key
            header, (client_id, item) = router.receive()
            assert (header.object_id, header.sequence) == (key, sequence)
            assert len(client_id) == 16
            assert protocol.Item(*item) == protocol.Item(
                sequence, "Counter", key, name, "increment", [], None, 30_000, None
            )

    play(tmp_path, scenario)


def test_replies_reach_their_calls_in_any_order(tmp_path: Path) -> None:
    async def scenario(client: RawClient, router: Router) -> None:
        calls = [client.increment(index) for index in range(3)]
        sequences = [router.receive()[0].sequence for _ in calls]
        for sequence in reversed(sequences):
            router.reply(sequence, protocol.STATUS_RESULT, sequence * 100)
        assert await asyncio.gather(*calls) == [sequence * 100 for sequence in sequences]

    play(tmp_path, scenario)


def test_a_call_that_met_no_worker_is_sent_again_under_a_new_sequence(tmp_path: Path) -> None:
    async def scenario(client: RawClient, router: Router) -> None:
        call = client.increment(1)
        first, _ = router.receive()
        router.reply(first.sequence, protocol.STATUS_ERROR, SHARD_UNAVAILABLE)
        second, _ = await asyncio.to_thread(router.receive)
        assert second.sequence > first.sequence
        assert second.object_id == first.object_id
        router.reply(second.sequence, protocol.STATUS_RESULT, 1)
        assert await call == 1

    play(tmp_path, scenario)


def test_a_call_that_failed_otherwise_fails_with_the_servers_words(tmp_path: Path) -> None:
    async def scenario(client: RawClient, router: Router) -> None:
        call = client.increment(1)
        router.reply(router.receive()[0].sequence, protocol.STATUS_ERROR, ["Overloaded", "full", {}])
        with pytest.raises(RuntimeError, match="Overloaded"):
            await call

    play(tmp_path, scenario)


def test_a_message_that_is_not_understood_fails_all_calls(tmp_path: Path) -> None:
    async def scenario(client: RawClient, router: Router) -> None:
        calls = [client.increment(0), client.increment(1)]
        router.receive()
        router.send(protocol.REFUSED, ["InvalidArgument", "no call", {}])
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, RuntimeError)
            assert "InvalidArgument" in str(outcome)

    play(tmp_path, scenario)


def test_messages_of_unknown_kinds_are_ignored(tmp_path: Path) -> None:
    async def scenario(client: RawClient, router: Router) -> None:
        call = client.increment(0)
        sequence = router.receive()[0].sequence
        router.send(200, [sequence, protocol.STATUS_RESULT, 7])
        router.reply(sequence, protocol.STATUS_RESULT, 1)
        assert await call == 1

    play(tmp_path, scenario)
