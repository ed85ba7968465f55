"""Pages of a namespace's objects, joined from all workers' answers."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from typing import Any

import pytest

from perdure.errors import InvalidArgument, UnknownNamespace
from perdure.ids import ObjectId, id_from_name, new_unique_id
from perdure.listing import ListedObject, Listing, merge_listings, next_cursor


def row(name: str) -> list[Any]:
    """As a worker answers: position, id, name, size, whether live, next alarm."""
    return [b"\x01" + name.encode(), id_from_name("Counter", name).key, name, 100, False, None]


def unique_row() -> list[Any]:
    key = new_unique_id("Counter").key
    return [b"\x00" + key, key, None, 100, False, None]


def page_of(worker: list[list[Any]], cursor: bytes, limit: int) -> list[Any]:
    """What a worker that holds these rows answers."""
    rows = [entry for entry in sorted(worker) if entry[0] > cursor]
    return [len(rows) > limit, rows[:limit], True]


def all_pages(workers: list[list[list[Any]]], limit: int) -> list[Listing]:
    pages: list[Listing] = []
    cursor: str | None = None
    while not pages or cursor is not None:
        position = next_cursor(cursor)
        page = merge_listings([page_of(rows, position, limit) for rows in workers], limit, "Counter")
        pages.append(page)
        cursor = page.cursor
    return pages


def test_a_page_has_the_objects_of_all_workers_unique_ids_first_then_names_in_byte_order() -> None:
    names = ["b", "a", "\u00e4", "\uffff", "\U00010000", "Z"]
    alone = unique_row()
    workers = [sorted([alone, row("b"), row("a")]), sorted(row(name) for name in names[2:])]
    page = merge_listings([[False, rows, True] for rows in workers], 10, "Counter")
    assert page.names == ["Z", "a", "b", "\u00e4", "\uffff", "\U00010000"]
    assert (page.ids[0], page.ids[0].name) == (ObjectId(alone[1]), None)
    assert page.ids[1] == id_from_name("Counter", "Z")
    assert page.cursor is None


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 10, 100])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_pages_together_hold_every_object_once_and_in_order(workers: int, limit: int) -> None:
    chance = random.Random(limit * 10 + workers)
    rows: list[list[list[Any]]] = [[] for _ in range(workers)]
    for number in range(30):
        rows[chance.randrange(workers)].append(row(f"object-{number:02}"))
    pages = all_pages(rows, limit)
    assert [name for page in pages for name in page.names] == [f"object-{number:02}" for number in range(30)]
    assert all(len(page.ids) <= limit for page in pages)
    assert pages[-1].cursor is None


@pytest.mark.parametrize("seed", range(20))
def test_workers_that_answer_less_than_they_were_asked_for_hide_no_object(seed: int) -> None:
    chance = random.Random(seed)
    workers: list[list[list[Any]]] = [[], [], []]
    for number in range(40):
        chance.choice(workers).append(row(f"object-{number:02}"))
    found: list[str] = []
    cursor: str | None = None
    while not found or cursor is not None:
        answers = []
        for rows in workers:
            left = [entry for entry in sorted(rows) if entry[0] > next_cursor(cursor)]
            count = min(10, chance.randint(1, 5))
            answers.append([len(left) > count, left[:count], True])
        page = merge_listings(answers, 10, "Counter")
        assert page.names, "a page before the end is never empty"
        found += page.names
        cursor = page.cursor
    assert found == [f"object-{number:02}" for number in range(40)]


def test_an_entry_tells_size_life_and_the_next_alarm_in_utc() -> None:
    plain, alarmed = row("a"), [*row("b")[:3], 12_345, True, 1_700_000_000_250, "of a newer worker"]
    page = merge_listings([[False, [plain, alarmed], True]], 10, "Counter")
    assert page.entries[0] == ListedObject(id_from_name("Counter", "a"), 100, False, None)
    second = page.entries[1]
    assert (second.name, second.size_bytes, second.live) == ("b", 12_345, True)
    assert second.next_alarm == datetime(2023, 11, 14, 22, 13, 20, 250_000, UTC)
    assert page.ids == [entry.id for entry in page.entries]


def test_a_namespace_without_objects_is_one_empty_page() -> None:
    answers = [[False, [], False], [False, [], True]]
    assert merge_listings(answers, 10, "Counter") == Listing([], None)


def test_a_namespace_that_no_worker_knows_is_an_error_and_no_empty_page() -> None:
    with pytest.raises(UnknownNamespace, match="'Conter'") as caught:
        merge_listings([[False, [], False], [False, [], False]], 10, "Conter")
    assert caught.value.namespace == "Conter"


def test_the_first_page_starts_before_everything() -> None:
    assert next_cursor(None) == next_cursor("") == b""


def test_a_cursor_stands_for_the_last_position_of_its_page() -> None:
    page = merge_listings([[False, [row("a"), row("b")], True]], 1, "Counter")
    assert page.names == ["a"]
    assert next_cursor(page.cursor) == row("a")[0]


@pytest.mark.parametrize("cursor", ["xyz", "0", "\u0660\u0660", 5, b"00", ["00"]])
def test_what_is_no_cursor_is_a_clear_error(cursor: Any) -> None:
    with pytest.raises(InvalidArgument, match="cursor"):
        next_cursor(cursor)
