"""`self.storage`: what users read and write, and what the host commits, discards and settles."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pytest

from perdure.codec import encode
from perdure.errors import InvalidArgument, StorageError
from perdure_storage import keys
from perdure_storage.errors import DamagedRecord
from perdure_storage.object_storage import ObjectStorage
from perdure_storage.records import seal
from storage.storage_host import LIMITS, Host, now

# --- get, put, delete


def test_what_was_put_is_read_back_before_and_after_its_commit_and_after_a_restart(host: Host) -> None:
    host.storage.put("a", {"x": [1, (2, 3)]})
    assert now(host.storage.get("a")) == {"x": [1, (2, 3)]}
    host.join()
    assert now(host.storage.get("a")) == {"x": [1, (2, 3)]}
    host.settle_all()
    assert now(host.storage.get("a")) == {"x": [1, (2, 3)]}
    assert now(host.wake().get("a")) == {"x": [1, (2, 3)]}


def test_a_stored_none_is_a_value_and_a_missing_key_gives_the_default(host: Host) -> None:
    host.storage.put("none", None)
    assert now(host.storage.get("none", 5)) is None
    assert now(host.storage.get("missing")) is None
    assert now(host.storage.get("missing", 5)) == 5


def test_get_many_is_sorted_by_key_and_leaves_out_missing_keys(host: Host) -> None:
    host.storage.put_many({"b": 2, "ä": 4, "c": 3, "a": 1})
    found = now(host.storage.get_many(["ä", "c", "x", "a", "c"]))
    assert list(found.items()) == [("a", 1), ("c", 3), ("ä", 4)]


def test_delete_tells_whether_the_key_existed_wherever_it_was(host: Host) -> None:
    host.storage.put("durable", 1)
    host.commit()
    host.storage.put("in flight", 1)
    host.join()
    host.storage.put("new", 1)
    for key in ("durable", "in flight", "new"):
        assert host.storage.delete(key) is True
        assert host.storage.delete(key) is False
        assert now(host.storage.get(key)) is None
    assert host.storage.delete("never") is False
    host.commit()
    assert now(host.wake().list()) == {}


def test_delete_many_tells_how_many_keys_existed(host: Host) -> None:
    host.storage.put_many({"a": 1, "b": 2})
    host.commit()
    host.storage.put("c", 3)
    assert host.storage.delete_many(["a", "c", "c", "x"]) == 2
    assert host.storage.delete_many(iter(["a", "c"])) == 0
    assert now(host.storage.list()) == {"b": 2}


def test_the_last_of_several_writes_of_one_key_wins(host: Host) -> None:
    host.storage.put("k", 1)
    host.storage.delete("k")
    host.storage.put("k", 2)
    host.storage.put("gone", 1)
    host.storage.delete("gone")
    host.commit()
    assert now(host.wake().list()) == {"k": 2}


def test_a_value_is_encoded_when_it_is_put_so_later_changes_do_not_reach_it(host: Host) -> None:
    value = [1]
    host.storage.put("k", value)
    value.append(2)
    host.commit()
    assert now(host.storage.get("k")) == [1]


def test_reading_and_deleting_what_is_not_there_writes_nothing(host: Host) -> None:
    now(host.storage.get("a"))
    now(host.storage.list())
    host.storage.delete("a")
    host.storage.delete_many(["b", "c"])
    assert not host.storage._dirty
    host.join()
    assert not host.committer.dirty
    assert host.jobs == []


# --- errors store nothing


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, "\ud800", [lambda: 1], {"deep": [{"x": object()}]}],
    ids=["object", "int-key", "surrogate", "function", "deep"],
)
def test_a_value_that_cannot_be_stored_fails_its_call_and_stores_nothing(host: Host, value: object) -> None:
    with pytest.raises(StorageError, match="'k'") as caught:
        host.storage.put("k", value)
    assert isinstance(caught.value.__cause__, InvalidArgument)
    with pytest.raises(StorageError):
        host.storage.put_many({"a": 1, "k": value, "b": 2})
    assert not host.storage._dirty


@pytest.mark.parametrize(
    "key", [5, None, b"bytes", "lone \udc80 surrogate", "k" * 2049, "é" * 1025], ids=repr
)
def test_a_wrong_key_is_an_error_of_every_method_and_stores_nothing(host: Host, key: Any) -> None:
    for use in (
        lambda: now(host.storage.get(key)),
        lambda: now(host.storage.get_many(["a", key])),
        lambda: host.storage.put(key, 1),
        lambda: host.storage.put_many({"a": 1, key: 1}),
        lambda: host.storage.delete(key),
        lambda: host.storage.delete_many(["a", key]),
    ):
        with pytest.raises(StorageError):
            use()
    assert not host.storage._dirty


def test_keys_and_values_at_their_limit_pass_and_one_byte_more_fails() -> None:
    host = Host(limits=replace(LIMITS, key_bytes_max=10, value_bytes_max=100))
    host.storage.put("é" * 5, 1)
    with pytest.raises(StorageError, match=r"11 bytes.*10"):
        host.storage.put("é" * 5 + "e", 1)
    overhead = len(encode(bytes(90))) - 90
    host.storage.put("k", bytes(100 - overhead))
    with pytest.raises(StorageError, match=r"101 bytes.*100"):
        host.storage.put("k", bytes(101 - overhead))
    with pytest.raises(StorageError):
        host.storage.put_many({"x": 1, "k": bytes(101 - overhead)})
    assert now(host.storage.list()) == {"é" * 5: 1, "k": bytes(100 - overhead)}


def test_the_product_limits_hold_for_the_largest_key_and_value(host: Host) -> None:
    host.storage.put("k" * LIMITS.key_bytes_max, bytes(LIMITS.value_bytes_max - 5))
    host.commit()
    assert now(host.wake().get("k" * LIMITS.key_bytes_max)) == bytes(LIMITS.value_bytes_max - 5)


def test_more_keys_than_a_multi_call_takes_are_refused_and_change_nothing(host: Host) -> None:
    many = [f"k{number:03}" for number in range(LIMITS.multi_keys_max)]
    host.storage.put_many(dict.fromkeys(many, 1))
    assert len(now(host.storage.get_many(many))) == len(many)
    for use in (
        lambda: host.storage.put_many(dict.fromkeys([*many, "x"], 2)),
        lambda: host.storage.delete_many([*many, "x"]),
        lambda: host.storage.delete_many(itertools.repeat("k000")),
        lambda: now(host.storage.get_many([*many, "x"])),
    ):
        with pytest.raises(StorageError, match="more than 128"):
            use()
    assert set(now(host.storage.list()).values()) == {1}
    assert host.storage.delete_many(many) == len(many)


def test_one_text_is_not_taken_for_several_keys(host: Host) -> None:
    for use in (
        lambda: now(host.storage.get_many("abc")),
        lambda: host.storage.delete_many("abc"),
        lambda: host.storage.put_many([("a", 1)]),  # type: ignore[arg-type]
        lambda: now(host.storage.get_many(5)),  # type: ignore[arg-type]
    ):
        with pytest.raises(StorageError):
            use()


def test_a_turn_may_write_only_what_may_wait_for_one_commit_point() -> None:
    host = Host(limits=replace(LIMITS, uncommitted_bytes_max=1_000))
    for number in range(4):
        host.storage.put(f"k{number}", bytes(150))
    for _ in range(20):
        host.storage.put("k0", bytes(150))  # replaces, so it does not add up
    with pytest.raises(StorageError, match=r"storage\.sync\(\)"):
        host.storage.put("k4", bytes(400))
    with pytest.raises(StorageError, match=r"storage\.sync\(\)"):
        host.storage.put_many({"x": bytes(150), "y": bytes(150)})
    assert list(now(host.storage.list())) == ["k0", "k1", "k2", "k3"]
    host.storage.delete("k1")
    host.storage.put("small", 1)
    now(host.storage.sync())
    host.storage.put("k4", bytes(400))


def test_a_damaged_record_is_an_error_and_not_a_value(host: Host) -> None:
    host.storage.put("k", "value")
    host.commit()
    batch = host.engine.new_batch()
    row = host.prefix + keys.VALUE + b"k"
    batch.put(row, seal(row, encode("value"))[:-1] + b"X")
    batch.put(row + b"2", seal(row + b"2", b"\xc1"))  # right checksum, but no value of the codec
    host.engine.write(batch)
    storage = host.wake()
    for read in (storage.get("k"), storage.get_many(["k"]), storage.list(end="k2")):
        with pytest.raises(DamagedRecord):
            now(read)
    with pytest.raises(StorageError, match="'k2' cannot be read"):
        now(storage.get("k2"))


# --- commit, discard, settle


def test_nothing_reaches_the_committer_before_the_commit_point(host: Host) -> None:
    host.storage.put("a", 1)
    assert not host.committer.dirty
    host.storage._join(host.committer)
    assert host.committer.dirty
    assert not host.storage._dirty


def test_all_writes_between_two_commit_points_join_one_group(host: Host) -> None:
    host.storage.put("a", 1)
    host.storage.put("b", 1)
    host.storage._join(host.committer)
    host.committer.flush()
    assert (host.committer.group, len(host.jobs)) == (2, 1)
    assert now(Host(host.engine).storage.list()) == {}
    host.settle_all()
    assert now(Host(host.engine).storage.list()) == {"a": 1, "b": 1}


def test_discarding_leaves_storage_as_at_the_last_commit_point(host: Host) -> None:
    host.storage.put_many({"a": 1, "b": 1})
    host.commit()
    host.storage.put("a", 2)
    host.join()
    host.storage.put("a", 3)
    host.storage.put("c", 3)
    host.storage.delete("b")
    host.storage._discard()
    assert now(host.storage.list()) == {"a": 2, "b": 1}
    host.settle_all()
    assert now(host.wake().list()) == {"a": 2, "b": 1}


def test_the_latest_of_several_groups_in_flight_is_what_reads_see(host: Host) -> None:
    for value in (1, 2, 3):
        host.storage.put("a", value)
        host.storage.put(f"only {value}", value)
        host.join()
    for _ in range(2):
        assert now(host.storage.get("a")) == 3
        assert now(host.storage.list(prefix="only")) == {f"only {value}": value for value in (1, 2, 3)}
        host.jobs.pop(0)()
    assert now(host.storage.get("a")) == 3


def test_rows_leave_memory_when_their_group_is_durable(host: Host) -> None:
    host.storage.put("a", 1)
    host.join()
    host.storage.put("b", 1)
    host.join()
    assert len(host.storage._overlay) == 2
    host.jobs.pop(0)()
    assert [row[-1:] for row in host.storage._overlay] == [b"b"]
    host.settle_all()
    assert host.storage._overlay == {}


def test_sync_awaits_the_hosts_commit_point() -> None:
    host = Host()

    async def main() -> None:
        reached = asyncio.Event()

        async def commit_point() -> None:
            host.join()
            await reached.wait()

        storage = ObjectStorage(
            host.backend,
            prefix=host.prefix,
            names_row=host.names_row,
            commit_point=commit_point,
            on_delete_all=host.on_delete_all,
        )
        sync = asyncio.ensure_future(storage.sync())
        await asyncio.wait([sync], timeout=0)
        assert not sync.done()
        reached.set()
        await asyncio.wait_for(sync, 10)

    asyncio.run(main())


def test_the_host_learns_whether_a_turn_stores_something(host: Host) -> None:
    assert not host.storage._stores
    host.storage.put("a", 1)
    assert host.storage._stores
    host.commit()
    host.storage.delete("a")
    assert host.storage._dirty
    assert not host.storage._stores


# --- delete_all


def write_rows_of_every_kind(host: Host) -> list[bytes]:
    kinds = (keys.META, keys.FIELD, keys.VALUE, keys.ALARM, keys.REPLY, keys.OUTBOX, keys.SOCKET)
    rows = [host.prefix + kind + b"x" for kind in kinds] + [host.prefix + keys.META, host.names_row]
    batch = host.engine.new_batch()
    for row in rows:
        batch.put(row, seal(row, encode(1)))
    host.engine.write(batch)
    return rows


def test_delete_all_removes_every_row_of_the_object_but_those_that_outlive_its_data(host: Host) -> None:
    write_rows_of_every_kind(host)
    now(host.storage.delete_all())
    assert host.deleted_all == 1
    host.commit()
    kept = {host.prefix + kind + b"x" for kind in (keys.REPLY, keys.OUTBOX, keys.SOCKET)}
    assert set(host.stored_rows()) == kept
    assert host.engine.get(host.names_row) is None


def test_delete_all_is_one_commit_and_can_be_discarded(host: Host) -> None:
    rows = write_rows_of_every_kind(host)
    before = host.stored_rows()
    now(host.storage.delete_all())
    assert now(host.storage.list()) == {}
    assert host.stored_rows() == before
    host.storage._discard()
    host.commit()
    assert all(host.engine.get(row) is not None for row in rows)
    now(host.storage.delete_all())
    host.join()
    assert len(host.jobs) == 1


def test_delete_all_also_removes_what_is_not_durable_yet_and_nothing_put_after_it(host: Host) -> None:
    host.storage.put("durable", 1)
    host.commit()
    host.storage.put("in flight", 1)
    host.join()
    host.storage.put("new", 1)
    now(host.storage.delete_all())
    host.storage.put("later", 1)
    assert now(host.storage.list()) == {"later": 1}
    host.commit()
    assert now(host.wake().list()) == {"later": 1}


def test_delete_all_of_more_than_a_turn_may_write_is_still_one_commit() -> None:
    host = Host(limits=replace(LIMITS, uncommitted_bytes_max=1_000))
    for number in range(100):
        host.storage.put(f"k{number}", number)
        host.commit()
    now(host.storage.delete_all())
    host.join()
    assert len(host.jobs) == 1
    host.settle_all()
    assert host.stored_rows() == []


def test_rows_of_the_host_that_outlive_the_data_stay_in_the_turns_commit(host: Host) -> None:
    row = host.prefix + keys.OUTBOX + b"1"
    host.storage._put_row(row, seal(row, b"message"))
    host.storage.put("a", 1)
    now(host.storage.delete_all())
    host.commit()
    assert host.stored_rows() == [row]


def test_a_row_that_the_host_removes_in_its_hook_goes_with_the_rest(host: Host) -> None:
    row = host.prefix + keys.FIELD + b"count"
    host.committer.put(row, seal(row, encode(1)))  # not durable, so storage cannot see it
    host.on_delete_all = lambda: host.storage._put_row(row, None)  # type: ignore[method-assign]
    now(host.wake().delete_all())
    host.commit()
    assert host.stored_rows() == []
