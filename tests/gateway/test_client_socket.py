"""The queue of one socket: order, bounds, and a close that is last."""

from __future__ import annotations

from dataclasses import replace

from perdure.limits import Limits
from perdure_gateway.client_socket import ClientSocket, Close, Frame, State

from .socket_scene import GATEWAY, ROOM, Client

LIMITS = replace(Limits(), socket_queue_bytes_max=10, socket_queue_frames_max=3)


def opened() -> ClientSocket:
    socket = ClientSocket(GATEWAY, 0x0102, ROOM, 0, Client())
    socket.state = State.OPEN
    return socket


def test_a_key_is_the_gateways_id_and_the_sockets_number() -> None:
    assert opened().key == GATEWAY + b"\0\0\0\0\0\0\x01\x02"


def test_frames_leave_in_order_and_count_until_they_have_left() -> None:
    socket = opened()
    assert socket.push(Frame("a", 1), LIMITS)
    assert socket.push(Frame(b"bc", 2), LIMITS)
    assert socket.queued == (2, 3)
    assert socket.take() == Frame("a", 1)
    assert socket.queued == (1, 2)
    assert socket.take() == Frame(b"bc", 2)
    assert (socket.take(), socket.queued) == (None, (0, 0))


def test_the_bounds_hold_and_one_frame_of_any_size_fits_into_an_empty_queue() -> None:
    socket = opened()
    assert socket.push(Frame("x", 11), LIMITS)
    assert not socket.push(Frame("y", 1), LIMITS)
    assert socket.take() == Frame("x", 11)
    assert all(socket.push(Frame("z", 3), LIMITS) for _ in range(3))
    assert not socket.push(Frame("", 0), LIMITS)


def test_a_close_leaves_last_and_once_or_in_place_of_what_waits() -> None:
    for drop, wanted in [(False, [Frame("a", 1), Close(1000, "")]), (True, [Close(1000, "")])]:
        socket = opened()
        socket.push(Frame("a", 1), LIMITS)
        socket.close(Close(1000, ""), drop=drop)
        assert socket.state is State.CLOSING
        assert list(iter(socket.take, None)) == wanted
        assert socket.take() is None


def test_nothing_leaves_before_the_accept_or_after_the_end() -> None:
    socket = opened()
    socket.state = State.OPENING
    socket.push(Frame("a", 1), LIMITS)
    assert socket.take() is None
    socket.end()
    assert (socket.take(), socket.queued, socket.state) == (None, (0, 0), State.ENDED)
