"""Any value as plain wire values, by its run-time class alone.  Runs in clients and workers.

Plain are None, bool, int, float, str, bytes, datetime, date, Decimal, UUID (the scalars) and list,
dict with str keys, tuple, set, frozenset of them.  `dump_any` turns dataclasses, named tuples, enums,
pydantic models and subclasses of plain types into those; nothing else can travel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from perdure import pydantic_models
from perdure.converter import ConversionError, describe, type_name

__all__ = ["SCALARS", "dump_any", "plain_scalar"]

SCALARS: frozenset[type] = frozenset(
    {type(None), bool, int, float, str, bytes, datetime, date, Decimal, UUID}
)
"""Types whose values are plain, immutable, and never hold other values."""

_ONLY_STR = frozenset({str})
_CAN_TRAVEL = "plain data, a dataclass, a named tuple, an enum or a pydantic model"


def _plain_datetime(value: datetime) -> datetime:
    return datetime.combine(date(value.year, value.month, value.day), value.timetz())


# How a value of a subclass becomes one of the plain class itself, without calling what the subclass
# overrides.  datetime stands before date, whose subclass it is.
_FROM_SUBCLASS: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes.__bytes__),
    (datetime, _plain_datetime),
    (date, lambda value: date(value.year, value.month, value.day)),
    (Decimal, Decimal),
    (UUID, lambda value: UUID(int=value.int)),
)


def plain_scalar(value: Any) -> Any:
    """The scalar that a value of a scalar's subclass holds; the value itself where it is none."""
    for kind, convert in _FROM_SUBCLASS:
        if isinstance(value, kind):
            return convert(value)
    return value


def dump_any(value: Any) -> Any:
    """`value` as plain wire values; scalars and containers of scalars are returned as they are.

    Raises `ConversionError` naming the part that cannot travel.
    """
    if type(value) in SCALARS:
        return value
    try:
        return _dump(value)
    except RecursionError:
        raise ConversionError("", "free of cycles and not nested too deep", describe(value)) from None


def _dump(value: Any) -> Any:
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is dict:
        return _dump_dict(value)
    if kind in (list, tuple, set, frozenset):
        if set(map(type, value)) <= SCALARS:
            return value
        return _dump_items(kind, value)
    if isinstance(value, Enum):
        return _dump(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _dump_fields(value)
    if pydantic_models.is_model_class(kind):
        return pydantic_models.dump_model(value, _dump)
    if isinstance(value, dict):
        return _dump_dict(dict(value))
    for container in (list, tuple, set, frozenset):
        if isinstance(value, container):
            return _dump_items(container, value)
    plain = plain_scalar(value)
    if plain is value:
        raise ConversionError("", _CAN_TRAVEL, describe(value))
    return plain


def _dump_items(kind: type, values: Iterable[Any]) -> Any:
    items: list[Any] = []
    try:
        for value in values:
            items.append(_dump(value))
    except ConversionError as error:
        step = f"[{len(items)}]" if kind in (list, tuple) else "[*]"
        raise error.within(step) from None
    if kind is list:
        return items
    try:
        return kind(items)
    except TypeError:
        # Frozen dataclasses may stand in a set, the dicts they travel as may not: as with annotations,
        # such a set travels as a list.
        return items


def _dump_dict(values: dict[Any, Any]) -> dict[str, Any]:
    if set(map(type, values)) <= _ONLY_STR and set(map(type, values.values())) <= SCALARS:
        return values
    result: dict[str, Any] = {}
    for key, value in values.items():
        plain_key = _dump(key) if type(key) is not str else key
        if type(plain_key) is not str:
            raise ConversionError("", "dict with str keys", f"dict with a key that is {describe(key)}")
        try:
            result[plain_key] = _dump(value)
        except ConversionError as error:
            raise error.within(f"[{plain_key!r}]") from None
    return result


def _dump_fields(value: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        if not field.init:
            continue
        try:
            result[field.name] = _dump(getattr(value, field.name))
        except ConversionError as error:
            raise error.within(f".{field.name}") from None
        except AttributeError:
            unset = f"{type_name(type(value))} whose field {field.name} was never set"
            raise ConversionError("", "complete", unset) from None
    return result
