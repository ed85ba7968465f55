"""The gateway's application: what reaches objects, what comes back, and what does not."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount, Route

from gateway.asgi_scene import Cluster, Response, ask, connect, request
from perdure import DurableObject, errors
from perdure.ids import new_unique_id
from perdure.web import WebReply
from perdure_gateway import Gateway


class Room(DurableObject):
    async def say(self, text: str) -> str:
        return text


def test_a_request_reaches_its_object_with_all_that_it_says() -> None:
    cluster = Cluster()
    headers = [(b"host", b"example.org"), (b"cookie", b"a=1"), (b"accept", b"x"), (b"accept", b"y")]
    request(cluster, "PUT", "/Room/a%2Fb/x%20y/z?q=1&q=2", headers=headers, body=[b"ab", b"cd"])
    [target], [sent] = cluster.targets, cluster.requests
    assert (target.namespace, target.name) == ("Room", "a/b")
    assert (sent["method"], sent["path"], sent["raw_path"]) == ("PUT", "/x y/z", b"/x%20y/z")
    assert (sent["query"], sent["root_path"]) == (b"q=1&q=2", "/Room/a/b")
    assert sent["client"] == ["192.0.2.7", 50_000]
    assert [tuple(pair) for pair in sent["headers"]][:4] == headers
    assert (sent["body"], sent["length"], sent["socket"]) == (b"abcd", 4, None)


def test_a_unique_id_addresses_its_object() -> None:
    cluster, key = Cluster(), new_unique_id("Room")
    request(cluster, "GET", f"/Room/~{key}/")
    assert (cluster.targets[0].object_id, cluster.targets[0].name) == (key.key, None)
    assert request(cluster, "GET", f"/Other/~{key}/").status == 400


def test_a_long_body_is_given_as_the_object_takes_it() -> None:
    cluster = Cluster()
    parts = [b"x" * 200_000] * 3
    request(cluster, "POST", "/Room/a/", headers=[(b"content-length", b"600000")], body=parts)
    [sent] = cluster.requests
    assert len(sent["body"]) == 400_000
    assert (len(sent["rest"]), sent["length"]) == (200_000, 600_000)


def test_status_headers_and_several_cookies_come_back() -> None:
    raw = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-own", b"1"), (b"content-type", b"text/x")]
    reply = request(Cluster(lambda _: WebReply(418, list(raw), b"tea")), "GET", "/Room/a/")
    assert (reply.status, reply.body) == (418, b"tea")
    assert [pair for pair in reply.raw if pair[0] != b"content-length"] == raw
    assert reply.headers[b"content-length"] == b"3"


@pytest.mark.parametrize("name", [b"x-perdure-principal", b"x-perdure-anything"])
def test_internal_headers_are_stripped_both_ways(name: bytes) -> None:
    cluster = Cluster(lambda _: WebReply(200, [(name, b"1"), (b"x-own", b"1")], b""))
    reply = request(cluster, "GET", "/Room/a/", headers=[(name, b"spoofed"), (b"x-perduring", b"1")])
    assert [pair[0] for pair in cluster.requests[0]["headers"]] == [b"x-perduring"]
    assert name not in reply.headers
    assert reply.headers[b"x-own"] == b"1"


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: x", b"a\nb", b"a\rb", b"a\0"])
def test_a_line_break_in_a_headers_value_is_refused_both_ways(value: bytes) -> None:
    cluster = Cluster()
    assert request(cluster, "GET", "/Room/a/", headers=[(b"x-own", value)]).status == 400
    assert not cluster.requests
    reply = request(Cluster(lambda _: WebReply(200, [(b"x-own", value)], b"")), "GET", "/Room/a/")
    assert reply.status == 500
    assert b"x-own" not in reply.headers


def test_a_request_that_is_no_upgrade_does_not_look_like_one_to_its_object() -> None:
    cluster = Cluster()
    request(cluster, "GET", "/Room/a/", headers=[(b"upgrade", b"websocket"), (b"a", b"b")])
    assert [pair[0] for pair in cluster.requests[0]["headers"]] == [b"a"]


def test_headers_of_one_connection_do_not_pass() -> None:
    raw = [(b"transfer-encoding", b"chunked"), (b"connection", b"close"), (b"content-length", b"99")]
    reply = request(Cluster(lambda _: WebReply(200, list(raw), b"ok")), "GET", "/Room/a/")
    assert reply.raw == [(b"content-length", b"2")]


@pytest.mark.parametrize(("method", "status"), [("GET", 204), ("GET", 304), ("HEAD", 200)])
def test_answers_without_a_body_have_none_and_keep_their_headers(method: str, status: int) -> None:
    cluster = Cluster(lambda _: WebReply(status, [(b"content-length", b"7")], b""))
    reply = request(cluster, method, "/Room/a/")
    assert (reply.status, reply.body, reply.headers[b"content-length"]) == (status, b"", b"7")
    assert cluster.requests[0]["method"] == method


@pytest.mark.parametrize("path", ["/", "/Room", "/Room/", "/x.y/%ff/", "/docs", "/openapi.json", "//a/b"])
def test_paths_that_name_no_object_are_404(path: str) -> None:
    cluster = Cluster()
    assert request(cluster, "GET", path).status == 404
    assert not cluster.requests


def test_only_what_a_gateway_was_told_to_serve_is_there() -> None:
    cluster = Cluster()
    gateway = Gateway(classes=[Room], namespaces=["Other"])
    assert [
        request(cluster, "GET", f"/{n}/a/", gateway=gateway).status for n in ("Room", "Other", "Third")
    ] == [
        200,
        200,
        404,
    ]


def raising(error: Exception) -> Cluster:
    def answer(_: Any) -> WebReply:
        raise error

    return Cluster(answer)


def test_an_unknown_namespace_and_a_class_without_fetch_look_the_same() -> None:
    replies = [
        request(raising(error), "GET", "/Room/a/")
        for error in (errors.UnknownNamespace("a"), errors.UnknownMethod("b"))
    ]
    assert {(reply.status, reply.body) for reply in replies} == {(404, replies[0].body)}


def test_an_exception_is_500_with_an_id_under_which_the_log_has_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = errors.RemoteError("secret", type_name="KeyError", object_id="Room/a")
    with caplog.at_level(logging.ERROR):
        reply = request(raising(error), "GET", "/Room/a/")
    told = json.loads(reply.body)["error"]
    assert reply.status == 500
    assert "secret" not in str(told)
    assert "traceback" not in told
    [record] = caplog.records
    assert vars(record)["error_id"] == told["id"]
    assert "secret" in record.getMessage()
    assert vars(record)["object"] == "Room/a"


def test_a_defect_of_the_gateway_itself_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reply = request(raising(ZeroDivisionError("inside")), "GET", "/Room/a/")
    assert reply.status == 500
    assert b"inside" not in reply.body
    assert caplog.records[0].exc_info is not None


def test_a_cluster_that_is_away_is_503(tmp_path: Path) -> None:
    class Away(Gateway):
        async def client(self) -> Any:
            raise errors.ShardUnavailable("no router answered")

    reply = asyncio.run(ask(Away(f"ipc://{tmp_path}/none"), "GET", "/Room/a/"))
    assert (reply.status, reply.headers[b"retry-after"]) == (503, b"1")


def test_an_idempotency_key_names_the_request_for_one_method_and_path() -> None:
    cluster = Cluster()
    key = [(b"idempotency-key", b"k1")]
    for method, path in (
        ("POST", "/Room/a/x"),
        ("POST", "/Room/a/x"),
        ("PUT", "/Room/a/x"),
        ("POST", "/Room/a/y"),
    ):
        request(cluster, method, path, headers=key)
    first, again, other_method, other_path = cluster.named
    assert first == again
    assert len({first, other_method, other_path}) == 3
    request(cluster, "POST", "/Room/a/x")
    assert cluster.named[-1] is None
    for bad in (b"", b"k" * 256):
        assert request(cluster, "POST", "/Room/a/x", headers=[(b"idempotency-key", bad)]).status == 400


def test_a_client_that_leaves_while_it_sends_is_not_answered() -> None:
    async def scenario() -> list[Any]:
        gateway, sent = Gateway(), []
        connect(gateway, Cluster())

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/Room/a/", "query_string": b"", "root_path": ""}
        await gateway({**scope, "headers": [(b"content-length", b"5")]}, receive, send)
        return sent

    assert asyncio.run(scenario()) == []


# --- in applications of users


def front(gateway: Gateway) -> Starlette:
    async def hand_on(incoming: Request) -> Any:
        return await gateway.fetch(Room, incoming.path_params["name"], incoming)

    routes = [Route("/go/{name}", hand_on, methods=["GET", "POST"]), Mount("/objects", gateway)]
    return Starlette(routes=routes)


def through(cluster: Cluster, method: str, path: str, **options: Any) -> Response:
    async def scenario() -> Response:
        gateway = Gateway()
        connect(gateway, cluster)
        return await ask(front(gateway), method, path, **options)

    return asyncio.run(scenario())


def test_mounted_it_serves_what_is_below_its_place() -> None:
    cluster = Cluster()
    assert through(cluster, "GET", "/objects/Room/a%2Fb/x").status == 200
    assert cluster.targets[0].name == "a/b"
    assert (cluster.requests[0]["path"], cluster.requests[0]["root_path"]) == ("/x", "/objects/Room/a/b")


def test_a_front_hands_a_request_on_and_returns_the_response() -> None:
    cluster = Cluster(lambda _: WebReply(201, [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")], b"made"))
    headers = [(b"x-own", b"1"), (b"x-perdure-principal", b"spoofed")]
    reply = through(cluster, "POST", "/go/lobby?x=1", headers=headers, body=b"text")
    assert (reply.status, reply.body) == (201, b"made")
    assert [value for name, value in reply.raw if name == b"set-cookie"] == [b"a=1", b"b=2"]
    [sent] = cluster.requests
    assert (sent["method"], sent["path"], sent["query"]) == ("POST", "/go/lobby", b"x=1")
    assert sent["rest"] == b"text"
    assert b"x-perdure-principal" not in [pair[0] for pair in sent["headers"]]


# --- tokens


def test_with_a_token_file_nobody_gets_in_without_a_token(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("all-of-it-1234567890\nonly-rooms-123456789 Room\n")
    file.chmod(0o600)
    cluster, gateway = Cluster(), Gateway(tokens=file)

    def status(path: str, token: bytes | None) -> int:
        headers = [] if token is None else [(b"authorization", b"Bearer " + token)]
        return request(cluster, "GET", path, headers=headers, gateway=gateway).status

    assert [status("/Room/a/", token) for token in (None, b"", b"wrong-12345678901234")] == [401] * 3
    assert [status(path, b"all-of-it-1234567890") for path in ("/Room/a/", "/Other/a/")] == [200, 200]
    assert [status(path, b"only-rooms-123456789") for path in ("/Room/a/", "/Other/a/")] == [200, 404]
    assert all(b"authorization" not in [p[0] for p in sent["headers"]] for sent in cluster.requests)
