"""Request bodies that are pulled: the side of whoever sends the request.  Clients and workers, in their loop.

Guarantees that a body which does not fit into its call is read only as fast as the object takes it: one part
at a time, each on demand (PULL) and at most `http_body_inline_bytes` long.  A part may be asked for again,
since a message may be lost; what was given away before that is gone (a source is read once), and the object
is told so.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import copy_context
from typing import Any, Protocol
from weakref import WeakValueDictionary

from perdure import codec, protocol
from perdure.errors import InvalidArgument
from perdure.limits import Limits
from perdure.slotmap import SlotMap

__all__ = ["Upload", "Uploads"]

_LIMITS = Limits()
_PART_BYTES = _LIMITS.http_body_inline_bytes


class Send(Protocol):
    """Sends one message; False: try again later.  As `calls.Outgoing`."""

    def __call__(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool: ...


class Upload:
    """The rest of one body, from `start` on."""

    def __init__(
        self, uploads: Uploads, number: int, source: bytes | AsyncIterator[bytes], start: int
    ) -> None:
        self.number = number
        self.gone = False
        """Whether a part was asked for that cannot be given again."""
        self.error: BaseException | None = None
        """What the source raised."""
        self._uploads = uploads
        self._source = source
        self._from = self._end = start
        """Where the latest part begins and ends."""
        self._part: bytes | None = None
        self._last = False
        self._rest = b""
        self._reader: asyncio.Task[None] | None = None
        self._asked: tuple[int, int] = (0, 0)
        self._context = copy_context()  # a source of an object's turn runs as a part of that turn

    def on_pull(self, worker: int, epoch: int, offset: int) -> None:
        """The part at `offset` is wanted."""
        if isinstance(self._source, bytes):
            data = self._source[offset : offset + _PART_BYTES]
            self._give(worker, epoch, offset, data, offset + len(data) >= len(self._source))
        elif self.error is not None:
            self._give(worker, epoch, offset, None, True)
        elif self._part is not None and offset == self._from:
            self._give(worker, epoch, offset, self._part, self._last)
        elif offset == self._end and not self._last:
            self._asked = worker, epoch
            if self._reader is None:
                self._reader = asyncio.get_running_loop().create_task(
                    self._read(self._source), context=self._context
                )
        else:
            self.gone = True
            self._give(worker, epoch, offset, None, True)

    async def _read(self, source: AsyncIterator[bytes]) -> None:
        part, last = self._rest, False
        try:
            while not part and not last:
                try:
                    part = bytes(await anext(source))
                except StopAsyncIteration:
                    last = True
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # of the user's source: whoever sends the request gets it
            self.error = error
            self._give(*self._asked, self._end, None, True)
            return
        finally:
            self._reader = None
        self._part, self._rest, self._last = part[:_PART_BYTES], part[_PART_BYTES:], last
        self._from, self._end = self._end, self._end + len(self._part)
        self._give(*self._asked, self._from, self._part, last)

    def _give(self, worker: int, epoch: int, offset: int, part: bytes | None, last: bool) -> None:
        self._uploads.give(worker, epoch, [self.number, offset, part, last])

    def close(self) -> None:
        """Nothing of it is wanted any more."""
        self._uploads.open.pop(self.number, None)
        if self._reader is not None:
            self._reader.cancel()


class Uploads:
    """The bodies of one caller that are pulled."""

    def __init__(self, client_id: bytes, want_flush: Callable[[], None]) -> None:
        self.open: WeakValueDictionary[int, Upload] = WeakValueDictionary()
        """By number; whoever sends the request keeps them."""
        self._client_id = client_id
        self._want_flush = want_flush
        self._number = 0
        self._parts: list[tuple[int, int, list[Any]]] = []
        """What waits to be sent: worker, epoch and row of PART."""

    def add(self, source: bytes | AsyncIterator[bytes], start: int) -> Upload:
        """A body whose first `start` bytes stand in its request; of bytes the source is the whole body."""
        self._number += 1
        upload = self.open[self._number] = Upload(self, self._number, source, start)
        return upload

    def on_pull(self, worker: int, epoch: int, body: bytes) -> None:
        """PULL of a worker's incarnation; raises `InvalidArgument`."""
        rows = codec.decode(body)
        if type(rows) is not list or len(rows) > _LIMITS.batch_calls_max:
            raise InvalidArgument("what a worker wants of bodies is a list of [upload, offset]")
        for row in rows:
            if type(row) is not list or len(row) < 2 or type(row[0]) is not int or type(row[1]) is not int:
                raise InvalidArgument("what a worker wants of a body is a list: upload, offset")
            upload = self.open.get(row[0])
            if upload is not None:
                upload.on_pull(worker, epoch, row[1])
            else:
                self.give(worker, epoch, [row[0], row[1], None, True])

    def give(self, worker: int, epoch: int, row: list[Any]) -> None:
        """A part leaves with the next flush."""
        self._parts.append((worker, epoch, row))
        self._want_flush()

    @property
    def waiting(self) -> bool:
        """Whether parts have to leave."""
        return bool(self._parts)

    def flush(self, send: Send, slot_map: SlotMap | None) -> bool:
        """Sends what can leave; whether some of it had to stay.  What was lost is asked for again."""
        seats = slot_map.seats if slot_map is not None else ()
        parts, self._parts = self._parts, []
        full: set[int] = set()
        for worker, epoch, row in parts:
            if worker >= len(seats) or seats[worker].epoch != epoch or not seats[worker].endpoint:
                continue  # that incarnation is gone
            header = protocol.header(protocol.PART, worker, epoch)
            if worker in full or not send(worker, epoch, header, codec.encode([self._client_id, row])):
                full.add(worker)
                self._parts.append((worker, epoch, row))
        return bool(full)
