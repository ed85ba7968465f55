"""The ordinary turn, in two functions: an idle object, an async method that does not suspend, plain fields.
Plain functions and calls that have waited begin the general way and end in the second of them.

Guarantees nothing of its own: it does what host.py, execution.py, writes.py and retries.py do for every
turn, for the cases in which that is little, and leaves all others to them.  A step that changes there
changes here, too; tests/worker/test_quick.py sends the same calls both ways and compares what comes out.
Runs in the worker's event loop.

An increment at one of 10,000 objects, in batches of 256 on a quiet machine: 2.7 µs, of which the method and
its context are 0.35, the rows 0.4.  Nothing stands out any more; docs/decisions/0016 has what did.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextvars import copy_context
from sys import getrefcount
from typing import Any, Final
from zlib import crc32

from perdure import protocol
from perdure.codec import SCALARS
from perdure_storage.records import FORMAT, HEADER_BYTES
from perdure_worker.clients import Client
from perdure_worker.peers import Peer
from perdure_worker.recorded import SEQUENCE_END
from perdure_worker.refusals import Refusals
from perdure_worker.resident import Resident
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.turns import CURRENT, TURN_METHOD, TURN_PEER, TURN_SEQUENCE, Turn

__all__ = ["QuickTurns"]

_RESULTS: Final = SCALARS | {str}
_FIELDS: Final = frozenset({int, str, bool, bytes})
"""Equal values of these types are the same value."""
_PLACES_A_LIFE: Final = 20
_FORMAT_1: Final = FORMAT << 32
_set_current: Final = CURRENT.set


class QuickTurns(Refusals):
    """The host's short cut."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        super().__init__(settings, parts)
        self._timeout_max_ms = settings.limits.call_timeout_max_s * 1000
        self._used_grain_s = settings.idle_evict_s / _PLACES_A_LIFE
        """So old may an object's place in the order of use be: to move it touches four others' memory."""
        self._recent = 0.0
        """A time in seconds not older than that, which the objects in use share: one that has it is known by
        its identity, without a look at its value."""
        self._quick_reply_bytes = min(self._large_reply_bytes, settings.limits.reply_window_bytes_max)
        self._reply_all = self.reply_all

    @abstractmethod
    def _on_call(
        self, peer: Peer, client: Client, item: Any, base: float, now: float, size: int | None
    ) -> None:
        """A call comes in."""

    @abstractmethod
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
        """`_on_call` has raised."""

    def take_calls(
        self, peer: Peer, client: Client, items: list[Any], base: float, now: float, size: int | None
    ) -> None:
        """Calls come in; whatever one of them does, the others are taken."""
        get, note, page, recent = self.live.get, self._note, self._page, self._recent_at(now)
        is_open = not (peer.raw or self.draining or self.peers.full) and client.flush > 0
        for item in items:
            try:
                sequence, namespace, key, name, method_name, args, kwargs, timeout_ms, context = item
                resident = get(key)
                if (
                    resident is None
                    or resident.turn is not None
                    or resident.instance is None
                    or resident.mailbox is not None
                    or context is not None
                    or kwargs
                    or type(args) is not list
                    or type(sequence) is not int
                    or not client.highest < sequence < SEQUENCE_END
                    or (name is not None and name != resident.name)
                    or resident.cls.namespace != namespace
                    or (method := resident.cls.methods.get(method_name)) is None
                    or not 0 < timeout_ms < self._timeout_max_ms
                    or (deadline := base + timeout_ms * 0.001) <= now
                    or self.paused
                    or not is_open
                ):
                    self._on_call(peer, client, item, base, now, size)
                    continue
                client.highest = sequence
                if resident.used is not recent:
                    resident.used = recent
                    self.live.move_to_end(key)
                if not method.quick:
                    self.run_turn(resident, peer, sequence, method, args, kwargs, deadline, None, client)
                    continue
                note(page, 0, method.mark, key)
                turn = (peer, sequence, method, deadline, None, client)
                arguments = self._bind(resident, turn, args) if args or not method.accepts_no_args else ()
                if arguments is None:
                    continue
                self.turns += 1
                resident.turn = turn
                _set_current(turn)
                context = copy_context()
                result = failure = None
                try:
                    if arguments:
                        coroutine = method.function(resident.instance, *arguments)
                    else:  # 0.05 µs less without the star
                        coroutine = method.function(resident.instance)
                    result = context.run(coroutine.send, None)
                except StopIteration as stop:  # a coroutine raises it at its end only
                    result = stop.value
                except BaseException as raised:  # KeyboardInterrupt too: a method does not stop the worker
                    failure = raised
                else:
                    self._suspend(resident, turn, coroutine, context, result)
                    continue
                if getrefcount(self._spare) != self._spare_references:
                    self._check_spare()
                if failure is None:
                    self._end_quickly(resident, turn, result)
                else:
                    self._fail(resident, turn, failure)
                    failure = None  # its traceback holds this frame
            except BaseException as error:  # of one call, and none of the others'
                self._on_odd_call(peer, client, item, base, now, size, error)
        self._pause_if_full()

    def _recent_at(self, now: float) -> float:
        if now - self._recent > self._used_grain_s:
            self._recent = now
        return self._recent

    def _bind(self, resident: Resident, turn: Turn, args: list[Any]) -> Sequence[Any] | None:
        """What the method is called with; None when that does not fit, and its caller is told."""
        method = turn[TURN_METHOD]
        try:
            arguments: Sequence[Any] = method.bind(args, None)[0]
        except BaseException as error:  # users' constructors and validators run here
            self.refuse_arguments(turn[TURN_PEER], turn[TURN_SEQUENCE], method.title, error)
            return None
        return arguments

    def _pause_if_full(self) -> None:
        if self._groups.uncommitted_bytes > self.limits.uncommitted_bytes_max:
            self.paused = True

    def _end(self, resident: Resident, turn: Turn, result: Any) -> None:
        # Of plain functions, and of calls that have waited: a write takes 0.5 µs less than in `_finish`.
        peer, sequence, _, _, _, client = turn
        if type(client) is not Client or peer.raw or not 0 <= sequence < SEQUENCE_END:
            self._finish(resident, turn, result)
            return
        self._end_quickly(resident, turn, result)
        self._pause_if_full()

    def _end_quickly(self, resident: Resident, turn: Turn, result: Any) -> None:
        """As `_finish`."""
        peer, sequence, method, _, _, client = turn
        cls, storage, kind = resident.cls, resident.storage, type(result)
        if (
            (kind is not method.result_exact and not method.result_identity)
            or kind not in _RESULTS
            or self.progress
            or resident.doomed is not None
            or (storage is not None and (storage._dirty or self.undo))
        ):
            self._finish(resident, turn, result)
            return
        changed = index = -1
        value: Any = None
        encoded = reply = b""
        instance = resident.instance
        try:
            for saved in resident.saved:
                index += 1
                now = getattr(instance, cls.field_names[index])
                if now is not saved:
                    kind = type(now)
                    if kind is not type(saved) or kind is not cls.field_exacts[index] or kind not in _FIELDS:
                        changed = -2
                    elif now != saved:
                        changed, value = index if changed == -1 else -2, now
                    if changed == -2:
                        break
            if changed != -2:
                reply = self._pack([sequence, protocol.STATUS_RESULT, result])
            if changed >= 0:
                encoded = self._pack(value)
        except BaseException:  # the general way says what it is
            changed = -2
        if changed == -2 or len(encoded) > self._value_bytes_max or len(reply) > self._quick_reply_bytes:
            self._finish(resident, turn, result)
            return
        resident.turn = None
        if changed >= 0:
            groups = self._groups
            prefix = resident.head + resident.key
            if not resident.named:
                self._put_name(resident, prefix)
            tail = cls.field_rows[changed]
            row = prefix + tail
            header = _FORMAT_1 | crc32(tail + encoded, resident.check)
            record = header.to_bytes(HEADER_BYTES, "big") + encoded
            groups.batch_put(row, record)
            groups.open_bytes += len(row) + len(record)
            resident.saved = (value,) if index == 0 else resident.saved_with(changed, value)
            group = resident.ticket = groups.group
            part = client.part
            if part is None:
                part = self.recorded.open_part(client)
            part[sequence] = (prefix, reply)
            if peer.held_for != group:
                peer.held_for, peer.held = group, []
                self.gate.hold(group, (self._reply_all, peer, peer.held, None))
            peer.held.append(reply)
        elif resident.ticket > self.durable:
            self.gate.hold(resident.ticket, (self._reply, peer, sequence, reply))
        else:
            if not peer.replies:
                self.peers.dirty.append(peer)
            peer.replies.append(reply)
        if resident.mailbox is not None:
            self.on_idle(resident)
