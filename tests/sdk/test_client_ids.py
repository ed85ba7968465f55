"""Ids that clients make without a cluster."""

from __future__ import annotations

import pytest

from perdure import DurableObject
from perdure.client_ids import ClientIds
from perdure.errors import InvalidArgument
from perdure.ids import id_from_name


class Room(DurableObject): ...


@pytest.mark.parametrize("namespace", [Room, "Room"])
def test_ids_come_from_a_class_or_its_namespaces_name(namespace: type | str) -> None:
    made = ClientIds()
    named = made.id_from_name(namespace, "lobby")
    assert named == id_from_name("Room", "lobby")
    assert made.id_from_string(namespace, str(named)) == named
    unique = made.new_unique_id(namespace)
    assert made.id_from_string(namespace, str(unique)) == unique
    assert unique != made.new_unique_id(namespace)


def test_an_id_of_another_namespace_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        ClientIds().id_from_string(Room, str(id_from_name("Hall", "lobby")))
