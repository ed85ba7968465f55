"""Durable sends of a whole host: rolled back, committed, delivered, found again by the next incarnation."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from perdure import (
    DurableObject,
    InvalidArgument,
    Limits,
    MessageTooLarge,
    Overloaded,
    RemoteError,
    StorageError,
    UnknownMethod,
    UnknownNamespace,
    blocking,
    durable,
)
from perdure_storage import keys
from perdure_worker.sends import due_at_ms
from worker.host_scene import Scene, take_time


class Ledger(DurableObject):
    """Writes down what arrives, with the time of the loop."""

    count: int = durable(0)

    async def note(self, what: Any) -> None:
        self.storage.put(f"{self.count:06}", what)
        self.count += 1

    async def add(self, by: int) -> None:
        self.count += by

    async def fail(self) -> None:
        raise ValueError("never")

    async def nap(self) -> None:
        await take_time(1.0)
        self.count += 1

    async def all(self) -> list[Any]:
        return list((await self.storage.list()).values())


class Sender(DurableObject):
    state: int = durable(0)

    def __init__(self) -> None:
        self.leftover: Any = None
        self.heard: list[Any] = []

    async def say(self, to: str, *what: Any) -> None:
        self.state += 1
        for word in what:
            assert self.ctx.send(Ledger, to).note(word) is None

    async def say_and_raise(self, to: str, what: Any) -> None:
        self.ctx.send(Ledger, to).note(what)
        self.state += 1
        raise RuntimeError("rolled back")

    async def say_sync_and_raise(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("before the commit point")
        await self.storage.sync()
        self.ctx.send(Ledger, to).note("after it")
        raise RuntimeError("rolled back")

    async def only_say(self, to: str, what: Any) -> None:
        self.ctx.send(Ledger, to).note(what)

    async def say_and_wait(self, to: str, what: Any) -> None:
        self.ctx.send(Ledger, to).note(what)
        await take_time(1.0)

    async def later(self, to: str, what: Any, seconds: float) -> None:
        self.ctx.send(Ledger, to, delay=seconds).note(what)

    async def at(self, to: str, what: Any, when: datetime) -> None:
        self.ctx.send(Ledger, to, at=when).note(what)

    async def call(self, namespace: str, method: str, *args: Any) -> None:
        getattr(self.ctx.send(namespace, "t"), method)(*args)

    async def misuse(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("good")
        self.ctx.send(Ledger, to).add("not a number")  # caught by nobody

    async def go_on_after_misuse(self, to: str) -> str:
        self.ctx.send(Ledger, to).note("good")
        try:
            self.ctx.send(Ledger, to).add("not a number")
        except InvalidArgument as error:
            return str(error)
        return ""

    async def to_itself(self, what: Any) -> None:
        self.ctx.send(Sender, str(self.id.name)).hear(what)
        self.heard.append("turn")

    async def hear(self, what: Any) -> None:
        self.heard.append(what)
        self.state += 1

    async def have_heard(self) -> list[Any]:
        return self.heard

    async def farewell(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("gone")
        await self.storage.delete_all()

    async def leave_a_task(self, to: str) -> None:
        async def late() -> None:
            await take_time(1.0)
            self.ctx.send(Ledger, to).note("late")

        self.leftover = asyncio.get_running_loop().create_task(late())

    async def error_of_the_task(self) -> str:
        return repr(self.leftover.exception())

    async def plan_and_roll_back(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("kept")
        storage: Any = self.storage
        before = dict(storage._writes)
        self.ctx.send(Ledger, to).note("rolled back")
        storage._writes = before  # what the end of a transaction does that raised

    async def keep_changing(self, to: str) -> None:
        words = ["as sent"]
        self.ctx.send(Ledger, to).note(words)
        words.append("changed afterwards")

    @blocking
    def from_a_thread(self, to: str) -> None:
        self.ctx.send(Ledger, to).note("thread")

    async def outbox(self) -> list[list[Any]]:
        return [[m.method, m.args, m.dead] for m in await self.ctx.outbox.list()]


def scene_of(**options: Any) -> Scene:
    return Scene(Ledger, Sender, **options)


def arrived(scene: Scene, name: str = "t") -> list[Any]:
    return list(scene.values(Ledger, name).values())


def later(scene: Scene, seconds: float) -> None:
    """Time passes in ticks, and the disk follows."""
    for _ in range(round(seconds / 0.05)):
        scene.advance(0.05)
        scene.commit()


def outbox_rows(scene: Scene) -> list[bytes]:
    """What is left of sends on disk: rows of outboxes and of the due index."""
    rows = [key for key, _ in scene.disk.between(keys.OBJECTS_REGION, keys.NAMES_REGION)]
    rows = [key for key in rows if keys.parse_object_row(key).kind == keys.OUTBOX]
    return rows + [key for key, _ in scene.disk.between(keys.DUE_REGION, keys.RESERVED_REGION)]


def restarted(scene: Scene) -> Scene:
    """The next incarnation on what is durable."""
    scene.close()
    return scene_of(disk=scene.disk)


# --- with the turn


def test_what_a_turn_sends_arrives_after_its_commit_in_order_and_leaves_nothing_behind() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say", "t", 1, 2, 3)
    assert arrived(scene) == []
    scene.commit()
    assert arrived(scene) == [1, 2, 3]
    assert outbox_rows(scene) == []
    scene.close()


def test_nothing_leaves_before_the_commit_is_durable() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say", "t", 1)
    assert not scene.is_live(Ledger, "t")
    scene.commit_one()
    assert scene.is_live(Ledger, "t")
    scene.close()


def test_a_turn_that_raises_sends_nothing() -> None:
    scene = scene_of()
    with pytest.raises(RemoteError):
        scene.call(Sender, "s", "say_and_raise", "t", "never")
    scene.call(Sender, "s", "say", "t", "later turn")
    assert arrived(scene) == ["later turn"]
    scene.close()


def test_what_was_sent_before_a_commit_point_is_sent_even_if_the_turn_raises_later() -> None:
    scene = scene_of()
    sent = scene.start(Sender, "s", "say_sync_and_raise", "t")
    scene.commit()
    assert isinstance(sent.error(), RemoteError)
    assert arrived(scene) == ["before the commit point"]
    scene.close()


def test_a_send_that_a_transaction_took_back_is_not_sent() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "plan_and_roll_back", "t")
    assert arrived(scene) == ["kept"]
    scene.close()


def test_a_send_is_no_commit_point() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say_and_wait", "t", "x")
    scene.commit()
    assert scene.disk.between(b"", b"\xff") == []
    later(scene, 1.1)
    assert arrived(scene) == ["x"]
    scene.close()


def test_a_bad_argument_fails_its_statement_and_with_it_the_turn() -> None:
    scene = scene_of()
    with pytest.raises(RemoteError, match=r"by"):
        scene.call(Sender, "s", "misuse", "t")
    assert arrived(scene) == []
    assert "Ledger.add()" in scene.call(Sender, "s", "go_on_after_misuse", "t")
    assert arrived(scene) == ["good"]
    scene.close()


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (("Ledger", "note", b"x" * 3_000_000), MessageTooLarge),
        (("Ledger", "on_start"), UnknownMethod),
        (("Nobody", "note", 1), UnknownNamespace),
    ],
)
def test_what_could_never_be_delivered_is_refused_at_once(call: Any, error: type[Exception]) -> None:
    scene = scene_of()
    with pytest.raises(RemoteError) as raised:
        scene.call(Sender, "s", "call", *call)
    assert raised.value.type_name.endswith(error.__name__)
    scene.close()


def test_arguments_are_those_of_the_moment_of_the_send() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "keep_changing", "t")
    assert arrived(scene) == [["as sent"]]
    scene.close()


def test_a_blocking_method_sends_from_its_thread() -> None:
    scene = scene_of()
    sent = scene.start(Sender, "s", "from_a_thread", "t")
    scene.wait(lambda: bool(scene.jobs))
    scene.commit()
    assert sent.answered
    assert arrived(scene) == ["thread"]
    scene.close()


def test_code_that_outlives_its_turn_cannot_send() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "leave_a_task", "t")
    later(scene, 1.1)
    assert "StorageError" in scene.call(Sender, "s", "error_of_the_task")
    assert arrived(scene) == []
    scene.close()


def test_an_object_that_sends_to_itself_hears_it_in_a_later_turn() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "to_itself", "echo")
    assert scene.call(Sender, "s", "have_heard") == ["turn", "echo"]
    scene.close()


def test_delete_all_keeps_what_was_sent_and_the_object_still_leaves_the_listing() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "say", "t", "first")
    assert scene.listed(Sender)
    scene.call(Sender, "s", "farewell", "t")
    assert arrived(scene) == ["first", "gone"]
    assert scene.listed(Sender) == []
    scene.close()


def test_an_object_that_only_sends_stores_nothing_of_itself() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "only_say", "t", "x")
    assert arrived(scene) == ["x"]
    assert scene.listed(Sender) == []
    scene.close()


class Starter(DurableObject):
    """Sends from its handlers."""

    async def on_start(self) -> None:
        self.ctx.send(Ledger, "t").note("start")

    async def alarm(self, alarm: Any) -> None:
        self.ctx.send(Ledger, "t").note("alarm")
        if alarm.attempt == 1:
            raise RuntimeError("rolled back")

    async def arm(self) -> None:
        self.storage.set_alarm(timedelta(seconds=1))


def test_handlers_send_as_methods_do() -> None:
    scene = Scene(Ledger, Starter)
    scene.call(Starter, "s", "arm")
    later(scene, 10.0)
    assert arrived(scene) == ["start", "alarm"]
    scene.close()


# --- restarts


def test_a_committed_send_that_has_not_left_goes_at_the_next_start() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say", "t", 1, 2)
    scene.jobs.popleft()()  # written, and the worker dies before it knows
    scene.jobs.clear()
    again = restarted(scene)
    again.advance(0.05)
    again.commit()
    assert arrived(again) == [1, 2]
    assert outbox_rows(again) == []
    again.close()


def test_an_uncommitted_send_is_gone_with_its_worker() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say", "t", 1)
    again = restarted(scene)
    later(again, 0.2)
    assert arrived(again) == []
    again.close()


def test_sends_after_a_restart_come_behind_those_before_it() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say", "t", 1, 2)
    scene.jobs.popleft()()
    scene.jobs.clear()
    again = restarted(scene)
    again.wall_step_s -= 3_600  # and the clock was set back meanwhile
    again.call(Sender, "s", "say", "t", 3)
    later(again, 0.2)
    assert arrived(again) == [1, 2, 3]
    again.close()


def test_sequences_grow_over_restarts_also_when_the_clock_is_set_back() -> None:
    scene = scene_of()
    sequences = []
    for back_s in (0, 3_600, 7_200):
        scene.wall_step_s -= back_s
        messages: list[Any] = []
        leave = scene.host.sends.leave
        scene.host.sends.leave = lambda sent, *_, m=messages, f=leave: (m.extend(sent), f(sent))  # type: ignore
        for number in range(3):
            scene.call(Sender, "s", "say", "t", number)
        sequences += [message.sequence for message in messages]
        scene = restarted(scene)
    assert sequences == sorted(set(sequences))
    assert len(sequences) == 9
    scene.close()


def test_a_target_keeps_the_record_of_a_send_for_days_so_that_a_sender_may_be_down_for_as_long() -> None:
    def records() -> list[bytes]:
        prefix = scene.resident(Ledger, "t").row_prefix() + keys.REPLY
        return [key[len(prefix) :] for key, _ in scene.disk.between(prefix, keys.prefix_end(prefix))]

    scene = scene_of()
    scene.call(Sender, "s", "say", "t", 1)
    scene.send(scene.item(Ledger, "t", "add", 0), head=[b"tells its ends!!", 1, 1])
    scene.commit()
    later(scene, 10.0)  # what nobody calls any more has left memory
    scene.wall_step_s += 2 * Limits.reply_named_ttl_s
    for number in range(64):  # new clients of an object look at its old records
        scene.send(scene.item(Ledger, "t", "add", 1), head=[bytes([4 * number]) * 16, 1, 1])
        scene.commit()
    (kept,) = [client for client in records() if client[0] % 4 or client[0] != client[1]]
    assert kept.endswith(b"send")
    scene.close()


def test_a_stopping_worker_sends_nothing_more() -> None:
    scene = scene_of()
    scene.start(Sender, "s", "say_and_wait", "t", "x")
    scene.do(scene.host.drain)
    later(scene, 1.1)
    assert scene.host.stats()["sends_in_flight"] == 0
    assert arrived(scene) == []
    again = restarted(scene)
    later(again, 0.1)
    assert arrived(again) == ["x"]
    again.close()


def test_an_object_with_pending_sends_may_leave_memory() -> None:
    scene = scene_of(idle_evict_s=1.0)
    scene.call(Sender, "s", "later", "t", "x", 60.0)
    later(scene, 2.0)
    scene.do(scene.host.evict_idle)
    assert not scene.is_live(Sender, "s")
    later(scene, 59.0)
    assert arrived(scene) == ["x"]
    assert not scene.is_live(Sender, "s")
    scene.close()


# --- time


def test_a_delayed_send_is_never_early_and_soon_after_its_time() -> None:
    scene = scene_of()
    later(scene, 0.1)  # it has looked at what is due, and nothing was
    scene.call(Sender, "s", "later", "t", "x", 2.0)
    later(scene, 1.95)
    assert arrived(scene) == []
    later(scene, 0.15)
    assert arrived(scene) == ["x"]
    assert outbox_rows(scene) == []
    scene.close()


def test_delayed_sends_go_in_the_order_of_their_times_and_others_do_not_wait() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "later", "t", "third", 2.0)
    scene.call(Sender, "s", "later", "t", "second", 1.0)
    scene.call(Sender, "s", "say", "t", "first")
    later(scene, 2.2)
    assert arrived(scene) == ["first", "second", "third"]
    scene.close()


def test_a_delayed_send_survives_a_restart() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "later", "t", "x", 30.0)
    again = restarted(scene)
    later(again, 29.0)
    assert arrived(again) == []
    later(again, 1.2)
    assert arrived(again) == ["x"]
    again.close()


def test_a_send_at_a_time_goes_by_the_wall_clock() -> None:
    scene = scene_of()
    when = datetime.fromtimestamp(scene.wall_clock() + 3_600, UTC)
    scene.call(Sender, "s", "at", "t", "x", when)
    later(scene, 0.2)
    assert arrived(scene) == []
    scene.wall_step_s += 3_600
    later(scene, 0.2)
    assert arrived(scene) == ["x"]
    scene.close()


def test_a_send_at_a_time_that_has_passed_goes_at_once() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "at", "t", "x", datetime(2001, 1, 1, tzinfo=UTC))
    assert arrived(scene) == ["x"]
    scene.close()


@pytest.mark.parametrize(
    ("delay", "at", "at_ms"),
    [
        (None, None, 0),
        (1.5, None, 1_001_500),
        (timedelta(milliseconds=2), None, 1_000_002),
        (0.0001, None, 1_000_001),
        (None, 2_000.0005, 2_000_001),
        (None, datetime.fromtimestamp(3_000, UTC), 3_000_000),
    ],
)
def test_times_are_milliseconds_rounded_up(delay: Any, at: Any, at_ms: int) -> None:
    assert due_at_ms(delay, at, 1_000_000_000) == at_ms


@pytest.mark.parametrize(
    ("delay", "at", "text"),
    [
        (1, 2, "not both"),
        (-1, None, "not negative"),
        (float("nan"), None, "delay="),
        ("1", None, "delay="),
        (True, None, "delay="),
        (None, datetime(2030, 1, 1), "time zone"),
        (None, float("inf"), "aware datetime"),
        (1e12, None, "9999"),
    ],
)
def test_what_is_no_time_is_refused(delay: Any, at: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        due_at_ms(delay, at, 0)


# --- failing targets


class Failing(DurableObject):
    async def go(self) -> None:
        self.ctx.send(Ledger, "t").fail()
        self.ctx.send(Ledger, "t").note("next")


def test_a_message_whose_target_raises_blocks_its_pair_until_it_is_dead() -> None:
    scene = Scene(Ledger, Sender, Failing, limits=Limits(send_attempts_max=3))
    scene.call(Failing, "f", "go")
    scene.call(Sender, "s", "say", "t", "other sender")
    assert arrived(scene) == ["other sender"]
    later(scene, 2.0)
    assert arrived(scene) == ["other sender", "next"]
    figures = scene.call_worker("stats", [])
    assert (figures["sends_dead"], figures["sends_delivered"]) == (1, 2)
    assert len(outbox_rows(scene)) == 1  # the dead one, out of the due index
    scene.close()


def test_a_dead_message_stays_dead_over_restarts() -> None:
    scene = Scene(Ledger, Sender, Failing, limits=Limits(send_attempts_max=1))
    scene.call(Failing, "f", "go")
    assert arrived(scene) == ["next"]
    scene.close()
    again = Scene(Ledger, Sender, Failing, disk=scene.disk)
    later(again, 5.0)
    assert again.call_worker("stats", [])["sends_dead"] == 0
    assert len(outbox_rows(again)) == 1
    again.close()


# --- limits


def test_the_sends_of_a_turn_are_bounded() -> None:
    scene = scene_of(limits=Limits(sends_per_turn_max=3))
    scene.call(Sender, "s", "say", "t", 1, 2, 3)
    with pytest.raises(RemoteError, match="sync") as raised:
        scene.call(Sender, "s", "say", "t", 4, 5, 6, 7)
    assert raised.value.type_name.endswith(Overloaded.__name__)
    scene.call(Sender, "s", "say", "t", 8, 9, 10)
    assert arrived(scene) == [1, 2, 3, 8, 9, 10]
    scene.close()


@pytest.mark.parametrize("limits", [{"outbox_messages_max": 3}, {"outbox_bytes_max": 600}])
def test_the_outbox_of_an_object_is_bounded_in_messages_and_bytes(limits: dict[str, int]) -> None:
    scene = scene_of(limits=Limits(**limits))
    for number in range(3):
        scene.call(Sender, "s", "later", "t", number, 10.0)
    with pytest.raises(RemoteError, match="full"):
        scene.call(Sender, "s", "later", "t", 3, 10.0)
    scene.call(Sender, "other", "later", "t", "other sender", 10.0)
    later(scene, 11.0)
    assert sorted(arrived(scene), key=str) == [0, 1, 2, "other sender"]
    for number in range(20):
        scene.call(Sender, "s", "say", "t", number)
    scene.close()


def test_a_full_outbox_is_still_full_after_a_restart() -> None:
    scene = scene_of()
    for number in range(3):
        scene.call(Sender, "s", "later", "t", number, 60.0)
    scene.close()
    again = scene_of(disk=scene.disk, limits=Limits(outbox_messages_max=3))
    with pytest.raises(RemoteError, match="full"):
        again.call(Sender, "s", "say", "t", "no")
    again.close()


def test_an_object_outside_of_a_turn_has_no_outbox_to_change() -> None:
    scene = scene_of()
    scene.call(Sender, "s", "say", "t", 1)
    instance = scene.resident(Sender, "s").instance
    with pytest.raises(StorageError):
        instance.ctx.send(Ledger, "t").note(1)
    scene.close()
