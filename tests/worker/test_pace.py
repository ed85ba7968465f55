"""However much there is to do at once, the loop comes round: other clients and heartbeats have their turn."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from perdure import DurableObject, Limits, RemoteError, codec, interleaved
from perdure_worker.pace import Pace
from worker.host_scene import Scene, take_time
from worker.stepped_loop import SteppedLoop

MakeScene = Callable[..., Scene]
FLOOD, NEIGHBOUR = b"flood", b"neighbour"
ROUND_S = 0.15
"""What one iteration of the loop may take at most, with turns of 10 ms: slices of all who start turns."""


class Busy(DurableObject):
    """Its turns take their time of the loop's own clock."""

    def work(self, seconds: float) -> float:
        return use(seconds)

    async def nap(self) -> None:
        await take_time(1.0)

    async def nap_and_work(self, seconds: float) -> float:
        await take_time(1.0)
        return use(seconds)

    async def work_in_steps(self, seconds: float, steps: int) -> float:
        await take_time(1.0)
        for _ in range(steps):
            await asyncio.sleep(0)  # sleep: the span's end is what this is about
            use(seconds / steps)
        return use(0)


class Long(DurableObject):
    cancelled = 0

    async def outstay(self) -> None:
        try:
            await take_time(1_000)
        finally:
            Long.cancelled += 1

    @interleaved
    async def outstay_beside(self) -> None:
        await self.outstay()


class Slow(Busy):
    async def on_start(self) -> None:
        use(0.01)


def use(seconds: float) -> float:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteppedLoop)
    loop.now += seconds
    return loop.now


class Rounds:
    """When the loop came round."""

    def __init__(self, loop: SteppedLoop) -> None:
        self.times: list[float] = []
        self._loop = loop
        self._going = True
        self._note()

    def _note(self) -> None:
        self.times.append(self._loop.now)
        if self._going:
            self._loop.call_later(0.001, self._note)

    @property
    def longest(self) -> float:
        self._going = False
        times = [*self.times, self._loop.now]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@pytest.fixture
def scene(make_scene: MakeScene) -> Scene:
    return make_scene(Busy, Slow, limits=Limits(mailbox_calls_max=10_000))


def batch(*items: list[Any]) -> bytes:
    return codec.encode([b"x" * 16, *items])


def send_soon(scene: Scene, *bodies: bytes) -> None:
    """All of them in one iteration of the loop, as one read of the door."""

    def read() -> None:
        for body in bodies:
            scene.host.on_calls(scene.peer(FLOOD), body)
        scene._flush()

    scene.loop.call_soon(read)


def one_batch_of_many_objects(scene: Scene) -> int:
    items = [scene.item(Busy, f"o{number}", "work", 0.01, timeout_ms=600_000) for number in range(500)]
    send_soon(scene, batch(*items))
    return len(items)


def one_batch_of_one_object(scene: Scene) -> int:
    items = [scene.item(Busy, "one", "work", 0.004, timeout_ms=600_000) for _ in range(4_000)]
    send_soon(scene, batch(*items))
    return len(items)


def quick_ones_before_slow_ones(scene: Scene) -> int:
    items = [
        scene.item(Busy, f"o{number}", "work", 0.01 if number > 100 else 0.0, timeout_ms=600_000)
        for number in range(300)
    ]
    send_soon(scene, batch(*items))
    return len(items)


def many_messages_of_one_call(scene: Scene) -> int:
    items = [scene.item(Busy, f"o{number}", "work", 0.01, timeout_ms=600_000) for number in range(200)]
    send_soon(scene, *(batch(item) for item in items))
    return len(items)


def calls_that_waited_behind_a_turn(scene: Scene) -> int:
    items = [scene.item(Busy, "one", "nap")]
    items += [scene.item(Busy, "one", "work", 0.004, timeout_ms=600_000) for _ in range(900)]
    send_soon(scene, batch(*items))
    return len(items)


def turns_that_go_on_at_once(scene: Scene) -> int:
    items = [scene.item(Busy, f"o{number}", "nap_and_work", 0.01) for number in range(200)]
    send_soon(scene, batch(*items))
    return len(items)


def turns_that_go_on_in_steps(scene: Scene) -> int:
    items = [scene.item(Busy, f"o{number}", "work_in_steps", 0.02, 4) for number in range(200)]
    send_soon(scene, batch(*items))
    return len(items)


def objects_that_start(scene: Scene) -> int:
    items = [scene.item(Slow, f"o{number}", "work", 0.0, timeout_ms=600_000) for number in range(300)]
    send_soon(scene, batch(*items))
    return len(items)


LOADS = [
    one_batch_of_many_objects,
    one_batch_of_one_object,
    quick_ones_before_slow_ones,
    many_messages_of_one_call,
    calls_that_waited_behind_a_turn,
    turns_that_go_on_at_once,
    turns_that_go_on_in_steps,
    objects_that_start,
]


@pytest.mark.parametrize("load", LOADS)
def test_the_loop_comes_round_and_a_neighbour_is_answered_whatever_there_is_to_do_at_once(
    scene: Scene, load: Callable[[Scene], int]
) -> None:
    assert isinstance(scene.loop, SteppedLoop)
    rounds = Rounds(scene.loop)
    count = load(scene)
    asked: list[float] = []

    def ask() -> None:
        asked.append(scene.loop.time())
        item = scene.item(Busy, f"neighbour {len(asked)}", "work", 0.0)
        scene.host.on_calls(scene.peer(NEIGHBOUR), codec.encode([b"y" * 16, item]))
        scene._flush()

    scene.loop.call_soon(ask)
    scene.loop.call_later(1.001, ask)
    scene.advance(1.01)
    scene.settle()
    scene.commit()
    assert rounds.longest < ROUND_S
    answered = [reply[2] for reply in scene.replies_to(NEIGHBOUR)]
    assert len(answered) == 2
    assert all(later - earlier < 2 * ROUND_S for earlier, later in zip(asked, answered, strict=True))
    replies = scene.replies_to(FLOOD)
    assert len(replies) == count
    assert {reply[1] for reply in replies} == {0}


def test_a_batch_longer_than_a_mailbox_is_not_refused_for_having_to_wait(make_scene: MakeScene) -> None:
    scene = make_scene(Busy, limits=Limits(mailbox_calls_max=10))
    scene.call(Busy, "one", "work", 0.0)
    items = [scene.item(Busy, "one", "work", 0.004, timeout_ms=600_000) for _ in range(1_000)]
    send_soon(scene, batch(*items))
    scene.settle()
    replies = scene.replies_to(FLOOD)
    assert [reply[0] for reply in replies] == [item[0] for item in items]
    assert {reply[1] for reply in replies} == {0}


def test_neither_new_calls_nor_those_that_wait_keep_the_others_from_starting(scene: Scene) -> None:
    assert isinstance(scene.loop, SteppedLoop)
    scene.start(Busy, "waited for", "nap")
    waiting = scene.start(Busy, "waited for", "work", 0.0)
    items = [scene.item(Busy, f"o{number}", "work", 0.01, timeout_ms=600_000) for number in range(500)]
    scene.loop.call_later(1.0, scene.host.on_calls, scene.peer(FLOOD), batch(*items))
    began = scene.loop.now
    scene.advance(1.01)
    scene.commit()
    assert waiting.result() - began < 1 + 2 * ROUND_S


def test_a_call_that_fails_in_the_worker_itself_takes_no_other_with_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scene.host.run_turn

    def run_turn(resident: Any, *args: Any) -> None:
        if resident.name == "odd":
            raise SystemExit
        real(resident, *args)

    monkeypatch.setattr(scene.host, "run_turn", run_turn)
    for _ in range(2):  # as an object starts, and when it is there
        with scene.one_message():
            odd = scene.start(Busy, "odd", "work", 0.0)
            others = [scene.start(Busy, f"o{number}", "work", 0.0) for number in range(40)]
        assert type(odd.error()).__name__ == "OutcomeUnknown"
        assert all(call.answered for call in others)


def test_a_slice_begins_with_the_first_turn_and_ends_with_the_iteration() -> None:
    now = [100.0]
    wanted: list[int] = []
    pace = Pace(0.02, lambda: now[0], lambda: wanted.append(1))
    assert not pace.is_over()
    now[0] += 0.01
    assert pace.begin(now[0]) == pytest.approx(100.02)
    assert pace.half(now[0]) == pytest.approx(100.02)
    assert not pace.is_over()
    now[0] += 0.01
    assert not wanted
    assert pace.is_over()
    assert wanted == [1]
    pace.end()
    assert not pace.is_over()
    assert pace.half(now[0]) == pytest.approx(now[0] + 0.01)


@pytest.mark.parametrize("method", ["outstay", "outstay_beside"])
@pytest.mark.parametrize(("timeout_s", "limit_s"), [(1, 5), (60, 60)])
def test_a_turn_is_cut_at_its_limit_or_at_the_deadline_of_a_caller_that_waits_longer(
    make_scene: MakeScene, method: str, timeout_s: int, limit_s: int
) -> None:
    Long.cancelled = 0
    scene = make_scene(Long, limits=Limits(turn_max_s=5))
    cut = scene.start(Long, "a", method, timeout_ms=1_000 * timeout_s)
    scene.advance(limit_s - 0.1)
    assert not cut.answered
    scene.advance(0.2)
    scene.commit()
    raised = cut.error()
    assert isinstance(raised, RemoteError)
    assert raised.type_name == "perdure_worker.execution.TurnLimit"
    assert Long.cancelled == 1
