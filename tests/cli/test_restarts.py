"""When a process that died is started again: each line of the rule as a row."""

from __future__ import annotations

import signal

import pytest

from perdure.exits import WorkerExit
from perdure_cli.restarts import (
    PARKING,
    Death,
    RestartTiming,
    after_death,
    after_failed_spawn,
    write_failures_after,
)

TIMING = RestartTiming()
KILLED = -signal.SIGKILL
ABORTED = -signal.SIGABRT


@pytest.mark.parametrize(
    ("strikes", "death", "expected"),
    [
        # its own doing, before it was ready or soon after: strikes, and longer and longer pauses
        (0, Death(1, None), (1, 0.0)),
        (1, Death(1, None), (2, 0.1)),
        (2, Death(WorkerExit.SHARD_LOCKED, None), (3, 1.0)),
        (2, Death(WorkerExit.STORE_UNAVAILABLE, None), (3, 1.0)),
        (3, Death(WorkerExit.STOPPED, None), (4, 5.0)),
        (4, Death(ABORTED, None), (5, 30.0)),
        (50, Death(1, None), (51, 30.0)),
        (2, Death(ABORTED, 0.9), (3, 1.0)),
        # ... also when the supervisor had to end it because it never became ready
        (1, Death(KILLED, None, killed_by_supervisor=True), (2, 0.1)),
        # it had served: at once, the strikes stay until it has served long
        (3, Death(ABORTED, 1.0), (3, 0.0)),
        (3, Death(1, 59.0), (3, 0.0)),
        (3, Death(ABORTED, 60.0), (0, 0.0)),
        # a failed write counts whatever the time served
        (0, Death(WorkerExit.WRITE_FAILED, 10.0), (1, 0.0)),
        (3, Death(WorkerExit.WRITE_FAILED, 10.0), (4, 5.0)),
        (3, Death(WorkerExit.WRITE_FAILED, 60.0), (1, 0.0)),
        (2, Death(WorkerExit.NO_SPACE, 10.0), (3, 1.0)),
        # killed or stopped from outside, or for its silence, after it was ready: at once
        (0, Death(KILLED, 0.0), (0, 0.0)),
        (4, Death(KILLED, 0.1), (4, 0.0)),
        (0, Death(-signal.SIGTERM, 0.1), (0, 0.0)),
        (0, Death(WorkerExit.STOPPED, 0.1), (0, 0.0)),
        (2, Death(WorkerExit.TURNS_CUT, 12.0), (2, 0.0)),
        (2, Death(KILLED, 0.5, killed_by_supervisor=True), (2, 0.0)),
        # ended by one of its objects, which is kept out when it does so again: at once
        (0, Death(-signal.SIGSEGV, 0.1, blamed=True), (0, 0.0)),
        (4, Death(1, 0.1, blamed=True), (4, 0.0)),
        # killed from outside before it was ready: the shortest pause, no strike
        (0, Death(KILLED, None), (0, 0.1)),
        (4, Death(KILLED, None), (4, 0.1)),
    ],
)
def test_a_death_gives_strikes_and_a_pause(strikes: int, death: Death, expected: tuple[int, float]) -> None:
    assert after_death(strikes, death, TIMING) == expected


@pytest.mark.parametrize(
    ("strikes", "expected"), [(0, (1, 0.1)), (1, (2, 0.1)), (2, (3, 1.0)), (9, (10, 30.0))]
)
def test_a_spawn_that_failed_is_never_repeated_at_once(strikes: int, expected: tuple[int, float]) -> None:
    assert after_failed_spawn(strikes, TIMING) == expected


@pytest.mark.parametrize(
    ("failures", "death", "expected"),
    [
        (0, Death(WorkerExit.WRITE_FAILED, 10.0), 1),
        (2, Death(WorkerExit.WRITE_FAILED, None), 3),
        (3, Death(WorkerExit.WRITE_FAILED, 60.0), 1),
        (2, Death(KILLED, 10.0), 2),
        (2, Death(KILLED, 60.0), 0),
        (2, Death(WorkerExit.NO_SPACE, 10.0), 2),
        (2, Death(WorkerExit.STORE_UNAVAILABLE, None), 2),
    ],
)
def test_failed_writes_are_counted_until_long_service(failures: int, death: Death, expected: int) -> None:
    assert write_failures_after(failures, death, TIMING) == expected


def test_only_what_a_retry_cannot_cure_parks() -> None:
    assert set(PARKING) == {71, 72, 73, 78}
