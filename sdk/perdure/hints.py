"""Annotations as run-time types, with errors that say which annotation cannot be resolved and why.

Annotations written as text (also by ``from __future__ import annotations``) are resolved as the
interpreter would have: in the module of the function or class, then in the class's own nested classes.
Nothing is cached.  Runs wherever users' classes are registered or called by class.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping
from types import FunctionType
from typing import Any

__all__ = [
    "class_hint",
    "class_hints",
    "function_hints",
    "function_namespace",
    "local_names",
    "module_names",
    "resolve",
]


def resolve(annotation: Any, *, globalns: dict[str, Any], localns: Mapping[str, Any], where: str = "") -> Any:
    """The type that `annotation` means; raises `TypeError`, its text beginning with `where`."""
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return annotation
    # Given a class, typing also accepts what only class bodies may hold (ClassVar, Final).
    holder = type("Annotations", (), {"__annotations__": {"it": annotation}})
    try:
        hints = typing.get_type_hints(holder, globalns, dict(localns), include_extras=True)
    except Exception as error:  # resolving runs the annotation's text: it may raise anything
        shown = annotation if isinstance(annotation, str) else repr(annotation)
        raise TypeError(
            f"{where}the annotation {shown} cannot be resolved: {error}. Names in annotations must exist "
            "in the module at run time, not only under TYPE_CHECKING or inside a function"
        ) from error
    return hints["it"]


def local_names(cls: type) -> dict[str, Any]:
    """Names that annotations in the body of `cls` see before the module's: nested classes, itself."""
    # Only classes: a method that happens to be called `list` must not hide the type in `list[int]`.
    nested = {name: value for name, value in vars(cls).items() if isinstance(value, type)}
    return {cls.__name__: cls, **nested, **_type_parameters(cls)}


def _type_parameters(owner: Any) -> dict[str, Any]:
    # Python 3.12's `class Box[T]` and `def get[T]()`; they are in no namespace that can be looked up.
    return {parameter.__name__: parameter for parameter in getattr(owner, "__type_params__", ())}


def module_names(cls: type) -> dict[str, Any]:
    """The module namespace of a class; empty when its module is not loaded."""
    module = sys.modules.get(cls.__module__)
    return vars(module) if module is not None else {}


def class_hint(cls: type, name: str) -> Any:
    """The resolved annotation of `name` in the body of `cls` itself, or `Any` when it has none."""
    annotations = vars(cls).get("__annotations__", {})
    if name not in annotations:
        return Any
    where = f"{cls.__qualname__}.{name}: "
    return resolve(annotations[name], globalns=module_names(cls), localns=local_names(cls), where=where)


def class_hints(cls: type, names: typing.Iterable[str]) -> dict[str, Any]:
    """The resolved annotations of attributes, each from the most derived class that annotates it."""
    result = {}
    for name in names:
        owner = next((base for base in cls.__mro__ if name in vars(base).get("__annotations__", {})), cls)
        result[name] = class_hint(owner, name)
    return result


def function_namespace(function: FunctionType) -> dict[str, Any]:
    """The module namespace in which a function's annotations were written, behind its decorators."""
    inner: Any = function
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    namespace: dict[str, Any] = getattr(inner, "__globals__", function.__globals__)
    return namespace


def function_hints(function: FunctionType, cls: type, where: str) -> dict[str, Any]:
    """The resolved annotations of a method of `cls` by parameter name, and ``return``."""
    globalns = function_namespace(function)
    localns = {**local_names(cls), **_type_parameters(function)}
    return {
        name: resolve(
            annotation,
            globalns=globalns,
            localns=localns,
            where=f"{where}: {'result' if name == 'return' else f'argument {name!r}'}: ",
        )
        for name, annotation in function.__annotations__.items()
    }
