"""From a URL's path to an object."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure_gateway.paths import place_of, raw_path_of


def test_namespace_name_and_rest_are_taken_apart() -> None:
    place = place_of(b"/Room/lobby/a%20b/c", "/objects")
    assert place is not None
    assert (place.namespace, place.name, place.unique) == ("Room", "lobby", "")
    assert (place.path, place.raw_path, place.root_path) == ("/a b/c", b"/a%20b/c", "/objects/Room/lobby")


@pytest.mark.parametrize("raw", [b"/Room/lobby", b"/Room/lobby/"])
def test_without_a_rest_the_path_is_a_slash(raw: bytes) -> None:
    place = place_of(raw)
    assert place is not None
    assert place.path == "/"


@pytest.mark.parametrize(
    "raw", [b"", b"/", b"/Room", b"/Room/", b"//x/y", b"Room/x", b"*", b"/Room/%ff/", b"/R/x/%c3"]
)
def test_what_names_no_object_is_no_place(raw: bytes) -> None:
    assert place_of(raw) is None


@given(st.text(min_size=1).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text)))
def test_every_name_can_be_written_and_comes_back_as_it_is(name: str) -> None:
    place = place_of(f"/N/{quote(name, safe='')}/rest/".encode())
    assert place is not None
    assert place.path == "/rest/"
    assert place.name == name or (place.unique and name == "~" + name[1:])


def test_a_unique_id_is_known_by_its_tilde_and_its_digits() -> None:
    place = place_of(b"/N/~" + b"aB" * 32 + b"/")
    assert place is not None
    assert (place.name, place.unique) == ("", "ab" * 32)
    for name in (b"~abc", b"~" + b"g" * 64, b"%7e" + b"a" * 64):
        other = place_of(b"/N/" + name)
        assert other is not None
        assert other.unique == ""


def test_the_place_of_a_mount_is_left_out_however_it_was_escaped() -> None:
    scope = {"path": "/my app/N/x", "raw_path": b"/my%20app/N/x", "root_path": "/my app"}
    assert raw_path_of(scope) == b"/N/x"
    assert raw_path_of({"path": "/a/b/N/x/y", "root_path": "/a/b"}) == b"/N/x/y"
    assert raw_path_of({"path": "/N/ä b", "raw_path": None}) == b"/N/%C3%A4%20b"


def test_a_query_in_the_raw_path_is_no_part_of_it() -> None:
    assert raw_path_of({"path": "/N/x", "raw_path": b"/N/x?a=/b"}) == b"/N/x"
