"""Turns of interleaved methods beside each other: who runs when, and what a span is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from perdure import DeadlineExceeded, Limits, Overloaded, RemoteError
from worker.desk import STAGES, Desk, Stage, wait_for
from worker.host_scene import Scene, results


@pytest.fixture(autouse=True)
def stage() -> Iterator[Stage]:
    STAGES[:] = [Stage()]
    yield STAGES[0]
    STAGES.clear()


# --- who runs when


def test_interleaved_calls_run_beside_each_other_while_they_await(make_scene: Any, stage: Stage) -> None:
    scene: Scene = make_scene(Desk)
    one, two = scene.start(Desk, "a", "beside", "1"), scene.start(Desk, "a", "beside", "2")
    assert stage.log == ["in 1", "in 2"]
    stage.open(scene, "2")
    assert stage.log == ["in 1", "in 2", "out 2"]
    assert two.result() == "2"
    assert not one.answered
    stage.open(scene, "1")
    assert one.result() == "1"


def test_calls_of_one_message_run_beside_each_other_too(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    with scene.one_message():
        calls = [scene.start(Desk, "a", "beside", str(n), "go") for n in range(5)]
    assert stage.log == [f"in {n}" for n in range(5)]
    stage.open(scene, "go")
    assert results(calls) == [str(n) for n in range(5)]


def test_a_serial_call_waits_until_no_turn_is_inside_and_then_runs_alone(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "beside", "1")
    scene.start(Desk, "a", "beside", "2")
    scene.start(Desk, "a", "alone", "S", "s")
    stage.open(scene, "1")
    assert "in S" not in stage.log
    stage.open(scene, "2")
    assert stage.log[-2:] == ["out 2", "in S"]
    scene.start(Desk, "a", "beside", "3")
    assert "in 3" not in stage.log
    stage.open(scene, "s")
    assert stage.log[-2:] == ["out S", "in 3"]


def test_a_serial_call_is_not_starved_by_interleaved_ones_that_come_after_it(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "beside", "0")
    serial = scene.start(Desk, "a", "alone", "S")
    for n in range(1, 20):
        scene.start(Desk, "a", "beside", str(n))
    assert stage.log == ["in 0"]
    stage.open(scene, "0")
    assert serial.result() == "S"
    assert stage.log == ["in 0", "out 0", "in S", "out S", *(f"in {n}" for n in range(1, 20))]


def test_interleaved_calls_go_on_when_the_serial_call_ahead_of_them_expires(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "beside", "0")
    serial = scene.start(Desk, "a", "alone", "S", timeout_ms=100)
    scene.start(Desk, "a", "beside", "1")
    scene.advance(0.2)
    scene.settle()
    assert type(serial.error()) is DeadlineExceeded
    assert stage.log == ["in 0", "in 1"]


def test_calls_that_wait_for_the_start_of_their_object_run_in_order(make_scene: Any, stage: Stage) -> None:
    class Slow(Desk):
        async def on_start(self) -> None:
            await wait_for("start")

    scene = make_scene(Slow)
    for tag in "12":
        scene.start(Slow, "a", "beside", tag)
    scene.start(Slow, "a", "alone", "S")
    scene.start(Slow, "a", "beside", "3")
    stage.open(scene, "start")
    assert stage.log == ["in 1", "in 2"]
    stage.open(scene, "1", "2")
    assert stage.log == ["in 1", "in 2", "out 1", "out 2", "in S", "out S", "in 3"]


def test_storage_is_no_wait_that_others_get_in_at(make_scene: Any) -> None:
    scene = make_scene(Desk)
    with scene.one_message():
        calls = [scene.start(Desk, "a", "no_wait", "key") for _ in range(10)]
    scene.commit()
    assert results(calls) == list(range(1, 11))


def test_a_plain_interleaved_method_is_one_span(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "beside", "1")
    assert scene.call(Desk, "a", "plain", 60) == 60
    with pytest.raises(RemoteError, match="too much"):
        scene.call(Desk, "a", "plain", 60)
    stage.open(scene, "1")
    assert scene.call(Desk, "a", "plain", 40) == 100
    assert scene.fields(Desk, "a") == {"value": 100}


def test_the_mailbox_bound_holds_behind_turns_that_are_inside(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk, limits=Limits(mailbox_calls_max=2))
    scene.start(Desk, "a", "beside", "1")
    waiting = [scene.start(Desk, "a", "alone", str(n)) for n in range(3)]
    assert type(waiting[2].error()) is Overloaded
    stage.open(scene, "1")
    assert results(waiting[:2]) == ["0", "1"]


# --- spans


def test_what_a_span_wrote_is_committed_where_it_suspends(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    call = scene.start(Desk, "a", "write", "1", 5, "return", 10)
    scene.commit()
    assert scene.fields(Desk, "a") == {"value": 5, "items": ["1 before"]}
    assert scene.values(Desk, "a") == {"1 before": 1}
    assert not call.answered
    stage.open(scene, "1")
    assert not call.answered
    scene.commit()
    assert call.result() == 15
    assert scene.fields(Desk, "a") == {"value": 15, "items": ["1 before", "1 after"]}


def test_a_raise_discards_the_current_span_only(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    failing = scene.start(Desk, "a", "write", "1", 5, "raise", 10)
    other = scene.start(Desk, "a", "write", "2", 100, "return", 1000)
    stage.open(scene, "1")
    scene.commit()
    assert isinstance(failing.error(), RemoteError)
    assert "the second span" in str(failing.error())
    stage.open(scene, "2")
    scene.commit()
    assert other.result() == 1105
    expected = 1105, ["1 before", "2 before", "2 after"]
    assert scene.call(Desk, "a", "look") == expected
    assert scene.fields(Desk, "a") == {"value": 1105, "items": expected[1]}
    assert scene.values(Desk, "a") == {"1 before": 1, "2 before": 1, "2 after": 1}


def test_a_crash_in_mid_span_keeps_the_spans_before_it(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    scene.start(Desk, "a", "write", "1", 5, "return", 10)
    scene.commit()
    stage.open(scene, "1")  # the last span has run, and is not on disk
    restarted = make_scene(Desk, disk=scene.disk.copy())
    assert restarted.call(Desk, "a", "look") == (5, ["1 before"])
    assert restarted.values(Desk, "a") == {"1 before": 1}


def test_an_answer_waits_for_the_spans_of_its_turn_and_of_others_that_it_could_see(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    writer = scene.start(Desk, "a", "write", "1", 5, "return")
    reader = scene.start(Desk, "a", "plain", 0)
    assert not reader.answered
    scene.commit()
    assert reader.result() == 5
    assert not writer.answered


def test_a_field_that_cannot_be_saved_at_a_suspension_fails_its_turn_alone(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    other = scene.start(Desk, "a", "write", "1", 5, "return", 10)
    bad = scene.start(Desk, "a", "spoil", "never", "later")
    scene.commit()
    assert "Desk.value cannot be saved" in str(bad.error())
    stage.open(scene, "1")
    scene.commit()
    assert other.result() == 15
    assert scene.values(Desk, "a") == {"1 before": 1, "1 after": 1}


def test_a_list_that_another_turn_did_not_change_stays_the_same_list_when_that_turn_raises(
    make_scene: Any, stage: Stage
) -> None:
    scene = make_scene(Desk)
    keeping = scene.start(Desk, "a", "keep_list", "keep")
    scene.start(Desk, "a", "append_and_raise", "raise")
    stage.open(scene, "raise", "keep")
    scene.commit()
    keeping.result()
    assert scene.fields(Desk, "a") == {"items": ["one", "two"]}


def test_a_read_sees_what_was_put_before_it_and_no_more(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    early = scene.start(Desk, "a", "read", "key", "go")
    scene.start(Desk, "a", "put", "key", "new")
    late = scene.start(Desk, "a", "read", "key", "go")
    stage.open(scene, "go")
    scene.commit()
    assert early.result() == ("nothing", "new")
    assert late.result() == ("new", "new")


def test_delete_all_is_undone_in_its_span_and_stays_after_it(make_scene: Any, stage: Stage) -> None:
    scene = make_scene(Desk)
    scene.call(Desk, "a", "plain", 7)
    scene.call(Desk, "a", "put", "key", 1)
    assert isinstance(scene.start(Desk, "a", "clear", "go", "at once").error(), RemoteError)
    assert scene.call(Desk, "a", "look") == (7, [])
    assert scene.values(Desk, "a") == {"key": 1}
    scene.start(Desk, "a", "clear", "go", "later")
    stage.open(scene, "go")
    assert scene.call(Desk, "a", "look") == (0, [])
    assert scene.values(Desk, "a") == scene.fields(Desk, "a") == {}
    assert scene.listed(Desk) == []
