"""Another number of workers on the same data: every row moves to its owner, whatever happens on the way."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import StorageError
from perdure.slotmap import contiguous_ranges
from perdure_storage import keys
from perdure_storage import reshard as reshard_module
from perdure_storage.errors import DamagedRecord, ShardDamaged, ShardLocked
from perdure_storage.leveldb import LevelDBEngine
from perdure_storage.records import seal
from perdure_storage.reply_log import ClientRecord, client_key, fold, place_key, read_client
from perdure_storage.reshard import plan_moves, reshard
from perdure_storage.shard import open_offline, open_shard, provision

SLOTS = 16
CLIENT = b"c" * 16
Rows = dict[bytes, bytes]


class Crash(Exception):
    """The process ends here: nothing after this instant is done."""


class Cluster:
    """A data directory with a placement file, as the supervisor keeps them."""

    def __init__(self, data_dir: Path, workers: int) -> None:
        self.data_dir = data_dir
        self.journal = data_dir / "reshard.json"
        self.placement_file = data_dir / "placement.json"
        data_dir.mkdir()
        self.commit(contiguous_ranges(SLOTS, workers))
        for worker in range(workers):
            provision(self.shard_path(worker))

    def shard_path(self, worker: int) -> Path:
        return self.data_dir / f"shard-{worker:04}"

    def commit(self, placement: Sequence[range]) -> None:
        self.placement_file.write_text(json.dumps([[slots.start, slots.stop] for slots in placement]))

    def placement(self) -> list[range]:
        return [range(*pair) for pair in json.loads(self.placement_file.read_text())]

    def reshard(self, workers: int, **options: Any) -> None:
        new = contiguous_ranges(SLOTS, workers)
        arguments: dict[str, Any] = {
            "old": self.placement(),
            "new": new,
            "shard_path": self.shard_path,
            "journal": self.journal,
            "commit_placement": lambda: self.commit(new),
        }
        reshard(self.data_dir, **(arguments | options))

    def fill(self, objects: int) -> Rows:
        """Puts rows of that many objects where they belong; returns all of them."""
        rows: Rows = {}
        for worker, slots in enumerate(self.placement()):
            mine = dict(rows_of_objects(number for number in range(objects) if number % SLOTS in slots))
            self.write(worker, mine | replies(worker, mine))
            rows |= mine
        return rows

    def replies(self, worker: int) -> dict[int, Any]:
        """What the worker would know, if it started, of the client's calls."""
        engine = open_offline(self.shard_path(worker))
        fold(engine, 0)
        told = read_client(engine, CLIENT)
        engine.close()
        assert told is None or told.floor == 1
        return told.records if told is not None else {}

    def write(self, worker: int, rows: Rows) -> None:
        engine = open_offline(self.shard_path(worker))
        batch = engine.new_batch()
        for key, record in rows.items():
            batch.put(key, record)
        engine.write(batch)
        engine.close()

    def rows(self, worker: int) -> Rows:
        engine = open_offline(self.shard_path(worker))
        with engine.scan(keys.OBJECTS_REGION, b"\xff") as rows:
            found = dict(rows)
        engine.close()
        return found

    def check(self, expected: Rows) -> None:
        """Every row is in the shard of its slot's owner, and nowhere else; no journal is left."""
        assert not self.journal.exists()
        found: Rows = {}
        for worker, slots in enumerate(self.placement()):
            mine = self.rows(worker)
            assert all(slot_of(key, record) in slots for key, record in mine.items())
            assert not found.keys() & mine.keys()
            found |= mine
            known = self.replies(worker)
            for number, prefix in numbered_prefixes(mine):
                assert known[number] == (prefix, b"reply")
        assert found == expected
        for worker in range(len(self.placement()), 8):
            assert not self.shard_path(worker).exists() or self.rows(worker) == {}


def rows_of_objects(numbers: Any) -> list[tuple[bytes, bytes]]:
    rows = []
    for number in numbers:
        slot, object_id = number % SLOTS, number.to_bytes(32, "big")
        prefix = keys.object_prefix(slot, "Room", object_id)
        values = {keys.META: b"m", keys.FIELD + b"f": b"%d" % number, keys.VALUE + b"k": os.urandom(50)}
        rows += [(prefix + key, seal(prefix + key, value)) for key, value in values.items()]
        name = None if number % 3 == 0 else f"room {number}"
        names_key = keys.names_key("Room", name, object_id)
        rows.append((names_key, seal(names_key, keys.names_value(slot, object_id))))
        due_key = keys.due_key(1_000_000 - number, keys.ALARM, slot, "Room", object_id, b"ring")
        rows.append((due_key, seal(due_key, b"")))
        socket = b"gateway of tests" + number.to_bytes(8, "big")
        for socket_key in (prefix + keys.SOCKET + socket, keys.socket_index_key(socket, prefix)):
            rows.append((socket_key, seal(socket_key, b"")))
    return rows


def numbered_prefixes(rows: Rows) -> list[tuple[int, bytes]]:
    """For each object a number, that of a client's call which it has answered, and the prefix of its rows."""
    objects = {key for key in rows if key.startswith(keys.OBJECTS_REGION)}
    prefixes = {key[:-1] for key in objects if keys.parse_object_row(key)[3:] == (keys.META, b"")}
    return [(1 + int.from_bytes(prefix[-32:], "big"), prefix) for prefix in prefixes]


def replies(worker: int, rows: Rows) -> Rows:
    """What the objects of the rows have answered a client: in the log, and in the client's own row."""
    records = [(number, (prefix, b"reply")) for number, prefix in numbered_prefixes(rows)]
    in_log, old = dict(records[::2]), ClientRecord()
    old.flush, old.last, old.floor, old.records = worker + 1, 99, 1, dict(records[1::2])
    log = msgpack.packb([(CLIENT, worker + 9, 99, 1, (), 0, in_log)])
    key = place_key(7)
    rows = {key: seal(key, log)}
    if old.records:
        rows[client_key(CLIENT)] = seal(client_key(CLIENT), old.payload(1))
    return rows


def slot_of(key: bytes, record: bytes) -> int:
    if key.startswith(keys.OBJECTS_REGION):
        return keys.parse_object_row(key).slot
    if key.startswith(keys.DUE_REGION):
        return keys.parse_due_row(key).slot
    if key.startswith(keys.SOCKETS_REGION):
        return keys.parse_socket_row(key).slot
    return keys.parse_names_value(record[5:])[0]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a move of a few objects take several batches."""
    monkeypatch.setattr(reshard_module, "BATCH_BYTES_MAX", 400)


# --- the plan


WORKERS = st.integers(1, SLOTS)


@given(WORKERS, WORKERS)
def test_a_plan_moves_every_slot_that_changes_its_owner_once_and_no_other(old: int, new: int) -> None:
    before, after = contiguous_ranges(SLOTS, old), contiguous_ranges(SLOTS, new)
    moves = plan_moves(before, after)
    moved = {slot: (move.source, move.destination) for move in moves for slot in move.slots}
    assert sum(len(move.slots) for move in moves) == len(moved)
    for slot in range(SLOTS):
        source = next(worker for worker, slots in enumerate(before) if slot in slots)
        destination = next(worker for worker, slots in enumerate(after) if slot in slots)
        assert moved.get(slot, (source, source)) == (source, destination)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ([range(8)], [range(9)]),
        ([range(8)], [range(4)]),
        ([range(4), range(2, 8)], [range(4), range(2, 8)]),
    ],
)
def test_placements_that_do_not_cover_the_same_slots_once_are_refused(
    old: list[range], new: list[range]
) -> None:
    with pytest.raises(StorageError, match="do not cover"):
        plan_moves(old, new)


# --- whole runs


@pytest.mark.parametrize(("old", "new"), [(1, 2), (2, 1), (2, 3), (3, 5), (4, 2), (3, 3)])
def test_every_row_is_found_at_its_owner_after_the_number_of_workers_changed(
    tmp_path: Path, old: int, new: int
) -> None:
    cluster = Cluster(tmp_path / "data", old)
    rows = cluster.fill(60)
    cluster.check(rows)
    cluster.reshard(new)
    assert cluster.placement() == contiguous_ranges(SLOTS, new)
    cluster.check(rows)


def test_growing_shrinking_and_growing_again_brings_back_no_old_rows(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 3)
    rows = cluster.fill(40)
    cluster.reshard(1)
    row = next(key for key in rows if key.startswith(keys.OBJECTS_REGION))
    rows[row] = seal(row, b"changed since")
    cluster.write(0, {row: rows[row]})
    cluster.reshard(3)
    cluster.check(rows)


def test_with_nothing_to_do_no_store_is_opened_and_no_placement_committed(tmp_path: Path) -> None:
    def refuse(*_: object) -> Any:
        raise AssertionError("not needed")

    Cluster(tmp_path / "data", 2).reshard(2, open_store=refuse, commit_placement=refuse)


def test_workers_without_slots_may_come_and_go(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 1)
    rows = cluster.fill(10)
    new = [range(SLOTS), range(SLOTS, SLOTS)]
    cluster.reshard(1, new=new, commit_placement=lambda: cluster.commit(new))
    assert cluster.placement() == new
    open_shard(cluster.shard_path(1), epoch=1).close()
    cluster.check(rows)


def test_moving_leaves_the_epochs_of_all_shards_alone(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 1)
    open_shard(cluster.shard_path(0), epoch=7).close()
    cluster.reshard(2)
    open_shard(cluster.shard_path(0), epoch=7).close()
    open_shard(cluster.shard_path(1), epoch=1).close()


def test_frames_for_gateways_stay_where_no_slot_leaves_and_are_dropped_elsewhere(tmp_path: Path) -> None:
    frames = [keys.frames_key(b"gateway of tests", 1, counter) for counter in range(3)]
    cluster = Cluster(tmp_path / "data", 2)
    rows = cluster.fill(20)
    for worker in range(2):
        cluster.write(worker, {key: seal(key, b"frames") for key in frames})
    assert {move.source for move in plan_moves(cluster.placement(), contiguous_ranges(SLOTS, 1))} == {1}
    cluster.reshard(1)
    assert [key for key in cluster.rows(0) if key not in rows] == frames
    assert cluster.rows(1) == {}


# --- crashes


class CrashingStore(LevelDBEngine):
    """Crashes at the Nth write of the whole run: before it, or when it is on disk."""

    def __init__(self, path: Path, step: Callable[[], None]) -> None:
        super().__init__(path)
        self.step = step

    def write(self, batch: Any, /) -> None:
        self.step()
        super().write(batch)
        self.step()


def crash_at(cluster: Cluster, workers: int, step_number: int) -> bool:
    """Runs a change of workers that crashes at a step; whether it came that far.

    Steps are the instants before and after each write, and before and after the switch of the placement.
    """
    count = itertools.count(1)

    def step() -> None:
        if next(count) == step_number:
            raise Crash

    def commit_placement() -> None:
        step()
        cluster.commit(contiguous_ranges(SLOTS, workers))
        step()

    try:
        cluster.reshard(
            workers,
            open_store=lambda path: CrashingStore(path, step),
            commit_placement=commit_placement,
        )
    except Crash:
        return True
    return False


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("old", "new", "then"), [(1, 2, 2), (3, 2, 1), (2, 3, 4)])
def test_a_crash_at_any_step_loses_nothing_and_is_healed_by_the_next_run(
    tmp_path: Path, old: int, new: int, then: int
) -> None:
    cluster = Cluster(tmp_path / "data", old)
    rows = cluster.fill(12)
    saved = tmp_path / "saved"
    shutil.copytree(cluster.data_dir, saved)
    steps = 0
    while crash_at(cluster, new, steps + 1):
        steps += 1
        for worker, slots in enumerate(cluster.placement()):  # what a worker would serve right now
            if cluster.shard_path(worker).exists():
                found = cluster.rows(worker)
                mine = {key: record for key, record in rows.items() if slot_of(key, record) in slots}
                assert {key: found.get(key) for key in mine} == mine
        cluster.reshard(then)
        cluster.check(rows)
        shutil.rmtree(cluster.data_dir)
        shutil.copytree(saved, cluster.data_dir)
    cluster.check(rows)
    assert steps > 10


@pytest.mark.usefixtures("small_batches")
def test_a_crash_while_healing_a_crash_is_healed_too(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 2)
    rows = cluster.fill(16)
    crashes = 0
    for step in itertools.count(1):
        # Each run goes a little further than the last one, over the leftovers of all before.
        if not crash_at(cluster, 3, step):
            break
        crashes += 1
    cluster.check(rows)
    assert crashes > 5


@pytest.mark.parametrize("call", ["replace", "unlink"])
def test_a_crash_around_the_journals_own_changes_is_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    cluster = Cluster(tmp_path / "data", 1)
    rows = cluster.fill(12)
    real = getattr(Path, call)
    for after in (False, True):

        def crash(path: Path, *arguments: Any, after: bool = after, **options: Any) -> None:
            if "reshard" in path.name:
                if after:
                    real(path, *arguments, **options)
                raise Crash
            real(path, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, call, crash)
            with pytest.raises(Crash):
                cluster.reshard(len(cluster.placement()) + 1)
        cluster.reshard(len(cluster.placement()))
        cluster.check(rows)


# --- refusals


def test_a_copy_that_differs_is_found_before_the_switch(tmp_path: Path) -> None:
    class ForgetfulStore(LevelDBEngine):
        """Loses one row of each batch."""

        def write(self, batch: Any, /) -> None:
            for key, _ in rows_of_objects([12]):
                batch.delete(key)
            super().write(batch)

    cluster = Cluster(tmp_path / "data", 1)
    rows = cluster.fill(20)
    with pytest.raises(StorageError, match="differs from shard 0"):
        cluster.reshard(
            2, open_store=lambda path: (LevelDBEngine if "0000" in path.name else ForgetfulStore)(path)
        )
    assert len(cluster.placement()) == 1
    cluster.reshard(1)
    cluster.check(rows)


def test_a_damaged_record_stops_the_move_and_nothing_changes_its_owner(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 1)
    rows = cluster.fill(20)
    victim = rows_of_objects([15])[1][0]
    cluster.write(0, {victim: rows[victim][:-1]})
    with pytest.raises(DamagedRecord):
        cluster.reshard(2)
    assert len(cluster.placement()) == 1
    cluster.write(0, {victim: rows[victim]})
    cluster.reshard(2)
    cluster.check(rows)


def test_rows_in_a_destination_that_no_journal_explains_are_not_deleted(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 2)
    cluster.fill(20)
    (object_row, *_, names_row) = rows_of_objects([15])
    for stray in (object_row, names_row):
        provision(cluster.shard_path(2))
        cluster.write(2, dict([stray]))
        with pytest.raises(StorageError, match="not of one time"):
            cluster.reshard(3)
        assert cluster.rows(2) == dict([stray])
        shutil.rmtree(cluster.shard_path(2))
        cluster.shard_path(2).with_name("shard-0002.provisioned").unlink()
    assert not cluster.journal.exists()


def test_a_journal_of_other_placements_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 2)
    rows = cluster.fill(12)
    assert crash_at(cluster, 3, 4)
    cluster.commit(contiguous_ranges(SLOTS, 4))
    with pytest.raises(StorageError, match="from one backup"):
        cluster.reshard(4)
    cluster.commit(contiguous_ranges(SLOTS, 2))
    cluster.reshard(2)
    cluster.check(rows)


def test_a_damaged_journal_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 1)
    for text in ("", "{}", "[1]", '{"old": 1, "new": 2}'):
        cluster.journal.write_text(text)
        with pytest.raises(StorageError, match=r"journal .* is damaged"):
            cluster.reshard(2)


def test_rows_of_a_region_that_this_version_does_not_know_are_not_left_behind(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 1)
    cluster.write(0, {keys.RESERVED_REGION + b"new": b"x"})
    with pytest.raises(StorageError, match="does not know"):
        cluster.reshard(2)
    assert len(cluster.placement()) == 1


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(tmp_path / "data", 1)
    rows = cluster.fill(12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(StorageError, match="1000000: nothing was changed"):
        cluster.reshard(2)
    assert not cluster.shard_path(1).exists()
    cluster.check(rows)


def test_a_lost_shard_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 2)
    cluster.fill(12)
    shutil.rmtree(cluster.shard_path(1))
    for workers in (1, 3):
        with pytest.raises(ShardDamaged):
            cluster.reshard(workers)
    assert len(cluster.placement()) == 2


def test_a_running_worker_keeps_its_shard_from_being_moved(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path / "data", 1)
    worker = open_shard(cluster.shard_path(0), epoch=1)
    with pytest.raises(ShardLocked):
        cluster.reshard(2, open_store=lambda path: open_offline(path, lock_timeout_s=0))
    worker.close()
