"""The worker process: sockets, timers and signals around one `Host`.  Started by the supervisor only.

One door (a ROUTER whose endpoint carries this incarnation's epoch), one event loop, one store.  It
ends with its supervisor, stops in order on SIGTERM, and ends at once when a write to its store fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import resource
import secrets
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

import msgpack
import uvloop
import zmq

from perdure import codec, lifeline, logs, protocol
from perdure.calls import Caller
from perdure.channel import Channel, PeerGone, WouldBlock, open_dealer, open_router
from perdure.errors import InvalidArgument, PerdureError, to_wire
from perdure.limits import Limits
from perdure.links import DoorLinks
from perdure.remote_errors import load_exception
from perdure.slotmap import slot_map_from_wire
from perdure_storage.commit import Committer
from perdure_storage.engine import Engine
from perdure_storage.errors import NewerFormat, ShardLocked, StaleEpoch
from perdure_storage.memory import MemoryEngine
from perdure_storage.shard import open_shard
from perdure_worker.config import WorkerConfig
from perdure_worker.host import Host
from perdure_worker.loader import ApplicationError, load_application
from perdure_worker.peers import Peer, Peers
from perdure_worker.registry import ObjectClass
from perdure_worker.settings import Collaborators, HostSettings

__all__ = ["EXIT_APPLICATION", "Worker", "main"]

log = logging.getLogger("perdure.worker")

EXIT_STALE_EPOCH, EXIT_DAMAGED, EXIT_NEWER_FORMAT, EXIT_LOCKED, EXIT_APPLICATION = 71, 72, 73, 74, 78
_EXITS = ((StaleEpoch, EXIT_STALE_EPOCH), (NewerFormat, EXIT_NEWER_FORMAT), (ShardLocked, EXIT_LOCKED))

_LIMITS = Limits()
_TICK_S = 0.05
_EVICT_S = 1.0
_SEND_AGAIN_S = 0.005
_LAST_WORDS_MS = 1_000
"""How long a stopping door may take to hand its last replies to the kernel."""
# The committer thread needs the interpreter right after fdatasync; with Python's 5 ms it waited that
# long behind a busy loop.  See docs/decisions/0004-figures-of-the-loop.md.
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
    ) -> None:
        self._config = config
        self._loop = loop
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._flush_wanted = False
        self._turns_wanted = False
        self._again: asyncio.TimerHandle | None = None
        self._backlog: dict[bytes, deque[tuple[bytes, bytes]]] = {}
        self._backlog_bytes: dict[bytes, int] = {}
        self._acknowledged: set[bytes] = set()
        self._stopping = False
        self._counts = {"refused_messages": 0, "dropped_replies": 0}
        self._peers = Peers(config.index, config.epoch)
        self._home = Peer(b"", None, raw=False)
        """This worker as a caller of its own objects."""
        committer = Committer(
            engine,
            notify=loop.call_soon_threadsafe,
            on_durable=self._on_durable,
            group_bytes_max=_LIMITS.commit_group_bytes_max,
        )
        self._caller = Caller(
            secrets.token_bytes(16),
            clock=time.monotonic,
            random_source=random.Random(),  # noqa: S311 - jitter of retries, not a secret
            load_exception=load_exception,
            want_flush=self._flush_caller_soon,
            want_map=_nothing,
        )
        self._committer = committer
        settings = HostSettings(
            slots=range(*config.slots),
            slot_count=config.slot_count,
            idle_evict_s=config.idle_evict_s,
            live_objects_max=config.live_objects_max,
            tracebacks=config.dev,
        )
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
        )
        self._host = Host(settings, parts)
        self._links = DoorLinks(
            loop,
            self._context,
            on_message=self._on_link_message,
            on_death=self._caller.on_death,
            on_drained=_nothing,
        )
        self._door = Channel(loop, open_router(self._context, [config.door]), self._on_door, self._flush)
        self._control = Channel(loop, open_dealer(self._context, config.control), self._on_control)

    # --- the story of a worker

    async def run(self) -> None:
        """Serves until it is told to stop."""
        stop = asyncio.Event()
        self._stop = stop
        self._loop.add_signal_handler(signal.SIGTERM, stop.set)
        self._tick()
        self._ready()
        log.info("worker is up", extra={"epoch": self._config.epoch, "slots": list(self._config.slots)})
        await stop.wait()
        await self._shut_down()

    async def _shut_down(self) -> None:
        """An ordered stop: nobody is left with an unknown outcome."""
        host, began = self._host, time.monotonic()
        # 1. Take no new calls; what waits is answered as not executed, running turns go on.
        self._stopping = True
        host.drain()
        self._flush()
        # 2. Running turns end, bounded by drain_timeout_s.
        while host.busy and time.monotonic() - began < _LIMITS.drain_timeout_s:
            await asyncio.sleep(_TICK_S / 5)
        # 3. What they wrote becomes durable and their answers leave.
        while self._committer.dirty or self._committer.uncommitted_bytes or len(host.gate):
            self._flush()
            await asyncio.sleep(_TICK_S / 25)
        self._flush()
        # 4. Peers learn that the door closes, and say when they have sent their last message: whatever
        #    was on its way is answered as not executed instead of vanishing with the socket.
        waiting = self._peers.identities()
        for identity in waiting:
            self._send(
                identity, protocol.header(protocol.GOODBYE, self._config.index, self._config.epoch), b""
            )
        began = time.monotonic()
        while waiting - self._acknowledged and time.monotonic() - began < _LIMITS.goodbye_timeout_s:
            await asyncio.sleep(_TICK_S / 25)
            waiting &= self._peers.identities()
        self._flush()
        # 5. The last replies reach the kernel, then everything is closed.
        self._links.close()
        self._door.close(_LAST_WORDS_MS)
        self._control.close(_LAST_WORDS_MS)
        self._committer.close()
        self._context.term()
        log.info("worker stopped", extra={"epoch": self._config.epoch, "turns": host.turns})

    # --- messages at the door

    def _on_door(self, frames: list[bytes]) -> None:
        identity = frames[0]
        try:
            if len(frames) != 3:
                raise InvalidArgument(f"a message has 2 frames, this one {len(frames) - 1}")
            head = protocol.read_header(frames[1])
            if head.kind == protocol.BUNDLE:
                self._on_bundle(identity, frames[2])
            elif head.kind == protocol.GOODBYE_ACK:
                self._acknowledged.add(identity)
            else:
                self._on_calls(identity, None, head, frames[1], frames[2])
        except PerdureError as error:
            self._refuse_message(identity, None, error, b"")

    def _on_bundle(self, identity: bytes, body: bytes) -> None:
        try:
            parts = msgpack.unpackb(body, max_array_len=_LIMITS.message_bytes_max)
            triples = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"a bundle could not be read: {error}") from None
        for origin, header, calls in triples:
            try:
                self._on_calls(identity, origin, protocol.read_header(header), header, calls)
            except PerdureError as error:
                self._refuse_message(identity, origin, error, calls)

    def _on_calls(
        self, identity: bytes, origin: bytes | None, head: protocol.Header, header: bytes, body: bytes
    ) -> None:
        if head.kind == protocol.BATCH:
            self._host.on_calls(self._peers.get(identity, origin), body, head.stamp)
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
            log.warning("a message was refused: %s", error, extra=dict(self._counts))
        header = protocol.header(protocol.REFUSED, self._config.index, self._config.epoch)
        answer = codec.encode([*to_wire(error), body if len(body) <= _LIMITS.batch_bytes_max else None])
        if origin is not None:
            answer = msgpack.packb([origin, header, answer])
            header = protocol.header(protocol.BUNDLE, self._config.index, self._config.epoch)
        self._send(identity, header, answer)

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
        self._committer.flush()
        if self._peers.dirty:
            for identity, header, body in self._peers.take_messages(msgpack.packb):
                if identity:
                    self._send(identity, header, body)
                else:
                    self._loop.call_soon(self._caller.on_replies, self._config.epoch, body)

    def _send(self, identity: bytes, header: bytes, body: bytes) -> None:
        queue = self._backlog.get(identity)
        if queue is None:
            if self._send_now(identity, header, body):
                return
            queue = self._backlog[identity] = deque()
            self._backlog_bytes[identity] = 0
            if self._again is None:
                self._again = self._loop.call_later(_SEND_AGAIN_S, self._send_backlog)
        if self._backlog_bytes[identity] + len(body) > _LIMITS.reply_queue_bytes_max:
            self._counts["dropped_replies"] += 1
            return
        self._backlog_bytes[identity] += len(body)
        queue.append((header, body))

    def _send_now(self, identity: bytes, header: bytes, body: bytes) -> bool:
        try:
            self._door.send((identity, header, body))
        except WouldBlock:
            return False
        except PeerGone:
            self._peers.forget(identity)
        return True

    def _send_backlog(self) -> None:
        self._again = None
        for identity, queue in list(self._backlog.items()):
            while queue and self._send_now(identity, *queue[0]):
                self._backlog_bytes[identity] -= len(queue.popleft()[1])
            if not queue:
                del self._backlog[identity], self._backlog_bytes[identity]
        if self._backlog:
            self._again = self._loop.call_later(_SEND_AGAIN_S, self._send_backlog)

    def _want_turns(self) -> None:
        if not self._turns_wanted:
            self._turns_wanted = True
            self._loop.call_soon(self._run_turns)

    def _run_turns(self) -> None:
        self._turns_wanted = False
        self._host.run_waiting()
        self._flush()

    # --- calls of this worker's objects to others

    def _flush_caller_soon(self) -> None:
        self._loop.call_soon(self._flush_caller)

    def _flush_caller(self) -> None:
        if self._caller.flush(self._send_call):
            self._loop.call_later(_SEND_AGAIN_S, self._flush_caller)

    def _send_call(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool:
        if worker != self._config.index:
            return self._links.send(worker, epoch, header, body)
        if epoch != self._config.epoch:
            return False
        self._loop.call_soon(self._on_home_call, body, protocol.read_header(header).stamp)
        return True

    def _on_home_call(self, body: bytes, stamp: int) -> None:
        self._host.on_calls(self._home, body, stamp)
        self._flush()

    def _on_link_message(self, worker: int, epoch: int, head: protocol.Header, body: bytes) -> None:
        if head.kind == protocol.REPLIES:
            self._caller.on_replies(epoch, body)
        elif head.kind == protocol.STALE:
            self._caller.on_stale(body)
        elif head.kind == protocol.REFUSED:
            self._caller.on_refused(body)

    # --- the supervisor

    def _on_control(self, frames: list[bytes]) -> None:
        try:
            message = codec.decode(frames[0])
            if message.get("type") == "map":
                slot_map = slot_map_from_wire(message["map"])
                if self._caller.on_map(slot_map):
                    self._links.follow(slot_map, skip=self._config.index)
                    self._flush_caller()
            elif message.get("type") == "stop":
                self._stop.set()
        except (PerdureError, AttributeError, KeyError) as error:
            log.error("the supervisor sent what is no message: %s", error)

    def _ready(self) -> None:
        try:
            self._control.send((codec.encode({**self._who("ready"), "endpoint": self._config.door}),))
        except WouldBlock:  # the connection is not up yet
            self._loop.call_later(_SEND_AGAIN_S, self._ready)
        else:
            self._loop.call_later(_LIMITS.heartbeat_interval_s, self._beat)

    def _beat(self) -> None:
        self._loop.call_later(_LIMITS.heartbeat_interval_s, self._beat)
        with contextlib.suppress(WouldBlock):  # a supervisor that does not read is not this worker's trouble
            self._control.send(
                (codec.encode({**self._who("beat"), "stats": {**self._host.stats(), **self._counts}}),)
            )

    def _who(self, kind: str) -> dict[str, Any]:
        config = self._config
        return {
            "type": kind,
            "role": "worker",
            "index": config.index,
            "epoch": config.epoch,
            "pid": os.getpid(),
        }

    def _tick(self, evict_at: float = 0.0) -> None:
        self._host.tick()
        self._caller.tick()
        now = self._loop.time()
        if now >= evict_at:
            self._host.evict_idle()
            if self._caller.map is not None:  # opens again what a door closed without dying
                self._links.follow(self._caller.map, skip=self._config.index)
            evict_at = now + _EVICT_S
        self._flush()
        self._loop.call_later(_TICK_S, self._tick, evict_at)


def main(argument: str) -> int:
    """Runs a worker; the exit code tells the supervisor why it ended (see supervision's table)."""
    config = WorkerConfig.from_json(argument)
    logs.setup(f"worker-{config.index}", log_json=config.log_json, level=config.log_level)
    lifeline.end_with(config.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        classes = load_application(config.app)
        engine: Engine = (
            MemoryEngine()
            if config.engine == "memory"
            else open_shard(Path(config.shard), epoch=config.epoch)
        )
    except ApplicationError as error:
        log.error("the application cannot be loaded: %s", error)
        return EXIT_APPLICATION
    except PerdureError as error:
        log.critical("the store cannot be opened: %s", error, extra={"shard": config.shard})
        return next((code for kind, code in _EXITS if isinstance(error, kind)), EXIT_DAMAGED)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    gc.set_threshold(*_GC_THRESHOLDS)
    gc.freeze()
    uvloop.run(_serve(config, classes, engine))
    return 0


def _nothing() -> None:
    """The supervisor sends maps by itself, and the loop flushes at the end of each tick."""


async def _serve(config: WorkerConfig, classes: dict[str, ObjectClass], engine: Engine) -> None:
    await Worker(config, classes, engine, asyncio.get_running_loop()).run()
