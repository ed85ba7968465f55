"""The application of the HTTP tests: objects that answer requests, small and large, whole and streamed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from perdure import (
    DurableObject,
    HTTPException,
    JSONResponse,
    PlainTextResponse,
    Request,
    Response,
    StreamingResponse,
    durable,
)


class Site(DurableObject):
    """Answers by its path."""

    hits: int = durable(0)
    taken: int = durable(0)
    ended: str = durable("")

    async def fetch(self, request: Request) -> Response:
        """One request."""
        path = request.path_params["path"]
        if path == "/hit":
            self.hits += 1
            return PlainTextResponse(str(self.hits))
        if path == "/digest":
            return await self._digest(request)
        if path == "/echo":
            return StreamingResponse(self._echo(request))
        if path == "/endless":
            return StreamingResponse(self._endless())
        if path == "/relay":
            other = self.ctx.get(Site, request.query_params["to"])
            reply = await other.fetch(
                "/digest", method="POST", body=self._bytes(int(request.query_params["n"]))
            )
            return reply.to_response()
        raise HTTPException(404, "no such page")

    async def _digest(self, request: Request) -> Response:
        digest, size = hashlib.sha256(), 0
        async for part in request.stream():
            digest.update(part)
            size += len(part)
            self.taken = size
            await self.storage.sync()
        self.hits += 1
        return JSONResponse({"size": size, "sha256": digest.hexdigest()})

    async def _echo(self, request: Request) -> AsyncIterator[bytes]:
        async for part in request.stream():
            yield part

    async def _endless(self) -> AsyncIterator[bytes]:
        try:
            while True:
                self.hits += 1
                yield bytes(10_000)
        finally:
            self.ended = "cleaned up"

    async def _bytes(self, count: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            await asyncio.sleep(0)  # sleep: a source that suspends
            yield bytes(100_000)

    async def state(self) -> tuple[int, int, str]:
        """What it has stored."""
        return self.hits, self.taken, self.ended
