"""A full disk and a broken one are told apart, whoever reports them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import plyvel
import pytest

from perdure.errors import StorageError
from perdure.exits import WorkerExit
from perdure_storage.endings import exit_of_open, exit_of_write, is_broken_disk, is_full_disk
from perdure_storage.errors import ShardDamaged


def level_db(number: int) -> plyvel.IOError:
    return plyvel.IOError(f"IO error: /data/shard-0000/000005.log: {os.strerror(number)}".encode())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_a_full_disk(number: int) -> None:
    for error in (level_db(number), OSError(number, "whatever the text")):
        assert is_full_disk(error)
        assert not is_broken_disk(error)
        assert exit_of_write(error) is WorkerExit.NO_SPACE


def test_a_device_that_fails_is_a_broken_disk() -> None:
    for error in (level_db(errno.EIO), OSError(errno.EIO, "whatever the text")):
        assert is_broken_disk(error)
        assert not is_full_disk(error)
        assert exit_of_write(error) is WorkerExit.WRITE_FAILED


def test_the_cause_of_an_error_of_ours_counts() -> None:
    error = StorageError("the shard cannot be opened")
    error.__cause__ = level_db(errno.EIO)
    assert is_broken_disk(error)
    assert exit_of_open(error) is WorkerExit.WRITE_FAILED


def test_a_store_that_has_no_room_to_open_is_tried_again() -> None:
    assert exit_of_open(level_db(errno.ENOSPC)) is WorkerExit.STORE_UNAVAILABLE


def test_damage_is_damage_whatever_the_disk_said() -> None:
    error = ShardDamaged("the shard is damaged", path=Path("shard-0000"))
    error.__cause__ = level_db(errno.EIO)
    assert exit_of_open(error) is WorkerExit.SHARD_DAMAGED


def test_anything_else_is_neither() -> None:
    for error in (level_db(errno.EFBIG), ValueError("nonsense"), OSError(errno.EACCES, "no")):
        assert not is_full_disk(error)
        assert not is_broken_disk(error)
        assert exit_of_write(error) is WorkerExit.WRITE_FAILED
