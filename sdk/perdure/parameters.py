"""The parameters of one method: arity, names and types checked, values converted.

`Parameters.bind` runs in the worker before a turn starts, `dump` in the client before a call leaves.
Both are on the path of every call: values of exact plain types pass through one comparison each.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

from perdure.conversion import Compiler, ConversionError, Converter
from perdure.converter import describe, describe_error
from perdure.errors import InvalidArgument
from perdure.hints import function_hints
from perdure.plain import SCALARS, dump_any

__all__ = ["Parameters", "check", "dump_loosely"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_TOO_DEEP = "free of cycles and not nested too deep"
_BY_KEYWORD_ONLY = 2**31  # the position of what has none; larger than any number of arguments given


class _Parameter(NamedTuple):
    name: str
    converter: Converter
    required: bool
    by_keyword: bool
    position: int
    """Position, or beyond all positions for keyword-only parameters."""


class _Convertible:
    """Stands where a value of any type needs conversion: no value is of this class."""


def check(convert: Callable[[Any], Any], value: Any) -> Any:
    """``convert(value)``, with `ConversionError` the only error.

    Cycles and bottomless nesting end in one, and so does what a user's ``__hash__``, property or
    validator raises.
    """
    try:
        return convert(value)
    except ConversionError:
        raise
    except RecursionError:
        raise ConversionError("", _TOO_DEEP, describe(value)) from None
    except Exception as error:
        raise ConversionError(
            "", "valid", f"{describe(value)} that raises {describe_error(error)}"
        ) from error


def dump_loosely(converter: Converter | None, value: Any) -> Any:
    """`value` as plain values: by the annotation where it fits, else by its run-time class.

    A caller may hold another version of the class than the worker: what fits is the worker's to say.
    Raises `ConversionError` only for what cannot travel at all.
    """
    if converter is not None and not converter.identity and type(value) is not converter.exact:
        with contextlib.suppress(ConversionError):
            value = check(converter.dump, value)
    # Also after the annotation was followed: `Any` inside of it leaves dataclasses as they are.
    return check(dump_any, value)


class Parameters:
    """The parameters of a method in the body of `owner`, without `self`.

    `title` (``Counter.increment()``) begins all messages.  Raises `TypeError` when the method takes no
    `self`, or is annotated with what cannot be resolved.
    """

    __slots__ = (
        "_accepted",
        "_accepted_by_name",
        "_extra",
        "_fewest",
        "_first_accepted",
        "_named",
        "_only_by_position",
        "_parameters",
        "_positional",
        "_rest",
        "_rest_name",
        "_self_name",
        "title",
    )

    def __init__(self, function: FunctionType, owner: type, title: str, compiler: Compiler) -> None:
        self.title = title
        hints = function_hints(function, owner, title)
        described = list(inspect.signature(function).parameters.values())
        self._self_name = self._take_self(described)
        self._rest: Converter | None = None
        self._rest_name = "args"
        self._extra: Converter | None = None
        parameters: list[_Parameter] = []
        for parameter in described:
            try:
                converter = compiler.compile(hints.get(parameter.name, Any))
            except TypeError as error:
                raise TypeError(f"{title}: argument {parameter.name!r}: {error}") from error
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                self._rest, self._rest_name = converter, parameter.name
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                self._extra = converter
            else:
                parameters.append(
                    _Parameter(
                        parameter.name,
                        converter,
                        parameter.default is inspect.Parameter.empty,
                        parameter.kind is not inspect.Parameter.POSITIONAL_ONLY,
                        len(parameters) if parameter.kind in _POSITIONAL else _BY_KEYWORD_ONLY,
                    )
                )
        self._parameters = tuple(parameters)
        self._positional = tuple(p for p in parameters if p.position < _BY_KEYWORD_ONLY)
        self._named = {p.name: p for p in parameters if p.by_keyword}
        self._only_by_position = frozenset(p.name for p in parameters if not p.by_keyword)
        self._prepare_fast_path()

    def _take_self(self, described: list[inspect.Parameter]) -> str | None:
        """Removes `self` from the parameters; its name where a keyword argument could collide with it."""
        if not described or described[0].kind not in (*_POSITIONAL, inspect.Parameter.VAR_POSITIONAL):
            raise TypeError(f"{self.title} takes no self; a method of an object needs it")
        if described[0].kind is inspect.Parameter.VAR_POSITIONAL:
            return None
        first = described.pop(0)
        return first.name if first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD else None

    def _prepare_fast_path(self) -> None:
        # What `bind` compares: the exact type of each positional parameter, None where anything goes.
        self._accepted = tuple(
            None if p.converter.identity else (p.converter.exact or _Convertible) for p in self._positional
        )
        self._first_accepted = (*self._accepted, _Convertible)[0]
        self._accepted_by_name = {
            name: p.converter.exact for name, p in self._named.items() if p.converter.exact is not None
        }
        needs_keywords = any(p.required for p in self._parameters if p.position >= _BY_KEYWORD_ONLY)
        fewest = sum(p.required for p in self._positional)
        self._fewest = len(self._positional) + 1 if needs_keywords else fewest

    @property
    def accepts_none_given(self) -> bool:
        """Whether a call without any argument is right."""
        return self._fewest == 0

    # --- in the worker

    def bind(self, args: list[Any], kwargs: dict[str, Any] | None) -> tuple[list[Any], dict[str, Any] | None]:
        """Checked and converted arguments, ready for ``function(instance, *args, **(kwargs or {}))``.

        `args` is changed in place: it must be fresh from the wire.  The second result is None where no
        keyword argument was given.  Raises `InvalidArgument`; nothing of the user's has run then, but
        constructors of dataclasses and validators of models.
        """
        if not kwargs:
            given = len(args)
            if given == 0:
                if self._fewest == 0:
                    return args, None
            elif given == 1 and self._fewest <= 1 and type(args[0]) is self._first_accepted:
                return args, None
            elif self._fewest <= given <= len(self._accepted):
                for value, accepted in zip(args, self._accepted):  # noqa: B905 - strict=True costs 0.1 µs
                    if type(value) is not accepted and accepted is not None:
                        break
                else:
                    return args, None
        elif (
            not args and type(kwargs) is dict and (self._fewest == 0 or len(kwargs) == len(self._parameters))
        ):
            for name, value in kwargs.items():
                if type(value) is not self._accepted_by_name.get(name):
                    break
            else:
                return args, kwargs
        return self._bind_checked(args, kwargs or {})

    def _bind_checked(
        self, args: list[Any], kwargs: dict[str, Any]
    ) -> tuple[list[Any], dict[str, Any] | None]:
        if type(kwargs) is not dict:
            raise InvalidArgument(f"{self.title}: keyword arguments must be a dict, not {describe(kwargs)}")
        given = len(args)
        if given > len(self._positional) and self._rest is None:
            raise self._too_many(given)
        for parameter, value in zip(self._positional, args):  # noqa: B905 - as above
            args[parameter.position] = self._load(parameter.name, parameter.converter, value)
        if self._rest is not None:
            for index in range(len(self._positional), given):
                args[index] = self._load(self._name_at(index), self._rest, args[index])
        loaded: dict[str, Any] = {}
        for name, value in kwargs.items():
            parameter_named = self._named.get(name)
            if parameter_named is None:
                loaded[name] = self._load(name, self._converter_of_extra(name), value)
            elif parameter_named.position < given:
                raise InvalidArgument(f"{self.title} got several values for argument {name!r}")
            else:
                loaded[name] = self._load(name, parameter_named.converter, value)
        if given < len(self._parameters):
            self._check_complete(given, loaded)
        return args, loaded or None

    def _load(self, name: str, converter: Converter, value: Any) -> Any:
        if type(value) is converter.exact:
            return value
        try:
            return check(converter.load, value)
        except ConversionError as error:
            raise InvalidArgument(f"{self.title}: {error.argument_text(name)}") from error

    def _name_at(self, index: int) -> str:
        if index < len(self._positional):
            return self._positional[index].name
        return f"{self._rest_name}[{index - len(self._positional)}]"

    def _converter_of_extra(self, name: str) -> Converter:
        if name in self._only_by_position and self._extra is None:
            raise InvalidArgument(f"{self.title}: argument {name!r} can only be given by position")
        if self._extra is None or name == self._self_name:
            raise InvalidArgument(f"{self.title} got an unexpected argument {name!r}")
        return self._extra

    def _check_complete(self, given: int, loaded: dict[str, Any]) -> None:
        missing = [
            repr(p.name)
            for p in self._parameters
            if p.required and p.position >= given and not (p.by_keyword and p.name in loaded)
        ]
        if missing:
            plural = "s" if len(missing) > 1 else ""
            raise InvalidArgument(f"{self.title} misses the argument{plural} {', '.join(missing)}")

    def _too_many(self, given: int) -> InvalidArgument:
        most = len(self._positional)
        takes = "no arguments" if most == 0 else f"at most {most} argument{'s' if most > 1 else ''}"
        by_position = " by position" if len(self._parameters) > most else ""
        return InvalidArgument(f"{self.title} takes {takes}{by_position}, {given} were given")

    # --- in the client

    def dump(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Arguments as plain wire values, as `dump_loosely` makes them.

        Raises `InvalidArgument` for what cannot travel.
        """
        plain = list(args)
        for value in args:
            if type(value) not in SCALARS:
                self._dump_positional(plain)
                break
        if not kwargs:
            return plain, {}
        named = {}
        for name, value in kwargs.items():
            if type(value) in SCALARS:
                named[name] = value
            else:
                parameter = self._named.get(name)
                converter = self._extra if parameter is None else parameter.converter
                named[name] = self._dump(name, converter, value)
        return plain, named

    def _dump_positional(self, args: list[Any]) -> None:
        for index, value in enumerate(args):
            if type(value) not in SCALARS:
                known = index < len(self._positional)
                converter = self._positional[index].converter if known else self._rest
                args[index] = self._dump(self._name_at(index), converter, value)

    def _dump(self, name: str, converter: Converter | None, value: Any) -> Any:
        try:
            return dump_loosely(converter, value)
        except ConversionError as error:
            raise InvalidArgument(f"{self.title}: {error.argument_text(name)}") from error
