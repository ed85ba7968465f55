"""Handlers that calls of the web edge reach, as entries of a class's method table.  Worker's event loop.

An entry looks like a `Method` to whoever takes calls in, so that deadlines, mailboxes, chains and records are
those of all calls; only its arguments and its body are its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from perdure.errors import InvalidArgument
from perdure.methods import Method
from perdure.web_wire import FETCH, check_request

if TYPE_CHECKING:
    from perdure_worker.execution import Execution
    from perdure_worker.resident import Resident
    from perdure_worker.turns import Turn

__all__ = ["FetchMethod", "HandlerMethod", "make_fetch_method"]


class HandlerMethod(Method):
    """An entry that is no method of the user's; `serve` is the coroutine of its turn."""

    __slots__ = ()

    def __init__(self, name: str, function: Callable[..., Any], title: str, *, blocking: bool) -> None:
        self.name = name
        self.function = function  # type: ignore[assignment]
        self.title = title
        self.mark = b""
        self.blocking = blocking
        self.is_generator = self.interleaved = self.public = self.plain = self.quick = False
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(function))
        self.accepts_no_args = False
        self.bind = self.check_arguments
        self.result_exact = None
        self.result_identity = True

    def check_arguments(self, args: list[Any], kwargs: Any) -> tuple[list[Any], dict[str, Any] | None]:
        """The arguments as `serve` takes them behind the instance; raises `InvalidArgument`."""
        raise NotImplementedError

    async def serve(self, host: Execution, resident: Resident, turn: Turn, instance: Any, *args: Any) -> Any:
        """The turn; gives wire values or a `StreamEnd`."""
        raise NotImplementedError


class FetchMethod(HandlerMethod):
    """The class's `fetch`."""

    __slots__ = ("_serve",)

    def __init__(self, function: Callable[..., Any], title: str, *, blocking: bool) -> None:
        super().__init__(FETCH, function, title, blocking=blocking)
        # Only workers with such a class pay for Starlette (2 MB, 15 ms), and at their start.
        from perdure_worker.web_fetch import serve

        self._serve = serve

    def check_arguments(self, args: list[Any], kwargs: Any) -> tuple[list[Any], dict[str, Any] | None]:
        """See `HandlerMethod`."""
        if len(args) != 1 or kwargs:
            raise InvalidArgument(f"{self.title}: {FETCH} takes one argument, the request")
        return [check_request(args[0])], None

    async def serve(self, host: Execution, resident: Resident, turn: Turn, instance: Any, *args: Any) -> Any:
        """See `HandlerMethod`."""
        return await self._serve(self, host, resident, turn, instance, *args)


def make_fetch_method(cls: type, function: Callable[..., Any], blocking: bool) -> FetchMethod:
    """The entry of a class that defines `fetch`."""
    return FetchMethod(function, f"{cls.__name__}.fetch()", blocking=blocking)
