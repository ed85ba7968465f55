"""Converters of single values: the plain scalars, enums and literals.

Guarantees that no value passes for another type: bool is no int, datetime no date, 1 no True.
Runs in every process that has the user's class.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from enum import Enum, Flag
from typing import Any

from perdure.converter import ConversionError, Converter, describe, type_name
from perdure.plain import SCALARS, dump_any, plain_scalar

__all__ = ["anything", "enumeration", "literal", "scalar", "untravelling"]


def anything() -> Converter:
    """``Any``: no conversion and no check; what cannot travel fails where it is encoded."""

    def same(value: Any) -> Any:
        return value

    return Converter(same, same, expected="Any", identity=True, hashable=True)


def untravelling(name: str) -> Converter:
    """An annotation whose values cannot travel: every use fails, saying so."""
    expected = f"annotated with a type that can travel ({name} cannot)"

    def refuse(value: Any) -> Any:
        raise ConversionError("", expected, describe(value))

    return Converter(refuse, refuse, expected=name)


def scalar(kind: type, *, exactly: bool) -> Converter:
    """One of `SCALARS`.

    `dump` also takes values of subclasses, as type checkers do, and makes them plain; `exactly`, for
    members of unions, does not.
    """
    if kind is float:
        return _floating(exactly=exactly)
    # Subclasses in Python's eyes, but not what anybody means: True where a number is asked for, a
    # point in time where a day is.
    confusing: tuple[type, ...] = {int: (bool,), date: (datetime,)}.get(kind, ())
    expected = type_name(kind)

    def load(value: Any) -> Any:
        if type(value) is not kind:
            raise ConversionError("", expected, describe(value))
        return value

    def dump(value: Any) -> Any:
        if type(value) is kind:
            return value
        if not isinstance(value, kind) or isinstance(value, confusing):
            raise ConversionError("", expected, describe(value))
        return plain_scalar(value)

    wire = frozenset({kind})
    return Converter(load, load if exactly else dump, expected=expected, exact=kind, wire=wire, hashable=True)


def _floating(*, exactly: bool) -> Converter:
    """``float``; an int is taken and converted too, unless `exactly`."""

    def convert(value: Any) -> Any:
        if type(value) is float:
            return value
        if exactly or isinstance(value, bool) or not isinstance(value, int | float):
            raise ConversionError("", "float", describe(value))
        try:
            return float.__float__(value) if isinstance(value, float) else float(value)
        except OverflowError:
            raise ConversionError("", "float", "an int beyond a float's range") from None

    wire = frozenset({float} if exactly else {float, int})
    return Converter(convert, convert, expected="float", exact=float, wire=wire, hashable=True)


def _lookup(pairs: Iterable[tuple[Any, Any]], expected: str) -> Any:
    """A function from the first of each pair to the second, that tells 1 from True and 1.0."""
    table: dict[Any, Any] = {}
    unhashable: list[tuple[Any, Any]] = []
    for key, result in pairs:
        try:
            table.setdefault((type(key), key), result)
        except TypeError:
            unhashable.append((key, result))

    def find(value: Any) -> Any:
        try:
            return table[(type(value), value)]
        except (KeyError, TypeError):
            pass
        for key, result in unhashable:
            if type(key) is type(value) and key == value:
                return result
        raise ConversionError("", expected, describe(value))

    return find


def _wire_facts(values: Iterable[Any]) -> tuple[frozenset[type], bool]:
    kinds: frozenset[type] = frozenset(map(type, values))
    return kinds, kinds <= SCALARS


def enumeration(cls: type[Enum]) -> Converter:
    """An enum, which travels by its value.  Raises `ConversionError` when a value cannot travel."""
    expected = cls.__name__
    pairs = [(dump_any(member.value), member) for member in cls]
    if issubclass(cls, Flag):
        flag_class: type[Flag] = cls

        def load(value: Any) -> Any:
            # Combinations of flags are members too, but not listed.
            if type(value) is int:
                try:
                    return flag_class(value)
                except ValueError:
                    pass
            raise ConversionError("", expected, describe(value))

        wire, hashable = _wire_facts([0])
    else:
        load = _lookup(pairs, expected)
        wire, hashable = _wire_facts(value for value, _ in pairs)

    def dump(value: Any) -> Any:
        if not isinstance(value, cls):
            raise ConversionError("", expected, describe(value))
        return dump_any(value.value)

    return Converter(load, dump, expected=expected, wire=wire, hashable=hashable)


def literal(values: tuple[Any, ...]) -> Converter:
    """``Literal[...]``: exactly these values; members of enums travel by their values."""
    expected = " or ".join(repr(value) for value in values)
    plain = [dump_any(value) for value in values]
    wire, hashable = _wire_facts(plain)
    load = _lookup(zip(plain, values, strict=True), expected)
    dump = _lookup(zip(values, plain, strict=True), expected)
    return Converter(load, dump, expected=expected, wire=wire, hashable=hashable)
