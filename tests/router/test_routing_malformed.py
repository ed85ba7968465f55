"""Whatever peers make up is counted, refused and bounded, and hurts nobody else."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import protocol
from perdure_router.routing import COUNTERS, Router
from router.routing_scene import (
    ALICE,
    BOB,
    OF_WORKER,
    batch,
    call,
    from_client,
    make_router,
    refusal,
    reply,
    send_all,
    take_answers,
    two_workers,
)

# --- what is no message


@pytest.mark.parametrize(
    ("frames", "counter"),
    [
        ([ALICE], "malformed_frames"),
        ([ALICE, b""], "malformed_frames"),
        ([ALICE, b"", batch(0), b""], "malformed_frames"),
        ([ALICE, *[b"x"] * 10], "malformed_frames"),
        ([ALICE, b"", b""], "malformed_header"),
        ([ALICE, b"\xff" * 16, b""], "malformed_header"),
        ([ALICE, batch(0) + b"\0", b""], "malformed_header"),
        ([ALICE, batch(0)[:15], b""], "malformed_header"),
        ([ALICE, call(0, 1)[:-1], b""], "malformed_header"),
        ([ALICE, batch(0)[:8] + bytes(48), b""], "malformed_header"),
        ([ALICE, protocol.header(200), b""], "malformed_kind"),
        ([ALICE, protocol.header(protocol.BUNDLE, 0, 1), msgpack.packb([])], "malformed_kind"),
        ([ALICE, protocol.header(protocol.MAP, 0, 99), b""], "malformed_kind"),
        ([ALICE, batch(2), b""], "malformed_worker"),
        ([ALICE, batch(65_535), b""], "malformed_worker"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[1:])[:40],
)
def test_what_is_no_message_is_refused_counted_and_forwarded_to_nobody(
    frames: list[bytes], counter: str
) -> None:
    router = make_router()
    router.on_client(frames, 0.0)
    assert refusal(router)[0] == ALICE
    assert {name: count for name, count in router.stats.items() if count and name != "maps"} == {counter: 1}
    assert send_all(router) == []
    assert router.gauges()["clients"] == 0


def test_a_batch_for_an_unknown_worker_comes_back_with_its_refusal() -> None:
    router = make_router()
    from_client(router, batch(2), b"calls")
    assert refusal(router)[2] == b"calls"


def test_a_refusal_is_never_refused() -> None:
    router = make_router()
    from_client(router, protocol.header(protocol.REFUSED), b"")
    router.on_client([], 0.0)
    assert take_answers(router) == []
    assert router.stats["malformed_kind"] == router.stats["malformed_frames"] == 1


HEADERS = st.one_of(
    st.binary(max_size=60),
    st.builds(
        protocol.header,
        st.integers(0, 255),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    st.builds(protocol.call_header, st.sampled_from(OF_WORKER), st.integers(0, 2)),
)
ORIGINS = st.sampled_from([ALICE, BOB, b""])
BUNDLES = st.lists(st.tuples(ORIGINS, HEADERS, st.binary(max_size=5))).map(
    lambda rows: msgpack.packb([part for row in rows for part in row])
)
EVENTS = st.one_of(
    st.tuples(st.just("client"), st.tuples(ORIGINS, HEADERS, st.binary(max_size=300)).map(list)),
    st.tuples(st.just("client"), st.lists(st.binary(max_size=20), max_size=6)),
    st.tuples(st.just("door"), st.tuples(HEADERS, st.one_of(BUNDLES, st.binary(max_size=20))).map(list)),
    st.tuples(
        st.just("map"), st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([(), (0,), (1,)]))
    ),
    st.tuples(st.just("send"), st.integers(0, 3)),
    st.tuples(st.just("tick"), st.floats(0, 50)),
    st.tuples(st.just("gone"), ORIGINS),
    st.tuples(st.just("stop"), st.none()),
)


def play(router: Router, kind: str, value: Any, version: int) -> None:
    if kind == "client":
        router.on_client(value, 0.0)
    elif kind == "door":
        router.on_door(0, value)
    elif kind == "map":
        first, second, down = value
        router.on_map(two_workers(version, (first, second), down))
    elif kind == "send":
        for link in router.ready:
            for _ in range(value):
                if link.next_message() is not None:
                    link.sent(0.0)
    elif kind == "tick":
        router.on_tick(value)
    elif kind == "gone":
        router.on_peer_gone(value)
    else:
        router.stop()


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=40))
def test_nothing_that_comes_in_raises_breaks_a_bound_or_leaves_a_raw_call_unanswered(
    events: list[Any],
) -> None:
    router = make_router(
        router_queue_bytes_max=2_000, raw_calls_in_flight_max=5, batch_bytes_max=500, peers_max=2
    )
    asked: set[tuple[bytes, int]] = set()
    answered: set[tuple[bytes, int]] = set()
    for version, (kind, value) in enumerate([*events, ("map", (8, 8, (0, 1)))], 2):
        play(router, kind, value, version)
        if kind == "client" and len(value) == 3 and len(value[1]) == 56 and value[1][:2] == call(0, 0)[:2]:
            asked.add((value[0], protocol.read_call_header(value[1]).sequence))
        gauges = router.gauges()
        assert gauges["queued_bytes"] <= 2 * 2_000
        assert gauges["calls_in_flight"] <= 2 * 5
        assert gauges["clients"] <= 2
        for origin, header, _ in router.answers:
            if header[:2] == reply(0)[:2] and len(header) == 16:
                answered.add((origin, protocol.read_header(header).stamp))
        router.answers.clear()
    assert asked <= answered
    assert router.gauges()["calls_in_flight"] == router.gauges()["queued_bytes"] == 0
    assert set(router.stats) == set(COUNTERS)
