"""Methods marked `@public`, as HTTP calls them: ``POST /<namespace>/<name>/<method>`` with JSON.

Guarantees that only methods with the mark are found here, by a table made once, and that their arguments are
what a library client would send for the same values; the worker checks them as it does for everybody.
Runs wherever the gateway's application runs.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from perdure.errors import InvalidArgument
from perdure.hints import function_hints
from perdure.methods import Method, callable_methods
from perdure.object import DurableObject
from perdure_gateway.json_forms import Form, Forms

__all__ = ["PublicMethod", "public_methods"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class PublicMethod:
    """One method: how its arguments are read from JSON, and what its page says."""

    def __init__(self, namespace: str, method: Method, owner: type, forms: Forms) -> None:
        self.namespace = namespace
        self.name = method.name
        self.title = method.title
        self.streams = method.is_generator
        self.description = inspect.getdoc(method.function) or ""
        hints = function_hints(method.function, owner, method.title)
        parameters = list(inspect.signature(method.function).parameters.values())[1:]
        self.parameters = [p for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD]
        self.forms: dict[str, Form] = {p.name: forms.of(hints.get(p.name, Any)) for p in parameters}
        self.extra = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD), None)
        self._positional = [self.forms[p.name] for p in parameters if p.kind in _POSITIONAL]
        rest = next((p.name for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL), None)
        self._rest = self.forms[rest] if rest is not None else Form({})
        self._plain = all(form.read is None for form in self.forms.values())
        self.result = self._result(hints.get("return", Any), forms)

    def _result(self, annotation: Any, forms: Forms) -> Form:
        if self.streams:  # AsyncIterator[T]
            annotation = (*getattr(annotation, "__args__", ()), Any)[0]
        return forms.of(annotation)

    def read(self, body: bytes) -> tuple[list[Any], dict[str, Any] | None]:
        """The arguments in a request's body: an object by name, an array by position, nothing for none.

        Raises `InvalidArgument` for what is neither, and for text that is not what its annotation says.
        """
        if not body or body.isspace():
            return [], None
        try:
            value = json.loads(body, parse_constant=_refuse, parse_float=_number)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"the body is no JSON: {error}") from None
        if type(value) is dict:
            if self._plain:
                return [], value or None
            return [], {name: self._load(name, item) for name, item in value.items()} or None
        if type(value) is list:
            if self._plain:
                return value, None
            known = len(self._positional)
            return [
                self._read(f"[{index}]", self._positional[index] if index < known else self._rest, item)
                for index, item in enumerate(value)
            ], None
        raise InvalidArgument("the body is a JSON object of the arguments by name, or an array of them")

    def _load(self, name: str, value: Any) -> Any:
        form = self.forms.get(name) or self.forms.get(self.extra or "")
        return value if form is None or form.read is None else self._read(f" {name!r}", form, value)

    def _read(self, where: str, form: Form, value: Any) -> Any:
        if form.read is None:
            return value
        try:
            return form.read(value)
        except InvalidArgument as error:
            raise InvalidArgument(f"{self.title}: argument{where}{error}") from None
        except RecursionError:
            raise InvalidArgument(f"{self.title}: argument{where} is nested too deep") from None


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def public_methods(classes: Mapping[str, type], forms: Forms) -> dict[str, dict[str, PublicMethod]]:
    """The marked methods of classes, by namespace and name.  Raises `TypeError` as `callable_methods`."""
    tables: dict[str, dict[str, PublicMethod]] = {}
    for namespace, cls in classes.items():
        table: dict[str, PublicMethod] = {}
        for name, method in callable_methods(cls, DurableObject).items():
            if method.public:
                owner = next((base for base in cls.__mro__ if name in vars(base)), cls)
                table[name] = PublicMethod(namespace, method, owner, forms)
        tables[namespace] = table
    return tables
