"""Object ids: equal for equal names everywhere and for ever, checked, spread evenly over the slots."""

from __future__ import annotations

import enum
from hashlib import blake2b
from typing import Any

import pytest

from perdure.errors import InvalidArgument
from perdure.ids import (
    ObjectId,
    check_name,
    id_from_name,
    id_from_string,
    is_id_of,
    new_unique_id,
    slot_of,
)
from perdure.limits import Limits

NAME_BYTES_MAX = Limits().name_bytes_max

KNOWN = [
    ("Counter", "my-counter", "070a381d3a684b24c91829f95078fbaabffd248102de2c0f3552733460121683"),
    ("Counter", "other", "809b06dcc3cbee37298550599a8e0026da14d8f19ead30b97289afa4ee2d4a54"),
    ("rooms", "lobby", "0c99eec80921086dd00cb3cbc1d4fa1f9390b30acebc5d91028ae6c38076c378"),
    ("Counter", "\u00e4\u6f22\U0001f600", "ad496b17324f8ea288ed2622c9a88cdc76d8f8ec04962207c58bf1448b4bad5d"),
    ("A" * 64, "x" * 512, "031532e990d545b16c82bdce8cfa78aac568496cfd458b602838705d5d04cd25"),
]
"""(namespace, name, id): a client in another language must compute the same."""


class Room(enum.StrEnum):
    LOBBY = "lobby"


def independently(namespace: str, name: str) -> str:
    """The id as docs/PROTOCOL.md describes it, written down a second time."""
    head = blake2b(name.encode("utf-8"), digest_size=16, key=namespace.encode("utf-8")).digest()
    person = blake2b(namespace.encode("utf-8"), digest_size=16).digest()
    check = blake2b(head, digest_size=16, key=b"perdure.check", person=person).digest()
    return (head + check).hex()


@pytest.mark.parametrize(("namespace", "name", "known"), KNOWN)
def test_a_name_leads_to_the_same_id_for_ever(namespace: str, name: str, known: str) -> None:
    assert str(id_from_name(namespace, name)) == known == independently(namespace, name)


def test_the_same_name_twice_gives_equal_ids_and_another_namespace_another_one() -> None:
    first, second = id_from_name("Counter", "ada"), id_from_name("Counter", "ada")
    assert first == second
    assert hash(first) == hash(second)
    assert first != id_from_name("Counter", "bob")
    assert first != id_from_name("Account", "ada")


def test_unique_ids_never_are_equal() -> None:
    ids = {new_unique_id("Counter") for _ in range(10_000)}
    assert len(ids) == 10_000
    assert {unique.name for unique in ids} == {None}


def test_the_name_takes_no_part_in_equality() -> None:
    named = id_from_name("Counter", "ada")
    bare = id_from_string("Counter", str(named))
    assert (named.name, bare.name) == ("ada", None)
    assert named == bare
    assert len({named, bare}) == 1
    assert named != str(named)
    assert named != named.key


@pytest.mark.parametrize("make", [new_unique_id, lambda namespace: id_from_name(namespace, "ada")])
def test_an_id_survives_its_string_form(make: Any) -> None:
    made = make("Counter")
    text = str(made)
    assert len(text) == 64
    assert id_from_string("Counter", text) == made
    assert id_from_string("Counter", text.upper()) == made
    assert text in repr(made)


VALID = str(id_from_name("Counter", "ada"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (VALID[:-1], "64 hex digits"),
        (VALID + "0", "64 hex digits"),
        ("", "64 hex digits"),
        (None, "64 hex digits"),
        (bytes.fromhex(VALID), "64 hex digits"),
        (VALID[:-1] + "g", "only hex digits"),
        (VALID[:-1] + "\u0663", "only hex digits"),
        (VALID[:62] + "  ", "not made for namespace"),
        (VALID[:-1] + ("0" if VALID[-1] != "0" else "1"), "not made for namespace 'Counter'"),
        ("0" * 64, "not made for namespace"),
        (str(id_from_name("Account", "ada")), "not made for namespace 'Counter'"),
    ],
)
def test_what_is_no_id_of_the_namespace_is_a_clear_error(text: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        id_from_string("Counter", text)


def test_an_error_shows_no_more_of_a_wrong_id_than_one_line() -> None:
    with pytest.raises(InvalidArgument) as caught:
        id_from_string("Counter", "x" * 1_000_000)
    assert len(str(caught.value)) < 200


def test_bytes_of_another_length_or_namespace_are_no_id() -> None:
    key = id_from_name("Counter", "ada").key
    assert is_id_of("Counter", key)
    assert not is_id_of("Account", key)
    assert not is_id_of("Counter", key[:-1])
    assert not is_id_of("Counter", key + b"\0")
    assert not is_id_of("Counter", b"")


@pytest.mark.parametrize("name", ["a", "\u00e4" * (NAME_BYTES_MAX // 2), "x" * NAME_BYTES_MAX, " ", "a/b\0c"])
def test_any_text_up_to_the_limit_is_a_name(name: str) -> None:
    assert check_name(name) == name
    assert id_from_name("Counter", name).name == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "1 to 512 bytes"),
        ("x" * (NAME_BYTES_MAX + 1), "this one 513"),
        ("\u00e4" * (NAME_BYTES_MAX // 2 + 1), "this one 514"),
        ("\ud800", "valid Unicode"),
        (b"ada", "not bytes"),
        (7, "not int"),
        (None, "not NoneType"),
    ],
)
def test_what_cannot_name_an_object_is_a_clear_error(name: Any, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        id_from_name("Counter", name)


def test_the_name_of_an_enum_member_is_its_plain_value() -> None:
    made = id_from_name("rooms", Room.LOBBY)
    assert made == id_from_name("rooms", "lobby")
    assert type(made.name) is str
    assert made.name == "lobby"


def test_the_slot_is_the_first_four_bytes_modulo_the_number_of_slots() -> None:
    assert slot_of(bytes([0, 0, 4, 7]) + bytes(28), 1024) == 7
    assert slot_of(b"\xff" * 32, 1024) == 1023
    assert slot_of(b"\xff\xff\xff\xfe" + bytes(28), 1000) == 0xFFFFFFFE % 1000


def test_names_spread_evenly_over_the_slots() -> None:
    counts = [0] * 64
    for number in range(64_000):
        counts[slot_of(id_from_name("Counter", f"object-{number}").key, 64)] += 1
    # 1,000 expected in each; a sixth standard deviation away is one chance in a billion.
    assert min(counts) > 810
    assert max(counts) < 1190


def test_an_id_is_shown_with_its_name() -> None:
    assert repr(ObjectId(b"\x01" * 32, "ada")) == f"ObjectId('{'01' * 32}', name='ada')"
