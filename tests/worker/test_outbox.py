"""Which durable send leaves when, with a disk, targets and a clock that the tests move."""

from __future__ import annotations

import pytest

from perdure.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    RemoteError,
    ShardUnavailable,
    StorageError,
    UnknownMethod,
    UnknownNamespace,
)
from perdure_worker.messages import Message
from worker.outbox_scene import FakeHands, OutboxScene

BROKEN = RemoteError("no", type_name="ValueError", object_id="Target/t")


def started(**limits: object) -> OutboxScene:
    """An outbox that has seen that nothing is on disk."""
    scene = OutboxScene(**limits)
    scene.tick()
    return scene


def test_messages_of_a_pair_go_one_after_the_other_in_their_order() -> None:
    scene = started()
    for number in range(3):
        scene.send("s", "t", f"m{number}", number + 1)
    assert scene.flying == ["m0"]
    scene.end("m0")
    assert scene.flying == ["m1"]
    scene.end("m1")
    scene.end("m2")
    scene.hands.commit()
    assert scene.left == []


def test_pairs_do_not_wait_for_each_other() -> None:
    scene = started()
    scene.send("s", "t", "slow", 1)
    scene.send("s", "u", "other target", 2)
    scene.send("r", "t", "other sender", 3)
    assert scene.flying == ["slow", "other target", "other sender"]


def test_a_message_is_removed_only_after_its_delivery_has_ended() -> None:
    scene = started()
    scene.send("s", "t", "m", 1)
    scene.hands.commit()
    assert scene.left == ["m"]
    scene.end("m")
    assert scene.left == ["m"]
    scene.hands.commit()
    assert scene.left == []


def test_a_failing_target_blocks_its_own_pair_only() -> None:
    scene = started()
    scene.send("s", "t", "m0", 1)
    scene.send("s", "t", "m1", 2)
    scene.end("m0", ShardUnavailable("down"))
    scene.send("s", "u", "other", 3)
    assert scene.flying == ["other"]
    scene.tick(1.0)
    assert scene.flying == ["other", "m0"]


def test_pauses_double_up_to_their_cap_with_jitter() -> None:
    scene = started(send_pause_first_s=1.0, send_pause_max_s=8.0)
    scene.send("s", "t", "m", 1)
    pauses = []
    for _ in range(8):
        scene.end("m", ShardUnavailable("down"))
        failed_at = scene.now
        while not scene.flying:
            scene.tick(0.05)
        pauses.append(scene.now - failed_at)
    for pause, base in zip(pauses, [1, 2, 4, 8, 8, 8, 8, 8], strict=True):
        assert 0.5 * base <= pause <= 1.5 * base + 0.1
    assert len({round(pause, 1) for pause in pauses[3:]}) > 1


def test_a_success_ends_the_doubling() -> None:
    scene = started(send_pause_first_s=1.0)
    scene.send("s", "t", "m0", 1)
    scene.send("s", "t", "m1", 2)
    for _ in range(4):
        scene.end("m0", ShardUnavailable("down"))
        scene.tick(20.0)
    scene.end("m0")
    scene.end("m1", ShardUnavailable("down"))
    scene.tick(1.5)
    assert scene.flying == ["m1"]


@pytest.mark.parametrize(
    "error",
    [ShardUnavailable("down"), OutcomeUnknown("lost"), Overloaded("full"), DeadlineExceeded("late")],
    ids=lambda error: type(error).__name__,
)
def test_what_says_nothing_about_the_message_is_tried_again_without_end(error: Exception) -> None:
    scene = started()
    scene.send("s", "t", "m", 1)
    for _ in range(50):
        scene.end("m", error)
        scene.tick(30.0)
    assert scene.flying == ["m"]
    assert scene.dead == []


@pytest.mark.parametrize(
    "error",
    [
        BROKEN,
        ValueError("registered"),
        UnknownMethod("none"),
        UnknownNamespace("none"),
        InvalidArgument("wrong"),
        NotExecuted("quarantined"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_target_does_itself_counts_until_the_message_is_dead_and_the_next_one_goes(
    error: Exception,
) -> None:
    scene = started(send_attempts_max=3)
    scene.send("s", "t", "bad", 1)
    scene.send("s", "t", "next", 2)
    for _ in range(3):
        assert scene.flying == ["bad"]
        scene.end("bad", error)
        scene.tick(30.0)
    assert scene.flying == ["next"]
    scene.hands.commit()
    ((what, attempts, text),) = scene.dead
    assert (what, attempts) == ("bad", 3)
    assert text is not None
    assert text.startswith(type(error).__name__)
    assert scene.outbox.stats(1_000)["sends_dead"] == 1


def test_attempts_count_over_restarts() -> None:
    scene = started(send_attempts_max=3)
    scene.send("s", "t", "bad", 1)
    for _ in range(2):
        scene.end("bad", BROKEN)
        scene.hands.commit()
        scene = scene.restarted()
        scene.tick()
    scene.end("bad", BROKEN)
    scene.hands.commit()
    assert [row[:2] for row in scene.dead] == [("bad", 3)]


def test_a_request_that_is_too_old_is_dead_at_once_since_no_retry_can_tell_more() -> None:
    scene = started()
    scene.send("s", "t", "m", 1)
    scene.end("m", OutcomeUnknown("too old", reason="too_old"))
    scene.hands.commit()
    assert [row[:2] for row in scene.dead] == [("m", 1)]


def test_a_message_whose_answer_alone_is_lost_for_good_has_arrived() -> None:
    scene = started()
    scene.send("s", "t", "m", 1)
    scene.end("m", OutcomeUnknown("too large", reason="answered"))
    scene.hands.commit()
    assert scene.left == []
    assert scene.dead == []


def test_the_floor_is_the_oldest_message_whose_removal_is_not_durable() -> None:
    scene = started()
    for number in range(4):
        scene.send("s", "t", f"m{number}", number + 10)
    assert scene.end("m0").floor == 10
    assert scene.end("m1").floor == 10
    scene.hands.commit()
    assert scene.end("m2").floor == 10  # it left before the removals were durable
    assert scene.end("m3").floor == 12


def test_only_so_many_messages_end_ahead_of_the_disk() -> None:
    scene = started(sends_unconfirmed_max=2)
    for number in range(4):
        scene.send("s", "t", f"m{number}", number + 1)
    scene.end("m0")
    scene.end("m1")
    assert scene.flying == []
    scene.hands.commit()
    assert scene.flying == ["m2"]


def test_a_new_message_of_a_pair_that_has_ended_knows_what_is_not_durable() -> None:
    scene = started()
    scene.send("s", "t", "m0", 1)
    scene.end("m0")
    scene.send("s", "t", "m1", 2)
    assert scene.end("m1").floor == 1


def test_the_flights_of_a_worker_are_bounded() -> None:
    scene = started(sends_in_flight_max=2)
    for number in range(4):
        scene.send("s", f"t{number}", f"m{number}", number + 1)
    assert scene.flying == ["m0", "m1"]
    scene.end("m0")
    assert scene.flying == ["m1", "m2"]


def test_a_slow_target_takes_a_bounded_share_of_the_flights() -> None:
    scene = started(sends_in_flight_max=4, sends_per_target_max=2)
    for number in range(4):
        scene.send(f"s{number}", "slow", f"slow{number}", number + 1)
    scene.send("s", "quick", "quick", 9)
    assert scene.flying == ["slow0", "slow1", "quick"]
    scene.end("slow0")
    assert scene.flying == ["slow1", "quick", "slow2"]
    assert sorted(scene.drain()) == ["quick", "slow1", "slow2", "slow3"]


def test_a_target_whose_worker_is_down_is_not_called_and_found_within_a_second_or_so() -> None:
    scene = started()
    scene.hands.down.add(b"t".ljust(32, b"."))
    scene.send("s", "t", "m", 1)
    for _ in range(100):
        scene.tick(0.5)
    assert scene.flying == []
    scene.hands.down.clear()
    scene.tick(1.5)
    assert scene.flying == ["m"]


# --- memory and disk


def test_what_a_pair_cannot_hold_in_memory_is_read_from_disk_in_order() -> None:
    scene = started(sends_per_pair_loaded_max=3)
    for number in range(10):
        scene.send("s", "t", f"m{number}", number + 1)
        scene.send("s", "u", f"u{number}", number + 101)
    assert scene.outbox.stats(1_000)["sends_pending"] == 6
    arrived = scene.drain()
    assert [what for what in arrived if what[0] == "m"] == [f"m{number}" for number in range(10)]
    assert [what for what in arrived if what[0] == "u"] == [f"u{number}" for number in range(10)]
    assert scene.left == []


@pytest.mark.parametrize("limits", [{"sends_loaded_max": 4}, {"sends_loaded_bytes_max": 800}])
def test_memory_is_bounded_in_messages_and_bytes_and_nothing_is_lost(limits: dict[str, int]) -> None:
    scene = started(**limits)
    for number in range(30):
        scene.send("s", f"t{number % 3}", f"m{number}", number + 1)
    assert scene.outbox.stats(1_000)["sends_pending"] <= 7  # one of each pair may come on top
    arrived = scene.drain()
    for target in range(3):
        numbers = [int(what[1:]) for what in arrived if int(what[1:]) % 3 == target]
        assert numbers == list(range(target, 30, 3))


def test_blocked_pairs_make_room_for_others_and_are_found_again() -> None:
    scene = started(send_pairs_max=2)
    scene.hands.down.update({b"t0".ljust(32, b"."), b"t1".ljust(32, b".")})
    scene.send("s", "t0", "m0", 1)
    scene.send("s", "t1", "m1", 2)
    scene.send("s", "up", "m2", 3)
    scene.end("m2")
    scene.hands.commit()
    scene.hands.down.clear()
    arrived = []
    for _ in range(20):
        scene.tick(0.5)
        arrived += scene.drain()
    assert sorted(arrived) == ["m0", "m1"]


def test_a_pair_that_was_forgotten_keeps_its_order() -> None:
    scene = started(send_pairs_max=1)
    scene.hands.down.add(b"t".ljust(32, b"."))
    scene.send("s", "t", "m0", 1)
    scene.send("s", "u", "other", 2)  # it takes the place of the blocked pair
    scene.hands.down.clear()
    scene.end("other")
    scene.hands.commit()
    scene.send("s", "t", "m1", 3)
    assert scene.flying == ["m0"]
    scene.end("m0")
    assert scene.flying == ["m1"]


def test_a_message_that_was_read_from_disk_before_it_was_offered_goes_once() -> None:
    scene = started(sends_per_pair_loaded_max=3)
    for number in range(4):
        scene.send("s", "t", f"m{number}", number + 1)
    last = scene.store("s", "t", "m4", 5)  # durable, and its own output comes a little later
    for number in range(3):
        scene.end(f"m{number}")
    scene.outbox.offer(last)
    assert scene.drain() == ["m3", "m4"]


def test_after_a_restart_what_is_on_disk_goes_first_and_in_order() -> None:
    scene = started()
    for number in range(3):
        scene.send("s", "t", f"m{number}", number + 1)
    scene.end("m0")
    scene.hands.commit()
    again = scene.restarted()
    again.send("s", "t", "new", 9)  # before anything was looked for
    assert again.drain() == ["m1", "m2", "new"]


def test_a_start_finds_more_messages_than_one_look_gives() -> None:
    scene = OutboxScene()
    for number in range(3_000):
        scene.store("s", f"t{number}", f"m{number}", number + 1)
    assert len(scene.drain()) == 3_000
    scene.tick(1.0)
    assert scene.outbox.stats(1_000)["sends_unread"] == 0


def test_a_disk_that_cannot_be_read_stops_nothing_else_and_is_looked_at_again() -> None:
    class Unreadable(FakeHands):
        broken = True

        def read(self, pair: bytes, after: int, limit: int) -> tuple[list[Message], bool]:
            if self.broken:
                raise StorageError("damaged")
            return super().read(pair, after, limit)

        def scan(self, after: bytes, limit: int) -> list[tuple[bytes, bytes, bytes]]:
            if self.broken:
                raise StorageError("damaged")
            return super().scan(after, limit)

    hands = Unreadable()
    scene = OutboxScene(hands)
    scene.store("s", "t", "old", 1)
    scene.tick()
    scene.send("s", "t", "new", 2)
    assert scene.flying == []
    hands.broken = False
    for _ in range(20):
        scene.tick(1.0)
    assert scene.drain() == ["old", "new"]


# --- delayed messages


def test_a_delayed_message_goes_when_it_is_woken_and_later_ones_do_not_wait_for_it() -> None:
    scene = started()
    delayed = scene.store("s", "t", "delayed", 1, at_ms=5_000)
    scene.send("s", "t", "at once", 2)
    assert scene.flying == ["at once"]
    scene.end("at once")
    scene.hands.now_ms = 5_000
    scene.wake(delayed)
    assert scene.flying == ["delayed"]


def test_a_delayed_message_that_is_woken_twice_goes_once() -> None:
    scene = started()
    delayed = scene.store("s", "t", "delayed", 1, at_ms=500)
    scene.wake(delayed)
    scene.wake(delayed)
    scene.end("delayed")
    scene.wake(delayed)  # its removal is not durable yet
    scene.hands.commit()
    scene.wake(delayed)
    assert scene.flying == []


def test_delayed_messages_of_a_pair_go_one_after_the_other_as_they_are_woken() -> None:
    scene = started()
    rows = [scene.store("s", "t", f"d{number}", number + 1, at_ms=500) for number in range(3)]
    for row in rows:
        scene.wake(row)
    assert scene.flying == ["d0"]
    assert scene.drain() == ["d0", "d1", "d2"]


def test_a_delayed_message_has_no_floor_and_a_client_of_its_own() -> None:
    scene = started()
    scene.send("s", "t", "m", 5)
    delayed = scene.store("s", "t", "delayed", 9, at_ms=500)
    scene.wake(delayed)
    first = scene.end("m")
    assert scene.end("delayed").floor == 0
    assert delayed.client != first.message.client


def test_a_delayed_message_that_found_no_room_is_found_later() -> None:
    scene = started(sends_loaded_max=1)
    scene.send("s", "t", "m", 1)
    scene.wake(scene.store("s", "u", "delayed", 2, at_ms=500))
    assert scene.flying == ["m"]
    arrived = scene.drain()
    scene.tick(1.0)
    assert arrived + scene.drain() == ["m", "delayed"]


# --- the end


def test_a_stopped_outbox_sends_nothing_more_and_leaves_all_to_the_next_start() -> None:
    scene = started()
    scene.send("s", "t", "m0", 1)
    scene.send("s", "t", "m1", 2)
    scene.outbox.stop()
    scene.end("m0")
    scene.send("s", "u", "m2", 3)
    scene.tick(60.0)
    assert scene.flying == []
    arrived = scene.restarted().drain()
    assert sorted(arrived) == ["m0", "m1", "m2"]
    assert arrived.index("m0") < arrived.index("m1")


def test_figures_tell_what_waits_and_since_when() -> None:
    scene = started()
    scene.send("s", "t", "m0", 1)
    scene.send("s", "t", "m1", 2)
    scene.send("s", "u", "m2", 3)
    scene.end("m2", ShardUnavailable("down"))
    figures = scene.outbox.stats(now_ms=4_400)
    assert figures == {
        "sends_pending": 3,
        "sends_unread": 0,
        "sends_in_flight": 1,
        "sends_paused": 1,
        "sends_delivered": 0,
        "sends_dead": 0,
        "sends_oldest_ms": 3_500,
    }
