"""The shape of a compiled annotation, and the error that says where a value does not fit it.

A `Converter` guarantees that `load` gives a value of the annotated type or raises `ConversionError`,
and that `dump` gives plain wire values or raises it.  Runs in every process that has the user's class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["ConversionError", "Converter", "describe", "describe_error", "type_name"]

_TEXT_SHOWN_MAX = 40
_INT_BITS_SHOWN_MAX = 128
_PATH_CHARS_MAX = 200
_ERROR_CHARS_MAX = 500


def type_name(kind: type) -> str:
    """A class's name as error messages show it."""
    return "None" if kind is type(None) else kind.__qualname__


def describe(value: object) -> str:
    """``str ('x')``: the type, with the value only where it is short and of a type that cannot lie."""
    kind = type(value)
    if value is None:
        return "None"
    if kind is str or kind is bytes:
        text: Any = value
        shown = repr(text[:_TEXT_SHOWN_MAX]) + ("..." if len(text) > _TEXT_SHOWN_MAX else "")
        return f"{kind.__name__} ({shown})"
    if kind is int:
        number: Any = value
        # repr of a huge int takes quadratic time, and raises beyond sys.get_int_max_str_digits().
        return f"int ({number})" if number.bit_length() <= _INT_BITS_SHOWN_MAX else "int"
    if kind is bool or kind is float:
        return f"{kind.__name__} ({value!r})"
    return type_name(kind)


def describe_error(error: BaseException) -> str:
    """``ValueError: too small`` of an exception that a user's code raised, at most a few lines of it.

    Never raises: what shows an exception is the user's code as well, and may do anything.
    """
    try:
        kind = "".join((type_name(type(error)),))
    except BaseException:
        kind = "an exception"
    try:
        text = "".join((str(error),))  # a plain str, whatever class __str__ has given
    except BaseException:
        text = "its message cannot be shown"
    shown = f"{kind[:_ERROR_CHARS_MAX]}: {text[:_ERROR_CHARS_MAX]}"
    return shown.encode(errors="replace").decode()


class ConversionError(TypeError):
    """A value does not fit its annotation: `path` within the value, `expected` and `got` as text.

    The path is empty for the value itself, else like ``[3].price``; ``[*]`` is any element of a set.
    """

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(path, expected, got)
        self.path = path
        self.expected = expected
        self.got = got

    def __str__(self) -> str:
        return self.text("value")

    def text(self, name: str) -> str:
        """``name[3].price must be int, not str ('x')``."""
        return f"{self._path_from(name)} must be {self.expected}, not {self.got}"

    def argument_text(self, name: str) -> str:
        """``argument 'name[3].price' must be int, not str ('x')``."""
        return f"argument '{self._path_from(name)}' must be {self.expected}, not {self.got}"

    def _path_from(self, name: str) -> str:
        path = name + self.path
        return path if len(path) <= _PATH_CHARS_MAX else path[:_PATH_CHARS_MAX] + "..."

    def within(self, step: str) -> ConversionError:
        """The same error seen from the value that holds this one at `step`."""
        return ConversionError(step + self.path, self.expected, self.got)


class Converter:
    """One annotation, compiled.  Make it with `perdure.conversion.compile_converter`.

    `load(value)` turns a decoded wire value into a value of the annotated type, `dump(value)` does the
    opposite; both raise `ConversionError`, and may return their argument itself where nothing needs to
    change.  Two facts let hot paths call neither:

    - `exact`: a value whose ``type()`` is this very class needs no conversion in either direction;
      None where there is no such class.
    - `identity`: nothing is converted or checked at all (``Any`` and missing annotations).

    `expected` is the annotation as messages show it.  `wire` is the closed set of plain types that
    `load` may take, None when that is not known; `hashable` says whether dumped values can stand in
    sets.  Containers use the two to choose how they travel.
    """

    __slots__ = ("dump", "exact", "expected", "hashable", "identity", "load", "wire")

    def __init__(
        self,
        load: Callable[[Any], Any],
        dump: Callable[[Any], Any],
        *,
        expected: str,
        exact: type | None = None,
        identity: bool = False,
        wire: frozenset[type] | None = None,
        hashable: bool = False,
    ) -> None:
        self.load = load
        self.dump = dump
        self.expected = expected
        self.exact = exact
        self.identity = identity
        self.wire = wire
        self.hashable = hashable

    @classmethod
    def deferred(cls, expected: str) -> Converter:
        """A place holder for an annotation that refers to itself, filled by `become`."""

        def unfilled(value: Any) -> Any:
            raise RuntimeError(f"the converter of {expected} was used before it was compiled")

        return cls(unfilled, unfilled, expected=expected)

    def become(self, other: Converter) -> None:
        """Fills a place holder; `wire` and `hashable` stay unknown, because containers asked already."""
        self.load = other.load
        self.dump = other.dump
        self.exact = other.exact
        self.identity = other.identity

    def mismatch(self, value: object) -> ConversionError:
        """The error for a value that is of a wrong type itself."""
        return ConversionError("", self.expected, describe(value))

    def is_text(self) -> bool:
        """Whether every dumped value is a str, so that it can be a key of a dict on the wire."""
        return self.wire is not None and self.wire == {str}
