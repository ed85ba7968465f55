"""Which methods HTTP reaches, and how it gives them their arguments."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from gateway.public_app import Shop
from perdure.errors import InvalidArgument
from perdure_gateway.json_forms import Forms
from perdure_gateway.public_methods import PublicMethod, public_methods


@pytest.fixture(scope="module")
def table() -> dict[str, PublicMethod]:
    return public_methods({"Shop": Shop}, Forms())["Shop"]


def test_only_marked_methods_are_there(table: dict[str, PublicMethod]) -> None:
    assert {"order", "mixed", "count"} <= table.keys()
    assert not {"private", "hidden", "fetch", "on_start", "__init__", "id", "storage"} & table.keys()


def test_an_object_gives_arguments_by_name_and_an_array_by_position(table: dict[str, PublicMethod]) -> None:
    noon = datetime(2026, 1, 2, 12, tzinfo=UTC)
    line = b'{"price": "1", "when": "2026-01-02T12:00:00Z"}'
    wire = {"price": Decimal(1), "when": noon}
    assert table["order"].read(b'{"line": %b, "count": 2}' % line) == ([], {"line": wire, "count": 2})
    assert table["order"].read(b'[%b, "blue"]' % line) == ([wire, "blue"], None)


def test_names_and_places_that_a_method_does_not_have_are_left_for_the_worker(
    table: dict[str, PublicMethod],
) -> None:
    assert table["person"].read(b'{"nobody": 1}') == ([], {"nobody": 1})
    assert table["order"].read(b'[{}, "red", 3, 4]')[0] == [{}, "red", 3, 4]


@pytest.mark.parametrize("body", [b"", b"  \n", b"{}"])
def test_without_arguments_the_body_may_be_empty(table: dict[str, PublicMethod], body: bytes) -> None:
    assert table["mixed"].read(body) == ([], None)


@pytest.mark.parametrize(
    "body",
    [
        b"1",
        b'"text"',
        b"null",
        b"{",
        b"\xff",
        b"[NaN]",
        b"[Infinity]",
        b"[-1e400]",
        b"[" * 100_000,
        b"[" + b"9" * 5_000 + b"]",
    ],
    ids=[
        "number",
        "text",
        "null",
        "half",
        "no UTF-8",
        "NaN",
        "Infinity",
        "beyond a float",
        "deep",
        "long number",
    ],
)
def test_a_body_that_is_no_json_of_arguments_is_refused(table: dict[str, PublicMethod], body: bytes) -> None:
    with pytest.raises(InvalidArgument):
        table["anything"].read(body)


def test_a_wrong_text_is_refused_with_the_methods_and_the_arguments_name(
    table: dict[str, PublicMethod],
) -> None:
    with pytest.raises(InvalidArgument, match=r"Shop\.scalars\(\): argument 'day': this is no date: 'x'"):
        table["scalars"].read(b'{"day": "x"}')
    with pytest.raises(InvalidArgument, match=r"argument\[0\]: this is no date"):
        table["scalars"].read(b'["x"]')
