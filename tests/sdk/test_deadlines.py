"""Which calls are due."""

from __future__ import annotations

from perdure.deadlines import TICKS_PER_S, Deadlines


def test_sequences_come_up_once_within_a_tick_after_their_deadline() -> None:
    deadlines = Deadlines(100.0)
    for sequence, deadline in ((1, 101.0), (2, 101.0), (3, 100.5), (4, 101.0)):
        bucket = int(deadline * TICKS_PER_S)
        if bucket != deadlines.bucket:
            deadlines.begin(bucket, sequence)
    assert list(deadlines.due(100.4, 4)) == []
    assert list(deadlines.due(100.56, 4)) == [3]
    assert list(deadlines.due(101.06, 4)) == [1, 2, 4]
    assert list(deadlines.due(200.0, 4)) == []
    assert len(deadlines) == 0


def test_a_call_can_be_due_once_more() -> None:
    deadlines = Deadlines(100.0)
    deadlines.again(7, 100.5)
    assert list(deadlines.due(100.49, 9)) == []
    assert list(deadlines.due(100.6, 9)) == [7]


def test_many_calls_of_one_deadline_are_one_entry() -> None:
    deadlines = Deadlines(100.0)
    deadlines.begin(3_000, 1)
    deadlines.begin(3_001, 50_001)
    deadlines.begin(3_002, 60_001)
    assert len(deadlines) == 2
    deadlines.clear()
    assert list(deadlines.due(1_000.0, 70_000)) == []
