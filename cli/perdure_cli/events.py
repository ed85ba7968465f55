"""The words between the supervisor's decisions and its shell: children, events in, actions out.  Pure.

Events tell what happened and when; actions are orders, to be carried out one after the other.  Times
are seconds of one monotonic clock.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import StrEnum

from perdure.slotmap import SlotMap
from perdure_cli.errors import RunExit
from perdure_cli.state import ClusterState

__all__ = [
    "GATEWAY",
    "ROUTER",
    "Action",
    "Announce",
    "Beat",
    "ChildId",
    "Close",
    "Event",
    "Exited",
    "Finish",
    "Kill",
    "Park",
    "Persist",
    "PublishMap",
    "Quiet",
    "Ready",
    "Role",
    "Spawn",
    "SpawnFailed",
    "Spawned",
    "Start",
    "StopRequested",
    "Tick",
]


class Role(StrEnum):
    """What a child does."""

    ROUTER = "router"
    WORKER = "worker"
    GATEWAY = "gateway"


@dataclass(frozen=True, slots=True, order=True)
class ChildId:
    """Which child, whatever its incarnation."""

    role: Role
    index: int

    def __str__(self) -> str:
        return f"worker-{self.index}" if self.role is Role.WORKER else str(self.role)


ROUTER = ChildId(Role.ROUTER, 0)
GATEWAY = ChildId(Role.GATEWAY, 0)


# --- events


@dataclass(frozen=True, slots=True)
class Start:
    """The data directory is locked and its shards are there."""

    now: float


@dataclass(frozen=True, slots=True)
class Spawned:
    """The process that `Spawn` asked for runs."""

    child: ChildId
    epoch: int
    pid: int
    now: float


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The process could not be started, or its epoch could not be written."""

    child: ChildId
    epoch: int
    now: float


@dataclass(frozen=True, slots=True)
class Ready:
    """A process said that it serves at `endpoint`."""

    child: ChildId
    epoch: int
    pid: int
    endpoint: str
    now: float


@dataclass(frozen=True, slots=True)
class Beat:
    """A process's own loop gave a sign of life."""

    child: ChildId
    epoch: int
    pid: int
    now: float


@dataclass(frozen=True, slots=True)
class Quiet:
    """A worker that was told to stop runs no turn; it serves the turns of others until it may `Close`."""

    child: ChildId
    epoch: int
    pid: int
    now: float


@dataclass(frozen=True, slots=True)
class Exited:
    """A process is gone; `code` is its exit code, or the signal's number negated."""

    child: ChildId
    pid: int
    code: int
    now: float
    blamed: bool = False
    """Whether an object of the worker is to blame, which its next incarnation counts."""


@dataclass(frozen=True, slots=True)
class Tick:
    """`next_deadline()` has come."""

    now: float


@dataclass(frozen=True, slots=True)
class StopRequested:
    """A signal to stop (SIGTERM, SIGINT, SIGHUP, SIGQUIT); the second one forces."""

    now: float


Event = Start | Spawned | SpawnFailed | Ready | Beat | Quiet | Exited | Tick | StopRequested


# --- actions, to be done in order


@dataclass(frozen=True, slots=True)
class Persist:
    """Write the state and wait until it is on disk; without success, no `Spawn` that follows may be done."""

    state: ClusterState


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process; answered by `Spawned` or `SpawnFailed` before any other event."""

    child: ChildId
    epoch: int


@dataclass(frozen=True, slots=True)
class Kill:
    """Send a signal to a process that has not been waited for yet."""

    child: ChildId
    pid: int
    signal: signal.Signals
    reason: str = ""
    """Why, for the operator."""


@dataclass(frozen=True, slots=True)
class PublishMap:
    """Send the map to these children."""

    map: SlotMap
    to: tuple[ChildId, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Tell these workers that no turn needs them any more: they may close their doors and end."""

    to: tuple[ChildId, ...]


@dataclass(frozen=True, slots=True)
class Park:
    """Tell the operator that this worker stays down, and why."""

    child: ChildId
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Announce:
    """The cluster serves: router and gateway are ready, every worker is ready or parked. Once in a run."""

    parked: int


@dataclass(frozen=True, slots=True)
class Finish:
    """All is down; end the process with this exit code."""

    code: RunExit


Action = Persist | Spawn | Kill | PublishMap | Close | Park | Announce | Finish
