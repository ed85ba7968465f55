"""Queued calls, cut into messages.  Pure; runs in every caller."""

from __future__ import annotations

from collections.abc import Iterator

from perdure.limits import Limits
from perdure.pending import Pending

__all__ = ["cut"]

_LIMITS = Limits()
# A batch carries one time for all of its calls, so only calls of about the same time travel together.
_STAMP_SLACK_S = 0.005


def cut(queue: list[Pending]) -> Iterator[tuple[list[Pending], int]]:
    """Batches of a queue that is in the order of `encoded_at`, and the bytes of their calls."""
    size = sum([len(pending.tail) for pending in queue])
    if (
        size <= _LIMITS.batch_bytes_max
        and len(queue) < _LIMITS.batch_calls_max
        and queue[-1].encoded_at - queue[0].encoded_at <= _STAMP_SLACK_S
    ):
        yield queue[:], size
        return
    batch: list[Pending] = []
    size = 0
    for pending in queue:
        if batch and (
            size + len(pending.tail) > _LIMITS.batch_bytes_max
            or len(batch) >= _LIMITS.batch_calls_max - 1
            or pending.encoded_at - batch[0].encoded_at > _STAMP_SLACK_S
        ):
            yield batch, size
            batch, size = [], 0
        batch.append(pending)
        size += len(pending.tail)
    yield batch, size
