"""`delete_all`, and the names under which objects are listed."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import RemoteError
from perdure.ids import id_from_name, new_unique_id
from perdure_storage import keys
from worker.host_scene import key_of
from worker.store import Store

# --- delete_all


def test_delete_all_removes_values_fields_and_name_in_one_commit(make_scene: Any) -> None:
    scene = make_scene(Store)
    scene.call(Store, "a", "set", 5)
    scene.call(Store, "a", "append", 1)
    scene.call(Store, "a", "put", "k", 1)
    scene.call(Store, "b", "set", 1)
    before = scene.committer.durable
    assert scene.call(Store, "a", "delete_all", "") == (0, [], {})
    assert scene.committer.durable == before + 1
    assert scene.listed(Store) == [(key_of(Store, "b"), "b")]
    prefix = scene.resident(Store, "a").row_prefix()
    assert scene.disk.between(prefix, prefix + b"\xff") == []
    assert scene.call(Store, "a", "get") == (0, [])


def test_delete_all_and_then_a_raise_restores_everything(make_scene: Any) -> None:
    scene = make_scene(Store)
    scene.call(Store, "a", "set", 5)
    scene.call(Store, "a", "append", 1)
    scene.call(Store, "a", "put", "k", 1)
    with pytest.raises(RemoteError, match="undone"):
        scene.call(Store, "a", "delete_all", "raise")
    assert scene.call(Store, "a", "get") == (5, [1])
    assert scene.call(Store, "a", "read", "k") == 1
    assert scene.listed(Store) == [(key_of(Store, "a"), "a")]
    scene.call(Store, "a", "set", 6)
    assert make_scene(Store, disk=scene.disk).call(Store, "a", "get") == (6, [1])


@pytest.mark.parametrize(
    ("after", "fields", "values"), [("put", {}, {"later": 1}), ("field", {"value": 8}, {})]
)
def test_what_is_written_after_delete_all_stays_and_the_object_is_listed(
    make_scene: Any, after: str, fields: dict[str, Any], values: dict[str, Any]
) -> None:
    scene = make_scene(Store)
    scene.call(Store, "a", "set", 5)
    scene.call(Store, "a", "put", "k", 1)
    scene.call(Store, "a", "delete_all", after)
    assert (scene.fields(Store, "a"), scene.values(Store, "a")) == (fields, values)
    assert scene.listed(Store) == [(key_of(Store, "a"), "a")]


def test_delete_all_reaches_what_is_still_on_its_way_to_the_disk(make_scene: Any) -> None:
    scene = make_scene(Store)
    with scene.one_message():
        scene.start(Store, "a", "set", 5)
        scene.start(Store, "a", "put", "k", 1)
        scene.start(Store, "a", "delete_all", "")
    scene.commit()
    scene.call(Store, "a", "put_and_delete_all", 6)
    assert scene.listed(Store) == []
    assert (scene.fields(Store, "a"), scene.values(Store, "a")) == ({}, {})


# --- names


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("write", ["set", "put"])
def test_an_object_first_addressed_by_id_is_listed_by_name_once_its_name_is_known(
    make_scene: Any, restart: bool, write: str
) -> None:
    scene = make_scene(Store)
    by_id = id_from_name("Store", "a")
    nameless = type(by_id)(by_id.key)
    args = (1,) if write == "set" else ("k", 1)
    more = (2,) if write == "set" else ("k", 2)
    scene.call(Store, nameless, write, *args)
    assert scene.listed(Store) == [(by_id.key, None)]
    if restart:
        scene = make_scene(Store, disk=scene.disk)
    scene.call(Store, "a", "get")
    assert scene.listed(Store) == [(by_id.key, None)]
    scene.call(Store, "a", write, *more)
    assert scene.listed(Store) == [(by_id.key, "a")]
    assert scene.rows(Store, "a", keys.META) == {"": {"name": "a"}}


@pytest.mark.parametrize("storage_first", [False, True])
@pytest.mark.parametrize("written_as_named", [False, True])
def test_delete_all_finds_an_object_under_its_name_and_under_its_id(
    make_scene: Any, storage_first: bool, written_as_named: bool
) -> None:
    scene = make_scene(Store)
    nameless = type(id_from_name("Store", "a"))(id_from_name("Store", "a").key)
    scene.call(Store, nameless, *(("put", "k", 1) if storage_first else ("set", 1)))
    scene.call(Store, "a", "get")
    if written_as_named:
        scene.call(Store, "a", "set", 2)
    scene.call(Store, "a", "delete_all", "")
    assert scene.listed(Store) == []
    scene.call(Store, "a", "set", 3)
    assert scene.listed(Store) == [(nameless.key, "a")]


def test_a_unique_object_is_listed_by_its_id(make_scene: Any) -> None:
    scene = make_scene(Store)
    unique = new_unique_id("Store")
    scene.call(Store, unique, "set", 1)
    assert scene.listed(Store) == [(unique.key, None)]
