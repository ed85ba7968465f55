"""What a host is given: its limits and figures, and the parts it works with.  Pure data."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from perdure.calls import Caller
from perdure.limits import Limits
from perdure_storage.commit import Committer
from perdure_storage.engine import Engine
from perdure_worker.marks import Marks
from perdure_worker.peers import Peers
from perdure_worker.quarantine import Quarantine
from perdure_worker.registry import ObjectClass

__all__ = ["Collaborators", "HostSettings"]


@dataclass(frozen=True)
class HostSettings:
    """Figures of one worker."""

    slots: range
    """Slots that this worker owns."""
    slot_count: int
    limits: Limits = field(default_factory=Limits)
    idle_evict_s: float = Limits.idle_evict_s
    live_objects_max: int = Limits.live_objects_max
    epoch: int = 1
    """Of this incarnation of the worker; higher than that of all earlier ones."""
    tracebacks: bool = False
    """Whether callers get the text of remote tracebacks (development only)."""


@dataclass(frozen=True)
class Collaborators:
    """What a host works with; tests hand in memory engines, manual clocks and their own committers."""

    classes: Mapping[str, ObjectClass]
    engine: Engine
    committer: Committer
    peers: Peers
    caller: Caller
    """Sends the calls that objects make to other objects."""
    loop: asyncio.AbstractEventLoop
    clock: Callable[[], float]
    want_flush: Callable[[], None]
    """Asks the shell to look after commits and replies at the end of this tick."""
    want_turns: Callable[[], None]
    """Asks the shell to call `run_waiting` in the next tick."""
    wall_clock: Callable[[], float] = time.time
    """Seconds since the epoch; people set it, and it may be set back."""
    randomness: random.Random = field(default_factory=random.SystemRandom)
    """Jitter of pauses, and what makes one alarm differ from the next."""
    send_frames: Callable[[bytes, bytes], bool | None] = lambda identity, body: None
    """Hands a message of frames to a gateway's connection: false if it has no room, None if it is gone."""
    marks: Marks = field(default_factory=Marks)
    """Where the host notes what runs."""
    quarantine: Quarantine = field(default_factory=lambda: Quarantine(Limits(), time.time))
    """Who is kept out."""
