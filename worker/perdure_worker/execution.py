"""Running one turn: its start, its end, its answer.

Guarantees: the answer of a turn waits for the object's latest commit group (the output gate); a turn that
raises leaves no trace but its error; `on_start()` has ended before the first turn of an incarnation; a
method that does not suspend costs no Task; tasks that a turn starts are known as the turn's, and as
nobody's when it has ended (writes.py says what they can do then).  Runs in the worker's event loop.

Measured cost of a turn that increments one durable field, without wire and disk: see
docs/decisions/0003-turns-without-tasks.md.
"""

from __future__ import annotations

import logging
import threading
from abc import abstractmethod
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from sys import getrefcount
from types import CoroutineType
from typing import Any

from perdure import codec, protocol
from perdure.codec import SCALARS
from perdure.converter import describe_error
from perdure.errors import MessageTooLarge, PerdureError
from perdure.methods import Method
from perdure_worker import migrations
from perdure_worker.answers import LARGE_REPLY_BYTES, ResultTooLarge
from perdure_worker.cell import Aborted
from perdure_worker.clients import Client, Request
from perdure_worker.interleaving import run_beside
from perdure_worker.marks import MARK, describe
from perdure_worker.pace import Pace
from perdure_worker.peers import Peer
from perdure_worker.resident import Resident, StartTrouble
from perdure_worker.retries import Retries
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.streams import StreamEnd, Streams
from perdure_worker.system_turns import SystemTurn
from perdure_worker.threads import BlockingThreads
from perdure_worker.turns import (
    CURRENT,
    TURN_DEADLINE,
    TURN_METHOD,
    TURN_PEER,
    TURN_SEQUENCE,
    Progress,
    Turn,
    TurnTask,
    enter,
    leave,
)

__all__ = ["Execution", "TurnLimit"]

log = logging.getLogger("perdure.worker")

_PLAIN = SCALARS | {str}
_CUT_AGAIN_S = 1.0
_START_PAUSE_S = 0.1
_START_DOUBLINGS_MAX = 10  # beyond start_backoff_max_s; without a bound the power overflows


class TurnLimit(Exception):
    """The turn was cancelled at `turn_max_s`; what it wrote since its last commit point is discarded."""


class Execution(Retries):
    """Runs turns; `Host` decides which."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        super().__init__(settings, parts)
        self.classes = parts.classes
        for entry in parts.classes.values():
            entry.place(settings.slot_count)
        self.clock = parts.clock
        self.caller = parts.caller
        self.thread = threading.get_ident()
        self.turns = 0
        self._large_reply_bytes = min(LARGE_REPLY_BYTES, settings.limits.message_bytes_max)
        self._message_bytes_max = settings.limits.message_bytes_max
        self._context = copy_context()
        self._spare = TurnTask(parts.loop)
        self._spare_references = 0
        """References to a spare that nobody kept and nobody touched."""
        self.pace = Pace(settings.limits.start_batch_s, parts.clock, parts.want_turns)
        self._threads = BlockingThreads(parts.loop, parts.marks, settings.limits.blocking_threads_max)
        self.marks = parts.marks
        self._note, self._page = MARK.pack_into, parts.marks.page
        self.streams = Streams(self)

    @abstractmethod
    def on_idle(self, resident: Resident) -> None:
        """A turn of the object has ended."""

    @abstractmethod
    def _end(self, resident: Resident, turn: Turn, result: Any) -> None:
        """As `_finish`, of a turn that did not suspend."""

    @abstractmethod
    def touch(self, resident: Resident) -> None:
        """A turn that took time has ended: the object was in use until now."""

    @abstractmethod
    def fail_waiting(self, resident: Resident, error: BaseException) -> None:
        """Every waiting call of the object gets this error."""

    @abstractmethod
    def run_waiting(self) -> None:
        """Starts waiting calls."""

    @abstractmethod
    def unknown_field(self, namespace: str, field: str) -> None:
        """A stored field is not declared any more."""

    # --- the current task and the context variables

    def in_turns(self, run: Callable[..., None], *args: Any) -> None:
        """Runs what starts turns: with a current task, and in the host's own context variables.

        All turns begin with the same variables, whoever woke the host: a door, a timer, the commit thread.
        """
        enter(self.loop, self._spare)
        if not self._spare_references:
            self._spare_references = getrefcount(self._spare)
        try:
            self._context.run(run, *args)
        finally:
            self.marks.end()
            leave(self.loop, self._spare)

    def _replace_spare(self) -> TurnTask:
        task = self._spare
        leave(self.loop, task)
        self._spare = TurnTask(self.loop)
        enter(self.loop, self._spare)
        return task

    def _check_spare(self) -> None:
        if getrefcount(self._spare) != self._spare_references:
            # Somebody kept it, and could cancel the turn that it serves next.
            self._replace_spare().retire()

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
        request: Client | Request | None,
    ) -> None:
        """Runs a turn to its end or first suspension.  Within `in_turns`; never raises."""
        turn: Turn = (peer, sequence, method, deadline, chain, request)
        self._note(self._page, 0, method.mark, resident.key)  # as Marks.begin, without the call
        try:
            arguments, keywords = method.bind(args, kwargs)
        except BaseException as error:  # users' constructors and validators run here
            self.refuse_arguments(peer, sequence, method.title, error)
            self.on_idle(resident)
            return
        self.turns += 1
        if method.interleaved:
            run_beside(self, resident, turn, method.function, (resident.instance, *arguments), keywords)
            return
        resident.turn = turn
        body = method.function if method.plain else self.streams.body(resident, turn, method)
        self._step(resident, turn, body, (resident.instance, *arguments), keywords)

    def _step(
        self,
        resident: Resident,
        turn: Turn,
        body: Callable[..., Any],
        args: tuple[Any, ...],
        keywords: dict[str, Any] | None,
    ) -> None:
        # Each turn has a context of its own, so that what it sets does not leak into others (0.04 µs), with
        # the turn in it, so that tasks that it starts are known as its own (0.03 µs).
        CURRENT.set(turn)
        context = copy_context()
        suspended = False
        result: Any = None
        failure: BaseException | None = None
        try:
            result = context.run(body, *args, **keywords) if keywords else context.run(body, *args)
            if type(result) is CoroutineType:
                coroutine, result = result, None
                try:
                    result = context.run(coroutine.send, None)
                    suspended = True
                except StopIteration as stop:  # a plain method's own is a failure like any other
                    result = stop.value
        except BaseException as raised:  # KeyboardInterrupt too: a method does not stop the worker
            failure = raised
        if suspended:
            self._suspend(resident, turn, coroutine, context, result)
            return
        self._check_spare()
        if failure is None:
            self._end(resident, turn, result)
        else:
            self._fail(resident, turn, failure)
            failure = None  # its traceback holds this frame

    def _suspend(
        self, resident: Resident, turn: Turn, coroutine: Any, context: Context, yielded: Any
    ) -> None:
        task = self._replace_spare()
        task.marks, task.mark, task.pace = self.marks, self.marks.current(), self.pace
        task.turn = (resident, turn, self.loop.call_later(self.limits.turn_max_s, self._cut, task))
        if turn[TURN_METHOD] is not None:
            self.suspended(resident, turn)
        task.adopt(coroutine, context, yielded, self._on_task_done)
        if resident.inside is not None:
            resident.inside.suspended(turn, task)

    def _cut(self, task: TurnTask) -> None:
        # Again and again, should the method swallow the cancellation; it cannot end well any more.
        resident, turn, _ = task.turn
        left_s = turn[TURN_DEADLINE] - self.clock()  # its caller waits for longer than turns usually run
        if self.streams:
            left_s = max(left_s, self.streams.time_left(turn))
        if left_s > 0:
            task.turn = (resident, turn, self.loop.call_later(left_s, self._cut, task))
            return
        log.warning(
            "a turn reached its limit and is cancelled",
            extra={"object": resident.label, "method": _title(turn)},
        )
        limit = TurnLimit(f"the turn ran longer than {self.limits.turn_max_s:g} s and was cancelled")
        if resident.inside is not None:
            resident.inside.doom(turn, limit)
        elif resident.doomed is None:
            resident.doomed = limit
        task.turn = (resident, turn, self.loop.call_later(_CUT_AGAIN_S, self._cut, task))
        task.cancel("the turn reached its limit")

    def _on_task_done(self, task: TurnTask, result: Any, failure: BaseException | None) -> None:
        resident, turn, timer = task.turn
        timer.cancel()
        if turn[TURN_METHOD] is not None:
            self.not_suspended(resident, turn)
        self.touch(resident)
        try:
            if failure is None:
                self.in_turns(self._finish, resident, turn, result)
            else:
                self.in_turns(self._fail, resident, turn, failure)
        finally:
            if resident.inside is not None:
                resident.inside.leave(turn)
            self.run_waiting()
            self.want_flush()

    def _finish(self, resident: Resident, turn: Turn, result: Any) -> None:
        peer, sequence, method, _, _, _ = turn
        if method is None or resident.doomed is not None:
            self._finish_other(resident, turn)
            return
        progress = self.progress.get(id(turn)) if self.progress else None
        try:
            kind = type(result)
            if kind is not method.result_exact:
                if kind is StreamEnd:
                    self.streams.finish(resident, turn, result)
                    return
                result = method.dump_result(result)
                kind = type(result)
            if kind in _PLAIN:
                reply = self._pack([sequence, protocol.STATUS_RESULT, result])
            else:
                reply = b"\x93" + self._pack(sequence) + b"\x00" + codec.encode(result)
            if len(reply) > self._large_reply_bytes:
                self.check_size(reply, turn)
            # As `_changes`, without the call (0.05 µs).
            changes = resident.changed_fields(self._pack, self._value_bytes_max)
            if changes is None and resident.storage is not None and resident.storage._dirty:
                changes = []
        except BaseException as error:  # of user-defined values too: the turn fails, nothing is written
            self._fail(resident, turn, error)
            return
        resident.turn = None
        if progress is not None:
            self._finish_known(resident, turn, changes, reply, progress)
        elif changes is not None:
            self._join(resident, changes)
            self.record(resident, turn, reply, None)
            self.gate.hold(resident.ticket, (self._reply, peer, sequence, reply))
        elif resident.ticket > self.durable:
            self.gate.hold(resident.ticket, (self._reply, peer, sequence, reply))
        else:
            self.reply(peer, sequence, reply)
        if resident.mailbox is not None:
            self.on_idle(resident)

    def _finish_known(
        self, resident: Resident, turn: Turn, changes: Any, reply: bytes, progress: Progress
    ) -> None:
        """The end of a turn that had commit points before, or whose call came in more than once."""
        del self.progress[id(turn)]
        if changes is not None or progress.wrote:
            self._join(resident, changes or [])
            self.record(resident, turn, reply, progress)
        self.gate.hold(resident.ticket, (self._reply, turn[TURN_PEER], turn[TURN_SEQUENCE], reply))
        self.reply_more(resident, progress, reply)

    def _finish_other(self, resident: Resident, turn: Turn) -> None:
        if resident.doomed is not None:
            self._fail(resident, turn, resident.doomed)
        elif turn[TURN_PEER] is None:
            self._started(resident, turn)
        else:
            self._finish_handler(resident, turn)

    # --- a turn of the host's own

    def run_handler(self, resident: Resident, work: SystemTurn) -> None:
        """As `run_turn`, for work that no caller waits for; `work` is told how it ends."""
        try:
            body = work.begin(resident)
        except PerdureError as error:  # its rows are damaged
            log.error("a handler cannot run: %s", error, extra={"object": resident.label})
            body = None
        if body is None:
            self.on_idle(resident)
            work.dropped()
            return
        function, args, blocking = body
        deadline = self.clock() + self.limits.turn_max_s
        resident.turn = turn = (work, 0, None, deadline, None, work.request)
        self.turns += 1
        self.marks.begin(describe(resident.cls.namespace, work.title), resident.key)
        run = partial(self._threads.run, function) if blocking else function
        self._step(resident, turn, run, (resident.instance, *args), None)

    def _finish_handler(self, resident: Resident, turn: Turn) -> None:
        work: SystemTurn = turn[TURN_PEER]
        try:
            work.commit(resident)
            changes = self._changes(resident)
        except BaseException as error:  # of user-defined values too: the turn fails, nothing is written
            self._fail(resident, turn, error)
            return
        if changes is not None:
            self._join(resident, changes)
        self.progress.pop(id(turn), None)
        resident.turn = None
        self.on_idle(resident)
        work.ended(resident)

    def check_size(self, reply: bytes, turn: Turn) -> None:
        """Raises `MessageTooLarge` for what cannot travel, and has many large replies wait for the disk."""
        size, limit = len(reply), self._message_bytes_max
        if size <= limit:
            if size > self._large_reply_bytes:
                self.pace_large_replies(size)
            return
        text = f"the result of {turn[TURN_METHOD].title} has {size} bytes encoded; the limit is {limit}"
        progress = self.progress.get(id(turn))
        if turn[TURN_METHOD].is_generator or (progress is not None and (progress.wrote or progress.calls)):
            # Then "nothing happened" would not be true.
            text += "; what it did up to its last commit point stays"
            raise MessageTooLarge(text, size=size, limit=limit)
        raise ResultTooLarge(f"{text}; what the method did was undone", size=size, limit=limit)

    def _fail(self, resident: Resident, turn: Turn, error: BaseException) -> None:
        # Never raises: whatever users' classes do on the way, the object is free again and answers leave.
        progress = self.progress.pop(id(turn), None)
        if resident.doomed is not None:
            error, resident.doomed = resident.doomed, None
        over = type(error) is Aborted  # isinstance would ask a user's __class__
        stuck: BaseException | None = None
        try:
            self.discard(resident)
        except BaseException as raised:  # a user's class refuses the value that it saved itself
            stuck, over = raised, True
        peer = turn[TURN_PEER]
        if peer is None:
            self._start_failed(resident, migrations.explain(resident, turn, error))
            return
        resident.turn = None
        self.log_failure(resident, turn[TURN_METHOD], error)
        for who, sequence in ((peer, turn[TURN_SEQUENCE]), *(progress.more if progress is not None else ())):
            self.reply_failure(resident, who, sequence, error)
        if over and resident.inside is not None:
            resident.inside.end_all(error)
        elif over:
            self.end_incarnation(resident, error)
        else:
            self.on_idle(resident)
        if stuck is not None:
            told = {"object": resident.label, "error": describe_error(stuck)}
            log.error("an object's fields cannot be put back", extra=told)

    # --- the life of an incarnation

    def doom(self, resident: Resident, error: Aborted) -> None:
        """The running turn ends with this error even if its method catches it; nothing it does counts."""
        if not self.in_turn(resident):
            raise RuntimeError("ctx.abort() ends the running turn; this code does not run inside one")
        log.warning("an object aborted itself", extra={"object": resident.label, "reason": error.reason})
        if resident.inside is not None:
            resident.inside.end_all(error)
        else:
            resident.doomed = error

    def begin_start(self, resident: Resident, chain: list[list[Any]] | None) -> None:
        """Loads the object and runs `on_start`; ends in `_started` or `_start_failed`.

        `chain` is that of the call which the object starts for: it waits for `on_start` too.
        """
        # The clock makes it a tuple of its own: a running turn is known by identity.
        now = self.clock()
        resident.turn = turn = (None, 0, None, now + self.limits.turn_max_s, chain, None)
        resident.used = now
        if resident.trouble is not None:
            resident.trouble.error = None
        self._start_behind_gate(resident, turn, None)

    def _start_behind_gate(self, resident: Resident, turn: Turn, _: None) -> None:
        # A former incarnation's writes must be on disk before its successor reads them.  While too many
        # bytes wait for the disk, what on_start() writes waits like any turn.
        ticket = self.last_group() if self.paused else resident.ticket
        if ticket > self.durable:
            self.gate.hold(ticket, (self._start_later, resident, turn, None))
        else:
            self._start(resident, turn)

    def _start_later(self, resident: Resident, turn: Turn, _: None) -> None:
        self.in_turns(self._start_behind_gate, resident, turn, None)
        self.want_turns()

    def _start(self, resident: Resident, turn: Turn) -> None:
        begin = resident.cls.begin
        self.marks.begin(resident.cls.start_mark, resident.key)
        try:
            if migrations.load(self, resident, turn):
                return
        except BaseException as error:
            self._fail(resident, turn, error)
            return
        if begin is None:
            self._started(resident, turn)
        else:
            self._step(resident, turn, begin, (resident.instance,), None)

    def _started(self, resident: Resident, turn: Turn) -> None:
        try:
            if migrations.is_migration(turn):
                migrations.end(self, resident, turn)
                return
            changes = self._changes(resident)
        except BaseException as error:
            self._fail(resident, turn, error)
            return
        if changes is not None:
            self._join(resident, changes)
        self.progress.pop(id(turn), None)
        resident.turn = None
        resident.trouble = None
        self.on_idle(resident)

    def _start_failed(self, resident: Resident, error: BaseException) -> None:
        # The next call tries again at once, later ones with growing pauses.
        trouble = resident.trouble = resident.trouble or StartTrouble()
        doublings = min(trouble.failures - 1, _START_DOUBLINGS_MAX)
        pause = _START_PAUSE_S * 2**doublings if trouble.failures else 0.0
        trouble.failures += 1
        trouble.retry_at = self.clock() + min(pause, self.limits.start_backoff_max_s)
        trouble.error = error
        resident.turn = None
        self.end_incarnation(resident, error)
        told = {"object": resident.label, "error": describe_error(error)}
        log.warning("an object could not start", extra=told)

    def end_incarnation(self, resident: Resident, error: BaseException) -> None:
        """Drops the instance; every waiting call of the object gets this error."""
        resident.instance = None
        resident.storage = None
        self.fail_waiting(resident, error)

    def close(self) -> None:
        """Lets go of the threads of `@blocking` methods."""
        self._threads.close()


def _title(turn: Turn) -> str:
    """What runs, for logs."""
    if turn[TURN_METHOD] is not None:
        return str(turn[TURN_METHOD].name)
    return "on_start" if turn[TURN_PEER] is None else str(turn[TURN_PEER].title)
