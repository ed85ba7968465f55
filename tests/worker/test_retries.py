"""Calls that come in again under their request id: answered, never run again.

A retry is the same item in another message; here it comes from another connection (`peer=`), so that each
try's answer can be told from the other's.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from perdure import DurableObject, Limits, OutcomeUnknown, RemoteError, durable, interleaved
from perdure.errors import InvalidArgument, StorageError
from perdure_storage import keys
from perdure_storage.records import unseal
from perdure_worker.windows import Window
from worker.host_scene import Scene, Sent

ME = b"m" * 16


class Purse(DurableObject):
    coins: int = durable(0)

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.runs = 0

    async def add(self, by: int = 1) -> int:
        self.coins += by
        return self.coins

    async def look(self) -> int:
        self.runs += 1
        return self.coins

    async def add_slowly(self, fail: bool = False) -> int:
        self.runs += 1
        await self.go.wait()
        self.coins += 1
        if fail:
            raise LookupError("no coins")
        return self.coins

    async def add_if_calm(self) -> int:
        self.runs += 1
        self.coins += 1
        if self.runs == 1:
            raise LookupError("not calm")
        return self.coins

    async def add_and_sync(self) -> int:
        self.coins += 1
        await self.storage.sync()
        return self.coins

    @interleaved
    async def add_beside_others(self) -> int:
        self.coins += 1
        await self.go.wait()
        return self.coins

    async def give(self, *others: str) -> int:
        for other in others:
            await self.ctx.get(Purse, other).add()
        self.coins -= 1
        return self.coins

    async def fill(self, size: int) -> bytes:
        self.coins += 1
        return bytes(size)

    async def empty(self) -> str:
        await self.storage.delete_all()
        return "empty"


@pytest.fixture
def make_scene(make_scene: Callable[..., Scene]) -> Callable[..., Scene]:
    """Scenes of a client that does not tell which of its calls have ended; the others: test_recorded.py."""
    return partial(make_scene, tells=False)


def again(scene: Scene, item: list[Any], connection: bytes = b"again", head: Any = None) -> Sent:
    """The same call once more, over another connection."""
    peer = scene.peer(connection)
    scene.send(item, peer=peer, head=head)
    return Sent(scene, peer, item[0])


def first(scene: Scene, item: list[Any], head: Any = None) -> Sent:
    scene.send(item, head=head)
    return Sent(scene, scene.client, item[0])


def windows_on_disk(scene: Scene, name: str) -> dict[bytes, Window]:
    prefix = scene.resident(Purse, name).row_prefix() + keys.REPLY
    windows = {}
    for row, record in scene.disk.between(prefix, keys.prefix_end(prefix)):
        client = row[len(prefix) :]
        window = windows[client] = Window(scene.resident(Purse, name), client, None, row)
        window.load(unseal(row, record))
    return windows


# --- recorded replies


def test_a_retry_gets_the_recorded_reply_and_the_effect_happens_once(make_scene: Any) -> None:
    scene = make_scene(Purse)
    item = scene.item(Purse, "a", "add", 5)
    call = first(scene, item)
    scene.commit()
    scene.call(Purse, "a", "add")
    assert (call.result(), again(scene, item).result()) == (5, 5)
    assert scene.fields(Purse, "a") == {"coins": 6}


def test_a_retry_after_a_restart_of_the_worker_gets_the_recorded_reply(make_scene: Any) -> None:
    scene = make_scene(Purse, client_id=ME)
    item = scene.item(Purse, "a", "add", 5)
    first(scene, item)
    scene.commit()
    restarted = make_scene(Purse, client_id=ME, disk=scene.disk.copy())
    assert again(restarted, item).result() == 5
    assert restarted.host.turns == 0
    newer = restarted.item(Purse, "a", "add")
    assert again(restarted, [item[0] + 1, *newer[1:]]) is not None
    restarted.commit()
    assert restarted.fields(Purse, "a") == {"coins": 6}


def test_a_recorded_reply_leaves_no_earlier_than_its_record_is_durable(make_scene: Any) -> None:
    scene = make_scene(Purse)
    item = scene.item(Purse, "a", "add")
    call = first(scene, item)
    retry = again(scene, item)
    assert not call.answered
    assert not retry.answered
    scene.commit()
    assert (call.result(), retry.result()) == (1, 1)


def test_effect_and_record_are_in_one_commit_at_every_instant(make_scene: Any) -> None:
    scene = make_scene(Purse, client_id=ME)
    item = scene.item(Purse, "a", "add")
    for number in range(6):
        scene.send([item[0] + number, *item[1:]])
    while scene.jobs:
        scene.commit_one()
        done = scene.fields(Purse, "a")["coins"]
        assert set(windows_on_disk(scene, "a")[ME].entries) == set(range(item[0], item[0] + done))
    assert done == 6


def test_turns_of_one_group_write_their_window_once(make_scene: Any) -> None:
    scene = make_scene(Purse)
    scene.call(Purse, "a", "look")
    with scene.one_message():
        for _ in range(50):
            scene.start(Purse, "a", "add")
    (job,) = scene.jobs
    scene.commit()
    writes = [key for batch in [job] for key, _ in batch.args[0].batch.writes if key[-17:-16] == keys.REPLY]
    assert len(writes) == 1
    assert len(windows_on_disk(scene, "a")[scene.client_id].entries) == 50


def test_a_turn_that_wrote_only_before_its_last_commit_point_is_recorded(make_scene: Any) -> None:
    scene = make_scene(Purse)
    item = scene.item(Purse, "a", "add_and_sync")
    call = first(scene, item)
    scene.commit()
    assert (call.result(), again(scene, item).result()) == (1, 1)
    assert scene.fields(Purse, "a") == {"coins": 1}


def test_an_interleaved_turn_that_wrote_in_a_former_span_is_recorded(make_scene: Any) -> None:
    scene = make_scene(Purse)
    items = [scene.item(Purse, "a", "add_beside_others") for _ in range(2)]
    calls = [first(scene, item) for item in items]
    scene.commit()
    scene.do(scene.resident(Purse, "a").instance.go.set)
    scene.commit()
    assert [call.result() for call in calls] == [2, 2]
    assert [again(scene, item).result() for item in items] == [2, 2]
    assert scene.fields(Purse, "a") == {"coins": 2}
    assert not scene.host.progress


def test_the_record_of_a_turn_that_deletes_everything_stays(make_scene: Any) -> None:
    scene = make_scene(Purse)
    scene.call(Purse, "a", "add")
    item = scene.item(Purse, "a", "empty")
    first(scene, item)
    scene.commit()
    scene.call(Purse, "a", "add")
    assert again(scene, item).result() == "empty"
    assert scene.call(Purse, "a", "look") == 1


def test_raising_and_read_only_turns_record_nothing_and_may_run_again(make_scene: Any) -> None:
    scene = make_scene(Purse)
    reads, raises = scene.item(Purse, "a", "look"), scene.item(Purse, "b", "add_if_calm")
    assert first(scene, reads).result() == 0
    assert isinstance(first(scene, raises).error(), RemoteError)
    scene.commit()
    assert windows_on_disk(scene, "a") == windows_on_disk(scene, "b") == {}
    assert again(scene, reads).result() == 0
    retry = again(scene, raises)
    scene.commit()
    assert retry.result() == 1
    assert (scene.resident(Purse, "a").instance.runs, scene.resident(Purse, "b").instance.runs) == (2, 2)


# --- retries that meet their turn


@pytest.mark.parametrize("fail", [False, True])
def test_a_retry_that_meets_the_running_turn_gets_its_outcome(make_scene: Any, fail: bool) -> None:
    scene = make_scene(Purse)
    item = scene.item(Purse, "a", "add_slowly", fail)
    tries = [first(scene, item), again(scene, item), again(scene, item, b"third")]
    assert not any(call.answered for call in tries)
    instance = scene.resident(Purse, "a").instance
    scene.do(instance.go.set)
    assert not tries[0].answered or fail
    scene.commit()
    if fail:
        assert {str(call.error()) for call in tries} == {str(tries[0].error())}
    else:
        assert [call.result() for call in tries] == [1, 1, 1]
    assert instance.runs == 1
    assert not scene.host.progress


def test_a_retry_of_a_waiting_call_waits_too_and_one_turn_answers_both(make_scene: Any) -> None:
    scene = make_scene(Purse)
    scene.start(Purse, "a", "add_slowly")
    item = scene.item(Purse, "a", "add", 10)
    tries = [first(scene, item), again(scene, item)]
    scene.do(scene.resident(Purse, "a").instance.go.set)
    scene.commit()
    assert [call.result() for call in tries] == [11, 11]
    assert scene.fields(Purse, "a") == {"coins": 11}


def test_a_retry_that_meets_a_turn_which_was_waiting_itself_gets_its_outcome(make_scene: Any) -> None:
    scene = make_scene(Purse)
    scene.start(Purse, "a", "add_slowly")
    item = scene.item(Purse, "a", "add_slowly")
    tries = [first(scene, item), again(scene, item)]
    instance = scene.resident(Purse, "a").instance
    scene.do(instance.go.set)
    scene.commit()
    assert [call.result() for call in tries] == [2, 2]
    assert instance.runs == 2


def test_a_recorded_reply_is_given_whatever_would_refuse_a_new_call(make_scene: Any) -> None:
    scene = make_scene(Purse, limits=Limits(mailbox_calls_max=1))
    item = scene.item(Purse, "a", "add", timeout_ms=100)
    first(scene, item)
    scene.commit()
    for _ in range(2):
        scene.start(Purse, "a", "add_slowly")
    assert again(scene, item).result() == 1
    scene.advance(50)
    assert again(scene, item, b"late").result() == 1
    scene.do(scene.host.drain)
    assert again(scene, item, b"stopping").result() == 1


# --- what has ended


def test_a_call_that_was_overtaken_by_its_retry_and_has_ended_never_runs(make_scene: Any) -> None:
    scene = make_scene(Purse, client_id=ME)
    ghost, other = scene.item(Purse, "a", "add"), scene.item(Purse, "b", "add")
    scene.send([2, *ghost[1:]], head=[ME, 2, 2, 1])
    scene.commit()
    scene.send([3, *other[1:]], head=[ME, 3, 3, 3])
    scene.commit()
    late = again(scene, [2, *ghost[1:]], head=[ME, 1, 2, 1])
    assert isinstance(late.error(), OutcomeUnknown)
    scene.commit()
    assert scene.fields(Purse, "a") == {"coins": 1}
    slow = again(scene, [1, *ghost[1:]], head=[ME, 1, 2, 1])
    assert isinstance(slow.error(), OutcomeUnknown), "its deadline has passed: nobody waits for it"


def test_a_straggler_of_an_older_batch_still_runs(make_scene: Any) -> None:
    scene = make_scene(Purse, client_id=ME)
    item = scene.item(Purse, "a", "add")
    scene.send([9, *item[1:]], head=[ME, 9, 9, 9, 2])
    retry = again(scene, [2, *item[1:]], head=[ME, 8, 8, 2])
    scene.commit()
    assert retry.result() == 2


# --- bounds


def test_a_call_older_than_what_was_dropped_is_refused_and_never_run_again(make_scene: Any) -> None:
    scene = make_scene(Purse, client_id=ME, limits=Limits(reply_window_calls_max=8))
    items = [scene.item(Purse, "a", "add") for _ in range(20)]
    for item in items:
        scene.send(item)
        scene.commit()
    window = windows_on_disk(scene, "a")[ME]
    assert 6 <= len(window.entries) <= 8
    restarted = make_scene(Purse, client_id=ME, disk=scene.disk.copy())
    for here in (scene, restarted):
        answers = [again(here, item) for item in items]
        here.commit()
        kept = len(window.entries)
        assert [call.result() for call in answers[-kept:]] == list(range(21 - kept, 21))
        assert all(isinstance(call.error(), OutcomeUnknown) for call in answers[:-kept])
        assert "too old" in str(answers[0].error())
        assert here.fields(Purse, "a") == {"coins": 20}


def test_a_reply_too_large_to_be_kept_leaves_a_note_that_the_call_took_effect(make_scene: Any) -> None:
    scene = make_scene(Purse, limits=Limits(reply_window_bytes_max=1_000))
    items = [scene.item(Purse, "a", "fill", size) for size in (10, 400, 400, 400, 2_000)]
    for item in items:
        first(scene, item)
        scene.commit()
    answers = [again(scene, item) for item in items]
    assert len(answers[0].result()) == 10
    assert "too large" in str(answers[-1].error())
    assert sum(isinstance(call.error(), OutcomeUnknown) for call in answers[1:] if call.reply[1]) >= 2
    assert scene.fields(Purse, "a") == {"coins": 5}


def test_windows_that_nobody_uses_leave_memory_and_come_back(make_scene: Any) -> None:
    scene = make_scene(Purse)
    items = [scene.item(Purse, f"{n}", "add") for n in range(20)]
    for item in items:
        first(scene, item)
    scene.commit()
    assert len(scene.host.windows) == 20
    for _ in range(4):
        scene.advance(2.5)
    assert len(scene.host.windows) == 0
    assert scene.resident(Purse, "3").window is None
    assert [again(scene, item).result() for item in items] == [1] * 20


def test_a_window_in_use_stays_in_memory(make_scene: Any) -> None:
    scene = make_scene(Purse)
    item = scene.item(Purse, "a", "add_slowly")
    tries = [first(scene, item)]
    for number in range(6):
        scene.advance(2.5)
        tries.append(again(scene, item, b"%d" % number))
    scene.do(scene.resident(Purse, "a").instance.go.set)
    for _ in range(6):
        scene.advance(2.5)
    assert scene.resident(Purse, "a").window is not None, "its record is not durable yet"
    scene.commit()
    assert {call.result() for call in tries} == {1}


def test_windows_in_memory_are_bounded_also_at_one_object(make_scene: Any) -> None:
    scene = make_scene(Purse, limits=Limits(reply_windows_max=8))
    items = [(bytes([n]) * 16, scene.item(Purse, "a", "add")) for n in range(40)]
    for head, item in items:
        scene.send(item, head=head)
        scene.commit()
    assert len(scene.host.windows) <= 8
    assert [again(scene, item, head=head).result() for head, item in items] == list(range(1, 41))
    assert len(scene.host.windows) <= 8


def test_expired_rows_are_deleted_as_new_clients_come(make_scene: Any) -> None:
    now = [1_000_000.0]
    scene = make_scene(Purse, wall_clock=lambda: now[0])

    ids = [hashlib.blake2b(b"%d" % number, digest_size=16).digest() for number in range(600)]

    def come(clients: list[bytes], floor: int) -> None:
        for client in clients:
            request = [client, 1, b"\x00\x01", floor]
            item = scene.item(Purse, "a", "add")
            scene.send([*item[:8], [None, request]], head=b"another's caller")
            scene.commit()
        for _ in range(4):
            scene.advance(2.5)

    come([b"comes back later"], 0)
    come(ids[:100], 1)
    assert len(windows_on_disk(scene, "a")) == 101
    now[0] += Limits.reply_ttl_s + 1
    come(ids[100:], 1)
    left = set(windows_on_disk(scene, "a"))
    assert not left & set(ids[:100])
    assert left >= set(ids[100:])
    assert b"comes back later" in left, "who does not tell may retry for a day"


def test_a_damaged_window_fails_its_clients_calls_alone(make_scene: Any) -> None:
    scene = make_scene(Purse, client_id=ME)
    scene.call(Purse, "a", "add")
    prefix = scene.resident(Purse, "a").row_prefix() + keys.REPLY
    ((row, record),) = scene.disk.between(prefix, keys.prefix_end(prefix))
    disk = scene.disk.copy()
    disk.apply([(row, record[:-1] + b"?")])
    restarted = make_scene(Purse, disk=disk)
    item = restarted.item(Purse, "a", "add")
    assert isinstance(again(restarted, item, head=ME).error(), StorageError)
    assert restarted.call(Purse, "a", "add") == 2


# --- requests in the name of others


def test_the_turn_of_a_killed_worker_runs_again_and_its_calls_take_effect_once(make_scene: Any) -> None:
    scene = make_scene(Purse, client_id=ME)
    for name in ("b", "c"):
        scene.call(Purse, name, "add", 10)
    item = scene.item(Purse, "a", "give", "b", "c")
    first(scene, item)
    while scene.fields(Purse, "b") != {"coins": 11} or scene.fields(Purse, "c") != {"coins": 11}:
        scene.commit_one()
    assert "coins" not in scene.fields(Purse, "a"), "the kill comes before the reply"
    restarted = make_scene(Purse, client_id=ME, disk=scene.disk.copy())
    retry = again(restarted, item)
    restarted.commit()
    assert retry.result() == -1
    assert [restarted.fields(Purse, name)["coins"] for name in "abc"] == [-1, 11, 11]


def test_calls_of_one_turn_to_one_object_are_different_requests(make_scene: Any) -> None:
    scene = make_scene(Purse)
    item = scene.item(Purse, "a", "give", "b", "b", "b")
    call = first(scene, item)
    scene.commit()
    assert call.result() == -1
    assert scene.fields(Purse, "b") == {"coins": 3}


def test_a_named_request_gives_its_recorded_answer_to_whoever_repeats_it(make_scene: Any) -> None:
    scene = make_scene(Purse)
    request = [b"idempotency key!", 1, b"", 0]
    tries = []
    for _ in range(3):
        tries.append(scene.start(Purse, "a", "add", 7, request=request))
        scene.commit()
    assert [call.result() for call in tries] == [7, 7, 7]
    assert scene.call(Purse, "a", "add", 1, request=[*request[:1], 2, *request[2:]]) == 8


def test_a_named_request_cannot_be_used_for_another_call(make_scene: Any) -> None:
    scene = make_scene(Purse)
    request = [b"idempotency key!", 1, b"", 0]
    scene.call(Purse, "a", "add", 7, request=request)
    scene.start(Purse, "b", "add_slowly", request=request)
    for method, *args in (("add", 8), ("fill", 7), ("look",)):
        with pytest.raises(InvalidArgument, match="another method or other arguments"):
            scene.call(Purse, "a", method, *args, request=request)
        with pytest.raises(InvalidArgument, match="another method or other arguments"):
            scene.call(Purse, "b", method, *args, request=request)
    assert scene.call(Purse, "a", "look") == 7
