"""Stores are made once, never anew over a loss, and every object moves with its slot."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perdure.errors import StorageError
from perdure.ids import id_from_name, slot_of
from perdure_cli import shards
from perdure_cli.datadir import DataDirectory
from perdure_cli.errors import BadOption
from perdure_cli.shards import default_workers, prepare_shards
from perdure_cli.state import ClusterState
from perdure_storage.keys import OBJECTS_REGION, VALUE, object_prefix, parse_object_row, prefix_end
from perdure_storage.records import seal, unseal
from perdure_storage.shard import open_shard

SLOTS = 64
OBJECTS = 200


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    with DataDirectory.open(tmp_path / "data", "test") as directory:
        yield directory


def prepared(directory: DataDirectory, workers: int | None = None, engine: str = "leveldb") -> ClusterState:
    """The state, which is also what is on disk."""
    state = prepare_shards(directory, engine, workers, SLOTS)
    assert directory.read_state() == state
    return state


# --- making


def test_a_new_directory_gets_a_store_for_each_worker(directory: DataDirectory) -> None:
    state = prepared(directory, 3)
    assert state.workers == 3
    assert state.unprovisioned == ()
    for worker in range(3):
        open_shard(directory.shard_path(worker), epoch=1).close()


def test_without_a_number_there_is_a_worker_per_core_up_to_four(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.os, "sched_getaffinity", lambda pid: set(range(3)))
    assert default_workers() == 3
    assert prepared(directory).workers == 3
    monkeypatch.setattr(shards.os, "sched_getaffinity", lambda pid: set(range(64)))
    assert default_workers() == 4
    assert prepared(directory).workers == 3, "what the directory has counts from then on"


def test_a_start_that_was_cut_off_between_stores_is_brought_to_an_end(
    directory: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import perdure_storage.shard

    provision = perdure_storage.shard.provision

    def cut_off(path: Path) -> None:
        if path.name == "shard-0001":
            raise OSError(28, "No space left on device")
        provision(path)

    with monkeypatch.context() as broken:
        broken.setattr(perdure_storage.shard, "provision", cut_off)
        with pytest.raises(OSError, match="No space"):
            prepare_shards(directory, "leveldb", 3, SLOTS)
    assert prepared(directory).workers == 3
    for worker in range(3):
        open_shard(directory.shard_path(worker), epoch=1).close()


@pytest.mark.parametrize(
    "lost", [{"shard-0001"}, {"shard-0001.provisioned"}, {"shard-0001", "shard-0001.provisioned"}]
)
def test_a_lost_store_is_not_replaced_by_an_empty_one(directory: DataDirectory, lost: set[str]) -> None:
    prepared(directory, 2)
    for path in [directory.path / name for name in lost]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    prepared(directory, 2)
    assert not any((directory.path / name).exists() for name in lost)


def test_a_directory_keeps_its_engine(directory: DataDirectory) -> None:
    prepared(directory, 2)
    with pytest.raises(BadOption, match="leveldb"):
        prepare_shards(directory, "memory", None, SLOTS)


def test_the_memory_engine_makes_no_stores_and_changes_its_workers_freely(directory: DataDirectory) -> None:
    assert prepared(directory, 2, "memory").workers == 2
    assert prepare_shards(directory, "memory", 5, SLOTS).workers == 5
    assert not list(directory.path.glob("shard-*"))


# --- another number of workers


def fill(directory: DataDirectory, state: ClusterState) -> dict[bytes, bytes]:
    """Rows of many objects, each in the store of its slot's owner."""
    rows = {}
    for number in range(OBJECTS):
        key = id_from_name("Counter", f"object-{number}").key
        row = object_prefix(slot_of(key, SLOTS), "Counter", key) + VALUE + b"count"
        rows[row] = seal(row, str(number).encode())
    for worker, slots in enumerate(state.ranges):
        engine = open_shard(directory.shard_path(worker), epoch=7)
        batch = engine.new_batch()
        for row, record in rows.items():
            if parse_object_row(row).slot in slots:
                batch.put(row, record)
        engine.write(batch)
        engine.close()
    return rows


def rows_in(directory: DataDirectory, worker: int) -> dict[bytes, bytes]:
    engine = open_shard(directory.shard_path(worker), epoch=1_000)
    try:
        with engine.scan(OBJECTS_REGION, prefix_end(OBJECTS_REGION)) as rows:
            return {key: record for key, record in rows if unseal(key, record)}
    finally:
        engine.close()


def assert_everything_is_where_it_belongs(
    directory: DataDirectory, state: ClusterState, rows: dict[bytes, bytes]
) -> None:
    found: dict[bytes, bytes] = {}
    for worker, slots in enumerate(state.ranges):
        mine = rows_in(directory, worker)
        assert {parse_object_row(row).slot for row in mine} <= set(slots)
        found |= mine
    assert found == rows


@pytest.mark.parametrize("numbers", [(2, 5), (5, 2), (1, 4, 3, 1), (3, 3)])
def test_every_object_is_found_after_the_number_of_workers_changed(
    directory: DataDirectory, numbers: tuple[int, ...]
) -> None:
    state = prepared(directory, numbers[0])
    rows = fill(directory, state)
    for number in numbers[1:]:
        state = prepared(directory, number)
        assert state.workers == number
        assert_everything_is_where_it_belongs(directory, state, rows)


def before(directory: DataDirectory, write: Callable[[ClusterState], None], state: ClusterState) -> None:
    raise OSError(5, "Input/output error")


def after(directory: DataDirectory, write: Callable[[ClusterState], None], state: ClusterState) -> None:
    write(state)
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("cut", [before, after])
@pytest.mark.parametrize("then", [None, 2, 4, 3])
def test_a_change_that_was_cut_off_is_undone_or_finished_by_the_next_start(
    directory: DataDirectory, cut: Callable[..., None], then: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = fill(directory, prepared(directory, 2))
    write = directory.write_state
    with monkeypatch.context() as broken:
        broken.setattr(directory, "write_state", lambda state: cut(directory, write, state))
        with pytest.raises(OSError, match="Input/output"):
            prepare_shards(directory, "leveldb", 4, SLOTS)
    assert directory.reshard_journal.exists()
    in_effect = 2 if cut is before else 4
    state = prepared(directory, then)
    assert state.workers == (then or in_effect)
    assert not directory.reshard_journal.exists()
    assert_everything_is_where_it_belongs(directory, state, rows)


def test_a_damaged_store_is_not_moved(directory: DataDirectory) -> None:
    prepared(directory, 2)
    shutil.rmtree(directory.shard_path(1))
    with pytest.raises(StorageError, match="shard-0001"):
        prepare_shards(directory, "leveldb", 1, SLOTS)
    state = directory.read_state()
    assert state is not None
    assert state.workers == 2


def test_a_grown_cluster_gives_no_worker_an_epoch_that_a_store_has_passed(directory: DataDirectory) -> None:
    state = prepared(directory, 3)
    fill(directory, state)
    directory.write_state(replace(state, epochs=(7, 7, 9)))
    prepared(directory, 1)
    grown = prepared(directory, 3)
    for worker in range(3):
        open_shard(directory.shard_path(worker), epoch=grown.epochs[worker] + 1).close()
