"""What objects send to sockets arrives once and in order, whatever dies or does not read meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure import DurableObject, InvalidArgument, Limits, codec, durable
from perdure_storage import keys
from worker.host_scene import Scene
from worker.socket_scene import FRAME, Gateway, Room, frame_rows, pass_time, restart, serve
from worker.socket_turns import Turns

Make = Callable[..., Scene]


def state_of(gateway: Gateway) -> Any:
    return gateway.scene.host.gateways._known[gateway.id]


# --- 69: crashes


def test_what_was_committed_and_not_sent_is_sent_by_the_next_incarnation(
    gateway: Gateway, make_scene: Make
) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.room = 0
    for text in ("a", "b", "c"):
        gateway.frame(Room, "r", number, f"echo {text}")
    assert not gateway.got
    assert len(frame_rows(gateway.scene)) == 3
    gateway.room = None
    scene = restart(make_scene, gateway.scene, gateway)
    assert gateway.got == {number: ["a", "b", "c"]}
    gateway.frame(Room, "r", number, "echo d")
    assert (gateway.got, gateway.repeated) == ({number: ["a", "b", "c", "d"]}, 0)
    scene = restart(make_scene, scene, gateway)
    assert (gateway.got, gateway.repeated) == ({number: ["a", "b", "c", "d"]}, 0)


def test_frames_of_several_incarnations_come_in_the_order_of_their_commits(
    gateway: Gateway, make_scene: Make
) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.room = 0
    for text in ("a", "b"):
        gateway.frame(Room, "r", number, f"echo {text}")
        restart(make_scene, gateway.scene, gateway)
    gateway.frame(Room, "r", number, "echo c")
    gateway.room = None
    gateway.scene.do(gateway.scene.tick)
    assert gateway.got == {number: ["a", "b", "c"]}


@pytest.mark.parametrize("commits", range(12))
def test_a_message_takes_effect_once_with_what_it_sends_wherever_the_worker_dies(
    make_scene: Make, commits: int
) -> None:
    scene = serve(make_scene, Room, limits=Limits(commit_group_bytes_max=1))  # each turn has a group
    gateway = Gateway(scene)
    number = gateway.upgrade(Room, "r")
    items = [scene.item(Room, "r", FRAME, gateway.key(number), "count") for _ in range(10)]
    for item in items:
        scene.send(item, peer=gateway.peer)
    for _ in range(commits):
        if scene.jobs:
            scene.commit_one()
    answered = {reply[0] for reply in scene.replies_to(gateway.identity)}
    scene = restart(make_scene, scene, gateway)
    for item in items:
        if item[0] not in answered:
            scene.send(item, peer=gateway.peer)
    scene.commit()
    assert gateway.got == {number: [f"{count}" for count in range(2, 12)]}
    assert scene.call(Room, "r", "total") == 11


def test_a_message_that_comes_again_is_answered_and_sends_nothing_more(
    gateway: Gateway, make_scene: Make
) -> None:
    number = gateway.upgrade(Room, "r")
    item = gateway.scene.item(Room, "r", FRAME, gateway.key(number), "echo once")
    gateway.scene.send(item, peer=gateway.peer)
    gateway.scene.commit()
    scene = restart(make_scene, gateway.scene, gateway)
    scene.send(item, peer=gateway.peer)
    scene.commit()
    assert scene.replies_to(gateway.identity)[-1] == [item[0], 0, 0]
    assert gateway.got == {number: ["once"]}


def test_what_was_not_committed_is_sent_by_nobody(gateway: Gateway, make_scene: Make) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.start_frame(Room, "r", number, "echo lost")
    assert gateway.scene.jobs
    restart(make_scene, gateway.scene, gateway)
    assert not gateway.got
    assert not frame_rows(gateway.scene)


def test_a_turn_that_is_cut_between_two_commit_points_has_sent_its_first_part_only(
    gateway: Gateway, make_scene: Make
) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.start_frame(Room, "r", number, "slow x")
    gateway.scene.commit()
    assert not gateway.got  # one batch with the rest
    gateway.scene.advance(1)
    gateway.scene.commit()
    assert gateway.got == {number: ["x 1", "x 2"]}


def test_what_a_migration_and_the_turn_before_an_eviction_send_is_delivered(make_scene: Make) -> None:
    class Old(DurableObject, namespace="Grows"):
        value: int = durable(1)

        async def fetch(self, request: Any) -> Any:
            return self.ctx.accept_websocket(request)

        async def websocket_message(self, ws: Any, message: str) -> None:
            self.value += 1
            ws.send(message)

    class New(Old, namespace="Grows"):
        version = 2

        async def on_migrate(self, old_version: int) -> None:
            for ws in self.ctx.websockets():
                ws.attachment = "migrated"
                ws.send(f"from {old_version}")

        async def on_start(self) -> None:
            for ws in self.ctx.websockets():
                ws.send(f"{ws.attachment}")

    old = serve(make_scene, Old)
    gateway = Gateway(old)
    number = gateway.upgrade(Old, "g")
    gateway.room = 0
    gateway.frame(Old, "g", number, "last words")
    old.advance(20)
    old.host.evict_idle()
    assert not old.is_live(Old, "g")
    gateway.room = None
    new = serve(make_scene, New, epoch=8, disk=old.disk.copy())
    gateway.connect(new)
    assert gateway.frame(New, "g", number, "on") == 0
    assert gateway.got == {number: ["last words", "from 1", "migrated", "on"]}


# --- marks


def test_records_stay_until_the_gateway_says_that_it_has_taken_them(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    for text in "abc":
        gateway.frame(Room, "r", number, f"echo {text}")
    assert [counter for _, counter in frame_rows(gateway.scene)] == [1, 2, 3]
    gateway.say((gateway.mark[0], 2))
    pass_time(gateway.scene, 1)
    assert [counter for _, counter in frame_rows(gateway.scene)] == [3]
    gateway.say()
    gateway.say()
    gateway.frame(Room, "r", number, "echo d")  # they go with a batch that is written anyway
    assert [counter for _, counter in frame_rows(gateway.scene)] == [4]
    assert gateway.repeated == 0


def test_a_new_connection_gets_what_the_old_one_has_lost(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.frame(Room, "r", number, "echo a")
    taken, gateway.mark = gateway.mark, (0, 0)
    gateway.got.clear()
    gateway.connect(gateway.scene, speak=False)
    gateway.frame(Room, "r", number, "echo b")  # to the old connection, which is no more
    assert gateway.got == {}
    gateway.say()
    assert gateway.got == {number: ["a", "b"]}
    assert gateway.mark > taken


def test_a_mark_removes_what_earlier_incarnations_have_left(gateway: Gateway, make_scene: Make) -> None:
    number = gateway.upgrade(Room, "r")
    for text in "abc":
        gateway.frame(Room, "r", number, f"echo {text}")
    scene = restart(make_scene, gateway.scene, gateway)
    pass_time(scene, 0.2)
    assert frame_rows(scene) == []
    assert gateway.repeated == 0


@pytest.mark.parametrize(
    "body",
    [
        [],
        [b"G" * 16, 1],
        [b"G" * 15, 0, 0],
        [b"G" * 16, "0", 0],
        [b"G" * 16, -1, 0],
        [b"G" * 16, 7, 2],  # of a record that does not exist yet
        [b"G" * 16, 1 << 31, 0],
        {"id": 1},
        None,
    ],
)
def test_what_is_no_mark_is_refused_and_changes_nothing(gateway: Gateway, body: Any) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.frame(Room, "r", number, "echo a")
    gateways = gateway.scene.host.gateways
    with pytest.raises(InvalidArgument):
        gateway.scene.do(gateways.on_message, gateway.identity, None, codec.encode(body))
    with pytest.raises(InvalidArgument):
        gateway.scene.do(gateways.on_message, gateway.identity, b"client", codec.encode([gateway.id, 0, 0]))
    gateway.frame(Room, "r", number, "echo b")
    assert gateway.got == {number: ["a", "b"]}


def test_many_gateways_are_bounded(make_scene: Make) -> None:
    scene = serve(make_scene, Room, limits=Limits(gateways_max=3))
    for index in range(3):
        Gateway(scene, bytes([index]) * 16)
    with pytest.raises(Exception, match="too many gateways"):
        Gateway(scene, b"x" * 16)
    pass_time(scene, 6)  # nobody has sockets, and nobody speaks: they are forgotten
    assert len(scene.host.gateways) == 0
    Gateway(scene, b"x" * 16)


# --- who does not read


def test_who_does_not_read_costs_bounded_memory_and_gets_everything_later(
    make_scene: Make,
) -> None:
    limits = Limits(frames_unacked_max=5, frames_unacked_bytes_max=2_000)
    gateway = Gateway(serve(make_scene, Room, limits=limits))
    number = gateway.upgrade(Room, "r")
    texts = [f"{index:0300}" for index in range(30)]
    for text in texts:
        gateway.frame(Room, "r", number, f"echo {text}")
    assert gateway.got == {number: texts[:5]}
    state = state_of(gateway)
    assert state.queue_bytes <= 2_000
    assert len(state.queue) < 10
    assert state.behind
    for _ in range(10):
        gateway.say()
    assert (gateway.got, gateway.repeated) == ({number: texts}, 0)


def test_what_has_no_room_in_a_connection_is_tried_again(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.room = 1
    for text in "abc":
        gateway.frame(Room, "r", number, f"echo {text}")
    assert gateway.got == {number: ["a"]}
    gateway.room = None
    gateway.scene.do(gateway.scene.tick)
    assert (gateway.got, gateway.repeated) == ({number: ["a", "b", "c"]}, 0)


def test_a_connection_that_is_gone_is_sent_nothing_until_its_gateway_speaks_again(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    connected, gateway.scene.on_frames = gateway.scene.on_frames, lambda identity, body: None
    for text in "ab":
        gateway.frame(Room, "r", number, f"echo {text}")
    gateway.scene.on_frames = connected
    gateway.frame(Room, "r", number, "echo c")
    assert not gateway.got
    gateway.say()
    assert gateway.got == {number: ["a", "b", "c"]}


def test_a_long_log_is_read_in_pages_and_arrives_in_order(gateway: Gateway, make_scene: Make) -> None:
    number = gateway.upgrade(Room, "r")
    gateway.room = 0
    for index in range(600):
        gateway.start_frame(Room, "r", number, f"echo {index}")
    gateway.scene.commit()
    gateway.room = None
    restart(make_scene, gateway.scene, gateway)
    assert gateway.got == {number: [f"{index}" for index in range(600)]}
    assert len(gateway.messages) > 2


def test_messages_of_frames_are_cut_by_size_and_by_entries(make_scene: Make) -> None:
    scene = serve(make_scene, Room, limits=Limits(batch_bytes_max=2_000))
    gateway = Gateway(scene)
    number = gateway.upgrade(Room, "r")
    gateway.room = 0
    texts = [f"{index:0700}" for index in range(7)]
    for text in texts:
        gateway.frame(Room, "r", number, f"echo {text}")
    gateway.room = None
    restart(make_scene, scene, gateway)
    assert gateway.got == {number: texts}
    assert [len(message) - 1 for message in gateway.messages] == [2, 1, 2, 1, 1]


def test_the_log_of_a_gateway_that_takes_nothing_is_bounded_by_giving_it_up(make_scene: Make) -> None:
    gateway = Gateway(serve(make_scene, Room, limits=Limits(frames_log_bytes_max=2_000)))
    number = gateway.upgrade(Room, "r")
    for _ in range(10):
        gateway.start_frame(Room, "r", number, "echo " + "x" * 300)
        gateway.scene.commit()
        gateway.say((0, 0))
    pass_time(gateway.scene, 1)
    gateway.say((0, 0))
    assert gateway.lost
    assert frame_rows(gateway.scene) == [(0, 0)]
    assert gateway.scene.call(Room, "r", "seen")[-1] == ["closed", 1006, "", False, 0]


def test_what_objects_without_sockets_write_leaves_no_trace_of_sockets(rooms: Scene) -> None:
    rooms.call(Room, "r", "release")
    rooms.call(Room, "r", "total")
    rows = [key for key, _ in rooms.disk.between(keys.SOCKETS_REGION, b"\xff")]
    assert rows == []
    assert len(rooms.host.gateways) == 0


def test_every_kind_of_turn_may_send(make_scene: Make) -> None:
    scene = serve(make_scene, Turns)
    gateway = Gateway(scene)
    number = gateway.upgrade(Turns, "t")
    scene.call(Turns, "t", "arm")
    scene.call(Turns, "t", "send_self")
    beside = [scene.start(Turns, "t", "beside", name) for name in "xy"]
    scene.commit()
    assert gateway.got[number] == ["sent", "x in", "y in"]
    pass_time(scene, 2, gateway)
    assert [sent.result() for sent in beside] == [None, None]
    assert gateway.got[number][3:] == ["x out", "y out", "alarm"]
    stream = scene.stream(Turns, "t", "stream")
    scene.commit()
    assert stream.items == [1, 2]
    assert gateway.got[number][6:] == ["item 1", "item 2", "end"]
    scene = restart(make_scene, scene, gateway)
    scene.call(Turns, "t", "nothing")
    assert gateway.got[number][9:] == ["woken"]


def test_a_failing_span_takes_back_what_it_has_sent_and_no_other_turns(make_scene: Make) -> None:
    scene = serve(make_scene, Turns)
    gateway = Gateway(scene)
    number = gateway.upgrade(Turns, "t")
    scene.start(Turns, "t", "beside", "good")
    failing = scene.start(Turns, "t", "beside_and_fail")
    scene.commit()
    assert gateway.got == {number: ["good in", "before"]}
    pass_time(scene, 2, gateway)
    assert "no" in str(failing.error())
    assert gateway.got == {number: ["good in", "before", "good out"]}


def test_work_of_the_host_waits_for_interleaved_turns_and_later_calls_behind_it(make_scene: Make) -> None:
    scene = serve(make_scene, Turns)
    gateway = Gateway(scene)
    number = gateway.upgrade(Turns, "t")
    scene.call(Turns, "t", "arm")
    pass_time(scene, 1, gateway)
    first = scene.start(Turns, "t", "beside", "x")
    pass_time(scene, 0.8, gateway)  # the alarm is due, and waits
    second = scene.start(Turns, "t", "beside", "y")
    pass_time(scene, 2, gateway)
    assert (first.result(), second.result()) == (None, None)
    assert gateway.got == {number: ["x in", "x out", "alarm", "y in", "y out"]}
