"""What callers see of a real cluster: order, types, errors, deadlines, objects that call objects."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    OutcomeUnknown,
    Overloaded,
    RemoteError,
    SyncClient,
    UnknownMethod,
    UnknownNamespace,
    connect,
)
from perdure.limits import Limits

from .cluster import Cluster, running_cluster

sys.path.insert(0, str(Path(__file__).parent))
from zoo import Odd, Point, TooPoor

sys.path.pop(0)

pytestmark = pytest.mark.processes

ZOO = Path(__file__).with_name("zoo.py")
EVERY_TYPE = [
    None,
    True,
    2**70,
    -(2**63),
    1.5,
    "text",
    b"bytes",
    [1, [2]],
    {"a": {"b": 1}},
    (1, (2, "x")),
    {1, 2},
    frozenset({"a"}),
    datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    datetime(2026, 1, 2, 3, 4, 5),
    date(2026, 1, 2),
    Decimal("1.10"),
    uuid.UUID(int=7),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(ZOO, tmp_path_factory.mktemp("calls") / "data") as running:
        yield running


@pytest.fixture(params=[True, False], ids=["direct", "through-the-router"])
def client(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[SyncClient]:
    with cluster.connect(direct=request.param) as connected:
        yield connected


def fresh(namespace_name: str = "o") -> str:
    return f"{namespace_name}-{uuid.uuid4().hex}"


def on_other_workers(client: SyncClient, namespace: str, count: int) -> list[str]:
    """Names of objects of which each lives on another worker than the one before."""
    slot_map = client.slot_map
    assert slot_map is not None
    names: list[str] = []
    while len(names) < count:
        name = fresh()
        worker = slot_map.worker_of(client.id_from_name(namespace, name).key)
        if worker == len(names) % len(slot_map.seats):
            names.append(name)
    return names


def test_every_type_of_the_wire_comes_back_as_itself(client: SyncClient) -> None:
    odd = client.get("Odd", fresh())
    for value in EVERY_TYPE:
        back = odd.echo(value)
        assert back == value
        assert type(back) is type(value)
    assert math.isnan(odd.echo(math.nan))


def test_a_dataclass_travels_both_ways_for_a_typed_stub(client: SyncClient) -> None:
    assert client.get(Odd, fresh()).move(Point(1, 2)) == Point(2, 3)
    assert client.get("Odd", fresh()).move({"x": 1, "y": 2}) == {"x": 2, "y": 3}


def test_calls_on_one_stub_arrive_in_call_order_without_awaiting_between_them(cluster: Cluster) -> None:
    async def story() -> list[int]:
        async with connect(cluster.url) as client:
            counter = client.get("Counter", fresh())
            calls = [counter.increment() for _ in range(100)]
            return list(await asyncio.gather(*calls))

    assert asyncio.run(story()) == list(range(1, 101))


def test_a_turn_that_waits_and_a_turn_in_a_thread_do_not_delay_other_objects(cluster: Cluster) -> None:
    async def story() -> float:
        async with connect(cluster.url) as client:
            slow = [client.get("Odd", fresh()).nap(1.0) for _ in range(20)]
            held = [client.get("Odd", fresh()).work(1.0) for _ in range(8)]
            began = time.monotonic()
            for number in range(50):
                await client.get("Odd", f"quick{number}").nap(0)
            took = time.monotonic() - began
            assert not any(call._future.done() for call in slow)
            assert await asyncio.gather(*slow) == ["rested"] * 20
            assert all(name.startswith("perdure-blocking") for name in await asyncio.gather(*held))
            return took

    assert asyncio.run(story()) < 1.0


def test_two_calls_to_one_object_never_overlap(cluster: Cluster) -> None:
    async def story() -> list[int]:
        async with connect(cluster.url) as client:
            odd = client.get("Odd", fresh())
            return await asyncio.gather(*(odd.meet(0.1) for _ in range(5)))

    assert asyncio.run(story()) == [1] * 5


def test_wrong_arguments_and_names_are_typed_errors_and_nothing_ran(client: SyncClient) -> None:
    counter = client.get("Counter", fresh())
    for call in (
        lambda: counter.increment(1, 2),
        lambda: counter.increment(foo=1),
        lambda: counter.increment("one"),
        lambda: counter.increment(by=True),
    ):
        with pytest.raises(InvalidArgument):
            call()
    for name in ("storage", "id", "ctx", "on_start", "alarm", "websocket_message", "value", "nothing"):
        with pytest.raises(UnknownMethod):
            getattr(counter, name)()
    with pytest.raises(UnknownNamespace):
        client.get("Nowhere", "a").get()
    with pytest.raises(InvalidArgument):
        counter.increment(threading.Lock())
    assert counter.get() == 0


def test_an_exception_arrives_with_its_type_message_causes_and_object(client: SyncClient) -> None:
    name = fresh()
    odd = client.get("Odd", name)
    with pytest.raises(TooPoor) as poor:
        odd.pay(12)
    assert poor.value.missing == 2
    assert odd.remember(1) == (0, 0), "the turn that raised left no trace"
    with pytest.raises(RemoteError) as failed:
        odd.fail()
    assert failed.value.type_name == "LookupError"
    assert failed.value.message == "outer"
    assert failed.value.object_id == f"Odd/{name}"
    assert [cause[0] for cause in failed.value.causes] == ["KeyError"]
    with pytest.raises(RemoteError):
        odd.leave()
    assert odd.nap(0) == "rested"


def test_objects_call_objects_on_other_workers_and_a_cycle_is_told_at_once(client: SyncClient) -> None:
    names = on_other_workers(client, "Caller", 3)
    first = client.get("Caller", names[0])
    assert first.through(names[1:]) == names
    for cycle in ([names[0]], [names[1], names[0]], [names[1], names[2], names[1]]):
        began = time.monotonic()
        with pytest.raises(RemoteError) as raised:
            first.through(cycle)
        assert time.monotonic() - began < 5
        text = str(raised.value)
        assert "DeadlockError" in text
        assert f"Caller/{cycle[-1]}" in text
    counter = fresh()
    assert first.add_to(counter, 5) == 5
    assert client.get("Counter", counter).get() == 5


def test_what_a_turn_wrote_before_it_called_is_committed_even_when_it_raises_later(
    client: SyncClient,
) -> None:
    names = on_other_workers(client, "Caller", 2)
    first = client.get("Caller", names[0])
    with pytest.raises(RemoteError):
        first.through([names[1], names[0]])
    assert first.get() == 1


@pytest.mark.alone
def test_deadlines_before_and_during_a_turn(cluster: Cluster) -> None:
    async def story() -> None:
        async with connect(cluster.url) as client:
            name = fresh()
            napping = client.get("Odd", name).nap(2.0)
            waiting = client.get("Odd", name, timeout=0.3)
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await waiting.remember(5)
            assert time.monotonic() - began < 1.3
            with pytest.raises(OutcomeUnknown):
                await client.get("Odd", fresh(), timeout=0.3).nap(5.0)
            assert await napping == "rested"
            assert await client.get("Odd", name).remember(0) == (0, 0), "the expired call never ran"

    asyncio.run(story())


def test_a_caller_that_stops_waiting_does_not_stop_the_turn(cluster: Cluster) -> None:
    async def story() -> None:
        async with connect(cluster.url) as client:
            counter = client.get("Counter", fresh())
            call = asyncio.ensure_future(counter.increment())
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await counter.increment() == 2

    asyncio.run(story())


def test_too_many_calls_at_one_object_are_refused_at_once_and_a_neighbour_is_served(cluster: Cluster) -> None:
    async def story() -> None:
        async with connect(cluster.url) as client:
            gate = fresh()
            slow = client.get("Odd", fresh())
            first = slow.wait_at(gate)
            waiting = [slow.nap(0) for _ in range(Limits.mailbox_calls_max)]
            too_many = [slow.nap(0) for _ in range(9_000)]
            # While the object is held all of this happens.
            assert await client.get("Odd", fresh()).nap(0) == "rested"
            refused = await asyncio.gather(*too_many, return_exceptions=True)
            assert {type(error) for error in refused} == {Overloaded}
            assert all(error.limit == "mailbox_calls_max" and error.retry_after > 0 for error in refused)
            await client.get("Gate", gate).open()
            assert await first == "passed"
            assert set(await asyncio.gather(*waiting)) == {"rested"}

    asyncio.run(story())


def test_a_message_over_the_limit_is_refused_at_the_sender_and_others_are_untouched(cluster: Cluster) -> None:
    async def story() -> None:
        async with connect(cluster.url) as client:
            odd = client.get("Odd", fresh())
            small: list[Any] = [odd.echo(number) for number in range(10)]
            with pytest.raises(MessageTooLarge):
                await odd.echo(b"x" * (Limits.message_bytes_max + 1))
            assert await asyncio.gather(*small) == list(range(10))
            assert len(await odd.echo(b"x" * (8 << 20))) == 8 << 20

    asyncio.run(story())


def test_an_undecodable_or_unencodable_value_fails_its_call_alone(client: SyncClient) -> None:
    odd = client.get("Odd", fresh())
    cycle: list[Any] = []
    cycle.append(cycle)
    for bad in (threading.Lock(), cycle, "\ud800", {1: 2}):
        with pytest.raises(InvalidArgument):
            odd.echo(bad)
    assert odd.echo("fine") == "fine"
