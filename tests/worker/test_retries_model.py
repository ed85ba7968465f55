"""Random stories of clients that lose answers and of workers that die: every call takes effect once.

Whatever retries, deaths, evictions, forgotten windows and pruned records coincide:

- no call takes effect twice, and one that was answered has taken effect;
- all answers of one call are the same;
- at the end every call that is sent again until it is answered is answered.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import DurableObject, Limits, durable
from perdure.errors import NotExecuted, OutcomeUnknown, from_wire
from worker.host_scene import Scene, take_time

NAMES = ("a", "b", "c")
PASSED_ON = 1_000_000


class Ledger(DurableObject):
    """Notes numbers; a number that is there twice is a call that took effect twice."""

    done: list[int] = durable(default_factory=list)

    async def note(self, number: int, how: str, other: str) -> int:
        if how == "slow":
            await take_time(0.2)
        if how == "pass on":
            await self.ctx.get(Ledger, other).note(PASSED_ON + number, "", "")
        if how == "sync":  # what a turn commits before its end is committed again when it runs again
            self.storage.put("seen", number)
            await self.storage.sync()
        self.done.append(number)
        return number * 10


class Client:
    """Sends calls again until they are answered, and tells which have ended."""

    def __init__(self, number: int, tells: bool) -> None:
        self.id = bytes([number + 1]) * 16
        self.connection = b"client %d" % number
        self.tells = tells
        self.flushes = 0
        self.open: dict[int, list[Any]] = {}
        self.answers: dict[int, Any] = {}
        self.sequence = number * 1_000

    def head(self) -> Any:
        if not self.tells:
            return self.id
        self.flushes += 1
        *old, low = [*sorted(self.open)[:2], min(sorted(self.open)[2:], default=self.sequence + 1)]
        return [self.id, self.flushes, self.sequence, low, *old]

    def call(self, scene: Scene, name: str, how: str, other: str) -> None:
        item = scene.item(Ledger, name, "note", 0, how, other)
        self.sequence += 1
        item[0] = self.sequence
        item[5][0] = self.sequence
        self.open[self.sequence] = item
        scene.send(item, head=self.head(), peer=scene.peer(self.connection))

    def retry(self, scene: Scene, pick: int) -> None:
        if self.open:
            item = self.open[sorted(self.open)[pick % len(self.open)]]
            scene.send(item, head=self.head(), peer=scene.peer(self.connection))

    def take(self, scene: Scene) -> None:
        """Reads what has been answered; the calls have ended then."""
        for sequence, status, payload in scene.replies_to(self.connection):
            if status == 0:
                known = self.answers.setdefault(sequence, payload)
                assert known == payload, "two answers of one call differ"
                self.open.pop(sequence, None)
            else:  # it waited past its deadline, or has ended
                assert status == 2
                assert isinstance(from_wire(*payload), NotExecuted | OutcomeUnknown)
        scene.replies_to(self.connection).clear()


STEP = st.tuples(
    st.sampled_from(["call", "call", "call", "retry", "retry", "disk", "take", "take", "time", "kill"]),
    st.integers(0, 2),
    st.sampled_from(NAMES),
    st.sampled_from(["", "", "slow", "sync", "pass on"]),
    st.integers(0, 5),
)


class Story:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.clients = [Client(0, tells=True), Client(1, tells=True), Client(2, tells=False)]
        self.scene = Scene(Ledger, limits=limits, idle_evict_s=1)

    def step(self, action: str, who: int, name: str, how: str, pick: int) -> None:
        client = self.clients[who]
        if action == "call":
            # Never in a circle: objects that wait for each other in different chains do so until a deadline.
            client.call(self.scene, name, how, chr(ord(name) + 1))
        elif action == "retry":
            client.retry(self.scene, pick)
        elif action == "disk":
            if self.scene.jobs:
                self.scene.commit_one()
        elif action == "take":
            client.take(self.scene)
        elif action == "time":
            self.scene.advance((0.1, 0.3, 1.0, 2.5, 5.0, 5.0)[pick])
            self.scene.do(self.scene.host.evict_idle)
        else:
            self.kill()
        self.check()

    def kill(self) -> None:
        """What is on disk is all that is left of the worker, and no answer that was on its way arrives."""
        disk = self.scene.disk.copy()
        self.scene.close()
        self.scene = Scene(Ledger, limits=self._limits, idle_evict_s=1, disk=disk)

    def check(self) -> None:
        done = Counter(n for name in NAMES for n in self.scene.fields(Ledger, name).get("done", []))
        assert not done or max(done.values()) == 1, "a call took effect twice"
        for client in self.clients:
            for sequence, answer in client.answers.items():
                assert answer == sequence * 10
                assert done[sequence] == 1, "an answered call has not taken effect"

    def end(self) -> None:
        for _ in range(40):
            for client in self.clients:
                for pick in range(len(client.open)):
                    client.retry(self.scene, pick)
            self.scene.advance(0.3)
            self.scene.commit()
            self.check()
            for client in self.clients:
                client.take(self.scene)
            self.check()
            if not any(client.open for client in self.clients):
                self.scene.close()
                return
        raise AssertionError("a call is never answered")


@settings(max_examples=60, deadline=None, database=None)
@given(
    steps=st.lists(STEP, max_size=60), rows=st.sampled_from([1, 2, 3, 1_024]), known=st.sampled_from([1, 9])
)
def test_every_call_takes_effect_once_whatever_coincides(steps: list[Any], rows: int, known: int) -> None:
    story = Story(
        Limits(reply_windows_max=2, reply_log_rows=rows, clients_known_max=known, commit_group_bytes_max=400)
    )
    for step in steps:
        story.step(*step)
    story.end()


@pytest.mark.parametrize("action", ["kill", "time"])
def test_a_lost_answer_is_found_again_after(action: str) -> None:
    story = Story(Limits())
    story.step("call", 0, "a", "", 0)
    story.scene.commit()
    story.scene.replies_to(b"client 0").clear()
    story.step(action, 0, "a", "", 4)
    story.end()
    assert story.clients[0].answers == {1: 10}
