"""The rules of four in a row."""

from __future__ import annotations

import pytest

from game import COLUMNS, EMPTY, ROWS, winning_row


def board(**marks: list[tuple[int, int]]) -> str:
    places = [EMPTY] * (COLUMNS * ROWS)
    for mark, where in marks.items():
        for row, column in where:
            places[row * COLUMNS + column] = mark
    return "".join(places)


@pytest.mark.parametrize(
    "places",
    [
        [(5, 0), (5, 1), (5, 2), (5, 3)],
        [(5, 3), (5, 4), (5, 5), (5, 6)],
        [(2, 6), (3, 6), (4, 6), (5, 6)],
        [(0, 0), (1, 1), (2, 2), (3, 3)],
        [(2, 3), (3, 4), (4, 5), (5, 6)],
        [(5, 0), (4, 1), (3, 2), (2, 3)],
        [(3, 3), (2, 4), (1, 5), (0, 6)],
    ],
)
def test_four_in_a_row_win_in_every_direction_up_to_the_edges(places: list[tuple[int, int]]) -> None:
    assert sorted(winning_row(board(X=places))) == sorted(r * COLUMNS + c for r, c in places)


@pytest.mark.parametrize(
    "places",
    [
        [(5, 0), (5, 1), (5, 2)],
        [(5, 5), (5, 6), (4, 0), (4, 1)],
        [(5, 0), (5, 1), (5, 3), (5, 4)],
    ],
)
def test_less_or_a_row_over_the_edge_wins_nothing(places: list[tuple[int, int]]) -> None:
    assert winning_row(board(O=places)) == []


def test_a_mixed_row_wins_nothing() -> None:
    assert winning_row(board(X=[(5, 0), (5, 1), (5, 2)], O=[(5, 3)])) == []
