"""Stubs of the asyncio client: an ordinary call is encoded, noted and queued in two Python frames.

Runs in the user's process.  The stubs of one class of objects share a Python class of their own, whose
functions are the methods called so far.  A stub itself has a `Route` only: what the object is called on the
wire, and its worker until the slot map changes.  Of 10,000 stubs each call finds one that has left the
processor's cache, so what a call reads of it is what counts: two objects and the encoded name, where it was
seven objects (1.6 -> 1.1 µs of 100,000 stubs; 280 bytes less a stub; docs/decisions/0016).

Other calls (with values that are no scalars) go the way of `stub.RemoteMethod`, which is also where every
error of encoding is told.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MethodType
from typing import Any, Final

from perdure.calls import Caller
from perdure.codec import encode
from perdure.errors import InvalidArgument
from perdure.limits import Limits
from perdure.methods import Method
from perdure.slotmap import SlotMap
from perdure.stub import NEEDS_NO_CHECK, AnyStub, Call, RemoteMethod, Sender, Target, check_name

__all__ = ["ClientStub", "ClientStubs"]

Parts = tuple[Caller, Callable[[], asyncio.Future[Any]]]
"""What keeps a client's calls, and what makes where their answers go."""

_NIL: Final = b"\xc0"
_NO_ARGUMENTS: Final = encode([]) + _NIL


@lru_cache(maxsize=64)
def _end_of(timeout_s: float) -> bytes:
    """The time left and no context; most stubs share it."""
    return encode(int(timeout_s * 1000) or 1) + _NIL


class Route:
    """What a stub knows of its object."""

    __slots__ = ("encoded", "end", "map", "target", "timeout_s", "worker")

    encoded: bytes | None
    """Namespace, id and name, encoded; None until the first call."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.timeout_s = target.timeout_s
        self.end = _end_of(target.timeout_s)
        self.encoded = None
        self.map: SlotMap | None = None
        """The one by which `worker` is right."""
        self.worker = 0

    def encode(self) -> bytes | None:
        """Sets `encoded`, and gives it; None where it cannot be encoded."""
        namespace, object_id, name, *_ = self.target
        with contextlib.suppress(InvalidArgument):
            self.encoded = encode(namespace) + encode(object_id) + encode(name)
        return self.encoded


class _Issued(Call[Any]):
    """A call as a stub's method makes it, which sets everything itself."""

    __slots__ = ("route",)
    __init__ = object.__init__  # 0.1 µs less than one in Python

    route: Route

    @property
    def target(self) -> Target:  # type: ignore[override]  # of the few calls that do not go well
        """The object."""
        return self.route.target


class ClientStub(AnyStub):
    """Speaks for one object; made by `ClientStubs`."""

    __slots__ = ("__weakref__", "_perdure_route")

    _perdure_route: Route
    _perdure_stubs: ClientStubs
    """Of all stubs of one client; set in the class of the stubs of one class."""
    _perdure_methods: Mapping[str, Method]
    """Of the objects' class, as far as known; set there, too."""

    def _perdure_parts(self) -> tuple[Target, Sender]:
        return self._perdure_route.target, self._perdure_stubs.sender

    def __copy__(self) -> ClientStub:
        return self

    def __deepcopy__(self, _memo: dict[int, Any]) -> ClientStub:
        return self

    def __getattr__(self, name: str) -> Any:
        check_name(name)
        return MethodType(self._perdure_stubs.add(type(self), name), self)


_set_route: Final = vars(ClientStub)["_perdure_route"].__set__  # stubs refuse to have attributes set


class ClientStubs:
    """The stubs of one client: a Python class for each class of objects that it has asked for."""

    def __init__(self, sender: Sender, parts: Callable[[], Parts], limits: Limits) -> None:
        self.sender = sender
        self._parts = parts  # there are none before the client has connected; its stubs may be there
        self._limits = limits
        self._classes: dict[type | str, type[ClientStub]] = {}

    def stub(self, cls: type | str, target: Target) -> ClientStub:
        """A stub of this object of `cls`."""
        stubs = self._classes.get(cls)
        if stubs is None:
            stubs = self._add_class(cls, target)
        stub = stubs()
        _set_route(stub, Route(target))
        return stub

    def _add_class(self, cls: type | str, target: Target) -> type[ClientStub]:
        if len(self._classes) >= self._limits.stub_classes_max:
            self._classes.clear()  # stubs that are in use keep theirs
        stubs = type(
            "ClientStub",
            (ClientStub,),
            {"__slots__": (), "_perdure_stubs": self, "_perdure_methods": target.methods},
        )
        self._classes[cls] = stubs
        return stubs

    def add(self, stubs: type[ClientStub], name: str) -> Callable[..., Any]:
        """The function that calls the method `name`, found in the class of its stubs from now on."""
        method = self._method(name, stubs._perdure_methods.get(name))
        if len(vars(stubs)) < self._limits.stub_methods_max:
            setattr(stubs, name, method)
        return method

    def _method(self, name: str, spec: Method | None) -> Callable[..., Any]:
        sender, (caller, create_future) = self.sender, self._parts()
        begin, worker_of, pack = caller.begin, caller.worker_of, caller.pack
        timeout_usual_s = self._limits.call_timeout_s

        def general(stub: ClientStub, /, *args: Any, **kwargs: Any) -> Any:
            return RemoteMethod(stub._perdure_route.target, name, sender)(*args, **kwargs)

        if spec is not None and spec.is_generator:
            return general
        try:
            packed_name = encode(name)
        except InvalidArgument:
            return general
        bare = packed_name + _NO_ARGUMENTS
        bare_usual = bare + _end_of(timeout_usual_s)

        def call(stub: ClientStub, /, *args: Any, **kwargs: Any) -> Any:
            route = stub._perdure_route
            if args or kwargs:
                tail = _encode(route, packed_name, pack, args, kwargs)
                if tail is None:
                    return general(stub, *args, **kwargs)
            else:
                encoded = route.encoded or route.encode()
                if encoded is None:
                    return general(stub)
                tail = encoded + (bare_usual if route.timeout_s == timeout_usual_s else bare + route.end)
            if caller.map is not route.map:
                route.map, route.worker = caller.map, worker_of(route.target.hashed)
            call = _Issued()
            call.route = route
            call._future = call.answer = create_future()
            call.method, call.spec = name, spec
            begin(call, tail, route.worker, route.timeout_s)
            return call

        return call


def _encode(
    route: Route,
    packed_name: bytes,
    pack: Callable[[Any], bytes],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> bytes | None:
    """See `Pending.tail`; None for what is not that simple, or cannot be encoded."""
    for value in args:
        if type(value) not in NEEDS_NO_CHECK:
            return None
    for value in kwargs.values():
        if type(value) not in NEEDS_NO_CHECK:
            return None
    encoded = route.encoded or route.encode()
    if encoded is None:
        return None
    try:
        return b"".join((encoded, packed_name, pack([*args]), pack(kwargs) if kwargs else _NIL, route.end))
    except Exception:
        return None
