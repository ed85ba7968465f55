"""What values of an annotation look like in JSON: how they are read, written and described.

    datetime date UUID Decimal    as text; Decimal as a number, too
    bytes                         as text in base64
    tuple set frozenset           as an array
    dict                          as an object where keys are text, else as an array of [key, value]
    dataclass TypedDict, models   as an object of the fields
    NamedTuple                    as an array
    Literal, Enum                 by value
    float that is no number       as null

Guarantees that what `read` gives is what a library client would send for the same value: whether it fits is
then checked by the worker, as for all callers.  Runs in the gateway, once per class and once per call.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import math
import types
import typing
from collections import abc
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Literal, NewType, TypeVar
from uuid import UUID

from perdure import hints, pydantic_models
from perdure.conversion_records import is_named_tuple, is_typed_dict
from perdure.errors import InvalidArgument

__all__ = ["Form", "Forms", "dump_json", "read_decimal"]

Schema = dict[str, Any]
Read = Callable[[Any], Any]
_REFERENCE = "#/components/schemas/"
_QUALIFIERS = (typing.Annotated, typing.Required, typing.NotRequired, typing.Final, typing.ClassVar)
_ARRAYS = frozenset(
    {list, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection, abc.Container, abc.Reversible}
)
_SETS = frozenset({set, frozenset, abc.Set, abc.MutableSet})
_ANY_KIND: frozenset[type] = frozenset({str, int, float, bool, list, dict, type(None)})


@dataclasses.dataclass(eq=False)
class Form:
    """How values of one annotation are read from JSON and described."""

    schema: Schema
    read: Read | None = None
    """From what `json` gives to what a call carries; None: it is the same.  Raises `InvalidArgument`."""
    kinds: frozenset[type] = _ANY_KIND
    """What `json` gives for such values."""


class Forms:
    """The forms of all annotations of one document; `schemas` are those that have a name."""

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = {}
        self._named: dict[Any, Form] = {}

    def of(self, annotation: Any, variables: Mapping[Any, Any] | None = None) -> Form:
        """The form of an annotation whose names are resolved; anything unknown may be anything."""
        variables = variables or {}
        if annotation is None:
            annotation = type(None)
        if isinstance(annotation, TypeVar):
            bound = annotation.__bound__
            return self.of(variables.get(annotation, bound if bound is not None else Any), {})
        if isinstance(annotation, NewType):
            return self.of(annotation.__supertype__, variables)
        origin = typing.get_origin(annotation) or annotation
        args = typing.get_args(annotation)
        if origin in _QUALIFIERS or getattr(origin, "_name", None) == "ReadOnly":
            return self.of(args[0] if args else Any, variables)
        if origin is typing.Union or origin is types.UnionType:
            return _union([self.of(arg, variables) for arg in args])
        if origin is Literal:
            return _choice(list(args), "")
        if hasattr(origin, "__value__") and hasattr(origin, "__type_params__"):
            return self.of(origin.__value__, dict(zip(origin.__type_params__, args, strict=False)))
        if not isinstance(origin, type):
            return Form({})
        return (
            _scalar(origin)
            or self._container(origin, args, variables)
            or self._class(origin, args, variables)
        )

    def _container(self, origin: type, args: tuple[Any, ...], variables: Mapping[Any, Any]) -> Form | None:
        def one(index: int) -> Form:
            return self.of(args[index], variables) if len(args) > index else Form({})

        if origin in _ARRAYS:
            return _array(one(0), lambda values: values, {})
        if origin in _SETS:
            return _array(one(0), _as_set, {"uniqueItems": True})
        if origin is tuple:
            if not args or (len(args) == 2 and args[1] is Ellipsis):
                return _array(one(0), tuple, {})
            return _fixed([self.of(arg, variables) for arg in args if arg != ()])
        if origin is dict or origin is abc.Mapping or origin is abc.MutableMapping:
            return _mapping(one(0) if args else Form({"type": "string"}), one(1))
        return None

    def _class(self, cls: Any, args: tuple[Any, ...], variables: Mapping[Any, Any]) -> Form:
        if issubclass(cls, Enum):
            return _choice(list(cls), cls.__name__)
        if pydantic_models.is_model_class(cls):
            return self._model(cls)
        if not (is_typed_dict(cls) or is_named_tuple(cls) or dataclasses.is_dataclass(cls)):
            return Form({})
        inner = {
            name: variables.get(arg, arg)
            for name, arg in zip(getattr(cls, "__parameters__", ()), args, strict=False)
        }
        key = (cls, tuple(map(repr, inner.values())))
        if key not in self._named:
            name = self._name(cls, key[1])
            form = self._named[key] = Form({"$ref": _REFERENCE + name})
            self.schemas[name] = {}  # a class may contain itself
            if is_named_tuple(cls):
                made = _fixed([self.of(hint, inner) for hint in _hints(cls, cls._fields).values()])
                form.read, form.kinds = made.read, made.kinds
                self.schemas[name] = made.schema
            else:
                self._record(cls, inner, form, name)
        return self._named[key]

    def _record(self, cls: Any, variables: Mapping[Any, Any], form: Form, name: str) -> None:
        required: list[str] = []
        if is_typed_dict(cls):
            names = list(cls.__annotations__)
            required = [name for name in names if name in cls.__required_keys__]
        else:
            fields = [field for field in dataclasses.fields(cls) if field.init]
            names = [field.name for field in fields]
            missing = dataclasses.MISSING
            required = [f.name for f in fields if f.default is missing and f.default_factory is missing]
        form.kinds = frozenset({dict})
        fields_read: dict[str, Read] = {}

        def read(value: Any) -> Any:
            if type(value) is not dict:
                return value
            return {key: _within(f".{key}", fields_read.get(key), item) for key, item in value.items()}

        form.read = read  # before the fields: one of them may be of this class
        properties = {name: self.of(hint, variables) for name, hint in _hints(cls, names).items()}
        fields_read.update({key: item.read for key, item in properties.items() if item.read is not None})
        self.schemas[name].update(
            {
                "type": "object",
                "title": cls.__name__,
                "properties": {key: item.schema for key, item in properties.items()},
                "additionalProperties": False,
                **({"required": required} if required else {}),
            }
        )

    def _model(self, cls: Any) -> Form:
        key = (cls, ())
        if key not in self._named:
            name = self._name(cls, ())
            schema = cls.model_json_schema(by_alias=False, ref_template=_REFERENCE + "{model}")
            for inner, described in schema.pop("$defs", {}).items():
                self.schemas.setdefault(inner, described)
            self.schemas[name] = schema
            # pydantic reads both forms of its fields, in the worker.
            self._named[key] = Form({"$ref": _REFERENCE + name}, None, frozenset({dict}))
        return self._named[key]

    def _name(self, cls: type, arguments: tuple[str, ...]) -> str:
        base = cls.__name__ + "".join("_" + "".join(c for c in arg if c.isalnum()) for arg in arguments)
        name, number = base, 2
        while name in self.schemas:
            name, number = f"{base}_{number}", number + 1
        return name


def _hints(cls: type, names: typing.Iterable[str]) -> dict[str, Any]:
    return hints.class_hints(cls, list(names))


def _within(where: str, read: Read | None, value: Any) -> Any:
    if read is None:
        return value
    try:
        return read(value)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}{error}") from None


# --- single values


def _text(kind: type, parse: Callable[[str], Any], schema: Schema) -> Form:
    name = kind.__name__

    def read(value: Any) -> Any:
        if type(value) is not str:
            return value  # the worker says what it expects
        try:
            return parse(value)
        except (ValueError, InvalidOperation, binascii.Error):
            raise InvalidArgument(f": this is no {name}: {value!r:.80}") from None

    return Form({"type": "string", **schema}, read, frozenset({str}))


def _scalar(kind: type) -> Form | None:
    match kind:
        case types.NoneType:
            return Form({"type": "null"}, None, frozenset({types.NoneType}))
        case builtin if builtin is bool:
            return Form({"type": "boolean"}, None, frozenset({bool}))
        case builtin if builtin is int:
            return Form({"type": "integer"}, None, frozenset({int}))
        case builtin if builtin is float:
            return Form({"type": "number"}, None, frozenset({int, float}))
        case builtin if builtin is str:
            return Form({"type": "string"}, None, frozenset({str}))
        case builtin if builtin is bytes:
            return _text(bytes, _from_base64, {"contentEncoding": "base64"})
    if kind is datetime:
        return _text(datetime, datetime.fromisoformat, {"format": "date-time"})
    if kind is date:
        return _text(date, date.fromisoformat, {"format": "date"})
    if kind is UUID:
        return _text(UUID, UUID, {"format": "uuid"})
    if kind is Decimal:
        schema = {"anyOf": [{"type": "string", "format": "decimal"}, {"type": "number"}]}
        return Form(schema, read_decimal, frozenset({str, int, float}))
    return None


def _from_base64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def read_decimal(value: Any) -> Any:
    """A Decimal from text or a number; what is neither stays for the worker to refuse."""
    if type(value) not in (str, int, float):
        return value
    try:
        return Decimal(repr(value) if type(value) is float else value)
    except InvalidOperation:
        raise InvalidArgument(f": this is no Decimal: {value!r:.80}") from None


def _choice(members: list[Any], title: str) -> Form:
    plain = [member.value if isinstance(member, Enum) else member for member in members]
    described = [json.loads(dump_json(value)) for value in plain]
    schema: Schema = {"enum": described, **({"title": title} if title else {})}
    kinds = frozenset(map(type, described))
    if described == plain:
        return Form(schema, None, kinds)
    pairs = list(zip(described, plain, strict=True))

    def read(value: Any) -> Any:
        return next((inner for shown, inner in pairs if type(shown) is type(value) and shown == value), value)

    return Form(schema, read, kinds)


# --- containers


def _array(item: Form, make: Callable[[list[Any]], Any], schema: Schema) -> Form:
    inner = item.read

    def read(value: Any) -> Any:
        if type(value) is not list:
            return value
        if inner is not None:
            value = [_within(f"[{index}]", inner, element) for index, element in enumerate(value)]
        return make(value)

    described = {"type": "array", **({"items": item.schema} if item.schema else {}), **schema}
    return Form(described, read, frozenset({list}))


def _as_set(values: list[Any]) -> Any:
    try:
        return set(values)
    except TypeError:  # records travel in a list then
        return values


def _fixed(items: list[Form]) -> Form:
    def read(value: Any) -> Any:
        if type(value) is not list:
            return value
        reads = [item.read for item in items] + [None] * max(0, len(value) - len(items))
        return tuple(
            _within(f"[{index}]", inner, element)
            for index, (inner, element) in enumerate(zip(reads, value, strict=False))
        )

    schema = {
        "type": "array",
        "prefixItems": [item.schema for item in items],
        "minItems": len(items),
        "maxItems": len(items),
    }
    if not items:
        del schema["prefixItems"]
    return Form(schema, read, frozenset({list}))


def _mapping(key: Form, value: Form) -> Form:
    if key.read is None and key.kinds == {str}:
        inner = value.read

        def read(values: Any) -> Any:
            if type(values) is not dict or inner is None:
                return values
            return {name: _within(f"[{name!r}]", inner, element) for name, element in values.items()}

        schema = {"type": "object", **({"additionalProperties": value.schema} if value.schema else {})}
        return Form(schema, read, frozenset({dict}))
    pair = _fixed([key, value])

    def read_pairs(values: Any) -> Any:
        if type(values) is not list:
            return values
        return [list(_within("", pair.read, element)) for element in values]

    return Form({"type": "array", "items": pair.schema}, read_pairs, frozenset({list}))


def _union(members: list[Form]) -> Form:
    def read(value: Any) -> Any:
        fitting = [member for member in members if type(value) in member.kinds]
        if not fitting or any(member.read is None for member in fitting):
            return value
        refusals = []
        for member in fitting:
            try:
                return typing.cast(Read, member.read)(value)
            except InvalidArgument as error:
                refusals.append(error)
        raise refusals[0]

    needed = any(member.read is not None for member in members)
    kinds = frozenset(kind for member in members for kind in member.kinds)
    return Form({"anyOf": [member.schema for member in members]}, read if needed else None, kinds)


# --- results


def dump_json(value: Any) -> bytes:
    """A value as a call's result has it, in JSON."""
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        text = json.dumps(_numbers_only(value), default=_plain, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, set | frozenset):
        try:
            return sorted(value)
        except TypeError:
            return list(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, UUID | Decimal):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _numbers_only(value: Any) -> Any:
    """The value with null for what is no number; JSON has no infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _numbers_only(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_numbers_only(item) for item in value]
    return value
