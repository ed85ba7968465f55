"""The router's own answers read as docs/PROTOCOL.md says."""

from __future__ import annotations

from perdure import codec, protocol
from perdure.errors import InvalidArgument, OutcomeUnknown, Overloaded
from perdure_router import answers

MAP = codec.encode({"version": 4})


def test_a_map_is_sent_as_it_was_encoded() -> None:
    assert answers.slot_map(b"o", 4, MAP) == (b"o", protocol.header(protocol.MAP, 0, 4), MAP)


def test_pong_repeats_the_version_and_goodbye_is_empty() -> None:
    assert answers.pong(b"o", 4) == (b"o", protocol.header(protocol.PONG, 0, 4), b"")
    assert answers.goodbye(b"o") == (b"o", protocol.header(protocol.GOODBYE), b"")


def test_stale_holds_the_map_or_nil_and_the_batch() -> None:
    origin, header, body = answers.stale(b"o", 2, 4, MAP, b"batch")
    assert (origin, header) == (b"o", protocol.header(protocol.STALE, 2, 4))
    assert codec.decode(body) == [{"version": 4}, b"batch"]
    assert codec.decode(answers.stale(b"o", 2, 4, None, b"batch")[2]) == [None, b"batch"]


def test_refused_holds_the_error_and_the_batch_where_there_is_one() -> None:
    error = Overloaded("full", limit="router_queue_bytes_max", retry_after=2.0)
    wire = ["Overloaded", "full", {"limit": "router_queue_bytes_max", "retry_after": 2.0}]
    assert codec.decode(answers.refused_batch(b"o", 1, error, b"batch")[2]) == [*wire, b"batch"]
    assert codec.decode(answers.refused(b"o", InvalidArgument("junk"))[2]) == ["InvalidArgument", "junk", {}]


def test_a_failed_call_is_a_reply_of_the_same_sequence() -> None:
    sequence = protocol.call_header(bytes(32), 2**40 + 5)[-8:]
    origin, header, body = answers.failed_call(b"o", sequence, OutcomeUnknown("lost"))
    assert (origin, header) == (b"o", protocol.header(protocol.REPLY, stamp=2**40 + 5))
    assert codec.decode(body) == [
        2**40 + 5,
        protocol.STATUS_ERROR,
        ["OutcomeUnknown", "lost", {"reason": None}],
    ]
