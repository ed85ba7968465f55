"""Request bodies that are pulled: part by part, on demand, and never waited for without end."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import (
    ClientDisconnect,
    DurableObject,
    JSONResponse,
    Limits,
    RemoteError,
    Request,
    Response,
    durable,
)
from perdure.errors import InvalidArgument
from perdure.web import body_of, request_map
from worker.host_scene import Scene, Sent

LIMITS = Limits(http_body_inline_bytes=10, http_body_bytes_max=100)
UPLOAD = 5


class Store(DurableObject):
    parts: list[int] = durable(default_factory=list)
    lost: str = durable("")

    async def fetch(self, request: Request) -> Response:
        path = request.path_params["path"]
        if path == "/ignore":
            return Response("not read")
        if path == "/whole":
            return Response(await request.body())
        parts = []
        try:
            async for part in request.stream():
                parts.append(len(part))
        except ClientDisconnect:
            if path == "/strict":
                raise
            return JSONResponse([*parts, "lost"])
        self.parts = parts
        return JSONResponse(parts)


class Plain(DurableObject):
    def fetch(self, request: Request) -> Response:
        return Response(body_of(request))


@pytest.fixture
def scene() -> Any:
    scene = Scene(Store, Plain, limits=LIMITS)
    yield scene
    scene.close()


def start(
    scene: Scene, path: str = "/", *, body: bytes = b"0123456789", cls: Any = Store, **options: Any
) -> Sent:
    wire = request_map("POST", path, body=body, length=options.pop("length", None))
    return scene.start(cls, "s", "web.fetch", {**wire, "more": True, "upload": UPLOAD}, **options)


def test_parts_are_asked_for_one_at_a_time_when_the_handler_wants_them(scene: Scene) -> None:
    sent = start(scene)
    assert scene.pulls == [(UPLOAD, 10)]
    scene.part(UPLOAD, 10, b"abc", False)
    assert scene.pulls == [(UPLOAD, 10), (UPLOAD, 13)]
    scene.part(UPLOAD, 13, b"de", True)
    scene.commit()
    assert sent.result()[2] == b"[10,3,2,0]"
    assert len(scene.pulls) == 2


def test_a_body_that_nobody_reads_is_not_asked_for(scene: Scene) -> None:
    assert start(scene, "/ignore").result()[2] == b"not read"
    assert scene.pulls == []


@pytest.mark.parametrize("cls", [Store, Plain])
def test_a_whole_body_is_put_together(scene: Scene, cls: Any) -> None:
    sent = start(scene, "/whole", cls=cls)
    scene.part(UPLOAD, 10, b"abc", False)
    scene.part(UPLOAD, 13, b"", True)
    assert sent.result()[2] == b"0123456789abc"


def test_a_part_that_does_not_come_is_asked_for_again_and_counts_once(scene: Scene) -> None:
    sent = start(scene, "/whole")
    scene.advance(1.1)
    assert scene.pulls == [(UPLOAD, 10)] * 2
    scene.part(UPLOAD, 10, b"abc", False)
    scene.part(UPLOAD, 10, b"abc", False)  # the answer to the second
    scene.part(UPLOAD, 13, b"d", True)
    scene.part(UPLOAD, 14, b"never", True)
    assert sent.result()[2] == b"0123456789abcd"


def test_parts_of_others_mean_nothing(scene: Scene) -> None:
    sent = start(scene, "/whole")
    scene.part(UPLOAD, 10, b"stranger", True, peer=scene.peer(b"other"))
    scene.part(UPLOAD + 1, 10, b"another upload", True)
    scene.part(UPLOAD, 3, b"another offset", True)
    assert not sent.answered
    scene.part(UPLOAD, 10, b"", True)
    assert sent.result()[2] == b"0123456789"


@pytest.mark.parametrize("how", ["gone part", "silence", "gone peer", "left", "stopping"])
def test_a_sender_that_is_lost_is_a_disconnect_to_the_handler(scene: Scene, how: str) -> None:
    sent = start(scene, peer=scene.peer(b"sender"), timeout_ms=60_000)
    if how == "gone part":
        scene.part(UPLOAD, 10, None, True, peer=scene.peer(b"sender"))
    elif how == "silence":
        scene.advance(LIMITS.http_part_wait_s - 1)
        assert not sent.answered
        scene.advance(2)
    elif how == "gone peer":
        scene.peers.forget(b"sender")
        scene.advance(0.1)
    elif how == "left":
        scene.stream_news([sent.sequence, -1], peer=scene.peer(b"sender"))
    else:
        scene.do(scene.host.drain)
        scene.advance(LIMITS.stream_drain_s + 1)
    scene.commit()
    assert sent.result()[2] == b'[10,"lost"]'


def test_a_disconnect_that_the_handler_does_not_catch_undoes_its_turn(scene: Scene) -> None:
    sent = start(scene, "/strict")
    scene.part(UPLOAD, 10, None, True)
    with pytest.raises(RemoteError, match="ClientDisconnect"):
        sent.result()
    assert scene.fields(Store, "s") == {}


@pytest.mark.parametrize("told", [True, False])
def test_a_body_over_the_limit_is_refused_with_413(scene: Scene, told: bool) -> None:
    sent = start(scene, length=101 if told else None)
    if not told:
        scene.part(UPLOAD, 10, bytes(90), False)
        assert not sent.answered, "100 bytes are allowed"
        scene.part(UPLOAD, 100, bytes(1), False)
    assert sent.result()[0] == 413
    assert scene.fields(Store, "s") == {}


def test_the_rest_of_a_body_is_not_asked_for_through_the_router(scene: Scene) -> None:
    behind = scene.peers.get(b"router", b"origin")
    turn = (behind, 1, None, 0.0, None, None)
    wire = request_map("POST", "/")
    scene.host.streams.bodies.begin(turn, wire)
    with pytest.raises(InvalidArgument, match="direct clients only"):
        scene.host.streams.bodies.begin(turn, {**wire, "more": True})


@pytest.mark.parametrize(
    "rows", [5, [b"x", 5], [b"x", [1, 2, b"", 1]], [b"x", [1, 2, "a", True]], [b"x", [1]]]
)
def test_what_is_no_part_is_refused(scene: Scene, rows: Any) -> None:
    from perdure import codec

    with pytest.raises(InvalidArgument):
        scene.do(scene.host.streams.bodies.on_message, b"client", None, codec.encode(rows))
