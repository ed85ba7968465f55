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
from collections import deque
from itertools import islice
from typing import Any

from perdure import codec, protocol
from perdure.errors import (
    DeadlineExceeded,
    DeadlockError,
    InvalidArgument,
    PerdureError,
    ShardUnavailable,
    UnknownMethod,
    UnknownNamespace,
)
from perdure.ids import id_from_name, is_id_of, slot_of
from perdure.methods import Method
from perdure_storage.snapshot import close_abandoned
from perdure_worker.clients import Client, Clients, Request, read_context
from perdure_worker.interleaving import can_start, goes_first, joins_its_caller
from perdure_worker.mailbox import ExpiryWheel, Mailbox, Waiting
from perdure_worker.peers import Peer
from perdure_worker.registry import ObjectClass
from perdure_worker.resident import Resident
from perdure_worker.retries import named_request
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.system_turns import SystemTurn
from perdure_worker.system_work import SystemWork
from perdure_worker.worker_methods import call_worker

__all__ = ["Host"]

log = logging.getLogger("perdure.worker")

# What reading an item raises that is no call; a Decimal that is no number compares with nothing.
_MALFORMED = (ValueError, TypeError, ArithmeticError)
_CONTEXT = protocol.Item._fields.index("context")
_ITEM_ELEMENTS = len(protocol.Item._fields)
_AVERAGED_BYTES_MAX = 64 * 1024
"""Up to this size of a message, each waiting call in it counts as the average of them."""
_EVICTIONS_MAX = 2_048
"""Idle objects that are looked at in one go, so that a loop never stands still for long."""
_EVICTION_LOOKS_MAX = 32
"""Least recently used objects that are looked at to make room for a new one."""


class Host(SystemWork):
    """All objects of one worker."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        super().__init__(settings, parts)
        self.idle_evict_s = settings.idle_evict_s
        self.live_objects_max = settings.live_objects_max
        self.malformed = 0
        self._timeout_s = settings.limits.call_timeout_s
        self._timeout_max_ms = settings.limits.call_timeout_max_s * 1000
        self._clients = Clients()
        self._runnable: deque[Resident] = deque()
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
            client, overtaken = self._clients.on_batch(items[0])
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
        for item in islice(items, 1, None):
            try:
                self._on_call(peer, client, item, base, now, size)
            except _MALFORMED:
                self._on_malformed(peer, client, item, base, now, size)
        self._run_waiting(now)

    def _on_call(
        self, peer: Peer, client: Client, item: Any, base: float, now: float, size: int | None
    ) -> None:
        sequence, namespace, key, name, method_name, args, kwargs, timeout_ms, chain = item
        if type(sequence) is not int or type(args) is not list or (kwargs and type(kwargs) is not dict):
            raise TypeError("a call's sequence is an int, its arguments are a list and a map")
        request: Request = (client.id, sequence, b"", client.low)
        if chain is not None:
            chain, request = self._read_context(chain, request, item)
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
        window = resident.window
        if window is not None and window.client is request[0] and sequence > window.highest:
            window.highest = sequence  # the client's latest call here, so it cannot have been here before
        else:
            own = client if client.id is request[0] else None
            if self.is_known(resident, peer, sequence, request, own):
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
            self._wait(resident, Waiting(peer, item, deadline, now, size, request))

    def _read_context(self, context: Any, request: Request, item: list[Any]) -> tuple[Any, Request]:
        """The chain, which takes the context's place in the item, and the request id."""
        chain, of_another = read_context(context)
        item[_CONTEXT] = chain
        if of_another is None:
            return chain, request
        if not of_another[2]:  # no turn's call: it has an id that its caller has chosen
            return chain, named_request(of_another, *item[4:7])
        return chain, of_another

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
            if (
                entry[0] == resident.key
                and resident.turn is not None
                and not joins_its_caller(resident, method, entry)
            ):
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
        if chain:
            _labels(chain)
        return self._wake(cls, key, name, chain)

    def _wake(self, cls: ObjectClass, key: bytes, name: str | None, chain: Any) -> Resident:
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

    def _refuse_late(self, peer: Peer | SystemTurn, sequence: int, late_s: float) -> None:
        self.refuse(
            peer,
            sequence,
            DeadlineExceeded(f"the deadline passed {late_s:.3f} s before the turn could start"),
        )

    # --- calls that wait

    def _wait(self, resident: Resident, waiting: Waiting) -> None:
        item = waiting.item
        assert item is not None
        mailbox = self._mailbox_for(resident, waiting, item)
        if mailbox is None:
            return
        try:
            mailbox.push(waiting, self.limits, first=goes_first(resident, item[4], item[8]))
        except PerdureError as error:
            self.refuse(waiting.peer, item[0], error)
        else:
            self._expiry.add(mailbox, waiting)
            if resident.inside is not None:
                self._runnable.append(resident)

    def _mailbox_for(self, resident: Resident, waiting: Waiting, item: list[Any]) -> Mailbox | None:
        """Where it waits; None when it has failed, because its object cannot start."""
        if resident.instance is None and resident.turn is None:
            # Its start failed, or it aborted itself.
            if resident.start_error is None or waiting.arrived > resident.retry_at:
                self.begin_start(resident, item[8])
            if resident.start_error is not None:
                self.reply_failure(resident, waiting.peer, item[0], resident.start_error)
                return None
        mailbox = resident.mailbox
        if mailbox is None:
            mailbox = resident.mailbox = Mailbox()
            if resident.turn is None:
                self._runnable.append(resident)
        return mailbox

    def on_idle(self, resident: Resident) -> None:
        """The object's turn has ended; its next waiting call starts soon."""
        if resident.mailbox is not None:
            self._runnable.append(resident)

    def resident_of(self, key: bytes) -> Resident | None:
        """The object of this id, if it is in memory."""
        return self.live.get(key)

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
        """Starts waiting calls of idle objects, a bounded number at a time."""
        budget = self.limits.start_batch_turns
        runnable = self._runnable
        while runnable and budget and not self.paused:
            resident = runnable.popleft()
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
            budget -= 1
            if isinstance(waiting.peer, SystemTurn):
                resident.used = now
                self.live.move_to_end(resident.key)
                self.run_handler(resident, waiting.peer)
                continue
            self._expiry.remove(waiting)
            sequence, _, _, _, method_name, args, kwargs, _, chain = waiting.item
            method = resident.cls.methods[method_name]
            resident.used = now
            self.live.move_to_end(resident.key)
            request = waiting.request
            if request is not None and self.is_known_now(resident, waiting.peer, sequence, request):
                self.on_idle(resident)
            elif self.peers.full and (refusal := self.unread(waiting.peer)) is not None:
                self.refuse(waiting.peer, sequence, refusal)
                self.on_idle(resident)
            elif now < waiting.deadline:
                deadline = waiting.deadline
                self.run_turn(
                    resident, waiting.peer, sequence, method, args, kwargs, deadline, chain, request
                )
            else:
                self._refuse_late(waiting.peer, sequence, now - waiting.deadline)
                self.on_idle(resident)
            if resident.inside is not None:  # the next one may start beside it
                self.on_idle(resident)
        if runnable and not self.paused:
            self.want_turns()

    def run_waiting(self) -> None:
        """Goes on with waiting calls, after `want_turns`."""
        self.in_turns(self._run_waiting, self.clock())

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
        self.windows.forget_unused(now)

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
            if resident.used > before or len(residents) >= _EVICTIONS_MAX:
                break
            residents.append(resident)
        return residents

    def _evict_least_recently_used(self) -> None:
        # The busy ones are passed over; when many are busy the cap gives way, never an object in use.
        for _ in range(min(len(self.live), _EVICTION_LOOKS_MAX)):
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
        self.windows.leave(resident)
        del self.live[resident.key]
        return True

    # --- stopping

    def drain(self) -> None:
        """Takes no new calls, and answers those that wait as not executed."""
        self.draining = True
        self.timetable.stop()
        self.sends.stop()
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
            **self.timetable.stats(),
            **self.sends.stats(),
        }

    @property
    def busy(self) -> int:
        """Objects with a running turn or waiting calls."""
        return sum(r.turn is not None or r.mailbox is not None for r in self.live.values())

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
    if type(chain) is not list or not all(type(entry) is list and len(entry) in (2, 3) for entry in chain):
        raise TypeError("a chain is a list of [id, label] and [id, label, number of the turn]")
    return [str(entry[1]) for entry in chain]


def _sequence_of(item: bytes) -> int | None:
    """The sequence of an encoded call that cannot be decoded as a whole."""
    try:
        sequence = codec.decode(codec.split_array(item)[0])
    except (InvalidArgument, IndexError):
        return None
    return sequence if type(sequence) is int else None
