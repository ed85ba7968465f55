"""Sockets and contexts: what a peer may cost, and where that is set."""

from __future__ import annotations

import socket as plain
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from perdure import channel as channel_module
from perdure.channel import TooOld, open_context, open_dealer, open_router
from perdure.limits import Limits

from .fake_cluster import PATIENCE_S, end_context

BUDGET = Limits().read_budget_messages
HIGH_WATER = Limits().pipe_messages_max


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield context
    end_context(context)


def test_an_endpoint_that_is_none_leaves_no_socket_behind(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    for endpoint in ("nonsense", "ipc:///" + "x" * 200, "tcp://nowhere"):
        with pytest.raises(zmq.ZMQError):
            open_dealer(context, endpoint)
    with pytest.raises(zmq.ZMQError):
        open_router(context, [f"ipc://{tmp_path}/fine", f"ipc://{tmp_path}/no/such/folder"])
    # The fixture looks for open sockets.


def test_a_message_beyond_the_limit_cuts_off_who_sends_it(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    limits = Limits()
    endpoint = f"ipc://{tmp_path}/door"
    router = open_router(context, [endpoint])
    loud, other = context.socket(zmq.DEALER), context.socket(zmq.DEALER)
    for dealer in (loud, other):
        dealer.connect(endpoint)
    loud.send(bytes(limits.message_bytes_max + limits.wire_overhead_bytes + 1))
    loud.send(b"behind it")
    other.send(b"another")
    assert router.poll(int(PATIENCE_S * 1000))
    assert router.recv_multipart()[1:] == [b"another"]
    loud.close(0)
    other.close(0)
    router.close()


def test_all_sockets_have_the_options_that_bound_what_a_peer_may_cost(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path
) -> None:
    limits = Limits()
    router = open_router(context, [f"ipc://{tmp_path}/door"])
    dealers = [open_dealer(context, f"ipc://{tmp_path}/door"), open_dealer(context, None)]
    for socket in (router, *dealers):
        options = {
            zmq.MAXMSGSIZE: limits.message_bytes_max + limits.wire_overhead_bytes,
            zmq.SNDHWM: limits.pipe_messages_max,
            zmq.LINGER: 0,  # a process that ends does not wait for peers that do not read
            zmq.HANDSHAKE_IVL: 3_000,  # who connects and says nothing is cut off
            zmq.TCP_KEEPALIVE: 1,  # a peer whose machine is gone is noticed within a minute
            zmq.TCP_KEEPALIVE_IDLE: 30,
            zmq.TCP_KEEPALIVE_INTVL: 10,
            zmq.TCP_KEEPALIVE_CNT: 3,
        }
        assert {option: socket.getsockopt(option) for option in options} == options
    assert router.getsockopt(zmq.BACKLOG) == 1_024  # a thousand clients may come at once
    assert router.getsockopt(zmq.RCVHWM) == limits.pipe_messages_max
    assert {dealer.getsockopt(zmq.RCVHWM) for dealer in dealers} == {limits.pipe_messages_received_max}
    assert {(d.getsockopt(zmq.RECONNECT_IVL), d.getsockopt(zmq.RECONNECT_IVL_MAX)) for d in dealers} == {
        (50, 500)
    }
    for socket in (router, *dealers):
        socket.close()


def test_who_connects_and_says_nothing_is_cut_off(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "_HANDSHAKE_MS", 50)
    router = open_router(context, [f"ipc://{tmp_path}/door"])
    with plain.socket(plain.AF_UNIX) as mute:
        mute.settimeout(PATIENCE_S)
        mute.connect(f"{tmp_path}/door")
        while mute.recv(1_024):  # its greeting, and then the end
            pass
    router.close()


def test_a_context_has_room_for_the_links_of_the_largest_cluster() -> None:
    opened = open_context()
    assert opened.get(zmq.MAX_SOCKETS) >= 2 * Limits().slots + 100
    opened.term()


def test_no_context_is_made_with_a_libzmq_that_peers_can_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: (4, 3, 4))
    with pytest.raises(TooOld, match=r"4\.3\.5 or newer"):
        open_context()
