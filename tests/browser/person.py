"""Somebody in front of a browser of their own."""

from __future__ import annotations

import re

from playwright.sync_api import Page, WebSocket

# A page that asks again while its cluster is killed cannot help to be told so by the browser.
EXPECTED = re.compile(r"favicon|net::ERR_|Failed to load resource|WebSocket connection to")


class Person:
    """Somebody in front of a browser of their own."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url
        self.complaints: list[str] = []
        self.sockets: list[WebSocket] = []
        self.lost_sockets: list[WebSocket] = []
        """Those that were closed by somebody else than the page."""
        page.on("console", lambda said: said.type == "error" and self._complain(said.text))
        page.on("pageerror", lambda error: self._complain(str(error)))
        page.on("websocket", self._on_socket)

    def _complain(self, text: str) -> None:
        if not EXPECTED.search(text):
            self.complaints.append(text)

    def _on_socket(self, socket: WebSocket) -> None:
        self.sockets.append(socket)
        socket.on("close", lambda closed: self.lost_sockets.append(closed))

    def open(self, path: str) -> Page:
        """Goes to a page of the site."""
        self.page.goto(self._url + path)
        return self.page
