"""Durable sends of a whole host: with their turn or not at all, with their limits, for failing targets."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from perdure import (
    DurableObject,
    Limits,
    MessageTooLarge,
    Overloaded,
    RemoteError,
    StorageError,
    UnknownMethod,
    UnknownNamespace,
)
from worker.host_scene import Scene
from worker.sends_scene import Ledger, Sender, arrived, later, outbox_rows, scene_of


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


def test_a_send_whose_row_has_left_the_write_set_is_not_sent() -> None:
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
