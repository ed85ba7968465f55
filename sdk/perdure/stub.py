"""Stubs: what `client.get(...)` and `ctx.get(...)` give; calling a method on one sends a call.

A stub reserves no public name: every public attribute is a remote method.  A call is sent in the
order in which it was made, not in the order in which it is awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, Generic, NamedTuple, NoReturn, Protocol, TypeVar

from perdure.codec import SCALARS, check_value
from perdure.errors import InvalidArgument, PerdureError
from perdure.ids import ObjectId, id_from_name, id_from_string, slot_of
from perdure.limits import Limits
from perdure.methods import Method, dump_call
from perdure.pending import Pending
from perdure.streams import Stream

__all__ = [
    "NEEDS_NO_CHECK",
    "AnyStub",
    "Call",
    "RemoteMethod",
    "Sender",
    "Stub",
    "Target",
    "check_name",
    "make_target",
]

T = TypeVar("T")
_LIMITS = Limits()
_HASH_SPAN = 1 << 32  # of the four bytes that decide an id's slot
NEEDS_NO_CHECK = SCALARS | {str}
"""Types of arguments that travel as they are."""


class Target(NamedTuple):
    """The object that a stub speaks for."""

    namespace: str
    object_id: bytes
    name: str | None
    timeout_s: float
    hashed: int
    """What of the id decides its slot (`ids.slot_of`), computed once for all calls."""
    methods: Mapping[str, Method]
    """The class's method table where the stub was made from the class, else empty."""


class Sender(Protocol):
    """Starts calls; what it returns is what the user gets (an awaitable, or the result itself)."""

    def start(
        self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None, spec: Method | None
    ) -> Any: ...

    def start_stream(
        self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None, spec: Method | None
    ) -> Any:
        """`start` of a method that is known to stream."""

    def fetch(self, target: Target, request: Any, **options: Any) -> Any:
        """`stub.fetch(request)`: an HTTP request to the object; see `perdure.web`."""

    def refuse(self, error: PerdureError) -> Any:
        """What the user gets for a call that cannot be sent."""


class Call(Pending, Coroutine[Any, Any, T], Generic[T]):
    """A call on its way; await it once or many times, or iterate over it if the method streams.

    It is a coroutine in type, so that `asyncio.create_task` and `TaskGroup.create_task` take it.  A client's
    call is what its caller keeps in its books as well: one object less to make, 0.15 µs.
    """

    __slots__ = ("_future", "_iterator", "_stream")

    _future: Any
    _iterator: Generator[Any, Any, T]

    def __init__(self, future: Any) -> None:
        self._future = future

    def __await__(self) -> Generator[Any, Any, T]:
        return self._future.__await__()  # type: ignore[no-any-return]

    def _steps(self) -> Generator[Any, Any, T]:
        try:
            return self._iterator
        except AttributeError:
            self._iterator = _iterate(self._future)
            return self._iterator

    def send(self, value: Any) -> Any:
        """One step, for a Task that drives this call."""
        return self._steps().send(value)

    def throw(self, *error: Any) -> Any:
        """Raises inside the waiting, for a Task that is cancelled."""
        if not hasattr(self, "_iterator"):  # cancelled before it began: nobody will look at the outcome
            self._future.cancel()
        return self._steps().throw(*error)

    def close(self) -> None:
        """Stops waiting; the call itself goes on."""
        if hasattr(self, "_iterator"):
            self._iterator.close()

    def __aiter__(self) -> Stream[Any]:
        """The values of a streaming method; for any other, iterating raises `TypeError`."""
        try:
            return self._stream
        except AttributeError:  # calls that are awaited pay nothing for it
            self._stream: Stream[Any] = self.stream(None)
            return self._stream

    def stream(self, leave: Callable[[Any], None] | None) -> Stream[Any]:
        """For senders: the call as a stream; see `Stream`."""
        return Stream(self._future, leave)

    async def aclose(self) -> None:
        """Ends the stream of values, as `Stream.aclose`."""
        await self.__aiter__().aclose()


def _iterate(future: Any) -> Generator[Any, Any, Any]:
    return (yield from future.__await__())


class RemoteMethod:
    """One method of a stub."""

    __slots__ = ("_method", "_sender", "_spec", "_start", "_target", "streams")

    def __init__(self, target: Target, method: str, sender: Sender) -> None:
        self._target = target
        self._method = method
        self._sender = sender
        self._spec = spec = target.methods.get(method)
        self.streams = spec is not None and spec.is_generator
        self._start = sender.start_stream if self.streams else sender.start

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for value in args:
            if type(value) not in NEEDS_NO_CHECK:
                return self._call_checked(args, kwargs)
        if kwargs:
            return self._call_checked(args, kwargs)
        return self._start(self._target, self._method, list(args), None, self._spec)

    def _call_checked(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            plain_args, plain_kwargs = dump_call(self._spec, args, kwargs)
            for value in (*plain_args, *plain_kwargs.values()):
                check_value(value)
        except InvalidArgument as error:
            where = f"{self._target.namespace}.{self._method}()"
            return self._sender.refuse(InvalidArgument(f"{where}: an argument cannot be sent: {error}"))
        return self._start(self._target, self._method, plain_args, plain_kwargs or None, self._spec)


class AnyStub:
    """What all stubs have in common: every public name is a method of the object."""

    __slots__ = ()

    def _perdure_parts(self) -> tuple[Target, Sender]:
        """Whom it speaks for, and what starts its calls."""
        raise NotImplementedError

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name!r} cannot be set through a stub: only the object's methods change it")

    def fetch(self, request: Any, **options: Any) -> Any:
        """Sends the object an HTTP request.  It is a handler's name, so no method can have it."""
        target, sender = self._perdure_parts()
        return sender.fetch(target, request, **options)

    def __repr__(self) -> str:
        target, _ = self._perdure_parts()
        return f"<stub of {target.namespace}/{target.name or target.object_id.hex()}>"


def check_name(name: str) -> None:
    """Raises `AttributeError` for a name that no method of an object can have."""
    if name.startswith("_"):
        raise AttributeError(f"{name!r} cannot be called on an object: only public methods can")


class Stub(AnyStub):
    """Speaks for one object; its public attributes are the object's methods, and `fetch` sends it HTTP."""

    _perdure_target: Target
    _perdure_sender: Sender

    def __init__(self, target: Target, sender: Sender) -> None:
        # Not through __dict__: asking for it makes one, 300 bytes a stub, and a call looks it up, 0.1 µs.
        object.__setattr__(self, "_perdure_target", target)
        object.__setattr__(self, "_perdure_sender", sender)

    def _perdure_parts(self) -> tuple[Target, Sender]:
        return self._perdure_target, self._perdure_sender

    def __getattr__(self, name: str) -> Any:
        check_name(name)
        method = RemoteMethod(self._perdure_target, name, self._perdure_sender)
        # Found in the instance from now on: an attribute look-up instead of this call (about 1 µs less).
        object.__setattr__(self, name, method)
        return method


def make_target(
    namespace: str, key: str | ObjectId, timeout: float | None, methods: Mapping[str, Method]
) -> Target:
    """The target of a stub; raises `InvalidArgument` for a bad name, id or timeout."""
    seconds = _LIMITS.call_timeout_s if timeout is None else timeout
    if not isinstance(seconds, int | float) or not 0 < seconds <= _LIMITS.call_timeout_max_s:
        raise InvalidArgument(
            f"a timeout is more than 0 and at most {_LIMITS.call_timeout_max_s:g} s, not {timeout!r}"
        )
    if isinstance(key, ObjectId):
        object_id = id_from_string(namespace, str(key))
        name = key.name
    else:
        object_id = id_from_name(namespace, key)
        name = object_id.name
    hashed = slot_of(object_id.key, _HASH_SPAN)
    return Target(namespace, object_id.key, name, seconds, hashed, methods)
