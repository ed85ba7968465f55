"""What the tests of `fetch` share: objects that answer by path, and calls of `web.fetch`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from perdure import (
    DurableObject,
    FileResponse,
    HTTPException,
    JSONResponse,
    Limits,
    PlainTextResponse,
    Request,
    Response,
    StreamingResponse,
    blocking,
    durable,
)
from perdure.web import body_of, request_map
from worker.host_scene import Scene, Sent, SentStream, take_time

PART = Limits().http_body_inline_bytes


class Site(DurableObject):
    """Answers by its path, with a method of that name."""

    hits: int = durable(0)
    ended: str = durable("")

    async def fetch(self, request: Request) -> Any:
        return await getattr(self, "_" + request.path_params["path"].strip("/"))(request)

    async def _facts(self, request: Request) -> Response:
        return JSONResponse(
            {
                "method": request.method,
                "url": str(request.url),
                "query": dict(request.query_params),
                "headers": request.headers.items(),
                "cookies": request.cookies,
                "client": request.client,
                "path": request.path_params["path"],
                "body": (await request.body()).decode(),
            }
        )

    async def _form(self, request: Request) -> Response:
        return JSONResponse(dict(await request.form()))

    async def _cookies(self, request: Request) -> Response:
        response = Response("made", 201, {"X-One": "1"})
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    async def _hit(self, request: Request) -> Response:
        self.hits += 1
        return PlainTextResponse(str(self.hits))

    async def _refuse(self, request: Request) -> Response:
        self.hits += 1
        self.ctx.send(Site, "other").note()
        raise HTTPException(418, "a teapot", {"X-Kind": "pot"})

    async def _nothing(self, request: Request) -> Response:
        raise HTTPException(304)

    async def _fail(self, request: Request) -> Response:
        self.hits += 1
        raise LookupError("no such page")

    async def _text(self, request: Request) -> Any:
        return "not a response"

    async def _background(self, request: Request) -> Response:
        from starlette.background import BackgroundTask

        return Response("x", background=BackgroundTask(print))

    async def _split(self, request: Request) -> Response:
        return Response("x", headers={"X-Name": "a\r\nSet-Cookie: b"})

    async def _early(self, request: Request) -> Response:
        return Response(status_code=100)

    async def _huge(self, request: Request) -> Response:
        return Response(bytes(32 * 1024 * 1024))

    async def _stream(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes | str]:
            try:
                for number in range(3):
                    self.hits += 1
                    yield f"chunk {number}"
                yield bytes(PART + 1)
                self.ended = "end"
            except BaseException as error:
                self.ended = type(error).__name__
                raise

        return StreamingResponse(chunks(), 206, {"X-One": "1"}, media_type="text/plain")

    async def _endless(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                while True:
                    self.hits += 1
                    yield bytes(PART)
            except BaseException as error:
                self.ended = type(error).__name__
                raise

        return StreamingResponse(chunks())

    async def _quiet(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            try:
                yield b"one"
                self.hits = 99
                await asyncio.Event().wait()
            finally:
                self.ended = "cleaned up"

        return StreamingResponse(chunks())

    async def _threads(self, request: Request) -> Response:
        def chunks() -> Iterator[bytes]:
            yield b"from "
            yield b"a thread"

        return StreamingResponse(chunks())

    async def _file(self, request: Request) -> Response:
        return FileResponse(request.query_params["path"])

    async def _broken(self, request: Request) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"one"
            self.hits = 99
            raise LookupError("in the middle")

        return StreamingResponse(chunks())

    async def _wait(self, request: Request) -> Response:
        await take_time(float(request.query_params["s"]))
        self.hits += 1
        return JSONResponse(await request.is_disconnected())

    async def _leaver(self, request: Request) -> Response:
        message = await request.receive()
        while message["type"] != "http.disconnect":
            message = await request.receive()
        self.ended = "left"
        return Response()

    async def _stream_late(self, request: Request) -> Response:
        await take_time(5)
        return await self._endless(request)

    async def _ask(self, request: Request) -> Response:
        other = self.ctx.get(Site, request.query_params["at"])
        reply = await other.fetch(request.query_params["for"], method="POST", body="from an object")
        return reply.to_response()

    async def _relay(self, request: Request) -> Response:
        reply = await self.ctx.get(Site, "other").fetch("/stream")

        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in reply.chunks:
                yield chunk[:7]

        return StreamingResponse(chunks(), reply.status)

    async def _send(self, request: Request) -> Response:
        self.ctx.send(Site, "other").fetch("/hit")
        return Response()

    async def note(self) -> None:
        self.hits += 100

    async def state(self) -> tuple[int, str]:
        return self.hits, self.ended


class Plain(DurableObject):
    hits: int = durable(0)

    def fetch(self, request: Request) -> Response:
        self.hits += 1
        return Response(body_of(request).upper(), headers={"x-hits": str(self.hits)})


class Threaded(DurableObject):
    hits: int = durable(0)

    @blocking
    def fetch(self, request: Request) -> Response:
        self.hits += 1
        return Response(body_of(request).upper())


class Dumb(DurableObject):
    async def hello(self) -> str:
        return "hello"


def ask(path: str, *, method: str = "GET", query: bytes = b"", **facts: Any) -> dict[str, Any]:
    return request_map(method, path, query=query, **facts)


def start(scene: Scene, path: str, *, cls: Any = Site, name: str = "s", **facts: Any) -> Sent:
    options = {key: facts.pop(key) for key in ("request", "timeout_ms", "chain", "peer") if key in facts}
    return scene.start(cls, name, "web.fetch", ask(path, **facts), **options)


def stream(scene: Scene, path: str, **facts: Any) -> SentStream:
    sent = start(scene, path, **facts)
    scene.commit()
    return SentStream(scene, scene.client, sent.sequence)


def fetch(scene: Scene, path: str, **facts: Any) -> Any:
    sent = start(scene, path, **facts)
    scene.commit()
    return sent.result()


def state(scene: Scene, name: str = "s") -> Any:
    return scene.call(Site, name, "state")
