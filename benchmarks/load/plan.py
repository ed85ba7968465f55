"""What one load test does: its options, and the stream of operations that each client draws from them.

Pure; the same seed gives the same operations.  Used by the load test's main process and its clients.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

__all__ = ["NAMESPACE", "Distribution", "LoadPlan", "operations"]

NAMESPACE = "LoadCounter"
"""Namespace of `objects.LoadCounter`."""
Distribution = Literal["uniform", "zipf"]

_DRAWN_AT_ONCE = 256
"""Operations are drawn in runs of this length: one draw costs 0.1 µs in a run, 0.6 µs alone."""


@dataclass(frozen=True)
class LoadPlan:
    """The options of a load test; times in seconds."""

    url: str
    objects: int
    concurrency: int
    """Outstanding calls of each client."""
    clients: int
    """Client processes."""
    seconds: float | None
    """How long to call; None when `calls` tells the end."""
    calls: int | None
    """Calls in all, shared out evenly between the clients."""
    read_share: float
    """Share of the calls that read, 0 to 1."""
    payload_bytes: int
    """Size of what a write stores besides its count; 0 for the count alone."""
    distribution: Distribution
    zipf_s: float
    """The object of rank r is called in proportion to 1 / r ** zipf_s."""
    direct: bool
    """Whether clients may talk to the workers without the router."""
    timeout_s: float
    """Deadline of each call."""
    verify: bool
    kill_interval_s: float | None
    """Time between two kills of a worker; None when none is killed."""
    seed: int
    name_prefix: str
    """Object i has the name of this prefix and i."""

    def to_json(self) -> str:
        """What `from_json` takes."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> LoadPlan:
        """The plan that the main process wrote."""
        return cls(**json.loads(text))

    def name(self, index: int) -> str:
        """Name of object `index`."""
        return f"{self.name_prefix}{index}"

    def calls_of(self, client: int) -> int | None:
        """How many calls a client makes; None when time ends them."""
        if self.calls is None:
            return None
        return self.calls // self.clients + (client < self.calls % self.clients)


def operations(plan: LoadPlan, client: int) -> Iterator[int]:
    """What a client does, in order: `i` is a write to object i, `~i` a read of it."""
    return itertools.islice(_draw(plan, client), plan.calls_of(client))


def _draw(plan: LoadPlan, client: int) -> Iterator[int]:
    generator = random.Random(f"{plan.seed}/{client}")
    objects = range(plan.objects)
    weights = None
    if plan.distribution == "zipf":
        weights = list(itertools.accumulate(1 / rank**plan.zipf_s for rank in range(1, plan.objects + 1)))
    while True:
        indexes = generator.choices(objects, cum_weights=weights, k=_DRAWN_AT_ONCE)
        if plan.read_share == 0:
            yield from indexes
        else:
            for index in indexes:
                yield ~index if generator.random() < plan.read_share else index
