"""How messages find their way between clients and workers, one rule a test; no sockets, no clock."""

from __future__ import annotations

import msgpack
import pytest

from perdure import protocol
from perdure.errors import OutcomeUnknown, Overloaded, ShardUnavailable
from perdure.slotmap import slot_map_from_wire
from perdure_router.routing import Router
from router.routing_scene import (
    ALICE,
    BOB,
    LIMITS,
    batch,
    bundle,
    call,
    call_errors,
    from_client,
    greet,
    make_router,
    refusal,
    reply,
    send_all,
    take_answers,
    two_workers,
)

# --- the map and its readers


def test_hello_is_answered_with_the_map() -> None:
    router = make_router()
    from_client(router, protocol.header(protocol.HELLO), msgpack.packb({"client": bytes(16)}))
    ((origin, header, body),) = router.answers
    assert origin == ALICE
    assert protocol.read_header(header)[:3] == (protocol.MAP, 0, 1)
    assert slot_map_from_wire(msgpack.unpackb(body)) == two_workers()


@pytest.mark.parametrize(("version", "kind"), [(1, protocol.PONG), (0, protocol.MAP), (2, protocol.MAP)])
def test_ping_is_answered_with_the_map_unless_the_client_has_it(version: int, kind: int) -> None:
    router = make_router()
    from_client(router, protocol.header(protocol.PING, number=version))
    assert [answer[:2] for answer in take_answers(router)] == [(ALICE, kind)]


@pytest.mark.parametrize("kind", [protocol.HELLO, protocol.PING])
def test_who_greeted_hears_of_a_new_map_at_once(kind: int) -> None:
    router = make_router()
    from_client(router, protocol.header(kind, number=1))
    take_answers(router)
    router.on_map(two_workers(version=2))
    assert [answer[:2] for answer in take_answers(router)] == [(ALICE, protocol.MAP)]


def test_a_client_that_only_calls_is_served_and_hears_of_no_map() -> None:
    router = make_router()
    from_client(router, batch(0), b"body")
    assert send_all(router)[0][2] == [ALICE, batch(0), b"body"]
    router.on_map(two_workers(version=2))
    assert take_answers(router) == []


def test_a_map_that_is_not_newer_is_ignored() -> None:
    router = make_router()
    greet(router)
    router.on_map(two_workers(version=1, epochs=(5, 5)))
    router.on_map(two_workers(version=0, epochs=(6, 6)))
    assert take_answers(router) == []
    assert router.stats["maps_ignored"] == 2
    assert [link.epoch for link in router.opened] == [1, 1]


def test_a_silent_client_is_forgotten_and_comes_back_with_its_next_ping() -> None:
    router = make_router()
    greet(router, ALICE, now=100.0)
    greet(router, BOB, now=100.0)
    router.on_tick(100.0 + LIMITS.client_forgotten_s)
    assert router.gauges()["clients"] == 2
    from_client(router, protocol.header(protocol.PING), origin=BOB, now=100.0 + LIMITS.client_forgotten_s)
    take_answers(router)
    router.on_tick(100.0 + LIMITS.client_forgotten_s + 0.1)
    router.on_map(two_workers(version=2))
    assert [answer[0] for answer in take_answers(router)] == [BOB]
    from_client(router, protocol.header(protocol.PING, number=2), now=120.0)
    take_answers(router)
    router.on_map(two_workers(version=3))
    assert {answer[0] for answer in take_answers(router)} == {ALICE, BOB}


@pytest.mark.parametrize(
    "header", [batch(0), batch(0, version=9), call(0, 1)], ids=["batch", "stale", "call"]
)
def test_a_client_that_calls_is_not_silent(header: bytes) -> None:
    router = make_router()
    greet(router, now=100.0)
    from_client(router, header, now=105.0)
    router.on_tick(100.0 + LIMITS.client_forgotten_s + 0.1)
    assert router.gauges()["clients"] == 1


def test_the_number_of_clients_is_bounded_and_who_is_over_it_is_served_all_the_same() -> None:
    router = make_router(peers_max=2)
    for origin in (b"a", b"b", b"c"):
        from_client(router, protocol.header(protocol.HELLO), origin=origin)
    assert [answer[:2] for answer in take_answers(router)] == [(o, protocol.MAP) for o in (b"a", b"b", b"c")]
    assert router.gauges()["clients"] == 2


def test_before_the_first_map_nothing_is_executed_and_greeters_get_the_map_when_it_comes() -> None:
    router = Router()
    from_client(router, protocol.header(protocol.HELLO), origin=BOB)
    from_client(router, protocol.header(protocol.PING), origin=BOB)
    from_client(router, call(0, 7))
    assert isinstance(call_errors(router)[ALICE, 7], ShardUnavailable)
    from_client(router, batch(0, version=0), b"b0")
    ((origin, kind, body),) = take_answers(router)
    assert (origin, kind, msgpack.unpackb(body)) == (ALICE, protocol.STALE, [None, b"b0"])
    router.on_map(two_workers())
    assert [answer[:2] for answer in take_answers(router)] == [(BOB, protocol.MAP)]


# --- to the workers


def test_all_that_is_queued_for_one_worker_in_a_tick_leaves_as_one_bundle_of_untouched_messages() -> None:
    router = make_router()
    sent = [
        (ALICE, batch(1, stamp=11), b"one"),
        (BOB, batch(1, stamp=12), b"two"),
        (ALICE, call(1, 3), b"three"),
    ]
    for origin, header, body in sent:
        from_client(router, header, body, origin=origin)
    from_client(router, batch(0), b"other worker")
    to_first, to_second = sorted(send_all(router), key=lambda message: message[0])
    assert to_first[2] == [ALICE, batch(0), b"other worker"]
    assert to_second[:2] == (1, (protocol.BUNDLE, 1, 1, 0))
    assert to_second[2] == [part for entry in sent for part in entry]
    assert send_all(router) == []


def test_a_raw_call_goes_to_the_worker_that_owns_its_id() -> None:
    router = make_router()
    for slot in range(8):
        from_client(router, protocol.call_header(slot.to_bytes(4, "big") + bytes(28), slot))
    by_worker = {worker: len(flat) // 3 for worker, _, flat in send_all(router)}
    assert by_worker == {0: 4, 1: 4}


def test_bundles_are_cut_before_they_grow_over_the_batch_limit() -> None:
    router = make_router(batch_bytes_max=10_000)
    for number in range(10):
        from_client(router, batch(0, stamp=number), bytes(4_000))
    from_client(router, batch(0, stamp=10), bytes(50_000))
    bundles = [flat for _, _, flat in send_all(router)]
    assert [len(flat) // 3 for flat in bundles] == [2, 2, 2, 2, 2, 1]
    stamps = [protocol.read_header(header).stamp for flat in bundles for header in flat[1::3]]
    assert stamps == list(range(11))


@pytest.mark.parametrize("version", [0, 2])
def test_a_batch_of_another_map_comes_back_with_the_current_one(version: int) -> None:
    router = make_router()
    from_client(router, batch(1, version), b"\x91body")
    ((origin, header, body),) = router.answers
    assert (origin, protocol.read_header(header)[:3]) == (ALICE, (protocol.STALE, 1, 1))
    wire_map, returned = msgpack.unpackb(body)
    assert slot_map_from_wire(wire_map) == two_workers()
    assert returned == b"\x91body"
    assert send_all(router) == []


def test_a_batch_for_a_worker_that_is_down_comes_back() -> None:
    router = make_router()
    router.on_map(two_workers(version=2, down=(1,)))
    from_client(router, batch(1, version=2), b"x")
    assert [answer[:2] for answer in take_answers(router)] == [(ALICE, protocol.STALE)]
    assert send_all(router) == []


def test_a_stale_batch_that_is_too_large_to_travel_with_the_map_comes_back_behind_it() -> None:
    router = make_router(message_bytes_max=2_000, wire_overhead_bytes=100)
    from_client(router, batch(0, version=9), bytes(1_915))
    map_answer, stale = take_answers(router)
    assert map_answer[1] == protocol.MAP
    assert msgpack.unpackb(stale[2]) == [None, bytes(1_915)]


def test_a_raw_call_to_a_worker_that_is_down_is_not_executed() -> None:
    router = make_router()
    router.on_map(two_workers(version=2, down=(0,)))
    from_client(router, call(0, 41))
    from_client(router, call(1, 42))
    assert {key: type(error) for key, error in call_errors(router).items()} == {(ALICE, 41): ShardUnavailable}
    assert [worker for worker, _, _ in send_all(router)] == [1]


# --- bounds


def test_a_full_queue_refuses_at_once_and_names_the_calls_and_the_limit() -> None:
    router = make_router(router_queue_bytes_max=10_000)
    from_client(router, batch(0), bytes(9_000))
    from_client(router, batch(0), bytes(2_000), origin=BOB)
    origin, error, returned = refusal(router)
    assert (origin, type(error), returned) == (BOB, Overloaded, bytes(2_000))
    assert error.limit == "router_queue_bytes_max"
    from_client(router, call(0, 5), bytes(2_000))
    assert isinstance(call_errors(router)[ALICE, 5], Overloaded)
    assert len(send_all(router)[0][2]) == 3
    from_client(router, batch(0), bytes(9_000))
    assert take_answers(router) == []


def test_a_full_queue_of_one_worker_does_not_concern_another() -> None:
    router = make_router(router_queue_bytes_max=10_000)
    from_client(router, batch(0), bytes(9_900 - 128))
    from_client(router, batch(1), bytes(9_000))
    assert take_answers(router) == []


def test_raw_calls_in_flight_are_bounded_whether_they_wait_here_or_at_the_worker() -> None:
    router = make_router(raw_calls_in_flight_max=3)
    from_client(router, call(0, 1))
    from_client(router, call(0, 2))
    send_all(router)
    from_client(router, call(0, 3))
    from_client(router, call(0, 4))
    errors = call_errors(router)
    assert list(errors) == [(ALICE, 4)]
    assert errors[ALICE, 4].limit == "raw_calls_in_flight_max"
    router.on_door(0, bundle(0, 1, (ALICE, reply(1), b"r")))
    take_answers(router)
    from_client(router, call(0, 5))
    assert take_answers(router) == []


def test_messages_over_the_limit_are_refused_with_their_size() -> None:
    router = make_router(message_bytes_max=2_000, wire_overhead_bytes=800)
    from_client(router, batch(0), bytes(2_500))
    _, error, returned = refusal(router)
    assert (error.limit, error.size > 2_000, returned) == (2_000, True, None)
    from_client(router, batch(0, version=7), bytes(2_500))
    assert refusal(router)[1].limit == 2_000
    from_client(router, call(0, 5), bytes(2_500))
    assert call_errors(router)[ALICE, 5].limit == 2_000
    assert router.stats["oversize"] == 3
    assert send_all(router) == []


def test_answers_for_a_client_that_does_not_read_are_bounded_and_the_rest_is_dropped_and_counted() -> None:
    router = make_router(reply_queue_bytes_max=1_000)
    header = reply(1)
    for _ in range(10):
        router.on_pipe_full((ALICE, header, bytes(300)))
    assert router.stats["answers_dropped"] == 7
    assert router.gauges()["backlog_bytes"] == 3 * (300 + len(header))


def test_a_client_whose_connection_is_closed_is_forgotten_with_all_that_waits_for_it() -> None:
    router = make_router()
    greet(router)
    router.on_pipe_full((ALICE, reply(1), bytes(300)))
    router.on_peer_gone(ALICE)
    assert router.gauges()["backlog_bytes"] == router.gauges()["clients"] == 0
    assert router.stats["answers_unroutable"] == 2
    router.on_map(two_workers(version=2))
    assert take_answers(router) == []


def test_a_raw_call_whose_reply_was_lost_is_forgotten_when_no_deadline_can_be_that_long() -> None:
    router = make_router()
    from_client(router, call(0, 1))
    send_all(router, now=10.0)
    from_client(router, call(0, 2))
    send_all(router, now=20.0)
    router.on_tick(10.0 + 2 * LIMITS.call_timeout_max_s + 1)
    assert router.gauges()["calls_in_flight"] == 1
    assert router.stats["calls_forgotten"] == 1


# --- from the workers


def test_each_part_of_a_bundle_goes_to_its_own_client_untouched() -> None:
    router = make_router()
    replies = protocol.header(protocol.REPLIES, 0, 1)
    parts = [(ALICE, replies, b"\x91one"), (BOB, reply(9), b"two"), (ALICE, replies, b"three")]
    router.on_door(0, bundle(0, 1, *parts))
    assert router.answers == parts
    assert router.stats["answers"] == 3


def test_a_reply_ends_the_raw_call_of_its_client_and_no_other() -> None:
    router = make_router()
    for origin, sequence in ((ALICE, 1), (ALICE, 2), (BOB, 1)):
        from_client(router, call(0, sequence), origin=origin)
    send_all(router)
    router.on_door(0, bundle(0, 1, (ALICE, reply(1), b"r")))
    take_answers(router)
    router.on_map(two_workers(version=2, epochs=(2, 1)))
    errors = call_errors(router)
    assert {key: type(error) for key, error in errors.items()} == {
        (ALICE, 2): OutcomeUnknown,
        (BOB, 1): OutcomeUnknown,
    }


def test_only_a_reply_ends_a_raw_call() -> None:
    router = make_router()
    from_client(router, call(0, 5))
    send_all(router)
    router.on_door(0, bundle(0, 1, (ALICE, protocol.header(protocol.STALE, 0, 1, 5), b"r")))
    assert router.gauges()["calls_in_flight"] == 1


def test_a_worker_hears_how_much_of_its_large_bundles_was_read_before_all_else() -> None:
    router = make_router()
    large = bytes(LIMITS.large_message_bytes)
    messages = [bundle(0, 1, (ALICE, reply(number), large)) for number in range(2)]
    from_client(router, batch(0), b"body")
    for message in messages:
        router.on_door(0, message)
    taken, forwarded = send_all(router)
    size = sum(len(body) for _, body in messages)
    assert taken == (0, (protocol.TAKEN, 0, 1, size), [])
    assert forwarded[1].kind == protocol.BUNDLE
    router.on_door(0, bundle(0, 1, (ALICE, reply(3), b"small")))
    assert send_all(router) == []


def test_a_door_that_closes_is_sent_nothing_behind_the_acknowledgement() -> None:
    router = make_router()
    large = bundle(0, 1, (ALICE, reply(1), bytes(LIMITS.large_message_bytes)))
    router.on_door(0, large)
    router.on_door(0, [protocol.header(protocol.GOODBYE, 0, 1), b""])
    router.on_door(0, large)
    assert [head.kind for _, head, _ in send_all(router)] == [protocol.GOODBYE_ACK]


@pytest.mark.parametrize("epoch", [1, 3])
def test_what_another_epoch_says_is_dropped_and_counted(epoch: int) -> None:
    router = make_router()
    router.on_map(two_workers(version=2, epochs=(2, 1)))
    router.on_door(0, bundle(0, epoch, (ALICE, reply(1), b"late")))
    router.on_door(0, [protocol.header(protocol.GOODBYE, 0, epoch), b""])
    assert take_answers(router) == []
    assert router.stats["stale_epoch_dropped"] == 2
    from_client(router, batch(0, version=2))
    assert take_answers(router) == []


def test_a_worker_that_is_down_says_nothing_that_counts() -> None:
    router = make_router()
    router.on_map(two_workers(version=2, down=(0,)))
    router.on_door(0, bundle(0, 1, (ALICE, reply(1), b"late")))
    router.on_door(7, bundle(7, 1, (ALICE, reply(1), b"nobody")))
    assert take_answers(router) == []
    assert router.stats["stale_epoch_dropped"] == 2


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"short", b""],
        [protocol.header(protocol.BUNDLE, 0, 1)],
        [protocol.header(protocol.BUNDLE, 0, 1), b"", b""],
        [protocol.header(protocol.BUNDLE, 0, 1), b""],
        [protocol.header(protocol.BUNDLE, 0, 1), b"\xc1"],
        [protocol.header(protocol.BUNDLE, 0, 1), msgpack.packb({})],
        [protocol.header(protocol.BUNDLE, 0, 1), msgpack.packb([b"a", b"b"])],
        [protocol.header(protocol.BUNDLE, 0, 1), msgpack.packb([b"a", b"b", 3])],
        [protocol.header(protocol.BUNDLE, 0, 1), b"\x91" * 5_000],
        [protocol.header(protocol.HELLO, 0, 1), b""],
    ],
    ids=lambda frames: repr(frames)[:50],
)
def test_a_damaged_message_of_a_worker_is_counted_and_hurts_nobody(frames: list[bytes]) -> None:
    router = make_router()
    router.on_door(0, frames)
    assert take_answers(router) == []
    assert router.stats["malformed_door"] == 1
