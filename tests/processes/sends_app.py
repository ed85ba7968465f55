"""The application of the tests of durable sends: feeders send numbers, sinks write down what arrives."""

from __future__ import annotations

from perdure import DurableObject, durable


class Feeder(DurableObject):
    """Sends 0, 1, 2, ... to every sink."""

    batches: int = durable(0)
    next: int = durable(0)

    async def feed(self, batch: int, sinks: list[str], count: int, delay: float = 0.0) -> int:
        """Sends the next `count` numbers, unless it has done this batch; the number of its batches."""
        if batch == self.batches:
            for number in range(self.next, self.next + count):
                for sink in sinks:
                    self.ctx.send(Sink, sink, delay=delay or None).take(str(self.id.name), number)
            self.batches += 1
            self.next += count
        return self.batches

    async def feed_and_raise(self, sinks: list[str]) -> None:
        """Sends what must never arrive."""
        for sink in sinks:
            self.ctx.send(Sink, sink).take(str(self.id.name), -1)
        raise RuntimeError("rolled back")

    async def sent(self) -> int:
        """How many numbers each sink is to get."""
        return self.next

    async def pending(self) -> int:
        """Messages that have not ended."""
        return len(await self.ctx.outbox.list(limit=10_000))


class Sink(DurableObject):
    """Keeps what arrives, in the order of its arrival."""

    count: int = durable(0)

    async def take(self, sender: str, number: int) -> None:
        """One message."""
        self.storage.put(f"{self.count:08}", [sender, number])
        self.count += 1

    async def size(self) -> int:
        """How many messages have arrived."""
        return self.count

    async def taken(self) -> dict[str, list[int]]:
        """What has arrived from each sender, in order."""
        found: dict[str, list[int]] = {}
        cursor = None
        while page := await self.storage.list(limit=5_000, cursor=cursor):
            for sender, number in page.values():
                found.setdefault(sender, []).append(number)
            cursor = list(page)[-1]
        return found
