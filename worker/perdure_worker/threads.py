"""Threads for `@blocking` methods.  Runs in the worker's event loop, the methods in threads.

Guarantees that a turn lasts as long as its thread: a thread cannot be stopped, so a turn that is cancelled
waits for it, and the object's next turn never runs beside it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from typing import Any

from perdure.limits import Limits
from perdure_worker.marks import Marks

__all__ = ["BlockingThreads"]


class BlockingThreads:
    """Runs functions in threads, each in the context variables of its turn."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        marks: Marks | None = None,
        threads_max: int = Limits.blocking_threads_max,
    ) -> None:
        self._loop = loop
        self._marks = marks or Marks()
        self._threads_max = threads_max
        self._pool: ThreadPoolExecutor | None = None  # most workers never need one

    async def run(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        """The function's result or exception; a cancellation is raised when the function has ended."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads_max, "perdure-blocking")
        # Here the turn takes its first step, so the mark is still its own.
        mark, outcome = self._marks.current(), (_outcome, copy_context(), function, args, keywords)
        job = self._loop.run_in_executor(self._pool, self._marks.in_thread, mark, *outcome)
        cancelled: asyncio.CancelledError | None = None
        while not job.done():
            try:
                await asyncio.wait((job,))  # which does not cancel the job when it is cancelled itself
            except asyncio.CancelledError as error:
                cancelled = error
        result, raised = job.result()
        if cancelled is not None:
            raise cancelled
        if raised is not None:
            raise raised
        return result

    def close(self) -> None:
        """Takes no more work; functions that run go on to their end."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)


def _outcome(
    context: Context, function: Callable[..., Any], args: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    # As a value: a future takes no StopIteration, and would never end.
    try:
        return context.run(function, *args, **keywords), None
    except BaseException as error:
        return None, error
