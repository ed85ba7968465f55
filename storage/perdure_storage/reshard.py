"""Moving rows when the number of workers changes. Offline: the supervisor runs it while no worker does.

Guarantees:

- Every row of a slot is in the store of the slot's owner when `reshard` returns, and in no other.
- What recorded replies a slot's objects have given is known to the slot's owner (`reply_log`).
- What a store that loses slots holds of frames for gateways is dropped: gateways stop with their workers, and
  their clients with them. One that runs elsewhere and lives on loses what it had not taken yet.
- The switch from the old placement to the new one is a single step of the caller's (`commit_placement`).
  It comes after all copies were read back from disk and compared, and before any row is removed.
- A crash at any instant loses nothing and leaves nothing stale in use, provided that `reshard` is called
  again, with the placement then in effect as `old`, before a worker runs. So call it at every start: with
  nothing to do it costs one look for the journal.

Why that suffices: the journal names the old and the new placement. When the one in effect is still the
old one, the copies in the destinations are leftovers; when it is the new one, the originals in the sources
are. Either way the leftovers are exactly the moved slots on the side that does not own them, and go first.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from perdure.errors import StorageError
from perdure_storage.engine import Batch, Engine
from perdure_storage.keys import (
    DUE_REGION,
    FRAMES_REGION,
    NAMES_REGION,
    RESERVED_REGION,
    SOCKETS_REGION,
    parse_due_row,
    parse_names_value,
    parse_socket_row,
    prefix_end,
    slot_bounds,
)
from perdure_storage.leveldb import WRITE_BUFFER_BYTES, LevelDBEngine
from perdure_storage.records import unseal
from perdure_storage.reply_log import fold, lacks_clients, merge_clients
from perdure_storage.shard import is_provisioned, open_offline, provision, sync_directory

__all__ = ["Move", "plan_moves", "reshard"]

BATCH_BYTES_MAX: Final = 1 << 20
"""Rows of one synced batch; bounds memory, and LevelDB merges no further (RELIABILITY §1.5)."""


Ranges = tuple[tuple[int, int], ...]
"""A placement as the journal holds it: ``(start, stop)`` of each worker's slots."""


class Move(NamedTuple):
    """`slots` go from the store of worker `source` to that of worker `destination`."""

    source: int
    destination: int
    slots: range


def plan_moves(old: Sequence[range], new: Sequence[range]) -> list[Move]:
    """Which slots change their owner. Raises `StorageError` unless both cover the same slots, each once."""
    covered = _covered(old)
    if covered != _covered(new) or len(set(covered)) != len(covered):
        raise StorageError(f"the placements do not cover the same slots once: {list(old)} and {list(new)}")
    return [
        Move(source, destination, range(max(mine.start, theirs.start), min(mine.stop, theirs.stop)))
        for source, mine in enumerate(old)
        for destination, theirs in enumerate(new)
        if source != destination and max(mine.start, theirs.start) < min(mine.stop, theirs.stop)
    ]


def reshard(
    data_dir: Path,
    *,
    old: Sequence[range],
    new: Sequence[range],
    shard_path: Callable[[int], Path],
    journal: Path,
    commit_placement: Callable[[], None],
    open_store: Callable[[Path], LevelDBEngine] = open_offline,
) -> None:
    """Brings every row to its owner under `new`, where worker i owns the slots ``new[i]``.

    `old` is the placement in effect, also after a crash. `commit_placement` makes `new` the one in effect,
    atomically and durably; it may be called again for the same `new`. `journal` is a file beside the
    shards that exists exactly while leftovers may. Shards that `new` adds are provisioned; those that it
    drops stay, without objects.

    Raises `StorageError` when the disk has no room, a record is damaged, a copy differs, a destination
    holds rows that are not its own, or the journal belongs to other placements. No slot has changed its
    owner then, unless `commit_placement` has returned. After any error: call it again.
    """
    stores = _Stores(shard_path, open_store)
    try:
        unfinished = _read_journal(journal)
        if unfinished is not None:
            _remove_leftovers(unfinished, _ranges(old), stores)
            stores.close()
            _remove_journal(journal)
        if _ranges(old) != _ranges(new):
            _move_rows(data_dir, old, new, journal, stores, commit_placement)
    finally:
        stores.close()


def _move_rows(
    data_dir: Path,
    old: Sequence[range],
    new: Sequence[range],
    journal: Path,
    stores: _Stores,
    commit_placement: Callable[[], None],
) -> None:
    moves = plan_moves(old, new)
    _check_destinations(moves, stores)
    _check_space(data_dir, moves, stores)
    _write_journal(journal, old, new)
    for worker in range(len(old), len(new)):
        stores.provision(worker)
    copied = {move: _copy(move, stores) for move in moves}
    _tell_of_replies(moves, stores)
    stores.close()  # what is compared is read from the files, not from memory
    for move, digest in copied.items():
        _compare(move, digest, stores)
        if lacks_clients(stores.store(move.source), stores.store(move.destination), move.slots):
            raise StorageError(
                f"the copy of recorded replies in shard {move.destination} is not complete; no slot has "
                "changed its owner: check disk and memory of this machine, then start again"
            )
    commit_placement()
    for move in moves:
        _delete(stores.store(move.source), move.slots)
        _drop_frames(stores.store(move.source))
    stores.close()
    _remove_journal(journal)


# --- rows


@dataclass
class Digest:
    """Count and rolling hash of rows in the order in which they were added."""

    count: int = 0
    _hash: blake2b = field(default_factory=lambda: blake2b(digest_size=32))

    def add(self, key: bytes, record: bytes) -> None:
        self.count += 1
        self._hash.update(len(key).to_bytes(4, "big") + key + len(record).to_bytes(4, "big") + record)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class _Stores:
    """The stores in use, each opened once."""

    def __init__(
        self, shard_path: Callable[[int], Path], open_store: Callable[[Path], LevelDBEngine]
    ) -> None:
        self._shard_path = shard_path
        self._open_store = open_store
        self._open: dict[int, LevelDBEngine] = {}

    def store(self, worker: int) -> LevelDBEngine:
        if worker not in self._open:
            store = self._open_store(self._shard_path(worker))
            self._open[worker] = store
            with store.scan(RESERVED_REGION, b"\xff") as rows:
                if next(rows, None) is not None:
                    raise StorageError(
                        f"{self._shard_path(worker)} holds rows that this version does not know: change the "
                        "number of workers with the version of Perdure that wrote them"
                    )
        return self._open[worker]

    def exists(self, worker: int) -> bool:
        return is_provisioned(self._shard_path(worker))

    def provision(self, worker: int) -> None:
        if not self.exists(worker):
            provision(self._shard_path(worker))

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _rows_of(store: Engine, slots: range) -> Generator[tuple[bytes, bytes], None, None]:
    """Every row that belongs to `slots`: the objects', their names', what is due for them, their sockets'.

    A damaged one is an error.
    """
    with store.scan(*slot_bounds(slots)) as rows:
        for key, record in rows:
            unseal(key, record)
            yield key, record
    with store.scan(NAMES_REGION, prefix_end(NAMES_REGION)) as rows:
        for key, record in rows:
            slot, _ = parse_names_value(unseal(key, record))
            if slot in slots:
                yield key, record
    with store.scan(DUE_REGION, prefix_end(DUE_REGION)) as rows:
        for key, record in rows:
            unseal(key, record)
            if parse_due_row(key).slot in slots:
                yield key, record
    with store.scan(SOCKETS_REGION, prefix_end(SOCKETS_REGION)) as rows:
        for key, record in rows:
            unseal(key, record)
            if parse_socket_row(key).slot in slots:
                yield key, record


def _copy(move: Move, stores: _Stores) -> Digest:
    digest = Digest()
    destination = stores.store(move.destination)

    def add(batch: Batch, row: tuple[bytes, bytes]) -> None:
        batch.put(*row)
        digest.add(*row)

    _write_bounded(destination, _rows_of(stores.store(move.source), move.slots), add)
    return digest


def _compare(move: Move, expected: Digest, stores: _Stores) -> None:
    found = Digest()
    for row in _rows_of(stores.store(move.destination), move.slots):
        found.add(*row)
    if (found.count, found.hexdigest()) != (expected.count, expected.hexdigest()):
        raise StorageError(
            f"the copy of slots {move.slots.start} to {move.slots.stop - 1} in shard {move.destination} "
            f"differs from shard {move.source} ({found.count} rows instead of {expected.count}); no slot has "
            "changed its owner: check disk and memory of this machine, then start again"
        )


def _tell_of_replies(moves: Sequence[Move], stores: _Stores) -> None:
    for move in moves:
        fold(stores.store(move.source), int(time.time()))
    for _ in moves:  # a source may be the destination of another move, and learn by it
        for move in moves:
            source, destination = stores.store(move.source), stores.store(move.destination)
            if lacks_clients(source, destination, move.slots):
                merge_clients(source, destination, move.slots)


def _delete(store: Engine, slots: range) -> None:
    def add(batch: Batch, row: tuple[bytes, bytes]) -> None:
        batch.delete(row[0])

    _write_bounded(store, _rows_of(store, slots), add)


def _drop_frames(store: Engine) -> None:
    """Removes what gateways have not taken from a store that has lost slots.

    Behind what the slots' new owner sends it would come out of order, and a store without slots has no
    worker that could send it.
    """

    def add(batch: Batch, row: tuple[bytes, bytes]) -> None:
        batch.delete(row[0])

    with store.scan(FRAMES_REGION, prefix_end(FRAMES_REGION)) as frames:
        _write_bounded(store, frames, add)


def _write_bounded(
    store: Engine,
    rows: Iterable[tuple[bytes, bytes]],
    add: Callable[[Batch, tuple[bytes, bytes]], None],
) -> None:
    """Writes `rows` in batches of bounded size. An error leaves the store to be opened anew."""
    batch, size = store.new_batch(), 0
    for row in rows:
        add(batch, row)
        size += len(row[0]) + len(row[1])
        if size >= BATCH_BYTES_MAX:
            store.write(batch)
            batch, size = store.new_batch(), 0
    if size:
        store.write(batch)


def _remove_leftovers(unfinished: tuple[Ranges, Ranges], in_effect: Ranges, stores: _Stores) -> None:
    old, new = unfinished
    if in_effect not in (old, new):
        raise StorageError(
            f"an unfinished change of the number of workers went from {len(old)} to {len(new)}, but the "
            f"placement in effect has {len(in_effect)} other ones: restore the placement file and the shards "
            "from one backup"
        )
    for move in plan_moves(_as_ranges(old), _as_ranges(new)):
        worker = move.destination if in_effect == old else move.source
        if stores.exists(worker):
            _delete(stores.store(worker), move.slots)
            if in_effect == new:
                _drop_frames(stores.store(worker))


# --- the journal and the disk


def _ranges(placement: Sequence[range]) -> Ranges:
    return tuple((slots.start, slots.stop) for slots in placement)


def _as_ranges(pairs: Ranges) -> list[range]:
    return [range(start, stop) for start, stop in pairs]


def _covered(placement: Sequence[range]) -> list[int]:
    return sorted(slot for slots in placement for slot in slots)


def _check_destinations(moves: Sequence[Move], stores: _Stores) -> None:
    """Refuses to mix: without a journal, rows of moving slots in a destination are nobody's leftovers.

    They would mean that the placement given as old is not the one under which the workers last ran.
    """
    for move in moves:
        if not stores.exists(move.destination):
            continue
        with closing(_rows_of(stores.store(move.destination), move.slots)) as rows:
            if next(rows, None) is not None:
                raise StorageError(
                    f"shard {move.destination} holds rows of slots {move.slots.start} to "
                    f"{move.slots.stop - 1}, which are shard {move.source}'s: placement file and shards are "
                    "not of one time. Restore them from one backup"
                )


def _check_space(data_dir: Path, moves: Sequence[Move], stores: _Stores) -> None:
    moved = sum(stores.store(move.source).approximate_bytes(*slot_bounds(move.slots)) for move in moves)
    # Beside the rows: a log and a table in the making, in each store that is written.
    needed = moved + 2 * WRITE_BUFFER_BYTES * len({worker for move in moves for worker in move[:2]})
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise StorageError(
            f"changing the number of workers needs about {needed} free bytes in {data_dir}, there are "
            f"{free}: nothing was changed"
        )


def _write_journal(journal: Path, old: Sequence[range], new: Sequence[range]) -> None:
    draft = journal.with_name(journal.name + ".new")
    with open(draft, "w", encoding="utf-8") as file:
        json.dump({"old": _ranges(old), "new": _ranges(new)}, file)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(journal)
    sync_directory(journal.parent)


def _read_journal(journal: Path) -> tuple[Ranges, Ranges] | None:
    try:
        content = json.loads(journal.read_text("utf-8"))
        old, new = (tuple((int(a), int(b)) for a, b in content[side]) for side in ("old", "new"))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"the journal {journal} is damaged: restore the data directory from a backup"
        ) from error
    return old, new


def _remove_journal(journal: Path) -> None:
    journal.unlink(missing_ok=True)
    sync_directory(journal.parent)
