"""What the supervisor must remember across its own death, as a value and as the text of state.json.  Pure.

Guarantees that damage is seen: a text that does not match its checksum, or was written by a newer
Perdure, is an error and never a state.  A wrong epoch would let two incarnations of a worker pass for
one another, and a wrong range would make objects look empty.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, replace
from typing import Any

from perdure.errors import InvalidArgument
from perdure.slotmap import contiguous_ranges
from perdure_cli.errors import StateDamaged, StateTooNew

__all__ = ["FORMAT", "ClusterState", "first_state", "from_text", "to_text"]

FORMAT = 1
"""Format of state.json, its first field; a change that older programs misread gets the next number."""


@dataclass(frozen=True, slots=True)
class ClusterState:
    """A value: a change makes a new one, which counts once it is on disk."""

    engine: str
    """Storage engine of the shards, for the directory's whole life."""
    slot_count: int
    """Fixed when the directory was made."""
    ranges: tuple[range, ...]
    """Slots of worker i; its length is the number of workers."""
    epochs: tuple[int, ...]
    """Highest epoch ever given to an incarnation of worker i; on disk before the incarnation starts."""
    router_epoch: int
    """The same for the router."""
    map_version: int
    """No slot map of a higher version was ever published."""
    unprovisioned: tuple[int, ...] = ()
    """Shards whose directories may still be missing; a missing one that is not listed here was lost."""

    @property
    def workers(self) -> int:
        """How many workers, and so shards, there are."""
        return len(self.ranges)

    def with_ranges(self, ranges: tuple[range, ...]) -> ClusterState:
        """The state after a change of the number of workers.

        Every worker goes on from the highest epoch of all: slots change their shard, and the rule that
        a slot's owner has a higher epoch than its owners before must hold across that.
        """
        epoch = max(self.epochs)
        return replace(self, ranges=ranges, epochs=(epoch,) * len(ranges))


def first_state(engine: str, slot_count: int, workers: int) -> ClusterState:
    """The state of a new data directory: no shard is provisioned, no epoch was given."""
    return ClusterState(
        engine=engine,
        slot_count=slot_count,
        ranges=tuple(contiguous_ranges(slot_count, workers)),
        epochs=(0,) * workers,
        router_epoch=0,
        map_version=0,
        unprovisioned=tuple(range(workers)),
    )


def _checksum(fields: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


def to_text(state: ClusterState) -> str:
    """The text of state.json."""
    fields: dict[str, Any] = {
        "format": FORMAT,
        "engine": state.engine,
        "slot_count": state.slot_count,
        "ranges": [[slots.start, slots.stop] for slots in state.ranges],
        "epochs": list(state.epochs),
        "router_epoch": state.router_epoch,
        "map_version": state.map_version,
        "unprovisioned": list(state.unprovisioned),
    }
    return json.dumps({**fields, "checksum": _checksum(fields)}, indent=1) + "\n"


def from_text(text: str) -> ClusterState:
    """What `to_text` wrote; raises `StateDamaged` or `StateTooNew` for anything else."""
    try:
        fields = json.loads(text)
        found = int(fields["format"])
        if found > FORMAT:
            raise StateTooNew(found, FORMAT)
        checksum = fields.pop("checksum")
        if checksum != _checksum(fields):
            raise StateDamaged("the state file does not match its checksum; restore it from a backup")
        state = ClusterState(
            engine=str(fields["engine"]),
            slot_count=int(fields["slot_count"]),
            ranges=tuple(range(int(start), int(stop)) for start, stop in fields["ranges"]),
            epochs=tuple(int(epoch) for epoch in fields["epochs"]),
            router_epoch=int(fields["router_epoch"]),
            map_version=int(fields["map_version"]),
            unprovisioned=tuple(int(shard) for shard in fields["unprovisioned"]),
        )
    except (AttributeError, KeyError, TypeError, ValueError, InvalidArgument) as error:
        raise StateDamaged(f"the state file cannot be read ({error!r}); restore it from a backup") from None
    if not state.ranges or len(state.epochs) != state.workers:
        raise StateDamaged("the state file names no workers, or no epoch for each; restore it from a backup")
    return state
