"""What a client process says at its end.  Made in the client, read in the load test's main process."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ClientReport"]


@dataclass(frozen=True)
class ClientReport:
    """Plain values only: it crosses between the processes as JSON."""

    calls: int
    """Calls that ended with a result."""
    ended_calls: int
    """Those of them that ended while the load ran."""
    ended_after_s: float
    """How long the load ran."""
    cpu_s: float
    """CPU time of the process meanwhile."""
    errors: dict[str, int]
    """Calls that ended otherwise, by the error's class."""
    latencies_us: list[tuple[int, int]]
    """Microseconds, and how many of `calls` took that long."""
    acked: list[int]
    """Acknowledged writes of each object; this and the following only where the plan verifies."""
    unknown: list[int]
    """Writes of each object that may or may not have happened."""
    seen: list[int]
    """Highest number of writes that each object has told."""
