"""A social feed: one object for each account, which aggregates what it follows.  Page: `pages/feed.html`.

Run it with `perdure run examples/feed.py` and open http://127.0.0.1:8080/.

A post is written once, by its author's object, and goes to every follower as durable sends: in the author's
order, each once, also over crashes; nobody waits for the slowest.  An author with very many followers is no
special case: the post leaves in portions, each the work of an alarm.  A timeline is in one object.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import TypedDict

from perdure import Alarm, DurableObject, Request, Response, durable, public, register_exception
from perdure.websocket import WebSocket
from serving import site

TEXT_CHARS_MAX = 280
FOLLOWING_MAX = 2_000
TIMELINE = 200
"""Posts that an account keeps of those whom it follows."""
PORTION = 500
"""Followers that hear of a post in one turn."""


class Post(TypedDict):
    """One post."""

    author: str
    number: int
    text: str
    at: int


@register_exception
class FeedError(Exception):
    """The account cannot do that."""


class Account(DurableObject):
    """What one person writes, whom they follow, and what they read."""

    posts: int = durable(0)
    arrived: int = durable(0)
    kept: int = durable(0)
    following: list[str] = durable(default_factory=list)
    followers: int = durable(0)

    @property
    def _name(self) -> str:
        return str(self.id.name)

    # --- writing

    @public
    async def post(self, text: str) -> Post:
        """Writes a post; followers see it soon."""
        text = text.strip()
        if not 0 < len(text) <= TEXT_CHARS_MAX:
            raise FeedError(f"a post has 1 to {TEXT_CHARS_MAX} characters")
        self.posts += 1
        entry: Post = {
            "author": self._name,
            "number": self.posts,
            "text": text,
            "at": time.time_ns() // 1_000_000,
        }
        self.storage.put(f"post/{self.posts:010d}", entry)
        await self._tell_followers(self.posts, "")
        self.deliver(entry)
        return entry

    async def _tell_followers(self, number: int, after: str) -> None:
        entry = await self.storage.get(f"post/{number:010d}")
        start = f"follower/{after}"
        portion = await self.storage.list(
            prefix="follower/", start_after=start, limit=PORTION, keys_only=True
        )
        for key in portion:
            self.ctx.send(Account, key.removeprefix("follower/")).deliver(entry)
        if len(portion) == PORTION:
            last = portion[-1].removeprefix("follower/")
            self.storage.put(f"told/{number:010d}", last)
            self.storage.set_alarm(timedelta(0), name=f"tell/{number}")
        elif after:
            self.storage.delete(f"told/{number:010d}")

    async def alarm(self, alarm: Alarm) -> None:
        number = int(alarm.name.removeprefix("tell/"))
        await self._tell_followers(number, await self.storage.get(f"told/{number:010d}", ""))

    # --- following

    @public
    def follow(self, other: str) -> None:
        """From now on that account's posts come here."""
        if other == self._name or not 0 < len(other) <= 64:
            raise FeedError("name another account")
        if other not in self.following:
            if len(self.following) >= FOLLOWING_MAX:
                raise FeedError(f"an account follows up to {FOLLOWING_MAX} others")
            self.following.append(other)
            self.ctx.send(Account, other).add_follower(self._name)
            self._show()

    @public
    def unfollow(self, other: str) -> None:
        """No more of its posts from now on."""
        if other in self.following:
            self.following.remove(other)
            self.ctx.send(Account, other).remove_follower(self._name)
            self._show()

    async def add_follower(self, name: str) -> None:
        if await self.storage.get(f"follower/{name}") is None:
            self.storage.put(f"follower/{name}", True)
            self.followers += 1
            self._show()

    async def remove_follower(self, name: str) -> None:
        if await self.storage.get(f"follower/{name}") is not None:
            self.storage.delete(f"follower/{name}")
            self.followers -= 1
            self._show()

    # --- reading

    def deliver(self, entry: Post) -> None:
        """A post of somebody whom this account follows, or its own."""
        if entry["author"] != self._name and entry["author"] not in self.following:
            return  # it was on its way when this account stopped following
        self.arrived += 1
        self.storage.put(f"timeline/{self.arrived:012d}", entry)
        if self.kept < TIMELINE:
            self.kept += 1
        else:
            self.storage.delete(f"timeline/{self.arrived - TIMELINE:012d}")
        for ws in self.ctx.websockets():
            ws.send(json.dumps({"post": entry}))

    @public
    async def timeline(self, limit: int = 50) -> list[Post]:
        """The latest posts that have arrived, the latest first."""
        newest = await self.storage.list(prefix="timeline/", reverse=True, limit=max(1, min(limit, TIMELINE)))
        return list(newest.values())

    async def fetch(self, request: Request) -> Response:
        if request.path_params["path"] != "/socket":
            return Response("an account has a WebSocket at /socket\n", 404)
        return self.ctx.accept_websocket(request)

    async def websocket_message(self, ws: WebSocket, message: str | bytes) -> None:
        ws.send_json({"timeline": await self.timeline(), **self._profile()})

    def _profile(self) -> dict[str, object]:
        return {"following": self.following, "followers": self.followers, "posts": self.posts}

    def _show(self) -> None:
        for ws in self.ctx.websockets():
            ws.send(json.dumps(self._profile()))


app = site("feed", Account)
