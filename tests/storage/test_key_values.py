"""`self.storage.list`: its options, its order, its limits and paging."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from perdure.errors import StorageError
from storage.storage_host import LIMITS, Host, now


def test_list_gives_a_dict_in_utf8_byte_order(host: Host) -> None:
    names = ["", "a", "a/b", "a\0", "b", "z", "\x7f", "\x80", "é", "\uffff", "\U00010000", "\U0010ffff"]
    for name in reversed(names):
        host.storage.put(name, name)
    expected = sorted(names, key=str.encode)
    assert list(now(host.storage.list()).items()) == [(name, name) for name in expected]
    host.commit()
    assert list(now(host.wake().list())) == expected
    assert list(now(host.storage.list(reverse=True))) == expected[::-1]
    assert now(host.storage.list(keys_only=True)) == expected


def test_list_takes_start_included_end_excluded_and_start_after_excluded(host: Host) -> None:
    host.storage.put_many(dict.fromkeys("abcde", 0))
    assert now(host.storage.list(start="b", end="d", keys_only=True)) == ["b", "c"]
    assert now(host.storage.list(start_after="b", end="d", keys_only=True)) == ["c"]
    assert now(host.storage.list(start_after="b", keys_only=True, reverse=True)) == ["e", "d", "c"]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"start": "a"}, ["b", "b1", "b2"]),
        ({"start_after": "a"}, ["b", "b1", "b2"]),
        ({"end": "d"}, ["b", "b1", "b2"]),
        ({"start": "b1", "end": "d"}, ["b1", "b2"]),
        ({"start_after": "b1", "end": "b2"}, []),
        ({"start": "a", "end": "b1"}, ["b"]),
    ],
)
def test_a_prefix_and_bounds_together_give_what_fits_both(
    host: Host, bounds: dict[str, str], expected: list[str]
) -> None:
    host.storage.put_many(dict.fromkeys(["a", "b", "b1", "b2", "c", "d"], 0))
    assert now(host.storage.list(prefix="b", **bounds, keys_only=True)) == expected


def test_a_prefix_of_the_highest_characters_still_has_an_end(host: Host) -> None:
    top = "\U0010ffff"
    host.storage.put_many({top: 1, top * 2: 2, top + "a": 3, "\uffff": 4})
    assert set(now(host.storage.list(prefix=top)).values()) == {1, 2, 3}
    assert set(now(host.storage.list(prefix=top * 2)).values()) == {2}
    assert set(now(host.storage.list(prefix="")).values()) == {1, 2, 3, 4}


def test_a_start_and_a_start_after_together_are_an_error(host: Host) -> None:
    with pytest.raises(StorageError, match="not both"):
        now(host.storage.list(start="a", start_after="b"))


@pytest.mark.parametrize("limit", [0, -1, 10_001, 1.5, "3"])
def test_a_limit_that_is_no_count_within_bounds_is_an_error(host: Host, limit: Any) -> None:
    with pytest.raises(StorageError, match="limit"):
        now(host.storage.list(limit=limit))


@pytest.mark.parametrize(
    "bounds",
    [
        {"start": "d", "end": "b"},
        {"start": "b", "end": "b"},
        {"prefix": "a", "start": "b"},
        {"prefix": "c", "end": "c"},
        {"start_after": "z"},
    ],
)
def test_bounds_that_contradict_each_other_give_nothing(host: Host, bounds: dict[str, str]) -> None:
    host.storage.put_many(dict.fromkeys("abcde", 0))
    host.join()
    for reverse in (False, True):
        assert now(host.storage.list(**bounds, reverse=reverse)) == {}


@pytest.mark.parametrize("option", ["start", "start_after", "end", "prefix", "cursor"])
def test_a_bound_that_is_no_text_is_an_error_that_names_it(host: Host, option: str) -> None:
    for wrong in (5, b"a", "\ud800"):
        with pytest.raises(StorageError, match=f"{option} "):
            now(host.storage.list(**{option: wrong}))


def test_more_entries_than_a_list_may_hold_are_an_error_unless_limited() -> None:
    host = Host(limits=replace(LIMITS, list_entries_max=5))
    host.storage.put_many(dict.fromkeys("abcde", 0))
    assert len(now(host.storage.list())) == 5
    host.storage.put("f", 0)
    for keys_only in (False, True):
        with pytest.raises(StorageError, match="cursor="):
            now(host.storage.list(keys_only=keys_only))
    assert len(now(host.storage.list(limit=5))) == 5


def test_more_bytes_than_a_list_may_hold_are_an_error() -> None:
    host = Host(list_bytes_max=1_000)
    host.storage.put_many({"a": bytes(400), "b": bytes(400), "c": bytes(400)})
    with pytest.raises(StorageError, match="1000 bytes"):
        now(host.storage.list())
    assert len(now(host.storage.list(limit=2))) == 2


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_pages_with_a_cursor_together_give_every_entry_once(host: Host, reverse: bool, size: int) -> None:
    expected = [f"k{number}" for number in range(7)]
    host.storage.put_many(dict.fromkeys([*expected, "a", "z"], 0))
    options: dict[str, Any] = {"prefix": "k", "reverse": reverse, "limit": size, "keys_only": True}
    page, pages = now(host.storage.list(**options)), []
    while page:
        pages += page
        page = now(host.storage.list(**options, cursor=pages[-1]))
    assert pages == (expected[::-1] if reverse else expected)


def test_a_cursor_narrows_bounds_and_never_widens_them(host: Host) -> None:
    host.storage.put_many(dict.fromkeys("abcdef", 0))
    assert now(host.storage.list(start="c", end="e", cursor="a", keys_only=True)) == ["c", "d"]
    assert now(host.storage.list(start="c", end="e", cursor="z", keys_only=True, reverse=True)) == ["d", "c"]
    assert now(host.storage.list(start="c", cursor="d", keys_only=True)) == ["e", "f"]


def test_what_a_list_gives_does_not_change_with_later_writes(host: Host) -> None:
    host.storage.put_many({"a": 1, "b": 2})
    host.commit()
    listed = now(host.storage.list())
    host.storage.delete("a")
    host.storage.put("c", 3)
    assert listed == {"a": 1, "b": 2}
