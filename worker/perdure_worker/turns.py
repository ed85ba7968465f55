"""One turn's coroutine, driven without a Task until it suspends.  Runs in the worker's event loop.

A method that finishes without suspending costs no Task (a Task costs about 2 µs and a loop iteration,
a turn without one 0.3 µs).  Still `asyncio.current_task()` must be there for `asyncio.timeout`,
`TaskGroup`, anyio and aiohttp, and it must be the same object before and after the first suspension,
because they keep it.  So a `TurnTask` is current from the first step: one spare serves all turns that
do not suspend, and the turn that does keeps it and leaves a new spare behind.  A spare that user code
cancelled, tied a callback to or merely kept is thrown away.
"""

from __future__ import annotations

import asyncio
import contextvars
from asyncio.tasks import _enter_task, _leave_task, _register_task
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from perdure_worker.pace import Pace

__all__ = [
    "CURRENT",
    "TURN_CHAIN",
    "TURN_DEADLINE",
    "TURN_METHOD",
    "TURN_PEER",
    "TURN_REQUEST",
    "TURN_SEQUENCE",
    "Progress",
    "Spans",
    "Turn",
    "TurnTask",
    "enter",
    "leave",
]

# A running turn: who gets the answer (None for the start of an object), the call's sequence, its method
# (None for the start), its deadline, its chain of waiting objects, and its request id (clients.Request; None
# for the start).  It is known by identity.  A plain tuple, because one is made for every call: 0.04 µs, a
# NamedTuple 0.3 µs.
Turn = tuple[Any, int, Any, float, list[list[Any]] | None, Any]
TURN_PEER: Final = 0
TURN_SEQUENCE: Final = 1
TURN_METHOD: Final = 2
TURN_DEADLINE: Final = 3
TURN_CHAIN: Final = 4
TURN_REQUEST: Final = 5

CURRENT: Final[contextvars.ContextVar[Any]] = contextvars.ContextVar("perdure_turn", default=None)
"""The turn that the running code belongs to, also in tasks and callbacks that the turn has started."""


class Progress:
    """What is remembered of some running turns: of those with commit points before their end, or retries."""

    __slots__ = ("calls", "more", "wrote")

    def __init__(self) -> None:
        self.calls = 0
        """Calls to other objects that it has made: the ordinal of the last one."""
        self.more: list[tuple[Any, int]] = []
        """(peer, sequence) of further tries of its call, which get its answer, too."""
        self.wrote = False
        """Whether something that it wrote has joined a commit group."""


Done = Callable[["TurnTask", Any, BaseException | None], None]


class Spans(Protocol):
    """Who is told of the spans of a turn that runs beside others (interleaving.py)."""

    def begin(self, task: TurnTask, error: BaseException | None) -> bool:
        """A span is about to begin; when false it does not, and `go_on` is called with `error` later."""

    def end(self, task: TurnTask) -> None:
        """A span has ended in a suspension."""


def enter(loop: asyncio.AbstractEventLoop, task: TurnTask) -> None:
    """Makes `task` what `asyncio.current_task()` gives (asyncio's documented hook for own tasks)."""
    _enter_task(loop, task)  # type: ignore[arg-type]


def leave(loop: asyncio.AbstractEventLoop, task: TurnTask) -> None:
    """Undoes `enter`."""
    _leave_task(loop, task)  # type: ignore[arg-type]


class TurnTask(asyncio.Future[Any]):
    """The task of a suspended turn; has what asyncio and anyio use of `asyncio.Task`."""

    spans: Spans | None = None
    """None for a turn that is alone."""
    pace: Pace | None = None
    """Whether it may go on at once; None for one that has not suspended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._coro: Coroutine[Any, Any, Any] | None = None
        self._context: contextvars.Context | None = None
        self._on_done: Done | None = None
        self._fut_waiter: Any = None
        self._must_cancel = False
        self._cancel_text: Any = None
        self._cancels = 0
        self._tied: TurnTask | None = None
        """Itself, when user code left something on it that must not leak into another turn.

        The host counts references to a task that a turn used: so does who merely kept it.
        """
        self.turn: Any = None
        """What the host keeps with a suspended turn."""
        self.marks: Any = None
        self.mark = b""
        """What is marked while a step of the turn runs, and where (`Marks`)."""

    # --- what asyncio, anyio and users expect of a task

    def cancel(self, msg: Any | None = None) -> bool:
        """Asks the turn to stop: `CancelledError` is raised where it waits."""
        if self.done():
            return False
        self._tie()
        self._cancels += 1
        if self._fut_waiter is not None and self._fut_waiter.cancel(msg=msg):
            return True
        self._must_cancel = True
        self._cancel_text = msg
        return True

    def cancelling(self) -> int:
        """How many requests to cancel are open."""
        return self._cancels

    def uncancel(self) -> int:
        """Takes one request to cancel back (what `asyncio.timeout` does)."""
        self._cancels = max(0, self._cancels - 1)
        return self._cancels

    def add_done_callback(self, fn: Any, /, *, context: contextvars.Context | None = None) -> None:
        """As asyncio's; it ties this task to the turn for good."""
        self._tie()
        super().add_done_callback(fn, context=context)

    def get_coro(self) -> Any:
        """The method's coroutine; a stand-in until the turn suspends (anyio wants none that is None)."""
        return _UNKNOWN_CORO if self._coro is None else self._coro

    def get_context(self) -> contextvars.Context | None:
        """The turn's context variables."""
        return self._context

    def get_name(self) -> str:
        """A name for logs."""
        return "perdure-turn"

    def set_name(self, value: object) -> None:
        """Ignored: turns are named by their object and method."""

    # --- driving the coroutine after its first suspension

    def adopt(
        self, coro: CoroutineType[Any, Any, Any], context: contextvars.Context, yielded: Any, done: Done
    ) -> None:
        """Takes over a coroutine that was stepped once and yielded; `done` is called at its end."""
        self._coro = coro
        self._context = context
        self._on_done = done
        self._tied = None
        _register_task(self)  # type: ignore[arg-type]
        self._park(yielded)

    def _tie(self) -> None:
        if self._coro is None:  # it belongs to its turn already after the first suspension
            self._tied = self

    def retire(self) -> None:
        """Its turn ended without suspending; whoever waits for the task learns it."""
        self._tied = None
        if not self.done():
            self.set_result(None)

    def _park(self, yielded: Any) -> None:
        blocking = getattr(yielded, "_asyncio_future_blocking", None)
        if blocking:
            yielded._asyncio_future_blocking = False
            if yielded is self or yielded.get_loop() is not self._loop:
                error = RuntimeError(f"a method awaited itself, or what belongs to another loop: {yielded!r}")
                self._loop.call_soon(self._step, error, context=self._context)
                return
            yielded.add_done_callback(self._wake, context=self._context)
            self._fut_waiter = yielded
            if self._must_cancel and yielded.cancel(msg=self._cancel_text):
                self._must_cancel = False
        elif yielded is None:
            self._loop.call_soon(self._step, context=self._context)
        else:
            error = RuntimeError(f"a method awaited something that is not asyncio's: {yielded!r}")
            self._loop.call_soon(self._step, error, context=self._context)

    def _wake(self, future: Any) -> None:
        try:
            future.result()
        except BaseException as error:
            self._step(error)
        else:
            self._step()
        finally:
            future = None  # it may hold an exception whose traceback holds this frame

    @property
    def context(self) -> contextvars.Context:
        """The context variables of a turn that has suspended."""
        assert self._context is not None
        return self._context

    def go_on(self, error: BaseException | None = None) -> None:
        """Begins the span that its `spans` put off; within the task's own context."""
        self._span(error)

    def _step(self, error: BaseException | None = None) -> None:
        if self.pace is not None and self.pace.is_over():
            self._loop.call_soon(self._step, error, context=self._context)
        else:
            self._span(error)

    def _span(self, error: BaseException | None) -> None:
        if self.done() or self._coro is None or self._on_done is None:
            return
        if self.spans is not None and not self.spans.begin(self, error):
            return
        if self._must_cancel:
            if not issubclass(type(error), asyncio.CancelledError):  # isinstance asks a user's __class__
                error = asyncio.CancelledError(*([] if self._cancel_text is None else [self._cancel_text]))
            self._must_cancel = False
        self._fut_waiter = None
        yielded = result = failure = None
        ended = True
        if self.marks is not None:
            self.marks.resume(self.mark)
        _enter_task(self._loop, self)  # type: ignore[arg-type]
        try:
            # Callbacks run inside the turn's context already (see add_done_callback above).
            yielded = self._coro.send(None) if error is None else self._coro.throw(error)
            ended = False
        except StopIteration as stop:
            result = stop.value
        except BaseException as raised:  # KeyboardInterrupt too: a method does not stop the worker
            failure = raised
        finally:
            _leave_task(self._loop, self)  # type: ignore[arg-type]
        if not ended:
            if self.marks is not None:
                self.marks.end()
            self._park(yielded)
            if self.spans is not None:
                self.spans.end(self)
            return
        done, self._on_done = self._on_done, None
        # Waiters of the task itself (rare) learn that it ended; the outcome is the host's business.
        self.set_result(None)
        try:
            contextvars.Context().run(done, self, result, failure)
        finally:
            error = failure = None  # their tracebacks hold this frame


def _stand_in() -> Coroutine[Any, Any, None]:
    async def coroutine_of_a_turn() -> None:
        """Never runs."""

    coro = coroutine_of_a_turn()
    coro.close()
    return coro


_UNKNOWN_CORO: Final = _stand_in()
