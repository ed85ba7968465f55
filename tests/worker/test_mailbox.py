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


def test_calls_that_go_first_keep_their_own_order_before_all_others() -> None:
    mailbox = Mailbox()
    for number in range(3):
        mailbox.push(waiting(number), Limits())
    early = [waiting(name) for name in "abc"]
    for call in early:
        mailbox.push(call, Limits(), first=True)
    mailbox.expire(early[0])
    assert mailbox.count == 5
    assert mailbox.first() is early[1]
    assert names(mailbox) == ["b", "c", 0, 1, 2]
    assert (mailbox.count, mailbox.bytes, mailbox.first()) == (0, 0, None)


def test_the_first_call_is_the_one_that_comes_out_next() -> None:
    mailbox = Mailbox()
    calls = [waiting(number) for number in range(3)]
    for call in calls:
        mailbox.push(call, Limits())
    mailbox.expire(calls[0])
    assert mailbox.first() is calls[1]
    assert mailbox.pop() is calls[1]


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


# --- several clients

OTHER = Peer(b"other", None, raw=False)
THIRD = Peer(b"third", None, raw=False)


def of(peer: Peer, name: Any, *, arrived: float = 0.0, size: int = 1, nested: bool = False) -> Waiting:
    return Waiting(peer, [name], 10.0, arrived, size, nested=nested)


def test_a_single_call_waits_for_one_turn_of_a_client_that_has_a_thousand_queued() -> None:
    mailbox, limits = Mailbox(), Limits(mailbox_calls_max=2_000)
    for number in range(1_000):
        mailbox.push(of(PEER, number), limits)
    mailbox.push(of(OTHER, "single"), limits)
    assert names(mailbox)[:3] == [0, "single", 1]


def test_clients_take_turns_and_each_keeps_its_order() -> None:
    mailbox, limits = Mailbox(), Limits()
    for number in range(4):
        mailbox.push(of(PEER, f"a{number}"), limits)
    for number in range(2):
        mailbox.push(of(OTHER, f"b{number}"), limits)
    mailbox.push(of(THIRD, "c0"), limits)
    assert mailbox.next_client is PEER
    assert names(mailbox) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]
    assert (mailbox.count, mailbox.bytes, mailbox.entries, mailbox.next_client) == (0, 0, 0, None)


def test_in_a_full_mailbox_the_newest_call_of_the_longest_queue_gives_way_to_who_has_less() -> None:
    mailbox, limits = Mailbox(), Limits(mailbox_calls_max=4)
    for number in range(4):
        mailbox.push(of(PEER, number), limits)
    assert [call.item for call in mailbox.push(of(OTHER, "first"), limits)] == [[3]]
    assert [call.item for call in mailbox.push(of(OTHER, "second"), limits)] == [[2]]
    with pytest.raises(Overloaded):  # two of four are its share of two
        mailbox.push(of(OTHER, "third"), limits)
    with pytest.raises(Overloaded):
        mailbox.push(of(PEER, "mine"), limits)
    assert names(mailbox) == [0, "first", 1, "second"]


def test_a_call_that_a_turn_waits_for_never_gives_way() -> None:
    mailbox, limits = Mailbox(), Limits(mailbox_calls_max=3)
    mailbox.push(of(PEER, "free"), limits)
    for number in range(2):
        mailbox.push(of(PEER, number, nested=True), limits)
    assert [call.item for call in mailbox.push(of(OTHER, "one"), limits)] == [["free"]]
    with pytest.raises(Overloaded) as caught:  # what the other one has is no more than its share
        mailbox.push(of(THIRD, "two"), limits)
    assert caught.value.limit == "mailbox_calls_max"
    assert mailbox.count == 3
    assert {0, 1} <= set(names(mailbox))


def test_bytes_are_shared_as_calls_are() -> None:
    mailbox, limits = Mailbox(), Limits(mailbox_bytes_max=100)
    for number in range(5):
        mailbox.push(of(PEER, number, size=20), limits)
    assert [call.item for call in mailbox.push(of(OTHER, "large", size=50), limits)] == [[4], [3], [2]]
    assert mailbox.bytes == 90
    with pytest.raises(Overloaded) as caught:
        mailbox.push(of(OTHER, "more", size=20), limits)
    assert caught.value.limit == "mailbox_bytes_max"
    assert names(mailbox) == [0, "large", 1]


def test_an_overloaded_mailbox_says_how_long_its_queue_will_take() -> None:
    mailbox, limits = Mailbox(), Limits(mailbox_calls_max=10, retry_after_min_s=0.05, retry_after_max_s=10)
    for _ in range(10):
        mailbox.push(waiting(arrived=100.0), limits)

    def asked(now: float) -> float:
        with pytest.raises(Overloaded) as caught:
            mailbox.push(waiting(arrived=now), limits)
        return caught.value.retry_after

    assert asked(100.0) == 0.05  # nothing is known of its turns yet
    assert asked(100.5) == 5.0  # the one that runs has taken half a second
    for _ in range(5):
        mailbox.pop()
    for _ in range(5):
        mailbox.push(waiting(arrived=101.0), limits)
    assert asked(101.0) == 2.0  # five turns in a second, ten are waiting
    assert asked(1_000.0 - 841.0) == 10.0


def test_turns_of_long_ago_count_less_than_recent_ones() -> None:
    mailbox, limits = Mailbox(), Limits(mailbox_calls_max=10_000, retry_after_max_s=1_000)
    now = 0.0
    mailbox.push(waiting(arrived=now), limits)
    for turn_s in (1.0, 0.001):
        for _ in range(600):
            now += turn_s
            mailbox.push(waiting(arrived=now), limits)
            mailbox.pop()
    assert mailbox.wait_s(now, limits) < 0.2
