"""What the types of `perdure.storage` promise, and what the worker hands in for them."""

from __future__ import annotations

import inspect

import pytest

from perdure import storage
from perdure.object import Storage
from perdure_storage.snapshot import SnapshotView
from perdure_storage.transaction import Transaction
from perdure_worker.turn_storage import TurnStorage


@pytest.mark.parametrize(
    ("promised", "given"),
    [(Storage, TurnStorage), (storage.Snapshot, SnapshotView), (storage.Transaction, Transaction)],
)
def test_the_worker_hands_in_every_method_with_the_same_parameters(promised: type, given: type) -> None:
    methods = {name for name in dir(promised) if name[0] != "_" or name.startswith(("__a", "__en", "__ex"))}
    methods -= {name for name in dir(object) if name[0] == "_"} | {"__annotations__", "__abstractmethods__"}
    assert "get" in methods
    for name in methods:
        here, there = getattr(promised, name), getattr(given, name)
        assert inspect.iscoroutinefunction(here) == inspect.iscoroutinefunction(there), name
        assert list(inspect.signature(here).parameters) == list(inspect.signature(there).parameters), name


def test_snapshots_and_transactions_read_as_storage_does() -> None:
    for kind in (Storage, storage.Snapshot, storage.Transaction):
        assert storage.ReadableStorage in kind.__mro__
        assert {"get", "get_many", "list"}.isdisjoint(vars(kind)), "it is said once"
