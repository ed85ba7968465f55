"""`ctx.outbox`: an object sees what it has sent and what has died, and mends it in a turn."""

from __future__ import annotations

from typing import Any

import pytest

from perdure import DurableObject, InvalidArgument, Limits, RemoteError, durable
from perdure.outbox import OutboxMessage
from worker.host_scene import Scene


class Picky(DurableObject):
    open: bool = durable(default=False)
    got: list[int] = durable(default_factory=list)

    async def let_in(self) -> None:
        self.open = True

    async def take(self, number: int, note: str = "") -> None:
        if not self.open:
            raise ValueError("closed")
        self.got.append(number)

    async def all(self) -> list[int]:
        return self.got


class Sender(DurableObject):
    seen: list[OutboxMessage]

    async def send(self, to: str, number: int, delay: float = 0.0) -> None:
        self.ctx.send(Picky, to, delay=delay).take(number, note="n")

    async def look(self, dead: bool | None = None, limit: int = 100, cursor: str | None = None) -> list[Any]:
        self.seen = await self.ctx.outbox.list(dead=dead, limit=limit, cursor=cursor)
        return [message.id for message in self.seen]

    async def retry(self, message_id: str, fail: bool = False) -> bool:
        done = self.ctx.outbox.retry(message_id)
        if fail:
            raise RuntimeError("rolled back")
        return done

    async def drop(self, message_id: str) -> bool:
        return self.ctx.outbox.drop(message_id)

    async def send_and_look(self, to: str, number: int) -> list[str]:
        self.ctx.send(Picky, to, delay=60).take(number)
        return [message.id for message in await self.ctx.outbox.list()]


@pytest.fixture
def scene() -> Any:
    made = Scene(Picky, Sender, limits=Limits(send_attempts_max=1, outbox_messages_max=3))
    yield made
    made.close()


def seen(scene: Scene, **options: Any) -> list[OutboxMessage]:
    scene.call(Sender, "s", "look", kwargs=options)
    messages: list[OutboxMessage] = scene.resident(Sender, "s").instance.seen
    return messages


def test_a_message_is_shown_with_all_that_is_known_of_it(scene: Scene) -> None:
    scene.call(Sender, "s", "send", "t", 1, 60.0)
    (message,) = seen(scene)
    assert (message.namespace, message.target.name, message.method) == ("Picky", "t", "take")
    assert (message.args, message.kwargs) == ([1], {"note": "n"})
    assert (message.attempts, message.error, message.dead) == (0, None, False)
    assert message.due_at is not None
    assert 59 < (message.due_at - message.sent_at).total_seconds() < 61


def test_a_dead_message_shows_why(scene: Scene) -> None:
    scene.call(Sender, "s", "send", "t", 1)
    (message,) = seen(scene)
    assert (message.dead, message.attempts, message.due_at) == (True, 1, None)
    assert "closed" in str(message.error)


def test_pending_and_dead_ones_are_listed_apart_or_together_in_pages(scene: Scene) -> None:
    scene.call(Sender, "s", "send", "t", 1)
    scene.call(Sender, "s", "send", "t", 2, 60.0)
    scene.call(Sender, "s", "send", "u", 3, 60.0)
    assert [m.args for m in seen(scene, dead=True)] == [[1]]
    assert sorted(m.args for m in seen(scene, dead=False)) == [[2], [3]]
    together = [m.id for m in seen(scene)]
    assert len(together) == 3
    page = scene.call(Sender, "s", "look", kwargs={"limit": 2})
    rest = scene.call(Sender, "s", "look", kwargs={"limit": 2, "cursor": page[-1]})
    assert page + rest == together
    assert scene.call(Sender, "s", "look", kwargs={"cursor": together[-1]}) == []


def test_what_the_running_turn_sends_is_not_committed_and_not_shown(scene: Scene) -> None:
    assert scene.call(Sender, "s", "send_and_look", "t", 1) == []
    assert len(seen(scene)) == 1


def test_a_message_is_shown_before_its_commit_is_durable(scene: Scene) -> None:
    scene.start(Sender, "s", "send", "t", 1, 60.0)
    scene.start(Sender, "s", "look")
    scene.settle()
    assert len(scene.resident(Sender, "s").instance.seen) == 1
    scene.commit()


def test_a_dead_message_that_is_retried_goes_as_a_new_one(scene: Scene) -> None:
    scene.call(Sender, "s", "send", "t", 1)
    (dead,) = seen(scene)
    scene.call(Picky, "t", "let_in")
    assert scene.call(Sender, "s", "retry", dead.id) is True
    assert scene.call(Picky, "t", "all") == [1]
    assert seen(scene) == []
    assert scene.call(Sender, "s", "retry", dead.id) is False


def test_a_retry_needs_no_room_in_a_full_outbox(scene: Scene) -> None:
    for number in range(3):
        scene.call(Sender, "s", "send", "t", number)
    scene.call(Picky, "t", "let_in")
    for message in seen(scene):
        assert scene.call(Sender, "s", "retry", message.id) is True
    assert scene.call(Picky, "t", "all") == [0, 1, 2]


def test_a_retry_belongs_to_its_turn(scene: Scene) -> None:
    scene.call(Sender, "s", "send", "t", 1)
    (dead,) = seen(scene)
    scene.call(Picky, "t", "let_in")
    with pytest.raises(RemoteError):
        scene.call(Sender, "s", "retry", dead.id, True)
    assert [m.id for m in seen(scene)] == [dead.id]
    assert scene.call(Picky, "t", "all") == []


def test_a_dead_message_can_be_dropped_and_makes_room(scene: Scene) -> None:
    for number in range(3):
        scene.call(Sender, "s", "send", "t", number)
    with pytest.raises(RemoteError, match="full"):
        scene.call(Sender, "s", "send", "t", 3)
    for message in seen(scene):
        assert scene.call(Sender, "s", "drop", message.id) is True
        assert scene.call(Sender, "s", "drop", message.id) is False
    assert seen(scene) == []
    scene.advance(1.1)  # a full outbox is counted again once a second
    scene.call(Sender, "s", "send", "t", 4)


def test_a_pending_message_can_be_neither_retried_nor_dropped(scene: Scene) -> None:
    scene.call(Sender, "s", "send", "t", 1, 60.0)
    (message,) = seen(scene)
    assert scene.call(Sender, "s", "drop", message.id) is False
    assert scene.call(Sender, "s", "retry", message.id) is False
    assert [m.id for m in seen(scene)] == [message.id]


@pytest.mark.parametrize("bad", ["", "zz", "00", "ff" * 26])
def test_what_is_no_id_of_a_message_is_refused(scene: Scene, bad: str) -> None:
    with pytest.raises(RemoteError, match="no id of a message") as raised:
        scene.call(Sender, "s", "drop", bad)
    assert raised.value.type_name.endswith(InvalidArgument.__name__)


@pytest.mark.parametrize("limit", [0, -1, 10_001])
def test_the_limit_of_a_list_is_checked(scene: Scene, limit: int) -> None:
    with pytest.raises(RemoteError, match="limit of a list"):
        scene.call(Sender, "s", "look", kwargs={"limit": limit})


def test_an_outbox_is_changed_only_inside_of_a_turn(scene: Scene) -> None:
    scene.call(Sender, "s", "send", "t", 1)
    (dead,) = seen(scene)
    outbox = scene.resident(Sender, "s").instance.ctx.outbox
    for change in (outbox.retry, outbox.drop):
        with pytest.raises(Exception, match="inside a turn"):
            change(dead.id)
