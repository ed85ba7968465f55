"""One logical object in several replicas that merge: a CRDT document, replicated by durable sends.

Run it with `perdure run examples/crdt.py`.  A replica is named `document@place`, with one of `PLACES`:

    import time
    from perdure import connect_sync

    with connect_sync() as client:
        rome, oslo = client.get("Replica", "party@rome"), client.get("Replica", "party@oslo")
        rome.connect(False)  # a partition: both sides go on
        rome.add("cake")
        rome.count(2)
        oslo.add("wine")
        oslo.count(3)
        print(rome.read()["items"], oslo.read()["items"])  # ['cake'] ['wine']
        rome.connect(True)
        while len(rome.read()["items"] + oslo.read()["items"]) < 4:
            time.sleep(0.01)
        print(oslo.read()["items"], oslo.read()["count"], rome.read()["count"])  # ['cake', 'wine'] 5 5

What it guarantees:

- Each replica answers reads and writes by itself, on its own disk, whether it reaches the others or not.
- Replicas that have received the same changes are equal, in whatever order and however often those came:
  `merge` is commutative, associative and idempotent.
- Once all are connected and nobody writes, they soon have received all changes: none is lost by partitions,
  or by `kill -9`.

A document has a set of items (an add wins over a remove that did not see it), a counter (of which both
increments and decrements add up), and named fields (the last writer wins: the later clock, then the place).

A change makes a delta, a small document of itself.  Deltas wait `GOSSIP_S` to be merged into one, then go to
each peer as a durable send, which arrives once.  A replica that is cut off takes and sends nothing; when it
is back it exchanges whole documents with everybody.  A document is one durable field, loaded and stored as a
whole: it is for what people see at once, hundreds of items and not millions.
"""

import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from perdure import Alarm, DurableObject, durable, public
from serving import site

PLACES = ("rome", "oslo", "lima")
GOSSIP_S = 0.2
TEXT_CHARS_MAX = 200
ITEMS_MAX = 500
FIELDS_MAX = 100
"""Of one replica's view.  A document of three such replicas fits well into a message (2 MiB)."""

Dot = tuple[str, int]
"""Names a change of the set: the place that made it, and its number there."""


@dataclass
class Document:
    """A state or a delta: there is no difference, `merge` takes both."""

    items: dict[str, set[Dot]] = field(default_factory=dict)
    """Of each item the adds that nobody has removed."""
    seen: dict[str, int] = field(default_factory=dict)
    """Of each place: all adds up to this number are known, as items or as removed."""
    also_seen: set[Dot] = field(default_factory=set)
    """Further adds that are known, behind a gap."""
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of each place the sum of its increments and of its decrements."""
    fields: dict[str, tuple[int, str, str | None]] = field(default_factory=dict)
    """Time of the write, its place, and the value; None for a field that was removed."""

    def knows(self, dot: Dot) -> bool:
        """Whether an add is among the changes that this is made of."""
        return dot[1] <= self.seen.get(dot[0], 0) or dot in self.also_seen


def merge(one: Document, other: Document) -> Document:
    """The document that has all changes of both; neither is altered."""
    seen = {place: max(one.seen.get(place, 0), other.seen.get(place, 0)) for place in one.seen | other.seen}
    also_seen = set()
    for place, number in sorted(one.also_seen | other.also_seen):
        if number == seen.get(place, 0) + 1:
            seen[place] = number  # the gap is closed
        elif number > seen.get(place, 0):
            also_seen.add((place, number))
    items = {}
    for item in one.items.keys() | other.items.keys():
        mine, theirs = one.items.get(item, set()), other.items.get(item, set())
        # Whoever knows of an add and does not have it has seen its removal.
        dots = mine & theirs
        dots |= {dot for dot in mine - theirs if not other.knows(dot)}
        dots |= {dot for dot in theirs - mine if not one.knows(dot)}
        if dots:
            items[item] = dots
    counts = dict(one.counts)
    for place, (ups, downs) in other.counts.items():
        known = counts.get(place, (0, 0))
        counts[place] = (max(known[0], ups), max(known[1], downs))
    fields = dict(one.fields)
    for name, write in other.fields.items():
        if name not in fields or _rank(write) > _rank(fields[name]):
            fields[name] = write
    return Document(items, seen, also_seen, counts, fields)


def added(state: Document, place: str, item: str) -> Document:
    """The delta of adding an item at a place."""
    dot = (place, state.seen.get(place, 0) + 1)
    # The new add takes the place of those that are seen here.
    delta = Document(items={item: {dot}}, also_seen={dot} | state.items.get(item, set()))
    return merge(Document(), delta)


def removed(state: Document, item: str) -> Document:
    """The delta of removing an item: all adds of it that are seen here."""
    return merge(Document(), Document(also_seen=set(state.items.get(item, set()))))


def counted(state: Document, place: str, by: int) -> Document:
    """The delta of counting at a place, up or down."""
    ups, downs = state.counts.get(place, (0, 0))
    return Document(counts={place: (ups + max(by, 0), downs + max(-by, 0))})


def written(state: Document, place: str, name: str, value: str | None, now_ms: int) -> Document:
    """The delta of writing a field.  It is later than what it replaces, also where the clock is behind."""
    before = state.fields.get(name, (0, "", None))[0]
    return Document(fields={name: (max(now_ms, before + 1), place, value)})


def _rank(write: tuple[int, str, str | None]) -> tuple[int, str, bool, str]:
    stamp, place, value = write
    return (stamp, place, value is not None, value or "")


class Replica(DurableObject):
    """A document at one place."""

    document: Document = durable(default_factory=Document)
    unsent: Document | None = durable(None)
    """Changes made here that the others have not been sent."""
    connected: bool = durable(True)

    def on_start(self) -> None:
        if self._place not in PLACES:
            raise ValueError(
                f"a replica is named document@place with a place of {PLACES}, not {self.id.name}"
            )

    # --- for callers

    @public
    async def add(self, item: str) -> None:
        """Puts an item into the set."""
        if item not in self.document.items and len(self.document.items) >= ITEMS_MAX:
            raise OverflowError(f"the set has {ITEMS_MAX} items already")
        self._change(added(self.document, self._place, _text(item)))

    @public
    async def remove(self, item: str) -> None:
        """Takes an item out of the set."""
        if item in self.document.items:
            self._change(removed(self.document, item))

    @public
    async def count(self, by: int) -> None:
        """Counts up or down."""
        self._change(counted(self.document, self._place, by))

    @public
    async def write(self, name: str, value: str | None) -> None:
        """Sets a field; None removes it."""
        if name not in self.document.fields and len(self.document.fields) >= FIELDS_MAX:
            raise OverflowError(f"there are {FIELDS_MAX} fields already, removed ones included")
        text = None if value is None else _text(value)
        self._change(written(self.document, self._place, _text(name), text, int(time.time() * 1_000)))

    @public
    async def read(self) -> dict[str, Any]:
        """The document as it is here, and whether this replica is connected."""
        fields = {name: value for name, (_, _, value) in self.document.fields.items() if value is not None}
        return {
            "place": self._place,
            "items": sorted(self.document.items),
            "count": sum(ups - downs for ups, downs in self.document.counts.values()),
            "fields": dict(sorted(fields.items())),
            "connected": self.connected,
            "unsent": self.unsent is not None,
        }

    @public
    async def connect(self, on: bool) -> None:
        """Cuts this replica off from the others, or brings it back."""
        if on and not self.connected:
            self._to_peers("exchange", self.document)
            self.unsent = None
        self.connected = on

    # --- between replicas

    async def receive(self, delta: Document) -> None:
        """Changes of another replica."""
        if self.connected:
            self.document = merge(self.document, delta)

    async def exchange(self, document: Document, sender: str) -> None:
        """All of a replica that is back; it gets all of this one."""
        if self.connected:
            self.document = merge(self.document, document)
            self.ctx.send(Replica, sender).receive(self.document)

    async def alarm(self, alarm: Alarm) -> None:
        """Time to tell the others."""
        if self.connected and self.unsent is not None:
            self._to_peers("receive", self.unsent)
            self.unsent = None

    def _change(self, delta: Document) -> None:
        self.document = merge(self.document, delta)
        self.unsent = delta if self.unsent is None else merge(self.unsent, delta)
        self.storage.set_alarm(timedelta(seconds=GOSSIP_S))

    def _to_peers(self, how: str, document: Document) -> None:
        for place in PLACES:
            if place != self._place:
                peer = self.ctx.send(Replica, f"{self._name}@{place}")
                if how == "receive":
                    peer.receive(document)
                else:
                    peer.exchange(document, str(self.id.name))

    @property
    def _name(self) -> str:
        return str(self.id.name).rpartition("@")[0]

    @property
    def _place(self) -> str:
        return str(self.id.name).rpartition("@")[2]


def _text(text: str) -> str:
    if not 0 < len(text) <= TEXT_CHARS_MAX:
        raise ValueError(f"a text has 1 to {TEXT_CHARS_MAX} characters, not {len(text)}")
    return text


app = site("crdt", Replica)
