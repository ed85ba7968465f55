"""What an object knows of its alarms: given to `alarm(self, alarm)`, listed by `storage.list_alarms()`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["DEFAULT_ALARM", "Alarm"]

DEFAULT_ALARM = "default"
"""Name of the alarm of an object that needs only one."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """One alarm."""

    name: str
    scheduled_at: datetime
    """What it was set to (UTC); the same in every attempt."""
    attempt: int = 1
    """Number of the run: 1, and one more after each run that failed.  Of a listed alarm: of the next run.

    A run that was cut off, by a crash or a stop of the worker, is run again under the same number.
    """
    dead: bool = False
    """Whether it has failed too often and is not tried any more; `set_alarm` arms it again."""
    error: str | None = None
    """Why its last run failed; None when none has."""
