"""An eventually consistent key-value store with caches: shards hold the truth, edges answer from memory.

Run it with `perdure run examples/kv.py`.  An edge is a place that many read at, named `store@place`:

    from perdure import connect_sync

    with connect_sync() as client:
        rome, oslo = client.get("KvEdge", "shop@rome"), client.get("KvEdge", "shop@oslo")
        rome.put("price", 10)
        print(oslo.get("price")["value"])  # 10
        rome.put("price", 12)
        print(rome.get("price")["value"])  # 12
        print(oslo.get("price")["value"] in (10, 12))  # True
        rome.put("offer", "cake", ttl=3600)
        print(rome.keys()["keys"])  # ['offer', 'price']

What it guarantees:

- A write is answered when it is on disk at its shard, and then nothing loses it.  Writes of one key have an
  order, that of their arrival at the shard: the last one wins, and each has a higher `version`.
- Reads are bounded in their staleness: what `get` answers was the key's value at some time in the last
  `FRESH_S` seconds, whatever is down, slow or cut off.  `age_s` says how old the answer is at most.  Clocks
  of machines do not matter for that: an edge counts from the moment before it asked the shard.
- Usually they are much fresher: a shard sends each change to the edges that may hold the key, as durable
  sends, which nobody waits for.  A refresh makes a held value newer, but does not prolong its time: the
  message itself may be late.
- An edge reads its own writes.  `keys` asks all shards, and is as fresh as they are.
- A key with a `ttl` is gone at its time; an alarm of the shard removes it (10,000 such keys a shard).

Edges store nothing: one that is idle, or whose worker dies, starts empty and asks again.
"""

import asyncio
import time
import zlib
from collections import OrderedDict
from typing import Any, NamedTuple, TypedDict

from perdure import Alarm, DurableObject, durable, interleaved, public
from serving import site

SHARDS = 8
"""Objects that share the keys of a store; fixed, since it says where a key is."""
FRESH_S = 5.0
"""For how long an edge answers from memory: the bound of staleness."""
LEASE_S = 60.0
"""For how long a shard tells an edge about changes after a read of it; much longer than FRESH_S."""
HELD_MAX = 10_000
"""Keys that an edge holds; beyond it the one that was asked for the longest ago makes room."""
PAGE_MAX = 1_000


class Entry(TypedDict):
    """What a shard knows of a key."""

    value: Any
    """None also for a key that does not exist."""
    exists: bool
    version: int
    """Number of the shard's write that made it; of the latest one for a key that does not exist."""
    expires_at: float | None
    """Seconds since the epoch."""


class Answer(TypedDict):
    """What an edge says of a key."""

    value: Any
    exists: bool
    version: int
    source: str
    """"cache" or "shard"."""
    age_s: float
    """So long ago, at most, the value was the current one."""


class Page(TypedDict):
    """Some of the keys, in order."""

    keys: list[str]
    cursor: str | None
    """Give it to the next call; None at the end."""


class KvShard(DurableObject):
    """The truth about a part of a store's keys."""

    writes: int = durable(0)
    edges: dict[str, float] = durable(default_factory=dict)
    """Edges that may hold keys of this shard, and until when."""

    async def fill(self, key: str, edge: str) -> Entry:
        """What is known of a key; the edge hears of changes from now on."""
        self._lease(edge)
        entry: Entry | None = await self.storage.get(f"key/{key}")
        return self._absent() if entry is None or _is_over(entry) else entry

    async def put(self, key: str, value: Any, ttl: float | None, edge: str) -> Entry:
        """Stores a value for good or for `ttl` seconds; the edge that asks learns it by the answer."""
        if ttl is not None and ttl <= 0:
            raise ValueError(f"a ttl is more than 0 s, not {ttl}")
        self.writes += 1
        expires_at = None if ttl is None else now() + ttl
        entry = Entry(value=value, exists=True, version=self.writes, expires_at=expires_at)
        self.storage.put(f"key/{key}", entry)
        if expires_at is None:
            self.storage.delete_alarm(key)
        else:
            self.storage.set_alarm(expires_at, name=key)
        self._tell_edges(key, entry, edge)
        self._lease(edge)
        return entry

    async def delete(self, key: str, edge: str) -> Entry:
        """Removes a key."""
        return self._remove(key, edge)

    async def alarm(self, alarm: Alarm) -> None:
        """A key's time is over."""
        self._remove(alarm.name, "")

    async def keys(self, prefix: str, after: str | None, limit: int) -> list[str]:
        """Keys of this shard behind one, in order: `limit` of them, or all that there are."""
        found: list[str] = []
        row = None if after is None else f"key/{after}"
        while len(found) < limit:
            page = await self.storage.list(prefix=f"key/{prefix}", start_after=row, limit=limit)
            if not page:
                break
            row = list(page)[-1]
            found += [name.removeprefix("key/") for name, entry in page.items() if not _is_over(entry)]
        return found

    def _remove(self, key: str, edge: str) -> Entry:
        self.storage.delete_alarm(key)
        if self.storage.delete(f"key/{key}"):
            self.writes += 1
            self._tell_edges(key, self._absent(), edge)
        return self._absent()

    def _absent(self) -> Entry:
        return Entry(value=None, exists=False, version=self.writes, expires_at=None)

    def _lease(self, edge: str) -> None:
        # What an edge was told it uses for FRESH_S; renewing late saves a write for each read.
        if self.edges.get(edge, 0.0) < now() + FRESH_S:
            self.edges = {name: until for name, until in self.edges.items() if until > now()}
            self.edges[edge] = now() + LEASE_S

    def _tell_edges(self, key: str, entry: Entry, writer: str) -> None:
        for edge, until in self.edges.items():
            if edge != writer and until > now():
                self.ctx.send(KvEdge, edge).refresh(key, entry)


class Held(NamedTuple):
    """What an edge holds of a key."""

    entry: Entry
    asked_at: float
    """Time of the loop; the entry was, or became, the key's current one after it."""


class KvEdge(DurableObject):
    """A place to read and write at: a cache in memory before all shards of a store."""

    def __init__(self) -> None:
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._fills: dict[str, asyncio.Event] = {}
        """Keys that a shard was asked for: whoever needs one of them too waits for that answer."""
        self._listens = True

    @public
    @interleaved
    async def get(self, key: str) -> Answer:
        """The value of a key as of some time in the last FRESH_S seconds."""
        while True:
            held = self._held.get(key)
            if held is not None and held.asked_at + FRESH_S > _clock():
                return _answer(held, "cache")
            if key not in self._fills:
                return await self._fill(key)
            await self._fills[key].wait()

    @public
    @interleaved
    async def put(self, key: str, value: Any, ttl: float | None = None) -> Answer:
        """Writes a value; when it is answered the shard has it on disk."""
        asked_at = _clock()
        entry = await self._shard(key).put(key, value, ttl, str(self.id.name))
        return _answer(self._hold(key, entry, asked_at), "shard")

    @public
    @interleaved
    async def delete(self, key: str) -> Answer:
        """Removes a key."""
        asked_at = _clock()
        entry = await self._shard(key).delete(key, str(self.id.name))
        return _answer(self._hold(key, entry, asked_at), "shard")

    @public
    @interleaved
    async def keys(self, prefix: str = "", limit: int = 100, cursor: str | None = None) -> Page:
        """Keys of the whole store in order, from all shards."""
        limit = max(1, min(limit, PAGE_MAX))
        shards = [self.ctx.get(KvShard, f"{self._store}/{number}") for number in range(SHARDS)]
        # One more of each than needed: it tells whether more follow.
        parts = await asyncio.gather(*[shard.keys(prefix, cursor, limit + 1) for shard in shards])
        found = sorted(key for part in parts for key in part)
        more = len(found) > limit
        return Page(keys=found[:limit], cursor=found[limit - 1] if more else None)

    @interleaved
    async def refresh(self, key: str, entry: Entry) -> None:
        """A shard tells of a change.  Of keys that are not held nothing needs to be known."""
        if self._listens and (key in self._held or key in self._fills):
            self._hold(key, entry, float("-inf"))

    @public
    async def listen(self, on: bool) -> bool:
        """Whether changes that shards tell of are taken; without them the bound of staleness can be seen."""
        self._listens = on
        return on

    @public
    @interleaved
    async def status(self) -> dict[str, Any]:
        """Whether it listens, how many keys it holds, and the bound."""
        return {"listens": self._listens, "held": len(self._held), "fresh_s": FRESH_S}

    @property
    def _store(self) -> str:
        return str(self.id.name).partition("@")[0]

    def _shard(self, key: str) -> KvShard:
        number = zlib.crc32(key.encode()) % SHARDS
        return self.ctx.get(KvShard, f"{self._store}/{number}")

    async def _fill(self, key: str) -> Answer:
        self._fills[key] = answered = asyncio.Event()
        try:
            asked_at = _clock()
            entry = await self._shard(key).fill(key, str(self.id.name))
            return _answer(self._hold(key, entry, asked_at), "shard")
        finally:
            del self._fills[key]
            answered.set()

    def _hold(self, key: str, entry: Entry, asked_at: float) -> Held:
        """Keeps the newer of two entries.  It was current after both times, since versions only grow."""
        known = self._held.get(key)
        if known is not None:
            asked_at = max(asked_at, known.asked_at)
            if known.entry["version"] > entry["version"]:
                entry = known.entry
        self._held[key] = held = Held(entry, asked_at)
        self._held.move_to_end(key)
        while len(self._held) > HELD_MAX:
            self._held.popitem(last=False)
        return held


def now() -> float:
    """Seconds since the epoch, for what must survive restarts; `_clock` is for what is in memory."""
    return time.time()


def _clock() -> float:
    return asyncio.get_running_loop().time()


def _is_over(entry: Entry) -> bool:
    return entry["expires_at"] is not None and entry["expires_at"] <= now()


def _answer(held: Held, source: str) -> Answer:
    entry = held.entry
    exists = entry["exists"] and not _is_over(entry)
    return Answer(
        value=entry["value"] if exists else None,
        exists=exists,
        version=entry["version"],
        source=source,
        age_s=round(_clock() - held.asked_at, 3),
    )


app = site("kv", KvEdge)
