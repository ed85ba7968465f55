"""Actions at their times."""

from __future__ import annotations

from perdure_gateway.timers import Timers


def test_actions_run_at_their_times_in_order_and_once() -> None:
    timers, ran = Timers(), []
    assert timers.wake_at == float("inf")
    for name, when in [("b", 2.0), ("a", 1.0), ("b2", 2.0), ("c", 3.0)]:
        timers.at(when, lambda name=name: ran.append(name))
    assert timers.wake_at == 1.0
    timers.tick(0.9)
    assert ran == []
    timers.tick(2.0)
    assert ran == ["a", "b", "b2"]
    timers.tick(2.5)
    assert timers.wake_at == 3.0
    timers.tick(4.0)
    assert ran == ["a", "b", "b2", "c"]


def test_an_action_may_ask_for_another_time_even_the_present_one() -> None:
    timers, ran = Timers(), []
    timers.at(1.0, lambda: (ran.append(1), timers.at(1.0, lambda: ran.append(2))))
    timers.tick(1.0)
    assert ran == [1]
    timers.tick(1.0)
    assert ran == [1, 2]
