"""Calls of public methods over HTTP: the way there, the way back, and who may."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from gateway.asgi_scene import Cluster, Headers, Response, request
from gateway.public_app import Shop, SoldOut
from perdure import errors
from perdure_gateway import Gateway

JSON: Headers = [(b"content-type", b"application/json"), (b"host", b"shop.example")]


def call(
    cluster: Cluster, path: str, body: bytes = b"", headers: Headers = JSON, method: str = "POST"
) -> Response:
    gateway = Gateway(classes=[Shop], allow_origins=["https://friend.example"])
    return request(cluster, method, path, gateway=gateway, headers=headers, body=body)


def answering(result: Any) -> tuple[Cluster, list[Any]]:
    calls: list[Any] = []

    def record(method: str, *args: Any, **kwargs: Any) -> Any:
        calls.append((method, args, kwargs))
        if isinstance(result, Exception):
            raise result
        return result

    return Cluster(call=record), calls


def test_a_call_gets_its_arguments_and_gives_its_result_as_json() -> None:
    cluster, calls = answering({"when": date(2026, 1, 2)})
    reply = call(cluster, "/Shop/a/scalars", b'{"day": "2026-01-02", "flag": null}')
    assert calls == [("scalars", (), {"day": date(2026, 1, 2), "flag": None})]
    assert (reply.status, json.loads(reply.body)) == (200, {"when": "2026-01-02"})
    assert reply.headers[b"content-type"] == b"application/json"
    assert cluster.targets[0].name == "a"


@pytest.mark.parametrize(
    "path", ["/Shop/a/private", "/Shop/a/hidden", "/Shop/a/nothing", "/Shop/a/_cell", "/Shop/a/on_start"]
)
def test_what_is_not_marked_cannot_be_told_from_what_is_not_there(path: str) -> None:
    def answer(_: Any) -> Any:
        raise errors.UnknownMethod("the class has no fetch")

    cluster = Cluster(answer)
    reply, unknown = call(cluster, path), call(cluster, "/Nowhere/a/b")
    assert (reply.status, reply.raw, reply.body) == (404, unknown.raw, unknown.body)


def test_a_method_is_called_with_post_alone() -> None:
    cluster, calls = answering(1)
    reply = call(cluster, "/Shop/a/mixed", method="GET")
    assert (reply.status, reply.headers[b"allow"]) == (405, b"OPTIONS, POST")
    assert call(cluster, "/Shop/a/mixed", method="OPTIONS").status == 204
    assert not calls


@pytest.mark.parametrize("kind", [b"text/plain", b"application/x-www-form-urlencoded", b""])
def test_arguments_that_any_page_could_send_are_refused(kind: bytes) -> None:
    cluster, calls = answering(1)
    assert call(cluster, "/Shop/a/mixed", b"{}", [(b"content-type", kind)]).status == 415
    assert not calls


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"https://shop.example", 200),
        (b"https://friend.example", 200),
        (b"https://evil.example", 403),
        (b"null", 403),
    ],
)
def test_a_page_of_another_origin_may_not_call_unless_it_is_allowed(origin: bytes, status: int) -> None:
    cluster, calls = answering(1)
    reply = call(cluster, "/Shop/a/mixed", b"", [*JSON, (b"origin", origin)])
    assert reply.status == status
    assert len(calls) == (status == 200)
    preflight = call(cluster, "/Shop/a/mixed", b"", [*JSON, (b"origin", origin)], method="OPTIONS")
    assert (preflight.headers.get(b"access-control-allow-origin") == origin) == (status == 200)


@pytest.mark.parametrize("headers", [JSON, JSON[1:]], ids=["of the object", "of the gateway"])
def test_a_page_that_may_call_can_read_the_errors_too(headers: Headers) -> None:
    cluster, _ = answering(SoldOut("no more of it"))
    reply = call(cluster, "/Shop/a/mixed", b"[]", [*headers, (b"origin", b"https://friend.example")])
    assert reply.status == (422 if headers is JSON else 415)
    assert reply.headers[b"access-control-allow-origin"] == b"https://friend.example"


@pytest.mark.parametrize(
    ("path", "origin", "status"),
    [
        ("/Shop/a/mixed", b"https://friend.example", 204),
        ("/Shop/a/nothing", b"https://friend.example", 204),
        ("/Shop/a/mixed", b"https://evil.example", 401),
    ],
)
def test_a_page_is_told_that_it_may_send_its_token_before_it_sends_it(
    tmp_path: Path, path: str, origin: bytes, status: int
) -> None:
    """Browsers ask first, without the token; what is there is not told by that."""
    file = tmp_path / "tokens"
    file.write_text("for-shops-1234567890 Shop\n")
    file.chmod(0o600)
    gateway = Gateway(classes=[Shop], allow_origins=["https://friend.example"], tokens=file)
    cluster, calls = answering(1)
    asked = [(b"origin", origin), (b"access-control-request-method", b"POST")]
    preflight = request(cluster, "OPTIONS", path, gateway=gateway, headers=asked)
    assert preflight.status == status
    assert (b"authorization" in preflight.headers.get(b"access-control-allow-headers", b"")) == (
        status == 204
    )
    assert request(cluster, "POST", path, gateway=gateway, headers=[*JSON, (b"origin", origin)]).status == 401
    assert not calls


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (errors.InvalidArgument("Shop.order() misses the argument 'line'"), 400, "InvalidArgument"),
        (errors.Overloaded("full", retry_after=2), 503, "Overloaded"),
        (errors.DeadlineExceeded("late"), 504, "DeadlineExceeded"),
        (errors.OutcomeUnknown("lost"), 504, "OutcomeUnknown"),
        (errors.RemoteError("secret", type_name="KeyError", object_id="Shop/a"), 500, "InternalError"),
        (SoldOut("no more of it"), 422, "SoldOut"),
    ],
)
def test_errors_come_with_the_status_that_says_what_to_do(error: Exception, status: int, kind: str) -> None:
    cluster, _ = answering(error)
    reply = call(cluster, "/Shop/a/mixed")
    told = json.loads(reply.body)["error"]
    assert (reply.status, told["type"]) == (status, kind)
    assert ("id" in told) == (status == 500)
    assert "secret" not in told["message"]


def test_arguments_beyond_the_limit_are_refused() -> None:
    cluster, calls = answering(1)
    length = (b"content-length", b"%d" % (Gateway().limits.http_json_bytes_max + 1))
    assert call(cluster, "/Shop/a/mixed", b"", [*JSON, length]).status == 413
    assert not calls


def test_an_idempotency_key_makes_repeated_calls_one_request() -> None:
    cluster, _ = answering(1)
    for _ in range(2):
        call(cluster, "/Shop/a/mixed", b"", [*JSON, (b"idempotency-key", b"k")])
    assert cluster.named[0] == cluster.named[1] is not None


def test_a_streaming_method_answers_a_line_for_each_value_and_one_for_its_error() -> None:
    async def numbers(method: str, to: int) -> AsyncIterator[Any]:
        for number in range(to):
            yield number
        raise SoldOut("the end")

    reply = call(Cluster(call=numbers), "/Shop/a/count", b"[3]")
    lines = [json.loads(line) for line in reply.body.splitlines()]
    assert lines == [0, 1, 2, {"error": {"type": "SoldOut", "message": "the end"}}]
    assert reply.headers[b"content-type"] == b"application/x-ndjson"


def test_the_pages_describe_what_a_token_opens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text("for-shops-1234567890 Shop\nfor-others-123456789 Other\n")
    file.chmod(0o600)
    gateway = Gateway(classes=[Shop], tokens=file)

    def page(path: str, token: bytes = b"", method: str = "GET") -> Response:
        headers = [(b"authorization", b"Bearer " + token)] if token else []
        return request(Cluster(), method, path, gateway=gateway, headers=headers)

    assert page("/openapi.json").status == 401
    assert "/Shop/{name}/order" in json.loads(page("/openapi.json", b"for-shops-1234567890").body)["paths"]
    assert json.loads(page("/openapi.json", b"for-others-123456789").body)["paths"] == {}
    assert b"<title>" in page("/docs").body
    assert page("/docs", method="POST").status == 404


def test_without_public_methods_there_are_no_pages() -> None:
    assert request(Cluster(), "GET", "/docs").status == 404
