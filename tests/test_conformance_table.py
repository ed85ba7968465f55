"""docs/conformance.md names, for each behaviour that Perdure promises, the tests that hold it.

This file holds the table to the tree: every named test exists, every row of `REQUIRED` has one, and a
row marked "later" has none, so that a behaviour without proof is visible.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "conformance.md"
ROWS = 90
REQUIRED = frozenset(range(1, ROWS + 1))
"""Rows that must have a test now; the others belong to features that come later."""


@dataclass(frozen=True)
class Row:
    """One line of the table; `tests` are ``path::name``, `later` says that the feature is not there yet."""

    number: int
    behaviour: str
    tests: tuple[str, ...]
    later: bool


def parse_table(text: str) -> list[Row]:
    """The rows of all tables in `text` whose first cell is a number.

    Tests are separated by ``<br>``, commas or spaces, with or without backticks; other words in the
    cell (such as "later") are not tests.
    """
    rows = []
    for line in text.splitlines():
        # A pipe inside a cell is written \| in Markdown.
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())]
        if len(cells) != 5 or cells[0] or cells[4] or not cells[1].isdigit():
            continue
        words = re.split(r"<br\s*/?>|[,\s]", cells[3].replace("`", " "))
        tests = tuple(word for word in words if "::" in word)
        rows.append(Row(int(cells[1]), cells[2], tests, later="later" in words))
    return rows


def missing_test(reference: str, root: Path) -> str | None:
    """Why ``path::test_name`` (or ``path::TestClass::test_name``) names no test; None when it does."""
    path_text, *names = reference.split("::")
    path = root / path_text
    if not path.is_file():
        return f"there is no file {path_text}"
    body: list[ast.stmt] = ast.parse(path.read_text("utf-8")).body
    # Parameters in brackets are pytest's, not part of the function's name.
    *classes, function = [name.partition("[")[0] for name in names]
    for class_name in classes:
        body = next((n.body for n in body if isinstance(n, ast.ClassDef) and n.name == class_name), [])
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    if not function.startswith("test"):
        return f"{function} is not the name of a test"
    return None if function in functions else f"{path_text} has no test {function}"


def fail_with(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def rows_of_table() -> list[Row]:
    return parse_table(TABLE.read_text("utf-8"))


def test_the_table_has_every_row_once_and_in_order() -> None:
    assert [row.number for row in rows_of_table()] == list(range(1, ROWS + 1))
    assert all(row.behaviour for row in rows_of_table())


def test_every_test_that_the_table_names_exists() -> None:
    fail_with(
        [
            f"docs/conformance.md, row {row.number}: {reason}"
            for row in rows_of_table()
            for reference in row.tests
            if (reason := missing_test(reference, ROOT))
        ]
    )


def test_every_required_row_has_at_least_one_test() -> None:
    fail_with(
        [
            f"docs/conformance.md, row {row.number} ({row.behaviour}): no test is named"
            for row in rows_of_table()
            if row.number in REQUIRED and not row.tests
        ]
    )


def test_a_row_is_marked_later_exactly_when_it_has_no_test() -> None:
    fail_with(
        [
            f"docs/conformance.md, row {row.number}: name a test or say later, one of the two"
            for row in rows_of_table()
            if row.number not in REQUIRED and row.later == bool(row.tests)
        ]
        + [
            f"docs/conformance.md, row {row.number}: this row is required now, it cannot be later"
            for row in rows_of_table()
            if row.number in REQUIRED and row.later
        ]
    )


def test_the_parser_reads_several_tests_and_ignores_other_lines() -> None:
    text = (
        "| row | behaviour | tests |\n|---|---|---|\n"
        "| 1 | get \\| put | `tests/a.py::test_x`<br>`tests/b.py::test_y`, tests/c.py::test_z |\n"
        "| 2 | alarms | later |\n| 3 | nothing yet | |\nprose\n"
    )
    assert parse_table(text) == [
        Row(1, "get \\| put", ("tests/a.py::test_x", "tests/b.py::test_y", "tests/c.py::test_z"), False),
        Row(2, "alarms", (), True),
        Row(3, "nothing yet", (), False),
    ]


def test_a_named_test_must_be_a_test_function_of_that_file(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text(
        "def test_x(): ...\nasync def test_y(): ...\ndef helper(): ...\n"
        "class TestZ:\n    def test_inside(self): ...\n"
    )
    assert missing_test("test_a.py::test_x", tmp_path) is None
    assert missing_test("test_a.py::test_y[case-1]", tmp_path) is None
    assert missing_test("test_a.py::TestZ::test_inside", tmp_path) is None
    assert missing_test("test_a.py::test_inside", tmp_path) == "test_a.py has no test test_inside"
    assert missing_test("test_a.py::helper", tmp_path) == "helper is not the name of a test"
    assert missing_test("test_b.py::test_x", tmp_path) == "there is no file test_b.py"
