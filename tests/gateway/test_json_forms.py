"""The form of annotated values in JSON: what is read, and how it is described."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType, Optional
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.public_app import Colour, Line, Person, Place, Point
from perdure.errors import InvalidArgument
from perdure_gateway.json_forms import Forms, dump_json

KEY = UUID("12345678-1234-5678-1234-567812345678")
NOON = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)
UserId = NewType("UserId", int)


def read(annotation: Any, value: Any) -> Any:
    form = Forms().of(annotation)
    return value if form.read is None else form.read(value)


@pytest.mark.parametrize(
    ("annotation", "given_json", "wire"),
    [
        (int, 5, 5),
        (float, 5, 5),
        (str, "x", "x"),
        (bool, True, True),
        (None, None, None),
        (Any, {"a": [1]}, {"a": [1]}),
        (UserId, 5, 5),
        (Annotated[date, "x"], "2026-01-02", date(2026, 1, 2)),
        (datetime, "2026-01-02T12:00:00Z", NOON),
        (date, "2026-01-02", date(2026, 1, 2)),
        (UUID, str(KEY), KEY),
        (Decimal, "1.10", Decimal("1.10")),
        (Decimal, 1.1, Decimal("1.1")),
        (Decimal, 3, Decimal(3)),
        (bytes, "aGk=", b"hi"),
        (list[date], ["2026-01-02"], [date(2026, 1, 2)]),
        (tuple[int, UUID], [1, str(KEY)], (1, KEY)),
        (tuple[int, ...], [1, 2], (1, 2)),
        (set[int], [1, 2], {1, 2}),
        (frozenset[UUID], [str(KEY)], {KEY}),
        (dict[str, date], {"a": "2026-01-02"}, {"a": date(2026, 1, 2)}),
        (dict[int, date], [[1, "2026-01-02"]], [[1, date(2026, 1, 2)]]),
        (Optional[date], None, None),  # noqa: UP045 - the older spelling is read, too
        (date | None, "2026-01-02", date(2026, 1, 2)),
        (int | date, 5, 5),
        (str | date, "2026-01-02", "2026-01-02"),
        (date | UUID, str(KEY), KEY),
        (Literal["a", 1], "a", "a"),
        (Colour, "red", "red"),
        (Line, {"price": "1.5", "when": "2026-01-02T12:00:00Z", "tags": ["a"], "children": []},
         {"price": Decimal("1.5"), "when": NOON, "tags": {"a"}, "children": []}),
        (Place, {"on": "2026-01-02"}, {"on": date(2026, 1, 2)}),
        (Point, [1, 2.5], (1, 2.5)),
        (Person, {"name": "Ada", "born": "1815-12-10"}, {"name": "Ada", "born": "1815-12-10"}),
    ],
)  # fmt: skip
def test_values_are_read_as_their_annotation_says(annotation: Any, given_json: Any, wire: Any) -> None:
    value = read(annotation, given_json)
    assert value == wire
    assert type(value) is type(wire)


def test_a_record_that_contains_itself_is_read_all_the_way_down() -> None:
    leaf = {"price": "1", "when": "2026-01-02T12:00:00Z"}
    value = read(Line, {**leaf, "children": [{**leaf, "children": [leaf]}]})
    assert value["children"][0]["children"][0]["when"] == NOON


@pytest.mark.parametrize(
    ("annotation", "value", "where"),
    [
        (date, "yesterday", "no date: 'yesterday'"),
        (list[UUID], [str(KEY), "x"], r"^\[1\]: this is no UUID"),
        (Line, {"when": "x"}, r"^\.when: this is no datetime"),
        (dict[str, bytes], {"a": "%"}, r"^\['a'\]: this is no bytes"),
        (Decimal, "1,5", "no Decimal"),
    ],
)
def test_text_that_is_not_what_it_should_be_is_refused_with_its_place(
    annotation: Any, value: Any, where: str
) -> None:
    with pytest.raises(InvalidArgument, match=where):
        read(annotation, value)


@pytest.mark.parametrize(
    "annotation", [date, list[date], set[int], dict[str, date], Line, tuple[int, UUID], Decimal]
)
@pytest.mark.parametrize("value", [True, None])
def test_what_is_of_another_kind_is_left_for_the_worker_to_refuse(annotation: Any, value: Any) -> None:
    assert read(annotation, value) is value


def test_what_is_no_annotation_of_ours_is_described_as_anything() -> None:
    assert Forms().of(object).schema == Forms().of("unresolved").schema == {}


def test_records_have_names_and_two_of_one_name_have_two() -> None:
    class Line2(Line):
        """Another class of the same name."""

    Line2.__name__ = "Line"
    forms = Forms()
    first, second = forms.of(Line).schema, forms.of(Line2).schema
    assert first != second
    assert {"Line", "Line_2"} == set(forms.schemas)
    assert forms.schemas["Line"]["required"] == ["price", "when"]
    assert forms.of(Line).schema == first


def test_results_are_written_as_they_are_read() -> None:
    value = [NOON, date(2026, 1, 2), KEY, Decimal("1.10"), b"hi", (1, 2), {3, 1}, float("inf"), 2**70, "ä"]
    assert json.loads(dump_json(value)) == [
        NOON.isoformat(), "2026-01-02", str(KEY), "1.10", "aGk=", [1, 2], [1, 3], None, 2**70, "ä"
    ]  # fmt: skip


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda v: st.lists(v) | st.dictionaries(st.text(), v),
    )
)
def test_plain_values_come_back_from_json(value: Any) -> None:
    assert json.loads(dump_json(value).decode("utf-8", "surrogatepass")) == value
