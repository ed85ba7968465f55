"""Bodies that are pulled, at their sender: one part at a time, on demand, given again but not read again."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from perdure import codec, protocol
from perdure.errors import InvalidArgument
from perdure.limits import Limits
from perdure.slotmap import Seat, SlotMap
from perdure.uploads import Uploads

from .fake_cluster import in_loop

PART = Limits().http_body_inline_bytes
MAP = SlotMap(1, (range(32), range(32, 64)), (Seat(7, "one"), Seat(8, "two")))


class Sender:
    """The uploads of a caller, and what has left it."""

    def __init__(self) -> None:
        self.wanted = 0
        self.full: set[int] = set()
        self.left: list[tuple[int, int, list[Any]]] = []
        self.uploads = Uploads(b"c" * 16, self.want)

    def want(self) -> None:
        self.wanted += 1

    def send(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool:
        assert protocol.read_header(header)[:3] == (protocol.PART, worker, epoch)
        client, row = codec.decode(body)
        assert client == b"c" * 16
        if worker in self.full:
            return False
        self.left.append((worker, epoch, row))
        return True

    def pull(self, *rows: Any, worker: int = 0, epoch: int = 7) -> None:
        self.uploads.on_pull(worker, epoch, codec.encode([list(row) for row in rows]))

    async def parts(self) -> list[list[Any]]:
        """What leaves once everything has come to rest."""
        for _ in range(10):
            await asyncio.sleep(0)  # sleep: lets the tasks that read sources run
        self.uploads.flush(self.send, MAP)
        rows = [row for _, _, row in self.left]
        self.left.clear()
        return rows


class Source:
    """Parts that are read one by one; counts how many were."""

    def __init__(self, *parts: bytes, error: Exception | None = None) -> None:
        self.parts = parts
        self.read = 0
        self.error = error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            self.read += 1
            yield part
        if self.error is not None:
            raise self.error


@in_loop
async def test_a_source_is_read_part_by_part_and_only_on_demand() -> None:
    sender, source = Sender(), Source(b"abc", b"", b"de")
    upload = sender.uploads.add(aiter(source), 10)
    assert (await sender.parts(), source.read) == ([], 0)
    sender.pull((upload.number, 10))
    assert (await sender.parts(), source.read) == ([[1, 10, b"abc", False]], 1)
    sender.pull((upload.number, 13))
    assert await sender.parts() == [[1, 13, b"de", False]]
    sender.pull((upload.number, 15))
    assert await sender.parts() == [[1, 15, b"", True]]
    assert sender.wanted


@in_loop
async def test_the_latest_part_is_given_again_and_what_was_before_it_is_gone() -> None:
    sender = Sender()
    upload = sender.uploads.add(aiter(Source(b"abc", b"de")), 0)
    for offset, part in ((0, b"abc"), (0, b"abc"), (3, b"de"), (3, b"de")):
        sender.pull((1, offset))
        assert await sender.parts() == [[1, offset, part, False]]
    assert not upload.gone
    sender.pull((1, 0))
    assert await sender.parts() == [[1, 0, None, True]]
    assert upload.gone


@in_loop
async def test_asking_twice_while_a_part_is_read_reads_it_once() -> None:
    sender, go = Sender(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        await go.wait()
        yield b"abc"
        yield b"never asked for"

    upload = sender.uploads.add(slow(), 0)
    sender.pull((1, 0))
    assert await sender.parts() == []
    sender.pull((1, 0), worker=1, epoch=8)
    go.set()
    assert await sender.parts() == [[1, 0, b"abc", False]]
    upload.close()


@in_loop
async def test_a_large_part_is_cut_and_bytes_can_be_asked_for_anywhere() -> None:
    sender = Sender()
    upload = sender.uploads.add(aiter(Source(b"x" * (PART + 5))), 0)
    whole = sender.uploads.add(b"y" * (PART + 5), PART)
    sender.pull((1, 0), (2, PART))
    sender.pull((2, 0), (2, 3))
    sent = {(row[0], row[1]): (len(row[2]), row[3]) for row in await sender.parts()}
    assert sent == {(1, 0): (PART, False), (2, PART): (5, True), (2, 0): (PART, False), (2, 3): (PART, False)}
    sender.pull((1, PART))
    assert await sender.parts() == [[1, PART, b"x" * 5, False]]
    assert not whole.gone
    assert not upload.gone


@in_loop
async def test_a_source_that_raises_is_told_as_gone_and_its_error_is_kept() -> None:
    sender = Sender()
    upload = sender.uploads.add(aiter(Source(b"a", error=LookupError("no more"))), 0)
    sender.pull((1, 0))
    assert await sender.parts() == [[1, 0, b"a", False]]
    sender.pull((1, 1))
    assert await sender.parts() == [[1, 1, None, True]]
    assert isinstance(upload.error, LookupError)
    sender.pull((1, 1))
    assert await sender.parts() == [[1, 1, None, True]]


@in_loop
async def test_what_is_no_upload_any_more_is_told_as_gone() -> None:
    sender = Sender()
    upload = sender.uploads.add(b"abc", 0)
    upload.close()
    dropped = sender.uploads.add(b"abc", 0)
    del dropped
    gc.collect()
    sender.pull((1, 0), (2, 0), (99, 5))
    assert await sender.parts() == [[1, 0, None, True], [2, 0, None, True], [99, 5, None, True]]


@in_loop
async def test_closing_stops_a_source_that_is_being_read() -> None:
    sender, ended = Sender(), []

    async def endless() -> AsyncIterator[bytes]:
        try:
            await asyncio.Event().wait()
            yield b""
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    upload = sender.uploads.add(endless(), 0)
    sender.pull((1, 0))
    await sender.parts()
    upload.close()
    assert await sender.parts() == []
    assert ended == ["cancelled"]


@in_loop
async def test_a_source_runs_in_the_context_of_whoever_sends_the_request() -> None:
    sender, who = Sender(), contextvars.ContextVar("who", default="nobody")

    async def source() -> AsyncIterator[bytes]:
        yield who.get().encode()

    who.set("sender")
    upload = sender.uploads.add(source(), 0)
    contextvars.Context().run(sender.pull, (1, 0))
    assert await sender.parts() == [[1, 0, b"sender", False]]
    upload.close()


@in_loop
async def test_parts_for_a_worker_that_does_not_take_them_stay_and_those_for_a_gone_one_go() -> None:
    sender = Sender()
    upload = sender.uploads.add(b"abc", 0)
    sender.full = {0}
    sender.pull((1, 0))
    sender.pull((1, 1), worker=1, epoch=8)
    sender.pull((1, 2), worker=1, epoch=3)
    assert sender.uploads.flush(sender.send, MAP)
    assert sender.left == [(1, 8, [1, 1, b"bc", True])]
    assert sender.uploads.waiting
    sender.full = set()
    sender.left.clear()
    assert not sender.uploads.flush(sender.send, MAP)
    assert sender.left == [(0, 7, [1, 0, b"abc", True])]
    assert not sender.uploads.waiting
    upload.close()


@pytest.mark.parametrize("rows", [5, [5], [[1]], [["a", 1]], [[1, None]]])
def test_what_is_no_pull_is_refused(rows: Any) -> None:
    with pytest.raises(InvalidArgument):
        Sender().uploads.on_pull(0, 7, codec.encode(rows))
