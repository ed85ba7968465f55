"""`version` and `on_migrate`: when it runs, what is on disk at which moment, and what failures leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from perdure import DurableObject, Limits, RemoteError, StorageError, durable
from perdure.ids import new_unique_id
from perdure_storage import keys
from perdure_storage.memory import MemoryDisk
from worker.host_scene import Scene, take_time

LOG: list[str] = []
GATE: list[asyncio.Event] = []
FAILURES: list[str] = []


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    GATE[:] = [asyncio.Event()]
    yield
    LOG.clear()
    FAILURES.clear()


class Old(DurableObject, namespace="Account"):
    """Version 1, as first deployed."""

    cents: int = durable(0)
    owner: str = durable("")
    note: str = durable("")

    async def set(self, cents: int, owner: str) -> None:
        self.cents, self.owner, self.note = cents, owner, "kept"
        self.storage.put("history", [cents])

    async def drop(self) -> None:
        await self.storage.delete_all()


class Firmware(DurableObject):
    """The name `version` is the class's own here."""

    version: int = durable(0)

    async def flash(self, version: int) -> int:
        self.version = version
        return self.version


class Document(DurableObject):
    async def version(self) -> str:
        return "3rd edition"


class New(DurableObject, namespace="Account"):
    """Version 2: another field for the amount, a list instead of one owner."""

    version = 2
    euros: float = durable(0.0)
    owner: list[str] = durable(default_factory=list)

    def __init__(self) -> None:
        LOG.append("init")

    async def on_migrate(self, old_version: int) -> None:
        LOG.append(f"migrate {old_version} {sorted(self.ctx.old_fields)}")
        old = self.ctx.old_fields
        self.euros = old.pop("cents", 0) / 100
        if "owner" in old:
            self.owner = [old["owner"]]
        history = await self.storage.get("history", [])
        self.storage.put("history", [cents / 100 for cents in history])
        how = FAILURES.pop(0) if FAILURES else ""
        if how == "wait":
            await GATE[0].wait()
        elif how == "raise":
            raise LookupError("not today")
        elif how == "abort":
            self.ctx.abort("never mind")
        elif how == "sync":
            await self.storage.sync()
        elif how == "call":
            await self.ctx.get(New, "other").get()
        elif how == "unset":
            del self.owner
        elif how == "bad":
            self.euros = "much"  # type: ignore[assignment]
        elif how == "long":
            await take_time(1_000)
        elif how == "delete":
            await self.storage.delete_all()

    def on_start(self) -> None:
        LOG.append(f"start {self.euros}")

    async def get(self) -> tuple[float, list[str]]:
        LOG.append("turn")
        return self.euros, self.owner

    async def ask(self) -> None:
        self.ctx.old_fields.clear()


class Raised(DurableObject, namespace="Account"):
    """A higher version that nothing needs to be done for."""

    version = 3
    cents: int = durable(0)
    owner: str = durable("")
    note: str = durable("")

    async def get(self) -> int:
        return self.cents

    async def set(self, cents: int) -> None:
        self.cents = cents


class Typed(DurableObject, namespace="Account"):
    """Changes the type of a field and forgets to say how."""

    version = 2
    cents: str = durable("")

    def on_migrate(self, old_version: int) -> None:
        LOG.append(f"migrate {old_version}")
        if FAILURES:
            self.cents = f"{self.ctx.old_fields['cents']} cents"

    async def get(self) -> str:
        return self.cents


class Idle(DurableObject, namespace="Account"):
    version = 2
    cents: int = durable(0)
    owner: str = durable("")
    note: str = durable("")

    async def on_migrate(self, old_version: int) -> None:
        LOG.append(f"migrate {old_version} {await self.storage.get('history')}")

    async def look(self) -> None:
        pass


@pytest.fixture
def old_disk(make_scene: Any) -> Callable[..., MemoryDisk]:
    """A disk on which an object of version 1 is stored."""

    def make(*names: Any) -> MemoryDisk:
        scene: Scene = make_scene(Old)
        for name in names or ("a",):
            scene.call(Old, name, "set", 1250, "ann")
        return scene.disk

    return make


def meta(scene: Scene, name: Any = "a") -> Any:
    return scene.rows("Account", name, keys.META).get("")


# --- what runs


def test_an_older_object_is_migrated_once_before_its_start(make_scene: Any, old_disk: Any) -> None:
    scene = make_scene(New, disk=old_disk())
    assert scene.call(New, "a", "get") == (12.5, ["ann"])
    assert LOG == ["init", "migrate 1 ['cents', 'note', 'owner']", "init", "start 12.5", "turn"]
    assert scene.fields(New, "a") == {"euros": 12.5, "owner": ["ann"], "note": "kept"}
    assert scene.values(New, "a") == {"history": [12.5]}
    assert meta(scene) == {"name": "a", "version": 2}
    LOG.clear()
    restarted = make_scene(New, disk=scene.disk)
    assert restarted.call(New, "a", "get") == (12.5, ["ann"])
    assert LOG == ["init", "start 12.5", "turn"]


def test_a_new_object_is_not_migrated_and_stores_nothing(make_scene: Any) -> None:
    scene = make_scene(New)
    assert scene.call(New, "a", "get") == (0.0, [])
    assert LOG == ["init", "start 0.0", "turn"]
    assert meta(scene) is None


def test_an_object_that_was_deleted_is_a_new_one(make_scene: Any, old_disk: Any) -> None:
    scene = make_scene(Old, disk=old_disk())
    scene.call(Old, "a", "drop")
    migrated = make_scene(New, disk=scene.disk)
    migrated.call(New, "a", "get")
    assert LOG == ["init", "start 0.0", "turn"]


def test_the_version_is_stored_with_the_name_of_a_new_object(make_scene: Any) -> None:
    scene = make_scene(Raised)
    scene.call(Raised, "a", "set", 5)
    assert meta(scene) == {"name": "a", "version": 3}
    first = make_scene(Old)
    first.call(Old, "a", "set", 5, "ann")
    assert meta(first) == {"name": "a"}


def test_the_migration_is_on_disk_before_anything_else_runs(make_scene: Any, old_disk: Any) -> None:
    scene = make_scene(New, disk=old_disk())
    call = scene.start(New, "a", "get")
    assert LOG[-1].startswith("migrate")
    assert meta(scene) == {"name": "a"}
    before = scene.disk.copy()
    scene.commit_one()
    assert meta(scene) == {"name": "a", "version": 2}
    assert call.result() == (12.5, ["ann"])
    LOG.clear()
    again = make_scene(New, disk=before)  # the crash came first: as if nothing had been
    assert again.call(New, "a", "get") == (12.5, ["ann"])
    assert LOG[1].startswith("migrate 1")


def test_calls_wait_for_a_migration_that_takes_its_time(make_scene: Any, old_disk: Any) -> None:
    FAILURES[:] = ["wait"]
    scene = make_scene(New, disk=old_disk())
    calls = [scene.start(New, "a", "get") for _ in range(3)]
    scene.commit()
    assert "turn" not in LOG
    GATE[0].set()
    scene.commit()
    assert [call.result() for call in calls] == [(12.5, ["ann"])] * 3
    assert len([line for line in LOG if line.startswith("migrate")]) == 1


def test_a_class_without_on_migrate_records_its_version_with_the_next_write(
    make_scene: Any, old_disk: Any
) -> None:
    scene = make_scene(Raised, disk=old_disk())
    assert scene.call(Raised, "a", "get") == 1250
    assert meta(scene) == {"name": "a"}
    scene.call(Raised, "a", "set", 7)
    assert meta(scene) == {"name": "a", "version": 3}
    assert scene.fields(Raised, "a") == {"cents": 7, "owner": "ann", "note": "kept"}


def test_an_object_stored_without_its_name_keeps_one_row_in_the_listing(make_scene: Any) -> None:
    scene = make_scene(Old)
    item = scene.item(Old, "a", "set", 5, "ann")
    item[3] = None  # a caller that knows the id alone
    scene.send(item)
    scene.commit()
    assert [name for _, name in scene.listed("Account")] == [None]
    later = make_scene(Raised, disk=scene.disk)
    item = later.item(Raised, "a", "get")
    item[3] = None
    later.send(item)
    later.call(Raised, "a", "set", 6)
    assert [name for _, name in later.listed("Account")] == ["a"]
    assert meta(later) == {"name": "a", "version": 3}


def test_unique_objects_are_migrated_too(make_scene: Any, old_disk: Any) -> None:
    unique = new_unique_id("Account")
    scene = make_scene(New, disk=old_disk(unique))
    assert scene.call(New, unique, "get") == (12.5, ["ann"])
    assert meta(scene, unique) == {"name": None, "version": 2}


def test_a_migration_that_changes_nothing_runs_once_too(make_scene: Any, old_disk: Any) -> None:
    scene = make_scene(Idle, disk=old_disk())
    scene.call(Idle, "a", "look")
    assert meta(scene) == {"name": "a", "version": 2}
    make_scene(Idle, disk=scene.disk).call(Idle, "a", "look")
    assert LOG == ["migrate 1 [1250]"]


# --- fields


def test_a_field_whose_type_changed_must_be_set(make_scene: Any, old_disk: Any) -> None:
    disk = old_disk()
    scene = make_scene(Typed, disk=disk)
    error = scene.start(Typed, "a", "get").error()
    assert "the stored value of cents is not what its annotation says now" in str(error)
    assert scene.fields(Typed, "a")["cents"] == 1250
    assert meta(scene) == {"name": "a"}
    FAILURES[:] = ["set it"]
    scene.advance(1)
    assert scene.call(Typed, "a", "get") == "1250 cents"
    assert scene.fields(Typed, "a")["cents"] == "1250 cents"


def test_what_is_not_taken_out_of_the_old_fields_stays(make_scene: Any, old_disk: Any) -> None:
    scene = make_scene(New, disk=old_disk())
    scene.call(New, "a", "get")
    assert "note" in scene.fields(New, "a")
    assert "cents" not in scene.fields(New, "a")


def test_old_fields_are_there_in_on_migrate_only(make_scene: Any) -> None:
    scene = make_scene(New)
    with pytest.raises(RemoteError, match="in on_migrate only"):
        scene.call(New, "a", "ask")


def test_a_migration_may_delete_everything(make_scene: Any, old_disk: Any) -> None:
    FAILURES[:] = ["delete"]
    scene = make_scene(New, disk=old_disk())
    assert scene.call(New, "a", "get") == (0.0, [])
    assert scene.fields(New, "a") == scene.values(New, "a") == {}
    assert meta(scene) is None
    assert scene.listed("Account") == []


# --- failures


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("raise", "LookupError: not today"),
        ("abort", "never mind"),
        ("sync", "on_migrate is one batch with the new version"),
        ("call", "on_migrate is one batch with the new version"),
        ("unset", "the stored value of owner is not what its annotation says now"),
        ("bad", "euros cannot be saved"),
        ("long", "ran longer than 5 s"),
    ],
)
def test_a_migration_that_fails_leaves_the_object_as_it_was_and_says_so(
    make_scene: Any, old_disk: Any, how: str, says: str
) -> None:
    FAILURES[:] = [how]
    disk = old_disk()
    before = disk.between(keys.OBJECTS_REGION, b"\xff")
    scene = make_scene(New, disk=disk, limits=Limits(turn_max_s=5))
    with scene.one_message():
        calls = [scene.start(New, "a", "get") for _ in range(2)]
    scene.advance(6)
    scene.commit()
    for call in calls:
        error = call.error()
        assert isinstance(error, RemoteError)
        assert "Account/a: on_migrate from version 1 to 2 failed, and the object is as it was" in str(error)
        assert says in str(error)
    assert disk.between(keys.OBJECTS_REGION, b"\xff") == before
    scene.advance(1)
    assert scene.call(New, "a", "get") == (12.5, ["ann"])


def test_failing_migrations_are_tried_again_with_pauses(make_scene: Any, old_disk: Any) -> None:
    FAILURES[:] = ["raise"] * 1_000
    scene = make_scene(New, disk=old_disk(), limits=Limits(start_backoff_max_s=0.4))
    for _ in range(100):
        assert isinstance(scene.start(New, "a", "get").error(), RemoteError)
        scene.advance(0.01)
    tries = len([line for line in LOG if line.startswith("migrate")])
    assert 4 <= tries <= 7


def test_an_object_of_a_newer_version_is_refused_and_stays_as_it_is(make_scene: Any, old_disk: Any) -> None:
    scene = make_scene(New, disk=old_disk())
    scene.call(New, "a", "get")
    disk = scene.disk.copy()
    before = disk.between(keys.OBJECTS_REGION, b"\xff")
    back = make_scene(Old, disk=disk)
    refused = back.start(Old, "a", "set", 1, "eve")
    back.commit()
    error = refused.error()
    assert type(error) is StorageError
    assert "Account/a was stored by version 2 of its class, and this one has version 1" in str(error)
    assert disk.between(keys.OBJECTS_REGION, b"\xff") == before
    assert back.call(Old, "b", "set", 1, "eve") is None


def test_a_durable_field_or_a_method_named_version_works_like_any_other(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(Firmware, Document)
    assert scene.call(Firmware, "f", "flash", 7) == 7
    assert scene.fields(Firmware, "f") == {"version": 7}
    assert scene.call(Document, "d", "version") == "3rd edition"
