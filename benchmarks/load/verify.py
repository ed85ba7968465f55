"""Whether every acknowledged write took effect once.  Runs in the load test's main process, after the load.

A write is lost when an object tells fewer writes than were acknowledged, or fewer than it told before: the
second shows a loss also where writes of unknown outcome would make up for it.  A write is duplicated when
an object tells more than were acknowledged and unknown together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.load.plan import NAMESPACE, LoadPlan
from benchmarks.load.report import ClientReport
from perdure import connect
from perdure.errors import PerdureError

__all__ = ["NotReadBack", "Verdict", "judge", "read_back"]

_OUTSTANDING = 256
_ATTEMPTS = 3
_TIMEOUT_S = 20.0
"""Deadline of one attempt; longer than any process takes to come back."""


class NotReadBack(PerdureError):
    """Objects could not be read after the load, so nothing can be said about their writes."""


@dataclass(frozen=True)
class Verdict:
    """Numbers of writes, and of objects that were read."""

    lost: int
    duplicated: int
    unknown: int
    """Writes that may or may not have happened, whether they did or not."""
    read_back: int
    """Objects whose writes were compared."""

    @property
    def is_good(self) -> bool:
        """Whether no write was lost or duplicated."""
        return self.lost == self.duplicated == 0


def judge(reports: Sequence[ClientReport], values: Sequence[int]) -> Verdict:
    """Compares what the objects tell (`values`, by object) with what the clients know."""
    acked, unknown = _sums([report.acked for report in reports]), _sums([r.unknown for r in reports])
    seen = [max(row) for row in zip(*(report.seen for report in reports), strict=True)]
    rows = list(zip(values, acked, unknown, seen, strict=True))
    return Verdict(
        lost=sum(max(0, sure - value, told - value) for value, sure, _, told in rows),
        duplicated=sum(max(0, value - sure - maybe) for value, sure, maybe, _ in rows),
        unknown=sum(unknown),
        read_back=len(values),
    )


def _sums(by_client: Sequence[Sequence[int]]) -> list[int]:
    return [sum(row) for row in zip(*by_client, strict=True)]


async def read_back(plan: LoadPlan) -> list[int]:
    """The number of writes that each object tells; raises `NotReadBack`."""
    values = [0] * plan.objects
    async with connect(plan.url, direct=plan.direct) as client:
        indexes = iter(range(plan.objects))

        async def reader() -> None:
            for index in indexes:
                stub = client.get(NAMESPACE, plan.name(index), timeout=_TIMEOUT_S)
                for attempt in range(1, _ATTEMPTS + 1):
                    try:
                        values[index] = await stub.get()
                    except PerdureError as error:
                        if attempt == _ATTEMPTS:
                            raise NotReadBack(
                                f"object {plan.name(index)} cannot be read back: {error}"
                            ) from error
                    else:
                        break

        try:
            async with asyncio.TaskGroup() as readers:
                for _ in range(_OUTSTANDING):
                    readers.create_task(reader())
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    return values
