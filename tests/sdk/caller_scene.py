"""A `Caller` with a clock that the test winds, and workers that the test plays."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from perdure import codec, protocol
from perdure.calls import Caller
from perdure.errors import PerdureError, to_wire
from perdure.ids import id_from_name
from perdure.limits import Limits
from perdure.methods import Method
from perdure.pending import Answer
from perdure.protocol import Header, Item
from perdure.slotmap import Seat, SlotMap, contiguous_ranges
from perdure.stub import make_target

LIMITS = Limits()
CLIENT = b"c" * 16
TICK_S = 0.05


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def map_of(version: int, *epochs: int, boot: str = "") -> SlotMap:
    """A map with one worker for each epoch; 0 stands for a worker that is down."""
    seats = tuple(Seat(epoch, f"ipc://w{i}.e{epoch}" if epoch else "") for i, epoch in enumerate(epochs))
    return SlotMap(version, tuple(contiguous_ranges(1024, len(epochs))), seats, boot)


@functools.cache
def name_at(worker: int, workers: int = 2, number: int = 0) -> str:
    """The name of an object that belongs to a worker; another one for another number."""
    slot_map = map_of(1, *[1] * workers)
    names = (f"object-{i}" for i in range(100_000))
    at_worker = (n for n in names if slot_map.worker_of(id_from_name("Counter", n).key) == worker)
    for _ in range(number):
        next(at_worker)
    return next(at_worker)


@dataclass(frozen=True)
class Sent:
    """A batch that left."""

    worker: int
    epoch: int
    header: Header
    body: bytes

    @property
    def items(self) -> list[Item]:
        (client, *_), *items = codec.decode(self.body)
        assert client == CLIENT
        return [Item(*item) for item in items]

    @property
    def methods(self) -> list[str]:
        return [item.method for item in self.items]


class Scene:
    """One client; `sent` is what has left, oldest first."""

    def __init__(
        self,
        slot_map: SlotMap | None = None,
        load: Callable[[Any], Exception] = Exception,
        retry: bool = True,
    ) -> None:
        self.clock = Clock()
        self.sent: list[Sent] = []
        self.takes: Callable[[int], bool] = lambda worker: True
        """Whether the pipe to a worker takes a message."""
        self.flushes_wanted = 0
        self.maps_wanted = 0
        self.caller = Caller(
            CLIENT,
            clock=self.clock,
            random_source=random.Random(1),
            retry=retry,
            load_exception=load,
            want_flush=self._want_flush,
            want_map=self._want_map,
        )
        if slot_map is not None:
            self.caller.on_map(slot_map)

    def _want_flush(self) -> None:
        self.flushes_wanted += 1

    def _want_map(self) -> None:
        self.maps_wanted += 1

    def _send(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool:
        if not self.takes(worker):
            return False
        self.sent.append(Sent(worker, epoch, protocol.read_header(header), body))
        return True

    # --- the user

    def call(
        self,
        method: str = "increment",
        *args: Any,
        worker: int = 0,
        name: str | None = None,
        timeout: float = 30.0,
        spec: Method | None = None,
        answer: Answer | None = None,
    ) -> Future[Any]:
        """Starts a call to an object of a worker."""
        future: Future[Any] = Future()
        target = make_target("Counter", name or name_at(worker), timeout, {})
        self.caller.call(target, method, list(args), None, spec, future if answer is None else answer)
        return future

    def flush(self) -> bool:
        """The end of a loop tick."""
        return self.caller.flush(self._send)

    def start(self, method: str = "increment", *args: Any, **options: Any) -> Future[Any]:
        """A call that was sent."""
        future = self.call(method, *args, **options)
        self.flush()
        return future

    # --- the workers

    def reply(self, sequence: int, value: Any = None, *, epoch: int = 1) -> None:
        self.replies([sequence, protocol.STATUS_RESULT, value], epoch=epoch)

    def fail(self, sequence: int, error: PerdureError, *, epoch: int = 1) -> None:
        self.replies([sequence, protocol.STATUS_ERROR, to_wire(error)], epoch=epoch)

    def replies(self, *replies: list[Any], epoch: int = 1) -> None:
        self.caller.on_replies(epoch, codec.encode(list(replies)))

    def stale(self, sent: Sent, slot_map: SlotMap | None) -> None:
        wire_map = slot_map.to_wire() if slot_map is not None else None
        self.caller.on_stale(codec.encode([wire_map, sent.body]))

    def refuse(self, sent: Sent | None, error: PerdureError) -> None:
        self.caller.on_refused(codec.encode([*to_wire(error), sent.body if sent is not None else None]))

    # --- time

    def pass_time(self, seconds: float, step: float = TICK_S) -> None:
        """Time passes, with a tick and a flush at each step, as a client's loop does it."""
        end = self.clock.now + seconds
        while self.clock.now < end - 1e-9:
            self.clock.now = min(end, self.clock.now + step)
            self.caller.tick()
            self.flush()

    def time_until_done(self, future: Future[Any], step: float = 0.001) -> float:
        """Seconds until the call ends."""
        began = self.clock.now
        while not future.done():
            assert self.clock.now - began < 4_000, "the call never ends"
            self.pass_time(step, step)
        return self.clock.now - began

    # --- leaks

    def assert_nothing_is_kept(self) -> None:
        """No trace of any call is left, now that the longest deadline is over."""
        caller = self.caller
        self.pass_time(LIMITS.call_timeout_s + 1, step=5.0)
        assert not caller.pending
        assert not caller._queues
        assert not caller._delayed
        assert not len(caller._deadlines)
        assert caller._queued_bytes == 0
