"""The load loop of the client process, with increments that a dictionary answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from benchmarks.driver import Load, percentile


class Counters:
    """Increments that are answered in a later round of the loop, the first one after `first_s` if given."""

    def __init__(self, first_s: float = 0) -> None:
        self.values: Counter[int] = Counter()
        self.outstanding = 0
        self.outstanding_max = 0
        self.first_s = first_s

    def increment(self, index: int) -> asyncio.Future[int]:
        self.outstanding += 1
        self.outstanding_max = max(self.outstanding_max, self.outstanding)
        self.values[index] += 1
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        delay_s, self.first_s = self.first_s, 0
        if delay_s:
            loop.call_later(delay_s, self._answer, future, self.values[index])
        else:
            loop.call_soon(self._answer, future, self.values[index])
        return future

    def _answer(self, future: asyncio.Future[int], value: int) -> None:
        self.outstanding -= 1
        future.set_result(value)


@pytest.mark.parametrize(
    ("count", "share", "rank"),
    [(1, 0.5, 1), (1, 0.999, 1), (2, 0.5, 1), (4, 0.5, 2), (5, 0.5, 3), (100, 0.99, 99), (1000, 0.999, 999)],
)
def test_a_percentile_is_the_value_of_the_nearest_rank(count: int, share: float, rank: int) -> None:
    assert percentile(range(1, count + 1), share) == rank


def test_all_of_it_and_none_of_it_are_the_ends() -> None:
    assert percentile([3.0, 5.0, 9.0], 1) == 9.0
    assert percentile([3.0, 5.0, 9.0], 0) == 3.0


def test_touching_increments_every_object_once_and_adds_up_their_values() -> None:
    async def scenario() -> None:
        counters = Counters()
        counters.values.update({3: 10, 999: 5})
        load = Load(counters.increment, 1_000)
        assert await load.touch_all() == 1_000 + 15
        assert load.calls == 1_000
        assert counters.values == Counter({**dict.fromkeys(range(1_000), 1), 3: 11, 999: 6})

    asyncio.run(scenario())


def test_every_caller_has_one_call_outstanding_and_every_call_is_counted() -> None:
    async def scenario() -> None:
        counters = Counters()
        load = Load(counters.increment, 10)
        window = await load.run(outstanding=7, warmup_s=0.01, seconds=0.05)
        assert counters.outstanding_max == 7
        assert load.calls == counters.values.total()
        assert 0 < window.calls < load.calls
        assert window.seconds >= 0.05
        assert window.latencies_s == sorted(window.latencies_s)

    asyncio.run(scenario())


def test_two_loads_choose_the_same_objects_in_the_same_order() -> None:
    async def all_picks() -> list[int]:
        picks: list[int] = []
        counters = Counters()

        def increment(index: int) -> asyncio.Future[int]:
            picks.append(index)
            return counters.increment(index)

        await Load(increment, 50).run(outstanding=30, warmup_s=0, seconds=0.02)
        return picks

    pairs = list(zip(asyncio.run(all_picks()), asyncio.run(all_picks()), strict=False))
    assert len(pairs) >= 30
    assert all(one == other for one, other in pairs)


def test_a_caller_that_is_not_answered_within_the_window_is_in_its_latencies_all_the_same() -> None:
    async def scenario() -> None:
        load = Load(Counters(first_s=0.2).increment, 10)
        window = await load.run(outstanding=2, warmup_s=0, seconds=0.02)
        assert window.seconds < 0.2
        assert window.latencies_s[-1] >= 0.2

    asyncio.run(scenario())


def test_a_call_that_fails_ends_the_load_with_its_error() -> None:
    async def scenario() -> None:
        counters = Counters()

        async def increment(index: int) -> Any:
            if counters.values.total() == 20:
                raise RuntimeError("lost")
            return await counters.increment(index)

        with pytest.raises(RuntimeError, match="lost"):
            await Load(increment, 10).run(outstanding=2, warmup_s=0, seconds=60)

    asyncio.run(scenario())
