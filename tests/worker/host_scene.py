"""What the worker's tests share: one host with a store in memory, a disk and a clock that tests move by hand.

`Scene` is the shell of `process.py` without sockets: calls come in as encoded batches, objects call each
other through a loopback, replies are decoded as callers would.  Nothing happens by itself: a commit is
durable when `commit()` says so, and time passes in `advance()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from perdure import codec, protocol
from perdure.calls import Caller
from perdure.errors import from_wire
from perdure.ids import ObjectId, id_from_name
from perdure.limits import Limits
from perdure.object import DurableObject, namespace_of
from perdure.remote_errors import load_exception
from perdure.slotmap import Seat, SlotMap
from perdure.streams import STOP
from perdure_storage import keys, records
from perdure_storage.commit import Committer
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_worker.host import Host
from perdure_worker.peers import Peer, Peers
from perdure_worker.registry import register
from perdure_worker.resident import Resident
from perdure_worker.settings import Collaborators, HostSettings
from worker.stepped_loop import LOOP_START_S, SteppedLoop

CLIENT = b"client"
_CLIENT_IDS = itertools.count(1)
SLOTS = 16
EPOCH = 7
REAL_DEADLINE_S = 20.0
WALL_S = 1_700_000_000.0
"""The wall clock at the start of a scene."""


class Sent:
    """A call that was sent, and its answer once that has left the worker."""

    def __init__(self, scene: Scene, peer: Peer, sequence: int) -> None:
        self._scene = scene
        self._peer = peer
        self.sequence = sequence

    @property
    def reply(self) -> list[Any] | None:
        replies = self._scene.by_sequence.get((self._peer.identity, self.sequence), [])
        assert len(replies) <= 1, f"the call was answered more than once: {replies}"
        return replies[0] if replies else None

    @property
    def answered(self) -> bool:
        return self.reply is not None

    def result(self) -> Any:
        """What the caller gets: the result, or its error is raised."""
        reply = self.reply
        assert reply is not None, "no answer has left the worker"
        if reply[1] == protocol.STATUS_RESULT:
            return reply[2]
        raise self.error()

    def error(self) -> BaseException:
        """The error that the caller gets."""
        reply = self.reply
        assert reply is not None, "no answer has left the worker"
        assert reply[1] != protocol.STATUS_RESULT, f"no error, the result is {reply[2]!r}"
        return load_exception(reply[2]) if reply[1] == protocol.STATUS_RAISED else from_wire(*reply[2])


class SentStream(Sent):
    """A call of a streaming method; everything that has left the worker for it."""

    @property
    def replies(self) -> list[list[Any]]:
        return self._scene.by_sequence.get((self._peer.identity, self.sequence), [])

    @property
    def items(self) -> list[Any]:
        return [payload for _, status, payload in self.replies if status == protocol.STATUS_ITEM]

    @property
    def reply(self) -> list[Any] | None:
        """What ended it; nothing comes after that."""
        ends = [reply for reply in self.replies if reply[1] != protocol.STATUS_ITEM]
        assert len(ends) <= 1, f"the stream ended more than once: {ends}"
        assert not ends or self.replies[-1] is ends[0], f"items came after the end: {self.replies}"
        return ends[0] if ends else None

    @property
    def count(self) -> int:
        """What the end says of the number of items."""
        assert self.reply is not None, "the stream has not ended"
        assert self.reply[1] == protocol.STATUS_END, self.reply
        count: int = self.reply[2]
        return count

    def took(self, count: int) -> None:
        """The reader says how many items it has taken in all."""
        self._scene.stream_news([self.sequence, count], peer=self._peer)

    def leave(self) -> None:
        """The reader does not want more."""
        self.took(STOP)


class Scene:
    """A worker of one process, one loop and no sockets."""

    def __init__(
        self,
        *classes: type[DurableObject],
        disk: MemoryDisk | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        limits: Limits | None = None,
        slots: range = range(SLOTS),
        caller_slots: range | None = None,
        client_id: bytes = b"",
        tells: bool = True,
        wall_clock: Callable[[], float] | None = None,
        **settings: Any,
    ) -> None:
        self.loop = loop or SteppedLoop()
        self.limits = limits or Limits()
        self.engine = MemoryEngine(disk)
        self.wall_step_s = 0.0
        """By how much somebody has set the wall clock."""
        self.jobs: deque[Callable[[], None]] = deque()
        self.loop_errors: list[dict[str, Any]] = []
        self.client_id = client_id or next(_CLIENT_IDS).to_bytes(16, "big")
        """Of whoever calls; the client of another scene is another one, unless a test says otherwise."""
        self._tells = tells  # which of its calls have ended, as our clients do
        self._sequence = self._flushes = 0
        self._held: list[Any] | None = None
        self._replies: dict[bytes, list[list[Any]]] = {}
        self.by_sequence: dict[tuple[bytes, int], list[list[Any]]] = {}
        self.kinds: list[int] = []
        """Of the messages with replies that have left."""
        self.probes: list[bytes] = []
        """Who was sent something that asks for nothing."""
        self.on_frames: Callable[[bytes, bytes], bool | None] = lambda identity, body: None  # no gateway
        self.pulls: list[tuple[int, int]] = []
        """What was asked for of bodies: upload, offset."""
        self._wanted = {"flush": False, "turns": False}
        self._home = Peer(b"", None, raw=False)
        self.loop.set_exception_handler(lambda _, context: self.loop_errors.append(context))
        self.committer = Committer(
            self.engine,
            notify=self.loop.call_soon,
            on_durable=self._on_durable,
            group_bytes_max=self.limits.commit_group_bytes_max,
            submit=self.jobs.append,
        )
        self.peers = Peers(0, EPOCH)
        self.client = self.peers.get(CLIENT)
        self.caller = self._make_caller()
        self.host = Host(
            HostSettings(slots=slots, slot_count=SLOTS, limits=self.limits, **settings),
            Collaborators(
                classes=register(classes),
                engine=self.engine,
                committer=self.committer,
                peers=self.peers,
                caller=self.caller,
                loop=self.loop,
                clock=self.loop.time,
                want_flush=lambda: self._want("flush", self._flush),
                want_turns=lambda: self._want("turns", self._run_waiting),
                wall_clock=wall_clock or self.wall_clock,
                randomness=random.Random(len(self.engine.disk)),
                send_frames=lambda identity, body: self.on_frames(identity, body),
            ),
        )

    def _make_caller(self) -> Caller:
        caller = Caller(
            b"w" * 16,
            clock=self.loop.time,
            random_source=random.Random(1),
            load_exception=load_exception,
            want_flush=lambda: self.loop.call_soon(self._flush_caller),
            want_map=lambda: None,
        )
        caller.on_map(SlotMap(1, (range(SLOTS),), (Seat(EPOCH, "home"),)))
        return caller

    # --- the shell

    def _want(self, what: str, run: Callable[[], None]) -> None:
        if not self._wanted[what]:
            self._wanted[what] = True
            self.loop.call_soon(run)

    def _run_waiting(self) -> None:
        self._wanted["turns"] = False
        self.host.go_on()
        self._flush()

    def _on_durable(self, group: int) -> None:
        self.host.on_durable(group)
        self._flush()

    def _flush(self) -> None:
        self._wanted["flush"] = False
        self.host.pace.end()
        self.committer.flush()
        for identity, header, body in self.peers.take_messages(codec.encode):
            if protocol.read_header(header).kind == protocol.PULL:
                self._on_pull(identity, body)
            elif identity == b"":
                self.loop.call_soon(self.caller.on_replies, EPOCH, body)
            elif protocol.read_header(header).kind == protocol.STREAM:
                self.probes.append(identity)
            else:
                is_raw = protocol.read_header(header).kind in (protocol.REPLY, protocol.REPLY_ITEM)
                self.kinds.append(protocol.read_header(header).kind)
                for reply in [codec.decode(body)] if is_raw else codec.decode(body):
                    self.replies_to(identity).append(reply)
                    self.by_sequence.setdefault((identity, reply[0]), []).append(reply)
        self.host.gateways.send()

    def _on_pull(self, identity: bytes, body: bytes) -> None:
        if identity == b"":
            self.loop.call_soon(self.caller.streams.uploads.on_pull, 0, EPOCH, body)
        else:
            self.pulls += [tuple(row) for row in codec.decode(body)]

    def _flush_caller(self) -> None:
        self.caller.flush(self._send_home)

    def _send_home(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool:
        if protocol.read_header(header).kind == protocol.STREAM:
            self.loop.call_soon(self.host.streams.on_message, b"", None, body)
        elif protocol.read_header(header).kind == protocol.PART:
            self.loop.call_soon(self.host.streams.bodies.on_message, b"", None, body)
        else:
            self.loop.call_soon(self._on_home, body, protocol.read_header(header).stamp)
        return True

    def _on_home(self, body: bytes, stamp: int) -> None:
        self.host.on_calls(self._home, body, stamp)
        self._flush()

    # --- time

    def wall_clock(self) -> float:
        """Seconds since the epoch; goes with the loop's clock, but for steps."""
        return WALL_S + self.loop.time() - LOOP_START_S + self.wall_step_s

    def do(self, run: Callable[..., Any], *args: Any) -> Any:
        """Runs a function in the loop, lets everything come to rest, and gives its result or exception."""
        outcome: list[Any] = []

        def guarded() -> None:
            try:
                outcome.append(("result", run(*args)))
            except Exception as error:
                outcome.append(("error", error))
            self._flush()

        self.loop.call_soon(guarded)
        self.settle()
        (kind, value), *_ = outcome
        if kind == "error":
            raise value
        return value

    def settle(self) -> None:
        """Runs the loop until nothing more happens without time passing or the disk writing."""
        for _ in range(100_000):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()
            if isinstance(self.loop, SteppedLoop) and self.loop.at_rest:
                return
            if not isinstance(self.loop, SteppedLoop) and _ > 20:
                return
        raise AssertionError("the loop never comes to rest")

    def advance(self, seconds: float) -> None:
        """Time passes: timers fire one after the other, and the shell ticks at the end."""
        loop = self.loop
        assert isinstance(loop, SteppedLoop)
        target = loop.now + seconds
        self.settle()
        while (when := loop.next_timer) is not None and when <= target:
            loop.now = max(loop.now, when)
            self.settle()
        loop.now = target
        self.do(self.tick)

    def tick(self) -> None:
        self.host.tick()
        self.host.gateways.tick(reading=True)
        self.caller.tick()

    def wait(self, condition: Callable[[], bool]) -> None:
        """Waits for a thread, or for a real clock."""
        deadline = time.monotonic() + REAL_DEADLINE_S
        while True:
            self.settle()
            if condition():
                return
            assert time.monotonic() < deadline, "the condition never came true"
            if isinstance(self.loop, SteppedLoop):
                self.loop.selector.patience_s = 0.02
                with contextlib.suppress(KeyError):
                    self.loop._run_once()  # type: ignore[attr-defined]
                self.loop.selector.patience_s = 0.0

    # --- the disk

    def commit_one(self) -> None:
        """The disk ends with one group."""
        self.settle()
        self.loop.call_soon(self.jobs.popleft())
        self.settle()

    def commit(self) -> None:
        """The disk catches up."""
        self.settle()
        while self.jobs:
            self.commit_one()

    @property
    def disk(self) -> MemoryDisk:
        return self.engine.disk

    def rows(self, cls: Any, name: str | ObjectId, kind: bytes) -> dict[str, Any]:
        """The durable rows of one kind of an object, decoded."""
        start = Resident(self.host.classes[namespace_of(cls)], key_of(cls, name), None).row_prefix() + kind
        return {
            key[len(start) :].decode(): codec.decode(records.unseal(key, record))
            for key, record in self.disk.between(start, keys.prefix_end(start))
        }

    def fields(self, cls: Any, name: str | ObjectId) -> dict[str, Any]:
        """The object's durable fields on disk."""
        return self.rows(cls, name, keys.FIELD)

    def values(self, cls: Any, name: str | ObjectId) -> dict[str, Any]:
        """The object's storage on disk."""
        return self.rows(cls, name, keys.VALUE)

    def listed(self, cls: Any, **options: Any) -> list[tuple[bytes, str | None]]:
        """(id, name) of the namespace's stored objects, as `client.list` finds them."""
        args = [namespace_of(cls), options.get("prefix", ""), options.get("limit", 100), b""]
        _, rows, _ = self.call_worker("list", args)
        return [(row[1], row[2]) for row in rows]

    # --- callers

    def replies_to(self, identity: bytes) -> list[list[Any]]:
        """What has left the worker for a peer, in order."""
        return self._replies.setdefault(identity, [])

    def peer(self, identity: bytes, *, raw: bool = False) -> Peer:
        return self.peers.get(identity, raw=raw)

    def send(self, *items: Any, peer: Peer | None = None, stamp_ms: int = 0, head: Any = None) -> None:
        """One message with these calls, whatever they are."""
        if head is None:
            head = self.client_id if not self._tells or (peer and peer.raw) else self._head()
        self.send_body(codec.encode([head, *items]), peer=peer, stamp_ms=stamp_ms)

    def _head(self) -> list[Any]:
        """As clients begin their messages; none of the calls is said to have ended."""
        self._flushes += 1
        return [self.client_id, self._flushes, self._sequence if self._flushes > 1 else 0, 1]

    def send_body(self, body: bytes, *, peer: Peer | None = None, stamp_ms: int = 0) -> None:
        self.do(self.host.on_calls, peer or self.client, body, stamp_ms)

    def item(
        self,
        cls: Any,
        name: str | ObjectId,
        method: str,
        *args: Any,
        kwargs: dict[str, Any] | None = None,
        timeout_ms: int = 30_000,
        chain: Any = None,
        request: Any = None,
    ) -> list[Any]:
        """A call as it stands in a batch."""
        self._sequence += 1
        known = name if isinstance(name, str) else name.name
        namespace = namespace_of(cls)
        key = key_of(cls, name)
        context = None if chain is None and request is None else [chain, request]
        return [self._sequence, namespace, key, known, method, list(args), kwargs, timeout_ms, context]

    def start(self, cls: Any, name: str | ObjectId, method: str, *args: Any, **options: Any) -> Sent:
        """Sends a call in a message of its own, or with others inside of `one_message()`."""
        peer, stamp_ms = options.pop("peer", None) or self.client, options.pop("stamp_ms", 0)
        item = self.item(cls, name, method, *args, **options)
        if self._held is not None:
            self._held.append(item)
        else:
            self.send(item, peer=peer, stamp_ms=stamp_ms)
        return Sent(self, peer, item[0])

    def stream(self, cls: Any, name: str | ObjectId, method: str, *args: Any, **options: Any) -> SentStream:
        """Sends a call of a streaming method."""
        peer = options.get("peer") or self.client
        return SentStream(self, peer, self.start(cls, name, method, *args, **options).sequence)

    def stream_news(self, *rows: Any, peer: Peer | None = None) -> None:
        """A STREAM message of a reader."""
        peer = peer or self.client
        self.do(self.host.streams.on_message, peer.identity, peer.origin, codec.encode([b"x" * 16, *rows]))

    def part(self, *row: Any, peer: Peer | None = None) -> None:
        """A PART message of whoever sends a request: its upload, offset, data and whether it is the last."""
        peer, take = peer or self.client, self.host.streams.bodies.on_message
        self.do(take, peer.identity, peer.origin, codec.encode([b"x" * 16, [*row]]))

    @contextlib.contextmanager
    def one_message(self) -> Iterator[None]:
        """The calls started inside arrive together."""
        self._held = held = []
        yield
        self._held = None
        self.send(*held)

    def call(self, cls: Any, name: str | ObjectId, method: str, *args: Any, **options: Any) -> Any:
        """Sends a call, lets the disk catch up, and gives the outcome."""
        sent = self.start(cls, name, method, *args, **options)
        self.commit()
        return sent.result()

    def call_worker(self, method: str, args: list[Any]) -> Any:
        """Calls one of the worker's own methods."""
        self._sequence += 1
        self.send([self._sequence, "", b"", None, method, args, None, 0, None])
        return Sent(self, self.client, self._sequence).result()

    # --- inside

    def resident(self, cls: Any, name: str | ObjectId) -> Resident:
        return self.host.live[key_of(cls, name)]

    def is_live(self, cls: Any, name: str | ObjectId) -> bool:
        return key_of(cls, name) in self.host.live

    def close(self) -> None:
        """Ends what still runs; fails when the loop has met an exception that nobody caught."""
        tasks = asyncio.all_tasks(self.loop)
        for _ in range(3):
            for task in tasks:
                task.cancel()
            self.settle()
        self.host.close()
        self.loop.close()
        assert not self.loop_errors, self.loop_errors


async def take_time(seconds: float) -> None:
    """What a method under test does that takes its time, in the clock of its scene."""
    await asyncio.sleep(seconds)  # sleep: methods that suspend are what these tests are about


def key_of(cls: Any, name: str | ObjectId) -> bytes:
    return id_from_name(namespace_of(cls), name).key if isinstance(name, str) else name.key


def results(calls: Iterable[Sent]) -> list[Any]:
    return [call.result() for call in calls]
