"""What serves the example pages: static files, and behind them the gateway.  Runs in the gateway process.

Each example ends with ``app = site("its-page")``, so that it runs alone; `start.py` serves all of them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from perdure_gateway import Gateway

PAGES = Path(__file__).resolve().parent / "pages"


def site(page: str, *classes: type) -> Starlette:
    """An application with `pages/<page>.html` at /, all pages at /pages/, and objects of `classes` behind."""
    gateway = Gateway(classes=classes)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with gateway:
            yield

    async def first_page(_: object) -> FileResponse:
        return FileResponse(PAGES / f"{page}.html")

    routes = [
        Route("/", first_page),
        Mount("/pages", StaticFiles(directory=PAGES, html=True)),
        Mount("/", gateway),
    ]
    return Starlette(routes=routes, lifespan=lifespan)
