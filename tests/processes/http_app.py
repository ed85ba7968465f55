"""Objects that answer HTTP in all the ways that the tests of the gateway look at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from perdure import DurableObject, JSONResponse, Request, Response, StreamingResponse, durable, public


class Web(DurableObject):
    value: int = durable(0)

    async def fetch(self, request: Request) -> Response:
        path = request.path_params["path"]
        if path == "/count":
            self.value += 1
            return Response(str(self.value))
        if path == "/echo":
            return Response(await request.body(), headers={"x-method": request.method})
        if path == "/size":
            size = 0
            async for part in request.stream():
                size += len(part)
            return Response(str(size))
        if path == "/cookies":
            response = Response("ok", status_code=201)
            response.set_cookie("a", "1")
            response.set_cookie("b", "2")
            return response
        if path == "/stream":
            return StreamingResponse(self._numbers(int(request.query_params["to"])))
        if path == "/hang":
            await asyncio.get_running_loop().create_future()
        if path == "/raise":
            raise KeyError("secret of the object")
        if path == "/split":
            return Response("x", headers={"x-own": request.query_params["value"]})
        return JSONResponse(
            {
                "name": self.id.name,
                "method": request.method,
                "path": path,
                "query": dict(request.query_params),
                "headers": dict(request.headers),
                "client": request.client.host if request.client else None,
                "value": self.value,
            }
        )

    async def _numbers(self, to: int) -> AsyncIterator[bytes]:
        try:
            for number in range(to):
                yield b"%d\n" % number
                self.value = number
        finally:
            self.value = -1 if to < 1_000_000 else -2

    @public
    async def increment(self, by: int = 1) -> int:
        self.value += by
        return self.value

    async def hidden(self) -> str:
        return "hidden"


class Silent(DurableObject):
    async def get(self) -> int:
        return 1
