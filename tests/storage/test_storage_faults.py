"""Storage when its n-th call of the engine fails or the process dies in it, for every n of a long run.

The run is a worker in small: three objects, turns that read and write in every way and that end well or
not, ticks, and a disk that is sometimes slow. A dict for each object says what must be there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy

import pytest

from perdure.codec import decode, encode
from perdure.errors import StorageError
from perdure_storage import keys
from perdure_storage.commit import Committer, read_sequence
from perdure_storage.engine import Engine
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_storage.object_storage import ObjectStorage, StorageBackend
from storage.failing_engine import FailingEngine, Fate, Killed, ReadFailed
from storage.storage_host import LIMITS, now

OBJECTS = 3
STEPS = 80
NAMES = ["", "a", "ab", "b", "é", "\U0010ffff"]

State = dict[str, int]


class Undone(Exception):
    """Ends a turn or a transaction."""


class ProcessEnded(BaseException):
    """A write failed, so the process ended itself."""


class Worker:
    """One process over an engine that may fail, and what its callers may rely on.

    `states` has, for each commit group, what all objects hold when that group is the last one on disk.
    """

    def __init__(
        self, engine: FailingEngine, chance: random.Random, states: list[State] | None = None
    ) -> None:
        self.engine = engine
        self.chance = chance
        self.model: list[State] = deepcopy(states) if states else [{} for _ in range(OBJECTS)]
        self.committed = deepcopy(self.model)
        self.states = {0: deepcopy(self.model)}
        self.acknowledged = 0
        self.failed_turns = 0
        self.jobs: list[Callable[[], None]] = []
        self.backend = StorageBackend(engine, LIMITS, encode, decode)
        self.committer = Committer(
            engine,
            notify=lambda callback, group: callback(group),
            on_durable=self.on_durable,
            group_bytes_max=300,
            on_failure=self.end,
            submit=self.jobs.append,
        )
        self.objects = [self.storage(number) for number in range(OBJECTS)]

    def storage(self, number: int) -> ObjectStorage:
        object_id = number.to_bytes(32, "big")
        return ObjectStorage(
            self.backend,
            prefix=keys.object_prefix(number, "Room", object_id),
            names_row=keys.names_key("Room", None, object_id),
            commit_point=self.no_sync,
            on_delete_all=lambda: None,
        )

    async def no_sync(self) -> None:
        raise AssertionError("commit points are taken by `commit_point` here")

    def on_durable(self, group: int) -> None:
        self.acknowledged = group
        for storage in self.objects:
            storage._settle(group)

    def end(self, error: BaseException) -> None:
        raise ProcessEnded from error

    # --- what happens in it

    def run(self, steps: int) -> None:
        for _ in range(steps):
            kind = self.chance.random()
            if kind < 0.6:
                self.turn(self.chance.randrange(OBJECTS))
            elif kind < 0.8:
                self.committer.flush()
            else:
                self.disk_works()
        self.committer.flush()
        while self.jobs:
            self.disk_works()

    def disk_works(self) -> None:
        if self.jobs:
            self.jobs.pop(0)()

    def turn(self, number: int) -> None:
        catches = self.chance.random() < 0.5  # a method may go on after an error of storage
        try:
            for _ in range(self.chance.randint(1, 4)):
                act = self.chance.choice([self.write, self.write, self.read, self.transaction, self.other])
                try:
                    act(number)
                except ReadFailed:
                    if not catches:
                        raise
            if self.chance.random() < 0.2:
                raise Undone
        except (Undone, ReadFailed) as error:
            self.failed_turns += isinstance(error, ReadFailed)
            self.objects[number]._discard()
            self.model[number] = dict(self.committed[number])
        else:
            self.commit_point(number)

    def commit_point(self, number: int) -> None:
        group = self.committer.group
        dirty = self.objects[number]._dirty
        self.objects[number]._join(self.committer)
        self.committed[number] = dict(self.model[number])
        if dirty:
            self.states[group] = deepcopy(self.committed)

    def write(self, number: int) -> None:
        storage, model = self.objects[number], self.model[number]
        name, value = self.chance.choice(NAMES), self.chance.randrange(1_000)
        kind = self.chance.randrange(4)
        if kind == 0:
            existed = storage.delete(name)
            assert existed == (model.pop(name, None) is not None)
        elif kind == 1:
            some = dict.fromkeys(self.chance.sample(NAMES, 3), value)
            storage.put_many(some)
            model.update(some)
        else:
            storage.put(name, value)
            model[name] = value

    def read(self, number: int) -> None:
        storage, model = self.objects[number], self.model[number]
        name, reverse = self.chance.choice(NAMES), self.chance.random() < 0.5
        assert now(storage.get(name)) == model.get(name)
        expected = sorted((item for item in model.items() if item[0] >= name), reverse=reverse)[:3]
        assert list(now(storage.list(start=name, reverse=reverse, limit=3)).items()) == expected

    def transaction(self, number: int) -> None:
        model = dict(self.model[number])
        name, value = self.chance.choice(NAMES), self.chance.randrange(1_000)
        undone = self.chance.random() < 0.3

        async def block() -> None:
            async with self.objects[number].transaction() as txn:
                txn.put(name, value)
                assert txn.delete("a") == ("a" in model or name == "a")
                assert "a" not in await txn.list()
                if undone:
                    raise Undone

        try:
            now(block())
        except Undone:
            return
        self.model[number] = {key: held for key, held in {**model, name: value}.items() if key != "a"}

    def other(self, number: int) -> None:
        """What is rarer: a commit point within the turn, paging, delete_all, leaving memory."""
        storage, model = self.objects[number], self.model[number]
        kind = self.chance.randrange(4)
        if kind == 0:
            self.commit_point(number)
        elif kind == 1:
            seen: list[str] = []
            with storage.snapshot() as view:
                while page := now(view.list(limit=2, keys_only=True, cursor=seen[-1] if seen else None)):
                    seen += page
            assert seen == sorted(model, key=str.encode)
        elif kind == 2:
            now(storage.delete_all())
            model.clear()
        elif not storage._dirty and storage._overlay_group <= self.acknowledged:
            self.objects[number] = self.storage(number)


def surviving(engine: Engine) -> list[State]:
    """What a new process finds."""
    worker = Worker(FailingEngine(engine), random.Random(0))
    return [now(storage.list()) for storage in worker.objects]


def check_restart(worker: Worker, disk: MemoryDisk) -> None:
    """What is on disk is whole groups up to one that holds everything acknowledged."""
    engine = MemoryEngine(disk)
    last = read_sequence(engine) - worker.committer.groups._sequence_before
    # At most the group in flight is there without having been acknowledged.
    assert worker.acknowledged <= last <= worker.acknowledged + 1
    assert surviving(engine) == worker.states[last]


def run_until(fail_at: int, fate: Fate, seed: int) -> FailingEngine:
    """A run whose `fail_at`-th call fails, then a second process that goes on with what is left."""
    disk = MemoryDisk()
    engine = FailingEngine(MemoryEngine(disk), fail_at, fate)
    chance = random.Random(seed)
    try:
        worker = Worker(engine, chance)
    except (Killed, StorageError):
        assert len(disk) == 0
        return engine
    try:
        worker.run(STEPS)
    except (Killed, ProcessEnded):
        assert engine.failed
    else:
        assert worker.acknowledged == worker.committer.group - 1
        assert surviving(MemoryEngine(disk)) == worker.committed
    check_restart(worker, disk)
    successor = Worker(FailingEngine(MemoryEngine(disk)), chance, surviving(MemoryEngine(disk)))
    successor.run(10)
    check_restart(successor, disk)
    return engine


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("fate", Fate)
def test_whichever_call_of_the_engine_fails_nothing_acknowledged_is_lost_and_commits_are_whole(
    fate: Fate, seed: int
) -> None:
    fail_at = 1
    while run_until(fail_at, fate, seed).failed:
        fail_at += 1
    assert fail_at > 200, "the run is too short to prove anything"


def test_a_failed_read_fails_its_turn_alone_and_the_process_goes_on() -> None:
    failed = 0
    for fail_at in range(1, 200):
        worker = Worker(engine := FailingEngine(MemoryEngine()), random.Random(5))
        engine._fail_at = engine.calls + fail_at
        try:
            worker.run(STEPS)
        except ProcessEnded:
            continue
        failed += worker.failed_turns
        assert worker.failed_turns <= 1
        assert worker.acknowledged == worker.committer.group - 1
    assert failed > 30


@pytest.mark.parametrize("fail_at", range(1, 6))
def test_a_delete_all_that_cannot_read_everything_deletes_nothing(fail_at: int) -> None:
    worker = Worker(engine := FailingEngine(MemoryEngine()), random.Random(0))
    storage = worker.objects[0]
    storage.put_many({"a": 1, "b": 2, "c": 3})
    worker.commit_point(0)
    worker.run(0)
    storage.put("d", 4)
    engine._fail_at = engine.calls + fail_at
    with pytest.raises(ReadFailed):
        now(storage.delete_all())
    assert now(storage.list()) == {"a": 1, "b": 2, "c": 3, "d": 4}
