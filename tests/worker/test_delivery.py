"""The outbox's hands on a real host: what they read, what a delivery carries, what they remove."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import DurableObject, codec, durable
from perdure.errors import StorageError
from perdure.ids import id_from_name
from perdure.slotmap import Seat, SlotMap
from perdure_storage import keys
from perdure_storage.records import seal
from perdure_worker.delivery import Delivery
from perdure_worker.messages import DEAD, DELAYED, Message, lane_bounds
from perdure_worker.outbox import Pair
from worker.host_scene import SLOTS, Scene


class Sink(DurableObject):
    total: int = durable(0)

    async def add(self, by: int = 1) -> int:
        self.total += by
        return self.total

    async def fail(self) -> None:
        raise ValueError("no")


class Ends:
    """What deliveries and commits have told."""

    def __init__(self) -> None:
        self.outcomes: list[BaseException | None] = []
        self.durable: list[Message] = []
        self.ended: list[Message] = []

    def on_durable(self, pair: Pair, message: Message, _: Any) -> None:
        self.durable.append(message)


@pytest.fixture
def scene() -> Any:
    made = Scene(Sink)
    yield made
    made.close()


@pytest.fixture
def ends() -> Ends:
    return Ends()


@pytest.fixture
def hands(scene: Scene, ends: Ends) -> Delivery:
    return Delivery(scene.host, scene.caller, ends.ended.append)


def message(sequence: int = 1, method: str = "add", args: Any = ([2], None), target: str = "t") -> Message:
    prefix = keys.object_prefix(0, "Sender", id_from_name("Sender", "s").key)
    made = Message(prefix, "Sink", id_from_name("Sink", target).key, target, method, codec.encode(list(args)))
    made.sequence = sequence
    return made


def stored(scene: Scene, *messages: Message) -> None:
    for each in messages:
        scene.committer.put(each.row, each.record())
        scene.committer.put(each.due_row, seal(each.due_row, b""))
    scene.do(lambda: None)
    scene.commit()


def test_a_delivery_runs_the_method_and_tells_when_it_is_durable(
    scene: Scene, hands: Delivery, ends: Ends
) -> None:
    scene.do(hands.deliver, message(), 1, ends.outcomes.append)
    assert ends.outcomes == []
    scene.commit()
    assert ends.outcomes == [None]
    assert scene.fields(Sink, "t") == {"total": 2}


def test_a_message_that_is_delivered_twice_takes_effect_once(
    scene: Scene, hands: Delivery, ends: Ends
) -> None:
    for _ in range(2):
        scene.do(hands.deliver, message(), 1, ends.outcomes.append)
        scene.commit()
    assert ends.outcomes == [None, None]
    assert scene.fields(Sink, "t") == {"total": 2}


def test_a_message_below_the_floor_that_the_target_was_told_is_refused_as_too_old(
    scene: Scene, hands: Delivery, ends: Ends
) -> None:
    scene.do(hands.deliver, message(2), 2, ends.outcomes.append)
    scene.commit()
    scene.do(hands.deliver, message(1), 1, ends.outcomes.append)
    scene.commit()
    (_, error) = ends.outcomes
    assert getattr(error, "reason", None) == "too_old"
    assert scene.fields(Sink, "t") == {"total": 2}


def test_a_delivery_tells_what_the_method_raised(scene: Scene, hands: Delivery, ends: Ends) -> None:
    scene.do(hands.deliver, message(method="fail", args=([], None)), 1, ends.outcomes.append)
    (error,) = ends.outcomes
    assert "no" in str(error)


def test_nobody_waits_for_a_delivery_of_a_stopped_worker(scene: Scene, hands: Delivery, ends: Ends) -> None:
    scene.do(hands.deliver, message(), 1, ends.outcomes.append)
    hands.stopped = True
    assert all(pending.answer.done() for pending in scene.caller.pending.values())
    scene.commit()
    assert ends.outcomes == []


def test_messages_are_read_in_order_in_pages(scene: Scene, hands: Delivery) -> None:
    sent = [message(number) for number in range(1, 6)]
    stored(scene, *sent, message(9, target="other"))
    first, more = hands.read(sent[0].pair, -1, 3)
    assert ([m.sequence for m in first], more) == ([1, 2, 3], True)
    rest, more = hands.read(sent[0].pair, 3, 3)
    assert ([m.sequence for m in rest], more) == ([4, 5], False)


def test_a_page_of_large_messages_ends_early(scene: Scene, hands: Delivery) -> None:
    sent = [message(number, args=([b"x" * 700_000], None)) for number in range(1, 5)]
    stored(scene, *sent)
    page, more = hands.read(sent[0].pair, -1, 64)
    assert (len(page), more) == (2, True)


def test_one_message_is_read_by_its_row_or_is_not_there(scene: Scene, hands: Delivery) -> None:
    delayed = message()
    delayed.lane, delayed.at_ms = DELAYED, 99
    stored(scene, delayed)
    found = hands.read_one(delayed.prefix, delayed.tail)
    assert found is not None
    assert (found.at_ms, found.method) == (99, "add")
    assert hands.read_one(delayed.prefix, message(7).tail) is None


def test_a_damaged_row_is_said_in_the_log_and_raises_where_order_depends_on_it(
    scene: Scene, hands: Delivery, caplog: pytest.LogCaptureFixture
) -> None:
    bad = message()
    scene.committer.put(bad.row, b"\x01damaged")
    scene.do(lambda: None)
    scene.commit()
    with pytest.raises(StorageError):
        hands.read(bad.pair, -1, 10)
    assert hands.read_one(bad.prefix, bad.tail) is None
    assert "cannot be read" in caplog.text


def test_a_look_at_the_due_index_gives_what_is_due_and_goes_on_where_it_ended(
    scene: Scene, hands: Delivery
) -> None:
    now_ms = scene.host.timetable.now_ms()
    early, late = message(1), message(2)
    for each, at_ms in ((early, now_ms), (late, now_ms + 60_000)):
        each.lane, each.at_ms = DELAYED, at_ms
    alarm = keys.due_key(5, keys.ALARM, 0, "Sink", id_from_name("Sink", "t").key, b"name")
    scene.committer.put(alarm, seal(alarm, b""))
    stored(scene, message(3), early, late)
    found = hands.scan(b"", 10)
    assert [tail for _, _, tail in found] == [message(3).tail, b"", early.tail]
    assert hands.scan(found[0][0], 1) == found[1:2]


def test_what_has_ended_is_removed_with_its_row_in_the_due_index(
    scene: Scene, hands: Delivery, ends: Ends
) -> None:
    sent = message()
    stored(scene, sent)
    scene.do(hands.remove, sent, ends.on_durable, Pair(sent.pair))
    assert (ends.ended, ends.durable) == ([sent], [])
    scene.commit()
    assert ends.durable == [sent]
    assert scene.disk.between(sent.prefix, keys.prefix_end(sent.prefix)) == []
    assert scene.disk.between(keys.DUE_REGION, keys.RESERVED_REGION) == []


def test_what_is_dead_stays_with_its_error_and_leaves_the_due_index(
    scene: Scene, hands: Delivery, ends: Ends
) -> None:
    sent = message()
    stored(scene, sent)
    sent.attempts, sent.error = 8, "ValueError: no"
    scene.do(hands.bury, sent, ends.on_durable, Pair(sent.pair))
    scene.commit()
    assert ends.durable == [sent]
    assert ends.ended == []  # it still counts as one of the sender's
    ((row, _),) = scene.disk.between(*lane_bounds(sent.prefix, DEAD))
    dead = hands.read_one(sent.prefix, keys.parse_object_row(row).key)
    assert dead is not None
    assert (dead.attempts, dead.error) == (8, "ValueError: no")
    assert scene.disk.between(keys.DUE_REGION, keys.RESERVED_REGION) == []


def test_attempts_are_stored(scene: Scene, hands: Delivery) -> None:
    sent = message()
    stored(scene, sent)
    sent.attempts = 3
    scene.do(hands.remember, sent)
    scene.commit()
    found = hands.read_one(sent.prefix, sent.tail)
    assert found is not None
    assert found.attempts == 3


def test_a_target_is_reachable_while_its_worker_has_a_seat(scene: Scene, hands: Delivery) -> None:
    assert hands.reachable(message())
    scene.caller.on_map(SlotMap(2, (range(SLOTS),), (Seat(8, ""),)))
    assert not hands.reachable(message())
    scene.caller.map = None
    assert not hands.reachable(message())
