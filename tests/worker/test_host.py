"""Which calls are taken, which are refused, and in which order they run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure import (
    DeadlineExceeded,
    DurableObject,
    InvalidArgument,
    Limits,
    Overloaded,
    ShardUnavailable,
    UnknownMethod,
    UnknownNamespace,
    codec,
    durable,
    public,
)
from perdure.ids import id_from_name, slot_of
from worker.host_scene import SLOTS, Scene, results, take_time


class Mixin:
    def helper(self) -> str:
        return "an undeclared helper"

    @public
    def declared(self) -> str:
        return "declared"


class Room(Mixin, DurableObject):
    value: int = durable(0)
    size = 5

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.go = asyncio.Event()

    async def note(self, what: Any, pause: bool = False) -> int:
        if pause:
            await take_time(0)
        self.log.append(what)
        return len(self.log)

    async def look(self) -> list[Any]:
        return self.log

    async def write(self, value: int) -> None:
        self.value = value

    async def hold(self) -> None:
        await self.go.wait()

    def add(self, first: int, second: int = 10, *rest: int, scale: int = 1, **named: int) -> int:
        self.log.append("add ran")
        return (first + second + sum(rest) + sum(named.values())) * scale

    async def strict(self, number: int, text: str | None = None) -> str:
        self.log.append("strict ran")
        return f"{number} {text}"

    @property
    def width(self) -> int:
        return 1

    @staticmethod
    def still() -> int:
        return 1

    async def _private(self) -> int:
        return 1

    async def on_start(self) -> None:
        pass

    async def fetch(self, request: Any) -> Any:
        return 1

    async def alarm(self, alarm: Any) -> None:
        pass


class Special(Room, namespace="rooms.special"):
    async def extra(self) -> str:
        return "extra"


# --- order


def test_a_hundred_calls_of_one_message_run_in_their_order(make_scene: Any) -> None:
    scene = make_scene(Room)
    with scene.one_message():
        calls = [scene.start(Room, "a", "note", number, number % 3 == 0) for number in range(100)]
    assert results(calls) == list(range(1, 101))
    assert scene.call(Room, "a", "look") == list(range(100))


def test_calls_that_arrive_while_a_turn_runs_keep_their_order_behind_those_that_wait(make_scene: Any) -> None:
    scene = make_scene(Room)
    scene.start(Room, "a", "hold")
    for number in range(50):
        scene.start(Room, "a", "note", number, number % 2 == 0, peer=scene.peer(b"%d" % (number % 3)))
    scene.resident(Room, "a").instance.go.set()
    scene.settle()
    assert scene.call(Room, "a", "look") == list(range(50))


def test_a_call_overtakes_none_that_waits_for_a_turn_that_may_start_already(make_scene: Any) -> None:
    scene: Scene = make_scene(Room, limits=Limits(uncommitted_bytes_max=100))
    scene.call(Room, "a", "look")
    scene.start(Room, "b", "write", 1)
    assert scene.host.paused
    first = scene.start(Room, "a", "note", "first")
    second = scene.item(Room, "a", "note", "second")
    message = codec.encode([b"x" * 16, second])
    # The commit's notice, then the next message, then the turn that the notice asked for.
    scene.loop.call_soon(scene.jobs.popleft())
    scene.loop.call_soon(scene.loop.call_soon, scene.host.on_calls, scene.client, message)
    scene.settle()
    assert first.result() == 1
    assert scene.call(Room, "a", "look") == ["first", "second"]


def test_calls_that_have_started_leave_nothing_behind_until_their_deadline(make_scene: Any) -> None:
    scene = make_scene(Room)
    scene.start(Room, "a", "hold")
    with scene.one_message():
        calls = [scene.start(Room, "a", "note", 1, timeout_ms=3_600_000) for _ in range(100)]
    assert len(scene.host._expiry) == 100
    scene.resident(Room, "a").instance.go.set()
    scene.settle()
    assert results(calls) == list(range(1, 101))
    assert len(scene.host._expiry) == 0


def test_replies_of_a_message_leave_together(make_scene: Any) -> None:
    scene = make_scene(Room)
    messages: list[Any] = []
    take, scene.peers.take_messages = scene.peers.take_messages, lambda pack: iter(messages)
    with scene.one_message():
        calls = [scene.start(Room, name, "note", 1) for name in "abc"]
    messages += take(bytes)
    assert len(messages) == 1
    scene.peers.take_messages = take
    scene._flush()
    assert [call.sequence for call in calls] == [1, 2, 3]


# --- arguments


def test_positional_and_keyword_arguments_defaults_and_the_rest_work(make_scene: Any) -> None:
    scene = make_scene(Room)
    assert scene.call(Room, "a", "add", 1) == 11
    assert scene.call(Room, "a", "add", 1, 2, 3, 4) == 10
    assert scene.call(Room, "a", "add", 1, kwargs={"second": 2, "scale": 3}) == 9
    assert scene.call(Room, "a", "add", kwargs={"first": 1, "other": 5}) == 16


@pytest.mark.parametrize("busy", [False, True])
@pytest.mark.parametrize(
    ("method", "args", "kwargs"),
    [
        ("strict", [], None),
        ("strict", [1, "x", 3], None),
        ("strict", ["1"], None),
        ("strict", [1.5], None),
        ("strict", [True], None),
        ("strict", [1], {"unknown": 1}),
        ("strict", [1], {"number": 2}),
        ("strict", [1], {"text": 5}),
        ("add", [1], {"scale": "2"}),
        ("add", [1, 2, "3"], None),
        ("add", [1], {"self": 3}),
    ],
)
def test_a_call_with_wrong_arguments_is_refused_and_the_method_does_not_run(
    make_scene: Any, method: str, args: list[Any], kwargs: Any, busy: bool
) -> None:
    scene = make_scene(Room)
    if busy:
        scene.start(Room, "a", "hold")
    wrong = scene.start(Room, "a", method, *args, kwargs=kwargs)
    right = scene.start(Room, "a", "look")
    scene.resident(Room, "a").instance.go.set()
    scene.settle()
    assert type(wrong.error()) is InvalidArgument
    assert right.result() == []


# --- what can be called


@pytest.mark.parametrize(
    "method",
    [
        "_private",
        "__init__",
        "storage",
        "ctx",
        "id",
        "_cell",
        "on_start",
        "fetch",
        "alarm",
        "value",
        "size",
        "width",
        "still",
        "helper",
        "",
        "nothing",
        7,
        None,
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_only_declared_public_methods_can_be_called(make_scene: Any, method: Any, live: bool) -> None:
    scene = make_scene(Room)
    if live:
        scene.call(Room, "a", "look")
    error = scene.start(Room, "a", method).error()
    assert type(error) is UnknownMethod
    assert error.method == str(method)
    assert "note" in str(error)
    assert scene.is_live(Room, "a") == live


def test_methods_of_object_classes_are_inherited_and_mixins_methods_must_be_declared(make_scene: Any) -> None:
    scene = make_scene(Room, Special)
    assert scene.call(Room, "a", "declared") == "declared"
    assert scene.call(Special, "a", "declared") == "declared"
    assert scene.call(Special, "a", "extra") == "extra"
    assert type(scene.start(Room, "a", "extra").error()) is UnknownMethod


@pytest.mark.parametrize("live", [False, True])
def test_an_unknown_namespace_is_refused_by_its_name(make_scene: Any, live: bool) -> None:
    scene = make_scene(Room)
    if live:
        scene.call(Room, "a", "look")
    item = scene.item(Room, "a", "look")
    for namespace in ("Nowhere", "", "rooms.special"):
        other = [100 + len(namespace), namespace, *item[2:]]
        scene.send(other)
        error = _error(scene, other[0])
        assert type(error) is UnknownNamespace
        assert error.namespace == namespace
        assert "Room" in str(error)


def _error(scene: Scene, sequence: int) -> BaseException:
    from worker.host_scene import Sent

    return Sent(scene, scene.client, sequence).error()


@pytest.mark.parametrize("live", [False, True])
def test_an_id_of_another_namespace_or_of_nothing_is_refused(make_scene: Any, live: bool) -> None:
    scene = make_scene(Room, Special)
    if live:
        scene.call(Room, "a", "look")
    key = id_from_name("Room", "a").key
    for number, (namespace, wrong) in enumerate(
        [("rooms.special", key), ("Room", key[:31]), ("Room", bytes(32)), ("Room", key.hex()), ("Room", None)]
    ):
        scene.send([number + 50, namespace, wrong, None, "look", [], None, 0, None])
        assert type(_error(scene, number + 50)) is InvalidArgument
    assert len(scene.host.live) == live


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("name", ["b", "", 7, "x" * 600])
def test_a_name_that_the_id_was_not_made_from_is_refused(make_scene: Any, live: bool, name: Any) -> None:
    scene = make_scene(Room)
    if live:
        scene.call(Room, "a", "look")
    item = scene.item(Room, "a", "look")
    item[3] = name
    scene.send(item)
    assert type(_error(scene, item[0])) is InvalidArgument
    if live:
        assert scene.resident(Room, "a").name == "a"


def test_an_object_in_a_slot_of_another_worker_is_refused_for_its_caller_to_go_there(make_scene: Any) -> None:
    slot = slot_of(id_from_name("Room", "a").key, SLOTS)
    scene = make_scene(Room, slots=range(slot, slot + 1))
    assert scene.call(Room, "a", "look") == []
    foreign = next(
        name for name in "bcdefgh" if slot_of(id_from_name("Room", name).key, SLOTS) not in scene.host.slots
    )
    assert type(scene.start(Room, foreign, "look").error()) is ShardUnavailable
    assert not scene.is_live(Room, foreign)


# --- deadlines


def test_a_call_that_arrives_after_its_deadline_does_not_run(make_scene: Any) -> None:
    scene = make_scene(Room)
    now_ms = int(scene.loop.time() * 1000)
    late = scene.start(Room, "a", "note", 1, timeout_ms=100, stamp_ms=now_ms - 200)
    assert type(late.error()) is DeadlineExceeded
    in_time = scene.start(Room, "a", "note", 2, timeout_ms=300, stamp_ms=now_ms - 200)
    assert in_time.result() == 1
    assert scene.call(Room, "a", "look") == [2]


def test_a_stamp_of_the_future_or_none_counts_from_the_arrival(make_scene: Any) -> None:
    scene = make_scene(Room)
    now_ms = int(scene.loop.time() * 1000)
    scene.start(Room, "a", "hold")
    waiting = [
        scene.start(Room, "a", "note", 1, timeout_ms=1_000, stamp_ms=stamp)
        for stamp in (0, now_ms + 60_000_000)
    ]
    scene.advance(0.9)
    assert not any(call.answered for call in waiting)
    scene.advance(0.2)
    assert [type(call.error()) for call in waiting] == [DeadlineExceeded] * 2


def test_a_call_that_waits_past_its_deadline_is_answered_within_a_tick_and_never_runs(
    make_scene: Any,
) -> None:
    scene = make_scene(Room)
    scene.start(Room, "a", "hold")
    short = scene.start(Room, "a", "note", "short", timeout_ms=1_000)
    long = scene.start(Room, "a", "note", "long", timeout_ms=5_000)
    scene.advance(0.99)
    assert not short.answered
    scene.advance(0.06)
    assert type(short.error()) is DeadlineExceeded
    scene.resident(Room, "a").instance.go.set()
    scene.settle()
    assert long.result() == 1
    assert scene.call(Room, "a", "look") == ["long"]


def test_a_call_whose_deadline_passed_is_not_started_even_when_no_tick_came_between(make_scene: Any) -> None:
    scene = make_scene(Room)
    scene.start(Room, "a", "hold")
    late = scene.start(Room, "a", "note", "late", timeout_ms=1_000)
    after = scene.start(Room, "a", "look")
    scene.loop.now += 2
    scene.resident(Room, "a").instance.go.set()
    scene.settle()
    assert type(late.error()) is DeadlineExceeded
    assert after.result() == []


@pytest.mark.parametrize(
    ("timeout_ms", "seconds"), [(0, 30), (-5, 30), (7_200_000, 3_600), (3_600_000, 3_600), (2**70, 3_600)]
)
def test_a_timeout_out_of_bounds_means_the_default_or_the_longest(
    make_scene: Any, timeout_ms: int, seconds: int
) -> None:
    scene = make_scene(Room, limits=Limits(turn_max_s=10_000, mailbox_age_max_s=10_000))
    scene.start(Room, "a", "hold")
    waiting = scene.start(Room, "a", "note", 1, timeout_ms=timeout_ms)
    scene.advance(seconds - 0.1)
    assert not waiting.answered
    scene.advance(0.2)
    assert type(waiting.error()) is DeadlineExceeded


# --- full mailboxes


def test_a_full_mailbox_refuses_at_once_while_a_neighbour_is_served(make_scene: Any) -> None:
    scene = make_scene(Room)
    scene.start(Room, "slow", "hold")
    sent = []
    for _ in range(5):
        with scene.one_message():
            sent += [scene.start(Room, "slow", "note", 1) for _ in range(2_000)]
    refused = [call for call in sent if call.answered]
    assert len(refused) == 9_000
    error = refused[0].error()
    assert type(error) is Overloaded
    assert error.limit == "mailbox_calls_max"
    assert scene.call(Room, "neighbour", "note", 1) == 1
    scene.resident(Room, "slow").instance.go.set()
    scene.settle()
    assert results(sent[:1_000]) == list(range(1, 1_001))
    assert sent[:1_000] == [call for call in sent if call not in refused]


def test_waiting_calls_are_bounded_by_bytes_and_by_age(make_scene: Any) -> None:
    scene = make_scene(Room, limits=Limits(mailbox_bytes_max=1_000, mailbox_age_max_s=5))
    scene.start(Room, "a", "hold")
    fits = scene.start(Room, "a", "note", "x" * 500)
    too_much = scene.start(Room, "a", "note", "x" * 500)
    assert not fits.answered
    assert getattr(too_much.error(), "limit", None) == "mailbox_bytes_max"
    scene.advance(6)
    too_late = scene.start(Room, "a", "note", 1)
    assert getattr(too_late.error(), "limit", None) == "mailbox_age_max_s"


def test_a_large_call_counts_with_its_own_size_among_many_small_ones(make_scene: Any) -> None:
    scene = make_scene(Room, limits=Limits(mailbox_bytes_max=250_000))
    scene.start(Room, "a", "hold")
    sent = []
    for _ in range(3):
        with scene.one_message():
            sent.append(scene.start(Room, "a", "note", "x" * 100_000))
            for number in range(50):
                scene.start(Room, str(number), "note", 1)
    assert [call.answered for call in sent] == [False, False, True]
    assert type(sent[2].error()) is Overloaded


def test_waiting_calls_of_many_objects_start_in_bounded_portions(make_scene: Any) -> None:
    scene: Scene = make_scene(Room, limits=Limits(start_batch_turns=10, uncommitted_bytes_max=100))
    for number in range(60):
        scene.call(Room, str(number), "look")
    scene.start(Room, "full", "write", 1)
    calls = [scene.start(Room, str(number), "note", 1) for number in range(60)]
    scene.loop.call_soon(scene.jobs.popleft())
    portions = []
    while not all(call.answered for call in calls):
        before = scene.host.turns
        scene.loop.call_soon(scene.loop.stop)
        scene.loop.run_forever()
        portions.append(scene.host.turns - before)
    assert [portion for portion in portions if portion] == [10] * 6


# --- peers that send one call a message


def test_a_raw_peer_gets_each_reply_in_a_message_of_its_own_under_its_calls_sequence(make_scene: Any) -> None:
    scene = make_scene(Room)
    raw = scene.peer(b"raw", raw=True)
    calls = [scene.start(Room, "a", "note", number, peer=raw) for number in range(3)]
    assert results(calls) == [1, 2, 3]


@pytest.mark.parametrize("sequence", [-1, 2**64, 2**80])
def test_a_raw_peer_with_a_sequence_that_fits_no_header_harms_only_itself(
    make_scene: Any, sequence: int
) -> None:
    scene = make_scene(Room)
    raw = scene.peer(b"raw", raw=True)
    item = scene.item(Room, "a", "note", 1)
    scene.send([sequence, *item[1:]], peer=raw)
    assert scene.replies_to(b"raw") == [[sequence, 0, 1]]
    assert scene.start(Room, "a", "note", 1, peer=raw).result() == 2
    assert scene.call(Room, "a", "note", 1) == 3
