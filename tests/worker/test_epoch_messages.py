"""Which messages of a door are for one incarnation, and who takes them."""

from __future__ import annotations

from perdure import protocol
from perdure_worker.epoch_messages import takers
from worker.host_scene import Scene


def test_news_of_streams_bodies_and_sockets_go_to_who_keeps_them(rooms: Scene) -> None:
    host = rooms.host
    assert takers(host) == {
        protocol.STREAM: host.streams.on_message,
        protocol.PART: host.streams.bodies.on_message,
        protocol.SOCKETS: host.gateways.on_message,
    }
