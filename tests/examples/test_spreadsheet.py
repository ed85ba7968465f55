"""The spreadsheet's cells: formulas, what depends on what, circles."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spreadsheet import Book, is_cell


def shown(texts: dict[str, str], cell: str) -> str:
    return str(Book(texts).shown({cell})[cell][1])


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("=1+2*3", "7"),
        ("=(1+2)*3", "9"),
        ("=2^3^2", "64"),
        ("=-4+1", "-3"),
        ("=10/4", "2.5"),
        ("=A1+a2", "5"),
        ("=SUM(A1:B2)", "10"),
        ("=SUM(B2:A1, 1)", "11"),
        ("=AVERAGE(A1:A2)", "2.5"),
        ("=MIN(A1:B2)&MAX(A1:B2)", "25"),
        ("=COUNT(A1:C9)", "3"),
        ('=IF(A1<A2, "less", "more")', "less"),
        ('="a"="a"', "1"),
        ('=C1&"!"', "word!"),
        ("=1/0", "#DIV/0!"),
        ("=C1+1", "#VALUE!"),
        ("=A101", "#REF!"),
        ("=SUM(A1:A999)", "#REF!"),
        ("=1+", "#ERROR!"),
        ("=(1", "#ERROR!"),
        ("=NO(1)", "#NAME?"),
        ("=(0-8)^0.5", "#NUM!"),
        ("=10^400", "#NUM!"),
        ("=D4", "#CYCLE!"),
        ("=Z9", ""),
    ],
)
def test_a_formula_shows_its_value_or_why_it_has_none(formula: str, value: str) -> None:
    texts = {"A1": "2", "A2": "3", "B1": "5", "C1": "word", "D4": formula}
    assert shown(texts, "D4") == value


def test_a_change_reaches_all_cells_that_depend_on_it_and_no_others() -> None:
    book = Book({"A1": "1", "A2": "=A1*2", "A3": "=A2+1", "B1": "7"})
    assert book.enter("A1", "5") == {"A1", "A2", "A3"}
    assert book.shown({"A3"})["A3"] == ["=A2+1", "11", False]
    assert book.enter("B1", "8") == {"B1"}


def test_a_circle_is_an_error_in_all_of_its_cells_and_goes_with_its_cause() -> None:
    book = Book({"A1": "=B1", "B1": "=C1", "C1": "=A1", "D1": "=A1+1"})
    assert {book.shown({cell})[cell][1] for cell in ("A1", "B1", "C1", "D1")} == {"#CYCLE!"}
    book.enter("C1", "3")
    assert [book.shown({cell})[cell][1] for cell in ("A1", "B1", "C1", "D1")] == ["3", "3", "3", "4"]


def test_an_emptied_cell_is_empty_for_those_who_read_it() -> None:
    book = Book({"A1": "4", "B1": "=A1+1"})
    book.enter("A1", "")
    assert book.shown() == {"B1": ["=A1+1", "1", False]}


@pytest.mark.parametrize("name", ["A0", "A101", "AA1", "a1", "", "A", "1", "A1 ", "A01", "A1\n"])
def test_what_is_no_cell_of_the_sheet_is_known(name: str) -> None:
    assert not is_cell(name)


@settings(deadline=None)  # of its examples, on a busy machine
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A1", "A2", "B1", "B2"]),
            st.sampled_from(["", "1", "x", "=A1", "=A2+1", "=B1&B2", "=SUM(A1:B2)", "=B2*2", "=1/A1", "=("]),
        ),
        max_size=12,
    )
)
def test_a_sheet_edited_in_steps_shows_what_one_loaded_at_once_shows(
    edits: list[tuple[str, str]],
) -> None:
    book = Book({})
    texts: dict[str, str] = {}
    for cell, text in edits:
        book.enter(cell, text)
        texts[cell] = text
        texts = {name: content for name, content in texts.items() if content}
        assert book.shown() == Book(texts).shown()
