"""Running one turn: its method, its writes, its answer.

Guarantees: all writes of a turn since its last commit point join one commit group or none does; the
answer waits for the object's latest group (the output gate); a turn that raises leaves no trace but
its error; a method that does not suspend costs no Task.  Runs in the worker's event loop.

Measured cost of a turn that increments one durable field, without wire and disk: see
docs/decisions/0003-turns-without-tasks.md.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from types import CoroutineType
from typing import Any, Final

from perdure import codec, protocol
from perdure.codec import SCALARS
from perdure.errors import MessageTooLarge, PerdureError, StorageError, to_wire
from perdure.ids import slot_of
from perdure.methods import Method
from perdure.remote_errors import dump_exception
from perdure.stub import Target
from perdure_storage import keys
from perdure_storage.object_storage import ObjectStorage, StorageBackend
from perdure_storage.records import seal
from perdure_worker.cell import Aborted, HostCell
from perdure_worker.gates import Gate
from perdure_worker.peers import Peer
from perdure_worker.resident import Resident
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.turns import TurnTask, enter, leave

__all__ = ["Execution", "TurnLimit"]

log = logging.getLogger("perdure.worker")

_PLAIN = SCALARS | {str}
_THREADS_MAX = 32


class TurnLimit(Exception):
    """The turn was cancelled at `turn_max_s`; what it wrote since its last commit point is discarded."""


# A running turn: who gets the answer (None for the start of an object), the call's sequence, its method
# (None for the start), its deadline, and its chain of waiting objects.  A plain tuple, because one is made
# for every call: 0.04 µs, a NamedTuple 0.3 µs.
Turn = tuple[Peer | None, int, Method | None, float, list[list[Any]] | None]
_PEER: Final = 0
_SEQUENCE: Final = 1
_METHOD: Final = 2
_DEADLINE: Final = 3
_CHAIN: Final = 4


class Execution(ABC):
    """Runs turns; `Host` decides which."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        self.limits = settings.limits
        self.slots = settings.slots
        self.slot_count = settings.slot_count
        self.idle_evict_s = settings.idle_evict_s
        self.live_objects_max = settings.live_objects_max
        self.classes = parts.classes
        self.engine = parts.engine
        self.committer = parts.committer
        self._groups = parts.committer.groups
        self.peers = parts.peers
        self.loop = parts.loop
        self.clock = parts.clock
        self.want_flush = parts.want_flush
        self.want_turns = parts.want_turns
        self.thread = threading.get_ident()
        self.gate = Gate()
        self.durable = parts.committer.durable
        """The last group known to be on disk."""
        self.paused = False
        """Whether new turns wait because too many bytes wait for the disk."""
        self.turns = 0
        self._reply = self.reply  # bound once: it goes into every waiting output
        self.caller = parts.caller
        self._tracebacks = settings.tracebacks
        self._timeout_s = settings.limits.call_timeout_s
        self._timeout_max_ms = settings.limits.call_timeout_max_s * 1000
        self._pack = codec.make_packer()
        self._backend = StorageBackend(parts.engine, settings.limits, codec.encode, codec.decode)
        self._spare = TurnTask(parts.loop)
        self._threads: ThreadPoolExecutor | None = None

    @abstractmethod
    def on_idle(self, resident: Resident) -> None:
        """A turn of the object has ended."""

    @abstractmethod
    def fail_waiting(self, resident: Resident, error: BaseException) -> None:
        """Every waiting call of the object gets this error."""

    @abstractmethod
    def run_waiting(self) -> None:
        """Starts waiting calls."""

    @abstractmethod
    def unknown_field(self, namespace: str, field: str) -> None:
        """A stored field is not declared any more."""

    @abstractmethod
    def make_cell(self, resident: Resident) -> HostCell:
        """What the object sees of its worker."""

    # --- the current task

    def enter(self) -> None:
        """Begins running turns: the spare task is what `asyncio.current_task()` gives."""
        enter(self.loop, self._spare)

    def leave(self) -> None:
        """Ends running turns in this callback."""
        leave(self.loop, self._spare)

    def _replace_spare(self) -> TurnTask:
        task = self._spare
        leave(self.loop, task)
        self._spare = TurnTask(self.loop)
        enter(self.loop, self._spare)
        return task

    # --- a turn

    def run_turn(
        self,
        resident: Resident,
        peer: Peer,
        sequence: int,
        method: Method,
        args: Any,
        kwargs: Any,
        deadline: float,
        chain: list[list[Any]] | None,
    ) -> None:
        """Runs a turn to its end or first suspension.  Between `enter` and `leave`."""
        turn: Turn = (peer, sequence, method, deadline, chain)
        try:
            arguments, keywords = method.bind(args, kwargs)
        except PerdureError as error:
            self.refuse(peer, sequence, error)
            self.on_idle(resident)
            return
        resident.turn = turn
        self.turns += 1
        self._step(resident, turn, self._body(method), (resident.instance, *arguments), keywords)

    def _body(self, method: Method) -> Callable[..., Any]:
        return self._in_thread(method) if method.blocking else method.function

    def _step(
        self,
        resident: Resident,
        turn: Turn,
        body: Callable[..., Any],
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
    ) -> None:
        # Each turn has a context of its own, so that what it sets does not leak into others (0.04 µs).
        context = copy_context()
        suspended = False
        result: Any = None
        failure: BaseException | None = None
        try:
            result = context.run(body, *args, **keywords) if keywords else context.run(body, *args)
            if type(result) is CoroutineType:
                coroutine, result = result, None
                result = context.run(coroutine.send, None)
                suspended = True
        except StopIteration as stop:
            result = stop.value
        except BaseException as raised:  # KeyboardInterrupt too: a method does not stop the worker
            failure = raised
        if suspended:
            self._suspend(resident, turn, coroutine, context, result)
            return
        if self._spare.touched:
            self._replace_spare()
        if failure is None:
            self._finish(resident, turn, result)
        else:
            self._fail(resident, turn, failure)

    def _suspend(
        self, resident: Resident, turn: Turn, coroutine: Any, context: Context, yielded: Any
    ) -> None:
        task = self._replace_spare()
        task.turn = (resident, turn, self.loop.call_later(self.limits.turn_max_s, self._cut, task))
        task.adopt(coroutine, context, yielded, self._on_task_done)

    def _cut(self, task: TurnTask) -> None:
        # Again and again, should the method swallow the cancellation.
        resident, turn, _ = task.turn
        log.warning(
            "a turn reached its limit and is cancelled",
            extra={"object": resident.label, "method": turn[_METHOD].name if turn[_METHOD] else "on_start"},
        )
        task.turn = (resident, turn, self.loop.call_later(1.0, self._cut, task))
        task.cut = True
        task.cancel("the turn reached its limit")

    def _on_task_done(self, task: TurnTask, result: Any, failure: BaseException | None) -> None:
        resident, turn, timer = task.turn
        timer.cancel()
        if task.cut and isinstance(failure, asyncio.CancelledError):
            failure = TurnLimit(f"the turn ran longer than {self.limits.turn_max_s:g} s and was cancelled")
        if resident.turn is not turn:
            return  # the object was aborted meanwhile, and everybody has been told
        self.enter()
        try:
            if failure is None:
                self._finish(resident, turn, result)
            else:
                self._fail(resident, turn, failure)
        finally:
            self.leave()
        self.run_waiting()
        self.want_flush()

    def _finish(self, resident: Resident, turn: Turn, result: Any) -> None:
        peer, sequence, method, _, _ = turn
        if peer is None or method is None:
            self._started(resident)
            return
        try:
            kind = type(result)
            if kind is not method.result_exact:
                result = method.dump_result(result)
                kind = type(result)
            if kind in _PLAIN:
                reply = self._pack([sequence, protocol.STATUS_RESULT, result])
            else:
                reply = b"\x93" + self._pack(sequence) + b"\x00" + codec.encode(result)
            if len(reply) > self.limits.message_bytes_max:
                self._too_large(len(reply))
            changes = self._changes(resident)
        except Exception as error:  # of user-defined values too: the turn fails, nothing is written
            self._fail(resident, turn, error)
            return
        resident.turn = None
        if changes is not None:
            self._join(resident, changes)
            self.gate.hold(resident.ticket, (self._reply, peer, sequence, reply))
        elif resident.ticket > self.durable:
            self.gate.hold(resident.ticket, (self._reply, peer, sequence, reply))
        else:
            self.reply(peer, sequence, reply)
        if resident.mailbox is not None:
            self.on_idle(resident)

    def _too_large(self, size: int) -> None:
        raise MessageTooLarge(
            f"the result has {size} bytes encoded; the limit is {self.limits.message_bytes_max}",
            size=size,
            limit=self.limits.message_bytes_max,
        )

    def _fail(self, resident: Resident, turn: Turn, error: BaseException) -> None:
        self.discard(resident)
        if isinstance(error, Aborted):
            self._abort(resident, turn, error)
            return
        peer = turn[_PEER]
        if peer is None:
            self._start_failed(resident, error)
            return
        resident.turn = None
        self.reply_failure(resident, peer, turn[_SEQUENCE], error)
        self.on_idle(resident)

    def _abort(self, resident: Resident, turn: Turn, error: Aborted) -> None:
        log.warning("an object aborted itself", extra={"object": resident.label, "reason": error.reason})
        resident.turn = None
        resident.instance = None
        resident.cell = None
        resident.storage = None
        peer = turn[_PEER]
        if peer is not None:
            self.reply_failure(resident, peer, turn[_SEQUENCE], error)
        self.fail_waiting(resident, error)

    # --- writes

    def _changes(self, resident: Resident) -> list[Any] | None:
        """What the turn changed and not yet committed; None if nothing.  Raises, and then changes nothing."""
        changes = resident.changed_fields(self._pack, self.limits.value_bytes_max)
        if changes is None and resident.storage is not None and resident.storage._dirty:
            return []
        return changes

    def _join(self, resident: Resident, changes: list[Any]) -> None:
        """The writes of the turn so far join the open commit group."""
        groups = self._groups
        prefix = resident.prefix or resident.row_prefix(self.slot_count)
        if resident.storage is not None:
            self._join_storage(resident, resident.storage, bool(changes))
        elif not resident.named:
            self._put_name(resident, prefix)
        rows, saved, put = resident.cls.field_rows, resident.saved, groups.put
        for index, remember, encoded in changes:
            key = prefix + rows[index]
            put(key, seal(key, encoded))
            saved[index] = remember
        resident.ticket = groups.group
        if groups.uncommitted_bytes > self.limits.uncommitted_bytes_max:
            self.paused = True

    def _join_storage(self, resident: Resident, storage: ObjectStorage, stores: bool) -> None:
        if storage._dirty:
            stores = storage._stores or stores
            storage._join(self.committer)
            group = self.committer.group
            self.gate.hold(group, (_settle, storage, group, None))
        if resident.undo is not None:
            resident.named = resident.misnamed = False
            resident.undo = None
        if stores and not resident.named:
            self._put_name(resident, resident.prefix)

    def _put_name(self, resident: Resident, prefix: bytes) -> None:
        # The name travels with the object's first write, so that listings and restarts know it.
        key = prefix + keys.META
        self.committer.put(key, seal(key, codec.encode({"name": resident.name})))
        index = resident.names_row()
        value = keys.names_value(slot_of(resident.key, self.slot_count), resident.key)
        self.committer.put(index, seal(index, value))
        if resident.misnamed:
            self.committer.delete(keys.names_key(resident.cls.namespace, None, resident.key))
        resident.named, resident.misnamed = True, False

    def commit_point(self, resident: Resident) -> None:
        """Commits what the running turn wrote so far; raises when it cannot be stored."""
        changes = self._changes(resident)
        if changes is not None:
            self._join(resident, changes)
            self.want_flush()

    def discard(self, resident: Resident) -> None:
        """Forgets what the running turn wrote since its last commit point."""
        if resident.undo is not None:
            resident.saved = resident.undo
            resident.undo = None
        if resident.storage is not None:
            resident.storage._discard()
        if resident.instance is not None and (resident.turn is None or resident.turn[_PEER] is not None):
            resident.reload_fields()

    def sync(self, resident: Resident) -> Awaitable[None]:
        """A commit point, and the future of its being durable."""
        self.commit_point(resident)
        future: asyncio.Future[None] = self.loop.create_future()
        self.gate.hold(resident.ticket, (_resolve, future, None, None))
        return future

    def storage_of(self, resident: Resident) -> ObjectStorage:
        """The object's storage, made when it first asks."""
        if resident.storage is None:
            resident.storage = ObjectStorage(
                self._backend,
                prefix=resident.row_prefix(self.slot_count),
                names_row=resident.names_row(),
                commit_point=lambda: self.sync(resident),
                on_delete_all=lambda: self._on_delete_all(resident),
            )
        return resident.storage

    def _on_delete_all(self, resident: Resident) -> None:
        if resident.undo is None:
            resident.undo = list(resident.saved)
        resident.reset_fields()
        # Rows that are on their way to the disk are not found by looking there: delete them by name.
        prefix, storage = resident.row_prefix(self.slot_count), self.storage_of(resident)
        for row in resident.cls.field_rows:
            storage._put_row(prefix + row, None)
        storage._put_row(prefix + keys.META, None)
        storage._put_row(resident.names_row(), None)

    def on_durable(self, group: int) -> None:
        """Groups up to `group` are on disk: what waited for them leaves."""
        self.durable = group
        self.gate.on_durable(group)
        if self.paused and self.committer.uncommitted_bytes <= self.limits.uncommitted_bytes_max:
            self.paused = False
            self.want_turns()

    # --- threads

    def _in_thread(self, method: Method) -> Callable[..., Any]:
        async def run(*args: Any, **keywords: Any) -> Any:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS_MAX, "perdure-blocking")
            context = copy_context()
            return await self.loop.run_in_executor(
                self._threads, lambda: context.run(method.function, *args, **keywords)
            )

        return run

    # --- answers

    def reply(self, peer: Peer, sequence: int, reply: bytes) -> None:
        """An encoded reply leaves with this tick's message to its peer."""
        if not peer.replies:
            self.peers.dirty.append(peer)
        peer.replies.append(reply)
        if peer.raw:
            peer.sequences.append(sequence)

    def refuse(self, peer: Peer, sequence: int, error: PerdureError) -> None:
        """The call did not run; its answer waits for nothing."""
        self.reply(peer, sequence, self._pack([sequence, protocol.STATUS_ERROR, to_wire(error)]))

    def reply_failure(self, resident: Resident, peer: Peer, sequence: int, error: BaseException) -> None:
        """The turn raised; the answer waits for what the object committed before."""
        if isinstance(error, StorageError) and resident.instance is None:
            reply = codec.encode([sequence, protocol.STATUS_ERROR, to_wire(error)])
        else:
            raised = dump_exception(error, resident.label, with_traceback=self._tracebacks)
            reply = codec.encode([sequence, protocol.STATUS_RAISED, raised])
        if resident.ticket > self.durable:
            self.gate.hold(resident.ticket, (self.reply, peer, sequence, reply))
        else:
            self.reply(peer, sequence, reply)

    def reply_value(self, peer: Peer, sequence: int, value: Any) -> None:
        """The answer of the worker itself to `list` and `stats`."""
        self.reply(peer, sequence, codec.encode([sequence, protocol.STATUS_RESULT, value]))

    # --- the start of an object

    def begin_start(self, resident: Resident) -> None:
        """Loads the object and runs `on_start`; ends in `_started` or `_start_failed`."""
        # The clock makes it a tuple of its own: a running turn is known by identity.
        now = self.clock()
        resident.turn = turn = (None, 0, None, now + self.limits.turn_max_s, None)
        resident.used = now
        if resident.ticket > self.durable:
            # A former incarnation's writes must be on disk before its successor reads them.
            self.gate.hold(resident.ticket, (self._start_now, resident, turn, None))
        else:
            self._start(resident, turn)

    def _start_now(self, resident: Resident, turn: Turn, _: None) -> None:
        self.enter()
        try:
            self._start(resident, turn)
        finally:
            self.leave()
        self.want_turns()

    def _start(self, resident: Resident, turn: Turn) -> None:
        cls = resident.cls
        try:
            resident.load(self.engine, self.slot_count, self.unknown_field)
            resident.cell = resident.instance._perdure_cell = self.make_cell(resident)
            if cls.has_init:
                resident.instance.__init__()
        except BaseException as error:
            self._fail(resident, turn, error)
            return
        if cls.has_on_start:
            self._step(resident, turn, cls.cls.on_start, (resident.instance,), None)
        else:
            self._started(resident)

    def _started(self, resident: Resident) -> None:
        try:
            changes = self._changes(resident)
        except Exception as error:
            self.discard(resident)
            self._start_failed(resident, error)
            return
        if changes is not None:
            self._join(resident, changes)
        resident.turn = None
        resident.start_error = None
        resident.failures = 0
        self.on_idle(resident)

    def _start_failed(self, resident: Resident, error: BaseException) -> None:
        # The next call tries again at once, later ones with growing pauses.
        pause = 0.1 * 2 ** (resident.failures - 1) if resident.failures else 0.0
        resident.failures += 1
        resident.retry_at = self.clock() + min(pause, self.limits.start_backoff_max_s)
        resident.start_error = error
        resident.instance = None
        resident.turn = None
        log.warning("an object could not start", extra={"object": resident.label, "error": repr(error)[:500]})
        self.fail_waiting(resident, error)


def _settle(storage: ObjectStorage, group: int, _: None) -> None:
    storage._settle(group)


def _resolve(future: asyncio.Future[None], *_: Any) -> None:
    if not future.done():
        future.set_result(None)
