"""The sockets' core: order, retries, ends and frames, with a clock and workers that the test plays."""

from __future__ import annotations

import pytest

from perdure.codec import BadMessage
from perdure.errors import (
    InvalidArgument,
    MessageTooLarge,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    RemoteError,
    ShardUnavailable,
    UnknownMethod,
)
from perdure_gateway.client_socket import Close, State

from .socket_scene import GATEWAY, OTHER_ROOM, ROOM, Client, Scene, auto, binary, close, text


def remote_error() -> RemoteError:
    return RemoteError("ValueError: no", type_name="ValueError", object_id="Room/lobby")


@pytest.fixture
def scene() -> Scene:
    return Scene()


# --- in


def test_a_message_goes_to_the_object_with_the_sockets_key_and_the_next_after_its_outcome(
    scene: Scene,
) -> None:
    client = scene.open()
    assert scene.sockets.receive(client.socket, "one") is False
    call = scene.take("web.frame")
    assert (call.target, call.args) == (ROOM, [GATEWAY + (1).to_bytes(8, "big"), "one"])
    assert client.may_read_count == 0
    call.returns(0)
    assert client.may_read_count == 1
    assert scene.sockets.receive(client.socket, b"two") is False
    assert scene.take("web.frame").args[1] == b"two"


def test_a_message_that_did_not_run_is_sent_again_after_the_time_that_was_asked_for(scene: Scene) -> None:
    client = scene.open()
    scene.sockets.receive(client.socket, "one")
    scene.take("web.frame").fails(Overloaded("full", retry_after=2.0))
    scene.after(1.9)
    assert not scene.calls
    assert client.may_read_count == 0
    scene.after(0.2)
    again = scene.take("web.frame")
    assert again.args[1] == "one"
    assert again.timeout_s == pytest.approx(28.0, abs=0.2)
    again.fails(ShardUnavailable("down"))
    scene.after(1.0)
    scene.take("web.frame").returns(0)
    assert client.may_read_count == 1
    assert client.got == []


def test_an_object_that_stays_unavailable_closes_its_client_after_the_wait(scene: Scene) -> None:
    client = scene.open()
    scene.sockets.receive(client.socket, "one")
    attempts = 0
    while not client.got:
        scene.take("web.frame").fails(ShardUnavailable("down"))
        attempts += 1
        if not client.got:
            scene.after(1.6)
            assert attempts < 100
    assert client.got == [Close(1013, "the object is not available")]
    assert attempts > 10
    assert client.may_read_count == 1  # so that the close of the client is read
    told = scene.take("web.closed")
    assert told.args == [client.socket.key, 1013, "the object is not available", False, "down"]


def test_an_unknown_outcome_closes_the_client_and_tells_the_object_why(scene: Scene) -> None:
    client = scene.open()
    scene.sockets.receive(client.socket, "one")
    scene.take("web.frame").fails(OutcomeUnknown("lost"))
    assert [item.code for item in client.got if isinstance(item, Close)] == [1011]
    told = scene.take("web.closed")
    assert (told.args[1], told.args[3], told.args[4]) == (1011, False, "lost")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnknownMethod("no handler"), 1011),
        (InvalidArgument("no"), 1011),
        (MessageTooLarge("big", size=2, limit=1), 1009),
    ],
)
def test_a_message_that_can_never_be_handled_closes_the_client_at_once(
    scene: Scene, error: NotExecuted, code: int
) -> None:
    client = scene.open()
    scene.sockets.receive(client.socket, "one")
    scene.take("web.frame").fails(error)
    assert [item.code for item in client.got if isinstance(item, Close)] == [code]
    assert scene.take("web.closed").args[1] == code


def test_a_handler_that_raises_leaves_the_socket_open(scene: Scene) -> None:
    client = scene.open()
    scene.sockets.receive(client.socket, "one")
    scene.take("web.frame").fails(remote_error())
    scene.sockets.receive(client.socket, "two")
    scene.take("web.frame").fails(LookupError("an exception of the user's own"))
    assert client.may_read_count == 2
    assert client.got == []
    assert client.socket.state is State.OPEN


def test_a_socket_that_its_object_does_not_know_is_closed_and_nobody_told(scene: Scene) -> None:
    client = scene.open()
    scene.sockets.receive(client.socket, "one")
    scene.take("web.frame").returns(1)
    assert client.got == [Close(1011, "the object does not know this socket")]
    scene.sockets.disconnected(client.socket, 1011, "", False)
    assert not scene.calls


def test_a_message_at_the_size_limit_goes_on_and_one_over_it_closes_with_1009(scene: Scene) -> None:
    client = scene.open()
    limit = scene.limits.socket_frame_bytes_max
    assert scene.sockets.receive(client.socket, "é" * (limit // 2)) is False
    scene.take("web.frame").returns(0)
    assert scene.sockets.receive(client.socket, "é" * (limit // 2) + "e") is True
    assert client.got == [Close(1009, "the message is too big")]
    assert scene.take("web.closed").args[1] == 1009
    other = scene.open()
    assert scene.sockets.receive(other.socket, b"x" * limit) is False
    scene.take("web.frame").returns(0)
    scene.sockets.receive(other.socket, b"x" * (limit + 1))
    assert scene.take("web.closed").args[1] == 1009


def test_messages_after_a_close_are_dropped(scene: Scene) -> None:
    client = scene.open()
    scene.frames(1, close(1000, "bye", client))
    assert scene.sockets.receive(client.socket, "late") is True
    assert not scene.calls


def test_an_automatic_response_does_not_reach_the_object(scene: Scene) -> None:
    client = scene.open(auto=("ping", "pong"))
    assert scene.sockets.receive(client.socket, "ping") is True
    assert client.got == ["pong"]
    assert not scene.calls
    assert scene.sockets.receive(client.socket, b"ping") is False  # another message: bytes
    scene.take("web.frame").returns(0)
    scene.frames(1, auto(["hi", "ho"], client))
    assert scene.sockets.receive(client.socket, "hi") is True
    assert client.got == ["pong", "ho"]
    scene.frames(2, auto(None, client))
    assert scene.sockets.receive(client.socket, "hi") is False


def test_an_automatic_response_that_was_set_meanwhile_is_not_undone_by_the_answer_to_the_upgrade(
    scene: Scene,
) -> None:
    client = scene.opening()
    scene.frames(1, auto(["new", "pair"], client))
    scene.sockets.accepted(client.socket, ("old", "pair"))
    assert client.socket.auto == ("new", "pair")


# --- out


def test_frames_reach_the_named_sockets_in_order_as_text_and_bytes(scene: Scene) -> None:
    one, two, three = scene.open(), scene.open(), scene.open()
    scene.frames(1, text("a", one, three), binary(b"b", three))
    scene.frames(2, text("c", one, two, three))
    assert (one.got, two.got, three.got) == (["a", "c"], ["c"], ["a", b"b", "c"])


def test_frames_sent_before_the_client_has_its_accept_wait_for_it(scene: Scene) -> None:
    client = scene.opening()
    scene.frames(1, text("welcome", client))
    client.may_write()
    assert client.got == []
    scene.sockets.accepted(client.socket, None)
    assert client.got == ["welcome"]


def test_an_object_may_accept_and_close_in_one_turn(scene: Scene) -> None:
    client = scene.opening()
    scene.frames(1, text("no room", client), close(4000, "full", client))
    assert client.got == []
    scene.sockets.accepted(client.socket, None)
    assert client.got == ["no room", Close(4000, "full")]
    scene.sockets.disconnected(client.socket, 4000, "full", True)
    assert not scene.calls
    assert len(scene.sockets) == 0


def test_a_record_that_comes_again_is_dropped_also_from_an_earlier_epoch(scene: Scene) -> None:
    client = scene.open()
    scene.frames(5, text("a", client), epoch=1)
    scene.frames(5, text("a", client), epoch=1)
    scene.frames(4, text("older", client), epoch=1)
    # The worker died: its successor replays what it found on disk, then goes on with its own counter.
    scene.sockets.on_frames(
        0, 2, [[5, [text("a", client)], 1], [6, [text("b", client)], 1], [1, [text("c", client)]]]
    )
    scene.frames(6, text("b", client), epoch=1)
    assert client.got == ["a", "b", "c"]


def test_marks_of_workers_are_apart(scene: Scene) -> None:
    here, there = scene.open(seat=0), scene.open(OTHER_ROOM, seat=1)
    scene.frames(7, text("a", here), worker=0)
    scene.frames(3, text("b", there), worker=1)
    assert (here.got, there.got) == (["a"], ["b"])


def test_the_objects_close_comes_after_its_frames_and_is_the_end(scene: Scene) -> None:
    client = scene.open(reads=False)
    scene.frames(1, text("last", client), close(4001, "done", client))
    scene.frames(2, text("never", client), close(4002, "twice", client))
    client.read_all()
    assert client.got == ["last", Close(4001, "done")]
    scene.sockets.disconnected(client.socket, 4001, "done", True)
    assert not scene.calls  # the object knows


def test_frames_for_sockets_that_are_gone_are_ignored(scene: Scene) -> None:
    client = scene.open()
    scene.sockets.disconnected(client.socket, 1000, "", True)
    scene.frames(1, text("a", client), close(1000, "", client), auto(["x", "y"], client))
    assert client.got == []


@pytest.mark.parametrize("fits", [True, False])
def test_a_slow_reader_is_closed_at_the_bound_of_bytes_and_others_get_everything(fits: bool) -> None:
    scene = Scene(socket_queue_bytes_max=100)
    slow, quick = scene.open(reads=False), scene.open()
    scene.frames(1, text("a" * 60, slow, quick))
    scene.frames(2, text("b" * (40 if fits else 41), slow, quick))
    scene.frames(3, text("c" if fits else "", quick))
    assert len(quick.got) == 3
    slow.read_all()
    if fits:
        assert slow.got == ["a" * 60, "b" * 40]
        assert not scene.calls
    else:
        assert slow.got == [Close(1013, "too slow")]
        told = scene.take("web.closed")
        assert told.args[1:4] == [1013, "too slow", False]
        assert "does not read" in told.args[4]
        scene.sockets.disconnected(slow.socket, 1006, "", False)
        assert not scene.calls
        assert scene.sockets.dropped_slow == 1


def test_a_slow_reader_is_closed_at_the_bound_of_frames() -> None:
    scene = Scene(socket_queue_frames_max=3)
    slow = scene.open(reads=False)
    for number in range(3):
        scene.frames(number + 1, text("a", slow))
    assert slow.socket.state is State.OPEN
    scene.frames(4, text("a", slow))
    slow.read_all()
    assert slow.got == [Close(1013, "too slow")]


def test_a_client_that_does_not_take_its_close_is_cut_after_the_wait(scene: Scene) -> None:
    stuck, gone = scene.open(reads=False), scene.open(reads=False)
    scene.frames(1, close(1000, "", stuck, gone))
    scene.sockets.disconnected(gone.socket, 1000, "", True)
    scene.after(scene.limits.socket_close_wait_s - 0.1)
    assert not stuck.was_cut
    scene.after(0.2)
    assert stuck.was_cut
    assert not gone.was_cut


@pytest.mark.parametrize(
    "records",
    [
        [5],
        [[1, [[0, "a"]]]],
        [[1, [[0, 5, [1]]]]],
        [["x", []]],
        [[1, [[0, "a", 7]]]],
        [[1, [[2, "a", [1]]]]],
    ],
)
def test_what_is_no_record_of_frames_is_an_error_and_does_no_harm(
    scene: Scene, records: list[object]
) -> None:
    client = scene.open()
    with pytest.raises(BadMessage):
        scene.sockets.on_frames(0, 1, records)
    scene.frames(2, text("fine", client))
    assert client.got == ["fine"]


# --- ends


def test_a_client_that_leaves_is_told_to_its_object_once(scene: Scene) -> None:
    client = scene.open()
    scene.sockets.disconnected(client.socket, 4321, "bye", True)
    scene.sockets.disconnected(client.socket, 1006, "", False)
    call = scene.take("web.closed")
    assert (call.target, call.args) == (ROOM, [client.socket.key, 4321, "bye", True, None])
    call.returns(0)
    scene.after(60)
    assert not scene.calls
    assert (len(scene.sockets), scene.sockets.ends_open) == (0, 0)


def test_a_refused_upgrade_leaves_nothing_and_tells_nobody(scene: Scene) -> None:
    client = scene.opening()
    scene.sockets.refused(client.socket, perhaps_accepted=False)
    assert len(scene.sockets) == 0
    assert not scene.calls


def test_an_upgrade_whose_outcome_is_unknown_is_ended_at_the_object_too(scene: Scene) -> None:
    client = scene.opening()
    scene.sockets.refused(client.socket, perhaps_accepted=True)
    assert scene.take("web.closed").args == [client.socket.key, 1006, "", False, None]
    assert len(scene.sockets) == 0


def test_a_stop_sends_clients_away_after_what_waits_for_them_and_tells_the_objects(scene: Scene) -> None:
    client, late = scene.open(reads=False), scene.opening()
    scene.frames(1, text("last words", client))
    scene.sockets.stop()
    client.read_all()
    assert client.got == ["last words", Close(1001, "the server is stopping")]
    assert scene.take("web.closed").args[1:4] == [1001, "the server is stopping", False]
    scene.sockets.accepted(late.socket, None)  # its upgrade was under way
    assert late.got == [Close(1001, "the server is stopping")]
    assert scene.take("web.closed").args[:2] == [late.socket.key, 1001]


# --- leases


def test_a_worker_that_counts_this_gateway_as_dead_ends_its_own_sockets_only(scene: Scene) -> None:
    here, there, opening = scene.open(seat=0), scene.open(OTHER_ROOM, seat=1), scene.opening(seat=0)
    scene.sockets.on_frames(0, 1, [None])
    assert here.got == [Close(1001, "the connection to the object was lost")]
    assert not scene.calls  # the worker has told the object
    assert (there.got, scene.lost) == ([], 1)
    assert scene.sockets.was_lost
    # An upgrade that was under way is of no use, and the worker may not have seen it yet.
    scene.sockets.accepted(opening.socket, None)
    assert opening.got == [Close(1001, "the connection to the object was lost")]
    assert scene.take("web.closed").args[:2] == [opening.socket.key, 1001]
    told = len(scene.told)
    scene.after(3.0)
    assert {worker for worker, _ in scene.told[told:]} == {1}
    scene.frames(9, text("from the grave", here), worker=0)
    scene.frames(1, text("alive", there), worker=1)
    assert there.got == ["alive"]


def test_a_socket_hears_the_worker_that_its_object_has_now(scene: Scene) -> None:
    client = scene.open(seat=0)
    scene.sockets.on_map(lambda object_id: 3)
    assert scene.told[-1] == (3, [GATEWAY, 0, 0])
    scene.frames(1, text("hello", client), worker=3)
    assert client.got == ["hello"]


def test_an_idle_socket_holds_no_queue(scene: Scene) -> None:
    client = scene.open()
    scene.frames(1, text("a", client))
    assert client.socket.queued == (0, 0)
    assert client.socket._queue is None
    assert isinstance(client, Client)
