"""Queued calls, cut into messages."""

from __future__ import annotations

from perdure.batches import cut
from perdure.limits import Limits
from perdure.pending import Pending

LIMITS = Limits()


def calls(count: int, size: int = 10, gap_s: float = 0.0) -> list[Pending]:
    return [call(n, size, n * gap_s) for n in range(count)]


def call(sequence: int, size: int, encoded_at: float) -> Pending:
    pending = Pending()
    pending.sequence, pending.tail, pending.encoded_at = sequence, bytes(size), encoded_at
    return pending


def test_a_queue_within_all_bounds_is_one_batch() -> None:
    queue = calls(100)
    assert list(cut(queue)) == [(queue, 1_000)]


def test_batches_hold_the_bounds_and_keep_the_order() -> None:
    for queue in (calls(10_000), calls(5, size=LIMITS.batch_bytes_max // 2), calls(50, gap_s=0.002)):
        batches = list(cut(queue))
        assert len(batches) > 1
        assert [pending for batch, _ in batches for pending in batch] == queue
        for batch, size in batches:
            assert size == sum(len(pending.tail) for pending in batch) <= LIMITS.batch_bytes_max
            assert len(batch) < LIMITS.batch_calls_max
            assert batch[-1].encoded_at - batch[0].encoded_at <= 0.005


def test_a_call_larger_than_a_batch_travels_alone() -> None:
    queue = calls(3, size=LIMITS.batch_bytes_max + 1)
    assert [len(batch) for batch, _ in cut(queue)] == [1, 1, 1]
