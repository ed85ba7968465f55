"""Turns of `@interleaved` methods beside each other, and `ctx.exclusive()`.  Runs in the worker's event loop.

Guarantees, for the turns inside of one object:
- spans (what runs of a turn from one suspension to the next) never overlap, and each is atomic: what it
  wrote joins a commit group where it ends; when it raises, its writes alone are discarded;
- what tasks of the turns wrote outside of spans is committed before the next span begins, so no failing
  span takes it along;
- serial turns run when nobody is inside, and interleaved ones start only in the order of arrival;
- while a turn is in `ctx.exclusive()` no other one starts or goes on; who waits for that is served first
  come first served, and so is who was held up by it.

While a span runs, `resident.turn` is its turn, as of any serial turn; between spans it is the `Inside`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from perdure.converter import describe_error
from perdure.methods import Method
from perdure_worker.turns import CURRENT, Turn, TurnTask

if TYPE_CHECKING:
    from perdure_worker.execution import Execution
    from perdure_worker.mailbox import Mailbox
    from perdure_worker.resident import Resident

__all__ = ["Exclusive", "Inside", "can_start", "goes_first", "joins_its_caller", "run_beside"]

log = logging.getLogger("perdure.worker")


class _Entry:
    """One turn inside."""

    __slots__ = ("doomed", "number", "task", "turn", "wants")

    def __init__(self, turn: Turn, number: int) -> None:
        self.turn = turn
        self.number = number
        """Tells apart the turns of an object in chains of calls."""
        self.task: TurnTask | None = None
        """What drives it; None until it suspends for the first time."""
        self.doomed: BaseException | None = None
        """As `Resident.doomed`, which is that of the running span."""
        self.wants = False
        """Whether it holds `ctx.exclusive()` or waits for it."""


# A span that waits to go on, or (with a future) a turn that waits for `ctx.exclusive()`.
_Held = tuple[_Entry, "asyncio.Future[None] | None", BaseException | None]


class Inside:
    """The interleaved turns of one object that have started and not ended.  There while there is one."""

    __slots__ = ("_advancing", "_entries", "_held", "_holder", "_host", "_over", "_resident")

    def __init__(self, host: Execution, resident: Resident) -> None:
        self._host = host
        self._resident = resident
        self._entries: dict[int, _Entry] = {}
        """By identity of the turn."""
        self._holder: _Entry | None = None
        """The turn that is in `ctx.exclusive()`."""
        self._held: deque[_Held] = deque()
        self._advancing = False
        """Whether `_advance` is about to run: until then nobody gets ahead of those who wait."""
        self._over: BaseException | None = None
        """Why the incarnation ends with the last turn inside."""

    # --- what others ask

    @property
    def takes_more(self) -> bool:
        """Whether another interleaved turn may start."""
        return self._holder is None and self._over is None

    def holds(self, turn: Any) -> bool:
        """Whether this turn is inside and may still end well."""
        entry = self._entries.get(id(turn))
        return entry is not None and entry.doomed is None

    def number_of(self, turn: Any) -> int:
        """The number of a turn that is inside."""
        return self._entries[id(turn)].number

    def is_held_by(self, number: int) -> bool:
        """Whether the turn of this number is in `ctx.exclusive()`."""
        return self._holder is not None and self._holder.number == number

    # --- spans

    def add(self, turn: Turn) -> _Entry:
        """A turn starts, with its first span."""
        if self._entries:
            self._settle_tasks()
        entry = self._entries[id(turn)] = _Entry(turn, self._host.turns)
        entry.doomed = self._over
        self._resident.turn, self._resident.doomed = turn, entry.doomed
        return entry

    def suspended(self, turn: Turn, task: TurnTask) -> None:
        """A turn's first span has ended, in a suspension."""
        entry = self._entries[id(turn)]
        entry.task = task
        task.spans = self
        self._close(entry)

    def begin(self, task: TurnTask, error: BaseException | None) -> bool:
        """A span begins; false when it has to wait, and is begun later with `error`."""
        entry = self._entries[id(task.turn[1])]
        if self._holder is not None and self._holder is not entry:
            self._held.append((entry, None, error))
            return False
        self._settle_tasks()
        self._resident.turn, self._resident.doomed = entry.turn, entry.doomed
        return True

    def end(self, task: TurnTask) -> None:
        """A span has ended, in another suspension."""
        self._close(self._entries[id(task.turn[1])])

    def leave(self, turn: Turn) -> None:
        """A turn has ended, and its answer is on its way."""
        resident = self._resident
        entry = self._entries.pop(id(turn))
        entry.wants = False
        for waiting, future, _ in self._held:  # a task that outlived its turn
            if waiting is entry and future is not None:
                future.cancel()
        if self._holder is entry:
            self._release()
        if self._entries:
            resident.turn = self
            return
        resident.turn = resident.inside = None
        if self._over is not None:
            self._host.end_incarnation(resident, self._over)

    def _close(self, entry: _Entry) -> None:
        host, resident = self._host, self._resident
        entry.doomed, resident.doomed = resident.doomed, None
        failure: BaseException | None = None
        if entry.doomed is None:
            try:
                host.commit_point(resident, entry.turn)
            except BaseException as error:  # a field holds what cannot be saved: the turn fails
                failure = error
        resident.turn = self
        if failure is not None:
            self.doom(entry.turn, failure)
        if entry.doomed is not None:
            self._discard()

    def _settle_tasks(self) -> None:
        # Whose they are cannot be told, should they not be storable: none of the turns may end well then,
        # or one would be answered whose effect is not there.
        host, resident = self._host, self._resident
        resident.turn = self
        if self._over is None:
            try:
                host.commit_point(resident, *(entry.turn for entry in self._entries.values()))
                return
            except BaseException as error:
                for entry in self._entries.values():
                    self.doom(entry.turn, error)
        self._discard()

    def _discard(self) -> None:
        try:
            self._host.discard(self._resident)
        except BaseException as error:  # a user's class refuses the value that it saved itself
            self.end_all(error)
            told = {"object": self._resident.label, "error": describe_error(error)}
            log.error("an object's fields cannot be put back", extra=told)

    # --- turns that cannot end well

    def doom(self, turn: Turn, error: BaseException) -> None:
        """This turn fails with `error`, whatever its method does; it is cancelled where it waits."""
        entry = self._entries[id(turn)]
        if entry.doomed is None:
            entry.doomed = error
        if self._resident.turn is turn:
            self._resident.doomed = entry.doomed
        elif entry.task is not None:
            entry.task.cancel(describe_error(error))

    def end_all(self, error: BaseException) -> None:
        """All turns inside fail with `error`, and the incarnation ends with the last of them."""
        if self._over is None:
            self._over = error
            for entry in self._entries.values():
                self.doom(entry.turn, error)

    # --- exclusive

    async def acquire(self, turn: Turn) -> None:
        """Returns when no other turn of the object starts or goes on."""
        entry = self._entries[id(turn)]
        if entry.wants:
            raise RuntimeError("this turn is inside of ctx.exclusive(), or waits for it, already")
        entry.wants = True
        if self._holder is None and not self._advancing:
            self._holder = entry
            return
        future: asyncio.Future[None] = self._host.loop.create_future()
        self._held.append((entry, future, None))
        try:
            await future
        except BaseException:
            self.release(turn)
            raise

    def release(self, turn: Turn) -> None:
        """The turn's block has ended, or it does not wait for one any more."""
        entry = self._entries.get(id(turn))
        if entry is not None:
            entry.wants = False
            if self._holder is entry:
                self._release()

    def _release(self) -> None:
        self._holder = None
        if not self._advancing and (self._held or self._resident.mailbox is not None):
            self._advancing = True
            self._host.loop.call_soon(self._advance, context=contextvars.Context())

    def _advance(self) -> None:
        # Calls first, or who takes the next block at once again would keep them out.
        self._advancing = False
        if self._resident.inside is self:
            self._host.on_idle(self._resident)
            self._host.run_waiting()
            self._host.want_flush()
        while self._held and self._holder is None:
            held = self._held.popleft()
            entry, future, _ = held
            if future is None:
                _go_on(held)
            elif not future.done():
                self._holder = entry
                future.set_result(None)
                # A task of the turn waited for the block; the turn itself may go on as well.
                for own in [other for other in self._held if other[0] is entry and other[1] is None]:
                    self._held.remove(own)
                    _go_on(own)


class Exclusive:
    """What ``async with self.ctx.exclusive():`` enters."""

    __slots__ = ("_host", "_inside", "_resident", "_turn")

    def __init__(self, host: Execution, resident: Resident) -> None:
        self._host = host
        self._resident = resident
        self._inside: Inside | None = None
        self._turn: Any = None

    async def __aenter__(self) -> None:
        if not self._host.in_turn(self._resident):
            raise RuntimeError("ctx.exclusive() is for the methods of the object; this code runs in no turn")
        if self._inside is not None:
            raise RuntimeError("this ctx.exclusive() is entered already; call it again for another block")
        inside, turn = self._resident.inside, CURRENT.get()
        if inside is not None:  # a serial turn is alone already
            await inside.acquire(turn)
            self._inside, self._turn = inside, turn

    async def __aexit__(self, *_: object) -> None:
        inside, self._inside = self._inside, None
        if inside is not None:
            inside.release(self._turn)


def _go_on(held: _Held) -> None:
    entry, _, error = held
    task = entry.task
    assert task is not None
    task.context.run(task.go_on, error)


def run_beside(
    host: Execution,
    resident: Resident,
    turn: Turn,
    body: Callable[..., Any],
    args: tuple[Any, ...],
    keywords: dict[str, Any] | None,
) -> None:
    """Runs a turn of an interleaved method to its end or first suspension."""
    inside = resident.inside
    if inside is None:
        inside = resident.inside = Inside(host, resident)
    entry = inside.add(turn)
    try:
        host._step(resident, turn, body, args, keywords)
    finally:
        if entry.task is None:
            inside.leave(turn)


def can_start(resident: Resident, mailbox: Mailbox) -> bool:
    """Whether the object's next waiting call can start beside the turns that are inside."""
    inside = resident.inside
    if inside is None or not inside.takes_more:
        return False
    waiting = mailbox.first()
    if waiting is None or waiting.item is None:
        return False
    method = resident.cls.methods.get(waiting.item[4])  # none for the host's own work, which is serial
    return method is not None and method.interleaved


def goes_first(resident: Resident, method: str, chain: list[list[Any]] | None) -> bool:
    """Whether turns inside wait for this call: serial calls wait for those, so it goes before them."""
    return (
        resident.inside is not None
        and bool(chain)
        and resident.cls.methods[method].interleaved
        and any(entry[0] == resident.key for entry in chain or ())
    )


def joins_its_caller(resident: Resident, method: Method | None, ancestor: list[Any]) -> bool:
    """Whether a call can run although this object, an `ancestor` in its chain, waits for it."""
    inside = resident.inside
    if inside is None or method is None or not method.interleaved:
        return False
    return len(ancestor) < 3 or not inside.is_held_by(ancestor[2])
