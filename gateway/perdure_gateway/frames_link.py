"""Connects the sockets' core to a client of the cluster, its loop and its time.  The gateway's event loop.

Guarantees that objects hear of this gateway before they are asked for a socket, and that clients are
written to a few hundred at a time, so that a broadcast to thousands of sockets does not hold up the calls
of others.  A gateway that a worker counts as dead (it was stopped for too long) goes on under a new id: its
sockets with other workers stay as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from perdure import codec, protocol
from perdure.client import Client
from perdure.errors import PerdureError
from perdure.limits import Limits
from perdure.slotmap import SlotMap
from perdure.stub import Target
from perdure_gateway.client_socket import ClientSocket, Connection, State
from perdure_gateway.sockets import Sockets

__all__ = ["FramesLink", "Writer"]

log = logging.getLogger("perdure.gateway")

_GATEWAY_ID_BYTES = 16


class Writer(Protocol):
    """Who has something to write."""

    def write(self) -> None:
        """Writes what the socket has, as far as the client takes it."""


class FramesLink:
    """All WebSockets of one gateway; used in the event loop of its client, which must be connected."""

    def __init__(self, client: Client, limits: Limits | None = None) -> None:
        self._client = client
        self._limits = limits if limits is not None else Limits()
        self._loop = asyncio.get_running_loop()
        self._random = random.Random()  # noqa: S311 - jitter of retries, not a secret
        self._map: SlotMap | None = None
        self._current = self._incarnation()
        self._earlier: list[Sockets] = []
        """Ids that a worker has counted as dead and that still have sockets with others."""
        self._writers: deque[Writer] = deque()
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._closed = False
        self._resting: asyncio.Event | None = None
        """See `at_rest`; there is one when somebody has waited for it."""
        client.handle(protocol.FRAMES, self._on_frames)
        client.watch_links(self._on_link)

    # --- for connections

    def open(self, target: Target, connection: Connection) -> ClientSocket:
        """A socket for an upgrade; see `Sockets.open`."""
        self._follow_map()
        seat = self._map.worker_of(target.object_id) if self._map is not None else 0
        socket = self._current.open(target, seat, connection)
        self._arm()
        return socket

    def of(self, socket: ClientSocket) -> Sockets:
        """The incarnation that a socket belongs to."""
        for sockets in (self._current, *self._earlier):
            if sockets.gateway_id == socket.gateway_id:
                return sockets
        raise LookupError("this socket's gateway id is not in use any more")

    def accepted(self, socket: ClientSocket, auto: tuple[str, str] | None) -> None:
        """See `Sockets.accepted`."""
        self.of(socket).accepted(socket, auto)
        self._arm()

    def refused(self, socket: ClientSocket, *, perhaps_accepted: bool) -> None:
        """See `Sockets.refused`."""
        self.of(socket).refused(socket, perhaps_accepted=perhaps_accepted)

    def receive(self, socket: ClientSocket, data: str | bytes) -> bool:
        """See `Sockets.receive`."""
        at_once = self.of(socket).receive(socket, data)
        self._arm()
        return at_once

    def disconnected(self, socket: ClientSocket, code: int, reason: str, was_clean: bool) -> None:
        """See `Sockets.disconnected`."""
        if socket.state is not State.ENDED:
            self.of(socket).disconnected(socket, code, reason, was_clean)
            self._arm()

    def write_soon(self, writer: Writer) -> None:
        """`writer.write()` is called in one of the next ticks."""
        self._writers.append(writer)
        if not self._writing:
            self._writing = True
            self._loop.call_soon(self._write_some)

    # --- life

    def __len__(self) -> int:
        """Sockets that are open or opening."""
        return len(self._current) + sum(map(len, self._earlier))

    @property
    def gateway_id(self) -> bytes:
        """The id that new sockets get."""
        return self._current.gateway_id

    @property
    def dropped_slow(self) -> int:
        """Clients closed because they did not read."""
        return self._current.dropped_slow + sum(sockets.dropped_slow for sockets in self._earlier)

    async def stop(self, timeout_s: float) -> None:
        """Sends all clients away (1001) and tells their objects; returns then, or after that time."""
        for sockets in (self._current, *self._earlier):
            sockets.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self.at_rest()

    async def at_rest(self) -> None:
        """Returns when nobody is connected any more and all objects know."""
        if self._resting is None:
            self._resting = asyncio.Event()
        self._arm()
        await self._resting.wait()

    def close(self) -> None:
        """Ends the timer; nothing is sent any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _busy(self) -> bool:
        return any(len(sockets) or sockets.ends_open for sockets in (self._current, *self._earlier))

    # --- the hands of the core

    def call(
        self,
        target: Target,
        method: str,
        args: list[Any],
        timeout_s: float,
        ended: Callable[[Any, BaseException | None], None],
    ) -> None:
        """See `endings.Calls`."""
        self._client.issue(
            target._replace(timeout_s=timeout_s), method, args, None, None, _Answer(self, ended)
        )

    def end_soon(
        self, ended: Callable[[Any, BaseException | None], None], result: Any, error: BaseException | None
    ) -> None:
        """A call has ended, perhaps while it was being started: its core hears of it in a moment."""
        self._loop.call_soon(self._end, ended, result, error)

    def _end(
        self, ended: Callable[[Any, BaseException | None], None], result: Any, error: BaseException | None
    ) -> None:
        if not self._closed:
            ended(result, error)
            self._arm()

    def tell(self, worker: int, body: bytes) -> bool:
        """See `sockets.Hands`."""
        slot_map = self._client.slot_map
        if slot_map is None or worker >= len(slot_map.seats):
            return False
        return self._client.send_to(worker, slot_map.seats[worker].epoch, protocol.SOCKETS, body)

    def on_lost(self) -> None:
        """See `sockets.Hands`."""
        self._loop.call_soon(self._renew)

    def _incarnation(self) -> Sockets:
        return Sockets(
            secrets.token_bytes(_GATEWAY_ID_BYTES),
            self,
            clock=self._loop.time,
            random_source=self._random,
            limits=self._limits,
        )

    def _renew(self) -> None:
        if self._current.was_lost:
            self._earlier.append(self._current)
            self._current = self._incarnation()

    # --- what happens

    def _on_frames(self, worker: int, epoch: int, body: bytes) -> None:
        try:
            message = codec.decode(body)
            if not isinstance(message, list) or not message:
                raise codec.BadMessage("a worker sent what are no frames")
            for sockets in (self._current, *self._earlier):
                if sockets.gateway_id == message[0]:
                    sockets.on_frames(worker, epoch, message[1:])
        except PerdureError as error:
            log.warning("frames of worker %d were not understood: %s", worker, error)
        self._arm()

    def _on_link(self, worker: int, epoch: int) -> None:
        self._follow_map()
        for sockets in (self._current, *self._earlier):
            sockets.on_link(worker)
        self._arm()

    def _follow_map(self) -> None:
        slot_map = self._client.slot_map
        if slot_map is None or slot_map is self._map:
            return
        moved = self._map is not None and self._map.owners != slot_map.owners
        self._map = slot_map
        if moved:
            for sockets in (self._current, *self._earlier):
                sockets.on_map(slot_map.worker_of)

    def _write_some(self) -> None:
        writers = self._writers
        for _ in range(min(len(writers), self._limits.socket_writes_per_tick)):
            writers.popleft().write()
        self._writing = bool(writers)
        if writers:
            self._loop.call_soon(self._write_some)

    def _arm(self) -> None:
        if self._resting is not None and not self._busy():
            self._resting.set()
            self._resting = None
        wake_at = min(self._current.wake_at, *(sockets.wake_at for sockets in self._earlier), float("inf"))
        if wake_at < self._timer_at and not self._closed:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = wake_at
            self._timer = self._loop.call_at(wake_at, self._tick)

    def _tick(self) -> None:
        self._timer, self._timer_at = None, float("inf")
        self._follow_map()
        for sockets in (self._current, *self._earlier):
            sockets.tick()
        self._earlier = [sockets for sockets in self._earlier if len(sockets) or sockets.ends_open]
        self._arm()


class _Answer:
    """Where the outcome of one call goes: to `ended`, in a later turn of the loop."""

    __slots__ = ("_ended", "_link")

    def __init__(self, link: FramesLink, ended: Callable[[Any, BaseException | None], None]) -> None:
        self._link = link
        self._ended: Callable[[Any, BaseException | None], None] | None = ended

    def done(self) -> bool:
        return self._ended is None

    def set_result(self, result: Any, /) -> None:
        self._end(result, None)

    def set_exception(self, exception: BaseException, /) -> None:
        self._end(None, exception)

    def exception(self) -> BaseException | None:
        return None

    def _end(self, result: Any, error: BaseException | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            self._link.end_soon(ended, result, error)
