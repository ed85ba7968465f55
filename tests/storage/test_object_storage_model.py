"""`self.storage` against a plain dict: objects are isolated, and every state of durability reads the same.

Also of transactions, which lie over storage as dicts of changes do, and of snapshots, which are copies.
"""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from perdure_storage.engine import Engine
from perdure_storage.memory import MemoryEngine
from perdure_storage.object_storage import ObjectStorage
from perdure_storage.snapshot import SnapshotView
from perdure_storage.transaction import Transaction
from storage.storage_host import Host, now


@given(
    ids=st.lists(st.sampled_from([bytes(31) + b"\x00", bytes(31) + b"\x01", b"\xff" * 32]), min_size=1),
    texts=st.lists(st.text(alphabet="/\0:\x01\x02\xffa", max_size=4), min_size=1),
)
@settings(deadline=None, derandomize=True)
def test_objects_with_similar_ids_and_keys_of_any_text_never_see_each_others_data(
    ids: list[bytes], texts: list[str]
) -> None:
    engine = MemoryEngine()
    written: dict[bytes, dict[str, int]] = {}
    for number, (object_id, text) in enumerate(itertools.product(ids, texts)):
        host = Host(engine, object_id=object_id)
        host.storage.put(text, number)
        host.commit()
        written.setdefault(object_id, {})[text] = number
    for object_id, values in written.items():
        storage = Host(engine, object_id=object_id).storage
        assert now(storage.list()) == values
        assert all(now(storage.get(text)) == values.get(text) for text in texts)
    victim, *others = written
    host = Host(engine, object_id=victim)
    now(host.storage.delete_all())
    host.commit()
    assert now(Host(engine, object_id=victim).storage.list()) == {}
    for object_id in others:
        assert now(Host(engine, object_id=object_id).storage.list()) == written[object_id]


KEYS = st.text(alphabet="ab\0/é\uffff\U0010ffff", max_size=3)
BOUND = st.one_of(st.none(), st.none(), KEYS)
LAYERS_MAX = 3
SNAPSHOTS_MAX = 2


class Undone(Exception):
    """What a transaction's block raises."""


class StorageAgainstDict(RuleBasedStateMachine):
    """Storage does what a dict with a copy at each commit point does, at every state of durability.

    `changes` has one dict for each open transaction, the outermost first: key -> value, or None for a
    removal. `seen` lays them over the dict.
    """

    numbers = itertools.count()

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        # A fresh object for each run: opening a store for each would take most of the time.
        self.host = Host(engine, object_id=next(self.numbers).to_bytes(32, "big"))
        self.model: dict[str, int] = {}
        self.committed: dict[str, int] = {}
        self.durable: list[dict[str, int]] = [{}]  # what is on disk, then the states in flight
        self.transactions: list[Transaction] = []
        self.changes: list[dict[str, int | None]] = []
        self.snapshots: list[tuple[SnapshotView, dict[str, int]]] = []

    # --- layers

    def layer(self, level: int) -> tuple[ObjectStorage | Transaction, int]:
        """Storage (0) or an open transaction, and its level."""
        level = min(level, len(self.transactions))
        return (self.transactions[level - 1] if level else self.host.storage), level

    def seen(self, level: int) -> dict[str, int]:
        state = dict(self.model)
        for changes in self.changes[:level]:
            for key, value in changes.items():
                if value is None:
                    state.pop(key, None)
                else:
                    state[key] = value
        return state

    def change(self, level: int, key: str, value: int | None) -> None:
        if level:
            self.changes[level - 1][key] = value
        elif value is None:
            self.model.pop(key, None)
        else:
            self.model[key] = value

    @precondition(lambda self: len(self.transactions) < LAYERS_MAX)
    @rule()
    def transaction_begins(self) -> None:
        innermost, _ = self.layer(LAYERS_MAX)
        self.transactions.append(now(innermost.transaction().__aenter__()))
        self.changes.append({})

    @precondition(lambda self: self.transactions)
    @rule()
    def transaction_ends(self) -> None:
        now(self.transactions.pop().__aexit__(None, None, None))
        changes = self.changes.pop()
        for key, value in changes.items():
            self.change(len(self.changes), key, value)

    @precondition(lambda self: self.transactions)
    @rule()
    def transaction_raises(self) -> None:
        now(self.transactions.pop().__aexit__(Undone, Undone(), None))
        self.changes.pop()

    @precondition(lambda self: self.transactions)
    @rule()
    def transaction_is_rolled_back(self) -> None:
        transaction = self.transactions.pop()
        transaction.rollback()
        now(transaction.__aexit__(None, None, None))
        self.changes.pop()

    @precondition(lambda self: len(self.snapshots) < SNAPSHOTS_MAX)
    @rule()
    def snapshot_begins(self) -> None:
        self.snapshots.append((self.host.storage.snapshot(), dict(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule()
    def snapshot_ends(self) -> None:
        self.snapshots.pop(0)[0].close()

    def teardown(self) -> None:
        while self.snapshots:
            self.snapshot_ends()

    # --- writes

    @rule(level=st.integers(0, LAYERS_MAX), key=KEYS, value=st.integers(0, 9))
    def put(self, level: int, key: str, value: int) -> None:
        layer, level = self.layer(level)
        layer.put(key, value)
        self.change(level, key, value)

    @rule(level=st.integers(0, LAYERS_MAX), values=st.dictionaries(KEYS, st.integers(0, 9), max_size=4))
    def put_many(self, level: int, values: dict[str, int]) -> None:
        layer, level = self.layer(level)
        layer.put_many(values)
        for key, value in values.items():
            self.change(level, key, value)

    @rule(level=st.integers(0, LAYERS_MAX), key=KEYS)
    def delete(self, level: int, key: str) -> None:
        layer, level = self.layer(level)
        existed = key in self.seen(level)
        assert layer.delete(key) == existed
        if existed:
            self.change(level, key, None)

    @rule(level=st.integers(0, LAYERS_MAX), some=st.lists(KEYS, max_size=4))
    def delete_many(self, level: int, some: list[str]) -> None:
        layer, level = self.layer(level)
        existing = self.seen(level).keys() & set(some)
        assert layer.delete_many(some) == len(existing)
        for key in existing:
            self.change(level, key, None)

    @precondition(lambda self: not self.transactions)
    @rule()
    def delete_all(self) -> None:
        now(self.host.storage.delete_all())
        self.model.clear()

    # --- commits

    @rule()
    def commit_point(self) -> None:
        self.host.storage._join(self.host.committer)
        self.committed = dict(self.model)

    @rule()
    def turn_raises(self) -> None:
        while self.transactions:
            self.transaction_raises()
        self.host.storage._discard()
        self.model = dict(self.committed)

    @rule()
    def end_of_tick(self) -> None:
        before = self.host.committer.group
        self.host.committer.flush()
        if self.host.committer.group != before:
            self.durable.append(dict(self.committed))

    @precondition(lambda self: self.host.jobs)
    @rule()
    def disk_finishes(self) -> None:
        before = self.host.committer.group
        self.host.jobs.pop(0)()
        del self.durable[0]
        if self.host.committer.group != before:
            self.durable.append(dict(self.committed))
        other = Host(self.host.engine, object_id=self.host.prefix[-32:])
        assert now(other.storage.list()) == self.durable[0]

    @rule()
    def everything_becomes_durable(self) -> None:
        self.commit_point()
        self.host.committer.flush()
        self.host.settle_all()
        self.durable = [dict(self.committed)]

    # --- reads

    @invariant()
    def reads_as_the_dict(self) -> None:
        views = [(view, state) for view, state in self.snapshots]
        levels = [(self.layer(level)[0], self.seen(level)) for level in range(len(self.transactions) + 1)]
        for layer, state in [*views, *levels]:
            ordered = sorted(state.items(), key=lambda item: item[0].encode())
            assert [*now(layer.list()).items()] == ordered
            assert [*now(layer.list(reverse=True)).items()] == ordered[::-1]

    def layers(self, number: int) -> tuple[Any, dict[str, int]]:
        """Whatever can be read: storage, a transaction or a snapshot, and what it must hold."""
        views = [*self.snapshots, *((self.layer(n)[0], self.seen(n)) for n in range(len(self.changes) + 1))]
        return views[number % len(views)]

    @precondition(lambda self: not self.host.jobs and not self.host.committer.dirty)
    @rule()
    def eviction(self) -> None:
        self.turn_raises()
        self.host.wake()

    @rule(number=st.integers(0, 5), key=KEYS, some=st.lists(KEYS, max_size=4))
    def get(self, number: int, key: str, some: list[str]) -> None:
        layer, model = self.layers(number)
        assert now(layer.get(key, "missing")) == model.get(key, "missing")
        expected = [(k, model[k]) for k in sorted(set(some), key=str.encode) if k in model]
        assert list(now(layer.get_many(some)).items()) == expected

    @rule(
        number=st.integers(0, 5),
        start=BOUND,
        start_after=BOUND,
        end=BOUND,
        prefix=BOUND,
        cursor=BOUND,
        reverse=st.booleans(),
        limit=st.one_of(st.none(), st.integers(1, 4)),
    )
    def list(
        self,
        number: int,
        start: str | None,
        start_after: str | None,
        end: str | None,
        prefix: str | None,
        cursor: str | None,
        reverse: bool,
        limit: int | None,
    ) -> None:
        layer, model = self.layers(number)
        if start is not None and start_after is not None:
            start = None
        expected = [
            (key, model[key])
            for key in sorted(model, key=str.encode, reverse=reverse)
            if (start is None or key.encode() >= start.encode())
            and (start_after is None or key.encode() > start_after.encode())
            and (end is None or key.encode() < end.encode())
            and (prefix is None or key.startswith(prefix))
            and (cursor is None or ((key.encode() < cursor.encode()) == reverse and key != cursor))
        ][:limit]
        options: dict[str, Any] = {
            "start": start,
            "start_after": start_after,
            "end": end,
            "prefix": prefix,
            "cursor": cursor,
            "reverse": reverse,
            "limit": limit,
        }
        assert [*now(layer.list(**options)).items()] == expected
        assert now(layer.list(**options, keys_only=True)) == [key for key, _ in expected]


def test_storage_behaves_as_a_dict_at_every_state_of_durability(engine: Engine) -> None:
    run_state_machine_as_test(
        lambda: StorageAgainstDict(engine),
        settings=settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True),
    )
