"""Tasks that a turn starts, kept from ending the worker.  Runs in the worker's event loop.

asyncio lets SystemExit and KeyboardInterrupt of any task end the loop, and with it everybody's turns.  Of
a task that a turn has started they are errors like any other: whoever awaits it gets a `RuntimeError` whose
cause says what was raised.  While a step of such a task runs, the object and method that started it are
marked as running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import CodeType, CoroutineType, FrameType
from typing import Any

from perdure_worker.marks import Marks
from perdure_worker.turns import CURRENT

__all__ = ["ChildCoroutine", "ChildTasks"]


class ChildTasks:
    """The loop's task factory; tasks that no turn has started are as they always are."""

    def __init__(self, marks: Marks) -> None:
        self._marks = marks

    def __call__(self, loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
        """Makes a task."""
        context = options.get("context")
        turn = CURRENT.get() if context is None else context.get(CURRENT)
        if turn is not None and type(coro) is CoroutineType:
            coro = ChildCoroutine(coro, self._marks)
        return asyncio.Task(coro, loop=loop, **options)


class ChildCoroutine(Coroutine[Any, Any, Any]):
    """A coroutine around that of a task."""

    def __init__(self, coro: CoroutineType[Any, Any, Any], marks: Marks) -> None:
        self._coro = coro
        self._marks = marks
        self._mark = marks.current()
        self.__name__ = coro.__name__
        self.__qualname__ = coro.__qualname__

    def send(self, value: Any, /) -> Any:
        """One step."""
        self._marks.resume(self._mark)
        try:
            return self._coro.send(value)
        except (SystemExit, KeyboardInterrupt) as error:
            raise _harmless(error) from error
        finally:
            self._marks.end()

    def throw(self, *error: Any) -> Any:
        """One step that begins with an exception."""
        self._marks.resume(self._mark)
        try:
            return self._coro.throw(*error)
        except (SystemExit, KeyboardInterrupt) as raised:
            raise _harmless(raised) from raised
        finally:
            self._marks.end()

    def close(self) -> None:
        """Ends it where it waits."""
        self._coro.close()

    def __await__(self) -> Any:
        """As that of the coroutine itself."""
        return self._coro.__await__()

    # --- what asyncio and anyio look at

    @property
    def cr_await(self) -> Any:
        """What it waits for."""
        return self._coro.cr_await

    @property
    def cr_code(self) -> CodeType:
        """Its code."""
        return self._coro.cr_code

    @property
    def cr_frame(self) -> FrameType | None:
        """Where it is."""
        return self._coro.cr_frame

    @property
    def cr_running(self) -> bool:
        """Whether a step runs."""
        return self._coro.cr_running

    @property
    def cr_suspended(self) -> bool:
        """Whether it waits."""
        return self._coro.cr_suspended


def _harmless(error: BaseException) -> RuntimeError:
    return RuntimeError(f"a task raised {type(error).__name__}, which ends the task and nothing else")
