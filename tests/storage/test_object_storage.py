"""`self.storage`: what users read and write, and what the host commits, discards and settles."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from perdure.codec import decode, encode
from perdure.errors import InvalidArgument, StorageError
from perdure.limits import Limits
from perdure_storage import keys
from perdure_storage.commit import Committer
from perdure_storage.engine import Engine
from perdure_storage.errors import DamagedRecord
from perdure_storage.memory import MemoryEngine
from perdure_storage.object_storage import ObjectStorage, StorageBackend
from perdure_storage.records import seal

LIMITS = Limits()
OBJECT_ID = bytes(range(32))


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that does not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("the call suspended")


class Host:
    """One object's storage with a committer whose thread is stepped by the test."""

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        object_id: bytes = OBJECT_ID,
        limits: Limits = LIMITS,
        **backend: Any,
    ) -> None:
        self.engine = engine or MemoryEngine()
        self.backend = StorageBackend(self.engine, limits, encode, decode, **backend)
        self.jobs: list[Callable[[], None]] = []
        self.committer = Committer(
            self.engine,
            notify=lambda callback, group: callback(group),
            on_durable=lambda group: self.storage._settle(group),
            group_bytes_max=1 << 20,
            submit=self.jobs.append,
        )
        self.prefix = keys.object_prefix(5, "Room", object_id)
        self.names_row = keys.names_key("Room", "lobby", object_id)
        self.deleted_all = 0
        self.storage = self.wake()

    def wake(self) -> ObjectStorage:
        """A new instance of the object, as after an eviction."""
        self.storage = ObjectStorage(
            self.backend,
            prefix=self.prefix,
            names_row=self.names_row,
            commit_point=self.commit_point,
            on_delete_all=self.on_delete_all,
        )
        return self.storage

    def on_delete_all(self) -> None:
        self.deleted_all += 1

    async def commit_point(self) -> None:
        self.commit()

    def commit(self) -> None:
        """The end of a turn, and its group on disk and told."""
        self.join()
        self.settle_all()

    def join(self) -> None:
        self.storage._join(self.committer)
        self.committer.flush()

    def settle_all(self) -> None:
        while self.jobs:
            self.jobs.pop(0)()

    def stored_rows(self) -> list[bytes]:
        with self.engine.scan(keys.OBJECTS_REGION, b"\xff") as rows:
            return [row for row, _ in rows]


@pytest.fixture
def host(engine: Engine) -> Host:
    return Host(engine)


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
    "value", [object(), {1: 2}, "\ud800", [lambda: 1], {"deep": [{"x": object()}]}], ids=repr
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
    with pytest.raises(StorageError, match="11 bytes.*10"):
        host.storage.put("é" * 5 + "e", 1)
    overhead = len(encode(bytes(90))) - 90
    host.storage.put("k", bytes(100 - overhead))
    with pytest.raises(StorageError, match="101 bytes.*100"):
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


# --- list


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


def test_a_row_that_the_host_removes_in_its_hook_goes_with_the_rest(host: Host) -> None:
    row = host.prefix + keys.FIELD + b"count"
    host.committer.put(row, seal(row, encode(1)))  # not durable, so storage cannot see it
    host.on_delete_all = lambda: host.storage._put_row(row, None)  # type: ignore[method-assign]
    now(host.wake().delete_all())
    host.commit()
    assert host.stored_rows() == []


# --- isolation and equivalence


@given(
    ids=st.lists(st.sampled_from([bytes(31) + b"\x00", bytes(31) + b"\x01", b"\xff" * 32]), min_size=1),
    texts=st.lists(st.text(alphabet="/\0:\x01\x02\xffa", max_size=4), min_size=1),
)
@settings(deadline=None)
def test_objects_with_similar_ids_and_keys_of_any_text_never_see_each_others_data(
    ids: list[bytes], texts: list[str]
) -> None:
    engine = MemoryEngine()
    written: dict[bytes, dict[str, int]] = {}
    for number, (object_id, text) in enumerate(itertools.product(ids, texts)):
        host = Host(engine, object_id=object_id)
        host.storage.put(text, number)
        host.commit()
        written.setdefault(object_id, {})[text] = number
    for object_id, values in written.items():
        storage = Host(engine, object_id=object_id).storage
        assert now(storage.list()) == values
        assert all(now(storage.get(text)) == values.get(text) for text in texts)
    victim, *others = written
    host = Host(engine, object_id=victim)
    now(host.storage.delete_all())
    host.commit()
    assert now(Host(engine, object_id=victim).storage.list()) == {}
    for object_id in others:
        assert now(Host(engine, object_id=object_id).storage.list()) == written[object_id]


KEYS = st.text(alphabet="ab\0/é\uffff\U0010ffff", max_size=3)
BOUND = st.one_of(st.none(), KEYS)


class StorageAgainstDict(RuleBasedStateMachine):
    """Storage does what a dict with a copy at each commit point does, at every state of durability."""

    numbers = itertools.count()

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        # A fresh object for each run: opening a store for each would take most of the time.
        self.host = Host(engine, object_id=next(self.numbers).to_bytes(32, "big"))
        self.model: dict[str, int] = {}
        self.committed: dict[str, int] = {}
        self.durable: list[dict[str, int]] = [{}]  # what is on disk, then the states in flight

    @rule(key=KEYS, value=st.integers(0, 9))
    def put(self, key: str, value: int) -> None:
        self.host.storage.put(key, value)
        self.model[key] = value

    @rule(values=st.dictionaries(KEYS, st.integers(0, 9), max_size=4))
    def put_many(self, values: dict[str, int]) -> None:
        self.host.storage.put_many(values)
        self.model.update(values)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.host.storage.delete(key) == (self.model.pop(key, None) is not None)

    @rule(some=st.lists(KEYS, max_size=4))
    def delete_many(self, some: list[str]) -> None:
        assert self.host.storage.delete_many(some) == len(self.model.keys() & set(some))
        for key in some:
            self.model.pop(key, None)

    @rule()
    def delete_all(self) -> None:
        now(self.host.storage.delete_all())
        self.model.clear()

    @rule()
    def commit_point(self) -> None:
        self.host.storage._join(self.host.committer)
        self.committed = dict(self.model)

    @rule()
    def turn_raises(self) -> None:
        self.host.storage._discard()
        self.model = dict(self.committed)

    @rule()
    def end_of_tick(self) -> None:
        before = self.host.committer.group
        self.host.committer.flush()
        if self.host.committer.group != before:
            self.durable.append(dict(self.committed))

    @precondition(lambda self: self.host.jobs)
    @rule()
    def disk_finishes(self) -> None:
        before = self.host.committer.group
        self.host.jobs.pop(0)()
        del self.durable[0]
        if self.host.committer.group != before:
            self.durable.append(dict(self.committed))
        other = Host(self.host.engine, object_id=self.host.prefix[-32:])
        assert now(other.storage.list()) == self.durable[0]

    @precondition(lambda self: not self.host.jobs and not self.host.committer.dirty)
    @rule()
    def eviction(self) -> None:
        self.turn_raises()
        self.host.wake()

    @rule(key=KEYS, some=st.lists(KEYS, max_size=4))
    def get(self, key: str, some: list[str]) -> None:
        assert now(self.host.storage.get(key, "missing")) == self.model.get(key, "missing")
        expected = [(k, self.model[k]) for k in sorted(set(some), key=str.encode) if k in self.model]
        assert list(now(self.host.storage.get_many(some)).items()) == expected

    @rule(
        start=BOUND,
        start_after=BOUND,
        end=BOUND,
        prefix=BOUND,
        cursor=BOUND,
        reverse=st.booleans(),
        limit=st.one_of(st.none(), st.integers(1, 4)),
    )
    def list(
        self,
        start: str | None,
        start_after: str | None,
        end: str | None,
        prefix: str | None,
        cursor: str | None,
        reverse: bool,
        limit: int | None,
    ) -> None:
        if start is not None and start_after is not None:
            start = None
        expected = [
            (key, self.model[key])
            for key in sorted(self.model, key=str.encode, reverse=reverse)
            if (start is None or key.encode() >= start.encode())
            and (start_after is None or key.encode() > start_after.encode())
            and (end is None or key.encode() < end.encode())
            and (prefix is None or key.startswith(prefix))
            and (cursor is None or ((key.encode() < cursor.encode()) == reverse and key != cursor))
        ][:limit]
        options: dict[str, Any] = {
            "start": start,
            "start_after": start_after,
            "end": end,
            "prefix": prefix,
            "cursor": cursor,
            "reverse": reverse,
            "limit": limit,
        }
        assert [*now(self.host.storage.list(**options)).items()] == expected
        assert now(self.host.storage.list(**options, keys_only=True)) == [key for key, _ in expected]


@pytest.fixture
def shared_engine(engine: Engine) -> Iterator[Engine]:
    yield engine


def test_storage_behaves_as_a_dict_at_every_state_of_durability(shared_engine: Engine) -> None:
    run_state_machine_as_test(
        lambda: StorageAgainstDict(shared_engine),
        settings=settings(max_examples=150, stateful_step_count=25, deadline=None),
    )
