"""Alarms as part of storage: one batch with the data, rolled back with it, bounded, damage-proof."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from perdure import Limits, StorageError, codec
from perdure_storage import keys
from perdure_storage.commit import InlineCommitter
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_storage.object_storage import StorageBackend
from perdure_worker.alarm_rows import AlarmRow, due_ms_of
from perdure_worker.alarm_storage import AlarmRules, AlarmStorage

NOW_US = 1_700_000_000_000_000
PREFIX = keys.object_prefix(5, "Room", bytes(range(32)))


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(NOW_US // 1_000_000, UTC) + timedelta(seconds=seconds)


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that does not suspend."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it suspended")


class Room:
    """One object's storage and the disk below it."""

    def __init__(
        self,
        disk: MemoryDisk | None = None,
        *,
        has_handler: bool = True,
        alarms_max: int = 5,
        faults: Callable[[], None] | None = None,
    ) -> None:
        self.engine = MemoryEngine(disk, faults=faults)
        self.committer = InlineCommitter(
            self.engine, on_durable=lambda group: self.storage._settle(group), group_bytes_max=1 << 20
        )
        self._nonces = iter(range(10_000))
        self.storage = AlarmStorage(
            StorageBackend(self.engine, Limits(), codec.encode, codec.decode),
            prefix=PREFIX,
            names_row=keys.names_key("Room", "lobby", bytes(range(32))),
            commit_point=_nobody,
            on_delete_all=lambda: None,
            alarm_rules=AlarmRules(lambda: NOW_US, self.nonce, alarms_max, 512),
            has_handler=has_handler,
        )

    def nonce(self, size: int) -> bytes:
        return next(self._nonces).to_bytes(size, "big")

    def commit(self) -> None:
        self.storage._join(self.committer)
        self.committer.flush()

    @property
    def disk(self) -> MemoryDisk:
        return self.engine.disk

    def listed(self) -> list[tuple[str, datetime]]:
        return [(alarm.name, alarm.scheduled_at) for alarm in now(self.storage.list_alarms())]

    def due(self) -> list[tuple[int, str]]:
        """The stored rows of the index: milliseconds and name."""
        rows = self.disk.between(keys.DUE_REGION, keys.prefix_end(keys.DUE_REGION))
        return [(due.at_ms, due.key.decode()) for due in (keys.parse_due_row(row) for row, _ in rows)]

    def begin(self, name: str) -> AlarmRow | None:
        """The alarm's handler starts."""
        row = PREFIX + keys.ALARM + name.encode()
        record = self.storage._read(row)
        assert record is not None
        next_ms = AlarmRow.decode(record[5:]).next_ms
        assert next_ms is not None
        return self.storage._begin_alarm(row, keys.due_key_of(next_ms, row))


async def _nobody() -> None:
    """Nobody waits for it."""


@pytest.fixture
def room() -> Room:
    return Room()


def test_an_alarm_and_its_row_of_the_index_are_one_commit_with_the_data(room: Room) -> None:
    room.storage.put("key", 1)
    room.storage.set_alarm(at(5))
    assert len(room.disk) == 0
    room.commit()
    assert room.listed() == [("default", at(5))]
    assert room.due() == [(NOW_US // 1000 + 5_000, "default")]
    assert now(room.storage.get("key")) == 1


def test_a_write_that_fails_stores_neither_the_alarm_nor_the_data() -> None:
    def fault() -> None:
        raise OSError("no space")

    room = Room(faults=fault)
    room.storage.put("key", 1)
    room.storage.set_alarm(at(5))
    with pytest.raises(OSError, match="no space"):
        room.commit()
    assert len(room.disk) == 0


def test_a_batch_of_the_handler_that_fails_leaves_the_alarm(room: Room) -> None:
    room.storage.set_alarm(at(5))
    room.commit()

    def fault() -> None:
        raise OSError("no space")

    broken = Room(room.disk, faults=fault)
    assert broken.begin("default") is not None
    broken.storage.put("key", "of the handler")
    broken.storage._end_alarm()
    with pytest.raises(OSError, match="no space"):
        broken.commit()
    after = Room(room.disk)
    assert after.listed() == [("default", at(5))]
    assert after.due() == [(NOW_US // 1000 + 5_000, "default")]
    assert now(after.storage.get("key")) is None


def test_what_is_rolled_back_leaves_neither_alarms_nor_their_number(room: Room) -> None:
    room.storage.set_alarm(at(1), "a")
    room.commit()
    room.storage.set_alarm(at(2), "a")
    room.storage.set_alarm(at(3), "b")
    room.storage.delete_alarm("a")
    room.storage._discard()
    assert room.listed() == [("a", at(1))]
    assert room.storage._due_changes() == []
    room.storage.set_alarm(at(4), "b")
    room.commit()
    assert now_count(room) == 2


def now_count(room: Room) -> int:
    record = room.storage._read(PREFIX + keys.ALARM)
    return 0 if record is None else int(codec.decode(record[5:]))


def test_an_object_has_as_many_alarms_as_allowed_and_no_more(room: Room) -> None:
    for number in range(5):
        room.storage.set_alarm(at(number), f"{number}")
    with pytest.raises(StorageError, match="5 alarms"):
        room.storage.set_alarm(at(9), "9")
    room.storage.set_alarm(at(8), "0")  # one that is there
    assert room.storage.delete_alarm("1")
    room.storage.set_alarm(at(9), "9")
    assert len(room.listed()) == 5


@pytest.mark.parametrize("name", ["", None, 7, "\ud800", "x" * 513, "ä" * 257, b"tea"])
def test_what_is_no_name_is_an_error(room: Room, name: Any) -> None:
    for call in (room.storage.delete_alarm, lambda name: room.storage.set_alarm(1, name)):
        with pytest.raises(StorageError, match="the name of an alarm"):
            call(name)
    with pytest.raises(StorageError, match="the name of an alarm"):
        now(room.storage.get_alarm(name))


def test_names_may_hold_anything_else(room: Room) -> None:
    names = ["\0", "a\0b", "/", "größe", "x" * 512]
    for number, name in enumerate(names):
        room.storage.set_alarm(at(number), name)
    room.commit()
    assert [name for name, _ in room.listed()] == names
    assert [name for _, name in room.due()] == names


def test_without_a_handler_none_can_be_set_and_all_can_be_deleted(room: Room) -> None:
    room.storage.set_alarm(at(5))
    room.commit()
    without = Room(room.disk, has_handler=False)
    with pytest.raises(StorageError, match="no alarm handler"):
        without.storage.set_alarm(at(6))
    assert without.storage.delete_alarm()
    without.commit()
    assert without.due() == []


def test_a_naive_time_is_an_error_and_sets_nothing(room: Room) -> None:
    with pytest.raises(StorageError, match="no time zone"):
        room.storage.set_alarm(datetime(2030, 1, 1))
    assert not room.storage._dirty


def test_everything_can_be_deleted_although_an_alarm_is_damaged(room: Room) -> None:
    room.storage.set_alarm(at(5), "a")
    room.storage.set_alarm(at(6), "b")
    room.commit()
    room.disk.apply([(PREFIX + keys.ALARM + b"a", b"\x01junk!")])
    with pytest.raises(StorageError):
        room.listed()
    now(room.storage.delete_all())
    room.commit()
    assert room.listed() == []
    # The row of the index of the damaged one is found to have no alarm when its time comes.
    assert room.due() == [(NOW_US // 1000 + 5_000, "a")]


def test_a_commit_within_the_handler_takes_the_rest_and_leaves_its_own_alarm_alone(room: Room) -> None:
    room.storage.set_alarm(at(1), "mine")
    room.storage.set_alarm(at(2), "other")
    room.commit()
    before = room.due()
    room.begin("mine")
    room.storage.set_alarm(at(50), "mine")
    room.storage.delete_alarm("other")
    room.storage.put("key", 1)
    held = room.storage._hold_back()
    room.commit()
    room.storage._bring_back(held)
    assert room.due() == before[:1]
    assert Room(room.disk).listed() == [("mine", at(1))]
    assert room.listed() == [("mine", at(50))]
    assert room.storage._write_bytes == sum(
        len(row) + len(record or b"") for row, record in room.storage._writes.items()
    )
    room.storage._end_alarm()
    room.commit()
    assert room.due() == [(NOW_US // 1000 + 50_000, "mine")]
    assert (room.listed(), now_count(room)) == ([("mine", at(50))], 1)


def test_a_commit_within_the_handler_of_nothing_but_its_own_alarm_is_none(room: Room) -> None:
    room.storage.set_alarm(at(1))
    room.commit()
    room.begin("default")
    room.storage.set_alarm(at(2))
    held = room.storage._hold_back()
    assert not room.storage._dirty
    room.storage._bring_back(held)
    assert room.listed() == [("default", at(2))]


@settings(max_examples=60, stateful_step_count=30, deadline=None)
class AlarmModel(RuleBasedStateMachine):
    """An object's alarms beside a dict, with turns that end, raise and run handlers, and restarts."""

    names = st.sampled_from(["a", "b", "c"])
    times = st.integers(0, 4)

    def __init__(self) -> None:
        super().__init__()
        self.room = Room(alarms_max=10)
        self.stored: dict[str, int] = {}
        self.seen: dict[str, int] = {}
        self.running: str | None = None

    @rule(name=names, seconds=times)
    def set_alarm(self, name: str, seconds: int) -> None:
        self.room.storage.set_alarm(at(seconds), name)
        self.seen[name] = seconds

    @rule(name=names)
    def delete_alarm(self, name: str) -> None:
        assert self.room.storage.delete_alarm(name) == (self.seen.pop(name, None) is not None)

    @rule()
    def delete_all(self) -> None:
        now(self.room.storage.delete_all())
        self.seen.clear()

    @precondition(lambda self: self.running is None and not self.room.storage._dirty and self.stored)
    @rule(data=st.data())
    def handler_starts(self, data: st.DataObject) -> None:
        self.running = data.draw(st.sampled_from(sorted(self.stored)))
        assert self.room.begin(self.running) is not None
        del self.seen[self.running]

    @precondition(lambda self: self.running is not None)
    @rule()
    def commit_halfway(self) -> None:
        held = self.room.storage._hold_back()
        self.room.commit()
        self.room.storage._bring_back(held)
        running = self.running or ""
        kept = self.stored[running]
        self.stored = {**{name: at for name, at in self.seen.items() if name != running}, running: kept}

    @rule()
    def turn_ends(self) -> None:
        self.room.storage._end_alarm()
        self.room.commit()
        self.running, self.stored = None, dict(self.seen)

    @rule()
    def turn_raises(self) -> None:
        self.room.storage._discard()
        self.room.storage._forget_alarm()
        self.running, self.seen = None, dict(self.stored)

    @rule()
    def restart(self) -> None:
        self.room = Room(self.room.disk.copy(), alarms_max=10)
        self.running, self.seen = None, dict(self.stored)

    @invariant()
    def what_is_seen_and_what_is_stored_are_as_in_the_model(self) -> None:
        assert dict(self.room.listed()) == {name: at(seconds) for name, seconds in self.seen.items()}
        assert sorted(self.room.due()) == sorted(
            (due_ms_of(NOW_US + seconds * 1_000_000), name) for name, seconds in self.stored.items()
        )
        assert dict(Room(self.room.disk).listed()) == {name: at(s) for name, s in self.stored.items()}
        if self.running is None and self.seen == self.stored:
            assert now_count(self.room) <= len(self.stored)


TestAlarmModel = AlarmModel.TestCase
