"""Commit points: what joins which commit, what waits for it, and what is on disk afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import DurableObject, Limits, RemoteError, durable
from perdure_storage import keys
from worker.host_scene import Scene, key_of, results
from worker.store import Store

# --- commits and answers


def test_an_answer_does_not_leave_before_the_commit_of_its_writes_is_durable(make_scene: Any) -> None:
    scene = make_scene(Store)
    field, value = scene.start(Store, "a", "set", 5), scene.start(Store, "b", "put", "k", 1)
    scene.advance(100)
    assert not field.answered
    assert not value.answered
    assert scene.fields(Store, "a") == {}
    scene.commit_one()
    assert field.result() == 5
    assert scene.fields(Store, "a") == {"value": 5}
    assert not value.answered
    scene.commit_one()
    assert value.answered


def test_an_answer_waits_for_the_notice_and_not_for_the_disk_alone(make_scene: Any) -> None:
    scene: Scene = make_scene(Store)
    sent = scene.start(Store, "a", "set", 5)
    scene.jobs.popleft()()
    assert scene.fields(Store, "a") == {"value": 5}
    assert not sent.answered
    scene.settle()
    assert sent.answered


def test_a_read_of_a_clean_object_waits_for_no_commit_of_others(make_scene: Any) -> None:
    scene = make_scene(Store)
    writing = scene.start(Store, "a", "set", 5)
    assert scene.start(Store, "b", "get").result() == (0, [])
    assert not writing.answered


def test_a_read_waits_for_the_commit_that_was_open_when_it_ran_and_for_no_later_one(make_scene: Any) -> None:
    scene = make_scene(Store)
    first = scene.start(Store, "a", "set", 1)
    second = scene.start(Store, "a", "set", 2)
    read = scene.start(Store, "a", "get")
    third = scene.start(Store, "a", "set", 3)
    scene.commit_one()
    assert first.answered
    assert not read.answered
    fourth = scene.start(Store, "a", "set", 4)
    scene.commit_one()
    assert read.result() == (2, [])
    assert second.answered
    assert third.answered
    assert not fourth.answered


def test_an_error_waits_for_what_the_object_had_committed_before(make_scene: Any) -> None:
    scene = make_scene(Store)
    scene.start(Store, "a", "set", 1)
    failing = scene.start(Store, "a", "fail")
    assert not failing.answered
    scene.commit()
    assert isinstance(failing.error(), RemoteError)


def test_all_writes_of_a_turn_are_in_one_commit_with_the_name(make_scene: Any) -> None:
    scene = make_scene(Store)
    scene.start(Store, "a", "large_field", 3)
    assert len(scene.jobs) == 1
    assert len(scene.disk) == 0
    scene.commit_one()
    assert scene.fields(Store, "a") == {"items": [1, 1, 1]}
    assert scene.values(Store, "a") == {"beside": 1}
    assert scene.rows(Store, "a", keys.META) == {"": {"name": "a"}}
    assert scene.listed(Store) == [(key_of(Store, "a"), "a")]


def test_a_turn_that_writes_nothing_stores_nothing(make_scene: Any) -> None:
    scene = make_scene(Store)
    with scene.one_message():
        calls = [scene.start(Store, "a", "get"), scene.start(Store, "a", "read", "k")]
        calls.append(scene.start(Store, "a", "delete", "k"))
    assert results(calls) == [(0, []), "missing", False]
    assert not scene.jobs
    assert len(scene.disk) == 0


def test_the_last_write_of_a_key_in_a_turn_wins(make_scene: Any) -> None:
    scene = make_scene(Store)
    scene.call(Store, "a", "put_twice", "k")
    assert scene.values(Store, "a") == {"k": 3}


def test_reads_see_the_turns_own_writes_and_those_not_yet_on_disk(make_scene: Any) -> None:
    scene = make_scene(Store)
    scene.call(Store, "a", "put", "b", 2)
    scene.start(Store, "a", "put", "d", 4)
    assert scene.call(Store, "a", "read_own_writes") == [
        1,
        {"a": 1, "b": 2, "c": 3, "d": 4},
        True,
        ["b", "c", "d"],
        {"d": 4},
    ]


@pytest.mark.parametrize("catch", [False, True])
def test_a_value_that_cannot_be_stored_fails_its_put_and_not_the_batch(make_scene: Any, catch: bool) -> None:
    scene = make_scene(Store)
    with scene.one_message():
        bad = scene.start(Store, "a", "bad_put", catch)
        neighbour = scene.start(Store, "b", "set", 1)
    scene.commit()
    assert neighbour.result() == 1
    assert scene.values(Store, "a") == {}
    assert scene.fields(Store, "a") == ({"value": 1} if catch else {})
    if not catch:
        assert "StorageError" in str(bad.error())


@pytest.mark.parametrize(
    ("method", "argument"), [("large_field", 5_000), ("odd_field", "deleted"), ("odd_field", "text")]
)
def test_a_field_that_cannot_be_saved_fails_the_turn_and_nothing_of_it_is_stored(
    make_scene: Any, method: str, argument: Any
) -> None:
    scene = make_scene(Store, limits=Limits(value_bytes_max=4_000))
    scene.call(Store, "a", "set", 3)
    with pytest.raises(RemoteError, match=r"Store\.(items|value)"):
        scene.call(Store, "a", method, argument)
    assert scene.values(Store, "a") == {}
    assert scene.call(Store, "a", "get") == (3, [])


# --- sync


def test_sync_waits_for_the_writes_before_it_and_not_for_later_ones(make_scene: Any) -> None:
    scene = make_scene(Store)
    call = scene.start(Store, "a", "sync_steps")
    log = scene.resident(Store, "a").instance.log
    assert log == []
    scene.commit_one()
    assert log == ["first is durable"]
    assert scene.values(Store, "a") == {"first": 1}
    scene.commit_one()
    assert log == ["first is durable", "second is durable"]
    assert scene.fields(Store, "a") == {"value": 2}
    scene.resident(Store, "a").instance.go.set()
    scene.commit()
    assert "the third is lost" in str(call.error())
    assert scene.values(Store, "a") == {"first": 1}
    assert scene.call(Store, "a", "get") == (2, [])


def test_sync_returns_at_once_when_nothing_waits(make_scene: Any) -> None:
    assert make_scene(Store).start(Store, "a", "sync_when_clean").result() == "at once"


def test_two_syncs_share_a_commit(make_scene: Any) -> None:
    scene = make_scene(Store)
    call = scene.start(Store, "a", "two_syncs")
    scene.commit_one()
    assert scene.resident(Store, "a").turn is None, "both returned after the first commit"
    scene.commit()
    assert call.answered
    assert scene.committer.durable == 2, "the second is that of the reply's record"


# --- durable fields


def test_unchanged_fields_are_not_written_again(make_scene: Any) -> None:
    scene = make_scene(Store)
    scene.call(Store, "a", "append", 1)
    before = scene.committer.durable
    scene.call(Store, "a", "set", 0)
    scene.call(Store, "a", "get")
    assert scene.committer.durable == before
    scene.call(Store, "a", "set", 1)
    assert scene.fields(Store, "a") == {"items": [1], "value": 1}


def test_a_change_inside_of_a_container_is_saved_and_undone_like_any_other(make_scene: Any) -> None:
    scene = make_scene(Store)
    assert scene.call(Store, "a", "append", 1) == [1]
    assert scene.call(Store, "a", "append", 2) == [1, 2]
    restarted = make_scene(Store, disk=scene.disk)
    assert restarted.call(Store, "a", "get") == (0, [1, 2])


def test_what_is_changed_outside_of_a_turn_belongs_to_the_next_one(make_scene: Any) -> None:
    scene = make_scene(Store)
    scene.call(Store, "a", "change_fields_later")
    scene.resident(Store, "a").instance.go.set()
    scene.settle()
    read = scene.start(Store, "a", "get")
    assert not read.answered
    scene.commit()
    assert read.result() == (1000, [1000])
    assert scene.fields(Store, "a") == {"value": 1000, "items": [1000]}


def test_what_is_changed_outside_of_a_turn_is_undone_with_a_next_one_that_raises(make_scene: Any) -> None:
    scene = make_scene(Store)
    scene.call(Store, "a", "change_fields_later")
    scene.resident(Store, "a").instance.go.set()
    scene.settle()
    with pytest.raises(RemoteError):
        scene.call(Store, "a", "fail")
    assert scene.call(Store, "a", "get") == (0, [])


@pytest.mark.parametrize("stopping", [False, True])
def test_what_is_changed_outside_of_a_turn_is_saved_before_the_object_leaves_memory(
    make_scene: Any, stopping: bool
) -> None:
    scene = make_scene(Store, idle_evict_s=10)
    scene.call(Store, "a", "change_fields_later")
    scene.resident(Store, "a").instance.go.set()
    scene.advance(11)
    if stopping:
        scene.do(scene.host.drain)
    else:
        assert scene.do(scene.host.evict_idle) == 0
    scene.commit()
    assert scene.fields(Store, "a") == {"value": 1000, "items": [1000]}
    if not stopping:
        scene.advance(11)
        assert scene.host.evict_idle() == 1
        assert scene.call(Store, "a", "get") == (1000, [1000])


def test_a_change_outside_of_a_turn_that_cannot_be_saved_is_told_and_keeps_nobody_in_memory(
    make_scene: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scene = make_scene(Store, idle_evict_s=10)
    scene.call(Store, "a", "spoil_fields_later")
    scene.resident(Store, "a").instance.go.set()
    scene.advance(11)
    assert scene.do(scene.host.evict_idle) == 1
    assert "changed outside of a turn" in caplog.text
    assert scene.call(Store, "a", "get") == (0, [])


# --- backpressure


def test_when_too_many_bytes_wait_for_the_disk_new_turns_and_starts_wait(make_scene: Any) -> None:
    scene = make_scene(Store, limits=Limits(uncommitted_bytes_max=1_000, commit_group_bytes_max=500))
    scene.call(Store, "b", "get")
    filling = scene.start(Store, "a", "put", "k", "x" * 900)
    more = scene.start(Store, "a", "put", "l", "x" * 900)
    assert scene.host.paused
    with scene.one_message():
        waiting = [scene.start(Store, name, "set", 1) for name in ("b", "a", "new")]
    turns = scene.host.turns
    assert scene.resident(Store, "new").instance is None
    scene.advance(1)
    assert scene.host.turns == turns
    scene.commit()
    assert not scene.host.paused
    assert results(waiting) == [1, 1, 1]
    assert filling.answered
    assert more.answered


def test_when_too_many_bytes_of_replies_wait_for_the_disk_new_turns_wait(make_scene: Any) -> None:
    scene = make_scene(Wordy, limits=Limits(uncommitted_bytes_max=100_000))
    scene.call(Wordy, "a", "set_and_return", 10)
    scene.commit()
    with scene.one_message():
        calls = [scene.start(Wordy, "a", "set_and_return", 60_000) for _ in range(20)]
    # The second one made it too many; the commit of both lets the next ones run.
    assert scene.host.paused
    assert scene.host.turns < 10
    for _ in range(20):
        scene.commit()
    assert [len(each) for each in results(calls)] == [60_000] * 20
    assert not scene.host.paused


def test_large_replies_of_turns_that_write_nothing_make_nobody_wait(make_scene: Any) -> None:
    scene = make_scene(Wordy, limits=Limits(uncommitted_bytes_max=100_000))
    with scene.one_message():
        calls = [scene.start(Wordy, "a", "give", 60_000) for _ in range(20)]
    assert [len(each) for each in results(calls)] == [60_000] * 20


class Wordy(DurableObject):
    count: int = durable(0)

    async def set_and_return(self, size: int) -> str:
        self.count += 1
        return "x" * size

    async def give(self, size: int) -> str:
        return "x" * size


def test_starts_that_fill_the_disks_queue_again_hold_up_the_starts_behind_them(make_scene: Any) -> None:
    scene = make_scene(Greedy, limits=Limits(uncommitted_bytes_max=700, commit_group_bytes_max=500))
    with scene.one_message():
        calls = [scene.start(Greedy, str(number), "get") for number in range(6)]
    live = [scene.resident(Greedy, str(number)).instance is not None for number in range(6)]
    assert live == [True, False, False, False, False, False]
    scene.commit_one()
    assert sum(scene.resident(Greedy, str(number)).instance is not None for number in range(6)) == 2
    scene.commit()
    assert results(calls) == [600] * 6


class Greedy(DurableObject):
    async def on_start(self) -> None:
        self.storage.put("k", "x" * 600)

    async def get(self) -> int:
        return len(await self.storage.get("k"))
