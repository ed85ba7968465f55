"""How calls end that nobody answers: deadlines, deaths, closing, cancelled callers."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from perdure.errors import DeadlineExceeded, OutcomeUnknown, ShardUnavailable

from .caller_scene import LIMITS, TICK_S, Scene, map_of, name_at

TWO = map_of(1, 1, 1)
GRACE_S = LIMITS.answer_grace_s


@pytest.fixture
def scene() -> Scene:
    return Scene(TWO)


def sequences(scene: Scene) -> list[int]:
    return [item.sequence for sent in scene.sent for item in sent.items]


# --- deadlines


@pytest.mark.parametrize("timeout", [0.001, 0.03, 0.05, 0.1, 0.123, 1.0, 2.4999, 30.0])
@pytest.mark.parametrize("start", [0.0, 0.024, 0.0499])
def test_a_call_that_was_sent_ends_unknown_within_50_ms_of_the_end_of_its_grace(
    scene: Scene, timeout: float, start: float
) -> None:
    scene.pass_time(start)
    took = scene.time_until_done(future := scene.start(timeout=timeout))
    with pytest.raises(OutcomeUnknown, match="deadline"):
        future.result(0)
    assert timeout + GRACE_S <= took <= timeout + GRACE_S + TICK_S + 0.001
    scene.assert_nothing_is_kept()


@pytest.mark.parametrize("timeout", [0.001, 0.03, 0.1, 0.123, 1.0, 30.0])
def test_an_unsent_call_ends_within_50_ms_of_its_deadline(scene: Scene, timeout: float) -> None:
    scene.takes = lambda worker: False
    took = scene.time_until_done(future := scene.start(timeout=timeout))
    with pytest.raises(DeadlineExceeded, match="before the call could be sent; nothing happened"):
        future.result(0)
    assert timeout <= took <= timeout + TICK_S + 0.001
    scene.takes = lambda worker: True
    scene.flush()
    assert not scene.sent, "a call that has ended must not run"
    scene.assert_nothing_is_kept()


def test_a_call_to_a_worker_that_stays_down_ends_as_unavailable() -> None:
    scene = Scene(map_of(1, 0, 1))
    took = scene.time_until_done(future := scene.start(timeout=1.0))
    with pytest.raises(ShardUnavailable, match="worker 0 was not available until the deadline"):
        future.result(0)
    assert took <= 1.0 + TICK_S + 0.001
    scene.assert_nothing_is_kept()


def test_a_call_without_any_map_ends_as_unavailable() -> None:
    scene = Scene()
    scene.time_until_done(future := scene.start(timeout=1.0))
    with pytest.raises(ShardUnavailable):
        future.result(0)
    scene.assert_nothing_is_kept()


def test_an_answer_that_comes_in_the_grace_counts(scene: Scene) -> None:
    future = scene.start(timeout=1.0)
    scene.pass_time(1.0 + GRACE_S - 0.01)
    scene.fail(1, DeadlineExceeded("the worker's own word"))
    with pytest.raises(DeadlineExceeded, match="own word"):
        future.result(0)
    scene.assert_nothing_is_kept()


def test_of_waiting_calls_only_those_past_their_deadline_end(scene: Scene) -> None:
    scene.takes = lambda worker: False
    futures = [scene.start(timeout=timeout) for timeout in (0.5, 5.0, 0.5, 5.0, 0.5)]
    scene.pass_time(1.0)
    assert [future.done() for future in futures] == [True, False, True, False, True]
    scene.takes = lambda worker: True
    scene.flush()
    assert sequences(scene) == [2, 4]
    assert scene.caller._queued_bytes == 0


def test_what_waits_for_a_full_pipe_is_sent_with_the_time_of_its_call(scene: Scene) -> None:
    made_at = scene.clock.now
    scene.takes = lambda worker: False
    scene.start("old", timeout=3.0)
    scene.pass_time(1.0)
    scene.call("new", timeout=3.0)
    scene.takes = lambda worker: True
    scene.flush()
    # The worker counts the time left from the stamp: 3 s for each from when it was called.
    assert [sent.methods for sent in scene.sent] == [["old"], ["new"]]
    assert [sent.items[0].timeout_ms for sent in scene.sent] == [3000, 3000]
    stamps = [sent.header.stamp for sent in scene.sent]
    assert stamps == pytest.approx([made_at * 1000, (made_at + 1) * 1000], abs=1)


def test_what_waited_for_a_map_keeps_its_time_too() -> None:
    scene = Scene(map_of(1, 0, 1))
    made_at = scene.clock.now
    for number in range(4):
        scene.call(f"m{number}", timeout=3.0)
        scene.pass_time(0.2)
    scene.caller.on_map(map_of(2, 2, 1))
    scene.call("m4", timeout=3.0)
    scene.flush()
    assert [sent.methods for sent in scene.sent] == [["m0"], ["m1"], ["m2"], ["m3"], ["m4"]]
    stamps = [sent.header.stamp for sent in scene.sent]
    assert stamps == pytest.approx([(made_at + 0.2 * number) * 1000 for number in range(5)], abs=1)


def test_a_loop_that_stood_still_for_a_minute_ends_everything_at_its_first_tick(scene: Scene) -> None:
    sent = scene.start(timeout=5.0)
    scene.takes = lambda worker: False
    unsent = scene.start(timeout=5.0)
    scene.clock.now += 60
    scene.caller.tick()
    assert isinstance(sent.exception(0), OutcomeUnknown)
    assert isinstance(unsent.exception(0), DeadlineExceeded)
    scene.assert_nothing_is_kept()


# --- deaths


def test_the_death_of_an_incarnation_ends_exactly_the_calls_that_were_sent_to_it() -> None:
    scene = Scene(TWO, retry=False)
    doomed, neighbour = scene.start(worker=0), scene.start(worker=1)
    waiting = scene.call(worker=0)
    scene.caller.on_death(0, 1)
    with pytest.raises(OutcomeUnknown, match="worker 0 died while it had this call"):
        doomed.result(0)
    assert not neighbour.done()
    assert not waiting.done()


def test_the_death_of_an_older_incarnation_ends_nothing(scene: Scene) -> None:
    future = scene.start()
    scene.caller.on_death(0, 0)
    scene.caller.on_death(0, 2)
    scene.caller.on_death(1, 1)
    assert not future.done()


def test_a_map_without_the_incarnation_tells_its_death() -> None:
    scene = Scene(TWO, retry=False)
    doomed, neighbour = scene.start(worker=0), scene.start(worker=1)
    assert scene.caller.on_map(map_of(2, 0, 1)) is True
    assert isinstance(doomed.exception(0), OutcomeUnknown)
    assert not neighbour.done()


def test_through_a_router_a_death_ends_calls_only_when_it_has_given_back_what_it_still_had() -> None:
    scene = Scene(TWO, retry=False)
    scene.caller.direct = False
    given_back, lost = scene.start("given back"), scene.start("lost")
    neighbour = scene.start("neighbour", worker=1)
    successor = map_of(2, 2, 1)
    scene.caller.on_map(successor)
    assert not given_back.done()
    assert not lost.done()
    scene.stale(scene.sent[0], successor)
    scene.caller.lose_dead()
    with pytest.raises(OutcomeUnknown, match="worker 0 died"):
        lost.result(0)
    assert not neighbour.done()
    scene.flush()
    assert (scene.sent[-1].epoch, scene.sent[-1].methods) == (2, ["given back"])
    scene.reply(1, "done", epoch=2)
    assert given_back.result(0) == "done"


def test_waiting_calls_move_to_the_successor_in_order(scene: Scene) -> None:
    scene.caller.on_map(map_of(2, 0, 1))
    waiting = [scene.call(f"m{number}", timeout=5.0) for number in range(50)]
    scene.flush()
    assert not scene.sent
    scene.caller.on_map(map_of(3, 2, 1))
    scene.flush()
    (sent,) = scene.sent
    assert (sent.worker, sent.epoch, sent.header.number) == (0, 2, 3)
    assert sent.methods == [f"m{number}" for number in range(50)]
    scene.replies(*[[item.sequence, 0, item.method] for item in sent.items], epoch=2)
    assert [future.result(0) for future in waiting] == [f"m{number}" for number in range(50)]
    scene.assert_nothing_is_kept()


def test_waiting_calls_follow_their_slots_to_another_worker(scene: Scene) -> None:
    scene.takes = lambda worker: False
    name = name_at(1)
    scene.start("m", name=name)
    scene.caller.on_map(map_of(2, 1))
    scene.takes = lambda worker: True
    scene.flush()
    assert [(sent.worker, sent.items[0].name) for sent in scene.sent] == [(0, name)]


@pytest.mark.parametrize("version", [0, 1])
def test_a_map_that_is_not_newer_changes_nothing(scene: Scene, version: int) -> None:
    future = scene.start()
    assert scene.caller.on_map(map_of(version, 9, 9)) is False
    assert scene.caller.map == TWO
    assert not future.done()


def test_the_death_of_the_router_that_carried_everything_ends_what_was_sent() -> None:
    scene = Scene(TWO, retry=False)
    sent = [scene.start(worker=worker) for worker in (0, 1)]
    scene.takes = lambda worker: False
    waiting = scene.start()
    scene.caller.on_router_lost()
    for future in sent:
        with pytest.raises(OutcomeUnknown, match="the router died"):
            future.result(0)
    assert not waiting.done()
    scene.takes = lambda worker: True
    scene.flush()
    assert sequences(scene) == [1, 2, 3]


# --- callers that go away


def test_a_call_that_was_cancelled_while_it_waited_is_not_sent_to_the_successor() -> None:
    scene = Scene(map_of(1, 0, 1))
    kept, cancelled = scene.call("kept"), scene.call("cancelled")
    cancelled.cancel()
    scene.caller.on_map(map_of(2, 2, 1))
    scene.flush()
    assert [sent.methods for sent in scene.sent] == [["kept"]]
    scene.reply(1, 1, epoch=2)
    assert kept.result(0) == 1
    scene.assert_nothing_is_kept()


def test_a_call_that_was_cancelled_after_it_was_sent_is_forgotten_by_its_deadline(scene: Scene) -> None:
    scene.start(timeout=1.0).cancel()
    scene.pass_time(1.0 + GRACE_S + 2 * TICK_S)
    assert not scene.caller.pending


# --- closing


def test_closing_ends_every_call_and_says_what_may_have_happened(scene: Scene) -> None:
    sent, returned = scene.start(), scene.start()
    scene.fail(2, ShardUnavailable("moving"))
    waiting = scene.call()
    scene.caller.close()
    with pytest.raises(OutcomeUnknown, match="closed before the answer came"):
        sent.result(0)
    for future in (returned, waiting):
        with pytest.raises(ShardUnavailable, match="closed before the call was sent"):
            future.result(0)
    caller = scene.caller
    assert not any(
        (caller.pending, caller._queues, caller._delayed, len(caller._deadlines), caller._queued_bytes)
    )


def test_a_call_after_closing_fails_at_once_and_says_why(scene: Scene) -> None:
    scene.caller.close()
    with pytest.raises(ShardUnavailable, match="this client is closed"):
        scene.call().result(0)
    scene.caller.close()
    scene.pass_time(1)
    assert not scene.sent


def test_late_messages_after_closing_do_no_harm(scene: Scene) -> None:
    future = scene.start()
    scene.caller.close()
    scene.reply(1, "late")
    scene.stale(scene.sent[0], map_of(2, 1, 1))
    scene.refuse(scene.sent[0], ShardUnavailable("stopping"))
    scene.pass_time(1)
    assert isinstance(future.exception(0), OutcomeUnknown)
    assert len(scene.sent) == 1


def test_closing_reports_no_error_of_calls_that_nobody_waits_for() -> None:
    reported: list[Any] = []

    async def fire_and_forget() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: reported.append(context))
        scene = Scene(TWO)
        awaited = loop.create_future()
        for answer in (loop.create_future(), loop.create_future(), awaited):
            scene.call(answer=answer)
            scene.flush()
        scene.call(answer=loop.create_future())
        scene.caller.close()
        with pytest.raises(OutcomeUnknown):
            await awaited

    asyncio.run(fire_and_forget())
    gc.collect()
    assert not reported
