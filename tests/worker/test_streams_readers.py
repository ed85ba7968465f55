"""Streams that objects read, and calls of streams that come again."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import OutcomeUnknown, RemoteError
from perdure.streams import STOP
from worker.host_scene import Scene, SentStream
from worker.stream_scene import LIMITS, Feed, Hub


@pytest.fixture
def scene() -> Any:
    scene = Scene(Feed, Hub, limits=LIMITS)
    yield scene
    scene.close()


# --- objects that read streams of objects


def test_an_object_reads_a_stream_of_another_in_its_turn() -> None:
    scene = Scene(Feed, Hub)
    assert scene.call(Hub, "h", "gather", "f", "numbers", 10_000) == list(range(10_000))
    assert scene.call(Hub, "h", "kinds", "f") == ["Point", "Colour"]
    scene.close()


def test_an_object_that_stops_reading_ends_the_producer(scene: Scene) -> None:
    assert scene.call(Hub, "h", "first", "f", "written", 10**6) == 0
    assert scene.call(Feed, "f", "get")[1] == "GeneratorExit"
    assert len(scene.host.streams) == 0
    assert not scene.caller.streams.open


def test_an_object_that_awaits_a_streaming_method_is_told_how_to_read_it(scene: Scene) -> None:
    with pytest.raises(RemoteError, match="async for"):
        scene.call(Hub, "h", "awaited", "f")
    assert scene.call(Feed, "f", "get") == (0, "")


def test_what_a_read_method_raises_is_raised_in_the_reading_turn(scene: Scene) -> None:
    with pytest.raises(RemoteError, match="no more"):
        scene.call(Hub, "h", "gather", "f", "broken")


def test_a_stream_that_takes_longer_than_a_call_may_still_calls_others(scene: Scene) -> None:
    stream = scene.stream(Hub, "h", "through", "f")
    for _ in range(3):
        scene.advance(25.0)
    for _ in range(6):
        scene.advance(1.0)
    assert stream.items == [0, 10, 20, "rested"]
    stream.took(4)
    assert stream.count == 4


# --- calls that come again


def again(scene: Scene, item: list[Any]) -> SentStream:
    """The client sends the call once more, over another connection."""
    peer = scene.peer(b"again")
    scene.send(item, peer=peer)
    scene.commit()
    return SentStream(scene, peer, item[0])


@pytest.mark.parametrize("method", ["written", "broken"])
def test_a_stream_that_has_written_is_not_run_again(scene: Scene, method: str) -> None:
    item = scene.item(Feed, "f", method, *[3] * (method == "written"))
    scene.send(item)
    scene.commit()
    before = scene.call(Feed, "f", "get")
    with pytest.raises(OutcomeUnknown, match="has streamed before"):
        again(scene, item).result()
    assert scene.call(Feed, "f", "get") == before


def test_a_stream_whose_only_write_came_after_its_last_item_is_not_run_again(scene: Scene) -> None:
    item = scene.item(Feed, "f", "tail")
    scene.send(item)
    scene.commit()
    with pytest.raises(OutcomeUnknown, match="has streamed before"):
        again(scene, item).result()
    assert scene.call(Feed, "f", "get") == (1, "")


def test_what_a_stream_wrote_at_its_end_is_its_own_when_other_turns_began_meanwhile(scene: Scene) -> None:
    item = scene.item(Feed, "f", "late_tail")
    scene.send(item)
    scene.call(Feed, "other", "get")
    scene.do(scene.resident(Feed, "f").instance.go.set)
    scene.commit()
    assert not scene.host.progress
    with pytest.raises(OutcomeUnknown, match="has streamed before"):
        again(scene, item).result()
    assert scene.call(Feed, "f", "get")[0] == 1


def test_a_call_that_comes_again_while_its_stream_is_open_is_told_so_when_it_ends(scene: Scene) -> None:
    item = scene.item(Feed, "f", "numbers", 100)
    scene.send(item)
    retry = again(scene, item)
    assert not retry.replies
    scene.stream_news([item[0], STOP])
    scene.commit()
    with pytest.raises(OutcomeUnknown, match="has streamed before"):
        retry.result()


def test_a_stream_that_has_written_nothing_begins_again(scene: Scene) -> None:
    item = scene.item(Feed, "f", "numbers", 2)
    scene.send(item)
    assert again(scene, item).items == [0, 1]
