"""Calls of `@public` methods over HTTP, and the pages that describe them.

    POST /<namespace>/<name>/<method>    JSON in, JSON out; a stream answers a line for each value
    GET  /openapi.json, GET /docs        what there is, for programs and for people

Guarantees that a page of another origin cannot call anything here with its visitor's address or cookies: a
browser's request must come from the gateway's own origin or an allowed one.  Runs wherever the gateway's
application runs.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any

from perdure.client import Client
from perdure.errors import PerdureError
from perdure.limits import Limits
from perdure.named import NamedRequests
from perdure.stub import Target
from perdure_gateway.answers import Answer
from perdure_gateway.bodies import read_body
from perdure_gateway.docs_page import DOCS_PAGE, DOCS_POLICY
from perdure_gateway.failures import NOT_FOUND, Failure, failure_of
from perdure_gateway.json_forms import Forms, dump_json
from perdure_gateway.openapi import openapi_document
from perdure_gateway.origins import may_upgrade
from perdure_gateway.public_methods import PublicMethod, public_methods

__all__ = ["PublicCalls"]

_JSON = (b"content-type", b"application/json")
_LINES = (b"content-type", b"application/x-ndjson")
_NOT_STORED = (b"cache-control", b"no-store")
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_FOREIGN = Failure(403, "ForeignOrigin", "pages of this origin may not call methods here (--allow-origin)")
_NO_JSON = Failure(415, "UnsupportedMediaType", "send arguments with Content-Type: application/json")
_ALLOW = (b"allow", b"OPTIONS, POST")
_PREFLIGHT_S = b"600"


class PublicCalls:
    """The `@public` methods of some classes, by namespace."""

    def __init__(
        self,
        classes: Mapping[str, type],
        *,
        allow_origins: Collection[str],
        limits: Limits,
        title: str = "Durable objects",
        tokens: bool = False,
    ) -> None:
        """Raises `TypeError` for a class that a worker would refuse, too."""
        self._forms = Forms()
        self.tables = public_methods(classes, self._forms)
        self._origins = allow_origins
        self._limits = limits
        self._title = title
        self._tokens = tokens

    def find(self, namespace: str, path: str) -> PublicMethod | None:
        """The method that is called at this path below an object; None for any other path."""
        table = self.tables.get(namespace)
        return table.get(path[1:]) if table else None

    # --- calls

    async def serve(
        self,
        method: PublicMethod,
        target: Target,
        client: Client,
        request_id: bytes | None,
        scope: Any,
        receive: Any,
        answer: Answer,
    ) -> None:
        """One request to a method's path.  Raises the errors of calls, and those of bodies."""
        headers = scope["headers"]
        if not self.admits_page(headers, answer):
            await answer.fail(_FOREIGN)
            return
        if scope["method"] == "OPTIONS":
            await self.serve_options(answer)
            return
        if scope["method"] != "POST":
            await answer.fail(Failure(405, "MethodNotAllowed", "call it with POST", headers=(_ALLOW,)))
            return
        body = await read_body(
            receive,
            headers,
            http1=scope.get("http_version", "1.1")[:1] == "1",
            inline_bytes=self._limits.http_json_bytes_max + 1,
            bytes_max=self._limits.http_json_bytes_max,
        )
        if body.first and not _is_json(headers):
            await answer.fail(_NO_JSON)
            return
        args, kwargs = method.read(body.first)
        sender: Any = client if request_id is None else NamedRequests(request_id, client)
        if method.streams:
            lines = _lines(sender.start_stream(target, method.name, args, kwargs, None))
            await answer.stream(200, [_LINES, _NOT_STORED, *answer.shared], lines, receive)
            return
        try:
            result = await sender.start(target, method.name, args, kwargs, None)
        except PerdureError:
            raise
        except Exception as error:  # of a class that the user has marked to travel
            await answer.fail(_declared(error))
            return
        await answer.whole(200, [_JSON, _NOT_STORED], dump_json(result))

    def admits_page(self, headers: Any, answer: Answer) -> bool:
        """Whether the page that asks, if it is one, may; then it may read the answer, too."""
        origin = next((value for name, value in headers if name == b"origin"), None)
        if origin is None:
            return True
        if not may_upgrade(headers, self._origins):
            return False
        answer.shared = ((b"access-control-allow-origin", origin), (b"vary", b"origin"))
        return True

    @staticmethod
    async def serve_options(answer: Answer) -> None:
        """What a page may ask for here."""
        await answer.whole(204, [_ALLOW, *(_preflight() if answer.shared else ())], b"")

    # --- pages

    async def serve_page(
        self, path: str, root_path: str, opened: Collection[str] | None, answer: Answer
    ) -> bool:
        """Whether `path` is one of the pages, which is then given; `opened` are the caller's namespaces."""
        if not any(self.tables.values()) or path not in ("/docs", "/openapi.json"):
            return False
        if path == "/docs":
            headers = [
                (b"content-type", b"text/html; charset=utf-8"),
                (b"content-security-policy", DOCS_POLICY),
                (b"referrer-policy", b"no-referrer"),
                _NO_SNIFFING,
            ]
            await answer.whole(200, headers, DOCS_PAGE)
            return True
        if opened is None:
            await answer.fail(NOT_FOUND)
            return True
        tables = {name: table for name, table in self.tables.items() if "*" in opened or name in opened}
        document = openapi_document(tables, self._forms, title=self._title, tokens=self._tokens)
        document["servers"] = [{"url": root_path or "/"}]
        text = json.dumps(document, ensure_ascii=False).encode()
        await answer.whole(200, [_JSON, (b"cache-control", b"no-cache"), _NO_SNIFFING], text)
        return True


def _is_json(headers: Any) -> bool:
    # A form of another page can send text and forms without asking, but no JSON.
    kinds = [value for name, value in headers if name == b"content-type"]
    return len(kinds) == 1 and kinds[0].partition(b";")[0].strip().lower() == b"application/json"


def _preflight() -> tuple[tuple[bytes, bytes], ...]:
    return (
        (b"access-control-allow-methods", b"POST"),
        (b"access-control-allow-headers", b"authorization, content-type, idempotency-key"),
        (b"access-control-max-age", _PREFLIGHT_S),
    )


def _declared(error: Exception) -> Failure:
    try:
        text = str(error)
    except Exception:  # a __str__ of the user's
        text = ""
    return Failure(422, type(error).__name__, text)


async def _lines(stream: Any) -> AsyncIterator[bytes]:
    try:
        async for value in stream:
            yield dump_json(value) + b"\n"
    except PerdureError as error:
        yield failure_of(error).body()
    except Exception as error:  # as in `serve`
        yield _declared(error).body()
    finally:
        await stream.aclose()
