"""Calls that surely did not run are sent again, with the same request id, until their deadline."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from perdure import codec
from perdure.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    UnknownMethod,
)

from .caller_scene import LIMITS, TICK_S, Scene, Sent, map_of, name_at

TWO = map_of(1, 1, 1)
DOWN = ShardUnavailable("this worker is stopping")


@pytest.fixture
def scene() -> Scene:
    return Scene(TWO)


def last_batch(scene: Scene) -> Sent:
    return scene.sent[-1]


# --- a worker that is not available


def test_a_call_that_the_worker_could_not_take_is_sent_again_unnoticed(scene: Scene) -> None:
    future = scene.start("add", 5)
    scene.fail(1, DOWN)
    assert not future.done()
    scene.pass_time(0.2)
    first, again = scene.sent
    assert again.items[0].sequence == first.items[0].sequence == 1
    assert again.items[0]._replace(timeout_ms=0) == first.items[0]._replace(timeout_ms=0)
    scene.reply(1, 6)
    assert future.result(0) == 6
    scene.assert_nothing_is_kept()


def test_a_call_refused_for_replies_that_are_not_read_yet_is_sent_again_and_one_refused_otherwise_is_not(
    scene: Scene,
) -> None:
    future = scene.start("add", 5)
    scene.fail(1, Overloaded("replies wait", limit="reply_queue_bytes_max"))
    scene.pass_time(0.2)
    assert len(scene.sent) == 2
    scene.fail(1, Overloaded("a full mailbox", limit="mailbox_calls_max"))
    with pytest.raises(Overloaded):
        future.result(0)
    scene.assert_nothing_is_kept()


def test_a_call_that_is_sent_again_says_how_much_time_is_left(scene: Scene) -> None:
    scene.start(timeout=10.0)
    scene.pass_time(4.0)
    scene.fail(1, DOWN)
    scene.pass_time(0.1)
    again = last_batch(scene)
    deadline = (again.header.stamp + again.items[0].timeout_ms) / 1000
    assert deadline == pytest.approx(1010.0, abs=0.002)


def test_pauses_between_tries_grow_and_are_bounded(scene: Scene) -> None:
    future = scene.start(timeout=60.0)
    times = [scene.clock.now]
    while not future.done():
        if len(scene.sent) == len(times) + 1:
            times.append(scene.clock.now)
        if len(scene.sent) == len(times) and scene.caller.pending[1].epoch:
            scene.fail(1, DOWN)
        scene.pass_time(0.01, 0.01)
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[0] <= 0.05
    assert max(pauses) <= 0.5 * 1.5 + 0.02
    assert min(pauses[6:]) >= 0.25
    assert 60 < len(pauses) < 200
    with pytest.raises(ShardUnavailable, match="until the deadline; nothing happened"):
        future.result(0)
    assert scene.clock.now - 1000.0 <= 60 + TICK_S + 0.02
    scene.assert_nothing_is_kept()


def test_a_worker_that_stays_away_for_an_hour_is_tried_for_an_hour(scene: Scene) -> None:
    future = scene.start(timeout=LIMITS.call_timeout_max_s)
    pending = scene.caller.pending[1]
    while not future.done():
        if pending.epoch:
            scene.fail(1, DOWN)
        scene.pass_time(0.5, 0.5)
    assert pending.attempts > 1_100, "a pause that doubled without a bound would overflow by now"
    assert isinstance(future.exception(0), ShardUnavailable)


def test_many_clients_do_not_come_back_at_the_same_moment(scene: Scene) -> None:
    for _ in range(200):
        scene.call()
    scene.flush()
    scene.replies(*[[sequence, 2, ["ShardUnavailable", "", {}]] for sequence in range(1, 201)])
    whens = {when for when, _ in scene.caller._delayed}
    assert len(whens) == 200


def test_arguments_are_sent_again_as_they_were_when_the_call_was_made(scene: Scene) -> None:
    items = [1, 2]
    scene.start("extend", items)
    items.append(object())  # type: ignore[arg-type]
    scene.fail(1, DOWN)
    scene.pass_time(0.2)
    assert last_batch(scene).items[0].args == [[1, 2]]


def test_a_refusal_after_the_deadline_ends_the_call_at_once(scene: Scene) -> None:
    future = scene.start(timeout=1.0)
    scene.pass_time(1.2)
    scene.fail(1, DOWN)
    assert isinstance(future.exception(0), ShardUnavailable)


def test_a_worker_that_is_overloaded_is_not_tried_again(scene: Scene) -> None:
    future = scene.start()
    scene.fail(1, Overloaded("mailbox full", limit="mailbox_calls_max", retry_after=2.0))
    with pytest.raises(Overloaded) as caught:
        future.result(0)
    assert (caught.value.limit, caught.value.retry_after) == ("mailbox_calls_max", 2.0)
    scene.pass_time(5)
    assert len(scene.sent) == 1


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), UnknownMethod("?"), OutcomeUnknown("lost")])
def test_other_errors_end_the_call_at_once(scene: Scene, error: Any) -> None:
    future = scene.start()
    scene.fail(1, error)
    assert type(future.exception(0)) is type(error)
    scene.assert_nothing_is_kept()


def test_a_reply_that_comes_while_the_call_waits_to_be_sent_again_is_dropped(scene: Scene) -> None:
    future = scene.start()
    scene.fail(1, DOWN)
    scene.reply(1, "whose?")
    assert not future.done()
    scene.pass_time(0.2)
    scene.reply(1, "this one")
    assert future.result(0) == "this one"


def test_a_cancelled_call_is_not_sent_again(scene: Scene) -> None:
    future = scene.start()
    scene.fail(1, DOWN)
    future.cancel()
    scene.pass_time(1)
    assert len(scene.sent) == 1
    scene.assert_nothing_is_kept()


# --- a slot map that is out of date


def test_a_stale_batch_is_grouped_again_under_the_map_that_comes_with_it(scene: Scene) -> None:
    names = [name_at(worker, 2, number) for number in range(5) for worker in (0, 1)]
    futures = [scene.call(f"m{index}", name=name) for index, name in enumerate(names)]
    scene.flush()
    newer = map_of(2, 1, 1, 1)
    for sent in list(scene.sent):
        scene.stale(sent, newer)
    scene.flush()
    again = scene.sent[2:]
    assert {sent.header.number for sent in again} == {2}
    for sent in again:
        assert all(newer.worker_of(item.object_id) == sent.worker for item in sent.items)
    resent = sorted(item.sequence for sent in again for item in sent.items)
    assert resent == list(range(1, 11))
    scene.replies(*[[sequence, 0, sequence] for sequence in resent])
    assert [future.result(0) for future in futures] == list(range(1, 11))
    assert scene.maps_wanted <= 1
    scene.assert_nothing_is_kept()


def test_calls_to_one_object_keep_their_order_when_their_batch_was_stale(scene: Scene) -> None:
    for number in range(20):
        scene.call(f"m{number}")
    scene.flush()
    scene.stale(scene.sent[0], map_of(2, 1, 1))
    scene.flush()
    assert last_batch(scene).methods == [f"m{number}" for number in range(20)]


def test_a_stale_batch_whose_map_came_before_it_is_sent_again_at_once(scene: Scene) -> None:
    future = scene.start()
    newer = map_of(2, 1, 2)
    scene.caller.on_map(newer)
    scene.stale(scene.sent[0], newer)
    scene.flush()
    assert last_batch(scene).header.number == 2
    scene.reply(1, 5)
    assert future.result(0) == 5


def test_a_router_that_calls_the_current_map_stale_is_not_asked_in_a_circle(scene: Scene) -> None:
    scene.start(timeout=5.0)
    for _ in range(10):
        scene.stale(last_batch(scene), TWO)
        scene.flush()
    assert len(scene.sent) == 2, "once at once, then with pauses"
    scene.pass_time(0.2)
    assert len(scene.sent) == 3
    assert scene.maps_wanted >= 1


@pytest.mark.parametrize("older", [None, map_of(0, 9, 9)], ids=["no map", "an older map"])
def test_a_router_that_is_behind_is_tried_again_with_pauses(scene: Scene, older: Any) -> None:
    future = scene.start()
    scene.stale(scene.sent[0], older)
    assert scene.maps_wanted == 1
    scene.flush()
    assert len(scene.sent) == 1
    scene.pass_time(0.2)
    assert len(scene.sent) == 2
    assert scene.caller.map == TWO
    scene.reply(1, 5)
    assert future.result(0) == 5


def test_a_stale_batch_that_comes_twice_sends_its_calls_once(scene: Scene) -> None:
    scene.start()
    newer = map_of(2, 1, 1)
    scene.stale(scene.sent[0], newer)
    scene.stale(scene.sent[0], newer)
    scene.refuse(scene.sent[0], DOWN)
    scene.pass_time(1.0)
    assert [item.sequence for sent in scene.sent[1:] for item in sent.items] == [1]


def test_a_stale_batch_past_its_deadline_did_not_run(scene: Scene) -> None:
    future = scene.start(timeout=1.0)
    scene.pass_time(1.2)
    scene.stale(scene.sent[0], map_of(2, 1, 1))
    with pytest.raises(NotExecuted):
        future.result(0)
    scene.flush()
    assert len(scene.sent) == 1


def test_stale_calls_that_have_ended_meanwhile_are_left_alone(scene: Scene) -> None:
    done, cancelled, alive = scene.call(), scene.call(), scene.call()
    scene.flush()
    scene.reply(1, "done")
    cancelled.cancel()
    scene.stale(scene.sent[0], map_of(2, 1, 1))
    scene.flush()
    assert [item.sequence for item in last_batch(scene).items] == [3]
    assert done.result(0) == "done"
    assert not alive.done()


# --- a batch that was refused


def test_the_calls_of_a_refused_batch_end_with_the_reason(scene: Scene) -> None:
    futures = [scene.call(worker=number % 2) for number in range(4)]
    scene.flush()
    scene.refuse(scene.sent[0], Overloaded("the queue to worker 0 is full", limit="router_queue_bytes_max"))
    for future in futures[::2]:
        with pytest.raises(Overloaded, match="worker 0"):
            future.result(0)
    assert not any(future.done() for future in futures[1::2])


def test_a_batch_that_a_stopping_router_refuses_is_sent_again(scene: Scene) -> None:
    future = scene.start()
    scene.refuse(scene.sent[0], DOWN)
    scene.pass_time(0.2)
    scene.reply(1, 5)
    assert (future.result(0), len(scene.sent)) == (5, 2)


def test_a_batch_that_was_not_understood_did_not_run(scene: Scene) -> None:
    future = scene.start()
    scene.refuse(scene.sent[0], codec.BadMessage("junk"))
    with pytest.raises(InvalidArgument, match="junk"):
        future.result(0)


def test_a_refusal_without_its_batch_ends_no_call(scene: Scene) -> None:
    future = scene.start()
    scene.refuse(None, Overloaded("who?"))
    assert not future.done()
    scene.reply(1, 5)
    assert future.result(0) == 5
