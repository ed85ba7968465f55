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
from typing import Any

from perdure import codec, protocol
from perdure.converter import describe_error
from perdure.errors import (
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    PerdureError,
    ShardUnavailable,
)
from perdure.ids import id_from_name, is_id_of, slot_of
from perdure_storage.snapshot import close_abandoned
from perdure_worker.clients import Client, Request, labels_of, read_context
from perdure_worker.fairness import RoundRobin
from perdure_worker.intake import PORTION, Intake, readable_items
from perdure_worker.interleaving import can_start, goes_first
from perdure_worker.mailbox import ExpiryWheel, Mailbox, Waiting
from perdure_worker.pace import LOOKS_APART_MAX
from perdure_worker.peers import Peer
from perdure_worker.quick import QuickTurns
from perdure_worker.recorded import SEQUENCE_END
from perdure_worker.registry import ObjectClass
from perdure_worker.resident import Resident
from perdure_worker.retries import named_request
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.system_turns import SystemTurn
from perdure_worker.worker_methods import call_worker

__all__ = ["Host"]

log = logging.getLogger("perdure.worker")

# What reading an item raises that is no call; a Decimal that is no number compares with nothing.
_MALFORMED = (ValueError, TypeError, ArithmeticError)
_CONTEXT = protocol.Item._fields.index("context")
_ITEM_ELEMENTS = len(protocol.Item._fields)
_AVERAGED_BYTES_MAX = 64 * 1024
"""Up to this size of a message, each waiting call in it counts as the average of them."""


class Host(QuickTurns):
    """All objects of one worker."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        super().__init__(settings, parts)
        self.malformed = 0
        self._timeout_s = settings.limits.call_timeout_s
        self._intake = Intake(settings.limits, parts.clock)
        self._at_once = 1  # calls between two looks at the clock: few while the last ones took long
        self._runnable: RoundRobin[Resident] = RoundRobin()
        self._expiry = ExpiryWheel(parts.clock())
        self._unknown_fields: set[tuple[str, str]] = set()

    # --- calls come in

    def on_calls(self, peer: Peer, body: bytes, stamp_ms: int = 0) -> None:
        """A batch ``[client, item, ...]``; raises `InvalidArgument` when it is none."""
        try:
            items = codec.decode(body)
        except InvalidArgument:
            items = self._readable_items(peer, body)
        if type(items) is not list or not items or len(items) > self.limits.batch_calls_max:
            raise InvalidArgument("a batch is a list: the client, then at most 4,095 calls")
        try:
            client, overtaken = self.clients.on_batch(items[0])
        except TypeError as error:
            raise InvalidArgument(f"a batch begins with its client: {error}") from None
        if overtaken:
            items = self.refuse_ended(peer, client, items)
        now = self.clock()
        sent = stamp_ms / 1000
        base = sent if 0 < sent <= now else now
        # The average will do, unless one call may be much larger than others.
        size = len(body) // max(1, len(items) - 1) if len(body) <= _AVERAGED_BYTES_MAX else None
        self.in_turns(self._on_items, peer, client, items, base, now, size)

    def _on_items(
        self, peer: Peer, client: Client, items: list[Any], base: float, now: float, size: int | None
    ) -> None:
        until = self.pace.until or self.pace.begin(now)
        start = 1
        if len(items) <= PORTION and now < until and not self._intake:
            start = self._look_at(peer, client, items, start, base, now, size, until)
        if start < len(items):
            self._intake.add(peer, client, items, start, base, size)
            self._take_in(self.clock(), until)
        if self._runnable:
            self._run_waiting(self.clock(), until)

    def _take_in(self, now: float, until: float) -> None:
        if self._intake.take(self._look_at, now, until):
            self.want_turns()

    def _look_at(
        self,
        peer: Peer,
        client: Client,
        items: list[Any],
        start: int,
        base: float,
        now: float,
        size: int | None,
        until: float,
    ) -> int:
        """Takes calls, about a portion and one at least; the index of the first that is left."""
        count, enough, step = len(items), start + PORTION, self._at_once
        while start < enough:
            self.take_calls(peer, client, items[start : start + step], base, now, size)
            start += step
            if start >= count:
                return count
            if self.clock() >= until:
                self._at_once = 1
                return start
            if step < LOOKS_APART_MAX:
                step *= 2
        self._at_once = step
        return start

    def _on_call(
        self, peer: Peer, client: Client, item: Any, base: float, now: float, size: int | None
    ) -> None:
        sequence, namespace, key, name, method_name, args, kwargs, timeout_ms, chain = item
        if type(sequence) is not int or type(args) is not list or (kwargs and type(kwargs) is not dict):
            raise TypeError("a call's sequence is an int, its arguments are a list and a map")
        request: Any = client
        if chain is not None or not client.flush:
            chain, request = self._read_context(chain, client, item)
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
        if request is client and client.highest < sequence < SEQUENCE_END:
            client.highest = sequence  # the client's latest call, so it cannot have been here before
        elif self.is_known(resident, peer, sequence, request, client):
            return
        method = resident.cls.methods.get(method_name)
        if method is None or resident.cls.namespace != namespace or chain or self.draining or self.peers.full:
            refusal = self._refusal(resident, namespace, method_name, method, chain) or self.unread(peer)
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
                self.run_turn(resident, peer, sequence, method, args, kwargs, deadline, chain, request)
            else:
                self._refuse_late(peer, sequence, now - deadline)
        else:
            if size is None:
                size = len(codec.encode(item))
            self._wait(resident, Waiting(peer, item, deadline, now, size, request, nested=bool(chain)))

    def _read_context(self, context: Any, client: Client, item: list[Any]) -> tuple[Any, Client | Request]:
        """The chain, which takes the context's place in the item, and the request id."""
        chain, of_another = read_context(context) if context is not None else (None, None)
        item[_CONTEXT] = chain
        if of_another is None:
            return chain, client if client.flush else (client.id, item[0], b"", 0)
        if not of_another[2]:  # no turn's call: it has an id that its caller has chosen
            return chain, named_request(of_another, *item[4:7])
        return chain, of_another

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
            labels_of(chain)
        return self._wake(cls, key, name, chain)

    def _wake(self, cls: ObjectClass, key: bytes, name: str | None, chain: Any) -> Resident:
        if len(self.live) >= self.live_objects_max:
            self._evict_least_recently_used()
        resident = self.live[key] = Resident(cls, key, name)
        self.begin_start(resident, chain)
        return resident

    def _readable_items(self, peer: Peer, body: bytes) -> list[Any]:
        items, unreadable = readable_items(body)
        self.malformed += len(unreadable)
        for sequence, error in unreadable:
            if sequence is not None:
                self.refuse(peer, sequence, error)
        return items

    def _on_odd_call(
        self,
        peer: Peer,
        client: Client,
        item: Any,
        base: float,
        now: float,
        size: int | None,
        error: BaseException,
    ) -> None:
        if issubclass(type(error), _MALFORMED):
            try:
                self._on_malformed(peer, client, item, base, now, size)
                return
            except BaseException as raised:
                error = raised
        self._say_unknown(peer, item, error)

    def _say_unknown(self, peer: Peer | SystemTurn, item: Any, error: BaseException) -> None:
        """A call met an error that nobody has foreseen: whoever waits for it is told, whatever it did."""
        log.error("a call failed in the worker itself", extra={"error": describe_error(error)})
        if type(item) is list and item and type(item[0]) is int:
            self.refuse(peer, item[0], OutcomeUnknown("the worker failed when it took this call"))

    def _on_malformed(
        self, peer: Peer, client: Client, item: Any, base: float, now: float, size: int | None
    ) -> None:
        if type(item) is list and len(item) > _ITEM_ELEMENTS:
            # Of a newer client, which may say more than this worker understands.
            del item[_ITEM_ELEMENTS:]
            with contextlib.suppress(*_MALFORMED):
                self._on_call(peer, client, item, base, now, size)
                return
        self.malformed += 1
        if type(item) is list and item and type(item[0]) is int:
            self.refuse(peer, item[0], InvalidArgument("this is no call; docs/PROTOCOL.md says what one is"))

    # --- calls that wait

    def _wait(self, resident: Resident, waiting: Waiting) -> None:
        item = waiting.item
        assert item is not None
        mailbox = self._mailbox_for(resident, waiting, item)
        if mailbox is None:
            return
        try:
            first = goes_first(resident, item[4], item[8])
            displaced = mailbox.push(waiting, self.limits, first=first)
        except PerdureError as error:
            self.refuse(waiting.peer, item[0], error)
            return
        self._expiry.add(mailbox, waiting)
        for call in displaced:
            self._displace(mailbox, call)
        if resident.inside is not None:
            self._runnable.add(waiting.peer, resident)

    def _mailbox_for(self, resident: Resident, waiting: Waiting, item: list[Any]) -> Mailbox | None:
        """Where it waits; None when it has failed, because its object cannot start."""
        if resident.instance is None and resident.turn is None:
            # Its start failed, or it aborted itself.
            trouble = resident.trouble
            if trouble is None or trouble.error is None or waiting.arrived > trouble.retry_at:
                self.begin_start(resident, item[8])
                trouble = resident.trouble
            if trouble is not None and trouble.error is not None:
                self.reply_failure(resident, waiting.peer, item[0], trouble.error)
                return None
        mailbox = resident.mailbox
        if mailbox is None:
            mailbox = resident.mailbox = Mailbox()
            if resident.turn is None:
                self._runnable.add(waiting.peer, resident)
        return mailbox

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

    def fail_waiting(self, resident: Resident, error: BaseException) -> None:
        """Every waiting call of the object gets this error."""
        mailbox, resident.mailbox = resident.mailbox, None
        while mailbox is not None and (waiting := mailbox.pop()) is not None:
            self._expiry.remove(waiting)
            if waiting.item is not None:
                self.reply_failure(resident, waiting.peer, waiting.item[0], error)

    def _run_waiting(self, now: float, until: float) -> None:
        """Starts waiting calls of idle objects, for a bounded number and time; the clients take turns."""
        budget = self.limits.start_batch_turns if now < until else 0
        step, look_at = 1, budget - 1
        runnable = self._runnable
        while runnable and budget and not self.paused:
            _, resident = runnable.take()
            mailbox = resident.mailbox
            if mailbox is None or resident.instance is None:
                continue
            if resident.turn is not None and not can_start(resident, mailbox):
                continue
            waiting = mailbox.pop()
            if mailbox.count == 0:
                resident.mailbox = None
            if waiting is None or waiting.item is None:
                continue
            try:
                self._start_waiting(resident, waiting, now)
            except BaseException as error:  # of one call, and none of the others'
                self._say_unknown(waiting.peer, waiting.item, error)
                self.on_idle(resident)
            budget -= 1
            if budget <= look_at:
                step = min(2 * step, LOOKS_APART_MAX)
                look_at = budget - step
                if (now := self.clock()) >= until:
                    break
        if runnable and not self.paused:
            self.want_turns()

    def _start_waiting(self, resident: Resident, waiting: Waiting, now: float) -> None:
        resident.used = now
        self.live.move_to_end(resident.key)
        if isinstance(waiting.peer, SystemTurn):
            self.run_handler(resident, waiting.peer)
            return
        self._expiry.remove(waiting)
        assert waiting.item is not None
        sequence, _, _, _, method_name, args, kwargs, _, chain = waiting.item
        method = resident.cls.methods[method_name]
        request = waiting.request
        if request is not None and self.is_known_now(resident, waiting.peer, sequence, request):
            self.on_idle(resident)
        elif self.peers.full and (refusal := self.unread(waiting.peer)) is not None:
            self.refuse(waiting.peer, sequence, refusal)
            self.on_idle(resident)
        elif now < waiting.deadline:
            deadline = waiting.deadline
            self.run_turn(resident, waiting.peer, sequence, method, args, kwargs, deadline, chain, request)
        else:
            self._refuse_late(waiting.peer, sequence, now - waiting.deadline)
            self.on_idle(resident)
        if resident.inside is not None:  # the next one may start beside it
            self.on_idle(resident)

    def go_on(self) -> None:
        """Goes on with what waits; the answer to `want_turns`, in another iteration of the loop."""
        self.pace.end()
        self.run_waiting()

    def run_waiting(self) -> None:
        """Starts calls that wait, if there is time in this iteration of the loop."""
        self.in_turns(self._go_on)

    def _go_on(self) -> None:
        now = self.clock()
        if self._intake:
            self._take_in(now, self.pace.half(now) if self._runnable else self.pace.begin(now))
            now = self.clock()
        self._run_waiting(now, self.pace.begin(now))

    # --- time

    def tick(self) -> None:
        """Call about every 50 ms: answers calls that waited past their deadline, looks for what is due."""
        if self._backend.open_views:
            close_abandoned(self._backend.open_views)
        now = self.clock()
        self.timetable.look()
        self.sends.tick()
        for peer, item in self._expiry.due(now):
            self._refuse_late(peer, item[0], 0.0)
            resident = self.live.get(item[2])
            if resident is not None and resident.inside is not None:  # interleaved calls waited behind it
                self.on_idle(resident)
                self.want_turns()
        if self.streams:
            self.streams.tick()
        self.windows.forget_unused(now)
        for row in self.quarantine.behaved(self.live, now) if self.quarantine.suspects else ():
            self.committer.delete(row)
            self.want_flush()

    # --- stopping

    def drain(self) -> None:
        """Takes no new calls, and answers those that wait as not executed."""
        self.draining = True
        self.timetable.stop()
        self.sends.stop()
        self.streams.drain()
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
            for waiting in kept:  # they were within the bounds
                mailbox.append(waiting, first=waiting.line is None)
            if not kept:
                resident.mailbox = None

    def stats(self) -> dict[str, Any]:
        """Figures of this worker."""
        return {
            "live": len(self.live),
            "turns": self.turns,
            "streams": len(self.streams),
            "malformed": self.malformed,
            "peers": len(self.peers),
            "waiting_outputs": len(self.gate),
            "uncommitted_bytes": self.committer.uncommitted_bytes,
            "commits": self.committer.durable,
            "commit_sequence": self.committer.sequence,
            **self.timetable.stats(),
            **self.gateways.stats(),
            **self.marks.figures,
            **self.quarantine.figures(),
        }

    @property
    def has_room(self) -> bool:
        """Whether more messages may be read; false while many calls have come in and were not looked at."""
        return self._intake.has_room

    @property
    def busy(self) -> int:
        """Objects with a running turn or waiting calls, and messages that were not looked at yet."""
        return self._intake.unread + sum(
            r.turn is not None or r.mailbox is not None for r in self.live.values()
        )

    def unknown_field(self, namespace: str, field: str) -> None:
        """A stored field that the class no longer has: kept, and said once per class and field."""
        if (namespace, field) not in self._unknown_fields:
            self._unknown_fields.add((namespace, field))
            log.warning(
                "a stored field is not declared by the class any more; its value is kept",
                extra={"namespace": namespace, "field": field},
            )
