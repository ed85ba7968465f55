"""Which shards the data directory holds: their making, and the change of their number.

Runs in the supervisor, under the data directory's lock, before any worker does.  Guarantees that a store
is made only where the state on disk says that none was made yet, so that a lost one is never replaced by
an empty one (the worker that owns it says so and is parked); and that objects are moved to the shards of
a new number of workers, or a move that was cut off is brought to an end, before a worker runs.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace

from perdure.slotmap import contiguous_ranges
from perdure_cli.datadir import DataDirectory
from perdure_cli.errors import BadOption, CannotRun
from perdure_cli.state import ClusterState, first_state

__all__ = ["default_workers", "prepare_shards"]

_WORKERS_DEFAULT_MAX = 4
"""More than a fresh installation needs; each costs about 40 MB. The operator knows better with --workers."""

_log = logging.getLogger("perdure.supervisor")


def default_workers() -> int:
    """Workers of a new data directory for which none were named: one per core that we may use, up to 4."""
    return min(len(os.sched_getaffinity(0)), _WORKERS_DEFAULT_MAX)


def prepare_shards(
    directory: DataDirectory, engine: str, workers: int | None, slot_count: int
) -> ClusterState:
    """The state to start from; all its shards have been made and hold their own objects.

    `workers` None keeps what the directory has.  `slot_count` counts for a new directory only.
    Raises `BadOption` when the directory was made for another engine, `StateDamaged`, `StateTooNew`,
    `StorageError` when objects cannot be moved (nothing is lost: see the message), and OSError.
    """
    state = directory.read_state()
    if state is None:
        state = first_state(engine, slot_count, workers or default_workers())
        directory.write_state(state)
    if state.engine != engine:
        raise BadOption(
            f"{directory.path} was made with --engine {state.engine}: use that, or another --data"
        )
    if engine == "memory":  # nothing of an earlier run is there to be provisioned or moved
        wanted = _ranges(state, workers)
        return state if wanted == state.ranges else state.with_ranges(wanted)
    if state.unprovisioned:
        state = _provision(directory, state)
    return _reshard(directory, state, _ranges(state, workers))


def _ranges(state: ClusterState, workers: int | None) -> tuple[range, ...]:
    if workers is None or workers == state.workers:
        return state.ranges
    return tuple(contiguous_ranges(state.slot_count, workers))


def _provision(directory: DataDirectory, state: ClusterState) -> ClusterState:
    # LevelDB is imported where a store is touched only: an ordinary start does without (20 ms).
    import plyvel

    from perdure_storage.shard import is_provisioned, provision

    for shard in state.unprovisioned:
        if not is_provisioned(directory.shard_path(shard)):
            try:
                provision(directory.shard_path(shard))
            except plyvel.Error as error:
                raise CannotRun(f"shard {shard} cannot be made: {error}") from error
    state = replace(state, unprovisioned=())
    directory.write_state(state)
    return state


def _reshard(directory: DataDirectory, state: ClusterState, wanted: tuple[range, ...]) -> ClusterState:
    if wanted == state.ranges and not directory.reshard_journal.exists():
        return state
    import plyvel  # late: see _provision

    from perdure_storage.reshard import reshard

    counts = {"old": state.workers, "new": len(wanted)}
    _log.info("objects are moved for another number of workers", extra=counts)
    started = time.monotonic()
    moved = state.with_ranges(wanted)
    try:
        reshard(
            directory.path,
            old=state.ranges,
            new=wanted,
            shard_path=directory.shard_path,
            journal=directory.reshard_journal,
            commit_placement=lambda: directory.write_state(moved),
        )
    except plyvel.Error as error:
        raise CannotRun(f"objects could not be moved: {error}; nothing is lost, start again") from error
    _log.info("objects were moved", extra={**counts, "seconds": round(time.monotonic() - started, 3)})
    return moved
