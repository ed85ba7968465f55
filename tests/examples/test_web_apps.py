"""The web applications as programs see them: a real cluster, its gateway, and a WebSocket client not ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from chat import FREE_MESSAGES, HISTORY, PAUSE_S, admit
from home import OFFLINE_AFTER_S
from perdure import SyncClient
from perdure.errors import PerdureError
from processes.cluster import ROOT, Cluster, running_cluster

pytestmark = pytest.mark.processes

WAIT_S = 20.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    data = tmp_path_factory.mktemp("apps") / "data"
    with running_cluster(ROOT / "examples" / "start.py", data, options=("--http", "127.0.0.1:0")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(site: Cluster) -> Iterator[SyncClient]:
    with site.connect() as connected:
        yield connected


def dial(site: Cluster, path: str) -> Any:
    """A connection, as ``with dial(...) as socket``."""
    address = (site.data / "http").read_text().strip()
    return connect(address.replace("http", "ws", 1) + path)


def say(socket: ClientConnection, value: Any) -> None:
    socket.send(json.dumps(value))


def hear(socket: ClientConnection) -> Any:
    return json.loads(socket.recv(WAIT_S))


def hear_until(socket: ClientConnection, key: str) -> list[Any]:
    """What comes up to and with the first news that has that key."""
    news = [hear(socket)]
    while key not in news[-1]:
        news.append(hear(socket))
    return news


# --- chat


def test_an_address_has_four_free_messages_and_then_one_each_five_seconds() -> None:
    next_allowed, now = 0.0, 1000.0
    waits = []
    for _ in range(FREE_MESSAGES + 1):
        next_allowed, wait_s = admit(next_allowed, now)
        waits.append(wait_s)
    assert waits == [0.0] * FREE_MESSAGES + [PAUSE_S]
    assert admit(next_allowed, now + PAUSE_S - 0.01)[1] > 0
    next_allowed, wait_s = admit(next_allowed, now + PAUSE_S)
    assert wait_s == 0
    assert admit(next_allowed, now + PAUSE_S)[1] == pytest.approx(PAUSE_S)
    assert admit(next_allowed, now + 100 * PAUSE_S)[1] == 0


def test_the_limit_holds_for_all_rooms_of_an_address_together(client: SyncClient) -> None:
    limiter = client.get("ChatLimiter", "203.0.113.7")
    assert [limiter.take() for _ in range(FREE_MESSAGES)] == [0.0] * FREE_MESSAGES
    assert 0 < limiter.take() <= PAUSE_S
    assert client.get("ChatLimiter", "203.0.113.8").take() == 0.0


def test_too_long_a_name_or_message_is_refused_and_the_next_one_taken(site: Cluster) -> None:
    with dial(site, "/ChatRoom/limits/socket") as socket:
        say(socket, {"name": "n" * 33})
        assert "error" in hear(socket)
        say(socket, {"name": "n" * 32})
        assert hear_until(socket, "ready") == [{"joined": "n" * 32}, {"ready": True}]
        say(socket, {"message": "m" * 257, "id": "1"})
        assert hear(socket)["id"] == "1"
        say(socket, {"message": "m" * 256, "id": "2"})
        assert hear(socket)["message"] == "m" * 256
        socket.send("no JSON")
        assert "error" in hear(socket)


def test_a_message_that_is_sent_again_is_taken_once_and_late_comers_miss_nothing(
    site: Cluster, client: SyncClient
) -> None:
    with dial(site, "/ChatRoom/again/socket") as socket:
        say(socket, {"name": "Ann"})
        hear_until(socket, "ready")
        say(socket, {"message": "once", "id": "x1"})
        entry = hear(socket)
        say(socket, {"message": "once", "id": "x1", "again": True})
        assert hear(socket) == {"taken": "x1"}
    with dial(site, f"/ChatRoom/again/socket?since={entry['timestamp']}") as socket:
        say(socket, {"name": "Ben"})
        assert not [news for news in hear_until(socket, "ready") if "message" in news]
    with dial(site, "/ChatRoom/again/socket") as socket:
        say(socket, {"name": "Cleo"})
        assert [news["message"] for news in hear_until(socket, "ready") if "message" in news] == ["once"]


def test_a_close_is_answered_with_its_code(site: Cluster) -> None:
    with dial(site, "/ChatRoom/closing/socket") as socket:
        socket.close(1000, "enough")
    assert socket.close_code == 1000
    assert socket.close_reason == "enough"


def test_a_room_keeps_its_last_hundred_messages_under_growing_timestamps(make_scene: Any) -> None:
    import chat

    class Room(chat.ChatRoom):
        async def write(self, count: int) -> list[int]:
            for number in range(count):
                self.latest += 1
                self.storage.put(f"message/{self.latest:016d}", {"id": number})
                await self._forget_old()
            return [int(key[8:]) for key in await self.storage.list(prefix="message/", keys_only=True)]

    scene = make_scene(Room)
    kept = scene.call(Room, "r", "write", HISTORY + 30)
    assert kept == list(range(31, HISTORY + 31))


# --- the shop


def test_pieces_taken_for_an_order_that_fails_are_put_back(client: SyncClient) -> None:
    cart, bread, cheese = (
        client.get("Cart", "greedy"),
        client.get("Shelf", "Bread"),
        client.get("Shelf", "Cheese"),
    )
    bread.restock()
    cheese.restock()
    cart.put("Bread", 3)
    cart.put("Cheese", 13)
    with pytest.raises(PerdureError, match="not enough Cheese is left"):
        cart.check_out()
    wait_until_equal(bread.pieces, 12)
    assert cart.contents()["lines"][0]["quantity"] == 3


def test_of_many_who_buy_at_once_only_as_many_get_something_as_there_is(client: SyncClient) -> None:
    client.get("Shelf", "Lamp").restock()
    for number in range(20):
        client.get("Cart", f"crowd-{number}").put("Lamp", 1)

    def buy(number: int) -> bool:
        try:
            client.get("Cart", f"crowd-{number}").check_out()
        except PerdureError:
            return False
        return True

    with ThreadPoolExecutor(20) as threads:
        assert sum(threads.map(buy, range(20))) == 12
    assert client.get("Shelf", "Lamp").pieces() == 0


def wait_until_equal(read: Any, wanted: Any) -> None:
    """Durable sends arrive soon, and not at once."""
    import time

    deadline = time.monotonic() + WAIT_S
    while (found := read()) != wanted:
        assert time.monotonic() < deadline, f"{found!r} is not {wanted!r}"


# --- the others


def test_a_device_is_offline_when_it_has_been_silent_and_its_house_knows(
    site: Cluster, client: SyncClient
) -> None:
    with dial(site, "/House/quiet/socket") as socket:
        say(socket, {})
        assert hear(socket)["devices"] == {}
        client.get("Device", "quiet/lamp").report({"on": 0.0})
        assert hear(socket)["devices"]["lamp"]["online"] is True
        news = json.loads(socket.recv(OFFLINE_AFTER_S + WAIT_S))
        assert news["devices"]["lamp"]["online"] is False


def test_a_command_of_the_house_is_in_the_devices_next_answer(client: SyncClient) -> None:
    device, house = client.get("Device", "villa/heater"), client.get("House", "villa")
    assert device.report({"on": 0.0}) == {}
    wait_until_equal(lambda: client.get("Device", "villa/heater").report({"on": 0.0}) == {}, True)
    house.add_rule(
        {"device": "sensor", "what": "t", "test": "below", "limit": 19.0, "target": "heater", "value": 1.0}
    )
    client.get("Device", "villa/sensor").report({"t": 12.0})
    wait_until_equal(lambda: device.report({"on": 0.0}), {"on": 1.0})
    assert device.report({"on": 1.0}) == {}


def test_a_post_reaches_more_followers_than_one_portion_holds_in_order(make_scene: Any) -> None:
    import feed

    scene = make_scene(feed.Account)
    followers = feed.PORTION + 7
    for number in range(followers):
        scene.call(feed.Account, "star", "add_follower", f"fan-{number:04d}")
        if number in (0, followers - 1):
            scene.call(feed.Account, f"fan-{number:04d}", "follow", "star")
    for text in ("first", "second"):
        scene.call(feed.Account, "star", "post", text)
    scene.settle()
    for name in ("fan-0000", f"fan-{followers - 1:04d}"):
        timeline = scene.call(feed.Account, name, "timeline")
        assert [post["text"] for post in timeline] == ["second", "first"]


def test_a_player_whose_time_is_up_has_lost(site: Cluster) -> None:
    with (
        dial(site, "/Match/slow/socket?secret=a") as ann,
        dial(site, "/Match/slow/socket?secret=b") as ben,
    ):
        say(ann, {"sit": "Ann"})
        hear(ann)
        say(ben, {"sit": "Ben"})
        match = hear_until(ben, "left_ms")[-1]
        while match["turn"] is None:
            match = hear(ben)
        assert match["turn"] == 0
        assert 29_000 < match["left_ms"] <= 30_000
        say(ben, {"drop": 3})
        assert "error" in hear_until(ben, "error")[-1]
        say(ann, {"drop": 3})
        while match["turn"] != 1:
            match = hear(ben)
        assert match["board"][-7:] == "...X..."
