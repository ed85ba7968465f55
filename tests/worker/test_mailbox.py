"""Mailboxes and the wheel of deadlines on their own."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import Limits, Overloaded
from perdure_worker.mailbox import ExpiryWheel, Mailbox, Waiting
from perdure_worker.peers import Peer

PEER = Peer(b"peer", None, raw=False)


def waiting(name: Any = "call", *, deadline: float = 10.0, arrived: float = 0.0, size: int = 1) -> Waiting:
    return Waiting(PEER, [name], deadline, arrived, size)


def names(mailbox: Mailbox) -> list[Any]:
    found = []
    while (call := mailbox.pop()) is not None:
        assert call.item is not None
        found.append(call.item[0])
    return found


def test_calls_come_out_in_the_order_in_which_they_came() -> None:
    mailbox = Mailbox()
    for number in range(5):
        mailbox.push(waiting(number), Limits())
    assert mailbox.count == 5
    assert names(mailbox) == [0, 1, 2, 3, 4]
    assert (mailbox.count, mailbox.bytes, mailbox.pop()) == (0, 0, None)


@pytest.mark.parametrize(
    ("limits", "calls", "limit"),
    [
        (Limits(mailbox_calls_max=2), [waiting(), waiting(), waiting()], "mailbox_calls_max"),
        (Limits(mailbox_bytes_max=10), [waiting(size=5), waiting(size=5), waiting()], "mailbox_bytes_max"),
        (
            Limits(mailbox_age_max_s=3),
            [waiting(), waiting(arrived=3), waiting(arrived=4)],
            "mailbox_age_max_s",
        ),
    ],
)
def test_each_bound_refuses_the_call_beyond_it_and_only_that(
    limits: Limits, calls: list[Waiting], limit: str
) -> None:
    mailbox = Mailbox()
    mailbox.push(calls[0], limits)
    mailbox.push(calls[1], limits)
    with pytest.raises(Overloaded) as caught:
        mailbox.push(calls[2], limits)
    assert caught.value.limit == limit
    assert caught.value.retry_after > 0
    assert mailbox.count == 2
    mailbox.pop()
    if limit != "mailbox_age_max_s":
        mailbox.push(calls[2], limits)


def test_an_expired_call_makes_room_and_never_comes_out() -> None:
    mailbox, limits = Mailbox(), Limits(mailbox_calls_max=2, mailbox_age_max_s=3)
    old, young = waiting("old"), waiting("young", arrived=3)
    mailbox.push(old, limits)
    mailbox.push(young, limits)
    assert mailbox.expire(old) == ["old"]
    assert mailbox.expire(old) is None
    assert mailbox.count == 1
    mailbox.push(waiting("new", arrived=5), limits)
    assert names(mailbox) == ["young", "new"]


def test_expired_calls_behind_one_that_waits_for_long_do_not_pile_up() -> None:
    mailbox, limits = Mailbox(), Limits()
    mailbox.push(waiting("long"), limits)
    for _ in range(10_000):
        call = waiting("short")
        mailbox.push(call, limits)
        mailbox.expire(call)
    assert mailbox.entries < 100
    mailbox.push(waiting("last"), limits)
    assert names(mailbox) == ["long", "last"]


def test_a_call_is_given_back_after_its_deadline_and_within_a_tick_of_it() -> None:
    wheel, mailbox = ExpiryWheel(100.0), Mailbox()
    for number in range(40):
        call = waiting(number, deadline=100 + number * 0.013)
        mailbox.push(call, Limits())
        wheel.add(mailbox, call)
    given_back: dict[int, float] = {}
    now = 100.0
    while now < 101:
        given_back |= {item[0]: now for _, item in wheel.due(now)}
        now += 0.001
    assert sorted(given_back) == list(range(40))
    for number, when in given_back.items():
        assert 0 <= when - (100 + number * 0.013) <= 0.0511
    assert mailbox.count == 0


def test_a_deadline_that_has_passed_already_is_given_back_at_the_next_look() -> None:
    wheel, mailbox = ExpiryWheel(100.0), Mailbox()
    wheel.due(150.0)
    call = waiting("late", deadline=120.0)
    mailbox.push(call, Limits())
    wheel.add(mailbox, call)
    assert wheel.due(150.0) == [(PEER, ["late"])]


def test_the_wheel_finds_nothing_twice_and_catches_up_after_a_pause() -> None:
    wheel, mailbox = ExpiryWheel(0.0), Mailbox()
    calls = [waiting(number, deadline=number) for number in range(1, 100)]
    for call in calls:
        mailbox.push(call, Limits())
        wheel.add(mailbox, call)
    assert [item[0] for _, item in wheel.due(1_000.0)] == list(range(1, 100))
    assert wheel.due(2_000.0) == []


def test_the_wheel_holds_nothing_of_a_call_that_has_started() -> None:
    wheel, mailbox = ExpiryWheel(0.0), Mailbox()
    calls = [waiting(number, deadline=3_600.0) for number in range(1_000)]
    for call in calls:
        mailbox.push(call, Limits())
        wheel.add(mailbox, call)
    assert len(wheel) == 1_000
    while (call := mailbox.pop()) is not None:
        wheel.remove(call)
    assert len(wheel) == 0
    assert wheel._buckets == {}
    wheel.remove(calls[0])
