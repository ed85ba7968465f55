"""HTTP through `perdure run`: the real gateway, the real workers, real sockets."""

from __future__ import annotations

import http.client
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from perdure import Limits
from processes.cluster import Cluster, environment, running_cluster
from processes.http_client import ask, connect, read_all

pytestmark = pytest.mark.processes
APP = Path(__file__).with_name("http_app.py")
HTTP = ("--http", "127.0.0.1:0")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    data = tmp_path_factory.mktemp("http") / "data"
    with running_cluster(APP, data, options=HTTP) as running:
        running.wait_until(
            "the gateway answers", lambda: ask(running.http, "GET", "/Web/ready/").status == 200
        )
        yield running


def test_method_path_query_headers_body_and_address_reach_the_object(cluster: Cluster) -> None:
    headers = {"x-own": "1", "x-perdure-principal": "spoofed", "content-type": "text/x"}
    reply = ask(cluster.http, "PATCH", "/Web/a%2Fb%20%C3%A4/x%20y?q=1&r=2", b"body", headers)
    seen = json.loads(reply.body)
    assert (seen["name"], seen["method"], seen["path"]) == ("a/b ä", "PATCH", "/x y")
    assert (seen["query"], seen["client"]) == ({"q": "1", "r": "2"}, "127.0.0.1")
    assert (seen["headers"]["x-own"], seen["headers"]["content-type"]) == ("1", "text/x")
    assert "x-perdure-principal" not in seen["headers"]
    echo = ask(cluster.http, "POST", "/Web/a/echo", b"\x00\xff" * 1_000)
    assert (echo.body, echo.header("x-method")) == (b"\x00\xff" * 1_000, "POST")


def test_status_and_several_cookies_come_back(cluster: Cluster) -> None:
    reply = ask(cluster.http, "GET", "/Web/a/cookies")
    assert reply.status == 201
    assert [value[:3] for name, value in reply.headers if name == "set-cookie"] == ["a=1", "b=2"]


def test_bodies_are_streamed_both_ways(cluster: Cluster) -> None:
    size = 20_000_000
    assert ask(cluster.http, "PUT", "/Web/up/size", b"x" * size).body == b"%d" % size
    numbers = ask(cluster.http, "GET", "/Web/down/stream?to=50000").body.split()
    assert [int(number) for number in numbers] == list(range(50_000))


def test_a_client_that_leaves_a_stream_ends_it_at_the_object(cluster: Cluster) -> None:
    with connect(cluster.http) as connection:
        connection.sendall(b"GET /Web/left/stream?to=100000000 HTTP/1.1\r\nhost: h\r\n\r\n")
        connection.recv(1_000)
    cluster.wait_until(
        "the object is free again", lambda: ask(cluster.http, "GET", "/Web/left/").status == 200
    )


def test_head_and_options_are_what_the_object_makes_of_them(cluster: Cluster) -> None:
    head = ask(cluster.http, "HEAD", "/Web/a/cookies")
    assert (head.status, head.body) == (201, b"")
    assert json.loads(ask(cluster.http, "OPTIONS", "/Web/a/").body)["method"] == "OPTIONS"


@pytest.mark.parametrize("path", ["/", "/Web", "/Nowhere/a/", "/Silent/a/", "/Silent/a/get", "/Web/%ff/"])
def test_what_is_not_served_is_404(cluster: Cluster, path: str) -> None:
    reply = ask(cluster.http, "POST", path)
    assert (reply.status, json.loads(reply.body)["error"]["type"]) == (404, "NotFound")


def test_a_body_beyond_the_limit_is_413_whatever_its_length_says(cluster: Cluster) -> None:
    for length in (b"content-length: 999999999999", b"content-length: %d" % (100 * 2**20 + 1)):
        with connect(cluster.http) as connection:
            connection.sendall(b"POST /Web/a/size HTTP/1.1\r\nhost: h\r\n" + length + b"\r\n\r\nxx")
            assert read_all(connection).startswith(b"HTTP/1.1 413 ")


def test_a_compressed_request_is_415(cluster: Cluster) -> None:
    assert ask(cluster.http, "POST", "/Web/a/echo", b"x", {"content-encoding": "gzip"}).status == 415


def test_an_exception_is_500_with_an_id_that_the_log_knows_and_no_traceback(cluster: Cluster) -> None:
    reply = ask(cluster.http, "GET", "/Web/a/raise")
    error = json.loads(reply.body)["error"]
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert b"Traceback" not in reply.body
    lines = cluster.wait_until(
        "the log has it", lambda: [line for line in cluster.log() if line.get("error_id") == error["id"]]
    )
    assert "secret of the object" in lines[0]["message"]
    assert lines[0]["object"] == "Web/a"
    [traced] = [line for line in cluster.log() if line["message"].startswith("Web.fetch() raised KeyError")]
    assert traced["object"] == "Web/a"
    assert 'raise KeyError("secret of the object")' in traced["remote_traceback"]


def test_header_values_with_line_breaks_are_refused_both_ways(cluster: Cluster) -> None:
    reply = ask(cluster.http, "GET", "/Web/a/split?value=a%0D%0Aset-cookie:%20evil=1")
    assert reply.status == 500
    assert reply.header("set-cookie") is None
    with connect(cluster.http) as connection:
        connection.sendall(b"GET /Web/a/ HTTP/1.1\r\nhost: h\r\nx-own: a\rb: c\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_a_request_with_an_idempotency_key_has_its_effect_once(cluster: Cluster) -> None:
    key = {"idempotency-key": "order-1"}
    replies = [ask(cluster.http, "POST", "/Web/once/count", b"", key).body for _ in range(3)]
    assert replies == [b"1"] * 3
    assert ask(cluster.http, "POST", "/Web/once/count", b"", {"idempotency-key": "order-2"}).body == b"2"


def test_public_methods_are_called_with_json_and_others_are_not_there(cluster: Cluster) -> None:
    headers = {"content-type": "application/json"}
    reply = ask(cluster.http, "POST", "/Web/rpc/increment", b'{"by": 5}', headers)
    assert (reply.status, json.loads(reply.body)) == (200, 5)
    assert ask(cluster.http, "POST", "/Web/rpc/increment", b'{"by": "x"}', headers).status == 400
    document = json.loads(ask(cluster.http, "GET", "/openapi.json").body)
    assert list(document["paths"]) == ["/Web/{name}/increment"]
    assert b"<script>" in ask(cluster.http, "GET", "/docs").body


def test_many_requests_at_once_are_all_counted(cluster: Cluster) -> None:
    with ThreadPoolExecutor(16) as pool:
        bodies = list(pool.map(lambda _: ask(cluster.http, "POST", "/Web/many/count").body, range(200)))
    assert sorted(map(int, bodies)) == list(range(1, 201))


def test_a_thousand_idle_connections_do_not_disturb_others(cluster: Cluster) -> None:
    idle = [connect(cluster.http) for _ in range(1_000)]
    try:
        for connection in idle[::2]:
            connection.sendall(b"GET /Web/a/ HTTP/1.1\r\nhost: h\r\n")  # and never the end of it
        for _ in range(20):
            assert ask(cluster.http, "GET", "/Web/a/").status == 200
        # Those that stopped within their headers are cut off, after 10 s and a look.
        answers = read_all(idle[0])
        assert answers.startswith(b"HTTP/1.1 408 ")
    finally:
        for connection in idle:
            connection.close()


# --- the process


def test_a_killed_gateway_is_back_at_its_address_and_who_came_meanwhile_is_served(tmp_path: Path) -> None:
    with running_cluster(APP, tmp_path / "data", workers=1, options=HTTP) as cluster:
        url = cluster.http
        assert ask(url, "POST", "/Web/a/count").body == b"1"
        cluster.kill(cluster.gateway_pid)
        assert ask(url, "POST", "/Web/a/count").body == b"2"
        assert cluster.http == url


def test_a_stop_answers_the_requests_that_run_and_takes_no_more(tmp_path: Path) -> None:
    with running_cluster(APP, tmp_path / "data", workers=1, options=HTTP) as cluster:
        url = cluster.http
        bodies: list[bytes] = []
        failed = threading.Event()

        def count() -> None:
            while not failed.is_set():
                try:
                    reply = ask(url, "POST", "/Web/a/count")
                    assert reply.status == 200, reply
                    bodies.append(reply.body)
                except OSError:
                    failed.set()

        thread = threading.Thread(target=count)
        thread.start()
        cluster.wait_until("requests run", lambda: len(bodies) > 20)
        cluster.stop()
        thread.join(20)
        assert not (cluster.data / "http").exists()
        cluster.start()
        assert int(ask(cluster.http, "POST", "/Web/a/count").body) == len(bodies) + 1


def test_a_killed_worker_costs_its_callers_time_and_no_request(tmp_path: Path) -> None:
    with running_cluster(APP, tmp_path / "data", workers=1, options=HTTP) as cluster:
        url = cluster.http
        assert ask(url, "POST", "/Web/a/count").body == b"1"
        cluster.kill(cluster.worker_pids[0])
        assert ask(url, "POST", "/Web/a/count").body == b"2"


def test_a_port_in_use_is_told_in_one_line_with_an_exit_code(tmp_path: Path, cluster: Cluster) -> None:
    address = cluster.http.removeprefix("http://")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "perdure_cli", "run", str(APP), "--data", str(tmp_path / "data")),
            *("--http", address),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert run.returncode == 5
    assert re.search(rf"cannot listen at {address}: Address already in use; .*--http off", run.stderr)


def test_tracebacks_are_shown_in_development_only(tmp_path: Path) -> None:
    with running_cluster(APP, tmp_path / "data", workers=1, options=(*HTTP, "--dev")) as cluster:
        error = json.loads(ask(cluster.http, "GET", "/Web/a/raise").body)["error"]
        assert "KeyError: 'secret of the object'" in error["traceback"]


def test_tokens_are_asked_for_and_read_again_when_the_process_is_told_to(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token-123456789 Web\n")
    tokens.chmod(0o600)
    options = (*HTTP, "--http-tokens", str(tokens))
    with running_cluster(APP, tmp_path / "data", workers=1, options=options) as cluster:

        def status(token: str) -> int:
            headers = {"authorization": f"Bearer {token}"} if token else {}
            return ask(cluster.http, "GET", "/Web/a/", None, headers).status

        assert [status(""), status("wrong-token-123456789")] == [401, 401]
        assert status("first-token-123456789") == 200
        tokens.write_text("second-token-12345678\n")
        os.kill(cluster.gateway_pid, signal.SIGHUP)
        cluster.wait_until("the new token counts", lambda: status("second-token-12345678") == 200)
        assert status("first-token-123456789") == 401


def test_an_app_in_the_module_is_the_front_and_hands_requests_on(tmp_path: Path) -> None:
    app = tmp_path / "front.py"
    app.write_text(
        APP.read_text()
        + """

from starlette.applications import Starlette
from starlette.routing import Mount, Route

from perdure_gateway import Gateway

gateway = Gateway(classes=[Web])


async def hand_on(request: Request) -> Response:
    if request.headers.get("x-user") != "ada":
        return Response("who are you?", 403)
    return await gateway.fetch(Web, request.path_params["name"], request)


app = Starlette(routes=[Route("/mine/{name}", hand_on), Mount("/objects", gateway)])
"""
    )
    with running_cluster(app, tmp_path / "data", workers=1, options=HTTP) as cluster:
        assert ask(cluster.http, "GET", "/mine/a").status == 403
        seen = json.loads(ask(cluster.http, "GET", "/mine/a", None, {"x-user": "ada"}).body)
        assert (seen["name"], seen["path"]) == ("a", "/mine/a")
        assert ask(cluster.http, "POST", "/objects/Web/a/count").body == b"1"
        assert ask(cluster.http, "GET", "/Web/a/").status == 404


# --- too much and too late


def test_a_request_over_its_deadline_is_504_and_one_to_a_full_mailbox_503(tmp_path: Path) -> None:
    app = tmp_path / "front.py"
    app.write_text(
        APP.read_text()
        + "\nfrom starlette.applications import Starlette\n"
        + "from starlette.routing import Mount\nfrom perdure_gateway import Gateway\n"
        + "soon, late = Gateway(timeout=0.5), Gateway(timeout=60)\n"
        + "app = Starlette(routes=[Mount('/soon', soon), Mount('/late', late)])\n"
    )
    with running_cluster(app, tmp_path / "data", workers=1, options=HTTP) as cluster:
        reply = ask(cluster.http, "GET", "/soon/Web/a/hang")
        assert (reply.status, json.loads(reply.body)["error"]["type"]) == (504, "OutcomeUnknown")
        waiting = [connect(cluster.http) for _ in range(Limits().mailbox_calls_max + 2)]
        try:
            for connection in waiting:
                connection.sendall(b"GET /late/Web/busy/hang HTTP/1.1\r\nhost: h\r\n\r\n")
            refused: bytes = cluster.wait_until(
                "one is too many", lambda: next(filter(None, map(what_came, waiting)), b"")
            )
            assert refused.startswith(b"HTTP/1.1 503 ")
            assert re.search(rb"\r\nretry-after: [1-9]", refused)
            assert ask(cluster.http, "GET", "/soon/Web/other/").status == 200
        finally:
            for connection in waiting:
                connection.close()


def test_without_descriptors_connections_are_refused_and_what_is_open_goes_on(tmp_path: Path) -> None:
    with running_cluster(APP, tmp_path / "data", workers=1, options=HTTP) as cluster:
        parts = urlsplit(cluster.http)
        kept = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
        kept.request("GET", "/Web/a/")
        assert kept.getresponse().read()
        pid = cluster.gateway_pid
        highest = max(int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir())
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 8, hard))
        others = [connect(cluster.http) for _ in range(60)]
        cluster.wait_until("some are refused", lambda: sum(is_closed(other) for other in others) > 20)
        for _ in range(10):
            kept.request("POST", "/Web/a/count")
            assert kept.getresponse().read()
        for other in others:
            other.close()
        cluster.wait_until("there is room again", lambda: answers(cluster.http))
        assert cluster.gateway_pid == pid
        kept.close()


def what_came(connection: socket.socket) -> bytes:
    connection.setblocking(False)  # with a timeout, recv() waits first, whatever its flags say
    try:
        return connection.recv(65_536)
    except BlockingIOError:
        return b""


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def answers(url: str) -> bool:
    try:
        return ask(url, "GET", "/Web/a/").status == 200
    except (OSError, http.client.HTTPException):
        return False
