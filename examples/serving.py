"""What serves the example pages: static files, and behind them the gateway.  Runs in the gateway process.

Each example ends with ``app = site("its-page")``, so that it runs alone; `start.py` serves all of them.
"""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.responses import FileResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from perdure_gateway import Gateway

PAGES = Path(__file__).resolve().parent / "pages"


def site(page: str) -> Starlette:
    """An application with `pages/<page>.html` at /, all pages at /pages/, and the objects behind."""
    gateway = Gateway()

    async def first_page(_: object) -> FileResponse:
        return FileResponse(PAGES / f"{page}.html")

    routes = [
        Route("/", first_page),
        Mount("/pages", StaticFiles(directory=PAGES, html=True)),
        Mount("/", gateway),
    ]
    return Starlette(routes=routes, lifespan=gateway.lifespan)
