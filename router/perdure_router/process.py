"""The router process: sockets, timers and signals around `routing.Router`.

Guarantees that everything which one drain of a socket brought leaves before the loop goes on, that a full
pipe stops nobody but its own peer, and that the process is stateless: killed at any moment, its successor
serves again as soon as it is bound and has the slot map (well below a second).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
from typing import Any, Final

import uvloop
import zmq

from perdure import codec, descriptors, lifeline, logs
from perdure.channel import Channel, PeerGone, WouldBlock, open_context, open_dealer, open_router
from perdure.errors import InvalidArgument
from perdure.limits import Limits
from perdure.slotmap import SlotMap, slot_map_from_wire
from perdure_router.config import RouterConfig
from perdure_router.links import Link
from perdure_router.routing import Router

__all__ = ["RouterProcess", "main"]

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.003
"""A peer whose pipe was full is tried again after this."""
_REOPEN_S: Final = 1.0
"""A door that could not be opened (no descriptors) is tried again after this."""
_READY_RETRY_S: Final = 0.005
_SILENCE_S: Final = 0.2
"""Ordered stop: nobody has said anything for this long."""
_STOP_POLL_S: Final = 0.01
_LINGER_MS: Final = 200
"""Ordered stop: the last messages have this long to leave."""
_LAST_MESSAGES_MAX: Final = 20_000
"""What may still wait to be read from a dead worker: twice ZeroMQ's own bound of a pipe."""
_LAST_MESSAGES_MS: Final = 20
"""How long ZeroMQ's thread may take to fill a pipe again that the last reading has emptied."""
_PEERS_TRIED: Final = 8
"""Slow clients that are tried again after each reading of the front, which is how ZeroMQ tells of room."""
_PEERS_TRIED_BY_TIME: Final = 256
"""The same each `_RETRY_S`, so that a thousand clients that do not read take a part of the time only."""


class RouterProcess:
    """Owns the sockets.  `run` serves until `stopping` is set, and returns after an ordered stop."""

    def __init__(
        self, config: RouterConfig, loop: asyncio.AbstractEventLoop, limits: Limits, stopping: asyncio.Event
    ) -> None:
        self._stopping = stopping
        self._config = config
        self._loop = loop
        self._limits = limits
        self._router = Router(limits)
        self._context = open_context()
        self._doors: dict[Link, Channel] = {}
        self._blocked: list[Link] = []
        self._retrying = False
        self._descriptors = descriptors.Watch()
        self._front, self._endpoints = self._open_front()
        control = open_dealer(self._context, config.control)
        self._control = Channel(loop, control, self._on_control, self._flush)

    def _open_front(self) -> tuple[Channel, list[str]]:
        socket = open_router(self._context, ())
        endpoints = []
        for endpoint in self._config.endpoints:
            socket.bind(endpoint)
            # With a wildcard port only ZeroMQ knows where this is.
            bound: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
            endpoints.append(bound.rstrip(b"\0").decode())
        on_client, time = self._router.on_client, self._loop.time
        return Channel(self._loop, socket, lambda frames: on_client(frames, time()), self._flush), endpoints

    async def run(self) -> None:
        """The life of the process."""
        self._announce()
        self._beat()
        log.info("router serves", extra={"endpoints": self._endpoints, "epoch": self._config.epoch})
        await self._stopping.wait()
        await self._stop()

    # --- the supervisor

    def _tell(self, kind: str, facts: dict[str, Any]) -> bool:
        """A message to the supervisor; False while it is not connected."""
        message = {
            "type": kind,
            "role": "router",
            "index": 0,
            "epoch": self._config.epoch,
            "pid": os.getpid(),
            **facts,
        }
        if self._control.closed:
            return True  # a timer that outlived the sockets
        try:
            self._control.send([codec.encode(message)])
        except WouldBlock:
            return False
        return True

    def _announce(self) -> None:
        if not self._tell("ready", {"endpoint": self._endpoints[0], "endpoints": self._endpoints}):
            self._loop.call_later(_READY_RETRY_S, self._announce)

    def _beat(self) -> None:
        self._router.on_tick(self._loop.time())
        stats = {**self._router.stats, **self._router.gauges(), "descriptors": self._descriptors.look()}
        self._tell("beat", {"stats": stats})
        self._loop.call_later(self._limits.heartbeat_interval_s, self._beat)

    def _on_control(self, frames: list[bytes]) -> None:
        try:
            (frame,) = frames
            message = codec.decode(frame)
            kind = message["type"]
            slot_map = slot_map_from_wire(message["map"]) if kind == "map" else None
        except (ValueError, KeyError, TypeError, InvalidArgument) as error:
            log.error("the supervisor sent what this router does not understand", extra={"why": str(error)})
            return
        if slot_map is not None:
            self._on_map(slot_map)
        elif kind == "stop":
            self._stopping.set()

    def _on_map(self, slot_map: SlotMap) -> None:
        # What a worker said before it died has come before the news of its death: it is read first, so
        # that a call which was answered does not end in OutcomeUnknown.
        for link, door in list(self._doors.items()):
            seat = slot_map.seats[link.worker] if link.worker < len(slot_map.seats) else None
            if seat is None or (seat.epoch, seat.endpoint) != (link.epoch, link.endpoint):
                self._read_last_messages(link, door)
        self._router.on_map(slot_map)
        self._flush()

    def _read_last_messages(self, link: Link, door: Channel) -> None:
        # A pipe takes 1,000 messages, and ZeroMQ's thread reads on from the kernel when half of them have
        # gone: an empty one says little while that thread waits for a processor (24 of 1,024 replies that
        # had arrived were lost so).  A pipe that was empty from the start has none behind it.
        wait_ms = 0
        for _ in range(_LAST_MESSAGES_MAX):
            if not door.socket.poll(wait_ms):
                return
            self._router.on_door(link.worker, door.socket.recv_multipart(zmq.NOBLOCK))
            wait_ms = _LAST_MESSAGES_MS

    # --- doing what the core says

    def _flush(self) -> None:
        router = self._router
        if router.opened or router.closed:
            self._change_doors()
        if router.ready:
            links, router.ready = router.ready, []
            for link in links:
                self._send_to_worker(link)
        if router.backlog:
            self._send_backlogs(_PEERS_TRIED)
        if router.answers:
            self._send_answers()

    def _change_doors(self) -> None:
        closed, self._router.closed = self._router.closed, []
        opened, self._router.opened = self._router.opened, []
        for link in closed:
            log.info("worker has gone", extra={"worker": link.worker, "epoch": link.epoch})
            door = self._doors.pop(link, None)
            if door is not None:
                door.close()
        for link in opened:
            if link not in closed:
                self._open_door(link)

    def _open_door(self, link: Link) -> None:
        if link.ended:
            return
        try:
            socket = open_dealer(self._context, link.endpoint)
        except zmq.ZMQError as error:
            log.error("cannot open a door", extra={"worker": link.worker, "why": str(error)})
            self._loop.call_later(_REOPEN_S, self._open_door, link)
            return
        log.info("worker has come", extra={"worker": link.worker, "epoch": link.epoch})
        on_door = functools.partial(self._router.on_door, link.worker)
        self._doors[link] = Channel(self._loop, socket, on_door, self._flush)
        if link.ready:
            self._send_to_worker(link)

    def _send_to_worker(self, link: Link) -> None:
        door = self._doors.get(link)
        if door is None:
            if link.ended:
                self._router.on_drained(link)
            return  # else `_open_door` will send
        now = self._loop.time()
        while (message := link.next_message()) is not None:
            try:
                door.send(message)
            except (WouldBlock, PeerGone):
                self._blocked.append(link)
                self._retry_soon()
                return
            link.sent(now)
        self._router.on_drained(link)

    def _send_answers(self) -> None:
        router = self._router
        answers, router.answers = router.answers, []
        send, backlog = self._front.send, router.backlog
        for answer in answers:
            if answer[0] in backlog:
                router.on_pipe_full(answer)
                continue
            try:
                send(answer)
            except WouldBlock:
                router.on_pipe_full(answer)
                self._retry_soon()
            except PeerGone:
                router.on_peer_gone(*answer[:2])

    def _retry_soon(self) -> None:
        if not self._retrying:
            self._retrying = True
            self._loop.call_later(_RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retrying = False
        if self._front.closed:
            return
        blocked, self._blocked = self._blocked, []
        for link in blocked:
            self._send_to_worker(link)
        self._send_backlogs(_PEERS_TRIED_BY_TIME)

    def _send_backlogs(self, clients: int) -> None:
        for origin in self._router.backlog.some_peers(clients):
            self._send_backlog(origin)
        if self._router.backlog:
            self._retry_soon()

    def _send_backlog(self, origin: bytes) -> None:
        backlog = self._router.backlog
        while (answer := backlog.first(origin)) is not None:
            try:
                self._front.send(answer)
            except WouldBlock:
                return
            except PeerGone:
                self._router.on_peer_gone(*answer[:2])
                return
            backlog.sent(origin)

    # --- the end

    async def _stop(self) -> None:
        """Ordered stop, step by step."""
        log.info("router stops", extra={"epoch": self._config.epoch})
        # 1. Nothing new is taken; registered clients hear GOODBYE.
        self._router.stop()
        self._flush()
        # 2. Clients acknowledge, workers answer what they have.  Who is silent is not waited for.
        time = self._loop.time
        deadline = time() + self._limits.goodbye_timeout_s
        heard, heard_at = self._messages_received(), time()
        while time() < deadline and not self._router.finished:
            await asyncio.sleep(_STOP_POLL_S)
            if (count := self._messages_received()) != heard:
                heard, heard_at = count, time()
            elif time() - heard_at >= _SILENCE_S and self._router.quiet:
                break
        # 3. Whoever still waits learns how its call ends.
        self._router.abandon()
        self._flush()
        # 4. What ZeroMQ holds may leave, within the linger.
        for channel in (self._front, self._control, *self._doors.values()):
            channel.close(_LINGER_MS)
        self._context.term()

    def _messages_received(self) -> int:
        return sum([channel.messages_received for channel in (self._front, *self._doors.values())])


async def _serve(config: RouterConfig) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    await RouterProcess(config, loop, Limits(), stopping).run()


def main(arguments: list[str]) -> int:
    """Runs the router with its one argument, a `RouterConfig` as JSON; returns the exit code."""
    if len(arguments) != 1:
        raise SystemExit("the router takes one argument, its configuration as JSON")
    try:
        config = RouterConfig.from_json(arguments[0])
    except InvalidArgument as error:
        raise SystemExit(str(error)) from None
    # Ctrl+C reaches the whole process group; the supervisor orders who stops when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    lifeline.end_with(config.parent)
    logs.setup("router", log_json=config.log_json, level=config.log_level)
    descriptors.raise_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_serve(config))
        except zmq.ZMQError as error:
            log.critical("router cannot run", extra={"why": str(error), "endpoints": config.endpoints})
            return 1
    return 0
