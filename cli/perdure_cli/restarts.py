"""When a process that died is started again.  Pure; decides for the supervisor.

The rule (RELIABILITY G10: pauses of 0, 0.1, 1, 5, 30 s; the last is the circuit breaker).  A death is a
strike when it is the process's own doing and it never became ready, had served for less than
`served_min_s`, or failed a write.  With each strike in a row the pause grows, the first costs none;
`strikes_forgotten_s` of service forget them.  All other deaths are no strikes:

- One that had become ready and was killed from outside, or was killed because it fell silent, comes back
  at once however often that happens.  The kill says nothing about the process, becoming ready proves that
  its shard opens, and its start (about 0.3 s) paces such a loop by itself.
- One that an object has ended comes back at once: the pause would be its neighbours'.  The quarantine
  (perdure_worker.quarantine) ends such a loop after a few deaths.
- One that was killed from outside before it was ready comes back after the shortest pause: enough to pace
  the kernel's memory killer, and never the breaker, so that a burst of kills leaves no outage behind it.
- A failed write counts whatever the time served: only time without a failure shows that the disk is well.
  After `write_failures_max` of them in a row, none for want of space, the shard is parked (RELIABILITY
  §1.3): nobody knows then what is on the disk, and each restart reads what the page cache holds.

Some exit codes say that a new start cannot help or could do harm: those park the shard (`PARKING`).  A
store that cannot be opened or written for want of space, descriptors or permission is none of them:
whoever repairs that finds the shard served again within the longest pause.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Final

from perdure.exits import WorkerExit
from perdure.limits import Limits

__all__ = ["PARKING", "Death", "RestartTiming", "after_death", "after_failed_spawn", "write_failures_after"]


PARKING: Final = frozenset(
    {
        WorkerExit.STALE_EPOCH,
        WorkerExit.SHARD_DAMAGED,
        WorkerExit.NEWER_FORMAT,
        WorkerExit.APP_NOT_LOADED,
    }
)
"""Exit codes of workers that are not started again; `WorkerExit.meaning` tells the operator why."""

_FAILED_WRITES: Final = frozenset({WorkerExit.WRITE_FAILED, WorkerExit.NO_SPACE})

_OUTSIDE_SIGNALS = frozenset(
    -number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
)


@dataclass(frozen=True)
class RestartTiming:
    """Times of the rule, in seconds."""

    served_min_s: float = Limits.served_min_s
    """A process that fails earlier than this after it became ready has not served."""
    strikes_forgotten_s: float = Limits.strikes_forgotten_s
    """Service for this long makes up for earlier failures."""
    write_failures_max: int = Limits.write_failures_max
    """So many failed writes in a row park the shard."""
    backoff_s: tuple[float, ...] = (0.0, 0.1, 1.0, 5.0, Limits.restart_pause_max_s)
    """Pause before the next start, by strikes in a row; the last one stays."""


@dataclass(frozen=True, slots=True)
class Death:
    """One end of one process that was not asked to stop."""

    code: int
    """Exit code, or the signal's number negated."""
    served_s: float | None
    """Time between ready and death; None when it never became ready."""
    killed_by_supervisor: bool = False
    """It fell silent, or was not ready in time."""
    blamed: bool = False
    """One object is to blame, and is kept out when it does so again and again."""


def after_death(strikes: int, death: Death, timing: RestartTiming) -> tuple[int, float]:
    """Strikes after this death, and the seconds to wait before the next start."""
    served = death.served_s
    if served is not None and served >= timing.strikes_forgotten_s:
        strikes = 0
    if served is None:
        if death.code in _OUTSIDE_SIGNALS and not death.killed_by_supervisor:
            return strikes, timing.backoff_s[1]
        return _strike(strikes, timing)
    if death.blamed or death.killed_by_supervisor:
        return strikes, 0.0
    if death.code in _OUTSIDE_SIGNALS or death.code == WorkerExit.STOPPED:
        return strikes, 0.0
    if served < timing.served_min_s or death.code in _FAILED_WRITES:
        return _strike(strikes, timing)
    return strikes, 0.0


def write_failures_after(failures: int, death: Death, timing: RestartTiming) -> int:
    """Failed writes in a row after this death; only service without one makes up for them."""
    if death.served_s is not None and death.served_s >= timing.strikes_forgotten_s:
        failures = 0
    return failures + (death.code == WorkerExit.WRITE_FAILED)


def after_failed_spawn(strikes: int, timing: RestartTiming) -> tuple[int, float]:
    """The same when no process could be started: never at once, since what was short is still short."""
    strikes, pause = _strike(strikes, timing)
    return strikes, max(pause, timing.backoff_s[1])


def _strike(strikes: int, timing: RestartTiming) -> tuple[int, float]:
    return strikes + 1, timing.backoff_s[min(strikes, len(timing.backoff_s) - 1)]
