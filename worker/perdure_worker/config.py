"""What the supervisor tells a worker: one JSON argument.  Written there, read here."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["WorkerConfig"]


@dataclass(frozen=True)
class WorkerConfig:
    """One incarnation of one worker."""

    app: str
    """Module or file of the user's classes."""
    index: int
    epoch: int
    shard: str
    """Directory of the worker's store."""
    door: str
    """Endpoint of this incarnation; its name carries the epoch."""
    control: str
    """Endpoint of the supervisor."""
    slots: tuple[int, int]
    """First slot, and the one behind the last."""
    slot_count: int
    engine: str
    parent: int
    """Process id of the supervisor; the worker ends with it."""
    log_json: bool
    log_level: str
    dev: bool
    """Whether callers get remote tracebacks."""
    idle_evict_s: float
    live_objects_max: int
    marks: int = -1
    """Descriptor of the memory where the worker notes what it runs; -1 for none."""
    blame: dict[str, Any] | None = None
    """What the death of the incarnation before is blamed on, as `quarantine.Blame` has it."""
    first: bool = True
    """Whether this is the worker's first incarnation in this `perdure run`."""

    @staticmethod
    def from_json(text: str) -> WorkerConfig:
        """The config of `to_json`; raises `TypeError` or `ValueError` for anything else."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise TypeError("a worker's config is a JSON object")
        first, stop = values.pop("slots", ())
        return WorkerConfig(**values, slots=(first, stop))

    def to_json(self) -> str:
        """The one argument of `python -m perdure_worker`."""
        return json.dumps(asdict(self))
