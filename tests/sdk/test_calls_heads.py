"""What a client tells workers of its calls: which have ended, and whose calls they are."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from perdure import codec
from perdure.stub import make_target

from .caller_scene import CLIENT, LIMITS, Scene, Sent, map_of, name_at


@pytest.fixture
def scene() -> Scene:
    return Scene(map_of(1, 1, 1))


def head_of(sent: Sent) -> list[Any]:
    head: list[Any] = codec.decode(sent.body)[0]
    return head


def test_each_message_says_which_calls_have_ended(scene: Scene) -> None:
    for _ in range(3):
        scene.call()
    scene.flush()
    assert head_of(scene.sent[0]) == [CLIENT, 1, 3, 1]
    scene.reply(1)
    scene.reply(2)
    scene.start()
    assert head_of(scene.sent[1]) == [CLIENT, 2, 4, 3]
    scene.reply(4)
    scene.reply(3)
    scene.start()
    assert head_of(scene.sent[2]) == [CLIENT, 3, 5, 5]


def test_old_open_calls_are_listed_so_that_younger_ones_are_known_to_have_ended(scene: Scene) -> None:
    for _ in range(3):
        scene.start()
    scene.reply(2)
    scene.pass_time(0.6)
    scene.start()
    assert head_of(scene.sent[-1])[2:] == [4, 4, 1, 3]
    scene.reply(4)
    scene.start()
    assert head_of(scene.sent[-1])[2:] == [5, 5, 1, 3]


def test_no_open_call_is_ever_told_to_have_ended_however_many_are_old(scene: Scene) -> None:
    for _ in range(3 * LIMITS.stragglers_max):
        scene.start()
    scene.pass_time(0.6)
    for sequence in range(2, 3 * LIMITS.stragglers_max, 3):
        scene.reply(sequence)
    scene.start()
    _, _, _, floor, *stragglers = head_of(scene.sent[-1])
    assert len(stragglers) == LIMITS.stragglers_max
    assert set(stragglers) == {sequence for sequence in scene.caller.pending if sequence < floor}


def test_a_call_in_the_name_of_another_request_says_so(scene: Scene) -> None:
    target = make_target("Counter", name_at(0), 30.0, {})
    chain, request = [[b"k" * 32, "Counter/k"]], (b"r" * 16, 7, b"\x00\x01", 3)
    for given in ({}, {"chain": chain}, {"request": request}, {"chain": chain, "request": request}):
        answer: Future[Any] = Future()
        scene.caller.call(target, "increment", [], None, None, answer, **given)
    scene.flush()
    contexts = [item.context for item in scene.sent[0].items]
    assert contexts == [None, [chain, None], [None, list(request)], [chain, list(request)]]
