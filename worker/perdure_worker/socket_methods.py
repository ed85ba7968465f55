"""`web.frame` and `web.closed`: how a gateway tells an object of its sockets.  Worker's event loop.

They stand in the table of a class's methods under names with a dot, which no method of a class can have.
So a message is a call like any other, in order, once, and behind the same gate: docs/PROTOCOL.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from types import CoroutineType
from typing import Any, Final, NamedTuple

from perdure.converter import describe_error
from perdure.errors import InvalidArgument, MessageTooLarge
from perdure.limits import Limits
from perdure.methods import Method
from perdure.remote_errors import dump_exception
from perdure.web_wire import CLOSED, FRAME
from perdure_storage.keys import SOCKET_KEY_BYTES
from perdure_worker.socket_handles import Socket
from perdure_worker.sockets import ObjectSockets, run_handler, sockets_of

__all__ = ["SocketHandlers", "socket_methods"]

log = logging.getLogger("perdure.worker")

_HANDLED, _NO_SOCKET = 0, 1
_LIMITS = Limits()

Handler = tuple[Callable[..., Any], bool] | None
"""A function, and whether it is @blocking."""
Bound = tuple[tuple[Any, ...], dict[str, Any] | None]


class SocketHandlers(NamedTuple):
    """What a class has for its sockets."""

    message: Handler
    close: Handler
    error: Handler


class _Unknown:
    """What a method results in when the object has no such socket."""


_UNKNOWN: Final = _Unknown()


class _EventMethod(Method):
    """An entry of the table of methods that is no method of the class."""

    __slots__ = ()

    def __init__(
        self, name: str, cls: type, function: Callable[..., Any], bind: Callable[[Any, Any], Bound]
    ) -> None:
        self.name = name
        self.title = f"{cls.__name__}.{name}"
        self.mark = b""
        self.function = function  # type: ignore[assignment]
        self.bind = bind  # type: ignore[assignment]
        # Not public: what handlers raise is logged here, with the socket.
        self.is_generator = self.blocking = self.interleaved = self.quick = self.public = False
        self.is_async = self.plain = True
        self.accepts_no_args = False
        self.result_exact = None  # every result is converted
        self.result_identity = False

    def dump_result(self, value: Any) -> int:
        """What the gateway is told."""
        return _NO_SOCKET if value is _UNKNOWN else _HANDLED

    def load_result(self, value: Any) -> Any:
        """As it is."""
        return value


def socket_methods(cls: type, handlers: SocketHandlers) -> dict[str, Method]:
    """The entries of a class."""

    def on_frame(instance: Any, key: bytes, message: str | bytes) -> Any:
        sockets = _sockets(instance)
        socket = sockets.find(key)
        if socket is None:
            return _UNKNOWN
        if handlers.message is None:
            return None
        try:
            result = run_handler(sockets.host, handlers.message, instance, socket, message)
        except Exception as error:
            _tell(sockets, socket, error)
            raise
        return _watched(sockets, socket, result) if type(result) is CoroutineType else None

    def on_closed(
        instance: Any, key: bytes, code: int, reason: str, was_clean: bool, error: str | None
    ) -> Any:
        sockets = _sockets(instance)
        socket = sockets.find(key)
        return None if socket is None else sockets.end(socket, code, reason, was_clean, error)

    return {
        FRAME: _EventMethod(FRAME, cls, on_frame, _bind_frame),
        CLOSED: _EventMethod(CLOSED, cls, on_closed, _bind_closed),
    }


def _sockets(instance: Any) -> ObjectSockets:
    cell = instance._perdure_cell
    return sockets_of(cell._host, cell._resident)


async def _watched(sockets: ObjectSockets, socket: Socket, coroutine: Coroutine[Any, Any, Any]) -> None:
    try:
        await coroutine
    except Exception as error:
        _tell(sockets, socket, error)
        raise


def _tell(sockets: ObjectSockets, socket: Socket, error: BaseException) -> None:
    # Nobody reads the answer of a message, so this is where its failure shows.
    told = {"object": sockets.label, "socket": socket.id, "error": describe_error(error)}
    told["remote_traceback"] = dump_exception(error, sockets.label, with_traceback=True)["traceback"]
    log.error("websocket_message raised; what it did is undone", extra=told)


def _bind_frame(args: Any, kwargs: Any) -> Bound:
    if kwargs or len(args) != 2 or not _is_key(args[0]) or type(args[1]) not in (str, bytes):
        raise InvalidArgument(f"{FRAME} takes the key of a socket and a message, str or bytes")
    limit = _LIMITS.socket_frame_bytes_max
    size = len(args[1])
    if type(args[1]) is str and size * 4 > limit:
        size = len(args[1].encode())
    if size > limit:
        raise MessageTooLarge(f"the message has {size} bytes; {limit} are allowed", size=size, limit=limit)
    return tuple(args), None


def _bind_closed(args: Any, kwargs: Any) -> Bound:
    if kwargs or len(args) != 5 or not _is_key(args[0]):
        raise InvalidArgument(f"{CLOSED} takes the key of a socket, code, reason, was_clean and error")
    _, code, reason, was_clean, error = args
    if type(code) is not int or type(reason) is not str or type(was_clean) is not bool:
        raise InvalidArgument(f"{CLOSED}: a code is an int, a reason a str, was_clean a bool")
    if error is not None and type(error) is not str:
        raise InvalidArgument(f"{CLOSED}: an error is a text or nil")
    return tuple(args), None


def _is_key(key: Any) -> bool:
    return type(key) is bytes and len(key) == SOCKET_KEY_BYTES
