"""What the worker knows of each user class: namespace, callable methods, durable fields.  Pure.

Names that come from outside are looked up in these tables and nowhere else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType
from typing import Any

from perdure.converter import describe
from perdure.fields import DurableField, collect_fields
from perdure.methods import Method, callable_methods, marks_of
from perdure.object import DurableObject, namespace_of
from perdure.web_wire import FETCH
from perdure_storage import keys
from perdure_worker import marks
from perdure_worker.socket_methods import SocketHandlers, socket_methods
from perdure_worker.web_methods import make_fetch_method

__all__ = ["ObjectClass", "register"]


class ObjectClass:
    """One user class as the host needs it."""

    __slots__ = (
        "alarm",
        "begin",
        "cls",
        "field_exacts",
        "field_names",
        "field_rows",
        "fields",
        "methods",
        "migrate",
        "namespace",
        "row_heads",
        "sockets",
        "start_mark",
        "version",
    )

    def __init__(self, cls: type[DurableObject]) -> None:
        self.cls = cls
        self.namespace = namespace_of(cls)
        self.methods: Mapping[str, Method] = callable_methods(cls, DurableObject)
        self.fields: tuple[DurableField, ...] = tuple(collect_fields(cls))
        self.field_rows = tuple(keys.FIELD + field.name.encode() for field in self.fields)
        """The tail of each field's key on disk, parallel to `fields`."""
        self.field_names = tuple(field.name for field in self.fields)
        self.field_exacts = tuple(field.exact for field in self.fields)
        """The type whose values are stored as they are, of each field that has one."""
        self.row_heads: list[bytes] = []
        """By slot, how the keys of all rows of an object of this class begin, up to its id; see `place`."""
        self.start_mark = marks.describe(self.namespace, "on_start")
        self.begin = _beginning(cls)
        """What runs before the first turn of an incarnation; None where there is nothing of the user's."""
        self.version = _version(cls)
        self.migrate = _migration(cls)
        """What runs for an object of an older version; None where there is nothing of the user's."""
        if (fetch := _handler(cls, "fetch", "request")) is not None:
            self.methods = {**self.methods, FETCH: make_fetch_method(cls, *fetch)}
        self.alarm = _handler(cls, "alarm", "alarm")
        """What runs when an alarm is due, and whether in a thread; None where the class has no handler."""
        self.sockets = SocketHandlers(
            _handler(cls, "websocket_message", "ws", "message"),
            _handler(cls, "websocket_close", "ws", "code", "reason", "was_clean"),
            _handler(cls, "websocket_error", "ws", "error"),
        )
        """What runs for messages and ends of WebSockets."""
        if any(self.sockets) or fetch is not None:
            self.methods = {**self.methods, **socket_methods(cls, self.sockets)}
        for method in self.methods.values():
            method.mark = marks.describe(self.namespace, method.name)
            if method.interleaved and method.is_generator:
                raise TypeError(
                    f"{cls.__qualname__}.{method.name} is an @interleaved async generator; "
                    "a stream is one serial turn of its object: leave out @interleaved"
                )

    @property
    def method_names(self) -> str:
        """What can be called by name, for messages: without the entries for gateways, which have a dot."""
        return ", ".join(sorted(name for name in self.methods if "." not in name)) or "none"

    def place(self, slot_count: int) -> None:
        """Called once by the host, which knows how many slots there are."""
        nobody = bytes(keys.ID_BYTES)
        self.row_heads = [
            keys.object_prefix(slot, self.namespace, nobody)[: -len(nobody)] for slot in range(slot_count)
        ]


def _beginning(cls: type[DurableObject]) -> Callable[[Any], Any] | None:
    has_init = cls.__init__ is not object.__init__
    has_on_start = cls.on_start is not DurableObject.on_start

    def begin(instance: Any) -> Any:
        if has_init:
            instance.__init__()
        return instance.on_start() if has_on_start else None

    return begin if has_init or has_on_start else None


def _version(cls: type[DurableObject]) -> int:
    version: object = inspect.getattr_static(cls, "version")
    # The name is a common one: a method, a property or a durable field of it is the user's own.
    if callable(version) or isinstance(version, DurableField) or hasattr(type(version), "__get__"):
        return 1
    if type(version) is not int or version < 1:
        raise TypeError(
            f"{cls.__qualname__}.version is the version of what its objects store, an int of 1 or higher, "
            f"not {describe(version)}; give any other value another name"
        )
    return version


def _migration(cls: type[DurableObject]) -> Callable[[Any, int], Any] | None:
    if cls.on_migrate is DurableObject.on_migrate:
        return None
    has_init = cls.__init__ is not object.__init__

    def migrate(instance: Any, old_version: int) -> Any:
        if has_init:
            instance.__init__()
        return instance.on_migrate(old_version)

    return migrate


def _handler(cls: type[DurableObject], name: str, *arguments: str) -> tuple[Callable[..., Any], bool] | None:
    """The class's handler of that name and whether it is @blocking; `TypeError` for what cannot be one."""
    function = inspect.getattr_static(cls, name, None)
    if function is None:
        return None
    where = f"{cls.__qualname__}.{name}"
    if not isinstance(function, FunctionType) or inspect.isgeneratorfunction(function):
        shown = ", ".join(("self", *arguments))
        raise TypeError(f"{where} is a handler: define it as a method, `async def {name}({shown})`")
    if inspect.isasyncgenfunction(function) or marks_of(function).interleaved:
        raise TypeError(f"{where} is a handler, which can neither stream nor be @interleaved")
    try:
        inspect.signature(function).bind(None, *arguments)
    except TypeError as error:
        raise TypeError(f"{where} is called with ({', '.join(('self', *arguments))}): {error}") from None
    return function, marks_of(function).blocking


def register(classes: Iterable[type[DurableObject]]) -> dict[str, ObjectClass]:
    """Tables by namespace; raises `TypeError` when two classes claim one namespace or a class is wrong."""
    table: dict[str, ObjectClass] = {}
    for cls in classes:
        entry = ObjectClass(cls)
        other = table.get(entry.namespace)
        if other is not None and other.cls is not cls:
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__} and {other.cls.__module__}.{other.cls.__qualname__} "
                f"both use the namespace {entry.namespace!r}; give one of them namespace=..."
            )
        table[entry.namespace] = entry
    return table
