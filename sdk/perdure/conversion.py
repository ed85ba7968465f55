"""Compiles type annotations into converters between wire values and the annotated Python values.

Supported annotations, and how their values travel:

    Any, object, none at all      unconverted and unchecked
    None bool int float str       as themselves; bool is no int, datetime no date; an int is taken for
    bytes datetime date           a float and converted
    Decimal UUID
    list[T] tuple[X, Y]           as themselves, each element converted
    tuple[T, ...]
    set[T] frozenset[T]           as themselves; as a list where the elements' form cannot stand in a set
    dict[K, T]                    as a dict where keys travel as str, else as a list of [key, value]
    Sequence Iterable Mapping ... as the concrete container that the value is
    X | Y, Optional, Union        see `perdure.conversion_unions` for which member wins
    Literal, Enum                 by value
    dataclass, TypedDict          as a dict of fields; unknown and missing fields are errors
    NamedTuple                    as a tuple
    pydantic models               as a dict of fields, checked by pydantic
    NewType, Annotated, aliases   as what they stand for
    TypeVar                       as its bound or constraints, else like Any; as its argument in Box[int]

Values of any other class cannot travel.  Such an annotation compiles to a converter that refuses every
value, because a public method with such a parameter may still be of use inside its object; with
``reject_unknown=True`` compiling it raises `TypeError` instead (durable fields).
Runs in every process that has the user's class, once per class.
"""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, NewType, TypeVar

from perdure import hints, pydantic_models
from perdure.conversion_containers import (
    any_of_kinds,
    dict_of,
    fixed_tuple,
    list_of,
    plain_container,
    set_of,
    tuple_of,
)
from perdure.conversion_records import record_converter
from perdure.conversion_scalars import anything, enumeration, literal, scalar, untravelling
from perdure.conversion_unions import Fit, union_of
from perdure.converter import ConversionError, Converter
from perdure.plain import SCALARS, dump_any

__all__ = ["Compiler", "ConversionError", "Converter", "compile_converter"]

_QUALIFIERS = (typing.Annotated, typing.Required, typing.NotRequired, typing.Final, typing.ClassVar)

# What an abstract collection may be in flesh; the first is what a client in another language sends.
_ABSTRACT: Mapping[Any, tuple[type, ...]] = {
    abc.Sequence: (list, tuple),
    abc.Reversible: (list, tuple),
    abc.MutableSequence: (list,),
    abc.Iterable: (list, tuple, set, frozenset),
    abc.Collection: (list, tuple, set, frozenset),
    abc.Container: (list, tuple, set, frozenset),
    abc.Set: (set, frozenset),
    abc.MutableSet: (set,),
}


@dataclass(frozen=True, eq=False)
class _Scope:
    """Where an annotation stands: what its names mean, and how strictly its values must fit."""

    globalns: dict[str, Any] = field(default_factory=dict)
    localns: Mapping[str, Any] = field(default_factory=dict)
    typevars: Mapping[Any, Any] = field(default_factory=dict)
    fit: Fit = Fit.ANY


class Compiler:
    """Compiles annotations; classes that occur several times are compiled once per compiler.

    `globalns` and `localns` resolve names in annotations that are text.  See the module for
    `reject_unknown`.
    """

    def __init__(
        self,
        *,
        globalns: dict[str, Any] | None = None,
        localns: Mapping[str, Any] | None = None,
        reject_unknown: bool = False,
    ) -> None:
        self._scope = _Scope(globalns or {}, localns or {})
        self._reject_unknown = reject_unknown
        self._known: dict[Any, Converter] = {}

    def compile(self, annotation: Any) -> Converter:
        """The converter of an annotation.

        Raises `TypeError` for an annotation that cannot be resolved or contradicts itself.
        """
        return self._compile(annotation, self._scope)

    def _compile(self, annotation: Any, scope: _Scope) -> Converter:
        if annotation is Any or annotation is object or annotation is typing.AnyStr:
            return anything()
        if annotation is None:
            annotation = type(None)
        if isinstance(annotation, str | typing.ForwardRef):
            return self._reference(annotation, scope)
        if isinstance(annotation, TypeVar):
            return self._type_variable(annotation, scope)
        if isinstance(annotation, NewType):
            return self._compile(annotation.__supertype__, scope)
        if annotation is typing.LiteralString:
            return scalar(str, exactly=scope.fit is Fit.EXACT)
        origin = typing.get_origin(annotation) or annotation
        args = typing.get_args(annotation)
        if origin in _QUALIFIERS or getattr(origin, "_name", None) == "ReadOnly":
            return self._compile(args[0] if args else Any, scope)
        if origin is typing.Union or origin is types.UnionType:
            return self._union(args, scope)
        if origin is Literal:
            return self._literal(annotation, args)
        if hasattr(origin, "__value__") and hasattr(origin, "__type_params__"):
            return self._alias(annotation, origin, args, scope)
        if isinstance(origin, type):
            if origin in SCALARS:
                return scalar(origin, exactly=scope.fit is Fit.EXACT)
            return self._container(origin, args, scope) or self._class(annotation, origin, args, scope)
        return self._unknown(annotation)

    # --- names and variables

    def _reference(self, reference: str | typing.ForwardRef, scope: _Scope) -> Converter:
        name = reference if isinstance(reference, str) else reference.__forward_arg__
        key = (name, scope)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Converter.deferred(name)
            meant = hints.resolve(reference, globalns=scope.globalns, localns=scope.localns)
            known.become(self._compile(meant, scope))
        return known

    def _type_variable(self, variable: TypeVar, scope: _Scope) -> Converter:
        if variable in scope.typevars:
            # What the argument still leaves open belongs to no scope in reach: {T: U, U: T} must end.
            return self._compile(scope.typevars[variable], dataclasses.replace(scope, typevars={}))
        if variable.__constraints__:
            return self._union(variable.__constraints__, scope)
        return self._compile(Any if variable.__bound__ is None else variable.__bound__, scope)

    def _alias(self, annotation: Any, alias: Any, args: tuple[Any, ...], scope: _Scope) -> Converter:
        # Python 3.12's `type Pair[T] = tuple[T, T]`, and typing_extensions' form of it.
        args = _substituted(args, scope)
        key = _key(alias, args, scope)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = Converter.deferred(str(annotation))
            bindings = dict(zip(alias.__type_params__, args, strict=False))
            inner = _Scope(hints.module_names(alias), {}, bindings, scope.fit)
            known.become(self._compile(alias.__value__, inner))
        return known

    # --- kinds of annotations

    def _union(self, args: tuple[Any, ...], scope: _Scope) -> Converter:
        ladder = [
            scope if fit is scope.fit else dataclasses.replace(scope, fit=fit) for fit in Fit.up_to(scope.fit)
        ]
        return union_of([[self._compile(arg, rung) for arg in args] for rung in ladder])

    def _literal(self, annotation: Any, args: tuple[Any, ...]) -> Converter:
        try:
            return literal(args)
        except ConversionError:
            return self._unknown(annotation)

    def _container(self, origin: type, args: tuple[Any, ...], scope: _Scope) -> Converter | None:
        def one() -> Converter:
            return self._compile(args[0], scope) if args else anything()

        if origin is list:
            return list_of(one())
        if origin is set or origin is frozenset:
            return set_of(origin, one())
        if origin is tuple:
            return self._tuple(args, scope)
        if origin is dict or origin is abc.Mapping or origin is abc.MutableMapping:
            if not args:
                return plain_container(dict)
            return dict_of(self._compile(args[0], scope), self._compile(args[1], scope))
        kinds = _ABSTRACT.get(origin)
        if kinds is None:
            return None
        item = one()
        concrete = {
            kind: list_of(item) if kind is list else tuple_of(item) if kind is tuple else set_of(kind, item)
            for kind in kinds
        }
        return any_of_kinds(concrete, f"{origin.__name__}[{item.expected}]")

    def _tuple(self, args: tuple[Any, ...], scope: _Scope) -> Converter:
        if not args:
            return plain_container(tuple)
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple_of(self._compile(args[0], scope))
        if any(
            typing.get_origin(arg) is typing.Unpack or getattr(arg, "__unpacked__", False) for arg in args
        ):
            return self._unknown(tuple)
        return fixed_tuple(tuple(self._compile(arg, scope) for arg in args if arg != ()))

    def _class(self, annotation: Any, cls: type, args: tuple[Any, ...], scope: _Scope) -> Converter:
        if issubclass(cls, Enum):
            try:
                return enumeration(cls)
            except ConversionError:
                return self._unknown(annotation)
        if pydantic_models.is_model_class(cls):
            return pydantic_models.model_converter(cls, dump_any, complete=scope.fit is not Fit.ANY)
        args = _substituted(args, scope)
        key = _key(cls, args, scope)
        known = self._known.get(key)
        if known is not None:
            return known
        made = record_converter(cls, complete=scope.fit is not Fit.ANY)
        if made is None:
            return self._unknown(annotation)
        known, compile_fields = made
        self._known[key] = known
        bindings = dict(zip(getattr(cls, "__parameters__", ()), args, strict=False))
        inner = _Scope(hints.module_names(cls), hints.local_names(cls), bindings, scope.fit)
        compile_fields(lambda hint: self._compile(hint, inner))
        return known

    def _unknown(self, annotation: Any) -> Converter:
        name = annotation.__qualname__ if isinstance(annotation, type) else str(annotation)
        if self._reject_unknown:
            raise TypeError(
                f"values annotated {name} cannot be stored or sent; use plain data, a dataclass, "
                "a named tuple, an enum or a pydantic model"
            )
        return untravelling(name)


def _substituted(args: tuple[Any, ...], scope: _Scope) -> tuple[Any, ...]:
    """A generic's arguments, with the variables of the scope around it replaced by what they stand for."""

    def substitute(arg: Any) -> Any:
        if isinstance(arg, TypeVar):
            return scope.typevars.get(arg, arg)
        variables = () if isinstance(arg, type) else getattr(arg, "__parameters__", ())
        return (
            arg[tuple(scope.typevars.get(variable, variable) for variable in variables)] if variables else arg
        )

    return tuple(map(substitute, args))


def _key(cls: Any, args: tuple[Any, ...], scope: _Scope) -> Any:
    # The text too: int | str equals str | int, but does not mean the same to `union_of`.
    shown = tuple(map(repr, args))
    try:
        hash(args)
    except TypeError:  # Annotated may carry anything
        return (cls, shown, scope.fit)
    return (cls, args, shown, scope.fit)


def compile_converter(
    annotation: Any,
    *,
    globalns: dict[str, Any] | None = None,
    localns: Mapping[str, Any] | None = None,
    reject_unknown: bool = False,
) -> Converter:
    """The converter of one annotation; see the module for what is supported, `Compiler` for the rest."""
    compiler = Compiler(globalns=globalns, localns=localns, reject_unknown=reject_unknown)
    return compiler.compile(annotation)
