"""Public methods through the real gateway and a real worker: arguments and ends of every kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes.cluster import Cluster, running_cluster
from processes.http_client import Reply, ask, connect

pytestmark = pytest.mark.processes
APP = Path(__file__).parents[1] / "gateway" / "public_app.py"
KEY = "12345678-1234-5678-1234-567812345678"
NOON = "2026-01-02T12:00:00+00:00"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    data = tmp_path_factory.mktemp("public") / "data"
    with running_cluster(APP, data, workers=1, options=("--http", "127.0.0.1:0")) as running:
        running.wait_until("the gateway answers", lambda: ask(running.http, "GET", "/docs").status == 200)
        yield running


def call(cluster: Cluster, method: str, arguments: Any) -> Reply:
    body = json.dumps(arguments).encode()
    return ask(cluster.http, "POST", f"/Shop/a/{method}", body, {"content-type": "application/json"})


@pytest.mark.parametrize(
    ("method", "arguments", "result"),
    [
        ("mixed", {}, "mixed"),
        ("scalars", ["2026-01-02", KEY, "aGk=", 1, None], ["2026-01-02", KEY, "aGk=", 1.0, None]),
        (
            "containers",
            {
                "pair": [1, KEY],
                "many": {"a": "2026-01-02"},
                "keyed": [[1, "one"]],
                "point": [1, 2],
                "place": {"on": "2026-01-02"},
            },
            [[1, KEY], {"a": "2026-01-02"}, [[1, "one"]], [1, 2.0], {"on": "2026-01-02"}],
        ),
        (
            "order",
            {"line": {"price": 1.5, "when": NOON, "tags": ["b", "a"]}, "colour": "blue"},
            {
                "line": {"price": "1.5", "when": NOON, "tags": ["a", "b"], "children": []},
                "colour": "blue",
                "count": 1,
            },
        ),
        ("person", {"person": {"name": "Ada", "born": "1815-12-10"}}, {"name": "Ada", "born": "1815-12-10"}),
        ("either", ["now"], "now"),
        ("either", [[KEY]], [KEY]),
        ("anything", {"a": [1, {"b": None}]}, [[], {"a": [1, {"b": None}]}]),
        ("anything", [1, "x"], [[1, "x"], {}]),
    ],
)
def test_values_of_every_kind_go_there_and_come_back(
    cluster: Cluster, method: str, arguments: Any, result: Any
) -> None:
    reply = call(cluster, method, arguments)
    assert (reply.status, json.loads(reply.body)) == (200, result)


@pytest.mark.parametrize(
    ("method", "arguments", "told"),
    [
        ("scalars", {"day": "x"}, "this is no date"),
        ("scalars", [], "misses the arguments"),
        ("count", {"to": "3"}, "argument 'to'"),
        ("count", {"other": 3}, "unexpected argument 'other'"),
        ("person", {"person": {}}, "valid for Person"),
        ("order", {"line": {"price": True, "when": NOON}}, ".price"),
        ("order", {"line": {"price": 1, "when": NOON}, "colour": "green"}, "Colour"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_before_anything_runs(
    cluster: Cluster, method: str, arguments: Any, told: str
) -> None:
    reply = call(cluster, method, arguments)
    assert reply.status == 400
    assert told in json.loads(reply.body)["error"]["message"]


def test_a_stream_comes_line_by_line(cluster: Cluster) -> None:
    reply = call(cluster, "count", [5])
    assert reply.header("content-type") == "application/x-ndjson"
    assert [json.loads(line) for line in reply.body.splitlines()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("most", [0, 100_000_000])
def test_a_client_that_leaves_ends_the_stream_also_one_that_has_said_nothing_yet(
    cluster: Cluster, most: int
) -> None:
    body = b'{"most": %d}' % most
    with connect(cluster.http) as connection:
        head = f"POST /Shop/left/events HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n" + body)
        assert connection.recv(1_000).startswith(b"HTTP/1.1 200 ")
    free = ask(cluster.http, "POST", "/Shop/left/mixed", b"{}", {"content-type": "application/json"})
    assert free.status == 200


def test_a_declared_exception_is_told_and_any_other_is_only_logged(cluster: Cluster) -> None:
    declared = call(cluster, "sold_out", {})
    assert (declared.status, json.loads(declared.body)) == (
        422,
        {"error": {"type": "SoldOut", "message": "no more of it"}},
    )
    broken = call(cluster, "broken", {})
    error = json.loads(broken.body)["error"]
    assert (broken.status, error["type"]) == (500, "InternalError")
    assert b"inside" not in broken.body
    lines = cluster.wait_until(
        "the log has it", lambda: [line for line in cluster.log() if line.get("error_id") == error["id"]]
    )
    assert "inside" in lines[0]["message"]
    [traced] = [line for line in cluster.log() if line["message"].startswith("Shop.broken() raised")]
    assert 'KeyError("inside")' in traced["remote_traceback"]
    assert not [line for line in cluster.log() if "SoldOut" in line["message"]]
