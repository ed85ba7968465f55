"""Async-generator methods in the worker: order, gate, flow control, and every way in which a stream ends."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from perdure import Limits, OutcomeUnknown, RemoteError, codec, protocol
from perdure.errors import InvalidArgument, MessageTooLarge, ShardUnavailable
from worker.host_scene import Scene
from worker.stream_scene import LIMITS, WINDOW, Feed, Hub


@pytest.fixture
def scene() -> Any:
    scene = Scene(Feed, Hub, limits=LIMITS)
    yield scene
    scene.close()


def instance(scene: Scene) -> Any:
    return scene.resident(Feed, "f").instance


# --- items


def test_items_leave_in_order_and_the_end_tells_their_number(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "numbers", 3)
    assert stream.items == [0, 1, 2]
    assert stream.count == 3
    assert scene.stream(Feed, "f", "silent").count == 0


def test_items_convert_by_annotation_and_one_of_another_type_fails_the_turn(scene: Scene) -> None:
    assert scene.stream(Feed, "f", "typed").items == [{"x": 1}, "red"]
    with pytest.raises(RemoteError, match=r"Feed\.wrong\(\)"):
        scene.stream(Feed, "f", "wrong").result()


def test_a_stream_is_one_turn_and_calls_behind_it_wait(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "written", WINDOW + 2)
    behind = scene.start(Feed, "f", "get")
    scene.commit()
    assert not behind.answered
    stream.took(WINDOW)
    scene.commit()
    assert stream.count == WINDOW + 2
    assert behind.result() == (WINDOW + 2, "end")


def test_each_item_waits_for_the_commit_of_what_was_written_before_it(scene: Scene) -> None:
    scene.call(Feed, "f", "get")
    stream = scene.stream(Feed, "f", "slow", 1.0, 1.0)
    scene.advance(1.0)
    assert stream.items == []
    scene.advance(1.0)
    assert stream.items == []
    scene.commit_one()
    assert stream.items == [1.0]
    assert scene.fields(Feed, "f")["made"] == 1
    scene.commit()
    assert stream.items == [1.0, 1.0]
    assert stream.count == 2


def test_what_is_raised_comes_after_the_items_and_takes_back_what_was_written_since_the_last(
    scene: Scene,
) -> None:
    stream = scene.stream(Feed, "f", "broken")
    scene.commit()
    assert stream.items == [1]
    with pytest.raises(RemoteError, match="no more"):
        stream.result()
    assert scene.call(Feed, "f", "get") == (1, "")
    assert scene.fields(Feed, "f")["made"] == 1


@pytest.mark.parametrize(("what", "error"), [("lock", InvalidArgument), ("large", MessageTooLarge)])
def test_an_item_that_cannot_be_sent_fails_the_turn_and_the_generator_cleans_up(
    scene: Scene, what: str, error: type[Exception]
) -> None:
    stream = scene.stream(Feed, "f", "odd", what)
    assert stream.items == [1]
    with pytest.raises(RemoteError) as caught:
        stream.result()
    assert caught.value.type_name.endswith(error.__name__)
    assert instance(scene).log == ["ended"]
    assert scene.call(Feed, "f", "get") == (0, "")


def test_an_abort_ends_the_stream_and_the_incarnation(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "aborted")
    scene.commit()
    assert stream.items == [1]
    with pytest.raises(RemoteError, match="enough"):
        stream.result()
    assert scene.call(Feed, "f", "get") == (5, "")


def test_a_raw_client_gets_each_item_in_a_message_that_is_no_reply_yet(scene: Scene) -> None:
    raw = scene.peer(b"raw", raw=True)
    stream = scene.stream(Feed, "f", "numbers", 2, peer=raw)
    assert scene.kinds == [protocol.REPLY_ITEM, protocol.REPLY_ITEM, protocol.REPLY]
    assert stream.items == [0, 1]
    stream = scene.stream(Feed, "f", "numbers", 100, peer=raw)
    stream.took(2)
    assert len(stream.items) == WINDOW + 2
    stream.leave()
    assert stream.count == WINDOW + 2


# --- flow control


def test_a_slow_reader_holds_the_producer_a_window_ahead(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "written", 100)
    scene.commit()
    assert stream.items == list(range(WINDOW))
    assert scene.resident(Feed, "f").instance.made == WINDOW
    stream.took(1)
    scene.commit()
    assert scene.resident(Feed, "f").instance.made == WINDOW + 1
    stream.took(WINDOW + 1)
    scene.commit()
    assert stream.items == list(range(2 * WINDOW + 1))


def test_large_items_fill_the_window_by_their_bytes_and_a_larger_one_travels_alone(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "pads", 600)
    assert len(stream.items) == 2
    stream.took(1)
    assert len(stream.items) == 3
    stream.leave()
    stream = scene.stream(Feed, "f", "pads", 5_000)
    assert len(stream.items) == 1
    stream.took(1)
    assert len(stream.items) == 2


def test_news_that_come_again_or_cannot_be_true_change_nothing(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "numbers", 100)
    for taken in (2, 2, 1, 0, -2, 7, 2**70):
        stream.took(taken)
    scene.stream_news([stream.sequence + 1, 1], [stream.sequence + 2, -1], peer=scene.client)
    scene.stream_news([stream.sequence, 3], peer=scene.peer(b"somebody else"))
    assert len(stream.items) == WINDOW + 2


@pytest.mark.parametrize(
    "body",
    [5, {}, None, [b"x", 1], [b"x", [1]], [b"x", [1, "2"]], [b"x", [1.0, 2]], [b"x", *[[1, 2]] * 4_096]],
)
def test_what_are_no_news_of_streams_is_refused(scene: Scene, body: Any) -> None:
    with pytest.raises(InvalidArgument, match="news of"):
        scene.do(scene.host.streams.on_message, b"client", None, codec.encode(body))


def test_a_producer_waits_while_too_many_bytes_wait_for_the_disk() -> None:
    scene = Scene(Feed, limits=Limits(uncommitted_bytes_max=100))
    stream = scene.stream(Feed, "f", "written", 10)
    made = scene.resident(Feed, "f").instance.made
    assert made < 10
    scene.commit()
    assert stream.count == 10
    scene.close()


# --- the reader leaves


def test_a_reader_that_leaves_ends_the_generator_at_its_yield(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "written", 100)
    scene.commit()
    stream.leave()
    assert scene.call(Feed, "f", "get") == (WINDOW, "GeneratorExit")
    assert scene.fields(Feed, "f")["cleaned"] == "GeneratorExit"
    assert stream.count == WINDOW
    assert len(scene.host.streams) == 0


def test_a_reader_that_leaves_while_the_generator_waits_cancels_it_as_it_was_at_its_last_item(
    scene: Scene,
) -> None:
    stream = scene.stream(Feed, "f", "waiting")
    assert stream.items == ["first"]
    stream.leave()
    assert scene.call(Feed, "f", "get") == (0, "made 0")
    assert stream.count == 1


def test_a_generator_that_goes_on_after_its_cancellation_leaves_no_trace_of_that(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "stubborn")
    stream.leave()
    stream.leave()
    assert stream.items == ["first"]
    assert stream.count == 1
    assert scene.call(Feed, "f", "get") == (0, "")
    assert instance(scene).log == ["cancelled", "ended"]


def test_a_reader_whose_connection_is_closed_ends_the_stream_within_a_tick(scene: Scene) -> None:
    peer = scene.peer(b"gone")
    scene.stream(Feed, "f", "written", 100, peer=peer)
    scene.commit()
    scene.peers.forget(b"gone")
    scene.do(scene.tick)
    assert scene.call(Feed, "f", "get") == (WINDOW, "GeneratorExit")


def test_a_reader_that_is_waited_for_is_sent_something_each_second(scene: Scene) -> None:
    scene.stream(Feed, "f", "numbers", 100)
    for _ in range(60):
        scene.advance(0.05)
    assert scene.probes in ([b"client"] * 2, [b"client"] * 3)


def test_the_router_tells_of_a_reader_that_is_gone_and_only_its_streams_end(scene: Scene) -> None:
    one, two = scene.peers.get(b"router", b"one"), scene.peers.get(b"router", b"two")
    scene.stream(Feed, "f", "numbers", 100, peer=one)
    scene.stream(Feed, "g", "numbers", 100, peer=two)
    assert len(scene.host.streams) == 2
    scene.do(scene.host.streams.on_message, b"router", b"one", b"")
    assert len(scene.host.streams) == 1
    assert scene.resident(Feed, "f").turn is None
    assert scene.resident(Feed, "g").turn is not None


def test_a_reader_that_reads_nothing_for_long_is_given_up(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    stream = scene.stream(Feed, "f", "written", 100)
    scene.commit()
    scene.advance(LIMITS.stream_idle_max_s - 1)
    stream.took(1)
    scene.commit()
    scene.advance(LIMITS.stream_idle_max_s - 1)
    assert stream.reply is None
    with caplog.at_level(logging.WARNING):
        scene.advance(2)
    scene.commit()
    assert "nothing of it was read" in caplog.text
    with pytest.raises(OutcomeUnknown, match="nothing of this stream was read"):
        stream.result()
    assert scene.call(Feed, "f", "get") == (WINDOW + 1, "GeneratorExit")


# --- time


def test_the_turn_limit_is_for_each_item_and_waiting_for_the_reader_does_not_count(scene: Scene) -> None:
    limit = LIMITS.turn_max_s
    stream = scene.stream(Feed, "f", "slow", *[limit * 0.7] * (WINDOW + 1))
    for _ in range(WINDOW):
        scene.advance(limit * 0.7)
        scene.commit()
    assert len(stream.items) == WINDOW
    for _ in range(5):  # the window is full
        scene.advance(LIMITS.stream_idle_max_s * 0.9)
        stream.took(0)
    stream.took(WINDOW)
    scene.advance(limit * 0.7)
    scene.commit()
    assert stream.count == WINDOW + 1


def test_an_item_that_takes_longer_than_a_turn_may_cuts_the_stream(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "slow", 1.0, LIMITS.turn_max_s + 1)
    scene.advance(LIMITS.turn_max_s + 2)
    scene.commit()
    assert stream.items == [1.0]
    with pytest.raises(RemoteError, match="longer than"):
        stream.result()
    assert scene.call(Feed, "f", "get") == (1, "")


def test_a_timeout_of_the_generator_s_own_that_passes_while_it_waits_at_its_yield_is_raised_there(
    scene: Scene,
) -> None:
    stream = scene.stream(Feed, "f", "timed")
    assert stream.items == ["item"] * WINDOW
    scene.advance(6.0)
    assert stream.items == [*["item"] * WINDOW, "too late"]
    stream.took(1 + WINDOW)
    assert stream.count == WINDOW + 1


def test_an_object_with_an_open_stream_stays_in_memory(scene: Scene) -> None:
    stream = scene.stream(Feed, "f", "numbers", 100)
    scene.advance(LIMITS.idle_evict_s + 1)
    scene.host.evict_idle()
    assert scene.is_live(Feed, "f")
    stream.leave()
    scene.advance(LIMITS.idle_evict_s + 1)
    scene.host.evict_idle()
    assert not scene.is_live(Feed, "f")


def test_a_worker_that_stops_lets_streams_go_on_for_a_moment_and_then_ends_them(scene: Scene) -> None:
    short = scene.stream(Feed, "short", "slow", 1.0)
    long = scene.stream(Feed, "f", "written", 100)
    scene.commit()
    scene.do(scene.host.drain)
    with pytest.raises(ShardUnavailable):
        scene.stream(Feed, "new", "numbers", 1).result()
    scene.advance(LIMITS.stream_drain_s - 0.5)
    scene.commit()
    assert short.count == 1
    assert long.reply is None
    scene.advance(1.0)
    scene.commit()
    with pytest.raises(OutcomeUnknown, match="stopping"):
        long.result()
    assert scene.fields(Feed, "f")["cleaned"] == "GeneratorExit"
    assert scene.host.busy == 0
