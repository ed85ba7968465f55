"""`ctx.send`: durable sends of this worker's objects, from the statement to the outbox.

Guarantees: a send is in the batch of the turn that made it, or nowhere; it leaves when that batch is
durable; sequences grow in the order of commits, also over restarts and when the clock is set back.

A message gets its sequence at its turn's commit and not when it is made: what another turn or an earlier
incarnation has delivered already is then always older, which is what its target's floor relies on.
Runs in the worker's event loop; `plan` also in the thread of a `@blocking` method.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from perdure import codec
from perdure.errors import (
    InvalidArgument,
    MessageTooLarge,
    Overloaded,
    PerdureError,
    UnknownMethod,
    UnknownNamespace,
)
from perdure.methods import Method
from perdure.stub import Stub, Target
from perdure_storage import keys
from perdure_storage.records import seal, seal_number, unseal_number
from perdure_worker.delivery import Delivery
from perdure_worker.messages import DELAYED, PLANNED, Message, read_message
from perdure_worker.outbox import Outbox

if TYPE_CHECKING:
    from perdure_storage.keys import DueRow
    from perdure_storage.object_storage import ObjectStorage
    from perdure_worker.resident import Resident
    from perdure_worker.settings import Collaborators
    from perdure_worker.writes import Writes

__all__ = ["Plans", "Sends", "due_at_ms"]

_RESERVED_US = 60_000_000
_AT_MS_MAX = 253_402_300_800_000  # the year 10000, where datetime ends


class Plans:
    """What a live object has sent: since its last commit, and how much of it is stored."""

    __slots__ = ("bytes", "counted_at", "made", "made_bytes", "number", "stored")

    def __init__(self) -> None:
        self.made: dict[bytes, Message] = {}
        """Row in the write-set -> message, since the last commit point."""
        self.made_bytes = 0
        self.number = 0
        self.stored = 0
        """Messages in the object's outbox, dead ones included; perhaps too high, then counted again."""
        self.bytes = 0
        self.counted_at = -math.inf


class _Sender:
    """The sender of the stubs that `ctx.send` gives: a call is a plan, and returns None."""

    __slots__ = ("_at", "_delay", "_resident", "_sends")

    def __init__(self, sends: Sends, resident: Resident, delay: Any, at: Any) -> None:
        self._sends = sends
        self._resident = resident
        self._delay = delay
        self._at = at

    def start(
        self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None, spec: Method | None
    ) -> None:
        """Puts the message into the turn's write-set."""
        now_ms = self._sends.now_ms()
        at_ms = due_at_ms(self._delay, self._at, self._sends.now_us())
        self._sends.plan(self._resident, target, method, args, kwargs, at_ms if at_ms > now_ms else 0)

    def start_stream(
        self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None, spec: Method | None
    ) -> NoReturn:
        """A stream has a reader, and a message has none."""
        raise InvalidArgument(f"{target.namespace}.{method}() streams, so it cannot be sent to: call it")

    def fetch(self, target: Target, request: Any, **options: Any) -> NoReturn:
        """A request has a response, and a message has none."""
        raise InvalidArgument(f"{target.namespace}.fetch() answers, so it cannot be sent to: call it")

    def refuse(self, error: PerdureError) -> NoReturn:
        """The arguments cannot travel."""
        raise error


class Sends:
    """The durable sends of one worker."""

    def __init__(self, host: Writes, parts: Collaborators) -> None:
        self._host = host
        self._classes = parts.classes
        self._clock = parts.clock
        self._limits = host.limits
        self.now_ms = host.timetable.now_ms
        self.now_us = host.timetable.now_us
        self._delivery = Delivery(host, parts.caller, self._on_ended)
        self.outbox = Outbox(self._delivery, host.limits, parts.clock, parts.randomness)
        self._reserved = unseal_number(keys.SENDS_KEY, host.engine.get(keys.SENDS_KEY)) or 0
        self._last = self._reserved
        self.plans: dict[bytes, Plans] = {}
        """Of each object in memory that has sent something, by its id."""
        host.timetable.serve(keys.OUTBOX, self._on_due, lambda: True, self.stats)

    # --- in a turn

    def stub(self, resident: Resident, target: Target, delay: Any, at: Any) -> Stub:
        """What `ctx.send` gives; raises `InvalidArgument` for a time that is none."""
        due_at_ms(delay, at, 0)
        return Stub(target, _Sender(self, resident, delay, at))

    def plan(
        self,
        resident: Resident,
        target: Target,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any] | None,
        at_ms: int,
    ) -> None:
        """Adds a message to what the running turn writes.

        Raises `StorageError` outside of a turn, `UnknownNamespace`, `UnknownMethod` and `InvalidArgument` for
        a call that its target would refuse, `MessageTooLarge`, and `Overloaded` at the bounds of a turn or
        of the object's outbox.
        """
        self._host.check_turn(resident)
        body = self._checked(target, method, args, kwargs)
        message = Message(
            resident.row_prefix(), target.namespace, target.object_id, target.name, method, body
        )
        if at_ms:
            message.lane, message.at_ms = DELAYED, at_ms
        self._add(resident, message)

    def _add(self, resident: Resident, message: Message, *, replaces: bool = False) -> None:
        storage = self._host.storage_of(resident)
        plans = self.plans.get(resident.key)
        if plans is None:
            plans = self.plans[resident.key] = Plans()
        self._check_turn(plans)
        if not replaces:
            self._check_room(resident, plans, message)
        plans.number += 1
        row = message.prefix + keys.OUTBOX + PLANNED + plans.number.to_bytes(8, "big")
        storage._check_growth(len(row) + len(message.body))
        storage._put_row(row, message.body)
        plans.made[row] = message
        plans.made_bytes += message.size

    def plan_again(self, resident: Resident, dead: Message) -> None:
        """Adds a dead message, which the caller removes, to what the running turn writes as a new one."""
        message = Message(dead.prefix, dead.namespace, dead.key, dead.name, dead.method, dead.body)
        self._add(resident, message, replaces=True)

    def _checked(self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None) -> bytes:
        entry = self._classes.get(target.namespace)
        if entry is None:
            known = ", ".join(self._classes)
            raise UnknownNamespace(
                f"no class of namespace {target.namespace!r:.80} is served here; there is {known}",
                namespace=target.namespace[:80],
            )
        spec = entry.methods.get(method)
        if spec is None:
            raise UnknownMethod(
                f"{target.namespace} has no callable method {method!r:.80}; it has: {entry.method_names}",
                namespace=target.namespace,
                method=method[:80],
            )
        body = codec.encode([args, kwargs])
        if len(body) > self._limits.send_bytes_max:
            raise MessageTooLarge(
                f"the arguments of this send have {len(body)} bytes encoded; "
                f"the limit is {self._limits.send_bytes_max}",
                size=len(body),
                limit=self._limits.send_bytes_max,
            )
        try:
            spec.bind(*codec.decode(body))
        except PerdureError:
            raise
        except Exception as error:  # users' constructors and validators run here
            raise InvalidArgument(f"{spec.title}: an argument raised {type(error).__name__}") from error
        return body

    def _check_turn(self, plans: Plans) -> None:
        if len(plans.made) >= self._limits.sends_per_turn_max:
            raise Overloaded(
                f"{len(plans.made)} sends since the last commit point of this turn; "
                "call `await self.storage.sync()` in between",
                limit="sends_per_turn_max",
            )

    def _check_room(self, resident: Resident, plans: Plans, message: Message) -> None:
        limits = self._limits
        if self._has_room(plans, message):
            return
        now = self._clock()
        if now - plans.counted_at >= limits.outbox_count_every_s:
            plans.counted_at = now
            self._count(resident, plans)
        if not self._has_room(plans, message):
            full = "messages" if plans.stored + len(plans.made) >= limits.outbox_messages_max else "bytes"
            raise Overloaded(
                f"the outbox of {resident.label} is full: its targets do not take what it has sent",
                limit=f"outbox_{full}_max",
            )

    def _has_room(self, plans: Plans, message: Message) -> bool:
        limits = self._limits
        return (
            plans.counted_at > -math.inf
            and plans.stored + len(plans.made) < limits.outbox_messages_max
            and plans.bytes + plans.made_bytes + message.size <= limits.outbox_bytes_max
        )

    def _count(self, resident: Resident, plans: Plans) -> None:
        prefix = resident.row_prefix()
        start = prefix + keys.OUTBOX
        plans.stored = plans.bytes = 0
        storage = self._host.storage_of(resident)
        for row, record in storage._merged(start, start + PLANNED, reverse=False):
            plans.stored += 1
            plans.bytes += read_message(prefix, row, record).size

    # --- at its commit

    def take(self, resident: Resident, storage: ObjectStorage) -> list[Message]:
        """The messages of this commit, out of the write-set, which alone says what the turn wrote."""
        plans = self.plans.get(resident.key)
        if plans is None or not plans.made:
            return []
        made, plans.made, plans.made_bytes = plans.made, {}, 0
        writes = storage._writes
        return [message for row, message in made.items() if writes.pop(row, None) is not None]

    def join(self, resident: Resident, storage: ObjectStorage, messages: list[Message]) -> None:
        """Puts their rows into the write-set, and lets them leave when the open group is durable."""
        now_us, now_ms = self.now_us(), self.now_ms()
        plans = self.plans.get(resident.key)
        assert plans is not None
        for message in messages:
            self._last = message.sequence = max(self._last + 1, now_us)
            message.sent_ms = now_ms
            record, due = message.record(), message.due_row
            storage._put_row(message.row, record)
            if message.lane == DELAYED:
                storage._put_due(due, stored=True)
            else:
                storage._put_row(due, seal(due, b""))
            plans.stored += 1
            plans.bytes += message.size
        if self._last >= self._reserved:
            self._reserved = self._last + _RESERVED_US
            self._host.committer.put(keys.SENDS_KEY, seal_number(keys.SENDS_KEY, self._reserved))

    def forget(self, resident: Resident) -> None:
        """The turn has failed: its write-set is gone, and its messages with it."""
        plans = self.plans.get(resident.key)
        if plans is not None:
            plans.made, plans.made_bytes = {}, 0

    def leave(self, messages: list[Message], *_: Any) -> None:
        """The commit of these messages is durable: they may go.  An output of the gate."""
        for message in messages:
            if message.lane != DELAYED:
                self.outbox.offer(message)
        self.outbox.pump()

    # --- afterwards

    def _on_due(self, due: DueRow) -> None:
        self.outbox.wake(keys.object_prefix(due.slot, due.namespace, due.object_id), due.key)
        self.outbox.pump()

    def _on_ended(self, message: Message) -> None:
        plans = self.plans.get(message.prefix[-keys.ID_BYTES :])
        if plans is not None:
            plans.stored -= 1
            plans.bytes -= message.size

    def evict(self, resident: Resident) -> None:
        """The object leaves memory."""
        self.plans.pop(resident.key, None)

    def tick(self) -> None:
        """Call about every 50 ms."""
        self.outbox.tick()

    def stop(self) -> None:
        """What is unsent goes at the next start."""
        self._delivery.stopped = True
        self.outbox.stop()

    def stats(self) -> dict[str, int]:
        """Figures of the worker's outbox."""
        return self.outbox.stats(self.now_ms())


def due_at_ms(delay: Any, at: Any, now_us: int) -> int:
    """When a send is due, in milliseconds of the wall clock, never too early; 0 for at once.

    Raises `InvalidArgument` for what is no time, and when both are given.
    """
    if delay is None and at is None:
        return 0
    if delay is not None and at is not None:
        raise InvalidArgument("a send has a delay= or a time at=, not both")
    if isinstance(delay, timedelta):
        delay = delay.total_seconds()
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise InvalidArgument(f"at={at!r} has no time zone; use datetime.now(UTC) or the like")
        at = at.timestamp()
    seconds = at if delay is None else delay
    if type(seconds) not in (int, float) or not math.isfinite(seconds) or seconds < 0:
        what = (
            "at= is an aware datetime or seconds since the epoch"
            if delay is None
            else ("delay= is a timedelta or seconds, not negative")
        )
        raise InvalidArgument(f"{what}: {seconds!r}")
    us = math.ceil(seconds * 1_000_000) + (0 if delay is None else now_us)
    at_ms: int = -(-us // 1000)
    if at_ms >= _AT_MS_MAX:
        raise InvalidArgument(f"a send cannot be due after the year 9999: {seconds!r}")
    return at_ms
