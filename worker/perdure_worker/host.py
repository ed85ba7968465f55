"""The host of a worker's objects: which call starts when, and which objects are in memory.

Guarantees, for every object of this worker:
- one turn at a time, start to end, in the order of arrival (execution.py runs the turn);
- `on_start()` has ended before the first turn of each incarnation;
- an object leaves memory only when nothing of it is running, waiting or not yet durable;
- every accepted call is answered once, refused ones at once.

Events come in through methods (`on_calls`, `on_durable`, `tick`, ...), answers go into `peers`.  No
sockets, files or clock in here; only turns that suspend need the loop.  Runs in the worker's loop.
"""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from typing import Any, cast

from perdure import codec, protocol
from perdure.errors import (
    DeadlineExceeded,
    DeadlockError,
    InvalidArgument,
    Overloaded,
    PerdureError,
    ShardUnavailable,
    UnknownMethod,
    UnknownNamespace,
)
from perdure.ids import id_from_name, is_id_of, slot_of
from perdure.methods import Method
from perdure_worker.execution import Execution
from perdure_worker.fairness import RoundRobin
from perdure_worker.mailbox import ExpiryWheel, Mailbox, Waiting
from perdure_worker.peers import Peer
from perdure_worker.resident import Resident
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.worker_methods import call_worker

__all__ = ["Host"]

log = logging.getLogger("perdure.worker")

# What reading an item raises that is no call; a Decimal that is no number compares with nothing.
_MALFORMED = (ValueError, TypeError, ArithmeticError)
_PORTION = 64
"""Calls between two looks at the clock (0.04 µs each)."""
_ITEM_ELEMENTS = len(protocol.Item._fields)
_AVERAGED_BYTES_MAX = 64 * 1024
"""Up to this size of a message, each waiting call in it counts as the average of them."""


class Host(Execution):
    """All objects of one worker."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        super().__init__(settings, parts)
        self.slots = settings.slots
        self.idle_evict_s = settings.idle_evict_s
        self.live_objects_max = settings.live_objects_max
        self.live: OrderedDict[bytes, Resident] = OrderedDict()
        """By id, the least recently used first."""
        self.draining = False
        """Whether the worker stops: only calls that running turns wait for are still taken."""
        self.malformed = 0
        self.quarantine = parts.quarantine
        self._timeout_s = settings.limits.call_timeout_s
        self._timeout_max_ms = settings.limits.call_timeout_max_s * 1000
        self._intake: RoundRobin[tuple[list[Any], int, float, int | None]] = RoundRobin()
        """Batches that have come in: items, the first that nobody has looked at, base of their deadlines."""
        self._unread = 0
        self._runnable: RoundRobin[Resident] = RoundRobin()
        self._expiry = ExpiryWheel(parts.clock())
        self._unknown_fields: set[tuple[str, str]] = set()

    # --- calls come in

    def on_calls(self, peer: Peer, body: bytes, stamp_ms: int = 0) -> None:
        """A batch ``[client id, item, ...]``; raises `InvalidArgument` when it is none."""
        try:
            items = codec.decode(body)
        except InvalidArgument:
            items = self._readable_items(peer, body)
        if type(items) is not list or not items or len(items) > self.limits.batch_calls_max:
            raise InvalidArgument("a batch is a list: the client's id, then at most 4,095 calls")
        now = self.clock()
        sent = stamp_ms / 1000
        base = sent if 0 < sent <= now else now
        # The average will do, unless one call may be much larger than others.
        size = len(body) // max(1, len(items) - 1) if len(body) <= _AVERAGED_BYTES_MAX else None
        self.in_turns(self._on_items, peer, items, base, now, size)

    def _on_items(self, peer: Peer, items: list[Any], base: float, now: float, size: int | None) -> None:
        if len(items) <= _PORTION and not self._intake:
            self._look_at(peer, items, 1, base, now, size)
        else:
            self._unread += len(items) - 1
            self._intake.add(peer, (items, 1, base, size))
            self._take_in(now)
        if self._runnable:
            self._run_waiting(self.clock())

    def _take_in(self, now: float) -> None:
        """Looks at calls that have come in, in small portions of one client after the other.

        What is left after `start_batch_s` waits for the next tick, so that other clients' messages are read
        before; but not too much of it, since what has been read is in memory.
        """
        intake, limits = self._intake, self.limits
        until = now + limits.start_batch_s
        while intake and (now < until or self._unread > limits.waiting_items_max):
            client, (items, start, base, size) = intake.take()
            stop = start + _PORTION
            self._look_at(cast(Peer, client), items, start, base, now, size)
            if stop < len(items):
                intake.put_back(client, (items, stop, base, size))
                self._unread -= _PORTION
            else:
                self._unread -= len(items) - start
            now = self.clock()
        if intake:
            self.want_turns()

    def _look_at(
        self, peer: Peer, items: list[Any], start: int, base: float, now: float, size: int | None
    ) -> None:
        for item in items[start : start + _PORTION]:
            try:
                self._on_call(peer, item, base, now, size)
            except _MALFORMED:
                self._on_malformed(peer, item, base, now, size)

    def _on_call(self, peer: Peer, item: Any, base: float, now: float, size: int | None) -> None:
        sequence, namespace, key, name, method_name, args, kwargs, timeout_ms, chain = item
        if type(sequence) is not int or type(args) is not list or (kwargs and type(kwargs) is not dict):
            raise TypeError("a call's sequence is an int, its arguments are a list and a map")
        resident = self.live.get(key)
        if resident is None or (name is not None and name != resident.name):
            try:
                if key == b"":
                    self.reply_value(peer, sequence, call_worker(self, method_name, args))
                    return
                resident = self._admit(namespace, key, name, method_name, chain)
            except PerdureError as error:
                self.refuse(peer, sequence, error)
                return
        method = resident.cls.methods.get(method_name)
        if method is None or resident.cls.namespace != namespace or chain or self.draining:
            refusal = self._refusal(resident, namespace, method_name, method, chain)
            if refusal is not None:
                self.refuse(peer, sequence, refusal)
                return
            assert method is not None
        deadline = base + (
            timeout_ms * 0.001 if 0 < timeout_ms < self._timeout_max_ms else self._timeout(timeout_ms)
        )
        self.live.move_to_end(key)
        if (
            resident.turn is None
            and resident.mailbox is None
            and resident.instance is not None
            and not self.paused
        ):
            resident.used = now
            if now < deadline:
                self.run_turn(resident, peer, sequence, method, args, kwargs, deadline, chain)
            else:
                self._refuse_late(peer, sequence, now - deadline)
        else:
            if size is None:
                size = len(codec.encode(item))
            self._wait(resident, Waiting(peer, item, deadline, now, size, bool(chain)))

    def _refusal(
        self, resident: Resident, namespace: Any, method_name: Any, method: Method | None, chain: Any
    ) -> PerdureError | None:
        if type(namespace) is not str or namespace not in self.classes:
            return self._unknown_namespace(namespace)
        if resident.cls.namespace != namespace:
            return InvalidArgument(
                f"this id belongs to namespace {resident.cls.namespace!r}, not {namespace!r}"
            )
        if method is None:
            return self._unknown_method(resident.cls.namespace, method_name)
        if not chain:
            return self._stopping() if self.draining else None
        labels = _labels(chain)
        for index, entry in enumerate(chain):
            # An object without a running turn waits for nothing: it did not await the call, and has ended.
            if entry[0] == resident.key and resident.turn is not None:
                cycle = [*labels[index:], resident.label]
                return DeadlockError(
                    f"{' -> '.join(cycle)}: the object waits for this call, and would for ever; "
                    "return first, or move what is needed into one object",
                    cycle=cycle,
                )
        if len(chain) >= self.limits.chain_depth_max:
            return DeadlockError(
                f"{len(chain)} objects wait for each other already (chain_depth_max): {' -> '.join(labels)}",
                cycle=labels,
            )
        return None

    def _timeout(self, timeout_ms: int) -> float:
        return self._timeout_s if timeout_ms <= 0 else self._timeout_max_ms * 0.001

    def _admit(self, namespace: Any, key: Any, name: Any, method_name: Any, chain: Any) -> Resident:
        cls = self.classes.get(namespace) if type(namespace) is str else None
        if cls is None:
            raise self._unknown_namespace(namespace)
        if method_name not in cls.methods:
            raise self._unknown_method(namespace, method_name)
        if type(key) is not bytes or not is_id_of(namespace, key):
            raise InvalidArgument(f"this is no id of namespace {namespace!r}")
        if name is not None and id_from_name(namespace, name).key != key:
            raise InvalidArgument(f"the id was not made from the name {name!r:.80}")
        resident = self.live.get(key)
        if resident is not None:
            resident.learn_name(name, stored=False)
            return resident
        if slot_of(key, self.slot_count) not in self.slots:
            raise ShardUnavailable("this worker does not own the object's slot; the slot map has changed")
        if self.draining and not chain:
            raise self._stopping()
        if self.quarantine.suspects:
            self.quarantine.check(key, Resident(cls, key, name).label)
        if chain:
            _labels(chain)
        if len(self.live) >= self.live_objects_max:
            self._evict_least_recently_used()
        resident = self.live[key] = Resident(cls, key, name)
        self.begin_start(resident, chain)
        return resident

    def _unknown_namespace(self, namespace: Any) -> UnknownNamespace:
        return UnknownNamespace(
            f"no class of namespace {namespace!r:.80} is served here; there is {', '.join(self.classes)}",
            namespace=str(namespace)[:80],
        )

    def _unknown_method(self, namespace: str, method_name: Any) -> UnknownMethod:
        known = ", ".join(sorted(self.classes[namespace].methods)) or "none"
        return UnknownMethod(
            f"{namespace} has no callable method {method_name!r:.80}; it has: {known}",
            namespace=namespace,
            method=str(method_name)[:80],
        )

    def _stopping(self) -> ShardUnavailable:
        return ShardUnavailable("this worker is stopping")

    def _readable_items(self, peer: Peer, body: bytes) -> list[Any]:
        # One undecodable call (say of a newer client's type) is refused alone, the others run.
        parts = codec.split_array(body)
        items = [codec.decode(part) for part in parts[:1]]
        for part in parts[1:]:
            try:
                items.append(codec.decode(part))
            except InvalidArgument as error:
                self.malformed += 1
                sequence = _sequence_of(part)
                if sequence is not None:
                    self.refuse(peer, sequence, error)
        return items

    def _on_malformed(self, peer: Peer, item: Any, base: float, now: float, size: int | None) -> None:
        if type(item) is list and len(item) > _ITEM_ELEMENTS:
            # Of a newer client, which may say more than this worker understands.
            del item[_ITEM_ELEMENTS:]
            with contextlib.suppress(*_MALFORMED):
                self._on_call(peer, item, base, now, size)
                return
        self.malformed += 1
        if type(item) is list and item and type(item[0]) is int:
            self.refuse(peer, item[0], InvalidArgument("this is no call; docs/PROTOCOL.md says what one is"))

    def _refuse_late(self, peer: Peer, sequence: int, late_s: float) -> None:
        self.refuse(
            peer,
            sequence,
            DeadlineExceeded(f"the deadline passed {late_s:.3f} s before the turn could start"),
        )

    # --- calls that wait

    def _wait(self, resident: Resident, waiting: Waiting) -> None:
        item = waiting.item
        assert item is not None
        if resident.instance is None and resident.turn is None:
            # Its start failed, or it aborted itself.
            if resident.start_error is None or waiting.arrived > resident.retry_at:
                self.begin_start(resident, item[8])
            if resident.start_error is not None:
                self.reply_failure(resident, waiting.peer, item[0], resident.start_error)
                return
        mailbox = Mailbox() if resident.mailbox is None else resident.mailbox
        try:
            displaced = mailbox.push(waiting, self.limits)
        except PerdureError as error:
            self.refuse(waiting.peer, item[0], error)
            return
        self._expiry.add(mailbox, waiting)
        for call in displaced:
            self._displace(mailbox, call)
        if resident.mailbox is None:
            resident.mailbox = mailbox
            if resident.turn is None:
                self._runnable.add(waiting.peer, resident)

    def _displace(self, mailbox: Mailbox, call: Waiting) -> None:
        self._expiry.remove(call)
        assert call.item is not None
        text = "this client has most of the calls that wait at this object, and another one needed the room"
        retry_after = mailbox.wait_s(self.clock(), self.limits)
        self.refuse(call.peer, call.item[0], Overloaded(text, limit="mailbox_share", retry_after=retry_after))

    def on_idle(self, resident: Resident) -> None:
        """The object's turn has ended; its next waiting call starts soon."""
        if resident.mailbox is not None:
            self._runnable.add(resident.mailbox.next_client, resident)

    def touch(self, resident: Resident) -> None:
        """The object was in use until now."""
        resident.used = self.clock()
        self.live.move_to_end(resident.key)

    def fail_waiting(self, resident: Resident, error: BaseException) -> None:
        """Every waiting call of the object gets this error."""
        mailbox, resident.mailbox = resident.mailbox, None
        while mailbox is not None and (waiting := mailbox.pop()) is not None:
            self._expiry.remove(waiting)
            if waiting.item is not None:
                self.reply_failure(resident, waiting.peer, waiting.item[0], error)

    def _run_waiting(self, now: float) -> None:
        """Starts waiting calls of idle objects, for a bounded number and time; the clients take turns."""
        budget = self.limits.start_batch_turns
        until = now + self.limits.start_batch_s
        runnable = self._runnable
        while runnable and budget and not self.paused:
            _, resident = runnable.take()
            mailbox = resident.mailbox
            if resident.turn is not None or mailbox is None or resident.instance is None:
                continue
            waiting = mailbox.pop()
            if mailbox.count == 0:
                resident.mailbox = None
            if waiting is None or waiting.item is None:
                continue
            budget -= 1
            if budget % _PORTION == 0 and (now := self.clock()) >= until:
                budget = 0  # after this one
            self._expiry.remove(waiting)
            sequence, _, _, _, method_name, args, kwargs, _, chain = waiting.item
            method = resident.cls.methods[method_name]
            resident.used = now
            self.live.move_to_end(resident.key)
            if now < waiting.deadline:
                self.run_turn(resident, waiting.peer, sequence, method, args, kwargs, waiting.deadline, chain)
            else:
                self._refuse_late(waiting.peer, sequence, now - waiting.deadline)
                self.on_idle(resident)
        if runnable and not self.paused:
            self.want_turns()

    def run_waiting(self) -> None:
        """Goes on with waiting calls, after `want_turns`."""
        self.in_turns(self._go_on)

    def _go_on(self) -> None:
        self._take_in(self.clock())
        self._run_waiting(self.clock())

    # --- time

    def tick(self) -> None:
        """Call about every 50 ms: answers calls that waited past their deadline."""
        now = self.clock()
        for peer, item in self._expiry.due(now):
            self._refuse_late(peer, item[0], 0.0)
        for row in self.quarantine.behaved(self.live, now) if self.quarantine.suspects else ():
            self.committer.delete(row)
            self.want_flush()

    def evict_idle(self) -> int:
        """Drops objects without events for `idle_evict_s`, a bounded number at a time; how many went."""
        before = self.clock() - self.idle_evict_s
        gone = 0
        for resident in self._oldest(before):
            if self._leaves_memory(resident):
                gone += 1
            else:
                self.touch(resident)  # in use; so that many of them do not hide the idle ones behind them
        return gone

    def _oldest(self, before: float) -> list[Resident]:
        residents: list[Resident] = []
        for resident in self.live.values():
            if resident.used > before or len(residents) >= self.limits.evictions_max:
                break
            residents.append(resident)
        return residents

    def _evict_least_recently_used(self) -> None:
        # The busy ones are passed over; when many are busy the cap gives way, never an object in use.
        for _ in range(min(len(self.live), self.limits.eviction_looks_max)):
            resident = next(iter(self.live.values()))
            if not self._leaves_memory(resident):
                self.touch(resident)
            elif len(self.live) < self.live_objects_max:
                return

    def _leaves_memory(self, resident: Resident) -> bool:
        """Drops the object if nothing of it is open; whether it went."""
        if (
            resident.turn is not None
            or resident.mailbox is not None
            or resident.calls
            or resident.ticket > self.durable
            or (resident.instance is not None and self.save_strays(resident))
        ):
            return False
        del self.live[resident.key]
        return True

    # --- stopping

    def drain(self) -> None:
        """Takes no new calls, and answers those that wait as not executed."""
        self.draining = True
        while self._intake:
            self.in_turns(self._take_in, self.clock())
        for resident in self.live.values():
            if resident.turn is None and resident.instance is not None:
                self.save_strays(resident)
            mailbox = resident.mailbox
            if mailbox is None:
                continue
            kept: list[Waiting] = []
            while (waiting := mailbox.pop()) is not None:
                item = waiting.item
                if item is not None and item[8]:
                    kept.append(waiting)
                elif item is not None:
                    self._expiry.remove(waiting)
                    self.refuse(waiting.peer, item[0], self._stopping())
            for waiting in kept:
                mailbox.push(waiting, self.limits)
            if not kept:
                resident.mailbox = None

    def stats(self) -> dict[str, Any]:
        """Figures of this worker."""
        return {
            "live": len(self.live),
            "turns": self.turns,
            "malformed": self.malformed,
            "peers": len(self.peers),
            "waiting_outputs": len(self.gate),
            "uncommitted_bytes": self.committer.uncommitted_bytes,
            "commits": self.committer.durable,
            "commit_sequence": self.committer.sequence,
            **self.marks.figures,
            **self.quarantine.figures(),
        }

    @property
    def busy(self) -> int:
        """Objects with a running turn or waiting calls, and messages that were not looked at yet."""
        return self._unread + sum(r.turn is not None or r.mailbox is not None for r in self.live.values())

    def unknown_field(self, namespace: str, field: str) -> None:
        """A stored field that the class no longer has: kept, and said once per class and field."""
        if (namespace, field) not in self._unknown_fields:
            self._unknown_fields.add((namespace, field))
            log.warning(
                "a stored field is not declared by the class any more; its value is kept",
                extra={"namespace": namespace, "field": field},
            )


def _labels(chain: Any) -> list[str]:
    """The objects of a chain as text; `TypeError` for what is no chain."""
    if type(chain) is not list or not all(type(entry) is list and len(entry) == 2 for entry in chain):
        raise TypeError("a chain is a list of [id, label]")
    return [str(label) for _, label in chain]


def _sequence_of(item: bytes) -> int | None:
    """The sequence of an encoded call that cannot be decoded as a whole."""
    try:
        sequence = codec.decode(codec.split_array(item)[0])
    except (InvalidArgument, IndexError):
        return None
    return sequence if type(sequence) is int else None
