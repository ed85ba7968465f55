"""Which exit code an error of the store means, and so what happens next.  Pure; runs in workers.

LevelDB tells the kernel's reason as text only, and an error of ours keeps it as its cause.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from perdure.exits import WorkerExit
from perdure_storage.errors import DamagedRecord, NewerFormat, ShardDamaged, ShardLocked, StaleEpoch

__all__ = ["exit_of_open", "exit_of_write", "is_broken_disk", "is_full_disk"]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_BROKEN: Final = frozenset({errno.EIO})
_OF_OPEN: Final = (
    (StaleEpoch, WorkerExit.STALE_EPOCH),
    (ShardDamaged | DamagedRecord, WorkerExit.SHARD_DAMAGED),
    (NewerFormat, WorkerExit.NEWER_FORMAT),
    (ShardLocked, WorkerExit.SHARD_LOCKED),
)


def is_full_disk(error: BaseException) -> bool:
    """Whether the file system, or the user's share of it, has no room: it may have later."""
    return _has(error, _FULL)


def is_broken_disk(error: BaseException) -> bool:
    """Whether the device failed to read or write."""
    return _has(error, _BROKEN)


def exit_of_write(error: BaseException) -> WorkerExit:
    """How a worker ends that could not write."""
    return WorkerExit.NO_SPACE if is_full_disk(error) else WorkerExit.WRITE_FAILED


def exit_of_open(error: BaseException) -> WorkerExit:
    """How a worker ends that could not open its store: what is no known damage may pass."""
    other = WorkerExit.WRITE_FAILED if is_broken_disk(error) else WorkerExit.STORE_UNAVAILABLE
    return next((code for kind, code in _OF_OPEN if isinstance(error, kind)), other)


def _has(error: BaseException | None, numbers: frozenset[int]) -> bool:
    texts = [os.strerror(number) for number in numbers]
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        if any(text in str(error) for text in texts):
            return True
        error = error.__cause__
    return False
