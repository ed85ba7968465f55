"""`TurnStorage` on its own: every write asks whether a turn runs, no read does.

Transactions and snapshots belong to a turn like writes.
"""

from __future__ import annotations

import inspect
from collections.abc import Coroutine
from typing import Any

import pytest

from perdure import Limits, StorageError, codec
from perdure_storage import keys
from perdure_storage.memory import MemoryEngine
from perdure_storage.object_storage import StorageBackend
from perdure_worker.alarm_storage import AlarmRules
from perdure_worker.turn_storage import TurnStorage

WRITES: dict[str, tuple[Any, ...]] = {
    "put": ("k", 1),
    "put_many": ({"k": 1},),
    "delete": ("k",),
    "delete_many": (["k"],),
    "delete_all": (),
    "set_alarm": (1,),
    "delete_alarm": (),
    "sync": (),
    "transaction": (),
    "snapshot": (),
}
READS: dict[str, tuple[Any, ...]] = {"get": ("k",), "get_many": (["k"],), "list": ()}
ALARM_READS: dict[str, tuple[Any, ...]] = {"get_alarm": (), "list_alarms": ()}


class Turns:
    """Whether a turn runs, and whether it was asked to commit."""

    def __init__(self) -> None:
        self.running = True
        self.commits = 0

    def check(self) -> None:
        if not self.running:
            raise StorageError("no turn runs")

    async def commit(self) -> None:
        self.commits += 1


def storage(turns: Turns) -> TurnStorage:
    return TurnStorage(
        StorageBackend(MemoryEngine(), Limits(), codec.encode, codec.decode),
        prefix=keys.object_prefix(5, "Room", bytes(32)),
        names_row=b"\x02n",
        commit_point=turns.commit,
        on_delete_all=lambda: None,
        check_turn=turns.check,
        in_turn=lambda: turns.running,
        alarm_rules=AlarmRules(lambda: 0, bytes, 10, 512),
        has_handler=True,
    )


def ended(result: Any) -> Any:
    """What a coroutine that does not suspend returns."""
    if not isinstance(result, Coroutine):
        return result
    try:
        result.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it suspended")


def test_inside_of_a_turn_everything_works() -> None:
    turns = Turns()
    it = storage(turns)
    it.put("a", 1)
    it.put_many({"b": 2, "c": 3})
    assert ended(it.list()) == {"a": 1, "b": 2, "c": 3}
    assert (it.delete("a"), it.delete_many(["b", "x"])) == (True, 1)
    ended(it.sync())
    assert turns.commits == 1
    ended(it.delete_all())
    assert ended(it.get("c", "gone")) == "gone"


@pytest.mark.parametrize("method", WRITES)
def test_outside_of_a_turn_a_write_raises_and_leaves_nothing(method: str) -> None:
    turns = Turns()
    it = storage(turns)
    it.put("k", 0)
    turns.running = False
    with pytest.raises(StorageError, match="no turn runs"):
        ended(getattr(it, method)(*WRITES[method]))
    assert ended(it.list()) == {"k": 0}
    assert ended(it.list_alarms()) == []
    assert turns.commits == 0


@pytest.mark.parametrize("method", READS)
def test_outside_of_a_turn_reads_work(method: str) -> None:
    turns = Turns()
    it = storage(turns)
    it.put("k", 1)
    turns.running = False
    assert ended(getattr(it, method)(*READS[method])) in (1, {"k": 1})


def test_outside_of_a_turn_alarms_can_be_read() -> None:
    turns = Turns()
    it = storage(turns)
    it.set_alarm(1)
    turns.running = False
    assert ended(it.get_alarm()) is not None
    assert len(ended(it.list_alarms())) == 1


def test_no_method_of_storage_is_forgotten() -> None:
    public = {name for name, _ in inspect.getmembers(TurnStorage, callable) if name[0] != "_"}
    assert public == WRITES.keys() | READS.keys() | ALARM_READS.keys()


def test_a_transaction_and_a_snapshot_end_with_their_turn() -> None:
    turns = Turns()
    it = storage(turns)
    txn = ended(it.transaction().__aenter__())
    txn.put("k", 1)
    view = it.snapshot()
    turns.running = False
    for use in (txn.get("k"), txn.list(), txn.__aexit__(None, None, None)):
        with pytest.raises(StorageError, match="when its turn ended"):
            ended(use)
    with pytest.raises(StorageError, match="when its turn ended"):
        txn.put("k", 2)
    with pytest.raises(StorageError, match="has ended"):
        ended(view.get("k"))
    turns.running = True
    assert ended(it.list()) == {}
    ended(it.transaction().__aenter__())
