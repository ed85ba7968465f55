"""Loops over calls, on real sockets: the items, their errors, and every way out stops the producer."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from perdure import codec, protocol
from perdure.client import connect
from perdure.errors import InvalidArgument, OutcomeUnknown, RemoteError, ShardUnavailable
from perdure.object import DurableObject
from perdure.remote_errors import dump_exception
from perdure.streams import STOP

from .fake_cluster import Door, fake_cluster, in_both_loops, soon

ITEM, END = protocol.STATUS_ITEM, protocol.STATUS_END


class Shop(DurableObject):
    async def numbers(self, count: int = 3) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def price(self) -> int:
        return 1


class Producer:
    """A worker's door that streams; the test says when."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.identity = b""
        self.sequence = 0

    async def called(self) -> None:
        message = await self.door.take()
        self.identity, self.sequence = message.identity, message.items[0].sequence

    async def send(self, *values: Any, end: bool = False, raised: BaseException | None = None) -> None:
        replies: list[list[Any]] = [[self.sequence, ITEM, value] for value in values]
        if end:
            replies.append([self.sequence, END, len(values)])
        if raised is not None:
            replies.append(
                [
                    self.sequence,
                    protocol.STATUS_RAISED,
                    dump_exception(raised, "Shop/a", with_traceback=False),
                ]
            )
        await self.door.send_replies(self.identity, replies)

    async def stopped(self) -> None:
        """The client tells this producer to stop."""
        while True:
            message = await self.door.take(protocol.STREAM)
            if [self.sequence, STOP] in codec.decode(message.body)[1:]:
                return


KINDS = pytest.mark.parametrize("shop", ["Shop", Shop], ids=["untyped", "typed"])


@KINDS
@in_both_loops
async def test_a_loop_over_a_call_gets_the_items_and_ends(tmp_path: Path, shop: Any) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        producer = Producer(cluster.doors[0])
        call = client.get(shop, "a").numbers(3)
        reading = asyncio.create_task(_all(call))
        await producer.called()
        await producer.send(0, 1, 2, end=True)
        assert await soon(reading) == [0, 1, 2]


@KINDS
@in_both_loops
async def test_a_stream_under_a_request_id_of_one_s_own_is_read_as_any_other(
    tmp_path: Path, shop: Any
) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        producer = Producer(cluster.doors[0])
        reading = asyncio.create_task(_all(client.get(shop, "a", request_id="order 7").numbers(3)))
        await producer.called()
        await producer.send(0, 1, 2, end=True)
        assert await soon(reading) == [0, 1, 2]


@KINDS
@in_both_loops
async def test_a_stream_opened_first_and_read_later_has_lost_nothing(tmp_path: Path, shop: Any) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        producer = Producer(cluster.doors[0])
        call = client.get(shop, "a").numbers(3)
        await producer.called()
        await producer.send(0, 1, 2, end=True)
        cluster.doors[0].answer(lambda item: "later")
        assert await client.get("Shop", "b").price() == "later"
        assert await soon(_all(call)) == [0, 1, 2]


async def _all(call: Any) -> list[Any]:
    return [item async for item in call]


@KINDS
@in_both_loops
async def test_every_way_out_of_a_loop_stops_the_producer(tmp_path: Path, shop: Any) -> None:
    async def breaks(call: Any) -> None:
        async for _ in call:
            break

    async def raises(call: Any) -> None:
        with pytest.raises(ZeroDivisionError):
            await divide(call)

    async def divide(call: Any) -> None:
        async for item in call:
            1 // item

    async def closes(call: Any) -> None:
        assert await anext(aiter(call)) == 0
        await call.aclose()
        assert await _all(call) == []

    async def times_out(call: Any) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await _all(call)

    async def drops(call: Any) -> None:
        await anext(aiter(call))

    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        producer = Producer(cluster.doors[0])
        for leave in (breaks, raises, closes, times_out, drops):
            leaving = asyncio.create_task(leave(client.get(shop, "a").numbers(3)))
            await producer.called()
            await producer.send(0)
            await soon(leaving)
            await producer.stopped()


@in_both_loops
async def test_leaving_a_typed_stream_before_its_first_item_stops_the_producer_at_once(
    tmp_path: Path,
) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        producer = Producer(cluster.doors[0])
        call: Any = client.get(Shop, "a").numbers(3)
        await producer.called()
        await call.aclose()
        await producer.stopped()
        call = client.get(Shop, "a").numbers(3)
        await producer.called()
        del call
        await producer.stopped()
        call = client.get(Shop, "a").numbers(3)
        await producer.called()
        with pytest.raises(TypeError, match="async for"):
            await call
        await producer.stopped()


@in_both_loops
async def test_closing_an_untyped_stream_before_its_first_item_stops_the_producer_at_that_item(
    tmp_path: Path,
) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        producer = Producer(cluster.doors[0])
        call = client.get("Shop", "a").numbers(3)
        await producer.called()
        await call.aclose()
        await producer.send(0)
        await producer.stopped()
        assert await _all(call) == []


@in_both_loops
async def test_awaiting_a_call_that_streams_is_an_error_and_stops_the_producer(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        producer = Producer(cluster.doors[0])

        async def awaits() -> str:
            try:
                await client.get("Shop", "a").numbers(3)
            except TypeError as error:
                return str(error)
            return ""

        awaiting = asyncio.create_task(awaits())
        await producer.called()
        await producer.send(0)
        assert "async for" in await soon(awaiting)
        await producer.stopped()


@in_both_loops
async def test_iterating_over_a_call_that_does_not_stream_is_an_error(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        cluster.doors[0].answer(lambda item: 5)
        with pytest.raises(TypeError, match="`await` the call"):
            await soon(_all(client.get(Shop, "a").price()))
        with pytest.raises(TypeError, match="`await` the call"):
            await soon(_all(client.get("Shop", "a").price()))
        assert await client.get("Shop", "a").price() == 5


@KINDS
@in_both_loops
async def test_errors_are_raised_in_the_loop_after_the_items(tmp_path: Path, shop: Any) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        producer = Producer(cluster.doors[0])
        got: list[Any] = []

        async def read(call: Any) -> None:
            async for item in call:
                got.append(item)

        reading = asyncio.create_task(read(client.get(shop, "a").numbers(3)))
        await producer.called()
        await producer.send(0, 1, raised=LookupError("no more"))
        with pytest.raises(RemoteError, match="no more"):
            await soon(reading)
        assert got == [0, 1]
        reading = asyncio.create_task(read(client.get(shop, "a").numbers(3)))
        await producer.called()
        await producer.send(2)
        await cluster.doors[0].close()
        with pytest.raises(OutcomeUnknown, match="while this stream was open"):
            await soon(reading)
        assert got == [0, 1, 2]


@in_both_loops
async def test_a_wait_for_one_item_that_is_given_up_leaves_the_stream_open(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        producer = Producer(cluster.doors[0])
        stream = aiter(client.get("Shop", "a").numbers(3))
        await producer.called()
        for values in ((0,), (1, 2)):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(stream), 0.02)
            await producer.send(*values)
            for value in values:
                assert await soon(anext(stream)) == value
        await stream.aclose()
        await producer.stopped()


@in_both_loops
async def test_an_argument_that_cannot_be_sent_is_an_error_of_the_loop(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster, connect(cluster.url) as client:
        for shop in ("Shop", Shop):
            with pytest.raises(InvalidArgument, match="cannot be sent"):
                await _all(client.get(shop, "a").numbers(object()))


@in_both_loops
async def test_a_client_that_closes_stops_its_producers_and_ends_their_loops(tmp_path: Path) -> None:
    async with fake_cluster(tmp_path) as cluster:
        producer = Producer(cluster.doors[0])
        async with connect(cluster.url) as client:
            reading = asyncio.create_task(_all(client.get("Shop", "a").numbers(3)))
            await producer.called()
            await producer.send(0)
            while not client._caller.streams.open:
                await asyncio.sleep(0)  # sleep: a round of the loop
        await producer.stopped()
        with pytest.raises(OutcomeUnknown, match="closed"):
            await soon(reading)
        with pytest.raises(ShardUnavailable):
            await _all(client.get("Shop", "a").numbers(3))
        gc.collect()
