"""A shard is made once, opened by one process, and refused when it cannot be trusted."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import plyvel
import pytest

from perdure.errors import StorageError
from perdure_storage import shard
from perdure_storage.errors import NewerFormat, ShardDamaged, ShardLocked, StaleEpoch
from perdure_storage.keys import EPOCH_KEY, FORMAT_KEY, VALUE, object_prefix
from perdure_storage.leveldb import LevelDBEngine
from perdure_storage.records import seal, seal_number
from perdure_storage.shard import (
    SHARD_FORMAT,
    is_provisioned,
    marker_path,
    open_offline,
    open_shard,
    provision,
    read_epoch,
)

ROW = object_prefix(3, "Room", bytes(32)) + VALUE + b"k"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a shard is provisioned."""
    where = tmp_path / "data" / "shard-0000"
    provision(where)
    return where


def put(engine: LevelDBEngine, key: bytes, record: bytes) -> None:
    batch = engine.new_batch()
    batch.put(key, record)
    engine.write(batch)


def change(path: Path, key: bytes, record: bytes | None) -> None:
    engine = LevelDBEngine(path)
    batch = engine.new_batch()
    if record is None:
        batch.delete(key)
    else:
        batch.put(key, record)
    engine.write(batch)
    engine.close()


# --- provisioning


def test_a_provisioned_shard_opens_and_keeps_what_is_written(path: Path) -> None:
    engine = open_shard(path, epoch=1)
    put(engine, ROW, b"1")
    engine.close()
    engine = open_shard(path, epoch=2)
    assert engine.get(ROW) == b"1"
    engine.close()


def test_a_shard_is_provisioned_once(path: Path) -> None:
    assert is_provisioned(path)
    with pytest.raises(StorageError, match="exists already"):
        provision(path)


def test_provisioning_makes_directories_that_only_their_owner_may_enter(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o700


def test_everything_is_synced_before_the_marker_tells_that_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data" / "deep" / "shard-0000"
    events: list[str] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        name = os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)
        events.append(f"{name} {'complete' if is_provisioned(path) else ''}".strip())
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    provision(path)
    before = [event for event in events if not event.endswith("complete")]
    assert {"data/deep/shard-0000", "data/deep", "data", "."} <= set(before)
    assert events[-2:] == ["data/deep/shard-0000.provisioned complete", "data/deep complete"]


def test_a_provisioning_that_was_cut_off_at_any_sync_is_simply_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(Exception):
        """The process ends here."""

    def provision_until(path: Path, sync: int) -> bool:
        """Whether it ran to its end, being cut off at the sync of that number."""
        real_fsync, count = os.fsync, itertools.count(1)

        def fsync(descriptor: int) -> None:
            if next(count) == sync:
                raise Cut
            real_fsync(descriptor)

        with monkeypatch.context() as patch, contextlib.suppress(Cut):
            patch.setattr(os, "fsync", fsync)
            provision(path)
            return True
        return False

    for sync in itertools.count(1):
        path = tmp_path / f"run-{sync}" / "shard-0000"
        complete = provision_until(path, sync)
        if not is_provisioned(path):
            with pytest.raises(ShardDamaged, match="never completely made"):
                open_shard(path, epoch=1)
            provision(path)
        open_shard(path, epoch=1).close()
        if complete:
            break
    assert sync > 5


def test_a_directory_that_leveldb_had_only_begun_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "shard-0000"
    LevelDBEngine(path, create=True).close()
    shutil.copytree(path, tmp_path / "shard-0001")
    for begun in (tmp_path / "shard-0001").iterdir():
        if begun.name == "CURRENT" or begun.suffix == ".log":
            begun.unlink()
    for name in ("shard-0000", "shard-0001"):
        provision(tmp_path / name)
        open_shard(tmp_path / name, epoch=1).close()


def test_a_directory_with_data_is_not_provisioned_over_when_its_marker_is_lost(path: Path) -> None:
    engine = open_shard(path, epoch=1)
    put(engine, ROW, b"1")
    engine.close()
    marker_path(path).unlink()
    with pytest.raises(ShardDamaged, match="never completely made"):
        open_shard(path, epoch=2)
    with pytest.raises(ShardDamaged, match="holds data but its marker"):
        provision(path)
    marker_path(path).touch()
    engine = open_shard(path, epoch=2)
    assert engine.get(ROW) == b"1"
    engine.close()


def test_a_shard_that_was_ever_opened_is_not_provisioned_over(path: Path) -> None:
    open_shard(path, epoch=1).close()
    marker_path(path).unlink()
    with pytest.raises(ShardDamaged, match="holds data"):
        provision(path)


def test_a_directory_that_lost_only_its_current_file_is_not_provisioned_over(path: Path) -> None:
    open_shard(path, epoch=1).close()
    marker_path(path).unlink()
    (path / "CURRENT").unlink()
    before = sorted(os.listdir(path))
    with pytest.raises(ShardDamaged, match="holds data"):
        provision(path)
    assert sorted(os.listdir(path)) == before


# --- opening


def test_a_lost_directory_is_never_made_anew(path: Path) -> None:
    shutil.rmtree(path)
    with pytest.raises(ShardDamaged, match="restore the shard from a backup") as caught:
        open_shard(path, epoch=1)
    assert caught.value.path == path
    assert not path.exists()


def test_a_lost_current_file_leaves_the_tables_untouched(path: Path) -> None:
    engine = open_shard(path, epoch=1)
    put(engine, ROW, b"1")
    engine.close()
    (path / "CURRENT").rename(path.parent / "kept")
    before = sorted(os.listdir(path))
    with pytest.raises(ShardDamaged, match="no CURRENT file"):
        open_shard(path, epoch=2)
    assert sorted(os.listdir(path)) == before
    (path.parent / "kept").rename(path / "CURRENT")
    engine = open_shard(path, epoch=2)
    assert engine.get(ROW) == b"1"
    engine.close()


def test_the_highest_epoch_that_opened_a_shard_keeps_older_ones_out(path: Path) -> None:
    for epoch in (1, 5, 5, 9):
        engine = open_shard(path, epoch=epoch)
        assert read_epoch(engine) == epoch
        engine.close()
    with pytest.raises(StaleEpoch, match="must end") as caught:
        open_shard(path, epoch=8)
    assert (caught.value.stored, caught.value.epoch) == (9, 8)
    engine = open_shard(path, epoch=9)
    assert read_epoch(engine) == 9
    engine.close()


def test_opening_offline_claims_no_epoch(path: Path) -> None:
    open_shard(path, epoch=3).close()
    engine = open_offline(path)
    assert read_epoch(engine) == 3
    engine.close()


@pytest.mark.parametrize("opening", [open_offline, lambda path: open_shard(path, epoch=1)])
def test_a_newer_format_of_the_store_or_of_a_record_is_refused_and_left_alone(
    path: Path, opening: object
) -> None:
    assert callable(opening)
    newer = seal_number(FORMAT_KEY, SHARD_FORMAT + 1)
    for record in (newer, bytes((2,)) + newer[1:]):
        change(path, FORMAT_KEY, record)
        with pytest.raises(NewerFormat, match=r"run (the|that) version"):
            opening(path)
        engine = LevelDBEngine(path)  # the lock was given back, and the epoch is untouched
        assert engine.get(EPOCH_KEY) == seal_number(EPOCH_KEY, 0)
        engine.close()


def test_a_store_without_a_format_is_refused(path: Path) -> None:
    change(path, FORMAT_KEY, None)
    with pytest.raises(ShardDamaged, match="no format number"):
        open_shard(path, epoch=1)


def test_a_damaged_epoch_is_an_error_and_not_an_epoch(path: Path) -> None:
    change(path, EPOCH_KEY, seal(FORMAT_KEY, bytes(8)))
    with pytest.raises(StorageError, match="checksum"):
        open_shard(path, epoch=1)


def test_a_damaged_log_is_a_damaged_shard_and_not_an_empty_one(path: Path) -> None:
    engine = open_shard(path, epoch=1)
    for number in range(20):
        put(engine, ROW + b"%d" % number, bytes(100))
    engine.close()
    (log,) = path.glob("*.log")
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 0x01
    log.write_bytes(content)
    with pytest.raises(ShardDamaged, match=r"damaged .*Corruption"):
        open_shard(path, epoch=2)


def test_what_the_system_refuses_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise plyvel.IOError(b"IO error: MANIFEST-000009: No space left on device")

    monkeypatch.setattr(plyvel, "DB", refuse)
    with pytest.raises(StorageError, match="No space left") as caught:
        open_shard(path, epoch=1)
    assert type(caught.value) is StorageError


# --- the lock


def test_a_shard_that_is_open_in_this_process_is_locked(path: Path) -> None:
    engine = open_shard(path, epoch=1)
    with pytest.raises(ShardLocked, match="never delete the LOCK file") as caught:
        open_shard(path, epoch=2, lock_timeout_s=0)
    assert caught.value.path == path
    assert read_epoch(engine) == 1
    engine.close()
    open_shard(path, epoch=2).close()


HOLDER = """
import sys
from pathlib import Path
from perdure_storage.shard import open_shard
engine = open_shard(Path(sys.argv[1]), epoch=1)
print("open", flush=True)
sys.stdin.read()
"""


def test_opening_waits_for_an_owner_that_is_just_being_killed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(ShardLocked):
            open_shard(path, epoch=2, lock_timeout_s=0)
        pauses: list[float] = []

        def pause(seconds: float) -> None:
            pauses.append(seconds)
            if len(pauses) == 3:
                holder.kill()
                holder.wait()

        monkeypatch.setattr(shard.time, "sleep", pause)
        engine = open_shard(path, epoch=2, lock_timeout_s=30)
        assert len(pauses) == 3
        assert read_epoch(engine) == 2
        engine.close()
    finally:
        holder.kill()
        holder.communicate()


def test_a_failed_epoch_write_leaves_the_shard_closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: LevelDBEngine, batch: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LevelDBEngine, "write", fail)
        with pytest.raises(OSError, match="No space"):
            open_shard(path, epoch=1)
    open_shard(path, epoch=1, lock_timeout_s=0).close()
