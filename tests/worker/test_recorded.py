"""Recorded replies of clients that tell which of their calls have ended: the log, and the clients' rows."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from perdure import DurableObject, Limits, durable
from perdure.errors import InvalidArgument, OutcomeUnknown, StorageError
from perdure_storage import keys
from perdure_storage.memory import MemoryDisk, MemoryEngine
from perdure_storage.reply_log import client_key, fold, read_client
from worker.host_scene import Scene, Sent, take_time

ME, YOU = b"m" * 16, b"y" * 16


class Purse(DurableObject):
    coins: int = durable(0)

    async def add(self, count: int = 1) -> int:
        self.coins += count
        return self.coins

    async def add_slowly(self) -> int:
        await take_time(1.0)
        self.coins += 1
        return self.coins

    async def add_and_sync(self) -> int:
        self.coins += 1
        coins = self.coins
        await self.storage.sync()
        return coins

    async def look(self) -> int:
        return self.coins

    async def fill(self, size: int) -> bytes:
        self.coins += 1
        return bytes(size)


class Teller:
    """A client that numbers its calls and tells which have ended."""

    def __init__(self, scene: Scene, client: bytes = ME) -> None:
        self.scene, self.id = scene, client
        self.flush = self.last = 0
        self.connections = 0
        self.lists = True
        """Whether it lists the open ones before its last call, or just names the first."""

    def call(
        self, name: str, method: str = "add", *args: Any, open: tuple[int, ...] = (), number: int = 0
    ) -> Sent:
        """A new call, or the one with that number again; `open` are those that have not ended."""
        self.flush += 1
        number = number or self.last + 1
        self.last = max(self.last, number)
        not_ended = sorted({*open, number, self.last})
        low, stragglers = (self.last, not_ended[:-1]) if self.lists else (not_ended[0], [])
        item = [number, *self.scene.item(Purse, name, method, *args)[1:]]
        self.connections += 1
        peer = self.scene.peer(self.id + b"%d" % self.connections)
        head = [self.id, self.flush, self.last, low, *stragglers]
        self.scene.send(item, peer=peer, head=head)
        return Sent(self.scene, peer, number)


def records_on_disk(disk: MemoryDisk, client: bytes = ME) -> set[int]:
    """The calls whose replies a later incarnation would know."""
    later = MemoryEngine(disk.copy())
    fold(later, 0)
    told = read_client(later, client)
    return set(told.records) if told is not None else set()


def rows(scene: Scene, prefix: bytes) -> list[bytes]:
    return [key for key, _ in scene.disk.between(prefix, keys.prefix_end(prefix))]


def test_a_group_makes_one_row_of_records_however_many_objects_and_clients_it_has(make_scene: Any) -> None:
    scene = make_scene(Purse)
    tellers = [Teller(scene, bytes([n]) * 16) for n in range(1, 5)]
    calls = [teller.call(f"{n}") for n in range(10) for teller in tellers]
    while len(scene.jobs) != 1:
        scene.commit_one()
    scene.commit()
    assert all(call.answered for call in calls)
    assert len(rows(scene, keys.REPLIES_PREFIX)) == 2, "the first call's group, and all others'"
    assert rows(scene, keys.CLIENT_PREFIX) == []


def test_what_a_client_says_has_ended_is_forgotten_and_stragglers_are_kept(make_scene: Any) -> None:
    scene = make_scene(Purse)
    me = Teller(scene)
    for _ in range(6):
        me.call("a", open=(1,))
        scene.commit()
    assert records_on_disk(scene.disk) == {1, 6}
    assert me.call("a", number=1, open=(6,)).result() == 1
    client = scene.host.clients.find(ME)
    assert set(client.old) == {1}
    me.call("a")
    scene.commit()
    assert records_on_disk(scene.disk) == {7}
    assert (client.old, len(client.parts)) == ({}, 1)


@pytest.mark.parametrize("rows", [1, 2, 3, 1_024])
@pytest.mark.parametrize("restart", [False, True])
def test_a_reply_is_found_however_often_the_log_came_round(make_scene: Any, rows: int, restart: bool) -> None:
    scene = make_scene(Purse, limits=Limits(reply_log_rows=rows))
    me, you = Teller(scene), Teller(scene, YOU)
    me.call("a")
    scene.commit()
    for _ in range(7):
        you.call("b")
        scene.commit()
    if restart:
        scene = me.scene = make_scene(Purse, disk=scene.disk.copy())
    assert me.call("a", number=1).result() == 1
    assert me.call("a", number=2).reply is None
    scene.commit()
    assert scene.fields(Purse, "a") == {"coins": 2}


@pytest.mark.parametrize("rows", [1, 2, 3, 1_024])
def test_a_late_batch_with_an_ended_call_does_not_run_it_in_a_later_incarnation(
    make_scene: Any, rows: int
) -> None:
    scene = make_scene(Purse, limits=Limits(reply_log_rows=rows))
    me, you = Teller(scene), Teller(scene, YOU)
    for _ in range(3):
        me.call("a")
        scene.commit()
    for _ in range(5):
        you.call("b")
        scene.commit()
    scene = make_scene(Purse, disk=scene.disk.copy())
    late = Teller(scene)
    for number in (1, 2):
        assert isinstance(late.call("a", number=number).error(), OutcomeUnknown)
    scene.commit()
    assert scene.fields(Purse, "a") == {"coins": 3}


@pytest.mark.parametrize("lists", [False, True])
def test_replies_of_several_groups_are_on_disk_at_every_instant_while_the_log_comes_round(
    make_scene: Any, lists: bool
) -> None:
    scene = make_scene(Purse, limits=Limits(reply_log_rows=4))
    me, you = Teller(scene), Teller(scene, YOU)
    me.lists = lists
    for number in (1, 2, 3):
        me.call("a", open=tuple(range(1, number)))
        scene.commit()
    for _ in range(6):
        you.call("b")
        scene.commit()
        assert records_on_disk(scene.disk) == {1, 2, 3}


def test_that_a_call_has_ended_is_known_later_although_it_was_given_up_before_its_end(
    make_scene: Any,
) -> None:
    scene = make_scene(Purse, limits=Limits(reply_log_rows=1))
    me, you = Teller(scene), Teller(scene, YOU)
    me.call("a", "add_slowly")
    me.call("b", "look")
    scene.advance(1.0)
    scene.commit()
    you.call("b")
    scene.commit()
    scene = make_scene(Purse, disk=scene.disk.copy())
    late = Teller(scene).call("a", "add_slowly", number=1)
    assert isinstance(late.error(), OutcomeUnknown)


def test_a_turn_that_wrote_only_before_its_last_commit_point_is_recorded(make_scene: Any) -> None:
    scene = make_scene(Purse)
    me = Teller(scene)
    me.call("a", "add_and_sync")
    scene.commit()
    scene = me.scene = make_scene(Purse, disk=scene.disk.copy())
    assert me.call("a", number=1).result() == 1
    scene.commit()
    assert scene.fields(Purse, "a") == {"coins": 1}


def test_effect_and_record_are_in_one_commit_at_every_instant(make_scene: Any) -> None:
    scene = make_scene(Purse, limits=Limits(reply_log_rows=2, commit_group_bytes_max=100))
    me = Teller(scene)
    for number in range(1, 9):
        me.call("a", open=tuple(range(1, number)))
        if number % 3 == 0:
            scene.commit_one()
        coins = scene.fields(Purse, "a").get("coins", 0)
        assert records_on_disk(scene.disk) == set(range(1, coins + 1))
    while scene.jobs:
        scene.commit_one()
        coins = scene.fields(Purse, "a")["coins"]
        assert records_on_disk(scene.disk) == set(range(1, coins + 1))


def test_a_call_that_waited_does_not_run_when_another_try_of_it_has_run_and_ended(make_scene: Any) -> None:
    scene = make_scene(Purse)
    me, you = Teller(scene), Teller(scene, YOU)
    me.call("a", "add_slowly")
    waiting, _ = [me.call("a", open=(1,)) for _ in range(2)]
    again = me.call("a", number=2, open=(1, 3))
    you.call("a", "add_slowly")
    scene.advance(1.0)
    me.call("b", open=(3,))  # 2 was answered, and has ended, while its other try still waits
    scene.advance(3.0)
    scene.commit()
    assert scene.fields(Purse, "a") == {"coins": 4}
    assert {waiting.answered, again.answered} == {True}


def test_a_sequence_that_was_used_at_another_object_is_refused(make_scene: Any) -> None:
    scene = make_scene(Purse)
    me = Teller(scene)
    me.call("a")
    scene.commit()
    assert isinstance(me.call("b", number=1).error(), InvalidArgument)


@pytest.mark.parametrize("number", [1 << 63, 1 << 70, -(1 << 63)])
def test_a_sequence_that_is_no_key_of_a_record_is_refused(make_scene: Any, number: int) -> None:
    scene = make_scene(Purse)
    me = Teller(scene)
    me.call("a")
    item = [number, *scene.item(Purse, "a", "add")[1:]]
    scene.send(item, head=[ME, 9, 9, 9])
    assert isinstance(Sent(scene, scene.client, number).error(), InvalidArgument)
    scene.commit()
    assert scene.fields(Purse, "a") == {"coins": 1}


def test_a_reply_too_large_to_be_kept_leaves_a_note_that_the_call_took_effect(make_scene: Any) -> None:
    scene = make_scene(Purse, limits=Limits(reply_window_bytes_max=1_000))
    me = Teller(scene)
    me.call("a", "fill", 2_000)
    scene.commit()
    scene = me.scene = make_scene(Purse, disk=scene.disk.copy())
    error = me.call("a", number=1).error()
    assert isinstance(error, OutcomeUnknown)
    assert error.reason == "answered"


def test_what_a_silent_clients_row_holds_is_bounded_and_what_was_dropped_never_runs(make_scene: Any) -> None:
    limits = Limits(reply_log_rows=1, reply_window_calls_max=8, reply_window_bytes_max=700)
    scene = make_scene(Purse, limits=limits)
    me, you = Teller(scene), Teller(scene, YOU)
    for number in range(1, 21):
        me.call("a", "fill", 40 if number < 20 else 400, open=tuple(range(1, number)))
        scene.commit()
    you.call("b")
    scene.commit()
    kept = records_on_disk(scene.disk)
    assert 6 <= len(kept) <= 8
    assert max(kept) == 20
    assert len(scene.disk.get(client_key(ME))) < 1_500
    for this in (scene, make_scene(Purse, disk=scene.disk.copy(), limits=limits)):
        me.scene = this
        errors = [me.call("a", number=n, open=tuple(range(1, 21))).error() for n in (1, 12)]
        assert all(isinstance(error, OutcomeUnknown) for error in errors)
        assert this.fields(Purse, "a") == {"coins": 20}


def test_a_forgotten_client_finds_its_replies_again(make_scene: Any) -> None:
    scene = make_scene(Purse, limits=Limits(clients_known_max=2))
    tellers = [Teller(scene, bytes([n]) * 16) for n in range(1, 30)]
    for teller in tellers:
        teller.call("a")
        scene.commit()
    assert len(scene.host.clients) <= 4
    for count, teller in enumerate(tellers, 1):
        assert teller.call("a", number=1).result() == count
        scene.commit()


def test_a_client_is_not_forgotten_while_a_call_of_it_runs_or_waits_for_the_disk(make_scene: Any) -> None:
    scene = make_scene(Purse, limits=Limits(clients_known_max=1))
    me = Teller(scene)
    tries = [me.call("a", "add_slowly")]
    for number in range(1, 20):
        Teller(scene, bytes([number]) * 16).call("b")
        tries.append(me.call("a", "add_slowly", number=1))
    scene.advance(1.5)
    for number in range(20, 40):
        Teller(scene, bytes([number]) * 16).call("b")
        tries.append(me.call("a", "add_slowly", number=1))
    scene.commit()
    assert {call.result() for call in tries} == {1}


def test_a_client_is_not_forgotten_while_a_call_of_it_waits(make_scene: Any) -> None:
    scene = make_scene(Purse, limits=Limits(clients_known_max=1))
    me, you = Teller(scene), Teller(scene, YOU)
    you.call("a", "add_slowly")
    tries = [me.call("a")]
    for number in range(1, 20):
        Teller(scene, bytes([number]) * 16).call("b")
    tries.append(me.call("a", number=1))
    scene.advance(1.5)
    scene.commit()
    assert {call.result() for call in tries} == {2}


def test_rows_of_clients_that_were_silent_for_long_are_deleted(make_scene: Any) -> None:
    now = [1_000_000.0]
    scene = make_scene(Purse, wall_clock=lambda: now[0], limits=Limits(reply_log_rows=1, clients_known_max=1))
    ids = [hashlib.blake2b(b"%d" % number, digest_size=16).digest() for number in range(600)]
    for client in ids[:100]:
        Teller(scene, client).call("a")
        scene.commit()
    stored = {row[len(keys.CLIENT_PREFIX) :] for row in rows(scene, keys.CLIENT_PREFIX)}
    assert stored >= set(ids[:99])
    now[0] += Limits.reply_ttl_s + 1
    for client in ids[100:]:
        Teller(scene, client).call("a")
        scene.commit()
    left = {row[len(keys.CLIENT_PREFIX) :] for row in rows(scene, keys.CLIENT_PREFIX)}
    assert len(left & set(ids[:100])) <= 1
    assert left >= set(ids[100:599])


def test_a_damaged_row_of_a_client_fails_its_calls_alone(make_scene: Any) -> None:
    scene = make_scene(Purse, limits=Limits(reply_log_rows=1))
    me, you = Teller(scene), Teller(scene, YOU)
    me.call("a")
    scene.commit()
    you.call("a")
    scene.commit()
    disk = scene.disk.copy()
    disk.apply([(client_key(ME), scene.disk.get(client_key(ME))[:-1] + b"?")])
    scene = me.scene = you.scene = make_scene(Purse, disk=disk)
    with pytest.raises(StorageError):
        me.call("a")
    you.call("a")
    scene.commit()
    assert scene.fields(Purse, "a") == {"coins": 3}
