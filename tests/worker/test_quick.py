"""The short cut for ordinary turns and the general way give the same, whatever calls come in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import DurableObject, Limits, durable, interleaved
from perdure_storage import keys
from perdure_storage.reply_log import fold, read_client
from perdure_worker import quick
from worker.host_scene import Scene, Sent, take_time

ME = b"m" * 16
NAMES = ("a", "b")
KEPT: list[Any] = []


class Everything(DurableObject):
    number: int = durable(0)
    text: str = durable("")
    flag: bool = durable(False)
    real: float = durable(0.0)
    any: int | str | None = durable(None)
    items: list[int] = durable(default_factory=list)

    async def set(self, field: str, value: Any) -> Any:
        setattr(self, field, value)
        return value

    async def set_two(self, number: int, text: str) -> str:
        self.number, self.text = number, text
        return text

    async def look(self) -> list[Any]:
        return [self.number, self.text, self.flag, self.real, self.any, self.items]

    async def count(self, by: int = 1) -> int:
        self.number += by
        return self.number

    async def count_and_put(self) -> int:
        self.number += 1
        self.storage.put("key", self.number)
        return self.number

    async def wipe(self) -> None:
        await self.storage.delete_all()

    async def fail(self) -> int:
        self.number += 1
        raise ValueError("no")

    async def slow(self) -> int:
        self.number += 1
        await take_time(0.1)
        return self.number

    async def wrong_result(self) -> int:
        self.number += 1
        return "text"  # type: ignore[return-value]

    def plain(self, text: str) -> str:
        self.text = text
        return text

    @interleaved
    async def set_beside(self, number: int) -> int:
        self.number = number
        return number

    async def delete_a_field(self) -> int:
        del self.number
        return 1

    async def no_annotation(self, value):  # type: ignore[no-untyped-def]
        return value


class Numbers(DurableObject):
    """All of its turns are ordinary."""

    number: int = durable(0)
    text: str = durable("")
    real: float = durable(0.0)

    set = Everything.set
    count = Everything.count
    set_two = Everything.set_two
    slow = Everything.slow
    fail = Everything.fail
    count_and_put = Everything.count_and_put
    wipe = Everything.wipe
    plain = Everything.plain
    set_beside = Everything.set_beside
    delete_a_field = Everything.delete_a_field

    def count_plainly(self) -> int:
        self.number += 1
        return self.number

    async def count_and_go(self) -> int:
        self.number += 1
        self.ctx.get(Numbers, "other").count()
        return self.number

    async def keep_the_task(self) -> int:
        KEPT.append(asyncio.current_task())
        return len(KEPT)

    async def cancel_the_kept(self) -> int:
        self.number += KEPT.pop().cancel()
        return self.number

    async def wrong_result(self) -> int:
        self.number += 1
        return "text"  # type: ignore[return-value]

    async def abort_after_all(self) -> int:
        self.number += 1
        try:
            self.ctx.abort("no")
        except BaseException:
            return self.number


VALUES = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.booleans(),
    st.sampled_from(["", "x", "\ud800", "y" * 20_000]),
    st.sampled_from([0.0, -0.0, 1.0]),
    st.none(),
    st.just([1, 2]),
)
ODD = [
    "delete_a_field",
    "count_and_put",
    "count_and_go",
    "abort_after_all",
    "wipe",
    "fail",
    "slow",
    "unknown",
]
CALLS = st.one_of(
    st.tuples(st.just("set"), st.tuples(st.sampled_from(["number", "text", "real"]), VALUES)),
    st.tuples(st.just("count"), st.one_of(st.just(()), st.tuples(VALUES), st.tuples(VALUES, VALUES))),
    st.tuples(st.just("plain"), st.tuples(st.sampled_from(["", "x", 5, "y" * 2_000]))),
    st.tuples(st.just("set_beside"), st.tuples(st.integers(0, 2))),
    st.tuples(st.just("set_two"), st.tuples(st.integers(0, 2), st.sampled_from(["", "x"]))),
    st.tuples(st.sampled_from(ODD), st.just(())),
)
MORE_CALLS = st.one_of(
    CALLS,
    st.tuples(st.just("set"), st.tuples(st.sampled_from(["flag", "real", "any", "items"]), VALUES)),
    st.tuples(st.sampled_from(["look", "wrong_result"]), st.just(())),
    st.tuples(st.sampled_from(["plain", "no_annotation"]), st.tuples(VALUES)),
)
STEPS = st.lists(
    st.tuples(st.sampled_from(NAMES), CALLS, st.sampled_from(["send", "send", "keep", "commit", "time"])),
    max_size=25,
)


def wire_safe(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple("" if arg == "\ud800" else arg for arg in args)


def story(cls: type[DurableObject], steps: list[Any]) -> Any:
    """All that anybody sees of these calls."""
    scene = Scene(cls, limits=Limits(value_bytes_max=1_000))
    sent: list[Sent] = []
    waiting: list[Any] = []
    flush = 0
    order: list[int] = []
    for number, (name, (method, args), after) in enumerate(steps, 1):
        item = scene.item(cls, name, method, *wire_safe(args), timeout_ms=5_000)
        waiting.append([number, *item[1:]])
        sent.append(Sent(scene, scene.client, number))
        if after == "keep":
            continue
        flush += 1
        scene.send(*waiting, head=[ME, flush, number, max(1, number - 3)])
        waiting.clear()
        if after == "commit":
            scene.commit()
        elif after == "time":
            scene.advance(0.2)
        order.append(sum(call.answered for call in sent))
    scene.advance(1.0)
    scene.commit()
    fold(scene.engine, 0)
    told = read_client(scene.engine, ME)
    outcomes = [call.reply[:2] if call.reply and call.reply[1] else call.reply for call in sent]
    own = keys.prefix_end(keys.SHARD_REGION)
    stored = scene.disk.between(own, b"\xff")
    records = told.records if told is not None else {}
    turns = scene.host.turns
    live = {
        resident.name: (resident.saved, resident.turn, resident.named)
        for resident in scene.host.live.values()
    }
    scene.close()
    return outcomes, stored, records, turns, live, order


def both_ways(cls: type[DurableObject], steps: list[Any]) -> None:
    quickly = story(cls, steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick, "SEQUENCE_END", 0)  # no call is ordinary
        generally = story(cls, steps)
    assert quickly == generally
    assert repr(quickly[:4]) == repr(generally[:4])  # also of what kind they are


@settings(max_examples=80, deadline=None, database=None)
@given(steps=STEPS)
def test_ordinary_turns_end_as_they_would_the_general_way(steps: list[Any]) -> None:
    both_ways(Numbers, steps)


@settings(max_examples=40, deadline=None, database=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(NAMES), MORE_CALLS, st.sampled_from(["send", "commit"])), max_size=15
    )
)
def test_all_other_turns_do_so_too(steps: list[Any]) -> None:
    both_ways(Everything, steps)


@pytest.mark.parametrize("cls", [Numbers, Everything])
@pytest.mark.parametrize(
    "calls",
    [
        [("set", ("text", "y" * 2_000))],
        [("set", ("real", 0.0)), ("set", ("real", -0.0))],
        [("set", ("number", 1)), ("set", ("number", True))],
        [("set", ("text", 5)), ("set", ("text", "x"))],
        [("keep_the_task", ()), ("count", ()), ("cancel_the_kept", ()), ("slow", ())],
        *([(method, ())] for method in (*ODD, "wrong_result", "look")),
    ],
)
def test_every_turn_that_is_not_ordinary_ends_as_it_would_the_general_way(cls: Any, calls: Any) -> None:
    both_ways(cls, [("a", call, "send") for call in [("count", ()), ("count", ()), *calls, ("count", ())]])


def test_an_ordinary_turn_takes_the_short_cut(make_scene: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(Numbers)
    peer = scene.peer(b"another")

    def count(number: int) -> int:
        item = scene.item(Numbers, "a", "count", 2, timeout_ms=1_000)
        scene.send([number, *item[1:]], head=[ME, number, number, number], peer=peer)
        scene.commit()
        result: int = Sent(scene, peer, number).result()
        return result

    def refuse(*_: Any) -> Any:
        raise AssertionError("the general way")

    assert count(1) == 2
    monkeypatch.setattr(type(scene.host), "_on_call", refuse)
    monkeypatch.setattr(type(scene.host), "_finish", refuse)
    assert [count(2), count(3)] == [4, 6]


def test_plain_functions_and_calls_that_waited_end_in_the_short_cut(
    make_scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(Numbers)
    peer = scene.peer(b"another")

    def send(number: int, method: str, *args: Any) -> Sent:
        item = scene.item(Numbers, "a", method, *args, timeout_ms=5_000)
        scene.send([number, *item[1:]], head=[ME, number, number, 1], peer=peer)
        return Sent(scene, peer, number)

    ended: list[str] = []
    finish = type(scene.host)._finish

    def note(host: Any, resident: Any, turn: Any, result: Any) -> None:
        ended.append(turn[2].name)
        finish(host, resident, turn, result)

    send(1, "count")
    scene.commit()
    monkeypatch.setattr(type(scene.host), "_finish", note)
    calls = [send(2, "plain", "x"), send(3, "slow"), send(4, "count"), send(5, "plain", "y")]
    scene.advance(1.0)
    scene.commit()
    assert [call.result() for call in calls] == ["x", 2, 3, "y"]
    assert ended == ["slow"]
    assert scene.fields(Numbers, "a") == {"number": 3, "text": "y"}


@pytest.mark.parametrize("method", ["count", "plain"])
def test_ordinary_turns_wait_while_too_many_bytes_wait_for_the_disk(make_scene: Any, method: str) -> None:
    scene = make_scene(Numbers, limits=Limits(uncommitted_bytes_max=1_000))
    scene.call(Numbers, "a", "count")
    peer = scene.peer(b"another")
    calls = []
    for number in range(1, 60):
        args = [] if method == "count" else [f"text {number}"]
        item = scene.item(Numbers, "a", method, *args, timeout_ms=60_000)
        scene.send([number, *item[1:]], head=[ME, number, number, 1], peer=peer)
        calls.append(Sent(scene, peer, number))
    assert scene.host.paused
    assert scene.committer.uncommitted_bytes < 2_000
    scene.commit()
    results = [call.result() for call in calls]
    assert results == (list(range(2, 61)) if method == "count" else [f"text {n}" for n in range(1, 60)])


def test_calls_that_waited_wait_on_while_too_many_bytes_wait_for_the_disk(make_scene: Any) -> None:
    scene = make_scene(Numbers, limits=Limits(uncommitted_bytes_max=1_000))
    scene.call(Numbers, "a", "count")
    peer = scene.peer(b"another")
    items = [scene.item(Numbers, "a", method, timeout_ms=60_000) for method in ("slow", *["count"] * 200)]
    scene.send(*([n, *item[1:]] for n, item in enumerate(items, 1)), head=[ME, 1, 1, 1], peer=peer)
    scene.advance(1.0)
    assert scene.host.paused
    assert scene.committer.uncommitted_bytes < 4_000
    scene.commit()
    assert [Sent(scene, peer, n).result() for n in range(1, 202)] == list(range(2, 203))


@pytest.mark.parametrize("method", ["count", "count_plainly"])
def test_a_client_of_one_call_a_message_gets_one_reply_a_message(make_scene: Any, method: str) -> None:
    scene = make_scene(Numbers)
    scene.call(Numbers, "a", "count")
    peer = scene.peer(b"raw", raw=True)
    for number in (1, 2):
        item = scene.item(Numbers, "a", method, timeout_ms=5_000)
        scene.send([number, *item[1:]], head=[ME, number, number, 1], peer=peer)
    scene.commit()
    assert [Sent(scene, peer, number).result() for number in (1, 2)] == [2, 3]


def test_a_turn_that_deletes_a_durable_field_fails_and_leaves_it_as_it_was(make_scene: Any) -> None:
    scene = make_scene(Numbers)
    scene.call(Numbers, "a", "count")
    with pytest.raises(Exception, match="a durable field cannot be deleted"):
        scene.call(Numbers, "a", "delete_a_field")
    assert scene.call(Numbers, "a", "count") == 2
