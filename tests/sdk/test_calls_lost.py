"""Calls that were lost with a worker, a connection or a router: sent again as the same request."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from perdure.errors import (
    DeadlineExceeded,
    InvalidArgument,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
    UnknownMethod,
)
from perdure.stub import make_target

from .caller_scene import Scene, map_of, name_at

TWO = map_of(1, 1, 1)


@pytest.fixture
def scene() -> Scene:
    return Scene(TWO)


def lose(scene: Scene, version: int = 2, epoch: int = 2) -> None:
    """Worker 0 dies, and its successor comes."""
    scene.caller.on_death(0, epoch - 1)
    scene.caller.on_map(map_of(version, epoch, 1))
    scene.flush()


def test_a_call_lost_with_its_worker_is_sent_to_the_successor_as_the_same_request(
    scene: Scene,
) -> None:
    arguments = [1]
    future, neighbour = scene.start("add", arguments, timeout=10.0), scene.start(worker=1)
    arguments.append(2)
    scene.pass_time(2.0)
    lose(scene)
    assert (scene.sent[-1].worker, scene.sent[-1].epoch) == (0, 2)
    (item,) = scene.sent[-1].items
    assert (item.sequence, item.method, item.args) == (1, "add", [[1]])
    assert item.timeout_ms == pytest.approx(8_000, abs=60)
    scene.reply(1, "done", epoch=2)
    assert future.result(0) == "done"
    assert not neighbour.done()


def test_a_late_reply_of_the_dead_worker_does_not_answer_the_retry(scene: Scene) -> None:
    future = scene.start()
    lose(scene)
    scene.reply(1, "from the grave", epoch=1)
    assert not future.done()
    scene.reply(1, "alive", epoch=2)
    assert future.result(0) == "alive"


def test_lost_calls_and_those_that_waited_behind_them_leave_in_the_order_in_which_they_were_made(
    scene: Scene,
) -> None:
    for number in range(3):
        scene.start(f"sent {number}")
        scene.pass_time(0.1)
    scene.takes = lambda worker: False
    for number in range(3):
        scene.start(f"waiting {number}")
        scene.pass_time(0.1)
    scene.caller.on_death(0, 1)
    scene.call("made after the death")
    scene.pass_time(0.1)
    scene.takes = lambda worker: True
    scene.sent.clear()
    scene.caller.on_map(map_of(2, 2, 1))
    scene.call("made after the map")
    scene.flush()
    methods = [method for sent in scene.sent for method in sent.methods]
    assert methods == [
        *[f"sent {number}" for number in range(3)],
        *[f"waiting {number}" for number in range(3)],
        "made after the death",
        "made after the map",
    ]
    for sequence in range(1, 9):
        scene.reply(sequence, epoch=2)
    scene.assert_nothing_is_kept()


def test_a_lost_call_is_sent_again_after_every_death_until_its_deadline(scene: Scene) -> None:
    future = scene.start(timeout=5.0)
    for epoch in range(2, 12):
        lose(scene, epoch, epoch)
        scene.pass_time(0.1)
    assert [sent.epoch for sent in scene.sent] == list(range(1, 12))
    scene.caller.on_death(0, 11)
    scene.caller.on_map(map_of(20, 0, 1))
    scene.time_until_done(future)
    with pytest.raises(OutcomeUnknown):
        future.result(0)
    scene.assert_nothing_is_kept()


def test_what_was_lost_with_the_router_is_sent_again(scene: Scene) -> None:
    scene.caller.direct = False
    futures = [scene.start(worker=worker) for worker in (0, 1)]
    scene.caller.on_router_lost()
    scene.flush()
    assert [item.sequence for sent in scene.sent for item in sent.items] == [1, 2, 1, 2]
    scene.reply(1, "a")
    scene.reply(2, "b")
    assert [future.result(0) for future in futures] == ["a", "b"]


@pytest.mark.parametrize("error", [Overloaded("full", retry_after=0.3), ShardUnavailable("starting")])
def test_a_lost_call_that_is_refused_for_now_is_tried_again(scene: Scene, error: Any) -> None:
    future = scene.start()
    lose(scene)
    scene.fail(1, error, epoch=2)
    scene.pass_time(1.0)
    assert len(scene.sent) == 3
    scene.reply(1, "done", epoch=2)
    assert future.result(0) == "done"


@pytest.mark.parametrize("error", [DeadlineExceeded("late"), UnknownMethod("?"), InvalidArgument("no")])
def test_a_lost_call_never_ends_as_not_executed(scene: Scene, error: Any) -> None:
    future = scene.start()
    lose(scene)
    scene.fail(1, error, epoch=2)
    with pytest.raises(OutcomeUnknown, match="earlier try"):
        future.result(0)


def test_a_lost_call_that_cannot_be_sent_again_ends_unknown_at_its_deadline(scene: Scene) -> None:
    future = scene.start(timeout=1.0)
    scene.caller.on_death(0, 1)
    scene.caller.on_map(map_of(2, 0, 1))
    assert scene.time_until_done(future) <= 1.06
    with pytest.raises(OutcomeUnknown):
        future.result(0)
    closing = scene.start(worker=1)
    scene.caller.on_death(1, 1)
    scene.caller.close()
    with pytest.raises(OutcomeUnknown):
        closing.result(0)


def test_a_lost_call_that_nobody_waits_for_is_not_sent_again(scene: Scene) -> None:
    future = scene.start()
    future.cancel()
    lose(scene)
    assert len(scene.sent) == 1
    assert not scene.caller.pending


def test_a_batch_that_comes_back_unexecuted_with_the_news_of_the_death_is_not_taken_for_lost(
    scene: Scene,
) -> None:
    future = scene.start()
    scene.stale(scene.sent[0], map_of(2, 2, 1))
    scene.flush()
    assert [sent.epoch for sent in scene.sent] == [1, 2]
    scene.fail(1, UnknownMethod("?"), epoch=2)
    assert type(future.exception(0)) is UnknownMethod


def test_of_many_lost_calls_some_wait_for_the_budget_and_all_are_sent(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scene.caller._pacing, "_step_s", 0.1)
    for _ in range(30):
        scene.call()
    scene.flush()
    lose(scene)
    assert 10 <= len(scene.sent[-1].items) <= 11
    scene.pass_time(3.0)
    assert sorted(item.sequence for sent in scene.sent[1:] for item in sent.items) == list(range(1, 31))


def test_a_request_of_ones_own_travels_with_every_try(scene: Scene) -> None:
    answer: Future[Any] = Future()
    request = (b"r" * 16, 7, b"", 0)
    target = make_target("Counter", name_at(0), 30.0, {})
    scene.caller.call(target, "add", [], None, None, answer, None, request)
    scene.flush()
    lose(scene)
    assert [item.context for sent in scene.sent for item in sent.items] == [[None, list(request)]] * 2
