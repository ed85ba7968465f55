"""WebSockets through the whole cluster: objects sleep, workers and gateways die, clients misbehave.

The client is the websockets library's.  One cluster serves all tests of the file; what they kill comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from perdure import SyncClient
from perdure.ids import id_from_name
from perdure_gateway.config import GatewayConfig
from processes.cluster import DEADLINE_S, Cluster, environment, running_cluster

pytestmark = pytest.mark.processes

APP = Path(__file__).with_name("websocket_app.py")
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ["--http", "127.0.0.1:0", "--idle-evict", "0.2", "--allow-origin", "https://friend.example"]
    folder = tmp_path_factory.mktemp("websockets")
    with running_cluster(APP, folder / "data", workers=2, options=options) as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> Iterator[SyncClient]:
    with cluster.connect() as connected:
        yield connected


def join(cluster: Cluster, room: str, query: str = "", **options: Any) -> ClientConnection:
    return join_at(cluster.http, room, query, **options)


def join_at(http: str, room: str, query: str = "", path: str = "", **options: Any) -> ClientConnection:
    options = {"compression": None, "max_size": None, "open_timeout": DEADLINE_S, **options}
    return connect(f"ws{http.removeprefix('http')}/Room/{room}/{path}?{query}", **options)


def told(ws: ClientConnection) -> Any:
    return ws.recv(timeout=DEADLINE_S)


def closed_with(ws: ClientConnection) -> tuple[int, str]:
    """The close that the server sends; whatever comes before it is passed over."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            told(ws)
    close = ws.protocol.close_rcvd
    assert close is not None, "the connection ended without a close"
    return close.code, close.reason


def state_of(client: SyncClient, room: str) -> Any:
    return client.get("Room", room).state()


def wait_for_ends(cluster: Cluster, client: SyncClient, room: str, count: int) -> list[Any]:
    ends: list[Any] = cluster.wait_until(
        f"the object knows of {count} ends",
        lambda: (len(ends := state_of(client, room)["ends"]) >= count) and ends,
    )
    return ends


def wait_until_asleep(cluster: Cluster, client: SyncClient, room: str) -> None:
    def asleep() -> bool:
        return [entry.live for entry in client.list("Room", prefix=room).entries] == [False]

    cluster.wait_until("the object has left memory", asleep)


def reset(ws: ClientConnection) -> None:
    """The client's connection is gone, without a close."""
    ws.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ws.socket.shutdown(socket.SHUT_RD)
    ws.close_socket()


def rooms_of_both_workers(client: SyncClient) -> list[str]:
    slot_map = client.slot_map
    assert slot_map is not None
    names = {slot_map.worker_of(id_from_name("Room", f"r{n}").key): f"r{n}" for n in range(50)}
    return [names[0], names[1]]


# --- what a socket does


def test_text_binary_tags_and_subprotocol_reach_both_sides(cluster: Cluster) -> None:
    with (
        join(cluster, "all", "tag=red&name=ada&greet=1", subprotocols=["chat"]) as red,
        join(cluster, "all", "tag=red&tag=blue&protocol=b", subprotocols=["a", "b"]) as both,
    ):
        assert told(red) == "welcome"
        assert (red.subprotocol, both.subprotocol) == (None, "b")
        for data in ("", "é ✓", "x" * 70_000):
            red.send("echo " + data)
            assert told(red) == data
        red.send(b"\x00\xff" * 1_000)
        assert told(red) == b"\x00\xff" * 1_000
        red.send("tag blue hello")
        assert told(both) == "hello"
        red.send("tag red to both")
        assert (told(red), told(both)) == ("to both", "to both")
        red.send("who")
        assert json.loads(told(red))[:2] == [["red"], {"name": "ada"}]


def test_an_idle_object_leaves_memory_and_its_sockets_stay_and_wake_it(
    cluster: Cluster, client: SyncClient
) -> None:
    with join(cluster, "idle", "tag=a&name=ada") as ws, join(cluster, "idle") as other:
        ws.send("echo 1")
        assert told(ws) == "1"
        wait_until_asleep(cluster, client, "idle")
        ws.send("who")
        assert json.loads(told(ws)) == [["a"], {"name": "ada"}, 2]  # two were there in on_start
        wait_until_asleep(cluster, client, "idle")
        ws.send("all awake")
        assert (told(ws), told(other)) == ("awake", "awake")


def test_a_burst_of_a_hundred_messages_is_handled_and_answered_in_order(cluster: Cluster) -> None:
    with join(cluster, "burst") as ws:
        for number in range(100):
            ws.send(f"count {number}")
        assert [json.loads(told(ws)) for _ in range(100)] == [[n + 1, n] for n in range(100)]


def test_messages_at_the_limit_of_size_pass_and_one_over_it_closes_with_1009(
    cluster: Cluster, client: SyncClient
) -> None:
    with join(cluster, "large", "name=big") as ws:
        ws.send(b"x" * MIB)
        assert len(told(ws)) == MIB
        ws.send(f"large {MIB}")
        assert len(told(ws)) == MIB
        ws.send(f"large {MIB + 1}")  # its handler raises, and nothing else happens
        ws.send("echo still here")
        assert told(ws) == "still here"
        with contextlib.suppress(ConnectionClosed):  # while the rest of it is sent
            ws.send(b"x" * (MIB + 1))
        assert closed_with(ws)[0] == 1009
    ends = wait_for_ends(cluster, client, "large", 1)
    assert [ends[0][0], ends[0][1], ends[0][3]] == ["big", 1009, False]


def test_a_handler_that_raises_leaves_its_socket_open(cluster: Cluster, client: SyncClient) -> None:
    with join(cluster, "raising") as ws:
        ws.send("raise on purpose")
        ws.send("count 1")
        assert json.loads(told(ws)) == [1, 1]  # the raising turn left no trace


def test_an_automatic_response_is_given_while_the_object_sleeps(cluster: Cluster, client: SyncClient) -> None:
    with join(cluster, "auto") as before:
        client.get("Room", "auto").answer_by_itself("ping", "pong")
        with join(cluster, "auto") as after:
            wait_until_asleep(cluster, client, "auto")
            for ws in (before, after):
                ws.send("ping")
                assert told(ws) == "pong"
            assert [entry.live for entry in client.list("Room", prefix="auto").entries] == [False]
            after.send("echo others wake it")
            assert told(after) == "others wake it"


# --- ends


def test_the_clients_end_is_told_once_with_its_code_and_a_vanished_client_is_1006(
    cluster: Cluster, client: SyncClient
) -> None:
    with join(cluster, "ends", "name=polite") as ws:
        ws.close(4321, "enough")
    with join(cluster, "ends", "name=gone") as gone:
        reset(gone)
    with join(cluster, "ends", "name=fails") as ws:
        ws.close(1000)
    wait_for_ends(cluster, client, "ends", 2)
    cluster.wait_until("all sockets are removed", lambda: state_of(client, "ends")["open"] == 0)
    with join(cluster, "ends", "name=last") as ws:
        ws.send("echo 1")
        assert told(ws) == "1"
    ends = wait_for_ends(cluster, client, "ends", 3)
    # The handler that failed left no trace, but its socket is gone.
    assert sorted(ends) == sorted(
        [["polite", 4321, "enough", True], ["gone", 1006, "", False], ["last", 1000, "", True]]
    )


def test_a_close_by_the_object_reaches_the_client_after_what_was_sent(
    cluster: Cluster, client: SyncClient
) -> None:
    with join(cluster, "closing") as ws:
        ws.send("close 4001 enough")
        assert told(ws) == "closing"
        assert closed_with(ws) == (4001, "enough")
    assert state_of(client, "closing") == {"messages": 1, "ends": [], "open": 0}


def test_an_upgrade_that_fails_is_an_http_error_and_leaves_no_socket(
    cluster: Cluster, client: SyncClient
) -> None:
    for path, status in (("raise", 500), ("denied", 403)):
        with pytest.raises(InvalidStatus) as caught:
            join_at(cluster.http, "failing", path=path)
        assert caught.value.response.status_code == status
        assert b"Traceback" not in (caught.value.response.body or b"")
    with pytest.raises(InvalidStatus) as caught:
        connect(f"ws{cluster.http.removeprefix('http')}/Nothing/x/", compression=None)
    assert caught.value.response.status_code == 404
    assert state_of(client, "failing") == {"messages": 0, "ends": [], "open": 0}


def test_a_foreign_origin_is_refused_and_one_that_is_allowed_is_not(cluster: Cluster) -> None:
    for origin in ("https://evil.example", "null"):
        with pytest.raises(InvalidStatus) as caught:
            join(cluster, "origins", origin=origin)
        assert caught.value.response.status_code == 403
    for origin in ("https://friend.example", cluster.http):
        with join(cluster, "origins", origin=origin) as ws:
            ws.send("echo in")
            assert told(ws) == "in"


def test_a_client_that_reads_nothing_is_closed_and_nobody_waits_for_it(
    cluster: Cluster, client: SyncClient
) -> None:
    narrow = socket.create_connection(("127.0.0.1", int(cluster.http.rpartition(":")[2])))
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    with join(cluster, "slow", "name=quick") as quick:
        # Without the library's thread, which would read.
        narrow.sendall(
            b"GET /Room/slow/?name=slow HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
        )
        assert narrow.recv(12) == b"HTTP/1.1 101"
        room = client.get("Room", "slow")
        for _ in range(100):
            if room.tell("x" * 100_000) == 1:  # the slow one is gone
                break
            assert len(told(quick)) == 100_000
        ends = wait_for_ends(cluster, client, "slow", 1)
        assert ends == [["slow", 1013, "too slow", False]]
        quick.send("echo quick")
        while (last := told(quick)) != "quick":
            assert len(last) == 100_000
    narrow.close()


# --- deaths


def test_kill_9_of_workers_keeps_sockets_and_order_and_loses_and_doubles_nothing(
    cluster: Cluster, client: SyncClient
) -> None:
    rooms = rooms_of_both_workers(client)
    count = 300
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(join(cluster, room)) for room in rooms]

        def talk(ws: ClientConnection) -> None:
            for number in range(count):
                ws.send(f"count {number}")

        threads = [threading.Thread(target=talk, args=(ws,)) for ws in sockets]
        for thread in threads:
            thread.start()
        got: list[list[Any]] = [[], []]
        for kill_at, victim in ((40, 0), (80, 1)):
            for index, ws in enumerate(sockets):
                while len(got[index]) < kill_at:
                    got[index].append(json.loads(told(ws)))
            cluster.kill(cluster.worker_pids[victim])
        for index, ws in enumerate(sockets):
            while len(got[index]) < count:
                got[index].append(json.loads(told(ws)))
        for thread in threads:
            thread.join(DEADLINE_S)
        wanted = [[n + 1, n] for n in range(count)]
        assert got == [wanted, wanted]
    for room in rooms:
        assert wait_for_ends(cluster, client, room, 1)[0][1:3] == [1000, ""]


@contextlib.contextmanager
def own_gateway(cluster: Cluster) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A gateway that no supervisor watches, as in a user's own server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        http = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = GatewayConfig(app=cluster.app, url=cluster.url, listener=listener.fileno())
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "perdure_gateway", config.to_json()],
            pass_fds=[listener.fileno()],
            env=environment(),
            stderr=subprocess.DEVNULL,
        )
    try:
        yield process, http
    finally:
        process.kill()
        process.wait(DEADLINE_S)


def test_sockets_of_a_gateway_that_is_killed_or_stopped_for_too_long_end_once_at_each_object(
    cluster: Cluster, client: SyncClient
) -> None:
    rooms = [room + "-left" for room in rooms_of_both_workers(client)]
    with own_gateway(cluster) as (process, http), contextlib.ExitStack() as stack:
        sleeping = [stack.enter_context(join_at(http, room, "name=sleeping")) for room in rooms]
        killed = [stack.enter_context(join(cluster, room, "name=killed")) for room in rooms for _ in range(2)]
        os.kill(process.pid, signal.SIGSTOP)
        cluster.kill(cluster.gateway_pid)
        for room in rooms:
            ends = wait_for_ends(cluster, client, room, 3)
            assert sorted(ends) == [["killed", 1006, "", False]] * 2 + [["sleeping", 1006, "", False]]
            assert state_of(client, room)["open"] == 0
        for ws in killed:
            with pytest.raises(ConnectionClosed):
                told(ws)
        # It does not know yet that it was given up: its workers tell it, and it goes on with a new name.
        os.kill(process.pid, signal.SIGCONT)
        for ws in sleeping:
            assert closed_with(ws)[0] == 1001
        for base in (http, cluster.http):
            with join_at(base, rooms[0], "name=new") as ws:
                ws.send("echo new")
                assert told(ws) == "new"
        for room in rooms:
            ends = [end for end in state_of(client, room)["ends"] if end[0] != "new"]
            assert len(ends) == 3


def test_a_stop_says_1001_to_clients_and_their_objects_know(cluster: Cluster) -> None:
    with join(cluster, "stopped", "name=there") as ws:
        ws.send("echo 1")
        assert told(ws) == "1"
        cluster.stop()
        assert closed_with(ws)[0] == 1001
    cluster.start()
    with cluster.connect() as client:
        assert state_of(client, "stopped") == {
            "messages": 1,
            "ends": [["there", 1001, "the server is stopping", False]],
            "open": 0,
        }
