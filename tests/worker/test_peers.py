"""Replies of a tick, gathered into one message for each peer."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import codec, protocol
from perdure.limits import Limits
from perdure_worker.peers import Peer, Peers

LIMITS = Limits()


def reply(peers: Peers, peer: Peer, *sequences: int, body: Any = 0) -> None:
    for sequence in sequences:
        if not peer.replies:
            peers.dirty.append(peer)
        peer.replies.append(codec.encode([sequence, 0, body]))
        if peer.raw:
            peer.sequences.append(sequence)


def messages(peers: Peers) -> list[tuple[bytes, protocol.Header, Any]]:
    return [
        (identity, protocol.read_header(header), codec.decode(body))
        for identity, header, body in peers.take_messages(codec.encode)
    ]


def test_the_replies_of_a_tick_leave_as_one_message_for_each_direct_peer() -> None:
    peers = Peers(3, 9)
    a, b = peers.get(b"a"), peers.get(b"b")
    reply(peers, a, 1, 2)
    reply(peers, b, 5)
    reply(peers, a, 3)
    assert messages(peers) == [
        (b"a", protocol.Header(protocol.REPLIES, 3, 9, 0), [[1, 0, 0], [2, 0, 0], [3, 0, 0]]),
        (b"b", protocol.Header(protocol.REPLIES, 3, 9, 0), [[5, 0, 0]]),
    ]
    assert messages(peers) == []
    reply(peers, a, 4)
    assert [body for _, _, body in messages(peers)] == [[[4, 0, 0]]]


def test_peers_behind_one_router_share_a_bundle() -> None:
    peers = Peers(3, 9)
    for origin in (b"x", b"y"):
        reply(peers, peers.get(b"router", origin), 1)
    reply(peers, peers.get(b"router", b"x", raw=True), 7, 8)
    ((identity, header, parts),) = messages(peers)
    assert identity == b"router"
    assert (header.kind, header.worker, header.number) == (protocol.BUNDLE, 3, 9)
    triples = list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))
    told = [(origin, protocol.read_header(head), codec.decode(body)) for origin, head, body in triples]
    assert told == [
        (b"x", protocol.Header(protocol.REPLIES, 3, 9, 0), [[1, 0, 0]]),
        (b"y", protocol.Header(protocol.REPLIES, 3, 9, 0), [[1, 0, 0]]),
        (b"x", protocol.Header(protocol.REPLY, 3, 9, 7), [7, 0, 0]),
        (b"x", protocol.Header(protocol.REPLY, 3, 9, 8), [8, 0, 0]),
    ]


def test_a_raw_peer_gets_one_message_a_reply_with_the_calls_sequence_in_its_header() -> None:
    peers = Peers(3, 9)
    raw = peers.get(b"raw", raw=True)
    reply(peers, raw, 5, 6)
    assert messages(peers) == [
        (b"raw", protocol.Header(protocol.REPLY, 3, 9, 5), [5, 0, 0]),
        (b"raw", protocol.Header(protocol.REPLY, 3, 9, 6), [6, 0, 0]),
    ]
    assert raw.sequences == []


@pytest.mark.parametrize(
    ("count", "size"),
    [(10, LIMITS.batch_bytes_max // 3), (3, 2 * LIMITS.batch_bytes_max), (2 * LIMITS.batch_calls_max + 1, 1)],
)
def test_many_or_large_replies_are_cut_into_messages_and_none_is_lost(count: int, size: int) -> None:
    peers = Peers(0, 1)
    peer = peers.get(b"a")
    reply(peers, peer, *range(count), body=b"x" * size)
    told = messages(peers)
    assert len(told) >= 3
    assert [entry[0] for _, _, body in told for entry in body] == list(range(count))
    for _, _, body in told:
        assert len(body) < LIMITS.batch_calls_max
        assert len(body) == 1 or len(codec.encode(body)) <= LIMITS.batch_bytes_max + 1_000


def test_a_peer_is_known_by_its_address_and_kind() -> None:
    peers = Peers(0, 1)
    assert peers.get(b"a") is peers.get(b"a")
    assert len({id(peers.get(b"a")), id(peers.get(b"a", raw=True)), id(peers.get(b"a", b"origin"))}) == 3
    assert peers.identities() == {b"a"}
    assert len(peers) == 3


def test_a_peer_that_is_gone_is_forgotten_with_all_who_spoke_through_it() -> None:
    peers = Peers(0, 1)
    old = peers.get(b"router", b"x")
    peers.get(b"router", b"y")
    peers.get(b"other")
    peers.forget(b"router")
    assert peers.identities() == {b"other"}
    assert peers.get(b"router", b"x") is not old


def test_with_too_many_peers_the_longest_silent_is_forgotten() -> None:
    peers = Peers(0, 1)
    first = peers.get(b"first")
    for number in range(LIMITS.peers_max - 1):
        peers.get(b"%d" % number)
    assert peers.get(b"first") is first
    peers.get(b"one more")
    assert len(peers) == LIMITS.peers_max
    assert b"0" not in peers.identities()
    assert peers.get(b"first") is first


def test_large_replies_leave_before_their_tick_ends() -> None:
    peers = Peers(3, 9)
    sizes: list[int] = []
    peers.on_many_bytes = lambda: sizes.extend(len(body) for _, _, body in peers.take_messages(codec.encode))
    large = 400_000
    for sequence in range(7):
        reply(peers, peers.get(b"a"), sequence, body=b"x" * large)
        peers.add_large(large)
    # Each time when they are a batch's size; the last one waits for the tick.
    assert sum(sizes) // large == 6
    assert max(sizes) < 2 * LIMITS.batch_bytes_max
    messages(peers)
    peers.add_large(LIMITS.batch_bytes_max - 1)
    assert sum(sizes) // large == 6, "what has left does not count any more"
