"""Converters of values with named fields: dataclasses, TypedDicts and named tuples.

Guarantees that an instance is only made from a value that has all fields without a default, no
unknown field, and the right type in each.  Fields are compiled after the converter exists, so that a
class may contain itself.  Runs in every process that has the user's class.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from perdure.converter import ConversionError, Converter, describe, describe_error
from perdure.hints import class_hints

__all__ = ["CompileField", "is_named_tuple", "is_typed_dict", "record_converter"]

CompileField = Callable[[Any], Converter]
"""Compiles the annotation of one field in the scope of its class."""


class _Field(NamedTuple):
    name: str
    converter: Converter
    required: bool


def is_named_tuple(cls: type) -> bool:
    """Whether `cls` was made by `typing.NamedTuple` or `collections.namedtuple`."""
    return issubclass(cls, tuple) and isinstance(getattr(cls, "_fields", None), tuple)


def is_typed_dict(cls: type) -> bool:
    """Whether `cls` was made by `typing.TypedDict` or its backport."""
    return issubclass(cls, dict) and hasattr(cls, "__required_keys__") and hasattr(cls, "__total__")


class _Record:
    """What the three kinds share; `complete`, for members of unions, makes defaults count for nothing."""

    def __init__(self, cls: type, *, complete: bool) -> None:
        self.cls = cls
        self.complete = complete
        self.expected = cls.__name__
        self.fields: tuple[_Field, ...] = ()
        self.names: frozenset[str] = frozenset()

    def compile(self, compile_field: CompileField) -> None:
        self.fields = tuple(self.read_fields(compile_field))
        self.names = frozenset(field.name for field in self.fields)

    def read_fields(self, compile_field: CompileField) -> Iterable[_Field]:
        raise NotImplementedError

    def load(self, value: Any) -> Any:
        raise NotImplementedError

    def dump(self, value: Any) -> Any:
        raise NotImplementedError

    def mismatch(self, value: Any) -> ConversionError:
        return ConversionError("", self.expected, describe(value))

    def check_names(self, value: dict[Any, Any], missing: str | None) -> None:
        """Raises for a field that is missing, or for one in `value` that the class does not have."""
        if missing is not None:
            raise ConversionError("", self.expected, f"dict without the field {missing!r}")
        for name in value:
            if name not in self.names:
                raise ConversionError("", self.expected, f"dict with the unknown field {name!r}")

    def load_fields(self, value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise self.mismatch(value)
        loaded: dict[str, Any] = {}
        missing = None
        for name, converter, required in self.fields:
            if name in value:
                element = value[name]
                if type(element) is converter.exact:
                    loaded[name] = element
                    continue
                try:
                    loaded[name] = converter.load(element)
                except ConversionError as error:
                    raise error.within(f".{name}") from None
            elif required:
                missing = name
        if missing is not None or len(loaded) != len(value):
            self.check_names(value, missing)
        return loaded

    def build(self, *args: Any, **fields: Any) -> Any:
        try:
            return self.cls(*args, **fields)
        except RecursionError:
            raise
        except Exception as error:  # __post_init__ and own constructors refuse values as they like
            raise ConversionError(
                "", f"valid for {self.expected}", f"values that raise {describe_error(error)}"
            ) from error


class _Dataclass(_Record):
    """Travels as a dict of its init fields."""

    def read_fields(self, compile_field: CompileField) -> Iterable[_Field]:
        cls: Any = self.cls
        fields = [field for field in dataclasses.fields(cls) if field.init]
        hints = class_hints(self.cls, [field.name for field in fields])
        self._refuse_required_init_vars()
        for field in fields:
            has_default = (field.default, field.default_factory) != (dataclasses.MISSING, dataclasses.MISSING)
            required = self.complete or not has_default
            yield _Field(field.name, compile_field(hints[field.name]), required)

    def _refuse_required_init_vars(self) -> None:
        # An InitVar is consumed by __post_init__ and not kept: nothing could be dumped for it.
        known: dict[str, Any] = vars(self.cls).get("__dataclass_fields__", {})
        real = {field.name for field in dataclasses.fields(typing.cast(Any, self.cls))}
        pseudo = [name for name in known if name not in real]
        for name, hint in class_hints(self.cls, pseudo).items():
            is_init_var = hint is dataclasses.InitVar or isinstance(hint, dataclasses.InitVar)
            if is_init_var and known[name].default is dataclasses.MISSING:
                raise TypeError(
                    f"{self.cls.__qualname__}.{name}: an InitVar without a default cannot travel; "
                    "make it a field, or give it a default"
                )

    def load(self, value: Any) -> Any:
        return self.build(**self.load_fields(value))

    def dump(self, value: Any) -> Any:
        # A subclass may have more fields, which the other side would have to refuse.
        if type(value) is not self.cls:
            raise self.mismatch(value)
        dumped: dict[str, Any] = {}
        for name, converter, _ in self.fields:
            try:
                element = getattr(value, name)
            except AttributeError:
                raise ConversionError("", "complete", f"{self.expected} without {name}") from None
            if type(element) is converter.exact:
                dumped[name] = element
                continue
            try:
                dumped[name] = converter.dump(element)
            except ConversionError as error:
                raise error.within(f".{name}") from None
        return dumped


class _TypedDict(_Record):
    """Travels as the dict that it is."""

    def read_fields(self, compile_field: CompileField) -> Iterable[_Field]:
        cls: Any = self.cls
        hints = class_hints(cls, cls.__annotations__)
        for name, hint in hints.items():
            # __required_keys__ is wrong where annotations are text, as the qualifier then is unseen.
            qualifier = typing.get_origin(hint)
            required = name in cls.__required_keys__
            if qualifier is typing.Required or qualifier is typing.NotRequired:
                required = qualifier is typing.Required
            yield _Field(name, compile_field(hint), required)

    def load(self, value: Any) -> Any:
        return self.load_fields(value)

    def dump(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise self.mismatch(value)
        dumped: dict[str, Any] = {}
        missing = None
        for name, converter, required in self.fields:
            if name in value:
                try:
                    dumped[name] = converter.dump(value[name])
                except ConversionError as error:
                    raise error.within(f".{name}") from None
            elif required:
                missing = name
        if missing is not None or len(dumped) != len(value):
            self.check_names(value, missing)
        return dumped


class _NamedTuple(_Record):
    """Travels as a tuple; a list is taken too, for clients in languages that have no tuples."""

    def read_fields(self, compile_field: CompileField) -> Iterable[_Field]:
        cls: Any = self.cls
        hints = class_hints(cls, cls._fields)
        for name in cls._fields:
            required = self.complete or name not in cls._field_defaults
            yield _Field(name, compile_field(hints[name]), required)

    def load(self, value: Any) -> Any:
        if type(value) is not tuple and type(value) is not list:
            raise self.mismatch(value)
        needed = sum(field.required for field in self.fields)
        if not needed <= len(value) <= len(self.fields):
            got = f"{type(value).__name__} of {len(value)}"
            raise ConversionError("", f"{self.expected} ({len(self.fields)} fields)", got)
        loaded = []
        for field, element in zip(self.fields, value, strict=False):
            try:
                loaded.append(field.converter.load(element))
            except ConversionError as error:
                raise error.within(f".{field.name}") from None
        return self.build(*loaded)

    def dump(self, value: Any) -> Any:
        kind: type = type(value)
        if kind is not self.cls:
            raise self.mismatch(value)
        dumped = []
        for field, element in zip(self.fields, value, strict=True):
            try:
                dumped.append(field.converter.dump(element))
            except ConversionError as error:
                raise error.within(f".{field.name}") from None
        return tuple(dumped)


def record_converter(cls: type, *, complete: bool) -> tuple[Converter, Callable[[CompileField], None]] | None:
    """A converter for a record class and the function that compiles its fields; None for other classes."""
    record: _Record
    wire: set[type]
    if is_typed_dict(cls):
        record, wire = _TypedDict(cls, complete=complete), {dict}
    elif is_named_tuple(cls):
        record, wire = _NamedTuple(cls, complete=complete), {tuple, list}
    elif dataclasses.is_dataclass(cls):
        record, wire = _Dataclass(cls, complete=complete), {dict}
    else:
        return None
    converter = Converter(record.load, record.dump, expected=cls.__name__, wire=frozenset(wire))

    def compile_fields(compile_field: CompileField) -> None:
        record.compile(compile_field)
        if isinstance(record, _NamedTuple):
            converter.hashable = all(field.converter.hashable for field in record.fields)

    return converter, compile_fields
