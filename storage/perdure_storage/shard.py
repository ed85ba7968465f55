"""One worker's directory: made once by `provision`, opened by `open_shard`. Supervisor and worker.

Guarantees:

- A store is created only by `provision`, and only where none has ever been: LevelDB asked to create over
  a lost CURRENT file deletes every table (RELIABILITY §1.1). The marker beside the directory, written last
  and in another folder, tells that there must be data.
- One process has a store open (LevelDB's lock), and the highest epoch that ever opened it wins: an older
  incarnation that comes late is refused.
- What cannot be trusted is refused with an error that says what to do; nothing is repaired silently.

    <data>/shard-0000/               LevelDB
    <data>/shard-0000.provisioned    marker: the directory has been made, completely and durably
    <data>/shard-0000.sequence       a commit that is in it (see `sequence_mirror`)
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import plyvel

from perdure.errors import StorageError
from perdure_storage.commit import read_sequence
from perdure_storage.engine import Engine
from perdure_storage.errors import NewerFormat, ShardDamaged, ShardLocked, StaleEpoch
from perdure_storage.keys import EPOCH_KEY, FORMAT_KEY, OBJECTS_REGION
from perdure_storage.leveldb import LevelDBEngine, error_text
from perdure_storage.records import seal_number, unseal_number
from perdure_storage.sequence_mirror import SequenceMirror, mirror_path, read_mirror

__all__ = [
    "SHARD_FORMAT",
    "is_provisioned",
    "marker_path",
    "open_offline",
    "open_shard",
    "provision",
    "read_epoch",
    "sync_directory",
]

SHARD_FORMAT: Final = 1
"""Layout of keys and regions (docs/DATA.md) that this version reads and writes."""

LOCK_TIMEOUT_S: Final = 10.0
"""How long an owner that was just killed may take to be gone; the kernel frees its lock with it."""
_LOCK_RETRY_S: Final = 0.02


def marker_path(path: Path) -> Path:
    """The marker of the shard at `path`."""
    return path.with_name(path.name + ".provisioned")


def is_provisioned(path: Path) -> bool:
    """Whether the shard at `path` was completely made once (it may have been lost since)."""
    return marker_path(path).exists()


def provision(path: Path) -> None:
    """Makes an empty shard at `path`, durably. A run that was cut off is simply repeated.

    Raises `StorageError` when the shard exists and `ShardDamaged` when the directory holds data although
    its marker is missing.
    """
    if is_provisioned(path):
        raise StorageError(f"the shard {path} exists already")
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = LevelDBEngine(path, create=not _has_untouched_store(path))
    try:
        batch = engine.new_batch()
        batch.put(FORMAT_KEY, seal_number(FORMAT_KEY, SHARD_FORMAT))
        batch.put(EPOCH_KEY, seal_number(EPOCH_KEY, 0))
        engine.write(batch)
    finally:
        engine.close()
    # The store has synced its own directory with its first write.
    mirror_path(path).unlink(missing_ok=True)  # of a store that was here before
    for folder in {path.parent, *(folder.parent for folder in made)}:
        sync_directory(folder)
    with open(marker_path(path), "w", encoding="utf-8") as marker:
        marker.write(f"format {SHARD_FORMAT}\n")
        marker.flush()
        os.fsync(marker.fileno())
    sync_directory(path.parent)


def open_shard(path: Path, *, epoch: int, lock_timeout_s: float = LOCK_TIMEOUT_S) -> LevelDBEngine:
    """The store at `path`, owned by this process from now on and durably marked with `epoch`.

    Raises `ShardLocked` when another process keeps it open for `lock_timeout_s`, `StaleEpoch` when a later
    incarnation has opened it, `NewerFormat` when a newer version wrote it, `ShardDamaged` when something
    is missing or corrupt, and `StorageError` when the system does not let it be opened (no space, no
    descriptors: repairable without a backup).
    """
    engine = open_offline(path, lock_timeout_s=lock_timeout_s)
    try:
        stored = read_epoch(engine)
        if stored > epoch:
            raise StaleEpoch(
                f"the shard {path} was opened by epoch {stored}; this process has epoch {epoch} and must "
                "end. If there is no newer process, the supervisor's record of epochs is too old: restore it",
                stored=stored,
                epoch=epoch,
            )
        batch = engine.new_batch()
        batch.put(EPOCH_KEY, seal_number(EPOCH_KEY, epoch))
        engine.write(batch)
        engine.mirror_sequence(SequenceMirror(path))
    except BaseException:
        engine.close()
        raise
    return engine


def open_offline(path: Path, *, lock_timeout_s: float = LOCK_TIMEOUT_S) -> LevelDBEngine:
    """The store at `path` for a command that works while no worker runs; its epoch stays as it is.

    Raises what `open_shard` raises, save `StaleEpoch`.
    """
    if not is_provisioned(path):
        raise ShardDamaged(
            f"the shard {path} has no marker {marker_path(path).name}: it was never completely made, or only "
            "part of a backup was restored. Restore both the directory and its marker",
            path=path,
        )
    if not (path / "CURRENT").exists():
        raise ShardDamaged(
            f"the shard {path} has lost its data (there is no CURRENT file in it). Nothing was created in "
            "its place: keep what is left and restore the shard from a backup",
            path=path,
        )
    engine = _open_locked(path, lock_timeout_s)
    try:
        _check_format(path, engine)
        _check_end(path, engine)
    except BaseException:
        engine.close()
        raise
    return engine


def read_epoch(engine: Engine) -> int:
    """The highest epoch that has opened this store."""
    return unseal_number(EPOCH_KEY, engine.get(EPOCH_KEY)) or 0


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable: created, renamed and removed files."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _open_locked(path: Path, lock_timeout_s: float) -> LevelDBEngine:
    deadline = time.monotonic() + lock_timeout_s
    while True:
        try:
            return LevelDBEngine(path)
        except plyvel.CorruptionError as error:
            raise ShardDamaged(
                f"the shard {path} is damaged ({error_text(error)}). Keep the directory as it is and restore "
                "the shard from a backup",
                path=path,
            ) from error
        except plyvel.Error as error:
            # LevelDB gives no error number; this wording is its own, not the system's.
            if f"lock {path}/LOCK" not in error_text(error):
                raise StorageError(f"the shard {path} cannot be opened: {error_text(error)}") from error
            if time.monotonic() >= deadline:
                raise ShardLocked(
                    f"another process has the shard {path} open, also after {lock_timeout_s:g} s. End that "
                    "process and start again; never delete the LOCK file",
                    path=path,
                ) from error
        time.sleep(_LOCK_RETRY_S)


def _check_format(path: Path, engine: Engine) -> None:
    found = unseal_number(FORMAT_KEY, engine.get(FORMAT_KEY))
    if found is None:
        raise ShardDamaged(
            f"the shard {path} holds no format number: it is no shard of ours, or has lost its beginning. "
            "Restore it from a backup",
            path=path,
        )
    if found > SHARD_FORMAT:
        raise NewerFormat(
            f"the shard {path} has format {found}; this version of Perdure reads up to {SHARD_FORMAT}: run "
            "the version that wrote it",
            found=found,
            supported=SHARD_FORMAT,
        )


def _check_end(path: Path, engine: Engine) -> None:
    found, mirrored = read_sequence(engine), read_mirror(path)
    if mirrored is not None and found < mirrored:
        raise ShardDamaged(
            f"the shard {path} ends at commit {found}, but commit {mirrored} was in it: the end of its log "
            "is missing. Keep the directory as it is and restore the shard from a backup. If this is a "
            f"restored backup, remove {mirror_path(path).name}, which is younger",
            path=path,
        )


def _has_untouched_store(path: Path) -> bool:
    """Whether an earlier `provision` that was cut off left a store at `path`; refuses one with data."""
    names = os.listdir(path)
    if "CURRENT" not in names:
        # LevelDB writes CURRENT before any log or table, so these without it are a store that lost it.
        if any(name.endswith((".log", ".ldb", ".sst")) for name in names):
            raise _data_without_marker(path)
        return False
    engine = _open_locked(path, LOCK_TIMEOUT_S)
    try:
        with engine.scan(OBJECTS_REGION, b"\xff") as rows:
            if read_epoch(engine) > 0 or next(rows, None) is not None:
                raise _data_without_marker(path)
    finally:
        engine.close()
    return True


def _data_without_marker(path: Path) -> ShardDamaged:
    return ShardDamaged(
        f"the directory {path} holds data but its marker {marker_path(path).name} is missing; a new shard "
        "must not be made over it. Restore the marker, or move the directory away",
        path=path,
    )
