"""The queue to one worker and the table of the raw calls that it holds."""

from __future__ import annotations

import msgpack

from perdure import protocol
from perdure_router.links import Link, call_key, entries

MESSAGE = (b"origin", b"header", b"body")


def make_link() -> Link:
    return Link(3, 9, "ipc://w3.e9", bundle_bytes_max=1_000)


def raw_call(sequence: int) -> tuple[bytes, bytes, bytes]:
    return b"origin", protocol.call_header(bytes(32), sequence), b"body"


def test_a_call_and_its_reply_have_the_same_key_and_no_other_call_has_it() -> None:
    headers = [protocol.call_header(bytes(32), sequence) for sequence in (1, 2**63)]
    replies = [protocol.header(protocol.REPLY, 1, 7, sequence) for sequence in (1, 2**63)]
    keys = [call_key(b"a", header) for header in headers]
    assert keys == [call_key(b"a", header) for header in replies]
    assert len({*keys, call_key(b"b", headers[0])}) == 3


def test_a_message_stays_queued_until_it_was_sent() -> None:
    link = make_link()
    link.add(MESSAGE, 100)
    first = link.next_message()
    assert first is not None
    assert link.next_message() is first
    assert link.queued_bytes == 100
    link.sent(0.0)
    assert (link.next_message(), link.queued_bytes) == (None, 0)


def test_what_is_added_while_a_message_waits_for_the_socket_is_coalesced_behind_it() -> None:
    link = make_link()
    link.add(MESSAGE, 100)
    link.next_message()
    for _ in range(3):
        link.add(MESSAGE, 100)
    link.sent(0.0)
    message = link.next_message()
    assert message is not None
    assert msgpack.unpackb(message[1]) == [*MESSAGE] * 3


def test_a_raw_call_is_in_flight_only_from_its_sending() -> None:
    link = make_link()
    link.add_call(raw_call(1), 600)
    link.add_call(raw_call(2), 600)
    assert (link.known_calls, link.in_flight) == (2, {})
    link.next_message()
    link.sent(5.0)
    assert (link.known_calls, link.in_flight) == (2, {call_key(*raw_call(1)[:2]): 5.0})


def test_what_was_not_sent_is_given_back_in_order_and_the_link_is_empty_then() -> None:
    link = make_link()
    for sequence in (1, 2, 3):
        link.add_call(raw_call(sequence), 600)
    link.next_message()
    assert list(link.take_unsent()) == [raw_call(1), raw_call(2), raw_call(3)]
    assert (link.next_message(), link.queued_bytes, link.known_calls) == (None, 0, 0)


def test_a_bundle_larger_than_usual_travels_whole() -> None:
    link = make_link()
    link.add((b"origin", b"header", bytes(100_000)), 100_000)
    message = link.next_message()
    assert message is not None
    assert list(entries(msgpack.unpackb(message[1]))) == [(b"origin", b"header", bytes(100_000))]


def test_calls_are_forgotten_by_age_alone() -> None:
    link = make_link()
    for sequence, now in ((1, 10.0), (2, 20.0), (3, 30.0)):
        link.add_call(raw_call(sequence), 100)
        link.next_message()
        link.sent(now)
    assert link.forget_older(than=5.0) == 0
    assert link.forget_older(than=25.0) == 2
    assert list(link.in_flight.values()) == [30.0]
