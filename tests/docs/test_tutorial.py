"""The tutorial's code runs as it stands there, in at most forty lines, and survives what the text says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from websockets.sync.client import ClientConnection, connect

from docs.test_guide import read_page
from processes.cluster import ROOT, running_cluster

pytestmark = pytest.mark.processes

PAGE = read_page((ROOT / "docs" / "tutorial.md").read_text("utf-8"))
LINES_MAX = 40
WAIT_S = 10.0


def heard(socket: ClientConnection) -> tuple[str, str]:
    entry = json.loads(socket.recv(WAIT_S))
    return entry["name"], entry["text"]


def test_the_tutorials_chat_has_at_most_forty_lines() -> None:
    lines = [line for line in PAGE.app.splitlines() if line.strip()]
    assert len(lines) <= LINES_MAX


def test_the_tutorials_chat_keeps_its_sockets_and_its_history_over_kill_9_and_a_restart(
    tmp_path: Path,
) -> None:
    app = tmp_path / "app.py"
    app.write_text(PAGE.app, "utf-8")
    options = ("--http", "127.0.0.1:0")
    with running_cluster(app, tmp_path / "data", options=options) as cluster:
        room = (cluster.data / "http").read_text().strip().replace("http", "ws", 1) + "/Room/lobby"
        with connect(f"{room}?name=Ann") as ann:
            with connect(f"{room}?name=Ben") as ben:
                assert heard(ann) == ("Ben", "is here")
                ann.send("before")
                assert heard(ben) == heard(ann) == ("Ann", "before")
                for pid in cluster.worker_pids:
                    cluster.kill(pid)
                ben.send("after")
                assert heard(ben) == heard(ann) == ("Ben", "after")
            assert heard(ann) == ("Ben", "has left")
        cluster.stop()
        cluster.start()
        room = (cluster.data / "http").read_text().strip().replace("http", "ws", 1) + "/Room/lobby"
        with connect(f"{room}?name=Cleo") as cleo:
            assert [heard(cleo) for _ in range(2)] == [("Ann", "before"), ("Ben", "after")]


def test_the_room_of_the_readme_hands_on_what_is_said(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
    app = tmp_path / "app.py"
    app.write_text(next(block for block in blocks if "class Room" in block), "utf-8")
    with running_cluster(app, tmp_path / "data", options=("--http", "127.0.0.1:0")) as cluster:
        room = (cluster.data / "http").read_text().strip().replace("http", "ws", 1) + "/Room/lobby"
        with connect(room) as ann, connect(room) as ben:
            ann.send("hello")
            assert ann.recv(WAIT_S) == ben.recv(WAIT_S) == "hello"
