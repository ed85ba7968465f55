"""Durable sends over restarts and in time: found again by the next incarnation, in order, never early."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure import (
    InvalidArgument,
    Limits,
)
from perdure_storage import keys
from perdure_worker.sends import due_at_ms
from worker.sends_scene import Ledger, Sender, arrived, later, outbox_rows, restarted, scene_of


def test_a_committed_send_that_has_not_left_goes_at_the_next_start() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say", "t", 1, 2)
    scene.jobs.popleft()()  # written, and the worker dies before it knows
    scene.jobs.clear()
    again = restarted(scene)
    again.advance(0.05)
    again.commit()
    assert arrived(again) == [1, 2]
    assert outbox_rows(again) == []
    again.close()


def test_an_uncommitted_send_is_gone_with_its_worker() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say", "t", 1)
    again = restarted(scene)
    later(again, 0.2)
    assert arrived(again) == []
    again.close()


def test_sends_after_a_restart_come_behind_those_before_it() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say", "t", 1, 2)
    scene.jobs.popleft()()
    scene.jobs.clear()
    again = restarted(scene)
    again.wall_step_s -= 3_600  # and the clock was set back meanwhile
    again.call(Sender, "s", "say", "t", 3)
    later(again, 0.2)
    assert arrived(again) == [1, 2, 3]
    again.close()


def test_sequences_grow_over_restarts_also_when_the_clock_is_set_back() -> None:
    scene = scene_of()
    sequences = []
    for back_s in (0, 3_600, 7_200):
        scene.wall_step_s -= back_s
        messages: list[Any] = []
        leave = scene.host.sends.leave
        scene.host.sends.leave = lambda sent, *_, m=messages, f=leave: (m.extend(sent), f(sent))  # type: ignore
        for number in range(3):
            scene.call(Sender, "s", "say", "t", number)
        sequences += [message.sequence for message in messages]
        scene = restarted(scene)
    assert sequences == sorted(set(sequences))
    assert len(sequences) == 9
    scene.close()


def test_a_target_keeps_the_record_of_a_send_for_days_so_that_a_sender_may_be_down_for_as_long() -> None:
    def records() -> list[bytes]:
        prefix = scene.resident(Ledger, "t").row_prefix() + keys.REPLY
        return [key[len(prefix) :] for key, _ in scene.disk.between(prefix, keys.prefix_end(prefix))]

    scene = scene_of()
    scene.call(Sender, "s", "say", "t", 1)
    scene.send(scene.item(Ledger, "t", "add", 0), head=[b"tells its ends!!", 1, 1, 1])
    scene.commit()
    later(scene, 10.0)  # what nobody calls any more has left memory
    scene.wall_step_s += 2 * Limits.reply_named_ttl_s
    for number in range(64):  # new clients of an object look at its old records
        scene.send(scene.item(Ledger, "t", "add", 1), head=[bytes([4 * number]) * 16, 1, 1, 1])
        scene.commit()
    (kept,) = [client for client in records() if client[0] % 4 or client[0] != client[1]]
    assert kept.endswith(b"send")
    scene.close()


def test_a_stopping_worker_sends_nothing_more() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say_and_wait", "t", "x")
    scene.do(scene.host.drain)
    later(scene, 1.1)
    assert scene.host.stats()["sends_in_flight"] == 0
    assert arrived(scene) == []
    again = restarted(scene)
    later(again, 0.1)
    assert arrived(again) == ["x"]
    again.close()


def test_an_object_with_pending_sends_may_leave_memory() -> None:
    scene = scene_of(idle_evict_s=1.0)
    scene.call(Sender, "s", "later", "t", "x", 60.0)
    later(scene, 2.0)
    scene.do(scene.host.evict_idle)
    assert not scene.is_live(Sender, "s")
    later(scene, 59.0)
    assert arrived(scene) == ["x"]
    assert not scene.is_live(Sender, "s")
    scene.close()


# --- time


def test_a_delayed_send_is_never_early_and_soon_after_its_time() -> None:
    scene = scene_of()
    later(scene, 0.1)  # it has looked at what is due, and nothing was
    scene.call(Sender, "s", "later", "t", "x", 2.0)
    later(scene, 1.95)
    assert arrived(scene) == []
    later(scene, 0.15)
    assert arrived(scene) == ["x"]
    assert outbox_rows(scene) == []
    scene.close()


def test_delayed_sends_go_in_the_order_of_their_times_and_others_do_not_wait() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "later", "t", "third", 2.0)
    scene.call(Sender, "s", "later", "t", "second", 1.0)
    scene.call(Sender, "s", "say", "t", "first")
    later(scene, 2.2)
    assert arrived(scene) == ["first", "second", "third"]
    scene.close()


def test_a_delayed_send_survives_a_restart() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "later", "t", "x", 30.0)
    again = restarted(scene)
    later(again, 29.0)
    assert arrived(again) == []
    later(again, 1.2)
    assert arrived(again) == ["x"]
    again.close()


def test_a_send_at_a_time_goes_by_the_wall_clock() -> None:
    scene = scene_of()
    when = datetime.fromtimestamp(scene.wall_clock() + 3_600, UTC)
    scene.call(Sender, "s", "at", "t", "x", when)
    later(scene, 0.2)
    assert arrived(scene) == []
    scene.wall_step_s += 3_600
    later(scene, 0.2)
    assert arrived(scene) == ["x"]
    scene.close()


def test_a_send_at_a_time_that_has_passed_goes_at_once() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "at", "t", "x", datetime(2001, 1, 1, tzinfo=UTC))
    assert arrived(scene) == ["x"]
    scene.close()


@pytest.mark.parametrize(
    ("delay", "at", "at_ms"),
    [
        (None, None, 0),
        (1.5, None, 1_001_500),
        (timedelta(milliseconds=2), None, 1_000_002),
        (0.0001, None, 1_000_001),
        (None, 2_000.0005, 2_000_001),
        (None, datetime.fromtimestamp(3_000, UTC), 3_000_000),
    ],
)
def test_times_are_milliseconds_rounded_up(delay: Any, at: Any, at_ms: int) -> None:
    assert due_at_ms(delay, at, 1_000_000_000) == at_ms


@pytest.mark.parametrize(
    ("delay", "at", "text"),
    [
        (1, 2, "not both"),
        (-1, None, "not negative"),
        (float("nan"), None, "delay="),
        ("1", None, "delay="),
        (True, None, "delay="),
        (None, datetime(2030, 1, 1), "time zone"),
        (None, float("inf"), "aware datetime"),
        (1e12, None, "9999"),
    ],
)
def test_what_is_no_time_is_refused(delay: Any, at: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        due_at_ms(delay, at, 0)
