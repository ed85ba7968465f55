"""What users see of WebSockets."""

from __future__ import annotations

import inspect

from perdure.object import Context
from perdure.websocket import WebSocket, WebSocketResponse


class Held:
    """Has what a socket has."""

    id = "00"
    tags = ("tea",)
    protocol = attachment = accepted_at = None

    def send(self, message: str | bytes) -> None: ...

    def send_json(self, value: object) -> None: ...

    def close(self, code: int = 1000, reason: str = "") -> None: ...


def test_a_response_takes_the_socket_with_101_and_shows_which_one() -> None:
    response = WebSocketResponse(bytes(24), Held(), "chat")  # type: ignore[arg-type]
    assert (response.status_code, response.socket, response.protocol) == (101, bytes(24), "chat")
    assert repr(response) == "<WebSocketResponse 00>"
    assert isinstance(response.websocket, WebSocket)


def test_everything_that_users_call_says_what_it_does() -> None:
    for place, names in (
        (WebSocket, ("id", "tags", "protocol", "accepted_at", "attachment", "send", "send_json", "close")),
        (Context, ("accept_websocket", "websockets", "set_websocket_auto_response")),
    ):
        for name in names:
            assert inspect.getdoc(inspect.getattr_static(place, name)), name
