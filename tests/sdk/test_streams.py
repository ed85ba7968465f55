"""Streams as a caller sees them: order, what the producer is told, silence, and every way to leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import codec, protocol
from perdure.errors import InvalidArgument, OutcomeUnknown, RemoteError, to_wire
from perdure.methods import Method, callable_methods
from perdure.object import DurableObject
from perdure.remote_errors import dump_exception, load_exception
from perdure.streams import STOP, Reader, StreamingMethod

from .caller_scene import CLIENT, LIMITS, Scene, map_of

TWO = map_of(1, 1, 1)
ITEM, END = protocol.STATUS_ITEM, protocol.STATUS_END


@dataclass
class Offer:
    price: int


class Shop(DurableObject):
    async def offers(self) -> AsyncIterator[Offer]:
        yield Offer(1)

    async def numbers(self, count: int = 3) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    async def price(self) -> int:
        return 1


SHOP = callable_methods(Shop, DurableObject)


class Open:
    """A call that turned out to be a stream."""

    def __init__(self, scene: Scene, spec: Method | None = None, **options: Any) -> None:
        self.scene = scene
        self.future = scene.start("numbers", spec=spec, **options)
        self.sequence = scene.sent[-1].items[-1].sequence

    def items(self, *values: Any, epoch: int = 1) -> None:
        self.scene.replies(*[[self.sequence, ITEM, value] for value in values], epoch=epoch)

    def end(self, count: int) -> None:
        self.scene.replies([self.sequence, END, count])

    @property
    def reader(self) -> Reader:
        """Takes the stream, once."""
        error = self.future.exception(0)
        assert isinstance(error, StreamingMethod)
        self.hold = error.take_hold()
        return self.hold.reader


@pytest.fixture
def scene() -> Scene:
    return Scene(TWO, load_exception)


def told(scene: Scene) -> list[list[int]]:
    """What producers were told since the last time."""
    scene.flush()
    rows: list[list[int]] = []
    for sent in scene.sent:
        if sent.header.kind == protocol.STREAM:
            client, *news = codec.decode(sent.body)
            assert client == CLIENT
            rows += news
    scene.sent[:] = [sent for sent in scene.sent if sent.header.kind != protocol.STREAM]
    return rows


# --- items


def test_items_are_taken_in_order_and_then_the_stream_has_ended(scene: Scene) -> None:
    stream = Open(scene)
    stream.items(1, 2)
    reader = stream.reader
    stream.items(3)
    stream.end(3)
    assert reader.take(2) == [1, 2]
    assert reader.take(9) == [3]
    assert reader.ended
    assert reader.take(9) == []
    scene.assert_nothing_is_kept()


def test_a_stream_without_items_is_an_empty_stream(scene: Scene) -> None:
    stream = Open(scene)
    stream.end(0)
    assert stream.reader.take() == []
    scene.assert_nothing_is_kept()


def test_whoever_waits_for_a_single_result_of_a_streaming_method_is_told_how_to_read_it(scene: Scene) -> None:
    stream = Open(scene)
    stream.items(1)
    with pytest.raises(TypeError, match=r"Counter\.numbers\(\) streams its values.*async for"):
        stream.future.result(0)


def test_items_are_loaded_by_annotation_and_one_that_does_not_fit_ends_the_stream(scene: Scene) -> None:
    stream = Open(scene, spec=SHOP["offers"])
    stream.items({"price": 5}, {"cost": 5})
    reader = stream.reader
    assert reader.take() == [Offer(5)]
    with pytest.raises(TypeError, match=r"Shop\.offers\(\) took effect"):
        reader.take()
    assert told(scene) == [[stream.sequence, STOP]]


def test_a_part_that_was_lost_on_the_way_is_no_ordinary_end(scene: Scene) -> None:
    stream = Open(scene)
    stream.items(1, 2)
    stream.end(3)
    reader = stream.reader
    assert reader.take(9) == [1, 2]
    with pytest.raises(OutcomeUnknown, match="2 of 3 items came"):
        reader.take()
    assert reader.take() == []


def test_errors_come_after_the_items_that_came_before_them(scene: Scene) -> None:
    for reply, expected in (
        (
            [protocol.STATUS_RAISED, dump_exception(KeyError("x"), "Counter/a", with_traceback=False)],
            RemoteError,
        ),
        ([protocol.STATUS_ERROR, to_wire(OutcomeUnknown("stopping"))], OutcomeUnknown),
    ):
        stream = Open(scene)
        stream.items(1)
        scene.replies([stream.sequence, *reply])
        reader = stream.reader
        assert reader.take() == [1]
        with pytest.raises(expected):
            reader.take()
    scene.assert_nothing_is_kept()


def test_an_error_before_the_first_item_is_the_call_s_own(scene: Scene) -> None:
    stream = Open(scene)
    scene.fail(stream.sequence, InvalidArgument("wrong"))
    with pytest.raises(InvalidArgument, match="wrong"):
        stream.future.result(0)


def test_what_an_older_incarnation_says_is_dropped(scene: Scene) -> None:
    stream = Open(scene)
    stream.items(1)
    late = scene.caller.late_replies
    stream.items(2, epoch=9)
    scene.replies([stream.sequence, protocol.STATUS_RESULT, 5])
    assert scene.caller.late_replies == late + 2
    stream.end(1)
    assert stream.reader.take(9) == [1]


# --- what the producer is told


def test_the_producer_is_told_what_was_taken_in_quarters_of_the_window(scene: Scene) -> None:
    quarter = LIMITS.stream_window_items // 4
    stream = Open(scene)
    stream.items(*range(3 * quarter))
    reader = stream.reader
    reader.take(quarter - 1)
    assert told(scene) == []
    reader.take()
    assert told(scene) == [[stream.sequence, quarter]]
    reader.take(quarter)
    reader.take(quarter)
    assert told(scene) == [[stream.sequence, 3 * quarter]]


def test_large_items_are_told_by_their_bytes(scene: Scene) -> None:
    stream = Open(scene)
    stream.items(bytes(LIMITS.stream_window_bytes // 2))
    reader = stream.reader
    reader.take()
    assert told(scene) == [[stream.sequence, 1]]


def test_a_reader_that_waits_tells_what_it_took_at_the_next_tick_and_again_each_second(scene: Scene) -> None:
    stream = Open(scene)
    stream.items(1)
    reader = stream.reader
    reader.take()
    scene.pass_time(1.0)
    assert told(scene) == [], "it does not wait"
    reader.wait(lambda: None)
    scene.pass_time(0.1)
    assert told(scene) == [[stream.sequence, 1]]
    scene.pass_time(3.2)
    assert told(scene) == [[stream.sequence, 1]] * 3
    stream.items(2)
    reader.take()
    reader.wait(lambda: None)
    scene.pass_time(0.1)
    assert told(scene) == [[stream.sequence, 2]]


def test_news_that_do_not_leave_now_leave_later_and_those_of_a_dead_worker_never(scene: Scene) -> None:
    one, two = Open(scene, worker=0), Open(scene, worker=1)
    for stream in (one, two):
        stream.items(1)
        stream.reader.leave()
    scene.takes = lambda worker: worker == 1
    assert scene.flush() is True
    assert told(scene) == [[two.sequence, STOP]]
    scene.takes = lambda worker: True
    assert told(scene) == [[one.sequence, STOP]]
    three = Open(scene)
    three.items(1)
    three.reader.leave()
    scene.caller.on_map(map_of(2, 2, 1))
    assert told(scene) == []


def test_news_of_many_streams_of_a_worker_leave_in_one_message(scene: Scene) -> None:
    streams = [Open(scene) for _ in range(3)]
    for stream in streams:
        stream.items(1)
        stream.reader.leave()
    scene.flush()
    news = [sent for sent in scene.sent if sent.header.kind == protocol.STREAM]
    assert [(sent.worker, sent.header.worker, sent.header.number) for sent in news] == [(0, 0, 1)]
    assert told(scene) == [[stream.sequence, STOP] for stream in streams]


# --- leaving


def test_a_stream_that_nobody_holds_any_more_is_stopped(scene: Scene) -> None:
    stream = Open(scene)
    stream.items(1)
    reader = stream.reader
    assert not told(scene)
    del stream.hold
    assert told(scene) == [[stream.sequence, STOP]]
    stream.items(2)
    assert reader.ended
    scene.assert_nothing_is_kept()


def test_a_call_that_nobody_looks_at_is_stopped_at_its_first_item(scene: Scene) -> None:
    stream = Open(scene)
    del stream.future
    stream.items(1, 2)
    assert told(scene) == [[stream.sequence, STOP]]


def test_a_call_that_was_cancelled_is_stopped_at_its_first_item(scene: Scene) -> None:
    stream = Open(scene)
    stream.future.cancel()
    stream.items(1, 2)
    assert told(scene) == [[stream.sequence, STOP]]
    scene.assert_nothing_is_kept()


def test_a_call_without_an_answer_until_its_deadline_is_stopped(scene: Scene) -> None:
    untyped = Open(scene, timeout=2.0)
    typed = Open(scene, timeout=2.0, spec=SHOP["numbers"])
    plain = Open(scene, timeout=2.0, spec=SHOP["price"])
    scene.pass_time(2.0 + LIMITS.answer_grace_s + 0.2)
    assert told(scene) == [[untyped.sequence, STOP], [typed.sequence, STOP]]
    for stream in (untyped, typed, plain):
        assert isinstance(stream.future.exception(0), OutcomeUnknown)


def test_leaving_before_the_first_item_stops_only_that_call(scene: Scene) -> None:
    one, _ = Open(scene), Open(scene)
    scene.caller.streams.leave(one.future)
    assert told(scene) == [[one.sequence, STOP]]
    unsent: Future[Any] = scene.call("numbers")
    scene.caller.streams.leave(unsent)
    assert told(scene) == []


# --- silence and death


def test_a_reader_waits_for_an_item_as_long_as_its_timeout_and_only_while_it_waits(scene: Scene) -> None:
    stream = Open(scene, timeout=5.0)
    stream.items(1)
    reader = stream.reader
    assert reader.take() == [1]
    scene.pass_time(60.0)
    woken: list[int] = []
    reader.wait(lambda: woken.append(1))
    scene.pass_time(5.0)
    assert not woken
    scene.pass_time(LIMITS.answer_grace_s + 0.1)
    assert woken == [1]
    with pytest.raises(OutcomeUnknown, match="no item came for 5 s"):
        reader.take()
    assert told(scene)[-1] == [stream.sequence, STOP]


def test_each_item_gives_the_next_one_the_whole_time_again(scene: Scene) -> None:
    stream = Open(scene, timeout=5.0)
    stream.items(0)
    reader = stream.reader
    for number in range(5):
        assert reader.take() == [number]
        reader.wait(lambda: None)
        scene.pass_time(4.0)
        stream.items(number + 1)
    assert not reader.ended


@pytest.mark.parametrize(
    "strike",
    [
        lambda scene: scene.caller.on_death(0, 1),
        lambda scene: scene.caller.on_map(map_of(2, 2, 1)),
        lambda scene: scene.caller.on_router_lost(),
        lambda scene: scene.caller.close(),
    ],
    ids=["death", "map", "router", "close"],
)
def test_a_lost_worker_ends_its_streams_after_what_had_come(
    scene: Scene, strike: Callable[[Scene], None]
) -> None:
    stream = Open(scene, worker=0)
    stream.items(1)
    reader = stream.reader
    strike(scene)
    assert reader.take() == [1]
    with pytest.raises(OutcomeUnknown, match="while this stream was open"):
        reader.take()
    scene.flush()
    scene.pass_time(1.0)
    assert [sent.header.kind for sent in scene.sent].count(protocol.BATCH) == 1, "it is not sent again"


def test_a_call_that_has_streamed_nothing_yet_is_sent_again_like_any_other(scene: Scene) -> None:
    stream = Open(scene)
    scene.caller.on_map(map_of(2, 2, 1))
    scene.pass_time(1.0)
    assert [sent.epoch for sent in scene.sent if sent.header.kind == protocol.BATCH] == [1, 2]
    stream.items(1, epoch=2)
    stream.items(9, epoch=1)
    assert stream.reader.take(9) == [1]


def test_the_death_of_another_worker_leaves_a_stream_alone(scene: Scene) -> None:
    stream = Open(scene, worker=1)
    stream.items(1)
    scene.caller.on_death(0, 1)
    scene.caller.on_map(map_of(2, 2, 1))
    assert not stream.reader.ended


def test_a_client_that_closes_tells_all_producers_to_stop(scene: Scene) -> None:
    stream = Open(scene)
    stream.items(1)
    scene.caller.close()
    assert told(scene) == [[stream.sequence, STOP]]


def test_two_who_read_one_stream_at_once_are_told_so(scene: Scene) -> None:
    stream = Open(scene)
    stream.items(1)
    reader = stream.reader
    reader.take()
    reader.wait(lambda: None)
    with pytest.raises(RuntimeError, match="being read already"):
        reader.wait(lambda: None)
