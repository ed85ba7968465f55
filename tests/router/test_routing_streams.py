"""Readers' news of streams on their way through the router: by worker and epoch, bounded, never returned."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import protocol
from perdure_router.routing import Router

from .routing_scene import (
    ALICE,
    BOB,
    batch,
    bundle,
    call,
    call_errors,
    from_client,
    greet,
    make_router,
    send_all,
    take_answers,
    two_workers,
)

NEWS = b"taken"


def news(worker: int, epoch: int = 1) -> bytes:
    return protocol.header(protocol.STREAM, worker, epoch)


def forwarded(router: Router) -> list[tuple[int, list[Any]]]:
    return [(worker, parts) for worker, _, parts in send_all(router)]


def test_news_reach_the_incarnation_in_their_header_among_the_batches_in_order() -> None:
    router = make_router()
    from_client(router, batch(1), b"call")
    from_client(router, news(1), NEWS)
    from_client(router, news(0), NEWS, origin=BOB)
    assert forwarded(router) == [
        (1, [ALICE, batch(1), b"call", ALICE, news(1), NEWS]),
        (0, [BOB, news(0), NEWS]),
    ]
    assert router.stats["stream_news"] == 2
    assert not router.answers


@pytest.mark.parametrize(("worker", "epoch"), [(0, 0), (0, 2), (2, 1), (65_535, 1)])
def test_news_for_another_incarnation_or_no_worker_are_dropped_and_counted(worker: int, epoch: int) -> None:
    router = make_router()
    from_client(router, news(worker, epoch), NEWS)
    assert not forwarded(router)
    assert not router.answers, "readers learn of a death by themselves"
    assert router.stats["stream_news_dropped"] == 1


def test_news_keep_a_client_known() -> None:
    router = make_router()
    greet(router, now=0.0)
    from_client(router, news(0), NEWS, now=9.0)
    router.on_tick(15.0)
    assert router.gauges()["clients"] == 1


def test_news_beyond_the_queue_or_for_a_closing_door_are_dropped() -> None:
    router = make_router(router_queue_bytes_max=1_000)
    for _ in range(100):
        from_client(router, news(0), NEWS)
    assert router.gauges()["queued_bytes"] <= 1_000
    assert router.stats["stream_news"] + router.stats["stream_news_dropped"] == 100
    from_client(router, news(1), bytes(40 * 1024 * 1024))
    router.on_door(1, [protocol.header(protocol.GOODBYE, 1, 1), b""])
    from_client(router, news(1), NEWS)
    assert all(not parts for worker, parts in forwarded(router) if worker == 1)
    assert not take_answers(router)


def test_news_that_wait_for_a_worker_which_dies_are_given_back_to_nobody() -> None:
    router = make_router()
    from_client(router, news(0), NEWS)
    from_client(router, call(0, 5))
    from_client(router, batch(0), b"call")
    router.on_map(two_workers(2, epochs=(2, 1)))
    kinds = [kind for _, kind, _ in take_answers(router)]
    assert sorted(kinds) == [protocol.REPLY, protocol.STALE]


def test_an_item_of_a_raw_call_leaves_it_in_flight_until_its_reply() -> None:
    router = make_router()
    from_client(router, call(0, 5))
    send_all(router)
    item = protocol.header(protocol.REPLY_ITEM, 0, 1, 5)
    router.on_door(0, bundle(0, 1, (ALICE, item, b"item")))
    assert take_answers(router) == [(ALICE, protocol.REPLY_ITEM, b"item")]
    router.on_map(two_workers(2, epochs=(2, 1)))
    assert list(call_errors(router)) == [(ALICE, 5)]


def test_a_worker_s_question_for_a_reader_that_is_gone_comes_back_to_it() -> None:
    router = make_router()
    question = news(0)
    router.on_door(0, bundle(0, 1, (ALICE, question, b"")))
    assert take_answers(router) == [(ALICE, protocol.STREAM, b"")]
    router.on_peer_gone(ALICE, question)
    assert forwarded(router) == [(0, [ALICE, question, b""])]


@pytest.mark.parametrize("header", [b"", news(0)[:5], protocol.header(protocol.REPLIES, 0, 1), news(0, 7)])
def test_other_answers_that_reach_nobody_tell_no_worker(header: bytes) -> None:
    router = make_router()
    router.on_peer_gone(ALICE, header)
    assert not forwarded(router)
    assert router.stats["answers_unroutable"] == 1
