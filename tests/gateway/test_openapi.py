"""The OpenAPI document: valid, complete, and silent about what is not public."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.public_app import Shop
from perdure import DurableObject
from perdure_gateway.json_forms import Forms
from perdure_gateway.openapi import openapi_document
from perdure_gateway.public_methods import public_methods


def document(*, tokens: bool = False) -> dict[str, Any]:
    forms = Forms()
    tables = public_methods({"Shop": Shop}, forms)
    made = openapi_document(tables, forms, title="Shop", tokens=tokens)
    return json.loads(json.dumps(made))


@pytest.mark.parametrize("tokens", [False, True])
def test_the_document_is_valid_by_the_specification(tokens: bool) -> None:
    OpenAPIV31SpecValidator(document(tokens=tokens)).validate()


def test_every_public_method_is_described_and_nothing_else() -> None:
    paths = document()["paths"]
    names = {path.rpartition("/")[2] for path in paths}
    assert {"order", "mixed", "count", "anything"} <= names
    assert not {"private", "hidden"} & names
    assert "private" not in json.dumps(paths)


def test_arguments_are_described_with_types_defaults_and_what_is_required() -> None:
    operation = document()["paths"]["/Shop/{name}/order"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["line"]
    assert schema["properties"]["line"] == {"$ref": "#/components/schemas/Line"}
    assert schema["properties"]["count"] == {"type": "integer", "default": 1}
    assert schema["properties"]["colour"]["enum"] == ["red", "blue"]
    assert schema["additionalProperties"] is False
    assert operation["summary"] == "Orders something."
    assert operation["description"] == "The second paragraph says more."


def test_records_are_described_once_also_where_they_contain_themselves() -> None:
    schemas = document()["components"]["schemas"]
    assert schemas["Line"]["properties"]["children"]["items"] == {"$ref": "#/components/schemas/Line"}
    assert schemas["Person"]["properties"]["born"]["anyOf"][0]["format"] == "date"


def test_a_stream_is_described_as_lines() -> None:
    content = document()["paths"]["/Shop/{name}/count"]["post"]["responses"]["200"]["content"]
    assert content == {"application/x-ndjson": {"schema": {"type": "integer"}}}


def test_tokens_are_asked_for_where_they_are_needed() -> None:
    assert document(tokens=True)["security"] == [{"token": []}]
    assert "security" not in document()


def test_a_class_without_public_methods_adds_nothing() -> None:
    class Silent(DurableObject):
        async def private(self) -> None: ...

    forms = Forms()
    made = openapi_document(public_methods({"Silent": Silent}, forms), forms, title="x", tokens=False)
    assert made["paths"] == {}
    assert made["tags"] == []
