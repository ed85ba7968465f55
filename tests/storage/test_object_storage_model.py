"""`self.storage` against a plain dict: objects are isolated, and every state of durability reads the same."""

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
from storage.storage_host import Host, now


@given(
    ids=st.lists(st.sampled_from([bytes(31) + b"\x00", bytes(31) + b"\x01", b"\xff" * 32]), min_size=1),
    texts=st.lists(st.text(alphabet="/\0:\x01\x02\xffa", max_size=4), min_size=1),
)
@settings(deadline=None)
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


class StorageAgainstDict(RuleBasedStateMachine):
    """Storage does what a dict with a copy at each commit point does, at every state of durability."""

    numbers = itertools.count()

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        # A fresh object for each run: opening a store for each would take most of the time.
        self.host = Host(engine, object_id=next(self.numbers).to_bytes(32, "big"))
        self.model: dict[str, int] = {}
        self.committed: dict[str, int] = {}
        self.durable: list[dict[str, int]] = [{}]  # what is on disk, then the states in flight

    @rule(key=KEYS, value=st.integers(0, 9))
    def put(self, key: str, value: int) -> None:
        self.host.storage.put(key, value)
        self.model[key] = value

    @rule(values=st.dictionaries(KEYS, st.integers(0, 9), max_size=4))
    def put_many(self, values: dict[str, int]) -> None:
        self.host.storage.put_many(values)
        self.model.update(values)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.host.storage.delete(key) == (self.model.pop(key, None) is not None)

    @rule(some=st.lists(KEYS, max_size=4))
    def delete_many(self, some: list[str]) -> None:
        assert self.host.storage.delete_many(some) == len(self.model.keys() & set(some))
        for key in some:
            self.model.pop(key, None)

    @rule()
    def delete_all(self) -> None:
        now(self.host.storage.delete_all())
        self.model.clear()

    @rule()
    def commit_point(self) -> None:
        self.host.storage._join(self.host.committer)
        self.committed = dict(self.model)

    @rule()
    def turn_raises(self) -> None:
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

    @invariant()
    def reads_as_the_dict(self) -> None:
        ordered = sorted(self.model.items(), key=lambda item: item[0].encode())
        assert [*now(self.host.storage.list()).items()] == ordered
        assert [*now(self.host.storage.list(reverse=True)).items()] == ordered[::-1]

    @precondition(lambda self: not self.host.jobs and not self.host.committer.dirty)
    @rule()
    def eviction(self) -> None:
        self.turn_raises()
        self.host.wake()

    @rule(key=KEYS, some=st.lists(KEYS, max_size=4))
    def get(self, key: str, some: list[str]) -> None:
        assert now(self.host.storage.get(key, "missing")) == self.model.get(key, "missing")
        expected = [(k, self.model[k]) for k in sorted(set(some), key=str.encode) if k in self.model]
        assert list(now(self.host.storage.get_many(some)).items()) == expected

    @rule(
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
        start: str | None,
        start_after: str | None,
        end: str | None,
        prefix: str | None,
        cursor: str | None,
        reverse: bool,
        limit: int | None,
    ) -> None:
        if start is not None and start_after is not None:
            start = None
        expected = [
            (key, self.model[key])
            for key in sorted(self.model, key=str.encode, reverse=reverse)
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
        assert [*now(self.host.storage.list(**options)).items()] == expected
        assert now(self.host.storage.list(**options, keys_only=True)) == [key for key, _ in expected]


def test_storage_behaves_as_a_dict_at_every_state_of_durability(engine: Engine) -> None:
    run_state_machine_as_test(
        lambda: StorageAgainstDict(engine),
        settings=settings(max_examples=100, stateful_step_count=25, deadline=None),
    )
