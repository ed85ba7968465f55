"""Errors of stored data, and what the operator of the machine can do about each.

    StorageError (perdure.errors)
    ├── DamagedRecord   one row's checksum is wrong: restore this shard from a backup
    ├── NewerFormat     written by a newer Perdure: run that version
    ├── StaleEpoch      a newer incarnation has owned this shard: stop this one
    ├── ShardLocked     another process holds the directory: end that process
    └── ShardDamaged    files are missing or corrupt: keep the directory, restore a backup

All are raised in the worker, the supervisor or an offline command; only `DamagedRecord` and
`NewerFormat` can come out of a user's storage call.
"""

from __future__ import annotations

from pathlib import Path

from perdure.errors import StorageError

__all__ = ["DamagedRecord", "NewerFormat", "ShardDamaged", "ShardLocked", "StaleEpoch"]


class DamagedRecord(StorageError):
    """The stored bytes of `key` do not match their checksum; nothing of them was used."""

    fact_names = ("key",)

    def __init__(self, message: str, *, key: bytes = b"") -> None:
        super().__init__(message)
        self.key = key


class NewerFormat(StorageError):
    """Data of format `found` meets a Perdure that reads up to `supported`: run the newer version."""

    fact_names = ("found", "supported")

    def __init__(self, message: str, *, found: int = 0, supported: int = 0) -> None:
        super().__init__(message)
        self.found = found
        self.supported = supported


class StaleEpoch(StorageError):
    """The shard was opened by epoch `stored`, later than this process's `epoch`: this process must end."""

    fact_names = ("stored", "epoch")

    def __init__(self, message: str, *, stored: int = 0, epoch: int = 0) -> None:
        super().__init__(message)
        self.stored = stored
        self.epoch = epoch


class ShardLocked(StorageError):
    """Another process still holds the directory `path`; end it, then start again. Never delete LOCK."""

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message)
        self.path = path


class ShardDamaged(StorageError):
    """The directory `path` cannot be trusted: keep it as it is and restore the shard from a backup."""

    def __init__(self, message: str, *, path: Path) -> None:
        super().__init__(message)
        self.path = path
