"""What the LevelDB engine adds to the interface: nothing created unasked, checked reads, synced directory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import plyvel
import pytest

from perdure.errors import StorageError
from perdure_storage.leveldb import LevelDBEngine, error_text, time_stamp_grain_ns

SECOND_NS = 1_000_000_000


def put(engine: LevelDBEngine, key: bytes, value: bytes) -> None:
    batch = engine.new_batch()
    batch.put(key, value)
    engine.write(batch)


def store_with_damaged_blocks(path: Path) -> tuple[list[bytes], list[bytes]]:
    """Makes a store of one table and damages every third block or so; returns all and the damaged keys."""
    engine = LevelDBEngine(path, create=True)
    keys = [b"key%05d" % number for number in range(2_000)]
    batch = engine.new_batch()
    for key in keys:
        batch.put(key, os.urandom(20))  # does not compress, so that the table has many blocks
    engine.write(batch)
    engine._db.compact_range()
    engine.close()
    (table,) = path.glob("*.ldb")
    content = bytearray(table.read_bytes())
    for offset in range(1_000, len(content) * 9 // 10, 13_000):
        content[offset] ^= 0x01
    table.write_bytes(content)
    engine = LevelDBEngine(path)
    damaged = [key for key in keys if raises_storage_error(lambda key=key: engine.get(key))]
    engine.close()
    return keys, damaged


def raises_storage_error(read: Callable[[], object]) -> bool:
    try:
        read()
    except StorageError as error:
        return "backup" in str(error)
    return False


def test_what_was_written_is_there_after_reopening(tmp_path: Path) -> None:
    engine = LevelDBEngine(tmp_path / "db", create=True)
    put(engine, b"a", b"1")
    engine.close()
    engine = LevelDBEngine(tmp_path / "db")
    assert engine.get(b"a") == b"1"
    engine.close()


def test_nothing_is_created_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(plyvel.Error) as caught:
        LevelDBEngine(tmp_path / "db")
    assert "does not exist" in error_text(caught.value)
    assert not (tmp_path / "db" / "CURRENT").exists()


def test_creating_over_an_existing_store_is_refused(tmp_path: Path) -> None:
    LevelDBEngine(tmp_path / "db", create=True).close()
    with pytest.raises(plyvel.Error):
        LevelDBEngine(tmp_path / "db", create=True)


def test_a_damaged_block_is_an_error_of_get_and_never_a_wrong_or_missing_row(tmp_path: Path) -> None:
    keys, damaged = store_with_damaged_blocks(tmp_path / "db")
    assert 100 < len(damaged) < 1_500
    engine = LevelDBEngine(tmp_path / "db")
    with engine.snapshot() as snapshot:
        for key in set(keys) - set(damaged):
            assert engine.get(key) is not None
            assert snapshot.get(key) is not None
        assert all(raises_storage_error(lambda key=key: snapshot.get(key)) for key in damaged)
    engine.close()


def test_a_scan_that_meets_a_damaged_block_is_an_error_wherever_it_begins_and_ends(tmp_path: Path) -> None:
    keys, _ = store_with_damaged_blocks(tmp_path / "db")
    engine = LevelDBEngine(tmp_path / "db")

    def scan(first: int, stop: int, *, reverse: bool) -> list[bytes] | None:
        try:
            with engine.scan(keys[first], keys[stop], reverse=reverse) as rows:
                return sorted(key for key, _ in rows)
        except StorageError:
            return None

    complete = 0
    for first in range(0, 1_900, 37):
        for stop in (first + 1, first + 40, first + 300, 1_999):
            for reverse in (False, True):
                last = min(stop, 1_999)
                found = scan(first, last, reverse=reverse)
                assert found is None or found == keys[first:last], (first, last, reverse)
                complete += found is not None
    assert complete > 100
    engine.close()


def test_a_damaged_log_keeps_the_store_closed(tmp_path: Path) -> None:
    engine = LevelDBEngine(tmp_path / "db", create=True)
    for number in range(20):
        put(engine, b"key%d" % number, bytes(100))
    engine.close()
    (log,) = (tmp_path / "db").glob("*.log")
    content = bytearray(log.read_bytes())
    content[len(content) // 2] ^= 0x01
    log.write_bytes(content)
    with pytest.raises(plyvel.CorruptionError):
        LevelDBEngine(tmp_path / "db")


def test_the_directory_is_synced_when_it_has_changed_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = LevelDBEngine(tmp_path / "db", create=True)
    synced: list[int] = []
    real_fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real_fsync(descriptor)))
    long_ago = 1_000_000_000_000_000_007

    os.utime(tmp_path / "db", ns=(long_ago, long_ago))
    put(engine, b"a", b"1")
    assert len(synced) == 1  # the first write after opening always syncs it
    put(engine, b"a", b"2")
    assert len(synced) == 1
    os.utime(tmp_path / "db", ns=(long_ago + 1, long_ago + 1))
    put(engine, b"a", b"3")
    assert len(synced) == 2
    assert os.path.samestat(os.stat(tmp_path / "db"), os.fstat(synced[0]))
    assert engine.stats()["directory_syncs"] == 2
    engine.close()


def test_a_directory_that_changed_just_now_is_synced_again(tmp_path: Path) -> None:
    # A later change may bear the same time stamp, so a fresh one proves nothing.
    engine = LevelDBEngine(tmp_path / "db", create=True)
    for _ in range(2):
        os.utime(tmp_path / "db")
        mtime = os.stat(tmp_path / "db").st_mtime_ns
        put(engine, b"a", b"1")
        os.utime(tmp_path / "db", ns=(mtime, mtime))
        assert engine._synced_mtime_ns is None
    assert engine.stats()["directory_syncs"] == 2
    engine.close()


def test_a_new_log_file_leads_to_a_sync_of_its_directory(tmp_path: Path) -> None:
    engine = LevelDBEngine(tmp_path / "db", create=True, write_buffer_bytes=64 << 10)
    long_ago = 1_000_000_000_000_000_007
    os.utime(tmp_path / "db", ns=(long_ago, long_ago))
    put(engine, b"a", b"1")
    before = engine.stats()["directory_syncs"]
    first_log = set((tmp_path / "db").glob("*.log"))
    while set((tmp_path / "db").glob("*.log")) == first_log:
        put(engine, os.urandom(8), os.urandom(8 << 10))
    assert int(engine.stats()["directory_syncs"]) > int(before)
    engine.close()


def test_time_stamps_of_whole_seconds_are_trusted_only_after_two_of_them() -> None:
    assert time_stamp_grain_ns(5 * SECOND_NS) == 2 * SECOND_NS
    assert time_stamp_grain_ns(5 * SECOND_NS + 4_000_000) < SECOND_NS // 10


def test_stats_tell_what_the_store_weighs(tmp_path: Path) -> None:
    engine = LevelDBEngine(tmp_path / "db", create=True)
    put(engine, b"a", bytes(100_000))
    stats = engine.stats()
    assert int(stats["disk_bytes"]) > 0
    assert int(stats["memory_bytes"]) > 100_000
    assert stats["level0_files"] == 0
    engine.close()


def test_approximate_bytes_count_the_tables_between_two_keys(tmp_path: Path) -> None:
    engine = LevelDBEngine(tmp_path / "db", create=True)
    for number in range(100):
        put(engine, b"%03d" % number, os.urandom(10_000))
    engine._db.compact_range()
    half = engine.approximate_bytes(b"000", b"050")
    assert 400_000 < half < 600_000
    assert engine.approximate_bytes(b"x", b"z") == 0
    engine.close()
