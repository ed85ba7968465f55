"""`storage.transaction()`: what it sees, who sees it, and what is left of it when it does not end well."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from perdure.errors import StorageError
from perdure_storage.object_storage import ObjectStorage
from perdure_storage.transaction import Transaction
from storage.storage_host import LIMITS, Host, now

USES: dict[str, Callable[[Transaction], Any]] = {
    "get": lambda txn: now(txn.get("k")),
    "get_many": lambda txn: now(txn.get_many([])),
    "list": lambda txn: now(txn.list()),
    "put": lambda txn: txn.put("k", 1),
    "put_many": lambda txn: txn.put_many({}),
    "delete": lambda txn: txn.delete("k"),
    "delete_many": lambda txn: txn.delete_many([]),
    "rollback": lambda txn: txn.rollback(),
    "nested": lambda txn: now(txn.transaction().__aenter__()),
}


class Undone(Exception):
    """Raised in a block that must leave no trace."""


def run(storage: ObjectStorage, block: Callable[[Transaction], Awaitable[Any]]) -> Any:
    """The result of `block` as the body of a transaction."""

    async def body() -> Any:
        async with storage.transaction() as txn:
            return await block(txn)

    return now(body())


def test_a_transaction_sees_its_own_writes_over_what_was_there(host: Host) -> None:
    host.storage.put_many({"durable": 1, "gone": 1})
    host.commit()
    host.storage.put_many({"on its way": 2, "replaced": 2})
    host.join()
    host.storage.put("not committed", 3)

    async def block(txn: Transaction) -> None:
        txn.put("own", 4)
        txn.put_many({"replaced": 4})
        assert txn.delete("gone")
        assert not txn.delete("gone")
        assert not txn.delete("never there")
        assert txn.delete_many(["on its way", "never there"]) == 1
        seen = {"durable": 1, "not committed": 3, "own": 4, "replaced": 4}
        assert await txn.list() == seen
        assert await txn.list(reverse=True, limit=2, keys_only=True) == ["replaced", "own"]
        assert await txn.list(prefix="o", start_after="on") == {"own": 4}
        assert await txn.get_many(["replaced", "gone", "durable"]) == {"durable": 1, "replaced": 4}
        assert [await txn.get(key, "missing") for key in ("own", "gone")] == [4, "missing"]

    run(host.storage, block)
    host.commit()
    assert now(host.wake().list()) == {"durable": 1, "not committed": 3, "own": 4, "replaced": 4}


def test_nothing_of_a_transaction_is_seen_outside_before_its_end_and_all_of_it_after(host: Host) -> None:
    host.storage.put_many({"a": 1, "b": 1})

    async def block(txn: Transaction) -> None:
        txn.put("a", 2)
        txn.delete("b")
        txn.put("c", 2)
        assert await host.storage.list() == {"a": 1, "b": 1}
        assert await host.storage.get("c") is None

    run(host.storage, block)
    assert now(host.storage.list()) == {"a": 2, "c": 2}


@pytest.mark.parametrize("error", [Undone("no"), asyncio.CancelledError(), KeyboardInterrupt()])
def test_whatever_is_raised_in_the_block_rolls_back_and_comes_out_and_earlier_writes_stay(
    host: Host, error: BaseException
) -> None:
    host.storage.put_many({"a": 1, "b": 1})

    async def block(txn: Transaction) -> None:
        txn.put_many({"a": 2, "c": 2})
        txn.delete("b")
        raise error

    with pytest.raises(type(error)) as caught:
        run(host.storage, block)
    assert caught.value is error
    assert now(host.storage.list()) == {"a": 1, "b": 1}
    host.commit()
    assert now(host.wake().list()) == {"a": 1, "b": 1}


def test_rollback_drops_the_writes_and_the_block_goes_on(host: Host) -> None:
    async def block(txn: Transaction) -> str:
        txn.put("a", 1)
        txn.rollback()
        host.storage.put("b", 1)
        with pytest.raises(StorageError, match="was rolled back"):
            txn.put("c", 1)
        return "ended well"

    assert run(host.storage, block) == "ended well"
    assert now(host.storage.list()) == {"b": 1}


def test_a_nested_rollback_keeps_the_work_of_the_outer_one(host: Host) -> None:
    async def block(txn: Transaction) -> None:
        txn.put_many({"a": 1, "b": 1})

        async def undone() -> None:
            async with txn.transaction() as inner:
                inner.put("a", 2)
                inner.delete("b")
                assert await inner.list() == {"a": 2}
                assert await txn.list() == {"a": 1, "b": 1}
                raise Undone

        with pytest.raises(Undone):
            await undone()
        assert await txn.list() == {"a": 1, "b": 1}
        async with txn.transaction() as inner:
            inner.put("c", 3)
            async with inner.transaction() as innermost:
                innermost.put("d", 4)
        assert await txn.list() == {"a": 1, "b": 1, "c": 3, "d": 4}
        assert await host.storage.list() == {}

    run(host.storage, block)
    assert now(host.storage.list()) == {"a": 1, "b": 1, "c": 3, "d": 4}


def test_an_outer_rollback_takes_what_nested_ones_had_finished(host: Host) -> None:
    async def block(txn: Transaction) -> None:
        async with txn.transaction() as inner:
            inner.put("a", 1)
        raise Undone

    with pytest.raises(Undone):
        run(host.storage, block)
    assert now(host.storage.list()) == {}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("end", ["well", "raise", "rollback"])
def test_a_transaction_is_of_no_use_after_its_end(host: Host, end: str, use: str) -> None:
    kept: list[Transaction] = []

    async def block(txn: Transaction) -> None:
        kept.append(txn)
        if end == "rollback":
            txn.rollback()
        if end == "raise":
            raise Undone

    try:
        run(host.storage, block)
    except Undone:
        assert end == "raise"
    with pytest.raises(StorageError, match="has ended" if end == "well" else "was rolled back"):
        USES[use](kept[0])
    assert now(host.storage.list()) == {}


@pytest.mark.parametrize("use", USES)
def test_a_transaction_is_of_no_use_before_its_block(host: Host, use: str) -> None:
    with pytest.raises(StorageError, match="has not begun"):
        USES[use](host.storage.transaction())
    assert not host.storage._dirty


def test_a_transaction_object_is_used_once(host: Host) -> None:
    txn = host.storage.transaction()

    async def use() -> None:
        async with txn:
            txn.put("a", 1)

    now(use())
    with pytest.raises(StorageError, match="used once"):
        now(use())


def test_a_second_transaction_beside_an_open_one_is_an_error_that_says_how_to_nest(host: Host) -> None:
    async def block(txn: Transaction) -> None:
        txn.put("a", 1)
        with pytest.raises(StorageError, match=r"txn\.transaction\(\)"):
            async with host.storage.transaction():
                raise AssertionError("it was opened")
        async with txn.transaction():
            with pytest.raises(StorageError, match=r"txn\.transaction\(\)"):
                async with txn.transaction():
                    raise AssertionError("it was opened")

    run(host.storage, block)
    run(host.storage, block)
    assert now(host.storage.list()) == {"a": 1}


def test_delete_all_inside_of_a_transaction_is_an_error_and_deletes_nothing(host: Host) -> None:
    host.storage.put("a", 1)

    async def block(txn: Transaction) -> None:
        txn.put("b", 1)
        with pytest.raises(StorageError, match="delete_all"):
            await txn.delete_all()
        with pytest.raises(StorageError, match="delete_all"):
            await host.storage.delete_all()

    run(host.storage, block)
    assert (now(host.storage.list()), host.deleted_all) == ({"a": 1, "b": 1}, 0)
    now(host.storage.delete_all())
    assert now(host.storage.list()) == {}


def test_a_commit_point_inside_commits_what_was_written_outside_and_nothing_of_the_transaction(
    host: Host,
) -> None:
    async def block(txn: Transaction) -> None:
        txn.put("inside", 1)
        host.storage.put("outside", 1)
        await host.storage.sync()
        assert now(Host(host.engine).storage.list()) == {"outside": 1}
        assert await txn.list() == {"inside": 1, "outside": 1}
        raise Undone

    with pytest.raises(Undone):
        run(host.storage, block)
    host.commit()
    assert now(host.wake().list()) == {"outside": 1}


def test_its_writes_wait_for_the_next_commit_point_like_any_others(host: Host) -> None:
    async def block(txn: Transaction) -> None:
        txn.put("a", 1)

    run(host.storage, block)
    assert now(Host(host.engine).storage.list()) == {}
    host.storage._discard()
    assert now(host.storage.list()) == {}
    run(host.storage, block)
    host.commit()
    assert now(Host(host.engine).storage.list()) == {"a": 1}


def test_what_is_written_directly_meanwhile_is_seen_and_gives_way_in_the_same_row_only(host: Host) -> None:
    async def block(txn: Transaction) -> None:
        txn.put("both", "transaction")
        host.storage.put_many({"both": "direct", "direct": 1})
        assert await txn.get("direct") == 1

    run(host.storage, block)
    assert now(host.storage.list()) == {"both": "transaction", "direct": 1}


def test_a_transaction_that_ends_with_a_nested_one_open_is_an_error_and_writes_nothing(host: Host) -> None:
    nested: list[Transaction] = []

    async def block(txn: Transaction) -> None:
        txn.put("a", 1)
        nested.append(await txn.transaction().__aenter__())
        nested[0].put("b", 1)

    with pytest.raises(StorageError, match="still open"):
        run(host.storage, block)
    with pytest.raises(StorageError, match="was rolled back"):
        nested[0].put("c", 1)
    assert now(host.storage.list()) == {}
    run(host.storage, lambda txn: txn.get("a"))


def test_a_bad_key_or_value_stores_nothing_in_the_transaction_either(host: Host) -> None:
    async def block(txn: Transaction) -> None:
        with pytest.raises(StorageError):
            txn.put_many({"a": 1, "b": object()})
        with pytest.raises(StorageError):
            txn.put("k" * 3_000, 1)
        assert await txn.list() == {}

    run(host.storage, block)


def test_the_layers_together_hold_no_more_than_may_wait_for_one_commit() -> None:
    host = Host(limits=replace(LIMITS, uncommitted_bytes_max=3_000))
    host.storage.put("a", bytes(1_000))

    async def block(txn: Transaction) -> None:
        txn.put("b", bytes(1_000))
        async with txn.transaction() as inner:
            with pytest.raises(StorageError, match="3000 bytes"):
                inner.put("c", bytes(1_000))
            inner.put("c", bytes(100))

    run(host.storage, block)
    assert now(host.storage.list(keys_only=True)) == ["a", "b", "c"]


def test_an_end_that_would_hold_too_much_writes_nothing() -> None:
    host = Host(limits=replace(LIMITS, uncommitted_bytes_max=3_000))

    async def block(txn: Transaction) -> None:
        txn.put("b", bytes(2_000))
        host.storage.put("a", bytes(2_000))

    with pytest.raises(StorageError, match="3000 bytes"):
        run(host.storage, block)
    assert now(host.storage.list(keys_only=True)) == ["a"]
