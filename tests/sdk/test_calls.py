"""Calls on their way out, and results on their way back."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import codec, protocol
from perdure.errors import (
    InvalidArgument,
    MessageTooLarge,
    OutcomeUnknown,
    Overloaded,
)
from perdure.methods import callable_methods
from perdure.object import DurableObject

from .caller_scene import LIMITS, Scene, Sent, map_of, name_at

TWO = map_of(1, 1, 1)


@pytest.fixture
def scene() -> Scene:
    return Scene(TWO)


@dataclass
class Offer:
    price: int


class Shop(DurableObject):
    async def price(self) -> int:
        return 1

    async def offer(self) -> Offer:
        return Offer(1)


SHOP = callable_methods(Shop, DurableObject)


# --- out


def test_calls_of_one_tick_leave_as_one_message_for_each_worker(scene: Scene) -> None:
    for number in range(10):
        scene.call(f"m{number}", worker=number % 2)
    assert scene.flush() is False
    assert [(sent.worker, sent.epoch) for sent in scene.sent] == [(0, 1), (1, 1)]
    assert scene.sent[0].methods == ["m0", "m2", "m4", "m6", "m8"]
    assert scene.sent[1].methods == ["m1", "m3", "m5", "m7", "m9"]


def test_one_flush_is_asked_for_however_many_calls_there_are(scene: Scene) -> None:
    for _ in range(10):
        scene.call()
    assert scene.flushes_wanted == 1
    scene.flush()
    scene.call()
    assert scene.flushes_wanted == 2


def test_nothing_is_sent_when_there_is_nothing_to_send(scene: Scene) -> None:
    assert scene.flush() is False
    scene.start()
    scene.flush()
    assert len(scene.sent) == 1


def test_an_item_holds_all_that_the_worker_needs(scene: Scene) -> None:
    name = name_at(1)
    scene.start("add", 1, "x", (2,), worker=1, timeout=2.5)
    (sent,) = scene.sent
    (item,) = sent.items
    assert (item.namespace, item.name, item.method) == ("Counter", name, "add")
    assert (item.args, item.kwargs, item.timeout_ms, item.context) == ([1, "x", (2,)], None, 2500, None)
    assert sent.header == protocol.Header(protocol.BATCH, 1, TWO.version, int(scene.clock.now * 1000))


def test_sequences_grow_by_one_in_the_order_of_the_calls(scene: Scene) -> None:
    for number in range(100):
        scene.call(f"m{number}")
    scene.flush()
    items = scene.sent[0].items
    assert [item.sequence for item in items] == list(range(1, 101))
    assert [item.method for item in items] == [f"m{number}" for number in range(100)]


def test_a_client_on_another_machine_sends_no_time_of_its_own_clock(scene: Scene) -> None:
    scene.caller.same_clock = False
    scene.start()
    assert scene.sent[0].header.stamp == 0


def test_more_calls_than_a_batch_may_hold_leave_in_several_in_order(scene: Scene) -> None:
    count = 2 * LIMITS.batch_calls_max + 5
    for _ in range(count):
        scene.call()
    scene.flush()
    batches = [[item.sequence for item in sent.items] for sent in scene.sent]
    # A batch is a list with the client's id in front, and as a whole within the limit.
    assert max(map(len, batches)) == LIMITS.batch_calls_max - 1
    assert [sequence for batch in batches for sequence in batch] == list(range(1, count + 1))


def test_more_bytes_than_a_batch_should_hold_leave_in_several_in_order(scene: Scene) -> None:
    chance = random.Random(3)
    for _ in range(100):
        scene.call("put", bytes(chance.randrange(200_000)))
    scene.call("put", bytes(3 * LIMITS.batch_bytes_max))
    scene.call("put", b"small")
    scene.flush()
    sequences = [item.sequence for sent in scene.sent for item in sent.items]
    assert sequences == list(range(1, 103))
    small_enough = LIMITS.batch_bytes_max + 100
    large = [sent.methods for sent in scene.sent if len(sent.body) > small_enough]
    assert large == [["put"]], "what is larger than a batch leaves alone"
    assert len(scene.sent) < 25


def test_a_pipe_that_is_full_keeps_the_rest_for_the_next_flush(scene: Scene) -> None:
    for _ in range(3):
        scene.call("put", bytes(LIMITS.batch_bytes_max))
    scene.call(worker=1)
    left = [2]

    def takes(worker: int) -> bool:
        left[0] -= worker == 0
        return worker == 1 or left[0] >= 0

    scene.takes = takes
    assert scene.flush() is True
    assert [sent.worker for sent in scene.sent] == [0, 0, 1]
    scene.call("after")
    scene.takes = lambda worker: True
    assert scene.flush() is False
    rest = [item.sequence for sent in scene.sent[3:] for item in sent.items]
    assert rest == [3, 5]


def test_what_left_before_a_send_failed_is_not_sent_twice(scene: Scene) -> None:
    for _ in range(3):
        scene.call("put", bytes(LIMITS.batch_bytes_max))

    def breaks(worker: int) -> bool:
        if scene.sent:
            raise OSError("no such socket")
        return True

    scene.takes = breaks
    with pytest.raises(OSError, match="no such socket"):
        scene.flush()
    scene.takes = lambda worker: True
    scene.flush()
    assert [item.sequence for sent in scene.sent for item in sent.items] == [1, 2, 3]


def test_calls_made_before_the_map_is_known_leave_when_it_comes() -> None:
    scene = Scene()
    for worker in (0, 1, 0):
        scene.call(f"m{worker}", worker=worker)
    assert scene.flush() is False
    assert not scene.sent
    before = scene.flushes_wanted
    scene.caller.on_map(TWO)
    assert scene.flushes_wanted == before + 1
    scene.flush()
    assert {sent.worker: sent.methods for sent in scene.sent} == {0: ["m0", "m0"], 1: ["m1"]}


def test_a_call_to_a_worker_itself_goes_there_under_every_map(scene: Scene) -> None:
    answer: Future[Any] = Future()
    scene.caller.call_worker(1, "stats", [], 30.0, answer)
    scene.caller.on_map(map_of(2, 2, 2))
    scene.flush()
    (sent,) = scene.sent
    assert (sent.worker, sent.items[0].object_id, sent.items[0].method) == (1, b"", "stats")
    scene.reply(1, {"live": 3}, epoch=2)
    assert answer.result(0) == {"live": 3}


# --- what cannot be sent


@pytest.mark.parametrize("argument", ["\ud800", object(), [{1}, {"a": object()}]])
def test_an_argument_that_cannot_be_encoded_fails_that_call_alone(scene: Scene, argument: Any) -> None:
    before, bad, after = scene.call("a"), scene.call("b", argument), scene.call("c")
    with pytest.raises(InvalidArgument, match=r"Counter\.b\(\): an argument cannot be sent"):
        bad.result(0)
    scene.flush()
    assert scene.sent[0].methods == ["a", "c"]
    scene.replies(*[[item.sequence, 0, item.method] for item in scene.sent[0].items])
    assert (before.result(0), after.result(0)) == ("a", "c")
    scene.assert_nothing_is_kept()


def test_a_message_one_byte_over_the_limit_is_refused_at_the_sender(scene: Scene) -> None:
    scene.start("put", b"")
    around = len(codec.encode(list(scene.sent[0].items[0]))) + 3  # a long bytes has a longer header
    fits, too_large = (bytes(LIMITS.message_bytes_max - around + more) for more in (0, 1))
    with pytest.raises(MessageTooLarge):
        scene.call("put", too_large).result(0)  # also when nothing else waits
    other = scene.call("other")
    with pytest.raises(MessageTooLarge) as caught:
        scene.call("put", too_large).result(0)
    assert (caught.value.size, caught.value.limit) == (LIMITS.message_bytes_max + 1, LIMITS.message_bytes_max)
    accepted = scene.call("put", fits)
    scene.flush()
    assert not accepted.done()
    assert [item.method for sent in scene.sent for item in sent.items] == ["put", "other", "put"]
    assert not other.done()


def test_calls_for_workers_that_do_not_take_them_are_bounded_by_bytes() -> None:
    scene = Scene(map_of(1, 0, 1))
    size = 8 << 20
    waiting = [scene.call("put", bytes(size)) for _ in range(LIMITS.client_queue_bytes_max // size)]
    overloaded = [future for future in waiting if future.done()]
    assert len(overloaded) == 1, "one less than the quotient fits: each call weighs a little more"
    with pytest.raises(Overloaded) as caught:
        scene.call("put", bytes(size), worker=1).result(0)
    assert caught.value.limit == "client_queue_bytes_max"
    small = scene.start("get", worker=1)
    scene.reply(scene.sent[0].items[0].sequence, 5)
    assert small.result(0) == 5
    # What was sent makes room again.
    scene.caller.on_map(map_of(2, 2, 1))
    scene.flush()
    assert not scene.call("put", bytes(size)).done()


def test_a_cancelled_answer_may_be_given_to_a_call_that_fails_at_once(scene: Scene) -> None:
    cancelled: Future[Any] = Future()
    cancelled.cancel()
    scene.call("put", "\ud800", answer=cancelled)
    scene.call("put", bytes(LIMITS.message_bytes_max), answer=cancelled)
    assert cancelled.cancelled()


# --- back


def test_results_reach_their_calls_in_any_order(scene: Scene) -> None:
    futures = [scene.call(worker=number % 2) for number in range(10)]
    scene.flush()
    order = list(range(1, 11))
    random.Random(1).shuffle(order)
    scene.replies(*[[sequence, 0, sequence * 10] for sequence in order])
    assert [future.result(0) for future in futures] == [number * 10 for number in range(1, 11)]
    scene.assert_nothing_is_kept()


@pytest.mark.parametrize(("method", "wire", "result"), [("price", 5, 5), ("offer", {"price": 2}, Offer(2))])
def test_a_result_is_what_the_annotation_says(scene: Scene, method: str, wire: Any, result: Any) -> None:
    future = scene.start(method, spec=SHOP[method])
    scene.reply(1, wire)
    assert future.result(0) == result


def test_a_result_that_does_not_fit_the_annotation_fails_that_call_alone(scene: Scene) -> None:
    wrong, right = scene.call("price", spec=SHOP["price"]), scene.call("price", spec=SHOP["price"])
    scene.flush()
    scene.replies([1, 0, "five"], [2, 0, 5])
    with pytest.raises(TypeError, match="took effect"):
        wrong.result(0)
    assert right.result(0) == 5


class Choosy:
    """A method whose result's class raises what it likes while it is made, as users' classes may."""

    result_exact = dict

    def load_result(self, value: Any) -> Any:
        raise LookupError("no such currency")


def test_a_result_class_that_raises_ends_its_call_with_that_error(scene: Scene) -> None:
    choosy: Any = Choosy()
    bad, good = scene.call(spec=choosy), scene.call()
    scene.flush()
    scene.replies([1, 0, 7], [2, 0, 8])
    with pytest.raises(LookupError, match="no such currency"):
        bad.result(0)
    assert good.result(0) == 8


def test_an_exception_of_the_method_is_loaded_and_raised() -> None:
    scene = Scene(TWO, load=lambda payload: LookupError(payload["message"]))
    future = scene.start()
    scene.replies([1, protocol.STATUS_RAISED, {"message": "no funds"}])
    with pytest.raises(LookupError, match="no funds"):
        future.result(0)
    scene.assert_nothing_is_kept()


def tuples_inside_each_other(depth: int) -> bytes:
    data = b"\x90"
    for _ in range(depth):
        data = b"\x91\xc8" + len(data).to_bytes(2, "big") + b"\x01" + data
    return data


def test_a_result_that_cannot_be_decoded_fails_that_call_alone(scene: Scene) -> None:
    futures = [scene.call() for _ in range(3)]
    scene.flush()
    bad = b"\x93\x02\x00" + tuples_inside_each_other(LIMITS.nested_tuples_max + 1)
    scene.caller.on_replies(1, b"\x93" + codec.encode([1, 0, "a"]) + bad + codec.encode([3, 0, "c"]))
    assert (futures[0].result(0), futures[2].result(0)) == ("a", "c")
    with pytest.raises(OutcomeUnknown, match="answered, but its result cannot be read"):
        futures[1].result(0)


def test_a_reply_of_another_incarnation_is_dropped(scene: Scene) -> None:
    future = scene.start()
    scene.reply(1, "of an older one", epoch=0)
    scene.reply(1, "of another one", epoch=2)
    assert not future.done()
    assert scene.caller.late_replies == 2
    scene.reply(1, "its own", epoch=1)
    assert future.result(0) == "its own"


def test_a_reply_to_a_call_that_has_ended_or_never_was_is_counted_and_dropped(scene: Scene) -> None:
    future = scene.start()
    scene.reply(1, "first")
    scene.replies([1, 0, "second"], [99, 0, "whose?"], [1, 1, {}], [1, 2, ["Overloaded", "", {}]])
    assert future.result(0) == "first"
    assert scene.caller.late_replies == 4


def test_the_result_of_a_cancelled_call_is_dropped(scene: Scene) -> None:
    futures = [scene.call() for _ in range(3)]
    scene.flush()
    for future in futures:
        future.cancel()
    scene.replies([1, 0, "x"], [2, 1, {}], [3, 2, ["Overloaded", "", {}]])
    assert all(future.cancelled() for future in futures)
    scene.assert_nothing_is_kept()


JUNK: list[Callable[[], bytes]] = [
    lambda: b"",
    lambda: b"\xc1",
    lambda: codec.encode(5),
    lambda: codec.encode({"a": 1}),
    lambda: codec.encode([5]),
    lambda: codec.encode([[1, 0]]),
    lambda: codec.encode([[[], 0, 1]]),
    lambda: codec.encode([[1, 2, 5]]),
    lambda: codec.encode([[1, 2, ["Overloaded"]]]),
]


@pytest.mark.parametrize("junk", JUNK)
def test_what_is_no_message_of_replies_is_a_typed_error_and_ends_no_call(
    scene: Scene, junk: Callable[[], bytes]
) -> None:
    future = scene.start()
    with pytest.raises(codec.BadMessage):
        scene.caller.on_replies(1, junk())
    assert not future.done()
    scene.reply(1, "all the same")
    assert future.result(0) == "all the same"


# --- memory


def test_calls_that_have_ended_leave_next_to_nothing_until_their_deadline(scene: Scene) -> None:
    for _ in range(200):
        for _ in range(100):
            scene.call()
        scene.flush()
        scene.replies(*[[item.sequence, 0, None] for sent in scene.sent for item in sent.items])
        scene.sent.clear()
        scene.pass_time(0.01)
    assert not scene.caller.pending
    assert len(scene.caller._deadlines) < 100, "20,000 calls must not leave an entry each"
    scene.assert_nothing_is_kept()


def test_mixed_deadlines_are_all_kept(scene: Scene) -> None:
    futures = {}
    chance = random.Random(9)
    for number in range(300):
        timeout = chance.choice([0.2, 0.2, 1.0, 3.3])
        futures[number] = (scene.start(timeout=timeout), timeout)
        if number % 7 == 0:
            scene.call("bad", "\ud800", timeout=0.2)
    scene.pass_time(0.2 + LIMITS.answer_grace_s + 0.1)
    assert all(future.done() == (timeout == 0.2) for future, timeout in futures.values())
    scene.pass_time(4)
    assert all(future.done() for future, _ in futures.values())
    scene.assert_nothing_is_kept()


def test_the_body_of_a_batch_is_the_clients_id_and_its_calls() -> None:
    scene = Scene(TWO)
    scene.start("a")
    assert isinstance(scene.sent[0], Sent)
    assert codec.decode(scene.sent[0].body)[0][0] == scene.caller.client_id
