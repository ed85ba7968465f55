"""`storage.snapshot()`: one instant over many awaits, and its end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure.errors import StorageError
from perdure_storage.snapshot import SnapshotView, close_abandoned
from storage.storage_host import Host, now

USES: dict[str, Callable[[SnapshotView], Any]] = {
    "get": lambda view: now(view.get("k")),
    "get_many": lambda view: now(view.get_many([])),
    "list": lambda view: now(view.list()),
    "with": lambda view: view.__enter__(),
}


def test_a_snapshot_shows_what_was_there_whatever_is_written_and_committed_later(host: Host) -> None:
    host.storage.put_many({"deleted later": 1, "durable": 1, "replaced later": 1})
    host.commit()
    host.storage.put("on its way", 2)
    host.storage.delete("durable")
    host.join()
    host.storage.put("not committed", 3)
    expected = {"deleted later": 1, "not committed": 3, "on its way": 2, "replaced later": 1}
    with host.storage.snapshot() as view:
        host.storage.put("replaced later", 9)
        host.storage.delete_many(["deleted later", "not committed", "on its way"])
        host.storage.put("new", 9)
        for step in (lambda: None, host.join, host.settle_all, lambda: now(host.storage.delete_all())):
            step()
            assert now(view.list()) == expected
            assert now(view.get("not committed")) == 3
            assert now(view.get("durable", "missing")) == "missing"
            assert now(view.get_many(["new", "replaced later"])) == {"replaced later": 1}


@pytest.mark.parametrize("reverse", [False, True])
def test_pages_of_a_snapshot_are_of_one_instant_although_storage_changes_between_them(
    host: Host, reverse: bool
) -> None:
    names = [f"k{number:02}" for number in range(20)]
    host.storage.put_many(dict.fromkeys(names[::2], 0))
    host.commit()
    host.storage.put_many(dict.fromkeys(names[1::2], 0))
    pages: list[str] = []
    with host.storage.snapshot() as view:
        page = now(view.list(limit=3, reverse=reverse, keys_only=True))
        while page:
            pages += page
            host.storage.delete_many(names[: len(pages)])
            host.storage.put(pages[-1] + "!", 1)
            host.commit()
            page = now(view.list(limit=3, reverse=reverse, keys_only=True, cursor=pages[-1]))
    assert pages == (names[::-1] if reverse else names)


def test_a_snapshot_shows_nothing_of_an_open_transaction(host: Host) -> None:
    async def use() -> None:
        async with host.storage.transaction() as txn:
            txn.put("a", 1)
            with host.storage.snapshot() as view:
                assert await view.list() == {}

    now(use())


def test_a_snapshot_can_not_write(host: Host) -> None:
    public = {name for name in dir(host.storage.snapshot()) if name[0] != "_"}
    assert public == {"close", "get", "get_many", "list"}


@pytest.mark.parametrize("use", USES)
def test_a_snapshot_is_of_no_use_after_its_end(host: Host, use: str) -> None:
    with host.storage.snapshot() as view:
        pass
    view.close()
    with pytest.raises(StorageError, match="has ended"):
        USES[use](view)


def test_a_closed_snapshot_lets_go_of_the_engine_and_of_what_it_copied(host: Host) -> None:
    host.storage.put("a", 1)
    with host.storage.snapshot() as view:
        assert host.backend.open_views == {view}
    assert not host.backend.open_views
    assert not view._rows_over
    with pytest.raises(RuntimeError):
        view._snapshot.get(b"k")


def test_an_abandoned_snapshot_is_closed_when_its_turn_has_ended_and_not_before(host: Host) -> None:
    running = [True]
    mine = SnapshotView(host.backend, host.prefix, {}, lambda: running[0])
    others = SnapshotView(host.backend, host.prefix, {}, lambda: True)
    close_abandoned(host.backend.open_views)
    assert now(mine.list()) == {}
    running[0] = False
    close_abandoned(host.backend.open_views)
    assert host.backend.open_views == {others}
    with pytest.raises(StorageError, match="has ended"):
        now(mine.list())
