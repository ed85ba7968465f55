"""The worker process: sockets, timers and signals around one `Host`.  Started by the supervisor only.

One door (a ROUTER whose endpoint carries this incarnation's epoch), one event loop, one store.  It
ends with its supervisor, stops in order on SIGTERM, and ends at once when a write to its store fails.
An ordered stop leaves nobody with an unknown outcome: new calls are answered as not executed, and the
door closes when turns have ended, here and in the workers whose turns may call objects here.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import uvloop

from perdure import codec, descriptors, lifeline, logs, protocol
from perdure.calls import Caller
from perdure.channel import Channel, WouldBlock, open_context, open_dealer, open_router
from perdure.errors import InvalidArgument, PerdureError, ShardUnavailable, to_wire
from perdure.exits import WorkerExit
from perdure.limits import Limits
from perdure.links import DoorLinks
from perdure.loader import ApplicationError, is_first_to_say
from perdure.remote_errors import ExceptionLoader
from perdure.slotmap import slot_map_from_wire
from perdure_storage.commit import Committer
from perdure_storage.endings import exit_of_open
from perdure_storage.engine import Engine
from perdure_storage.memory import MemoryEngine
from perdure_storage.reply_log import fold
from perdure_storage.shard import open_shard
from perdure_worker.config import WorkerConfig
from perdure_worker.epoch_messages import takers
from perdure_worker.guard import Guard
from perdure_worker.host import Host
from perdure_worker.loader import load_application
from perdure_worker.outgoing import Outgoing
from perdure_worker.peers import Peer, Peers
from perdure_worker.registry import ObjectClass
from perdure_worker.settings import Collaborators, HostSettings

__all__ = ["Worker", "main"]

log = logging.getLogger("perdure.worker")

_LIMITS = Limits()
_TICK_S, _FOLLOW_S, _SEND_AGAIN_S = 0.05, 1.0, 0.005
_DRAIN_LOOK_S = 0.01
_GOODBYE_LOOK_S, _GOODBYE_AGAIN_S = 0.002, 0.05
_LAST_WORDS_MS = 1_000
"""How long a stopping door may take to hand its last replies to the kernel."""
# The committer thread needs the interpreter right after fdatasync; with Python's 5 ms it waited that
# long behind a busy loop.  See docs/decisions/0005-figures-of-the-loop.md.
_SWITCH_INTERVAL_S = 0.0005
# A hundred thousand live objects make full collections slow and useless: they are not garbage.
_GC_THRESHOLDS = (50_000, 20, 100)


class Worker:
    """The shell: everything that touches sockets, the loop or the clock."""

    def __init__(
        self,
        config: WorkerConfig,
        classes: dict[str, ObjectClass],
        engine: Engine,
        loop: asyncio.AbstractEventLoop,
        guard: Guard,
    ) -> None:
        self._config = config
        self._guard = guard
        self._loop = loop
        self._context = open_context()
        self._flush_wanted = self._turns_wanted = False
        self._timers: dict[Callable[[], None], asyncio.TimerHandle] = {}
        self._acknowledged: set[bytes] = set()
        self._may_close = False  # the supervisor says: no turn of another worker can call this one
        self._closing = False  # nothing is let in any more, not even what turns elsewhere call
        self._closed = False
        self._counts = {"refused_messages": 0}
        self._descriptors = descriptors.Watch()
        self._peers = Peers(config.index, config.epoch)
        self._home = Peer(b"", None, raw=False)  # this worker as a caller of its own objects
        committer = Committer(
            engine,
            notify=loop.call_soon_threadsafe,
            on_durable=self._on_durable,
            group_bytes_max=_LIMITS.commit_group_bytes_max,
            gather_s=_LIMITS.commit_gather_s,
            gather_bytes=_LIMITS.commit_gather_bytes,
        )
        self._caller = Caller(
            secrets.token_bytes(16),
            clock=time.monotonic,
            random_source=random.Random(),  # noqa: S311 - jitter of retries, not a secret
            load_exception=ExceptionLoader().load,
            want_flush=self._flush_caller_soon,
            want_map=_nothing,
        )
        self._caller.streams.call_soon = loop.call_soon_threadsafe
        self._committer = committer
        parts = Collaborators(
            classes=classes,
            engine=engine,
            committer=committer,
            peers=self._peers,
            caller=self._caller,
            loop=loop,
            clock=time.monotonic,
            want_flush=self._want_flush,
            want_turns=self._want_turns,
            marks=guard.marks,
            quarantine=guard.quarantine,
            send_frames=self._send_frames,
        )
        self._host = Host(_host_settings(config), parts)
        self._takers = takers(self._host)
        on_message, on_death = self._on_link_message, self._caller.on_death
        self._links = DoorLinks(
            loop, self._context, on_message=on_message, on_death=on_death, on_drained=_nothing
        )
        door = open_router(self._context, [config.door])
        self._door = Channel(loop, door, self._on_door, self._flush, lambda: self._host.has_room)
        again = functools.partial(self._later, _SEND_AGAIN_S, self._send_waiting)
        self._outgoing = Outgoing(self._door.send, self._peers.forget, again, self._peers.full, _LIMITS)
        self._peers.on_many_bytes = self._send_replies
        self._control = Channel(loop, open_dealer(self._context, config.control), self._on_control)

    # --- the story of a worker

    async def run(self) -> WorkerExit:
        """Serves until it is told to stop, and stops in order."""
        stop = asyncio.Event()
        self._loop.add_signal_handler(signal.SIGTERM, stop.set)
        self._guard.watch(self._host, self._loop)
        self._tick()
        self._follow()
        self._ready()
        log.info("worker is up", extra={"epoch": self._config.epoch, "slots": list(self._config.slots)})
        await stop.wait()
        await self._drain()
        await self._say_goodbye()
        cut = self._host.busy
        self._close()
        if cut:
            log.error("worker stopped; turns that had not ended were cut off", extra={"objects": cut})
            return WorkerExit.TURNS_CUT
        log.info("worker stopped", extra={"epoch": self._config.epoch, "turns": self._host.turns})
        return WorkerExit.STOPPED

    async def _drain(self) -> None:
        """Takes no new calls, and lets running turns end, here and where they may call this worker.

        At most for `drain_timeout_s`, whatever the supervisor says.  At return all that was written is
        durable and told, and nothing more is let in.
        """
        began = self._loop.time()
        self._host.drain()
        told = False
        while self._loop.time() - began < _LIMITS.drain_timeout_s:
            self._flush()
            # Quiet is of this moment: calls of other workers' turns may start turns here until the end.
            if self._is_quiet():
                if self._may_close:
                    break
                told = told or self._tell("quiet")
            await asyncio.sleep(_DRAIN_LOOK_S)
        self._closing = True
        last = self._host.last_group()
        while self._committer.durable < last:
            self._flush()
            await asyncio.sleep(_GOODBYE_LOOK_S)

    def _is_quiet(self) -> bool:
        """No turn runs or waits, no write or output waits for the disk, no call of ours is on its way."""
        return (
            not self._committer.uncommitted_bytes
            and not len(self._host.gate)
            and not self._host.busy
            and all(call.answer.done() for call in self._caller.pending.values())
        )

    async def _say_goodbye(self) -> None:
        """Peers say when they have sent their last message, so that none vanishes with the socket."""
        self._flush()
        goodbye = protocol.header(protocol.GOODBYE, self._config.index, self._config.epoch)
        deadline, again_at = self._loop.time() + _LIMITS.goodbye_timeout_s, 0.0
        while (waiting := self._peers.identities() - self._acknowledged) and self._loop.time() < deadline:
            if self._loop.time() >= again_at:  # that a peer went away meanwhile shows in a send only
                again_at = self._loop.time() + _GOODBYE_AGAIN_S
                for identity in waiting:
                    self._outgoing.send(identity, goodbye, b"")
            await asyncio.sleep(_GOODBYE_LOOK_S)
        self._flush()

    def _close(self) -> None:
        """The last writes reach the disk, the last replies the kernel, then everything is closed."""
        self._committer.close()
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._links.close()
        self._door.close(_LAST_WORDS_MS)
        self._control.close(_LAST_WORDS_MS)
        self._host.close()
        self._guard.close()
        self._context.term()

    # --- messages at the door

    def _on_door(self, frames: list[bytes]) -> None:
        identity = frames[0]
        self._committer.gathered()
        try:
            if len(frames) != 3:
                raise InvalidArgument(f"a message has 2 frames, this one {len(frames) - 1}")
            head = protocol.read_header(frames[1])
            if head.kind == protocol.BUNDLE:
                self._on_bundle(identity, frames[2])
            elif head.kind == protocol.GOODBYE_ACK:
                self._acknowledged.add(identity)
            elif head.kind == protocol.TAKEN:
                self._outgoing.taken(identity, head.stamp)
            else:
                self._on_calls(identity, None, head, frames[1], frames[2])
        except PerdureError as error:
            self._refuse_message(identity, None, error, b"")

    def _on_bundle(self, identity: bytes, body: bytes) -> None:
        parts = codec.decode(body)  # bounded: five million empty maps held the loop for seconds
        if type(parts) is not list or len(parts) % 3 or not set(map(type, parts)) <= {bytes}:
            raise InvalidArgument("a bundle is a list of bytes, three for each message")
        for origin, header, calls in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            try:
                self._on_calls(identity, origin, protocol.read_header(header), header, calls)
            except PerdureError as error:
                self._refuse_message(identity, origin, error, calls)

    def _on_calls(
        self, identity: bytes, origin: bytes | None, head: protocol.Header, header: bytes, body: bytes
    ) -> None:
        if head.kind == protocol.BATCH:
            if self._closing:
                self._send_refusal(identity, origin, ShardUnavailable("this worker is stopping"), body)
            else:
                self._host.on_calls(self._peers.get(identity, origin), body, head.stamp)
        elif (take := self._takers.get(head.kind)) is not None:
            if head.number == self._config.epoch:
                take(identity, origin, body)
        elif head.kind == protocol.CALL:
            call = protocol.read_call_header(header)
            peer = self._peers.get(identity, origin, raw=True)
            try:
                self._host.on_calls(peer, body, call.stamp)
            except InvalidArgument as error:
                self._host.refuse(peer, call.sequence, error)
        else:
            raise InvalidArgument(f"a worker's door takes no message of kind {head.kind}")

    def _refuse_message(
        self, identity: bytes, origin: bytes | None, error: PerdureError, body: bytes
    ) -> None:
        self._counts["refused_messages"] += 1
        if self._counts["refused_messages"] % 1000 == 1:
            log.warning("a message was refused: %s", error, extra=self._figures())
        self._send_refusal(identity, origin, error, body if len(body) <= _LIMITS.batch_bytes_max else b"")

    def _send_refusal(self, identity: bytes, origin: bytes | None, error: PerdureError, body: bytes) -> None:
        """Nothing of it ran; a batch that goes back with the refusal tells its sender of which calls."""
        header = protocol.header(protocol.REFUSED, self._config.index, self._config.epoch)
        answer = codec.encode([*to_wire(error), body] if body else to_wire(error))
        if origin is not None:
            answer = msgpack.packb([origin, header, answer])
            header = protocol.header(protocol.BUNDLE, self._config.index, self._config.epoch)
        self._outgoing.send(identity, header, answer)

    # --- what leaves

    def _on_durable(self, group: int) -> None:
        # The committer has handed the next group to the disk already; now the answers leave.
        self._host.on_durable(group)
        self._flush()

    def _want_flush(self) -> None:
        if not self._flush_wanted:
            self._flush_wanted = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """End of a tick: commits start, then replies leave, one message per peer."""
        self._flush_wanted = False
        self._host.pace.end()
        if self._closed:
            return
        self._committer.flush()
        self._send_replies()
        self._outgoing.send_some()
        if self._host.gateways.waiting:
            self._host.gateways.send()

    def _send_frames(self, identity: bytes, body: bytes) -> bool | None:
        header = protocol.header(protocol.FRAMES, self._config.index, self._config.epoch)
        return self._outgoing.try_send(identity, header, body)

    def _send_replies(self) -> None:
        if self._peers.dirty or self._peers.posted:
            for identity, header, body in self._peers.take_messages(msgpack.packb):
                if identity:
                    self._outgoing.send(identity, header, body)
                elif header[1] == protocol.PULL:
                    index, epoch = self._config.index, self._config.epoch
                    self._loop.call_soon(self._caller.streams.uploads.on_pull, index, epoch, body)
                else:
                    self._loop.call_soon(self._caller.on_replies, self._config.epoch, body)

    def _send_waiting(self) -> None:
        self._outgoing.send_waiting()

    def _want_turns(self) -> None:
        if not self._turns_wanted:
            self._turns_wanted = True
            self._loop.call_soon(self._run_turns)

    def _run_turns(self) -> None:
        self._turns_wanted = False
        if not self._closed:
            self._host.go_on()
            self._flush()

    # --- calls of this worker's objects to others

    def _flush_caller_soon(self) -> None:
        self._loop.call_soon(self._flush_caller)

    def _flush_caller(self) -> None:
        if self._caller.flush(self._send_call):
            self._later(_SEND_AGAIN_S, self._flush_caller)

    def _send_call(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool:
        if worker != self._config.index:
            return self._links.send(worker, epoch, header, body)
        if epoch != self._config.epoch:
            return False
        self._loop.call_soon(self._on_home_message, protocol.read_header(header), body)
        return True

    def _on_home_message(self, head: protocol.Header, body: bytes) -> None:
        if self._closed:
            return
        if head.kind == protocol.STREAM:
            self._host.streams.on_message(self._home.identity, self._home.origin, body)
        elif head.kind == protocol.PART:
            self._host.streams.bodies.on_message(self._home.identity, self._home.origin, body)
        else:
            self._host.on_calls(self._home, body, head.stamp)
        self._flush()

    def _on_link_message(self, worker: int, epoch: int, head: protocol.Header, body: bytes) -> None:
        if head.kind == protocol.REPLIES:
            self._caller.on_replies(epoch, body)
        elif head.kind == protocol.STALE:
            self._caller.on_stale(body)
        elif head.kind == protocol.REFUSED:
            self._caller.on_refused(body)
        elif head.kind == protocol.PULL:
            self._caller.streams.uploads.on_pull(worker, epoch, body)

    # --- the supervisor

    def _on_control(self, frames: list[bytes]) -> None:
        try:
            message = codec.decode(frames[0])
            if message.get("type") == "map":
                slot_map = slot_map_from_wire(message["map"])
                if self._caller.on_map(slot_map):
                    self._links.follow(slot_map, skip=self._config.index)
                    self._flush_caller()
            elif message.get("type") == "close":
                self._may_close = True
        except (PerdureError, AttributeError, KeyError) as error:
            log.error("the supervisor sent what is no message: %s", error)

    def _ready(self) -> None:
        if self._tell("ready", endpoint=self._config.door):
            self._later(_LIMITS.heartbeat_interval_s, self._beat)
        else:  # the connection is not up yet
            self._later(_SEND_AGAIN_S, self._ready)

    def _beat(self) -> None:
        self._later(_LIMITS.heartbeat_interval_s, self._beat)
        self._tell("beat", stats={**self._host.stats(), **self._figures()})

    def _figures(self) -> dict[str, int]:
        """Figures of the door."""
        return {
            **self._counts,
            "dropped_replies": self._outgoing.dropped,
            "unsent_bytes": self._door.unsent_bytes + self._outgoing.waiting.total_bytes,
            "descriptors": self._descriptors.look(),
        }

    def _tell(self, kind: str, **facts: Any) -> bool:
        """A message to the supervisor; False when it cannot leave now."""
        who = {"role": "worker", "index": self._config.index, "epoch": self._config.epoch, "pid": os.getpid()}
        try:
            self._control.send((codec.encode({"type": kind, **who, **facts}),))
        except WouldBlock:
            return False
        return True

    # --- time

    def _tick(self) -> None:
        self._later(_TICK_S, self._tick)
        self._host.tick()
        self._host.gateways.tick(reading=self._host.has_room and not self._host.draining)
        self._caller.tick()
        self._host.evict_idle()
        self._flush()

    def _follow(self) -> None:
        """Opens the links again that a door closed without dying."""
        self._later(_FOLLOW_S, self._follow)
        if self._caller.map is not None:
            self._links.follow(self._caller.map, skip=self._config.index)

    def _later(self, delay_s: float, callback: Callable[[], None]) -> None:
        """A timer for the callback, unless it has one already; `_close` cancels all."""
        if callback not in self._timers and not self._closed:
            self._timers[callback] = self._loop.call_later(delay_s, self._on_time, callback)

    def _on_time(self, callback: Callable[[], None]) -> None:
        del self._timers[callback]
        callback()


def main(argument: str) -> WorkerExit:
    """Runs a worker; the exit code tells the supervisor why it ended."""
    config = WorkerConfig.from_json(argument)
    logs.setup(f"worker-{config.index}", log_json=config.log_json, level=config.log_level)
    lifeline.end_with(config.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    descriptors.raise_limit()
    try:
        classes = load_application(config.app)
    except ApplicationError as error:
        level = logging.ERROR if is_first_to_say(str(error), config.door) else logging.DEBUG
        log.log(level, "the application cannot be loaded: %s", error)
        return WorkerExit.APP_NOT_LOADED
    try:
        shard = Path(config.shard)
        engine = MemoryEngine() if config.engine == "memory" else open_shard(shard, epoch=config.epoch)
        fold(engine, int(time.time()))
        guard = Guard(config, engine, _LIMITS)
    except Exception as error:
        log.critical("the store cannot be opened: %s", error, extra={"shard": config.shard})
        return exit_of_open(error)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(*_GC_THRESHOLDS)
    gc.freeze()
    return uvloop.run(_serve(config, classes, engine, guard))


def _nothing() -> None:
    """The supervisor sends maps by itself, and the loop flushes at the end of each tick."""


def _host_settings(config: WorkerConfig) -> HostSettings:
    return HostSettings(
        slots=range(*config.slots),
        slot_count=config.slot_count,
        idle_evict_s=config.idle_evict_s,
        live_objects_max=config.live_objects_max,
        epoch=config.epoch,
        tracebacks=config.dev,
    )


async def _serve(
    config: WorkerConfig, classes: dict[str, ObjectClass], engine: Engine, guard: Guard
) -> WorkerExit:
    code = await Worker(config, classes, engine, asyncio.get_running_loop(), guard).run()
    if code is WorkerExit.TURNS_CUT:
        # All is stored and closed.  A thread that works on, or a method that catches its cancellation,
        # must not hold up the end of the process.
        logging.shutdown()
        os._exit(code)
    return code
