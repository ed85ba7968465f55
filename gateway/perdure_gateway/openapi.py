"""The OpenAPI document of `@public` methods.  Pure; made once, and cut to what a token opens.

Guarantees a document of version 3.1 that names nothing but these methods and the schemas of their values.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from perdure_gateway.json_forms import Forms
from perdure_gateway.public_methods import PublicMethod

__all__ = ["openapi_document"]

Tables = Mapping[str, Mapping[str, PublicMethod]]
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {
                "type": {"type": "string", "description": "The error's class."},
                "message": {"type": "string"},
                "id": {"type": "string", "description": "Under this id the server's log has the rest."},
            },
        }
    },
}
_ERRORS = {
    "400": "An argument is wrong; nothing happened.",
    "422": "The method refused with an exception that it declares; nothing happened.",
    "500": "The method failed; nothing happened, and the log has the reason.",
    "503": "Too much load, or the object's worker is starting; nothing happened, repeat it later.",
    "504": "The deadline passed. It may have happened: repeat it with the same Idempotency-Key.",
}


def openapi_document(tables: Tables, forms: Forms, *, title: str, tokens: bool) -> dict[str, Any]:
    """The document; `tokens` says whether requests need a bearer token."""
    paths: dict[str, Any] = {}
    for namespace, table in sorted(tables.items()):
        for name, method in sorted(table.items()):
            paths[f"/{namespace}/{{name}}/{name}"] = {"post": _operation(method)}
    named = [{"name": namespace} for namespace, table in sorted(tables.items()) if table]
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": "1",
            "description": "Methods of durable objects. Arguments are a JSON object by name (an array by "
            "position is taken too); the object of a name need not be made before it is called.",
        },
        "tags": named,
        "paths": paths,
        "components": {"schemas": {"Error": _ERROR, **forms.schemas}},
    }
    if tokens:
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
    return document


def _operation(method: PublicMethod) -> dict[str, Any]:
    summary, _, description = method.description.partition("\n")
    content_type = "application/x-ndjson" if method.streams else "application/json"
    operation: dict[str, Any] = {
        "tags": [method.namespace],
        "operationId": f"{method.namespace}.{method.name}",
        "parameters": [
            {
                "name": "name",
                "in": "path",
                "required": True,
                "description": "The object's name, or ~ and the 64 hex digits of its id.",
                "schema": {"type": "string"},
            },
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "Repeating a request with the same key has the effect, and the answer, once.",
                "schema": {"type": "string", "maxLength": 255},
            },
        ],
        "responses": {
            "200": {
                "description": "One JSON value a line, as they come." if method.streams else "The result.",
                "content": {content_type: {"schema": method.result.schema}},
            },
            **{
                status: {
                    "description": text,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
                for status, text in _ERRORS.items()
            },
        },
    }
    if summary:
        operation["summary"] = summary.strip()
    if description.strip():
        operation["description"] = description.strip()
    if (body := _arguments(method)) is not None:
        operation["requestBody"] = body
    return operation


def _arguments(method: PublicMethod) -> dict[str, Any] | None:
    if not method.forms:
        return None
    by_name = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    properties: dict[str, Any] = {}
    required: list[str] = []
    for parameter in method.parameters:
        if parameter.kind not in by_name:
            continue
        properties[parameter.name] = dict(method.forms[parameter.name].schema)
        if parameter.default is inspect.Parameter.empty:
            required.append(parameter.name)
        elif type(parameter.default) in (str, int, float, bool):
            properties[parameter.name]["default"] = parameter.default
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if method.extra is not None:
        schema["additionalProperties"] = method.forms[method.extra].schema or True
    if required:
        schema["required"] = required
    if any(parameter.kind not in by_name for parameter in method.parameters):
        schema = {"anyOf": [schema, {"type": "array"}]}
    return {"required": bool(required), "content": {"application/json": {"schema": schema}}}
