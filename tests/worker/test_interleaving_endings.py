"""Interleaved turns: tasks that they start, calls to their own object, and all the ways to end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from perdure import DeadlockError, DurableObject, Limits, RemoteError, interleaved
from worker.desk import STAGES, Desk, Stage
from worker.host_scene import results


@pytest.fixture(autouse=True)
def stage() -> Iterator[Stage]:
    STAGES[:] = [Stage()]
    yield STAGES[0]
    STAGES.clear()


# --- tasks that turns start


@pytest.mark.parametrize("suspended", [True, False])
def test_what_a_task_of_a_turn_wrote_survives_the_failing_span_of_another_turn(
    make_scene: Any, stage: Stage, suspended: bool
) -> None:
    scene = make_scene(Desk)
    owner = scene.start(Desk, "a", "with_task", "write", "end")
    failing = [scene.start(Desk, "a", "append_and_raise", "raise")] if suspended else []
    stage.open(scene, "write", "raise")
    failing = failing or [scene.start(Desk, "a", "raise_at_once")]
    scene.commit()
    assert isinstance(failing[0].error(), RemoteError)
    stage.open(scene, "end")
    scene.commit()
    owner.result()
    assert scene.values(Desk, "a") == {"of a task": 1}
    assert scene.fields(Desk, "a") == {"value": 7}


def test_tasks_of_a_turn_can_sync_and_their_writes_are_not_lost(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    call = scene.start(Desk, "a", "commit_in_task", "end")
    scene.commit()
    assert scene.fields(Desk, "a") == {"value": 2}
    stage.open(scene, "end")
    scene.commit()  # of the record of its reply
    call.result()


def test_a_task_that_spoils_a_field_fails_the_turns_inside_and_leaves_no_trace(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    owner = scene.start(Desk, "a", "with_task", "write", "end", True)
    stage.open(scene, "write", "end")
    scene.commit()
    assert "Desk.value cannot be saved" in str(owner.error())
    assert scene.call(Desk, "a", "look") == (0, [])


def test_a_task_that_outlives_its_turn_cannot_write_beside_other_turns(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    scene.call(Desk, "a", "outlive", "late")
    scene.start(Desk, "a", "beside", "1")
    stage.open(scene, "late")
    assert stage.log == ["in 1", "StorageError"]
    assert scene.values(Desk, "a") == {}


def test_a_task_of_a_turn_that_cannot_end_well_cannot_write(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk, limits=Limits(turn_max_s=5))
    cut = scene.start(Desk, "a", "swallow_with_task", "late", "end", timeout_ms=1_000)
    scene.advance(5.5)
    stage.open(scene, "late")
    assert stage.log == ["StorageError"]
    stage.open(scene, "end")
    scene.commit()
    assert "TurnLimit" in str(cut.error())
    assert scene.values(Desk, "a") == {}


# --- calls to itself


def test_an_interleaved_turn_can_call_an_interleaved_method_of_its_own_object(make_scene: Any) -> None:
    scene = make_scene(Desk)
    assert scene.call(Desk, "a", "ask_self", "plain", 3) == 3
    assert scene.call(Desk, "a", "ask_through", "b", "plain", 4) == 7


def test_a_call_to_itself_does_not_wait_behind_a_serial_call_that_waits_for_the_turn(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    calling = scene.start(Desk, "a", "ask_self_when", "go", "plain", 3)
    serial = scene.start(Desk, "a", "alone", "S")
    behind = scene.start(Desk, "a", "beside", "1")
    stage.open(scene, "go")
    scene.commit()
    assert calling.result() == 3
    assert serial.result() == "S"
    assert not behind.answered


@pytest.mark.parametrize("way", ["ask_self", "ask_through"])
def test_an_interleaved_turn_that_calls_a_serial_method_of_its_own_object_is_a_deadlock(
    make_scene: Any, way: str
) -> None:
    scene = make_scene(Desk)
    args = ["look"] if way == "ask_self" else ["b", "look"]
    call = scene.start(Desk, "a", way, *args)
    scene.commit()
    assert type(call.error()) in (DeadlockError, RemoteError)
    assert "Desk/a -> " in str(call.error())


def test_calls_of_an_object_to_itself_are_limited_in_depth(make_scene: Any) -> None:
    class Deep(DurableObject):
        @interleaved
        async def down(self) -> None:
            await self.ctx.get(Deep, "a").down()

    scene = make_scene(Deep, limits=Limits(chain_depth_max=5))
    call = scene.start(Deep, "a", "down")
    scene.commit()
    assert "chain_depth_max" in str(call.error())


# --- endings


def test_turns_inside_are_cancelled_by_an_abort_and_nothing_they_do_then_counts(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    inside = [scene.start(Desk, "a", "clean_up", "1"), scene.start(Desk, "a", "clean_up", "2", True)]
    scene.commit()
    with scene.one_message():
        aborting = scene.start(Desk, "a", "abort", "at once")
        waiting = scene.start(Desk, "a", "look")
    scene.commit()
    assert stage.log == ["cancelled 1", "cancelled 2"]
    late = scene.start(Desk, "a", "plain", 100)
    scene.commit()
    assert not any(call.answered for call in (inside[1], waiting, late))  # it still cleans up
    stage.open(scene, "cleaned 2")
    scene.commit()
    for call in (*inside, aborting, waiting, late):
        assert isinstance(call.error(), RemoteError)
        assert "enough" in str(call.error())
    assert stage.incarnations == 1
    assert scene.call(Desk, "a", "look") == (2, [])
    assert stage.incarnations == 2
    assert scene.values(Desk, "a") == {}
    assert scene.host.busy == 0


def test_an_abort_in_a_later_span_or_a_task_ends_all_turns(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    inside = scene.start(Desk, "a", "clean_up", "1")
    later = scene.start(Desk, "a", "write", "2", 5, "abort", 10)
    in_task = scene.start(Desk, "b", "abort", "in a task")
    beside = scene.start(Desk, "b", "beside", "3")
    stage.open(scene, "2")
    scene.commit()
    for call in (inside, later, in_task):
        assert "enough" in str(call.error())
    assert not beside.answered  # it came after the abort, to the next incarnation
    assert scene.fields(Desk, "a") == {"value": 6, "items": ["2 before"]}
    assert scene.fields(Desk, "b") == scene.values(Desk, "b") == {}


def test_a_turn_over_its_limit_is_cancelled_and_the_others_go_on(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk, limits=Limits(turn_max_s=5))
    stage.open(scene, "cleaned 1")
    old = scene.start(Desk, "a", "clean_up", "1", True, timeout_ms=1_000)
    scene.advance(3)
    young = scene.start(Desk, "a", "clean_up", "2")
    scene.advance(2.5)
    scene.commit()
    assert "TurnLimit" in str(old.error())
    assert not young.answered
    stage.open(scene, "2")
    scene.commit()
    assert young.result() == "2"
    assert scene.fields(Desk, "a") == {"value": 2}
    assert scene.values(Desk, "a") == {}


def test_a_failing_turn_leaves_the_others_inside(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    one = scene.start(Desk, "a", "beside", "1")
    assert "mine" in str(scene.start(Desk, "a", "own_error").error())
    stage.open(scene, "1")
    assert one.result() == "1"


def test_an_object_stays_in_memory_and_counts_as_busy_while_turns_are_inside(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk, idle_evict_s=1)
    calls = [scene.start(Desk, "a", "beside", tag) for tag in "12"]
    stage.open(scene, "1")
    scene.advance(10)
    assert scene.do(scene.host.evict_idle) == 0
    assert scene.host.busy == 1
    stage.open(scene, "2")
    assert results(calls) == ["1", "2"]
    assert scene.host.busy == 0
    scene.advance(10)
    assert scene.do(scene.host.evict_idle) == 1


def test_a_drain_lets_turns_inside_end_and_refuses_what_waits(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    inside = scene.start(Desk, "a", "write", "1", 5, "call")
    waiting = scene.start(Desk, "a", "look")
    scene.do(scene.host.drain)
    late = scene.start(Desk, "a", "beside", "2")
    for call in (waiting, late):
        assert "stopping" in str(call.error())
    assert scene.host.busy == 1
    stage.open(scene, "1")
    scene.commit()
    assert inside.result() == 5
    assert scene.host.busy == 0
