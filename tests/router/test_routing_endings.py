"""What becomes of calls when a worker dies or leaves, or when the router itself stops."""

from __future__ import annotations

import msgpack

from perdure import protocol
from perdure.errors import OutcomeUnknown, ShardUnavailable
from router.routing_scene import (
    ALICE,
    BOB,
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

# --- death and goodbye of a worker


def test_at_a_death_calls_that_left_end_in_outcome_unknown_and_those_still_here_were_not_executed() -> None:
    router = make_router()
    from_client(router, call(0, 1))
    from_client(router, call(1, 1))
    send_all(router)
    from_client(router, call(0, 2))
    from_client(router, call(1, 2))
    router.on_map(two_workers(version=2, epochs=(1, 1), down=(0,)))
    errors = call_errors(router)
    assert {key: type(error) for key, error in errors.items()} == {
        (ALICE, 1): OutcomeUnknown,
        (ALICE, 2): ShardUnavailable,
    }
    assert [(worker, len(flat) // 3) for worker, _, flat in send_all(router)] == [(1, 1)]
    assert router.gauges()["calls_in_flight"] == 2


def test_a_bundle_that_was_packed_but_never_taken_by_the_socket_was_not_executed() -> None:
    router = make_router(batch_bytes_max=1_000)
    from_client(router, call(0, 1), bytes(800))
    from_client(router, call(0, 2), bytes(800))
    from_client(router, batch(0), bytes(800))
    assert router.ready[0].next_message() is not None
    router.on_map(two_workers(version=2, epochs=(2, 1)))
    answers = take_answers(router)
    assert [kind for _, kind, _ in answers] == [protocol.REPLY, protocol.REPLY, protocol.STALE]
    assert {msgpack.unpackb(body)[2][0] for _, kind, body in answers if kind == protocol.REPLY} == {
        "ShardUnavailable"
    }
    assert msgpack.unpackb(answers[2][2])[1] == bytes(800)
    assert send_all(router) == []


def test_a_repetition_that_waits_here_does_not_make_the_call_that_left_unexecuted() -> None:
    router = make_router()
    from_client(router, call(0, 1))
    send_all(router)
    from_client(router, call(0, 1))
    router.on_map(two_workers(version=2, epochs=(2, 1)))
    answers = take_answers(router)
    assert [msgpack.unpackb(body)[2][0] for _, _, body in answers] == ["OutcomeUnknown"]


def test_at_a_death_queued_batches_come_back_and_then_everybody_gets_the_new_map() -> None:
    router = make_router()
    greet(router, ALICE)
    greet(router, BOB)
    from_client(router, batch(0), b"waits")
    from_client(router, batch(1), b"other worker")
    router.on_map(two_workers(version=2, epochs=(2, 1)))
    stale, *maps = take_answers(router)
    assert stale[:2] == (ALICE, protocol.STALE)
    wire_map, returned = msgpack.unpackb(stale[2])
    assert (wire_map["version"], returned) == (2, b"waits")
    assert [answer[:2] for answer in maps] == [(ALICE, protocol.MAP), (BOB, protocol.MAP)]
    assert [flat[2] for _, _, flat in send_all(router)] == [b"other worker"]


def test_doors_are_opened_and_closed_as_the_map_says() -> None:
    router = make_router()
    assert [(link.worker, link.epoch, link.endpoint) for link in router.opened] == [
        (0, 1, "ipc://w0.e1"),
        (1, 1, "ipc://w1.e1"),
    ]
    router.opened.clear()
    router.on_map(two_workers(version=2, down=(1,)))
    assert [(link.worker, link.epoch) for link in router.closed] == [(1, 1)]
    assert router.opened == []
    router.closed.clear()
    router.on_map(two_workers(version=3, epochs=(1, 2)))
    assert [(link.worker, link.epoch) for link in router.opened] == [(1, 2)]
    assert router.closed == []


def test_a_restarted_worker_is_reached_under_its_new_epoch_and_the_new_map() -> None:
    router = make_router()
    router.on_map(two_workers(version=2, epochs=(4, 1)))
    from_client(router, batch(0, version=2), b"x")
    assert [(worker, header.number) for worker, header, _ in send_all(router)] == [(0, 4)]


def test_a_closing_door_gets_the_acknowledgement_last_and_what_waited_was_not_executed() -> None:
    router = make_router()
    from_client(router, call(0, 1), b"left")
    send_all(router)
    from_client(router, call(0, 2), b"waits")
    from_client(router, batch(0), b"batch")
    router.on_door(0, [protocol.header(protocol.GOODBYE, 0, 1), b""])
    (_, call_kind, failed), (_, batch_kind, refused) = take_answers(router)
    assert (call_kind, msgpack.unpackb(failed)[2][0]) == (protocol.REPLY, "ShardUnavailable")
    assert (batch_kind, msgpack.unpackb(refused)[0]) == (protocol.REFUSED, "ShardUnavailable")
    assert msgpack.unpackb(refused)[3] == b"batch"
    assert [message[:2] for message in send_all(router)] == [(0, (protocol.GOODBYE_ACK, 0, 1, 0))]
    from_client(router, batch(0), b"new")
    assert isinstance(refusal(router)[1], ShardUnavailable)
    from_client(router, call(0, 3))
    assert isinstance(call_errors(router)[ALICE, 3], ShardUnavailable)
    router.on_door(0, [protocol.header(protocol.GOODBYE, 0, 1), b""])
    assert send_all(router) == []


def test_a_closing_door_still_answers_what_it_has() -> None:
    router = make_router()
    from_client(router, call(0, 1))
    send_all(router)
    router.on_door(0, [protocol.header(protocol.GOODBYE, 0, 1), b""])
    router.on_door(0, bundle(0, 1, (ALICE, reply(1), b"done")))
    assert take_answers(router) == [(ALICE, protocol.REPLY, b"done")]
    router.on_map(two_workers(version=2, down=(0,)))
    assert take_answers(router) == []


def test_a_newer_map_does_not_reopen_a_closing_door() -> None:
    router = make_router()
    router.on_door(0, [protocol.header(protocol.GOODBYE, 0, 1), b""])
    assert [message[1].kind for message in send_all(router)] == [protocol.GOODBYE_ACK]
    router.on_map(two_workers(version=2))
    from_client(router, batch(0, version=2), b"x")
    assert isinstance(refusal(router)[1], ShardUnavailable)


# --- the router's own stop


def test_a_stopping_router_takes_nothing_and_says_so() -> None:
    router = make_router()
    greet(router)
    from_client(router, batch(0), b"earlier")
    router.stop()
    assert take_answers(router) == [(ALICE, protocol.GOODBYE, b"")]
    from_client(router, batch(0), b"later", origin=BOB)
    assert refusal(router)[2] == b"later"
    from_client(router, call(1, 2))
    assert isinstance(call_errors(router)[ALICE, 2], ShardUnavailable)
    from_client(router, protocol.header(protocol.HELLO), origin=BOB)
    assert take_answers(router) == [(BOB, protocol.GOODBYE, b"")]
    assert [flat[2] for _, _, flat in send_all(router)] == [b"earlier"]


def test_a_stop_is_finished_when_all_have_acknowledged_and_nothing_waits() -> None:
    router = make_router()
    greet(router)
    from_client(router, call(0, 1), origin=BOB)
    router.stop()
    take_answers(router)
    assert not router.finished
    from_client(router, protocol.header(protocol.GOODBYE_ACK))
    assert not router.finished
    send_all(router)
    assert not router.finished
    router.on_door(0, bundle(0, 1, (BOB, reply(1), b"r")))
    assert not router.finished
    take_answers(router)
    assert router.finished


def test_a_client_that_has_gone_is_not_waited_for() -> None:
    router = make_router()
    greet(router)
    router.stop()
    take_answers(router)
    router.on_peer_gone(ALICE)
    assert router.finished


def test_at_the_end_of_a_stop_whoever_still_waits_learns_how_the_call_ends() -> None:
    router = make_router()
    from_client(router, call(0, 1))
    send_all(router)
    from_client(router, call(0, 2))
    from_client(router, batch(1), b"batch")
    router.stop()
    router.abandon()
    endings = [(kind, msgpack.unpackb(body)) for _, kind, body in take_answers(router)]
    assert [(kind, body[2][0]) for kind, body in endings[:2]] == [
        (protocol.REPLY, "OutcomeUnknown"),
        (protocol.REPLY, "ShardUnavailable"),
    ]
    assert (endings[2][0], endings[2][1][0], endings[2][1][3]) == (
        protocol.REFUSED,
        "ShardUnavailable",
        b"batch",
    )
    assert router.finished
