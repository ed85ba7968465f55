"""Which methods of a class can be called from outside, and what a call of each needs.

`callable_methods` reads a class once, at registration (worker) or when a stub is made from the class
(client); afterwards names from outside are only ever looked up in its table, never on an instance.
Callable is what the user declared:

- public functions (plain, async, async generators) in the body of the class or of a `DurableObject`
  class it derives from;
- functions of plain mixins only with `@public`;
- never names with a leading underscore, handlers, `ctx`, `id`, `storage`, properties, static and class
  methods, other attributes, or anything of the base class.

What counts is the definition that an instance would find: a name hidden by an attribute or by a
mixin's undeclared function is not callable.
"""

from __future__ import annotations

import collections.abc as abc
import inspect
import typing
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple, TypeVar

from perdure.conversion import Compiler, ConversionError, Converter
from perdure.converter import describe
from perdure.errors import InvalidArgument
from perdure.hints import function_hints, function_namespace, local_names
from perdure.parameters import Parameters, check
from perdure.plain import SCALARS, dump_any

__all__ = [
    "HANDLERS",
    "RESERVED",
    "Marks",
    "Method",
    "blocking",
    "callable_methods",
    "dump_call",
    "interleaved",
    "marks_of",
    "public",
]

HANDLERS = frozenset(
    {
        "alarm",
        "fetch",
        "on_migrate",
        "on_start",
        "websocket_close",
        "websocket_error",
        "websocket_message",
    }
)
"""Methods that the system calls; nobody can call them by name."""

RESERVED = frozenset({"ctx", "id", "storage"})
"""Attributes of every object, which no class may define."""

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "__perdure_{}__"
_NOT_PLAIN = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR
_STREAMS = (abc.AsyncGenerator, abc.AsyncIterator, abc.AsyncIterable)


# --- decorators: each only leaves a mark on the function, which callable_methods reads


class Marks(NamedTuple):
    """What the decorators say about a function."""

    blocking: bool
    interleaved: bool
    public: bool


def _mark(function: F, name: str) -> F:
    if not isinstance(function, FunctionType):
        raise TypeError(
            f"@{name} marks functions, not {describe(function)}; "
            "static methods, class methods and properties cannot be called on an object"
        )
    vars(function)[_MARK.format(name)] = True
    return function


def blocking(function: F) -> F:
    """Runs this plain ``def`` method in a thread; its object still does one thing at a time.

    For work that would hold up the worker's other objects: file and network access of synchronous
    libraries, long computations that release the GIL.  Raises `TypeError` for an async function.
    """
    marked = _mark(function, "blocking")
    for inner in (function, inspect.unwrap(function)):
        if inner.__code__.co_flags & _NOT_PLAIN:
            raise TypeError(
                f"@blocking is for plain functions, and {inner.__qualname__} is none: leave it out"
            )
    return marked


def interleaved(function: F) -> F:
    """Lets turns of this method run beside each other, for methods that wait for something else.

    While one of them awaits (a sleep, another object, the network), others may start and go on; reads and
    writes of `self.storage` are not such a wait, `sync()` is.  Serial methods, those without this mark, never
    run beside anything: a serial call waits until no turn is inside, and interleaved calls that came after it
    wait behind it.  A call that such a turn makes to an interleaved method of its own object starts at once;
    one to a serial method is a `DeadlockError`.

    Each span between two awaits is atomic.  What it wrote, durable fields included, is committed wherever the
    method suspends and at its end, so **an exception discards only what was written since the last await**.
    Whatever was read before an await may have changed after it: read it again, lists and dicts in durable
    fields included, or keep the others out with ``async with self.ctx.exclusive():``.  What tasks of the turn
    write is committed before the next span of the object.
    """
    return _mark(function, "interleaved")


def public(function: F) -> F:
    """Makes a method callable over HTTP: ``POST /<namespace>/<name>/<method>`` with JSON arguments.

    Without it a method is reached by clients and other objects only.  A plain mixin's method needs it to be
    callable at all on the objects whose classes inherit it.
    """
    return _mark(function, "public")


def marks_of(function: object) -> Marks:
    """The marks on a function; none on anything else."""
    marked = getattr(function, "__dict__", {})
    return Marks(*(bool(marked.get(_MARK.format(name))) for name in Marks._fields))


# --- one method


class Method:
    """A callable method of a class, compiled for the path of every call.

    `bind(args, kwargs)` checks and converts arguments from the wire, `dump_args(args, kwargs)` makes
    wire values of a caller's arguments; see `Parameters`.  The host may skip `dump_result` for a value
    whose ``type()`` is `result_exact`, and both conversions of results where `result_identity` is true.
    """

    __slots__ = (
        "_result",
        "accepts_no_args",
        "bind",
        "blocking",
        "dump_args",
        "function",
        "interleaved",
        "is_async",
        "is_generator",
        "mark",
        "name",
        "plain",
        "public",
        "quick",
        "result_exact",
        "result_identity",
        "title",
    )

    def __init__(
        self, name: str, function: FunctionType, *, cls: type, owner: type, compiler: Compiler
    ) -> None:
        self.name = name
        self.function = function
        self.title = f"{cls.__name__}.{name}()"
        self.mark = b""
        """What a worker notes while the method runs; set where it is registered."""
        self.is_generator = inspect.isasyncgenfunction(function)
        # A plain function that wraps an async one hands its coroutine through.
        self.is_async = inspect.iscoroutinefunction(function) or (
            not self.is_generator and inspect.iscoroutinefunction(inspect.unwrap(function))
        )
        self.blocking, self.interleaved, self.public = marks_of(function)
        self.plain = not (self.blocking or self.is_generator)
        """Whether calling the function is all that a turn has to do: no thread, no stream."""
        self.quick = (
            self.plain and not self.interleaved and bool(function.__code__.co_flags & inspect.CO_COROUTINE)
        )
        """Whether calling it runs nothing yet: it gives a coroutine, and that is all of the turn."""
        if inspect.isgeneratorfunction(function):
            raise TypeError(
                f"{self.title} is a plain generator, which cannot be called from outside; write "
                "`async def` to stream its values, or begin its name with an underscore"
            )
        if self.blocking and self.interleaved:
            raise TypeError(
                f"{self.title} is @blocking and @interleaved: two threads would run in one object; "
                "leave out one of the two"
            )
        parameters = Parameters(function, owner, self.title, compiler)
        self.bind = parameters.bind
        self.dump_args = parameters.dump
        self.accepts_no_args = parameters.accepts_none_given
        self._result = self._compile_result(owner, compiler)
        self.result_exact = self._result.exact
        self.result_identity = self._result.identity

    def _compile_result(self, owner: type, compiler: Compiler) -> Converter:
        annotation = function_hints(self.function, owner, self.title).get("return", Any)
        if self.is_generator and annotation is not Any:
            if typing.get_origin(annotation) not in _STREAMS and annotation not in _STREAMS:
                raise TypeError(f"{self.title} is an async generator: annotate its result AsyncIterator[...]")
            annotation = (*typing.get_args(annotation), Any)[0]
        try:
            return compiler.compile(annotation)
        except TypeError as error:
            raise TypeError(f"{self.title}: result: {error}") from error

    def __repr__(self) -> str:
        return f"<method {self.title}>"

    def dump_result(self, value: Any) -> Any:
        """In the worker: what the method returned (a generator: one value it yielded) as wire values.

        Raises `TypeError` when it is not what the annotation says: the turn failed.
        """
        if type(value) is self.result_exact or self.result_identity:
            return value
        try:
            return check(self._result.dump, value)
        except ConversionError as error:
            raise TypeError(f"{self.title}: {error.text('its result')}") from error

    def load_result(self, value: Any) -> Any:
        """In the client: the result (a generator: one value) as the annotation says.

        Raises `TypeError` when it does not fit: the class here differs from the worker's.  The call
        itself took effect.
        """
        if type(value) is self.result_exact or self.result_identity:
            return value
        try:
            return check(self._result.load, value)
        except ConversionError as error:
            raise TypeError(
                f"{self.title} took effect, but {error.text('its result')}: the class here is not the "
                "one that the worker runs"
            ) from error


def dump_call(
    method: Method | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """In the client: a call's arguments as plain wire values, also where the class is not known.

    Raises `InvalidArgument` for what cannot travel.
    """
    if method is not None:
        return method.dump_args(args, kwargs)
    plain = list(args)
    try:
        for index, value in enumerate(args):
            if type(value) not in SCALARS:
                plain[index] = check(dump_any, value)
    except ConversionError as error:
        raise InvalidArgument(error.argument_text(str(index + 1))) from error
    named = {}
    for name, value in kwargs.items():
        try:
            named[name] = check(dump_any, value)
        except ConversionError as error:
            raise InvalidArgument(error.argument_text(name)) from error
    return plain, named


# --- the table of a class


def callable_methods(cls: type, base: type) -> dict[str, Method]:
    """The methods of `cls` that can be called from outside, by name; `base` is `DurableObject`.

    Raises `TypeError` naming class and member when the class defines a reserved name, marks what
    cannot be called, or annotates with what cannot be resolved.
    """
    inherited = frozenset(base.__mro__)
    members: dict[str, tuple[Any, type]] = {}
    for owner in cls.__mro__:
        if owner in inherited:
            # An instance would find the base's definition before that of any class further down.
            members.update({name: (None, owner) for name in vars(owner) if name not in members})
            continue
        for name, member in vars(owner).items():
            members.setdefault(name, (member, owner))
            _check_member(owner, name, member)
    methods = {}
    compilers: dict[Any, Compiler] = {}
    for name, (member, owner) in members.items():
        if name.startswith("_") or name in HANDLERS or not isinstance(member, FunctionType):
            continue
        if not issubclass(owner, base) and not marks_of(member).public:
            continue
        globalns = function_namespace(member)
        compiler = compilers.setdefault(
            (owner, id(globalns)), Compiler(globalns=globalns, localns=local_names(owner))
        )
        methods[name] = Method(name, member, cls=cls, owner=owner, compiler=compiler)
    return methods


def _check_member(owner: type, name: str, member: Any) -> None:
    """Raises `TypeError` for a definition that cannot mean what it says."""
    where = f"{owner.__qualname__}.{name}"
    if name in RESERVED:
        raise TypeError(f"{where}: every object has {name} from DurableObject; choose another name")
    if isinstance(member, FunctionType):
        marks = marks_of(member)
        if marks.public and (name.startswith("_") or name in HANDLERS):
            kind = "handlers" if name in HANDLERS else "names with a leading underscore"
            raise TypeError(f"{where}: {kind} cannot be called from outside; leave out @public")
        return
    hidden = member.fget if isinstance(member, property) else getattr(member, "__func__", None)
    if isinstance(member, staticmethod | classmethod | property) and any(marks_of(hidden)):
        raise TypeError(
            f"{where}: @blocking, @interleaved and @public mark methods; static methods, class methods "
            "and properties cannot be called from outside"
        )
