"""What can end `perdure run` before or while it serves, and the exit code of each.

    PerdureError (perdure.errors)
    └── CannotRun             base: `exit_code` is what the process exits with
        ├── BadOption         the command line contradicts itself, the machine or the data directory
        ├── AlreadyRunning    another supervisor holds the data directory (`pid`, `command`)
        ├── UnsafeDirectory   others could read or replace what the directory holds
        ├── StateDamaged      the state file is lost or does not match its checksum
        ├── StateTooNew       the state file was written by a newer Perdure
        ├── ApplicationNotLoaded  the application cannot be loaded
        └── AddressInUse      a --bind or --http address is taken by another process

All are raised in the supervisor's process and never travel to a client.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import ClassVar

from perdure.errors import PerdureError

__all__ = [
    "AddressInUse",
    "AlreadyRunning",
    "ApplicationNotLoaded",
    "BadOption",
    "CannotRun",
    "RunExit",
    "StateDamaged",
    "StateTooNew",
    "UnsafeDirectory",
]


class RunExit(IntEnum):
    """Exit codes of `perdure run`."""

    OK = 0
    """Ordered stop: every turn that had started ended, and every commit is on disk."""
    APPLICATION = 1
    """The application cannot be loaded."""
    USAGE = 2
    """The command line is wrong."""
    LOCKED = 3
    """Another supervisor holds the data directory."""
    FORCED = 4
    """Stopped, but turns or a process were cut off, or one failed meanwhile; acknowledged data is safe."""
    CANNOT_START = 5
    """The data directory or an address cannot be used."""
    INTERNAL = 70
    """A defect of the supervisor; the children were killed, acknowledged data is safe."""


class CannotRun(PerdureError):
    """The cluster cannot be started; the message says what to change."""

    exit_code: ClassVar[RunExit] = RunExit.CANNOT_START


class BadOption(CannotRun):
    """An option does not go with the others, with this machine or with the data directory; correct it."""

    exit_code = RunExit.USAGE


class AlreadyRunning(CannotRun):
    """A process holds the data directory's lock: stop it, or choose another directory with --data.

    `pid` and `command` are the holder's, None and "" when it has not written them yet.
    """

    exit_code = RunExit.LOCKED

    def __init__(self, path: Path, pid: int | None, command: str) -> None:
        holder = f"process {pid} ({command})" if pid is not None else "another process"
        super().__init__(
            f"the data directory {path} is in use by {holder}; stop it first, or choose another with --data"
        )
        self.path = path
        self.pid = pid
        self.command = command


class UnsafeDirectory(CannotRun):
    """The directory `path` could be read or replaced by other users, or its file system cannot lock."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path} {problem}")
        self.path = path


class StateDamaged(CannotRun):
    """The state file is lost or unreadable: restore it with the shards from one and the same backup."""


class StateTooNew(CannotRun):
    """The data directory was written by a newer Perdure (format `found`): run that version."""

    def __init__(self, found: int, supported: int) -> None:
        super().__init__(
            f"the data directory has format {found}, this Perdure reads up to {supported}: run a newer one"
        )
        self.found = found
        self.supported = supported


class ApplicationNotLoaded(CannotRun):
    """The application cannot be loaded; `reason`, which a worker gave, says what to correct."""

    exit_code = RunExit.APPLICATION

    def __init__(self, reason: str) -> None:
        super().__init__(f"the application cannot be loaded: {reason}")
        self.reason = reason


class AddressInUse(CannotRun):
    """Another process listens at `address`: stop it, or choose another port with `option`."""

    def __init__(self, address: str, reason: str, option: str = "--bind") -> None:
        advice = "; choose another with --http, or --http off" if option == "--http" else ""
        super().__init__(f"cannot listen at {address}: {reason}{advice}")
        self.address = address
