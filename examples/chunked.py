"""An ordered database whose ranges are objects: they split when they grow, and merge when they shrink.

Run it with `perdure run examples/chunked.py`.  A front is a door to a database, named `database@front`; all
fronts of a database see the same keys, and more of them serve more callers:

    from perdure import connect_sync

    with connect_sync() as client:
        cities = client.get("RangeDatabase", "cities@a")
        print(cities.put_many({f"city-{n:04}": str(n) for n in range(300)}))  # 300
        print(client.get("RangeDatabase", "cities@b").get("city-0042"))  # 42
        print(cities.scan("city-0100", limit=2)["items"])  # [['city-0100', '100'], ['city-0101', '101']]
        print([key for key, _ in cities.scan(limit=2, reverse=True)["items"]])  # ['city-0299', 'city-0298']
        print(len(cities.ranges()) > 2)  # True

What it guarantees:

- `put`, `delete` and `get` of one key are serial, and durable when they are answered.  One whose caller got
  no answer may have happened; a front that dies halfway may do it again when the call is retried.
- `scan` gives what was there all the time of the scan, once and in order, also while ranges split and merge.
  The part of each chunk is one instant; those of several chunks are several instants.
- `kill -9` anywhere, at any step of a split or a merge, loses nothing and doubles nothing.

The objects: a `RangeChunk` owns the keys from its `start`, which never changes, up to its `end`, and knows
its right neighbour as `link`.  The `RangeDirectory` lists the chunks, and fronts keep a copy of the list.
Both may lag behind, which costs a detour and nothing else: only a chunk itself knows what it owns.  Asked
for something else it raises `Moved`, and the front follows the links, as in a B-link tree.

The protocol: each step is one turn, thus one commit, and ends with the durable send that makes the next one
happen, exactly once.  Keys on their way between chunks are in a message, which is in a commit like any other
data; who asks for them meanwhile is told to come again.

    split   chunk C         sends its upper half to a new chunk, take(), which is its link from now on
            new chunk D     take(): opens with these keys, has the directory add() it
    merge   chunk C         has been small for a while, and says so to the directory: small()
            the directory   asks the left neighbour L (or C itself, if it is the first) to widen()
            left chunk L    widen(): neither splits nor goes from now on, asks its right neighbour R to give()
            right chunk R   give(): sends all that it has to L, absorb(), and is gone; the directory remove()s
                            it.  Or refused(): it is not open yet, or widens itself
            left chunk L    absorb(): has the keys, the end and the link of R.  Or refused(): all is as before

R gives itself to nobody but L: only L has it as its link, and L stays as it is while it waits.
"""

import asyncio
import random
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypedDict, TypeVar

from perdure import Alarm, DurableObject, durable, interleaved, public, register_exception
from serving import site

T = TypeVar("T")

SPLIT_KEYS = 64
SPLIT_BYTES = 256 * 1024
"""A chunk with more than one of these splits.  Few, so that one sees it; a durable send can move 2 MiB."""
MERGE_KEYS = 16
MERGE_BYTES = 32 * 1024
"""A chunk with less than both wants to merge.  Halves of a split have more: it does not go to and fro."""
MERGE_AFTER_S = 0.5
MOVED_KEYS_MAX = 1_000
MOVED_BYTES_MAX = 1024 * 1024
"""Of one message.  Chunks that have grown beyond it, while they could not split, split several times."""
KEY_BYTES_MAX = 512
VALUE_BYTES_MAX = 64 * 1024
FORGET_AFTER_S = 3_600.0
"""For how long a chunk that is gone says where its keys are; after that the directory is asked."""
SCAN_MAX = 1_000
TRIES_MAX = 250
PAUSE_MAX_S = 0.1
"""Pauses of a front that meets keys on their way: about 20 s in all, and then it gives up."""


@register_exception
class Moved(Exception):
    """What was asked for is not here, but perhaps at the chunk `to`; None: ask the directory, in a moment."""

    def __init__(self, to: str | None) -> None:
        super().__init__(f"it moved to {to}")
        self.to = to


class Part(TypedDict):
    """What one chunk has for a scan."""

    items: list[list[str]]
    start: str
    end: str | None


class Scan(TypedDict):
    """A page of a scan."""

    items: list[list[str]]
    """Pairs of key and value."""
    next: str | None
    """To go on give it as `start`, in reverse as `end`; None when there is no more."""


class RangeDirectory(DurableObject):
    """Which chunks a database has, some thousands.  They tell it, so it knows a little later."""

    starts: dict[str, str] = durable(default_factory=dict)
    changes: int = durable(0)

    async def chunks(self, known: int) -> tuple[int, dict[str, str]] | None:
        """The number of changes and the chunks' starts by name; None when the caller knows all of them."""
        if not self.starts:
            first = f"{self.id.name}/first"
            self.ctx.send(RangeChunk, first).take("", None, None, {})
            self._change({first: ""})
        return None if known == self.changes else (self.changes, self.starts)

    async def add(self, name: str, start: str) -> None:
        """A chunk has opened."""
        self._change({**self.starts, name: start})

    async def remove(self, name: str) -> None:
        """A chunk is gone."""
        self._change({other: start for other, start in self.starts.items() if other != name})

    async def small(self, name: str) -> None:
        """A chunk wants to merge."""
        order = sorted(self.starts, key=lambda other: self.starts[other])
        if name in order:
            self.ctx.send(RangeChunk, order[max(0, order.index(name) - 1)]).widen()

    def _change(self, starts: dict[str, str]) -> None:
        self.starts = starts
        self.changes += 1


class RangeChunk(DurableObject):
    """The keys of a range."""

    state: str = durable("new")
    """"new" until its keys arrive, then "open", and "gone" once it gave them away."""
    start: str = durable("")
    end: str | None = durable(None)
    link: str | None = durable(None)
    """The chunk that starts at `end`; of one that is gone the chunk that has its keys."""
    widening: bool = durable(False)
    count: int = durable(0)
    size: int = durable(0)

    # --- for fronts

    async def get(self, key: str) -> str | None:
        """The value."""
        self._check(self.start <= key and (self.end is None or key < self.end))
        value: str | None = await self.storage.get(f"key/{key}")
        return value

    async def put(self, key: str, value: str) -> None:
        """Stores a value, and splits when there are too many."""
        await self.delete(key)
        self._store({key: value})
        await self._split()

    async def delete(self, key: str) -> bool:
        """Whether there was one."""
        old = await self.get(key)
        if old is None:
            return False
        self.storage.delete(f"key/{key}")
        self.count -= 1
        self.size -= _size(key, old)
        self._say_if_small()
        return True

    async def scan(self, start: str, end: str | None, limit: int, reverse: bool) -> Part:
        """What it has of a range that begins here; in reverse of one that ends here."""
        if reverse:
            self._check((end is None or self.start < end) and _is_before(end, self.end))
        else:
            self._check(self.start <= start and (self.end is None or start < self.end))
        found = await self.storage.list(
            prefix="key/", start=f"key/{start}", end=end and f"key/{end}", limit=limit, reverse=reverse
        )
        items = [[row.removeprefix("key/"), value] for row, value in found.items()]
        return Part(items=items, start=self.start, end=self.end)

    async def describe(self) -> dict[str, Any]:
        """Its range, and how much is in it."""
        facts = {"name": self.id.name, "state": self.state, "start": self.start, "end": self.end}
        return facts | {"link": self.link, "count": self.count, "size": self.size, "widening": self.widening}

    def _check(self, is_mine: bool) -> None:
        if self.state != "open" or not is_mine:
            raise Moved(self.link)

    # --- steps of the protocol, each the effect of a durable send

    async def take(self, start: str, end: str | None, link: str | None, values: dict[str, str]) -> None:
        """Split, the new chunk: opens."""
        self.state, self.start, self.end, self.link = "open", start, end, link
        self._store(values)
        self.ctx.send(RangeDirectory, self._database).add(self._name, start)
        await self._split()

    async def widen(self) -> None:
        """Merge, the left chunk: asks for its neighbour."""
        if self.state == "open" and self.link is not None and not self.widening:
            self.widening = True
            self.ctx.send(RangeChunk, self.link).give(self._name)

    async def give(self, left: str) -> None:
        """Merge, the right chunk: gives itself away, unless it has something under way itself."""
        if (
            self.state != "open"
            or self.widening
            or self.size > MOVED_BYTES_MAX
            or self.count > MOVED_KEYS_MAX
        ):
            self.ctx.send(RangeChunk, left).refused()
            return
        values = await self._take_out(MOVED_KEYS_MAX, MOVED_BYTES_MAX)
        self.ctx.send(RangeChunk, left).absorb(self.end, self.link, values)
        self.ctx.send(RangeDirectory, self._database).remove(self._name)
        self.state, self.link = "gone", left
        self.storage.set_alarm(timedelta(seconds=FORGET_AFTER_S), name="forget")

    async def absorb(self, end: str | None, link: str | None, values: dict[str, str]) -> None:
        """Merge, the left chunk: has the range of its neighbour too."""
        self.widening, self.end, self.link = False, end, link
        self._store(values)
        await self._split()
        self._say_if_small()

    async def refused(self) -> None:
        """Merge, the left chunk: nothing came of it."""
        self.widening = False
        await self._split()
        self._say_if_small()

    async def alarm(self, alarm: Alarm) -> None:
        """It has been small for a while, or gone for long."""
        if alarm.name == "forget":
            await self.storage.delete_all()
        elif self.state == "open" and self._is_small:
            self.ctx.send(RangeDirectory, self._database).small(self._name)

    # --- within one turn

    async def _split(self) -> None:
        """Split, the old chunk: its upper half leaves with the commit of the turn."""
        while not self.widening and (self.count > SPLIT_KEYS or self.size > SPLIT_BYTES):
            if self.count > SPLIT_KEYS:
                values = await self._take_out(min(self.count // 2, MOVED_KEYS_MAX), MOVED_BYTES_MAX)
            else:
                values = await self._take_out(self.count - 1, min(self.size // 2, MOVED_BYTES_MAX))
            middle, new = min(values), f"{self._database}/{secrets.token_hex(8)}"
            self.ctx.send(RangeChunk, new).take(middle, self.end, self.link, values)
            self.end, self.link = middle, new

    async def _take_out(self, count: int, size_max: int) -> dict[str, str]:
        """Removes the last keys: so many, and not more bytes than that."""
        taken: dict[str, str] = {}
        size = 0
        for row, value in (await self.storage.list(prefix="key/", reverse=True, limit=count)).items():
            key = row.removeprefix("key/")
            if taken and size + _size(key, value) > size_max:
                break
            taken[key] = value
            size += _size(key, value)
            self.storage.delete(row)
        self.count -= len(taken)
        self.size -= size
        return taken

    def _store(self, values: dict[str, str]) -> None:
        for key, value in values.items():
            self.storage.put(f"key/{key}", value)
            self.size += _size(key, value)
        self.count += len(values)

    def _say_if_small(self) -> None:
        if self._is_small and (self.start, self.end) != ("", None):
            # Not all at the same time: of two neighbours that widen, one refuses the other.
            delay = timedelta(seconds=MERGE_AFTER_S * (1 + random.random()))  # noqa: S311 - no secret
            self.storage.set_alarm(delay, name="small")

    @property
    def _is_small(self) -> bool:
        return self.count < MERGE_KEYS and self.size < MERGE_BYTES

    @property
    def _name(self) -> str:
        return str(self.id.name)

    @property
    def _database(self) -> str:
        return self._name.rpartition("/")[0]


class RangeDatabase(DurableObject):
    """A front: finds the chunks for its callers.  It stores nothing, and its copy of the list may be old."""

    def __init__(self) -> None:
        self._known = -1
        self._starts: list[tuple[str, str]] = []
        """(start, name) of the chunks, in order."""
        self._is_old = True
        self._reading = asyncio.Lock()

    @public
    @interleaved
    async def get(self, key: str) -> str | None:
        """The value of a key, None without one."""
        return await self._at(key, lambda chunk: chunk.get(key))

    @public
    @interleaved
    async def put(self, key: str, value: str) -> None:
        """Stores a value."""
        await self._put(key, value)

    @public
    @interleaved
    async def put_many(self, values: dict[str, str]) -> int:
        """Stores values, each by itself; how many."""
        await asyncio.gather(*[self._put(key, value) for key, value in values.items()])
        return len(values)

    @public
    @interleaved
    async def delete(self, key: str) -> bool:
        """Whether there was one."""
        return await self._at(key, lambda chunk: chunk.delete(key))

    @public
    @interleaved
    async def delete_many(self, keys: list[str]) -> int:
        """Deletes keys, each by itself; how many there were."""
        return sum(await asyncio.gather(*[self.delete(key) for key in keys]))

    @public
    @interleaved
    async def scan(
        self, start: str = "", end: str | None = None, limit: int = 100, reverse: bool = False
    ) -> Scan:
        """Keys from `start` up to `end`, which is not included, in order or in reverse order."""
        limit = max(1, min(limit, SCAN_MAX))
        items: list[list[str]] = []
        while end is None or start < end:
            part = await self._part(start, end, limit - len(items), reverse)
            items += part["items"]
            if len(items) == limit:
                # The text that follows a key directly is the key with a NUL.
                return Scan(items=items, next=items[-1][0] + ("" if reverse else "\0"))
            if reverse:
                end = part["start"]
            elif part["end"] is None:
                break
            else:
                start = part["end"]
        return Scan(items=items, next=None)

    @public
    @interleaved
    async def ranges(self) -> list[dict[str, Any]]:
        """The open chunks in order, for people to look at."""
        self._is_old = True
        await self._read_directory()
        chunks = [self.ctx.get(RangeChunk, name).describe() for _, name in self._starts]
        found = [chunk for chunk in await asyncio.gather(*chunks) if chunk["state"] == "open"]
        return sorted(found, key=lambda chunk: str(chunk["start"]))

    async def _put(self, key: str, value: str) -> None:
        if not 0 < len(key.encode()) <= KEY_BYTES_MAX or len(value.encode()) > VALUE_BYTES_MAX:
            raise ValueError(f"a key has 1 to {KEY_BYTES_MAX} bytes, a value up to {VALUE_BYTES_MAX}")
        await self._at(key, lambda chunk: chunk.put(key, value))

    async def _part(self, start: str, end: str | None, limit: int, reverse: bool) -> Part:
        position = end if reverse else start
        return await self._at(position, lambda chunk: chunk.scan(start, end, limit, reverse), below=reverse)

    async def _at(
        self, position: str | None, call: Callable[[RangeChunk], Awaitable[T]], *, below: bool = False
    ) -> T:
        """Calls the chunk that owns a position, or what is directly below it; follows what moved."""
        to: str | None = None
        for attempt in range(TRIES_MAX):
            if to is None:
                await self._read_directory()
                to = self._find(position, below)
            try:
                return await call(self.ctx.get(RangeChunk, to))
            except Moved as moved:
                to = moved.to
                self._is_old = True
            if to is None or attempt > 1:
                await asyncio.sleep(min(0.001 * 2**attempt, PAUSE_MAX_S))
        raise TimeoutError(f"the keys at {position!r} did not arrive anywhere")

    def _find(self, position: str | None, below: bool) -> str:
        bisect = bisect_left if below else bisect_right
        starts = [start for start, _ in self._starts]
        return self._starts[(len(starts) if position is None else bisect(starts, position)) - 1][1]

    async def _read_directory(self) -> None:
        async with self._reading:  # of all who need it at the same time one asks
            if self._is_old:
                directory = self.ctx.get(RangeDirectory, str(self.id.name).partition("@")[0])
                news = await directory.chunks(self._known)
                self._is_old = False
                if news is not None:
                    self._known = news[0]
                    self._starts = sorted((start, name) for name, start in news[1].items())


def _is_before(position: str | None, end: str | None) -> bool:
    """Of two ends of ranges, where None is behind everything."""
    return end is None or (position is not None and position <= end)


def _size(key: str, value: str) -> int:
    return len(key.encode()) + len(value.encode())


app = site("chunked", RangeDatabase)
