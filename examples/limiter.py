"""A rate limiter without storage: a token bucket for each key, in the object's memory alone.

Run it with `perdure run examples/limiter.py`, and ask before doing something that costs:

    wait_s = client.get("RateLimiter", client_address).take()

Memory is enough here: an object lives in one place, so there is one bucket for each key.  An idle object
leaves memory, and its bucket is full again by then.  A restart fills all buckets, which a limiter can bear.
"""

import asyncio

from perdure import DurableObject

RATE_PER_S = 5.0
BURST = 20.0
"""A full bucket.  It fills within the 10 s after which an idle object may leave memory (`idle_evict_s`)."""


class RateLimiter(DurableObject):
    def __init__(self) -> None:
        self._tokens = BURST
        self._at = asyncio.get_running_loop().time()

    def take(self, cost: float = 1.0) -> float:
        """Takes `cost` tokens and gives 0; or takes none, and gives the seconds after which they are there.

        Gives infinity for what no bucket holds.
        """
        now = asyncio.get_running_loop().time()
        self._tokens = min(BURST, self._tokens + (now - self._at) * RATE_PER_S)
        self._at = now
        if cost <= self._tokens:
            self._tokens -= max(0.0, cost)
            return 0.0
        return (cost - self._tokens) / RATE_PER_S if cost <= BURST else float("inf")
