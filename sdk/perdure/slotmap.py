"""Placement: id -> slot -> worker.  The same pure code in clients, the router, workers and supervisor.

A slot map is a value: it is never changed, only replaced by one with a higher version.  Its version
grows with every change, a restarted worker included, so comparing versions is enough to see news.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from perdure.errors import InvalidArgument

__all__ = ["Seat", "SlotMap", "contiguous_ranges", "slot_map_from_wire"]

_WORKERS_MAX = 1_024
_SLOTS_MAX = 1 << 16
_NUMBER_MAX = (1 << 32) - 1  # what a header's number holds: versions and epochs


def contiguous_ranges(slots: int, workers: int) -> list[range]:
    """The default placement: worker i owns the i-th of `workers` nearly equal runs of slots."""
    if not 1 <= workers <= min(slots, _WORKERS_MAX):
        raise InvalidArgument(f"the number of workers is 1 to {min(slots, _WORKERS_MAX)}, not {workers}")
    bounds = [slots * i // workers for i in range(workers + 1)]
    return [range(bounds[i], bounds[i + 1]) for i in range(workers)]


@dataclass(frozen=True, slots=True)
class Seat:
    """One worker as others see it."""

    epoch: int
    """Grows with each incarnation; 0 before the first."""
    endpoint: str
    """ZeroMQ endpoint of this incarnation's door; empty while the worker is down or starting."""


@dataclass(frozen=True, slots=True)
class SlotMap:
    """Who owns which slot, and where that worker's door is.  `boot` tells whether it is this machine."""

    version: int
    ranges: tuple[range, ...]
    """Slots of worker i; disjoint, together all slots."""
    seats: tuple[Seat, ...]
    boot: str = ""
    """Boot id of the machine of the workers: clients that share it may use ipc endpoints."""
    owners: tuple[int, ...] = field(init=False, repr=False, compare=False)
    """Worker index of each slot."""

    def __post_init__(self) -> None:
        slot_count = sum(slots.stop - slots.start for slots in self.ranges)
        if not 1 <= slot_count <= _SLOTS_MAX or not 1 <= len(self.seats) == len(self.ranges) <= _WORKERS_MAX:
            raise InvalidArgument("a slot map needs slots, and a seat for each worker, within their limits")
        if not all(0 <= number <= _NUMBER_MAX for number in (self.version, *(s.epoch for s in self.seats))):
            raise InvalidArgument(f"versions and epochs are 0 to {_NUMBER_MAX}")
        owners = [-1] * slot_count
        for worker, slots in enumerate(self.ranges):
            for slot in slots:
                if not 0 <= slot < len(owners) or owners[slot] != -1:
                    raise InvalidArgument(f"slot {slot} of worker {worker} is out of place in the slot map")
                owners[slot] = worker
        object.__setattr__(self, "owners", tuple(owners))

    def worker_of(self, object_id: bytes) -> int:
        """Index of the worker that owns the object (see `ids.slot_of` for the rule)."""
        owners = self.owners
        return owners[int.from_bytes(object_id[:4], "big") % len(owners)]

    def is_seated(self, worker: int) -> bool:
        """Whether there is such a worker, with a door, as far as this map knows."""
        return worker < len(self.seats) and bool(self.seats[worker].endpoint)

    def with_seat(self, worker: int, seat: Seat) -> SlotMap:
        """The next version of the map, with one worker's seat replaced."""
        seats = list(self.seats)
        seats[worker] = seat
        return replace(self, version=self.version + 1, seats=tuple(seats))

    def to_wire(self) -> dict[str, Any]:
        """Plain values for the codec; documented in docs/PROTOCOL.md."""
        return {
            "version": self.version,
            "ranges": [[slots.start, slots.stop] for slots in self.ranges],
            "workers": [[seat.epoch, seat.endpoint] for seat in self.seats],
            "boot": self.boot,
        }


def slot_map_from_wire(data: object) -> SlotMap:
    """What `to_wire` gave; raises `InvalidArgument` for anything else."""
    if not isinstance(data, dict):
        raise InvalidArgument("a slot map is a map")
    try:
        version, boot = data["version"], data.get("boot", "")
        if type(version) is not int or type(boot) is not str:
            raise ValueError("the version is an int and the boot id a str")
        ranges = tuple(range(start, stop) for start, stop in _pairs(data["ranges"], int, int))
        seats = tuple(Seat(epoch, endpoint) for epoch, endpoint in _pairs(data["workers"], int, str))
        return SlotMap(version, ranges, seats, boot)
    except (LookupError, TypeError, ValueError) as error:
        raise InvalidArgument(f"not a slot map: {error}") from None


def _pairs(rows: Sequence[Any], first: type, second: type) -> list[tuple[Any, Any]]:
    # More elements than two are of a newer peer.
    pairs = [(row[0], row[1]) for row in rows]
    if not all(type(a) is first and type(b) is second for a, b in pairs):
        raise ValueError("a pair of the wrong types")
    return pairs
