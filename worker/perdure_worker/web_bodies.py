"""Requests whose `fetch` runs: the rest of their bodies, and whether their client is still there.

Guarantees that a body is asked for part by part, each only when the handler wants it, and that a handler
which waits for a part never waits for ever: a part that does not come is asked for again, and a sender that
is gone, silent for `http_part_wait_s` or cannot give it any more ends the body with a disconnect.  A client
that leaves does not end the turn, as with any call; the handler can ask.  Runs in the worker's event loop.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from perdure import codec, protocol
from perdure.errors import InvalidArgument
from perdure_worker.peers import Peer
from perdure_worker.turns import TURN_PEER, TURN_SEQUENCE, Turn

if TYPE_CHECKING:
    from perdure_worker.execution import Execution

__all__ = ["Bodies", "BodyTooLarge", "Incoming"]

Message = dict[str, Any]


class BodyTooLarge(Exception):
    """More came than `http_body_bytes_max`; the handler's caller gets 413."""


class Incoming:
    """One request while its `fetch` runs; `receive` is ASGI's."""

    __slots__ = (
        "_bodies",
        "_ended",
        "_first",
        "_gone",
        "_offset",
        "_part",
        "_upload",
        "asked",
        "heard",
        "key",
        "length",
        "peer",
        "sequence",
    )

    def __init__(self, bodies: Bodies, turn: Turn, request: dict[str, Any]) -> None:
        self._bodies = bodies
        self.peer: Peer = turn[TURN_PEER]
        self.sequence: int = turn[TURN_SEQUENCE]
        self.key = self.peer.identity, self.peer.origin, self.sequence
        self.length: int | None = request["length"]
        self._first: bytes | None = request["body"]
        self._upload: int = request.get("upload", 0) if request["more"] else 0
        self._ended = not self._upload
        self._offset = len(request["body"])
        self._part: asyncio.Future[tuple[bytes | None, bool]] | None = None
        self._gone: asyncio.Event | None = None
        """There once somebody has waited for the client to leave, or it has left."""
        self.heard = self.asked = 0.0

    @property
    def left(self) -> bool:
        """Whether the client has left."""
        return self.peer.gone or (self._gone is not None and self._gone.is_set())

    def leave(self) -> None:
        """The client has left."""
        if self._gone is None:
            self._gone = asyncio.Event()
        self._gone.set()
        if self._part is not None and not self._part.done():
            self._part.set_result((None, True))

    async def receive(self) -> Message:
        """The next part of the body, then the disconnect.  Raises `BodyTooLarge`."""
        if self._first is not None:
            part, self._first = self._first, None
            self._check(max(self._offset, self.length or 0))
            return {"type": "http.request", "body": part, "more_body": not self._ended}
        if not self._ended and self._part is None:
            received, last = await self._pull()
            if received is None:
                self._ended = True
                self.leave()
                return {"type": "http.disconnect"}
            self._offset += len(received)
            self._ended = last
            self._check(self._offset)
            return {"type": "http.request", "body": received, "more_body": not last}
        if self._gone is None:
            self._gone = asyncio.Event()
        if not self.left:
            await self._bodies.wait(self, self._gone.wait())
        return {"type": "http.disconnect"}

    def _check(self, size: int) -> None:
        limit = self._bodies.limits.http_body_bytes_max
        if size > limit:
            self._ended = True
            raise BodyTooLarge(f"the body has more than {limit} bytes (http_body_bytes_max)")

    async def _pull(self) -> tuple[bytes | None, bool]:
        if self.left:
            return None, True
        self._part = asyncio.get_running_loop().create_future()
        self.ask()
        try:
            received: tuple[bytes | None, bool] = await self._bodies.wait(self, self._part)
            return received
        finally:
            self._part = None

    def ask(self) -> None:
        """Asks for the part that is waited for."""
        if self._part is not None:
            self._bodies.pull(self.peer, [self._upload, self._offset])

    @property
    def pulls(self) -> bool:
        """Whether it waits for a part."""
        return self._part is not None

    def on_part(self, upload: int, offset: int, part: bytes | None, last: bool) -> None:
        """A part has come, perhaps for the second time."""
        if upload == self._upload and offset == self._offset and self._part and not self._part.done():
            self._part.set_result((part, last))


class Bodies:
    """The requests of a worker's running fetches; true while one of them waits for its client."""

    def __init__(self, host: Execution) -> None:
        self._host = host
        self.limits = host.limits
        self._running: dict[tuple[bytes, bytes | None, int], Incoming] = {}
        self._waiting: dict[Incoming, None] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def begin(self, turn: Turn, request: dict[str, Any]) -> Incoming:
        """A fetch begins; raises `InvalidArgument` when the rest of its body cannot be asked for."""
        incoming = Incoming(self, turn, request)
        if incoming.peer.origin is not None and request["more"]:
            raise InvalidArgument("the rest of a body is asked for from direct clients only: send it whole")
        self._running[incoming.key] = incoming
        return incoming

    def end(self, incoming: Incoming) -> None:
        """Its turn has ended."""
        if self._running.get(incoming.key) is incoming:
            del self._running[incoming.key]

    async def wait(self, incoming: Incoming, what: Any) -> Any:
        """Waits for something of the client's, which is looked after meanwhile."""
        incoming.heard = incoming.asked = self._host.clock()
        self._waiting[incoming] = None
        try:
            return await what
        finally:
            self._waiting.pop(incoming, None)

    def pull(self, peer: Peer, row: list[int]) -> None:
        """Asks the peer for a part of a body."""
        self._host.peers.post(peer.identity, protocol.PULL, codec.encode([row]))
        self._host.want_flush()

    # --- what clients say

    def on_message(self, identity: bytes, origin: bytes | None, body: bytes) -> None:
        """PART: what was asked for; raises `InvalidArgument`.  What nobody waits for means nothing."""
        rows = codec.decode(body)
        if type(rows) is not list or len(rows) > self.limits.batch_calls_max:
            raise InvalidArgument("parts are a list: the client's id, then [upload, offset, bytes, last]")
        for row in rows[1:]:
            if type(row) is not list or [type(value) for value in row[:2]] != [int, int] or len(row) < 4:
                raise InvalidArgument(
                    "a part is a list: upload, offset, bytes or nil, whether it is the last"
                )
            if type(row[2]) not in (bytes, type(None)) or type(row[3]) is not bool:
                raise InvalidArgument(
                    "a part is a list: upload, offset, bytes or nil, whether it is the last"
                )
            for incoming in list(self._waiting):
                if (incoming.peer.identity, incoming.peer.origin) == (identity, origin):
                    incoming.on_part(*row[:4])

    def left(self, identity: bytes, origin: bytes | None, sequence: int) -> None:
        """Whoever sent this call does not wait for its answer any more."""
        incoming = self._running.get((identity, origin, sequence))
        if incoming is not None:
            incoming.leave()

    # --- time

    def tick(self, now: float, *, stopping: bool) -> None:
        """Call about every 50 ms; a worker that stops waits for nobody's body."""
        limits = self.limits
        for incoming in list(self._waiting):
            if (
                stopping
                or incoming.peer.gone
                or (incoming.pulls and now - incoming.heard > limits.http_part_wait_s)
            ):
                incoming.leave()
            elif now - incoming.asked > limits.http_part_again_s:
                incoming.asked = now
                if incoming.pulls:
                    incoming.ask()
                else:  # if its connection is closed, that shows
                    self._host.peers.probe(incoming.peer)
                    self._host.want_flush()
