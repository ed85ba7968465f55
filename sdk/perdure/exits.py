"""Exit codes of workers: how one tells the supervisor why it ended.  Used by both, and by a store that fails.

Guarantees one number and one sentence for each reason, and that none is a code which Python, a shell or
a signal uses.  The codes of `perdure run` itself are in perdure_cli.errors.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["WorkerExit"]


class WorkerExit(IntEnum):
    """Why a worker ended; `meaning` says it to the operator.

    An application that calls ``os._exit(0)`` ends with 0 too: `STOPPED` means what it says only of a worker
    that was asked to stop.
    """

    meaning: str

    def __new__(cls, code: int, meaning: str = "") -> WorkerExit:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    STOPPED = 0, "it stopped in order: every turn had ended and every commit is on disk"
    WRITE_FAILED = 70, "a write failed, and only a restart finds out what is on disk"
    STALE_EPOCH = 71, "the shard was owned by a later incarnation than this data directory knows"
    SHARD_DAMAGED = 72, "the shard is damaged; restore it from a backup"
    NEWER_FORMAT = 73, "the shard was written by a newer Perdure; run that version"
    SHARD_LOCKED = 74, "another process has the shard open; end that process"
    STORE_UNAVAILABLE = 75, "the shard cannot be opened now: no space, no descriptors or no permission"
    TURNS_CUT = 76, "turns did not end in the time that a stop may take; their callers do not know"
    NO_SPACE = 77, "a write found no space on the disk; it goes on when there is room"
    APP_NOT_LOADED = 78, "the application cannot be loaded; correct it and start again"
