"""The queue of one socket: order, bounds, and a close that is last."""

from __future__ import annotations

from dataclasses import replace

import pytest
from websockets.frames import Frame as OtherFrame
from websockets.frames import Opcode
from websockets.streams import StreamReader

from perdure.limits import Limits
from perdure_gateway.client_socket import ClientSocket, Close, Frame, State

from .socket_scene import GATEWAY, ROOM, Client

LIMITS = replace(Limits(), socket_queue_bytes_max=10, socket_queue_frames_max=3)


def opened() -> ClientSocket:
    socket = ClientSocket(GATEWAY, 0x0102, ROOM, 0, Client())
    socket.state = State.OPEN
    return socket


def taken(socket: ClientSocket) -> list[object]:
    return [item.data if isinstance(item, Frame) else item for item in iter(socket.take, None)]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 200_000])
@pytest.mark.parametrize("kind", [str, bytes])
def test_a_frame_is_encoded_as_another_implementation_reads_it(size: int, kind: type) -> None:
    data = "é" * (size // 2) + "x" * (size % 2) if kind is str else b"\xff" * size
    reader = StreamReader()
    reader.feed_data(Frame(data, size).wire())
    read = OtherFrame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as ended:
        next(read)
    frame = ended.value.value
    assert (frame.opcode, frame.fin) == (Opcode.TEXT if kind is str else Opcode.BINARY, True)
    assert frame.data == (data.encode() if isinstance(data, str) else data)


def test_a_key_is_the_gateways_id_and_the_sockets_number() -> None:
    assert opened().key == GATEWAY + b"\0\0\0\0\0\0\x01\x02"


def test_frames_leave_in_order_and_count_until_they_have_left() -> None:
    socket = opened()
    assert socket.push(Frame("a", 1), LIMITS)
    assert socket.push(Frame(b"bc", 2), LIMITS)
    assert socket.queued == (2, 3)
    first = socket.take()
    assert isinstance(first, Frame)
    assert (first.data, socket.queued) == ("a", (1, 2))
    assert (taken(socket), socket.queued) == ([b"bc"], (0, 0))


def test_the_bounds_hold_and_one_frame_of_any_size_fits_into_an_empty_queue() -> None:
    socket = opened()
    assert socket.push(Frame("x", 11), LIMITS)
    assert not socket.push(Frame("y", 1), LIMITS)
    assert taken(socket) == ["x"]
    assert all(socket.push(Frame("z", 3), LIMITS) for _ in range(3))
    assert not socket.push(Frame("", 0), LIMITS)


def test_a_close_leaves_last_and_once_or_in_place_of_what_waits() -> None:
    for drop, wanted in [(False, ["a", Close(1000, "")]), (True, [Close(1000, "")])]:
        socket = opened()
        socket.push(Frame("a", 1), LIMITS)
        socket.close(Close(1000, ""), drop=drop)
        assert socket.state is State.CLOSING
        assert taken(socket) == wanted
        assert socket.take() is None


def test_nothing_leaves_before_the_accept_or_after_the_end() -> None:
    socket = opened()
    socket.state = State.OPENING
    socket.push(Frame("a", 1), LIMITS)
    assert socket.take() is None
    socket.end()
    assert (socket.take(), socket.queued, socket.state) == (None, (0, 0), State.ENDED)
