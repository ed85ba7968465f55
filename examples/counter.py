"""The smallest durable object: a number for each name, which survives restarts and crashes.

Run it with `perdure run examples/counter.py`; examples/counter_demo.py shows it counting.
"""

from perdure import DurableObject, durable, public


class Counter(DurableObject):
    value: int = durable(0)

    @public  # reachable over HTTP too: POST /Counter/<name>/increment
    async def increment(self, by: int = 1) -> int:
        self.value += by
        return self.value

    @public
    async def get(self) -> int:
        return self.value
