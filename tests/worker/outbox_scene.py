"""An outbox with hands that tests move: a disk, targets and a clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import copy
from typing import Any

from perdure import Limits
from perdure_storage import keys
from perdure_worker.messages import DEAD, DELAYED, ORDERED, Message
from perdure_worker.outbox import Outbox, Pair

OnEnd = Callable[[BaseException | None], None]


def prefix_of(sender: str) -> bytes:
    return keys.object_prefix(0, "Sender", sender.encode().ljust(32, b"."))


def target_key(target: str) -> bytes:
    return target.encode().ljust(32, b".")


class Flight:
    """A delivery that has not ended."""

    def __init__(self, message: Message, floor: int, on_end: OnEnd) -> None:
        self.message = message
        self.floor = floor
        self.what = message.body.decode()
        self._on_end = on_end

    def end(self, error: BaseException | None = None) -> None:
        self._on_end(error)


class FakeHands:
    """Rows in a dict; what is removed is durable when `commit` says so."""

    def __init__(self) -> None:
        self.rows: dict[bytes, Message] = {}
        self.flights: list[Flight] = []
        self.down: set[bytes] = set()
        self.reads = 0
        self.now_ms = 1_000
        self._uncommitted: list[Callable[[], None]] = []

    def read(self, pair: bytes, after: int, limit: int) -> tuple[list[Message], bool]:
        self.reads += 1
        found = sorted(
            (m for m in self.rows.values() if m.pair == pair and m.lane == ORDERED and m.sequence > after),
            key=lambda m: m.sequence,
        )
        return [copy(message) for message in found[:limit]], len(found) >= limit

    def read_one(self, prefix: bytes, tail: bytes) -> Message | None:
        message = self.rows.get(prefix + keys.OUTBOX + tail)
        return None if message is None else copy(message)

    def scan(self, after: bytes, limit: int) -> list[tuple[bytes, bytes, bytes]]:
        due = sorted(
            (m.due_row, m.prefix, m.tail)
            for m in self.rows.values()
            if m.lane != DEAD and m.at_ms <= self.now_ms and m.due_row > after
        )
        return due[:limit]

    def reachable(self, message: Message) -> bool:
        return message.key not in self.down

    def deliver(self, message: Message, floor: int, on_end: OnEnd) -> None:
        self.flights.append(Flight(message, floor, on_end))

    def remove(self, message: Message, on_durable: Callable[[Any, Any, Any], None], pair: Pair) -> None:
        def write() -> None:
            del self.rows[message.row]
            on_durable(pair, message, None)

        self._uncommitted.append(write)

    def bury(self, message: Message, on_durable: Callable[[Any, Any, Any], None], pair: Pair) -> None:
        def write() -> None:
            dead = copy(self.rows.pop(message.row))
            dead.lane, dead.attempts, dead.error = DEAD, message.attempts, message.error
            self.rows[dead.row] = dead
            on_durable(pair, message, None)

        self._uncommitted.append(write)

    def remember(self, message: Message) -> None:
        kept = copy(message)
        self._uncommitted.append(lambda: self.rows.update({kept.row: kept}))

    def commit(self) -> None:
        writes, self._uncommitted = self._uncommitted, []
        for write in writes:
            write()


class OutboxScene:
    """One worker's outbox."""

    def __init__(self, hands: FakeHands | None = None, **limits: Any) -> None:
        self.hands = hands or FakeHands()
        self.now = 100.0
        self.limits = Limits(**limits)
        self.outbox = Outbox(self.hands, self.limits, lambda: self.now, random.Random(1))

    def restarted(self) -> OutboxScene:
        """The next incarnation: it has the disk and nothing else."""
        hands = FakeHands()
        hands.rows, hands.down, hands.now_ms = self.hands.rows, self.hands.down, self.hands.now_ms
        scene = OutboxScene(hands)
        scene.limits = self.limits
        scene.outbox = Outbox(hands, self.limits, lambda: scene.now, random.Random(1))
        return scene

    def store(self, sender: str, target: str, what: str, sequence: int, at_ms: int = 0) -> Message:
        message = Message(prefix_of(sender), "Target", target_key(target), target, "take", what.encode())
        message.sequence = sequence
        message.sent_ms = 900
        if at_ms:
            message.lane, message.at_ms = DELAYED, at_ms
        self.hands.rows[message.row] = copy(message)
        return message

    def send(self, sender: str, target: str, what: str, sequence: int) -> None:
        """A turn's commit is durable."""
        self.outbox.offer(self.store(sender, target, what, sequence))
        self.outbox.pump()

    def wake(self, message: Message) -> None:
        self.outbox.wake(message.prefix, message.tail)
        self.outbox.pump()

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.outbox.tick()

    @property
    def flying(self) -> list[str]:
        return [flight.what for flight in self.hands.flights]

    def end(self, what: str, error: BaseException | None = None) -> Flight:
        """The delivery of this message ends."""
        flight = next(flight for flight in self.hands.flights if flight.what == what)
        self.hands.flights.remove(flight)
        flight.end(error)
        return flight

    def drain(self) -> list[str]:
        """Everything that leaves arrives, until nothing leaves any more; what arrived, in order."""
        arrived = []
        for _ in range(10_000):
            self.tick()
            if not self.hands.flights:
                self.hands.commit()
                self.tick()
                if not self.hands.flights:
                    return arrived
            arrived.append(self.end(self.flying[0]).what)
        raise AssertionError("it never comes to rest")

    @property
    def left(self) -> list[str]:
        """What is on disk and not dead."""
        return sorted(m.body.decode() for m in self.hands.rows.values() if m.lane != DEAD)

    @property
    def dead(self) -> list[tuple[str, int, str | None]]:
        return [(m.body.decode(), m.attempts, m.error) for m in self.hands.rows.values() if m.lane == DEAD]
