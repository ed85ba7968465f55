"""examples/crdt.py: merging is a join of all changes, and replicas converge after partitions and kill -9."""

from __future__ import annotations

import random
from dataclasses import asdict
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import Limits, PerdureError
from perdure.codec import encode
from processes.cluster import Cluster
from worker.host_scene import Scene

from .app_scene import do, load, pass_time, run_program, with_values

crdt = load("crdt")
Document, merge = crdt.Document, crdt.merge
ROME, OSLO, LIMA = (f"doc@{place}" for place in crdt.PLACES)
QUIET_S = 2.0

# --- merging, without any replica

CHANGE = st.one_of(
    st.tuples(st.just("add"), st.sampled_from("xyz")),
    st.tuples(st.just("remove"), st.sampled_from("xyz")),
    st.tuples(st.just("count"), st.integers(-5, 5)),
    st.tuples(st.just("write"), st.sampled_from("fg"), st.sampled_from(["1", "2", None]), st.integers(0, 3)),
)
HISTORY = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.sampled_from(crdt.PLACES), CHANGE),
        # A place receives something that was made before, whole or in part, late or twice.
        st.tuples(st.just("receive"), st.sampled_from(crdt.PLACES), st.integers(0, 1_000)),
    ),
    max_size=25,
)


def delta_of(state: Any, place: str, kind: str, *args: Any) -> Any:
    if kind == "add":
        return crdt.added(state, place, *args)
    if kind == "remove":
        return crdt.removed(state, *args)
    if kind == "count":
        return crdt.counted(state, place, *args)
    return crdt.written(state, place, *args)


def play(history: list[Any]) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """The replicas' states at the end, all states and deltas that there were, and the deltas alone."""
    states = {place: Document() for place in crdt.PLACES}
    documents, deltas = [Document()], []
    for what, place, item in history:
        if what == "change":
            change = delta_of(states[place], place, *item)
            deltas.append(change)
        else:
            change = documents[item % len(documents)]
        states[place] = merge(states[place], change)
        documents += [change, states[place]]
    return states, documents, deltas


@settings(max_examples=150, deadline=None, database=None)
@given(history=HISTORY, picks=st.tuples(*[st.integers(0, 1_000)] * 3))
def test_merging_is_commutative_associative_and_idempotent(
    history: list[Any], picks: tuple[int, ...]
) -> None:
    _, documents, _ = play(history)
    one, other, third = (documents[pick % len(documents)] for pick in picks)
    assert merge(one, other) == merge(other, one)
    assert merge(merge(one, other), third) == merge(one, merge(other, third))
    assert merge(one, one) == one
    assert merge(merge(one, other), other) == merge(one, other)
    assert merge(one, Document()) == one


@settings(max_examples=150, deadline=None, database=None)
@given(history=HISTORY, order=st.randoms(use_true_random=False))
def test_all_deltas_in_any_order_make_what_all_replicas_together_are(history: list[Any], order: Any) -> None:
    states, _, deltas = play(history)
    shuffled = deltas + deltas[: len(deltas) // 2]
    order.shuffle(shuffled)
    assert reduce(merge, shuffled, Document()) == reduce(merge, states.values())


def items(document: Any) -> list[str]:
    return sorted(document.items)


def test_an_add_wins_over_a_remove_that_did_not_see_it_and_only_over_that() -> None:
    state = merge(Document(), crdt.added(Document(), "rome", "x"))
    remove = crdt.removed(state, "x")
    again = crdt.added(state, "oslo", "x")
    assert items(merge(state, remove)) == []
    assert items(merge(merge(state, remove), again)) == ["x"]
    both = merge(merge(state, again), crdt.removed(merge(state, again), "x"))
    assert items(both) == items(merge(both, state)) == items(merge(both, again)) == []


def test_counts_of_all_places_add_up() -> None:
    rome = crdt.counted(Document(), "rome", 5)
    rome = merge(rome, crdt.counted(rome, "rome", -2))
    oslo = crdt.counted(Document(), "oslo", -4)
    together = merge(merge(rome, oslo), rome)
    assert together.counts == {"rome": (5, 2), "oslo": (0, 4)}


def test_the_last_writer_of_a_field_wins_also_one_whose_clock_is_behind() -> None:
    rome = crdt.written(Document(), "rome", "f", "Rome", 1_000)
    oslo = crdt.written(Document(), "oslo", "f", "Oslo", 1_000)
    assert merge(rome, oslo).fields["f"][2] == "Rome", "at the same time the place decides"
    late = crdt.written(merge(rome, oslo), "oslo", "f", None, 5)
    assert merge(rome, late).fields["f"][2] is None


def test_what_was_seen_and_removed_takes_no_room() -> None:
    state = Document()
    for number in range(50):
        state = merge(state, crdt.added(state, "rome", f"item-{number}"))
        state = merge(state, crdt.removed(state, f"item-{number}"))
    assert state == Document(seen={"rome": 50})
    for place in (*crdt.PLACES, "rome"):
        state = merge(state, crdt.added(state, place, "again"))
    assert state.items == {"again": {("rome", 52)}}


# --- replicas in a scene

STEP = st.one_of(
    st.tuples(st.just("change"), st.sampled_from([ROME, OSLO, LIMA]), CHANGE),
    st.tuples(st.just("change"), st.sampled_from([ROME, OSLO, LIMA]), CHANGE),
    st.tuples(st.just("connect"), st.sampled_from([ROME, OSLO, LIMA]), st.booleans()),
    st.tuples(st.just("pass"), st.sampled_from([0.05, 0.3, 1.0])),
    st.tuples(st.just("crash")),
    st.tuples(st.just("crash between commits"), st.integers(0, 3)),
)


class Story:
    """Three replicas, their partitions, and crashes of everything."""

    def __init__(self) -> None:
        self.scene = Scene(crdt.Replica)
        self.count = 0

    def at(self, replica: str, method: str, *args: Any) -> Any:
        return do(self.scene, crdt.Replica, replica, method, *args)

    def step(self, action: str, *args: Any) -> None:
        if action == "change":
            replica, (kind, *what) = args
            self.at(replica, kind, *what[:2])
            self.count += what[0] if kind == "count" else 0
        elif action == "connect":
            self.at(args[0], "connect", args[1])
        elif action == "pass":
            pass_time(self.scene, args[0])
        else:
            self.scene.advance(crdt.GOSSIP_S + 0.05)
            for _ in range(args[0] if args else 0):
                if self.scene.jobs:
                    self.scene.commit_one()
            self.scene.close()
            self.scene = Scene(crdt.Replica, disk=self.scene.disk)

    def documents(self) -> list[Any]:
        """Of all places, as they are on disk."""
        self.scene.commit()
        return [
            _document(self.scene.fields(crdt.Replica, name).get("document")) for name in (ROME, OSLO, LIMA)
        ]


def _document(fields: Any) -> Any:
    if fields is None:
        return Document()
    return Document(
        items={item: {tuple(dot) for dot in dots} for item, dots in fields["items"].items()},
        seen=fields["seen"],
        also_seen={tuple(dot) for dot in fields["also_seen"]},
        counts={place: tuple(sums) for place, sums in fields["counts"].items()},
        fields={name: tuple(write) for name, write in fields["fields"].items()},
    )


@settings(max_examples=40, deadline=None, database=None)
@given(steps=st.lists(STEP, max_size=25))
def test_replicas_have_all_changes_in_the_end_whatever_was_cut_off_or_crashed(steps: list[Any]) -> None:
    story = Story()
    for step in steps:
        story.step(*step)
    expected = reduce(merge, story.documents())
    for name in (ROME, OSLO, LIMA):
        story.at(name, "connect", True)
    pass_time(story.scene, QUIET_S)
    assert story.documents() == [expected] * 3
    read = [story.at(name, "read") | {"place": ""} for name in (ROME, OSLO, LIMA)]
    assert read == [read[0]] * 3
    assert read[0]["count"] == story.count
    assert read[0]["items"] == items(expected)
    assert not read[0]["unsent"]
    story.scene.close()


def test_both_sides_of_a_partition_go_on_and_neither_sees_the_other() -> None:
    story = Story()
    story.at(ROME, "add", "before")
    pass_time(story.scene, QUIET_S)
    story.at(ROME, "connect", False)
    story.at(ROME, "add", "rome")
    story.at(OSLO, "add", "oslo")
    story.at(OSLO, "remove", "before")
    pass_time(story.scene, QUIET_S)
    assert story.at(ROME, "read")["items"] == ["before", "rome"]
    assert story.at(ROME, "read")["unsent"] is True
    assert story.at(OSLO, "read")["items"] == story.at(LIMA, "read")["items"] == ["oslo"]
    story.at(ROME, "connect", True)
    pass_time(story.scene, QUIET_S)
    assert story.at(ROME, "read")["unsent"] is False
    assert {tuple(story.at(name, "read")["items"]) for name in (ROME, OSLO, LIMA)} == {("oslo", "rome")}
    story.scene.close()


def test_changes_of_a_moment_travel_in_one_message_to_each_peer() -> None:
    story = Story()
    for number in range(20):
        story.at(ROME, "add", f"item-{number}")
    assert story.at(ROME, "read")["unsent"] is True
    before = story.scene.host.turns
    pass_time(story.scene, QUIET_S)
    assert story.scene.host.turns == before + 3, "an alarm, and one message to each of two peers"
    assert story.at(OSLO, "read")["items"] == sorted(f"item-{number}" for number in range(20))
    story.scene.close()


@pytest.mark.parametrize(
    ("method", "args", "message"),
    [
        ("add", ("",), "a text has 1 to 200 characters"),
        ("add", ("x" * 201,), "a text has 1 to 200 characters"),
        ("write", ("f", "x" * 201), "a text has 1 to 200 characters"),
    ],
)
def test_what_would_not_fit_into_a_message_is_refused(method: str, args: Any, message: str) -> None:
    story = Story()
    with pytest.raises(PerdureError, match=message):
        story.at(ROME, method, *args)
    with pytest.raises(PerdureError, match="named document@place"):
        story.at("doc@nowhere", method, *args)
    story.scene.close()


def test_a_full_document_of_three_partitions_fits_into_a_message_and_fuller_ones_are_refused() -> None:
    def long(text: str) -> str:
        return text.ljust(crdt.TEXT_CHARS_MAX, "\U0001f600")

    names = [f"{place}{number:03}" for place in crdt.PLACES for number in range(crdt.ITEMS_MAX)]
    fields = [f"{place}{number:03}" for place in crdt.PLACES for number in range(crdt.FIELDS_MAX)]
    full = Document(
        items={long(name): {(place, 10**9) for place in crdt.PLACES} for name in names},
        fields={long(name): (10**13, name[:4], long("")) for name in fields},
    )
    assert len(encode(asdict(full))) < Limits().send_bytes_max
    story = Story()
    with with_values(crdt, ITEMS_MAX=2, FIELDS_MAX=2):
        for number in range(2):
            story.at(ROME, "add", f"item-{number}")
            story.at(ROME, "write", f"field-{number}", "x")
        with pytest.raises(PerdureError, match="2 items already"):
            story.at(ROME, "add", "one more")
        with pytest.raises(PerdureError, match="2 fields already"):
            story.at(ROME, "write", "one more", "x")
        story.at(ROME, "add", "item-0")
        story.at(ROME, "write", "field-0", "y")
    story.scene.close()


# --- a real cluster


@pytest.mark.processes
def test_the_program_of_the_docstring_and_convergence_after_partitions_and_kill_9(
    databases: Cluster, tmp_path: Path
) -> None:
    cluster = databases
    rng = random.Random(5)
    with cluster.connect() as client:
        run_program("crdt", cluster, tmp_path)
        replicas = [client.get("Replica", name) for name in (ROME, OSLO, LIMA)]
        count = 0
        for number in range(80):
            replica = rng.choice(replicas)
            by = rng.randrange(-3, 9)
            replica.count(by)
            count += by
            replica.add(f"item-{number % 40}")
            if number % 3 == 0:
                rng.choice(replicas).remove(f"item-{rng.randrange(40)}")
            if number % 10 == 5:
                rng.choice(replicas).connect(rng.random() < 0.4)
            if number % 40 == 30:
                cluster.kill(cluster.worker_pids[number // 40 % 2])
        for replica in replicas:
            replica.connect(True)

        def same() -> Any:
            read = [replica.read() | {"place": ""} for replica in replicas]
            return read[0] == read[1] == read[2] and not read[0]["unsent"] and read

        read = cluster.wait_until("they converge", same)
        assert read[0]["count"] == count
        assert read[0]["items"]
