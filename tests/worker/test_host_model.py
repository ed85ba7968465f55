"""Random stories of a worker, each step followed by a look at what may never be otherwise.

Whatever calls, commits, failures, aborts, evictions, deadlines and full queues coincide:

- no two turns of one object run at once;
- what was acknowledged is on disk already, and a read that was answered saw nothing that is not;
- each call is answered once; what succeeded took effect once, what failed or did not run never;
- calls of one caller to one object took effect in the order in which they were made.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import DurableObject, Limits, NotExecuted, RemoteError, durable
from perdure_worker.peers import Peer
from worker.host_scene import Scene, Sent, take_time

NAMES = ["a", "b", "c", "d"]
STEPS = 200
LIMITS = Limits(
    mailbox_calls_max=8,
    uncommitted_bytes_max=1_500,
    commit_group_bytes_max=700,
    start_batch_turns=3,
    turn_max_s=5,
    start_backoff_max_s=0.5,
)


class Story:
    """What the objects of one run share with its test."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.inside: Counter[str] = Counter()
        self.starts = 0


STORY: list[Story] = []


class Ledger(DurableObject):
    done: list[int] = durable(default_factory=list)

    async def on_start(self) -> None:
        story = STORY[-1]
        story.starts += 1
        with self._alone():
            if story.random.random() < 0.3:
                await take_time(0.1)
            if story.random.random() < 0.1:
                self.done.append(-1)
                raise ValueError("a start that fails")

    def _alone(self) -> Any:
        return _Alone(str(self.id.name))

    async def note(self, number: int, seconds: float, end: str) -> int:
        with self._alone():
            self.done.append(number)
            self.storage.put(str(number), number)
            if seconds:
                await take_time(seconds)
            if end == "raise":
                raise LookupError("undone")
            if end == "abort":
                self.ctx.abort("enough")
            if end == "sync":
                await self.storage.sync()
            return len(self.done)

    async def pass_on(self, number: int, other: str) -> int:
        with self._alone():
            self.done.append(number)
            await self.ctx.get(Ledger, other).note(number + 1_000_000, 0, "")
            return len(self.done)

    async def read(self, seconds: float) -> list[int]:
        with self._alone():
            if seconds:
                await take_time(seconds)
            return self.done


class _Alone:
    def __init__(self, name: str) -> None:
        self.name = name
        self.inside = STORY[-1].inside

    def __enter__(self) -> None:
        self.inside[self.name] += 1
        assert self.inside[self.name] == 1, f"two turns of {self.name} at once"

    def __exit__(self, *_: object) -> None:
        self.inside[self.name] -= 1


@dataclass
class Made:
    """A call of the story."""

    sent: Sent
    name: str
    method: str
    number: int
    other: str = ""
    commits: bool = False
    """Whether it has a commit point before its end: what was before that stays when it fails."""
    checked: bool = False


def act(scene: Scene, story: Story, made: list[Made], peers: list[Peer]) -> None:
    """One step."""
    pick, number = story.random.random(), len(made)
    name, peer = story.random.choice(NAMES), story.random.choice(peers)
    timeout_ms = story.random.choice([0, 0, 150, 2_000])
    if pick < 0.45:
        seconds, end = (
            story.random.choice([0, 0, 0.1]),
            story.random.choice(["", "", "raise", "abort", "sync"]),
        )
        sent = scene.start(Ledger, name, "note", number, seconds, end, peer=peer, timeout_ms=timeout_ms)
        made.append(Made(sent, name, "note", number, commits=end == "sync"))
    elif pick < 0.55:
        other = story.random.choice(NAMES)
        sent = scene.start(Ledger, name, "pass_on", number, other, peer=peer, timeout_ms=timeout_ms)
        made.append(Made(sent, name, "pass_on", number, other, commits=True))
    elif pick < 0.7:
        sent = scene.start(Ledger, name, "read", story.random.choice([0, 0.05]), peer=peer)
        made.append(Made(sent, name, "read", number))
    elif pick < 0.85:
        if scene.jobs:
            scene.commit_one()
    elif pick < 0.95:
        scene.advance(story.random.choice([0.05, 0.3, 2]))
    else:
        scene.do(scene.host.evict_idle)


def check(scene: Scene, made: list[Made]) -> None:
    """What may be seen outside at this moment."""
    disk = {name: scene.fields(Ledger, name).get("done", []) for name in NAMES}
    for call in made:
        if call.checked or call.sent.reply is None:
            continue
        call.checked = True
        if call.sent.reply[1] != 0:
            continue
        if call.method == "read":
            seen = call.sent.result()
            assert disk[call.name][: len(seen)] == seen, "a read was answered with what is not on disk"
        else:
            assert call.number in disk[call.name], "an acknowledged write is not on disk"
        if call.method == "pass_on":
            assert call.number + 1_000_000 in disk[call.other]


def check_end(scene: Scene, made: list[Made], peers: list[Peer]) -> None:
    """What is there when everything has ended."""
    for name in NAMES:
        done = scene.fields(Ledger, name).get("done", [])
        assert len(done) == len(set(done)), "a call took effect twice"
        assert -1 not in done, "a failed start left a trace"
        mine = [call for call in made if call.name == name and call.method != "read"]
        for call in mine:
            outcome = call.sent.reply
            assert outcome is not None, "a call was never answered"
            error = None if outcome[1] == 0 else call.sent.error()
            assert error is None or isinstance(error, NotExecuted | RemoteError)
            if error is None:
                assert call.number in done
            elif isinstance(error, NotExecuted) or not call.commits:
                assert call.number not in done
        for peer in peers:
            order = [call.number for call in mine if call.sent._peer is peer and call.number in done]
            assert order == sorted(order, key=done.index), "calls of one caller overtook each other"
        assert scene.values(Ledger, name).keys() == {str(n) for n in done if n in _noted(made)}


def _noted(made: list[Made]) -> set[int]:
    own = {call.number for call in made if call.method == "note"}
    return own | {call.number + 1_000_000 for call in made if call.method == "pass_on"}


@pytest.mark.parametrize("seed", range(25))
def test_whatever_coincides_turns_are_serial_and_acknowledged_is_durable(make_scene: Any, seed: int) -> None:
    story = Story(seed)
    STORY[:] = [story]
    scene: Scene = make_scene(Ledger, limits=LIMITS, idle_evict_s=1, live_objects_max=3)
    peers = [scene.peer(b"one"), scene.peer(b"two")]
    made: list[Made] = []
    for _ in range(STEPS):
        act(scene, story, made, peers)
        check(scene, made)
    for _ in range(80):
        scene.commit()
        scene.advance(1)
        check(scene, made)
    check_end(scene, made, peers)
    assert story.starts > len(NAMES)
    assert len(scene.host.gate) == scene.host.busy == len(scene.host._expiry) == 0
    assert not scene.caller.pending
