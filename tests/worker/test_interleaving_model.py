"""Random interleavings of turns, blocks, tasks and failures, against a model of what must be kept.

Each write is a number that no other write has.  The methods keep books beside the object: what a span wrote
is kept when it suspends or ends, and is not when it raises.  Whatever coincides:

- the object's list has what was kept, in that order, and its storage the same numbers;
- what an answered call wrote is on disk;
- nothing runs beside a serial turn, and nobody but the holder inside of its exclusive block;
- calls start in the order of their arrival.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import DurableObject, Limits, durable, interleaved
from worker.host_scene import Scene, Sent, take_time

GATES = 3
LIMITS = Limits(turn_max_s=5, mailbox_calls_max=1_000, start_backoff_max_s=0.1)


class Books:
    """What should be so."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.kept: list[int] = []
        self.written: defaultdict[int, list[int]] = defaultdict(list)
        """By call: what it wrote, and was kept."""
        self.started: list[int] = []
        self.inside: set[int] = set()
        self.serial: int | None = None
        self.holder: int | None = None
        self.mistakes: list[str] = []
        self.gates = [asyncio.Event() for _ in range(GATES)]

    def look(self, call: int) -> None:
        """A span of this call runs now."""
        if self.serial not in (None, call):
            self.mistakes.append(f"{call} runs beside the serial {self.serial}")
        if self.serial == call and self.inside:
            self.mistakes.append(f"the serial {call} runs beside {self.inside}")
        if self.holder not in (None, call):
            self.mistakes.append(f"{call} runs in the block of {self.holder}")

    def keep(self, call: int, pending: list[int]) -> None:
        self.kept += pending
        self.written[call] += pending
        pending.clear()


BOOKS: list[Books] = []


class Actor(DurableObject):
    done: list[int] = durable(default_factory=list)

    def write(self) -> int:
        number = next(BOOKS[0].numbers)
        self.storage.put(str(number), number)
        self.done.append(number)
        return number

    @interleaved
    async def beside(self, call: int, steps: list[Any], nested: bool = False) -> None:
        books = BOOKS[0]
        if not nested:
            books.started.append(call)
        books.inside.add(call)
        try:
            await self._run(call, steps)
        finally:
            books.inside.discard(call)

    async def alone(self, call: int, steps: list[Any]) -> None:
        books = BOOKS[0]
        books.started.append(call)
        books.serial = call
        try:
            await self._run(call, steps)
        finally:
            books.serial = None

    async def _run(self, call: int, steps: list[Any]) -> None:
        pending: list[int] = []
        await self._act(call, steps, pending)
        BOOKS[0].keep(call, pending)

    async def _act(self, call: int, steps: list[Any], pending: list[int]) -> None:
        books = BOOKS[0]
        serial = books.serial == call
        for step, *rest in steps:
            books.look(call)
            if step == "write":
                pending.append(self.write())
            elif step == "wait":
                if not serial:  # a suspended serial turn keeps nothing yet
                    books.keep(call, pending)
                await books.gates[rest[0]].wait()
            elif step == "sync":
                books.keep(call, pending)
                await self.storage.sync()
            elif step == "raise":
                raise LookupError(str(call))
            elif step == "abort":
                self.ctx.abort("enough")
            elif step == "task" and not serial:
                books.keep(call, pending)
                await asyncio.create_task(self._in_task(call, rest[0]))
            elif step == "call" and not serial:
                books.keep(call, pending)
                await self.ctx.get(Actor, "a").beside(-call, [["write"]], True)
            elif step == "block" and not serial:
                books.keep(call, pending)
                await take_time(0)
                await self._block(call, rest[0], pending)
        books.look(call)

    async def _in_task(self, call: int, gate: int) -> None:
        await BOOKS[0].gates[gate].wait()
        BOOKS[0].keep(call, [self.write()])

    async def _block(self, call: int, steps: list[Any], pending: list[int]) -> None:
        books = BOOKS[0]
        async with self.ctx.exclusive():
            books.look(call)
            books.holder = call
            try:
                await self._act(call, steps, pending)
            finally:
                books.look(call)
                books.holder = None


gates = st.integers(0, GATES - 1)
simple = st.one_of(
    st.just(["write"]),
    st.tuples(st.just("wait"), gates).map(list),
    st.just(["sync"]),
    st.just(["raise"]),
)
blocks = st.tuples(st.just("block"), st.lists(simple, max_size=3)).map(list)
tasks = st.tuples(st.just("task"), gates).map(list)
steps_of_turns = st.lists(
    st.one_of(simple, simple, simple, blocks, tasks, st.just(["call"]), st.just(["abort"])), max_size=6
)
acts = st.one_of(
    st.tuples(st.sampled_from(["beside", "beside", "beside", "alone"]), steps_of_turns),
    st.tuples(st.just("open"), gates),
    st.just(("commit",)),
    st.tuples(st.just("advance"), st.sampled_from([0.5, 3])),
)


def open_gate(scene: Scene, gate: int) -> None:
    event, BOOKS[0].gates[gate] = BOOKS[0].gates[gate], asyncio.Event()
    scene.do(event.set)


def check(scene: Scene, calls: dict[int, Sent]) -> None:
    assert BOOKS[0].mistakes == []
    on_disk = set(scene.fields(Actor, "a").get("done", []))
    for call, sent in calls.items():
        if sent.reply is not None and sent.reply[1] == 0:
            assert on_disk.issuperset(BOOKS[0].written[call])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(story=st.lists(acts, max_size=25))
def test_whatever_coincides_what_spans_wrote_is_kept_and_nothing_else(story: list[Any]) -> None:
    BOOKS[:] = [Books()]
    scene = Scene(Actor, limits=LIMITS)
    calls: dict[int, Sent] = {}
    try:
        for number, (act, *rest) in enumerate(story, 1):
            if act == "open":
                open_gate(scene, rest[0])
            elif act == "commit":
                scene.commit()
            elif act == "advance":
                scene.advance(rest[0])
            else:
                calls[number] = scene.start(Actor, "a", act, number, rest[0], timeout_ms=3_000_000)
            check(scene, calls)
        for _ in range(12):
            for gate in range(GATES):
                open_gate(scene, gate)
            scene.commit()
            scene.advance(3)
            check(scene, calls)
        check_end(scene, calls)
    finally:
        scene.close()


def check_end(scene: Scene, calls: dict[int, Sent]) -> None:
    books = BOOKS[0]
    for _ in range(len(calls)):
        scene.advance(6)
        scene.commit()
    assert all(sent.answered for sent in calls.values())
    assert scene.fields(Actor, "a").get("done", []) == books.kept
    assert scene.values(Actor, "a").keys() == {str(number) for number in books.kept}
    assert books.started == sorted(books.started)
    assert scene.host.busy == len(scene.host.gate) == len(scene.host._expiry) == 0
    if scene.is_live(Actor, "a"):
        assert scene.resident(Actor, "a").inside is None
