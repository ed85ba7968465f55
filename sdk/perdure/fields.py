"""Durable fields: ``value: int = durable(0)`` in the body of a class.

A field's value lives in the instance's ``__dict__``, read and written at native speed; the marker that
`durable` gives stays in the class and is no data descriptor.  The host fills the instance before its
first turn and looks for changes after each one.  Runs in the worker; clients only see the markers.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn, TypeVar, overload
from uuid import UUID

from perdure.conversion import Compiler, ConversionError, Converter
from perdure.converter import describe
from perdure.errors import StorageError
from perdure.hints import class_hint, local_names, module_names
from perdure.parameters import check
from perdure.plain import SCALARS

__all__ = ["DurableField", "collect_fields", "durable"]

T = TypeVar("T")


class _Missing:
    """Stands for a default that was not given."""


# Equal values of these types are the same value in every respect.  Not so 0.0 and -0.0, Decimals of
# other precision, and datetimes of other zones.
_EQUAL_IS_SAME: frozenset[type] = frozenset({type(None), bool, int, str, bytes, date, UUID})


class DurableField:
    """One durable field: the marker in the class body, or from `collect_fields` bound to its class.

    A bound field has `name`, `owner` (the class's name) and `converter`.
    """

    __slots__ = ("_default", "_factory", "converter", "name", "owner")

    def __init__(self, default: Any = _Missing, default_factory: Callable[[], Any] | None = None) -> None:
        self._default = default
        self._factory = default_factory
        self.name = ""
        self.owner = ""
        self.converter: Converter | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        # The first name only: `collect_fields` refuses a marker that stands under two, where raising
        # here would come out as a RuntimeError before Python 3.12.
        if not self.name:
            self.owner = owner.__name__
            self.name = name

    @property
    def exact(self) -> type | None:
        """The type whose values are stored as they are; None where values are converted."""
        return self.converter.exact if self.converter is not None else None

    def __repr__(self) -> str:
        return f"<durable field {self.owner}.{self.name}>"

    def default(self) -> Any:
        """The value of an object that has none stored; a new one of each factory call."""
        return self._default if self._factory is None else self._factory()

    def dump(self, value: Any) -> Any:
        """`value` as plain wire values; raises `TypeError` when it is not what the annotation says."""
        converter = self._bound()
        if type(value) is converter.exact:
            return value
        try:
            return check(converter.dump, value)
        except ConversionError as error:
            raise TypeError(error.text(f"{self.owner}.{self.name}")) from error

    def load(self, value: Any) -> Any:
        """A stored value as the annotation says; raises `StorageError` when it does not fit."""
        converter = self._bound()
        if type(value) is converter.exact:
            return value
        try:
            return check(converter.load, value)
        except ConversionError as error:
            raise StorageError(
                f"the stored value does not fit the class: {error.text(f'{self.owner}.{self.name}')}; "
                "annotate the field with both types, or give the new one another name"
            ) from error

    def _bound(self) -> Converter:
        if self.converter is None:
            raise RuntimeError(f"{self!r} is the marker in the class; collect_fields gives the usable field")
        return self.converter

    @staticmethod
    def immutable(value: Any) -> bool:
        """Whether the value can never change in place: a change is a new object in the instance.

        Of other values (lists, dicts, sets, dataclasses, ...) only the encoding tells.
        """
        kind = type(value)
        if kind in SCALARS:
            return True
        if kind is tuple or kind is frozenset:
            return all(map(DurableField.immutable, value))
        return isinstance(value, Enum)

    @staticmethod
    def same(old: Any, new: Any) -> bool:
        """Whether two immutable values surely are stored as the same bytes.

        False may also mean that only encoding them would tell; then a rewrite does no harm.
        """
        if old is new:
            return True
        kind: Any = type(old)
        if kind is not type(new):
            return False
        if kind in _EQUAL_IS_SAME:
            return bool(old == new)
        if kind is float:
            return bool(old.hex() == new.hex())
        if kind is Decimal:
            return bool(old.as_tuple() == new.as_tuple())
        if kind is datetime:
            # Also the clock's reading: 12:00+01:00 equals 11:00+00:00.
            return bool(old == new and old.isoformat() == new.isoformat())
        if kind is tuple:
            return len(old) == len(new) and all(map(DurableField.same, old, new))
        return False


@overload
def durable(default: T) -> T: ...
@overload
def durable(*, default_factory: Callable[[], T]) -> T: ...
def durable(default: Any = _Missing, *, default_factory: Callable[[], Any] | None = None) -> Any:
    """Declares a durable field: ``value: int = durable(0)``.

    The field is loaded before an object's first turn and saved with the writes of any turn that
    changed it, changes inside of a list, dict or set included.  A value that could be changed in place
    would be shared by all objects, so it must come from ``durable(default_factory=list)``.
    Raises `TypeError` unless exactly one of the two is given.
    """
    if default is _Missing and default_factory is None:
        raise TypeError("durable() needs a default: durable(0), or durable(default_factory=list)")
    if default is not _Missing and default_factory is not None:
        raise TypeError("durable() takes a default or a default_factory, not both")
    if default_factory is not None and not callable(default_factory):
        raise TypeError(f"durable(): default_factory must be callable, not {describe(default_factory)}")
    if default is not _Missing and type(default).__hash__ is None:
        kind = type(default).__name__
        raise TypeError(
            f"durable(): all objects would share this one {kind}; give durable(default_factory={kind}), "
            "or a lambda that makes it"
        )
    return DurableField(default, default_factory)


def collect_fields(cls: type) -> tuple[DurableField, ...]:
    """The durable fields of a class and those it inherits, usable, those of its bases first.

    Raises `TypeError` naming class and field for an annotation whose values cannot be stored, a
    default that does not fit it, or one marker under two names.
    """
    owners: dict[str, type] = {}
    for base in reversed(cls.__mro__):
        for name in vars(base):
            if isinstance(vars(base)[name], DurableField):
                owners[name] = base
            else:
                owners.pop(name, None)  # hidden by an attribute of a class further up
    return tuple(_bind(cls, owner, name) for name, owner in owners.items())


def _bind(cls: type, owner: type, name: str) -> DurableField:
    marker: DurableField = vars(owner)[name]
    where = f"{cls.__name__}.{name}"

    def refuse(error: TypeError | str) -> NoReturn:
        raise TypeError(f"{where}: {error}") from (error if isinstance(error, TypeError) else None)

    if name != marker.name:
        refuse(f"its durable() is that of {marker.owner}.{marker.name}; each field needs its own")
    compiler = Compiler(globalns=module_names(owner), localns=local_names(owner), reject_unknown=True)
    field = DurableField(marker._default, marker._factory)
    field.name, field.owner = name, cls.__name__
    try:
        field.converter = compiler.compile(class_hint(owner, name))
        if marker._factory is None:
            field.dump(marker._default)
    except TypeError as error:
        refuse(error)
    return field
