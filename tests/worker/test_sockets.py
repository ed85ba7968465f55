"""WebSockets in a worker: accept, messages in and out, tags; what a turn that raises leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from perdure import DurableObject, blocking
from worker.host_scene import Scene
from worker.socket_scene import (
    Gateway,
    Room,
    restart,
    serve,
    socket_rows,
    taker,
)

Make = Callable[..., Scene]


# --- 65: accept, echo, tags


def test_an_accepted_socket_is_answered_with_101_and_echoes_text_and_binary(gateway: Gateway) -> None:
    number, sent = gateway.start_upgrade(Room, "r")
    gateway.scene.commit()
    assert sent.result() == [101, [], b"", {"auto": None, "protocol": "chat"}]
    assert gateway.frame(Room, "r", number, "echo größe") == 0
    assert gateway.frame(Room, "r", number, b"\x00\xff") == 0
    assert gateway.got == {number: ["größe", b"\x00\xff"]}


def test_nothing_of_a_message_leaves_before_its_turn_is_durable(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    sent = gateway.start_frame(Room, "r", number, "echo x")
    assert not sent.answered
    assert not gateway.got
    gateway.scene.commit()
    assert sent.answered
    assert gateway.got == {number: ["x"]}


def test_the_answer_to_an_upgrade_leaves_before_what_the_socket_is_sent_with_it(gateway: Gateway) -> None:
    number, sent = gateway.start_upgrade(Room, "r", "/greet")
    answered: list[bool] = []
    send = gateway.scene.on_frames

    def note(identity: bytes, body: bytes) -> bool | None:
        answered.append(sent.answered)
        return send(identity, body)

    gateway.scene.on_frames = note
    gateway.scene.commit()
    assert (answered, gateway.got) == ([True], {number: ["welcome"]})


def test_tags_address_some_of_the_sockets_in_the_order_of_their_acceptance(gateway: Gateway) -> None:
    scene = gateway.scene
    first, second, third = (gateway.upgrade(Room, "r", path) for path in ("/tea,tall", "/tall", "/"))
    assert scene.call(Room, "r", "tagged") == [first, second, third]
    assert scene.call(Room, "r", "tagged", "tall") == [first, second]
    assert scene.call(Room, "r", "tagged", "tea") == [first]
    assert scene.call(Room, "r", "tagged", "nobody") == []
    gateway.frame(Room, "r", third, "tag tall")
    assert gateway.got == {first: ["for tall"], second: ["for tall"]}
    gateway.closed(Room, "r", first)
    assert scene.call(Room, "r", "tagged", "tall") == [second]
    assert scene.call(Room, "r", "tagged", "tea") == []


def test_on_start_has_the_sockets_of_before_with_tags_and_attachments(
    gateway: Gateway, make_scene: Make
) -> None:
    gateway.upgrade(Room, "r", "/tea,tall")
    assert gateway.scene.call(Room, "r", "at_wake") == []
    scene = restart(make_scene, gateway.scene, gateway)
    assert scene.call(Room, "r", "at_wake") == [("1", ("tea", "tall"), {"path": "tea,tall"})]


def test_a_socket_that_was_never_accepted_is_unknown(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    assert gateway.frame(Room, "r", number + 1, "echo x") == 1
    assert gateway.frame(Room, "other", number, "echo x") == 1
    assert gateway.closed(Room, "r", number + 1) == 0
    assert gateway.scene.call(Room, "r", "seen") == []
    assert not gateway.got


def test_an_object_that_only_hears_needs_no_handler(make_scene: Make) -> None:
    class Deaf(DurableObject):
        async def fetch(self, request: Any) -> Any:
            return self.ctx.accept_websocket(request)

    gateway = Gateway(serve(make_scene, Deaf))
    number = gateway.upgrade(Deaf, "d")
    assert gateway.frame(Deaf, "d", number, "hello") == 0
    assert gateway.closed(Deaf, "d", number) == 0
    assert not socket_rows(gateway.scene)


# --- 67: hibernation


def test_an_idle_object_leaves_memory_while_its_sockets_stay_and_a_message_wakes_it(gateway: Gateway) -> None:
    scene = gateway.scene
    number = gateway.upgrade(Room, "r", "/tea")
    gateway.frame(Room, "r", number, "attach new")
    scene.advance(20)
    scene.host.evict_idle()
    assert not scene.is_live(Room, "r")
    gateway.say()
    assert gateway.frame(Room, "r", number, "tag tea") == 0
    assert gateway.got == {number: ["for tea"]}
    assert scene.call(Room, "r", "at_wake") == [("1", ("tea",), "new")]


# --- 68: order


def test_a_burst_of_messages_reaches_the_handler_in_order_and_so_do_its_answers(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    burst = [f"{index}" for index in range(100)]
    for text in burst:
        gateway.start_frame(Room, "r", number, f"echo {text}")
    gateway.scene.commit()
    assert gateway.got == {number: burst}


def test_what_one_turn_sends_to_many_travels_once_for_each_gateway(rooms: Scene, gateway: Gateway) -> None:
    other = Gateway(rooms, b"H" * 16)
    mine = [gateway.upgrade(Room, "r") for _ in range(5)]
    theirs = [other.upgrade(Room, "r") for _ in range(3)]
    assert rooms.call(Room, "r", "broadcast", "news") == 8
    assert gateway.messages[-1] == [gateway.id, [1, [[0, "news", mine]]]]
    assert other.messages[-1] == [other.id, [2, [[0, "news", theirs]]]]


def test_sockets_get_what_a_turn_sends_in_its_order_also_where_it_repeats_itself(make_scene: Make) -> None:
    class Repeats(taker()):  # type: ignore[misc]
        async def repeat(self) -> None:
            first, second = self.ctx.websockets()
            for ws, text in ((first, "a"), (second, "b"), (first, "b"), (second, "a"), (first, "a")):
                ws.send(text)
            first.send(b"a")

    gateway = Gateway(serve(make_scene, Repeats))
    first, second = gateway.upgrade(Repeats, "o"), gateway.upgrade(Repeats, "o")
    gateway.scene.call(Repeats, "o", "repeat")
    assert gateway.got == {first: ["a", "b", "a", b"a"], second: ["b", "a"]}


def test_more_than_a_record_holds_arrives_whole_and_in_order(make_scene: Make) -> None:
    class Talks(taker()):  # type: ignore[misc]
        async def talk(self, count: int, size: int) -> None:
            for ws in self.ctx.websockets():
                for index in range(count):
                    ws.send(f"{index:0{size}}")

    gateway = Gateway(serve(make_scene, Talks))
    number = gateway.upgrade(Talks, "o")
    gateway.scene.call(Talks, "o", "talk", 10_000, 1)
    gateway.scene.call(Talks, "o", "talk", 5, 1_000_000)
    assert [int(text[-5:]) for text in gateway.got[number]] == [*range(10_000), *range(5)]
    assert max(len(record[1]) for message in gateway.messages for record in message[1:]) <= 4_096


# --- what raises leaves nothing


def test_a_handler_that_raises_sends_nothing_and_changes_nothing(gateway: Gateway, caplog: Any) -> None:
    scene = gateway.scene
    number, other = gateway.upgrade(Room, "r"), gateway.upgrade(Room, "r")
    gateway.frame(Room, "r", number, "attach before")
    sent = gateway.start_frame(Room, "r", number, "raise oops")
    scene.commit()
    assert getattr(sent.error(), "type_name", "").endswith("ValueError")
    assert not gateway.got
    assert scene.call(Room, "r", "total") == 2
    assert scene.call(Room, "r", "attachments") == ["before", {"path": ""}]
    assert scene.call(Room, "r", "tagged") == [number, other]
    (record,) = [r for r in caplog.records if r.message.startswith("websocket_message raised")]
    assert (record.object, record.error) == ("Room/r", "ValueError: oops")
    assert "oops" in record.remote_traceback
    assert [r for r in caplog.records if r.levelname == "ERROR"] == [record]
    assert gateway.frame(Room, "r", number, "echo on") == 0
    assert gateway.got == {number: ["on"]}


def test_what_was_sent_before_a_commit_point_is_sent_although_the_turn_raises(gateway: Gateway) -> None:
    number = gateway.upgrade(Room, "r")
    sent = gateway.start_frame(Room, "r", number, "sync a")
    gateway.scene.commit()
    assert getattr(sent.error(), "type_name", "").endswith("ValueError")
    assert gateway.got == {number: ["a 1"]}


def test_a_plain_or_blocking_handler_is_a_handler_too(make_scene: Make, caplog: Any) -> None:
    class Plain(taker()):  # type: ignore[misc]
        def websocket_message(self, ws: Any, message: str) -> None:
            ws.send(message)
            if message == "raise":
                raise ValueError(message)

    class Threaded(taker()):  # type: ignore[misc]
        @blocking
        def websocket_message(self, ws: Any, message: str) -> None:
            ws.attachment = message
            ws.send(message)

        @blocking
        def websocket_close(self, ws: Any, code: int, reason: str, was_clean: bool) -> None:
            self.storage.put("closed", ws.attachment)

    scene = serve(make_scene, Plain, Threaded)
    gateway = Gateway(scene)
    plain, threaded = gateway.upgrade(Plain, "o"), gateway.upgrade(Threaded, "o")
    assert gateway.frame(Plain, "o", plain, "x") == 0
    failing = gateway.start_frame(Plain, "o", plain, "raise")
    scene.commit()
    assert getattr(failing.error(), "type_name", "").endswith("ValueError")
    assert [r.message for r in caplog.records if "raised" in r.message]
    sent = gateway.start_frame(Threaded, "o", threaded, "y")
    scene.wait(lambda: bool(scene.jobs) or sent.answered)
    scene.commit()
    assert (sent.result(), gateway.got) == (0, {plain: ["x"], threaded: ["y"]})
    gateway.peer = scene.peer(gateway.identity)
    ended = gateway._call(Threaded, "o", "web.closed", gateway.key(threaded), 1000, "", True, None)
    scene.wait(lambda: bool(scene.jobs) or ended.answered)
    scene.commit()
    assert (ended.result(), scene.values(Threaded, "o")) == (0, {"closed": "y"})
