"""Exceptions across processes, as plain values: no pickle, and no code chosen by the sender.

The worker dumps what a method raised: type name, message, the chain of causes, the traceback where
allowed, and for classes marked with `@register_exception` their attributes.  The client loads it: a
registered class comes back as itself when the client's process has imported it too, everything else
is a `RemoteError`.  Both directions never raise, and every part has a bound (`ErrorLimits`).

There is no registry to fill: the mark is an attribute of the class, and the client finds marked
classes among the subclasses of `Exception` that exist in its process.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from perdure.codec import encode
from perdure.errors import InvalidArgument, PerdureError, RemoteError
from perdure.plain import dump_any

__all__ = [
    "ErrorLimits",
    "ExceptionLoader",
    "dump_exception",
    "load_exception",
    "register_exception",
    "type_name_of",
]

E = TypeVar("E", bound=Exception)
_MARK = "__perdure_exception__"
_ORIGIN = "__perdure_origin__"


@dataclass(frozen=True)
class ErrorLimits:
    """What of an exception travels, at most."""

    message_bytes_max: int = 2 * 1024
    """Of each message, also those of causes."""
    causes_max: int = 8
    """Length of the chain of causes, members of exception groups included."""
    traceback_bytes_max: int = 16 * 1024
    """Of a traceback's text the end is kept: the place that raised."""
    traceback_frames_max: int = 64
    """Frames of each exception in a traceback, the innermost ones."""
    attributes_bytes_max: int = 64 * 1024
    """Of the encoded arguments and attributes of a registered exception; what is beyond is left out."""


_LIMITS = ErrorLimits()


# --- registered classes


@overload
def register_exception(cls: type[E], /) -> type[E]: ...
@overload
def register_exception(*, name: str) -> Callable[[type[E]], type[E]]: ...
def register_exception(cls: type[E] | None = None, /, *, name: str | None = None) -> Any:
    """Lets an exception class travel: callers that have imported it catch it as itself.

    Its positional arguments and the attributes of its instances travel as plain values; attributes that
    cannot are left out.  The constructor does not run again.  The class is known by its module and
    qualified name, so both sides must import it from the same place, or agree on `name`.  Subclasses
    need a mark of their own.  Raises `TypeError` for what is no exception class of the user's.
    """

    def mark(marked: type[E]) -> type[E]:
        is_exception = isinstance(marked, type) and issubclass(marked, Exception)
        # A future refuses StopIteration: the caller would never learn the outcome.
        if not is_exception or issubclass(marked, PerdureError | StopIteration | StopAsyncIteration):
            raise TypeError(f"@register_exception marks exception classes of your own, not {marked!r}")
        if marked.__module__ == "builtins":
            raise TypeError(f"{marked.__name__} is a builtin; raise a class of your own to catch it by class")
        setattr(marked, _MARK, name or f"{_module_name(marked)}.{marked.__qualname__}")
        return marked

    return mark if cls is None else mark(cls)


def _module_name(cls: type) -> str:
    """The class's module; for a script that is running, the name under which others import it."""
    if cls.__module__ != "__main__":
        return cls.__module__
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else "__main__"


def _mark_of(cls: type) -> str | None:
    # Its own mark only: a subclass would come back as its base, without what it adds.
    mark = vars(cls).get(_MARK)
    return mark if isinstance(mark, str) else None


def type_name_of(cls: type) -> str:
    """``module.Qualified.Name``, or the bare name of a builtin exception."""
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{_module_name(cls)}.{cls.__qualname__}"
    return _clipped(name, _LIMITS.message_bytes_max)


# --- in the worker


def dump_exception(
    error: BaseException, object_id: str, *, with_traceback: bool, limits: ErrorLimits = _LIMITS
) -> dict[str, Any]:
    """What an exception looks like on the wire: a dict that the codec can encode.  Never raises.

    `object_id` is the object as ``Namespace/name-or-id``.  An exception that came from another object
    and was not caught keeps that object's id, type and causes.
    """
    try:
        return _dump(error, object_id, with_traceback, limits)
    except BaseException:  # attributes of users' classes run users' code, which may raise anything
        return {
            "type": _type_name(error),
            "message": _message(error, limits),
            "object": object_id,
            "causes": [],
            "traceback": None,
        }


def _dump(error: BaseException, object_id: str, with_traceback: bool, limits: ErrorLimits) -> dict[str, Any]:
    origin = error if isinstance(error, RemoteError) else vars(error).get(_ORIGIN)
    dumped: dict[str, Any] = {
        "type": _type_name(error),
        "message": _message(error, limits),
        "object": object_id,
        "causes": [[_type_name(e), _message(e, limits)] for e in _causes(error, limits)],
        "traceback": _traceback(error, limits) if with_traceback else None,
    }
    if isinstance(origin, RemoteError):
        dumped["object"] = _clipped(origin.object_id, limits.message_bytes_max)
        behind = [[_clipped(text, limits.message_bytes_max) for text in cause] for cause in origin.causes]
        dumped["causes"] = (behind + dumped["causes"])[: limits.causes_max]
        if origin is error:
            dumped["type"] = _clipped(origin.type_name, limits.message_bytes_max)
            dumped["message"] = _clipped(origin.message, limits.message_bytes_max)
    mark = _mark_of(type(error))
    if mark is not None:
        dumped["registered"] = mark
        dumped["args"], dumped["attributes"] = _state(error, limits)
    return dumped


def _clipped(text: str, bytes_max: int) -> str:
    """Text that can be encoded, cut to a number of UTF-8 bytes."""
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= bytes_max:
        return data.decode()
    return data[: bytes_max - 3].decode("utf-8", "ignore") + "..."


def _type_name(error: BaseException) -> str:
    try:
        return type_name_of(type(error))
    except BaseException:  # the class of a class may be a user's, too
        return "unknown"


def _message(error: BaseException, limits: ErrorLimits) -> str:
    try:
        return _clipped(str(error), limits.message_bytes_max)
    except BaseException:  # a user's __str__ may do anything, and give a str of a class of its own
        return "(its message cannot be shown: __str__ raised)"


def _causes(error: BaseException, limits: ErrorLimits) -> list[BaseException]:
    """What stands behind an exception: its chain, and the members of a group, which say what failed."""
    seen = {id(error)}
    found: list[BaseException] = []
    waiting = _behind(error)
    while waiting and len(found) < limits.causes_max:
        cause = waiting.pop(0)
        if id(cause) not in seen:
            seen.add(id(cause))
            found.append(cause)
            waiting = [*_behind(cause), *waiting]
    return found


def _behind(error: BaseException) -> list[BaseException]:
    behind: list[BaseException] = []
    if isinstance(error, BaseExceptionGroup):
        behind += error.exceptions
    if error.__cause__ is not None:
        behind.append(error.__cause__)
    elif error.__context__ is not None and not error.__suppress_context__:
        behind.append(error.__context__)
    return behind


def _traceback(error: BaseException, limits: ErrorLimits) -> str | None:
    try:
        text = "".join(traceback.format_exception(error, limit=-limits.traceback_frames_max))
        if isinstance(error, RemoteError) and error.traceback is not None:
            text = f"{error.traceback}\nwhich another object met as:\n\n{text}"
    except BaseException:  # formatting reads source files and calls users' __str__ and __repr__
        return None
    data = text.encode("utf-8", "backslashreplace")
    return data[-limits.traceback_bytes_max :].decode("utf-8", "ignore")


def _state(error: BaseException, limits: ErrorLimits) -> tuple[list[Any], dict[str, Any]]:
    """Arguments and attributes as plain values, those that can travel, within the limit together."""
    left = limits.attributes_bytes_max

    def carry(value: Any) -> Any:
        nonlocal left
        plain = dump_any(value)
        size = len(encode(plain))
        if size > left:
            raise InvalidArgument("beyond the limit")
        left -= size
        return plain

    args: list[Any] = []
    for value in error.args:
        try:
            args.append(carry(value))
        except BaseException:  # properties and serializers of users' classes may raise anything
            args.append(None)  # keeps the place of the others
    attributes: dict[str, Any] = {}
    remote = vars(error).get(_ORIGIN)
    for name, value in vars(error).items():
        if not isinstance(name, str) or name.startswith("__"):
            continue
        if remote is not None and _is_fact(remote, name, value):
            continue
        try:
            carry(name)
            attributes[name] = carry(value)
        except BaseException:  # noqa: S112 - as above; what cannot travel is left out, as documented
            continue
    return args, attributes


# --- in the client


class ExceptionLoader:
    """Loads exceptions, and remembers the registered classes it has met (a walk costs about 0.1 ms)."""

    def __init__(self) -> None:
        self._found: dict[str, type[Exception]] = {}

    def load(self, dumped: object) -> Exception:
        """The exception that `dump_exception` described.  Never raises: at worst a `RemoteError`."""
        facts: dict[Any, Any] = dumped if isinstance(dumped, dict) else {}
        remote = _remote_error(facts)
        name = facts.get("registered")
        if not isinstance(name, str):
            return remote
        cls = self._found.get(name) or _find_marked(name)
        if cls is None:
            return remote
        self._found[name] = cls
        return _rebuild(cls, facts, remote)


def load_exception(dumped: object) -> Exception:
    """`ExceptionLoader.load` without its memory."""
    return ExceptionLoader().load(dumped)


def _remote_error(facts: dict[Any, Any]) -> RemoteError:
    causes = facts.get("causes")
    trace = facts.get("traceback")
    return RemoteError(
        str(facts.get("message", "")),
        type_name=str(facts.get("type", "unknown")),
        object_id=str(facts.get("object", "unknown")),
        causes=[
            (str(cause[0]), str(cause[1]))
            for cause in (causes if isinstance(causes, list) else [])
            if isinstance(cause, list) and len(cause) == 2
        ],
        traceback=trace if isinstance(trace, str) else None,
    )


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    subclasses: list[type[Any]] = type.__subclasses__(cls)
    for subclass in subclasses:
        yield subclass
        yield from _subclasses(subclass)


def _find_marked(name: str) -> type[Exception] | None:
    found = None
    for cls in _subclasses(Exception):
        if _mark_of(cls) == name:
            found = cls  # the last: after a reload the older class may live on
    return found


def _rebuild(cls: type[Exception], facts: dict[Any, Any], remote: RemoteError) -> Exception:
    args, attributes = facts.get("args"), facts.get("attributes")
    try:
        # __new__ alone: __init__ may ask for other arguments than it passes on to Exception.
        error = cls.__new__(cls, *(args if isinstance(args, list) else []))
        if type(error) is not cls:
            return remote
        state = vars(error)
        for name, value in (attributes if isinstance(attributes, dict) else {}).items():
            if isinstance(name, str) and not name.startswith("__"):
                state[name] = value
        for name in _FACTS:
            if not hasattr(cls, name):
                state.setdefault(name, getattr(remote, name))
        state[_ORIGIN] = remote
        error.add_note(f"raised in {remote.object_id}")
        if remote.traceback is not None:
            error.add_note(remote.traceback)
    except Exception:  # __new__ of a user's class with a signature of its own
        return remote
    return error


_FACTS = ("object_id", "causes", "traceback")
"""Attributes that a rebuilt exception gets from its journey, unless it has attributes of these names."""


def _is_fact(remote: Any, name: str, value: Any) -> bool:
    return name in _FACTS and value is getattr(remote, name, None)
