"""Errors of stored data are errors of the public tree and carry their facts."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import StorageError
from perdure_storage import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_of_stored_data_can_be_caught_as_a_storage_error(name: str) -> None:
    assert issubclass(vars(errors)[name], StorageError)


def test_errors_that_reach_users_carry_their_facts_as_plain_values() -> None:
    assert errors.DamagedRecord("x", key=b"k").facts() == {"key": b"k"}
    assert errors.NewerFormat("x", found=2, supported=1).facts() == {"found": 2, "supported": 1}
    assert errors.StaleEpoch("x", stored=9, epoch=8).facts() == {"stored": 9, "epoch": 8}


def test_errors_of_a_directory_name_it() -> None:
    for kind in (errors.ShardLocked, errors.ShardDamaged):
        assert kind("x", path=Path("shard-0000")).path == Path("shard-0000")
