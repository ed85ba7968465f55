"""Objects that killed their worker: counted in the shard, kept out after too many times.  Pure, but for rows.

Guarantees: the death of a worker that the supervisor blames on an object is counted once, durably, before
the next incarnation serves; at `quarantine_deaths` in a row calls of the object are refused at once, and
nothing of it runs, for `quarantine_s`; then it is tried again, and one more death renews the quarantine.
A restart of `perdure run` ends it too.  In a row means: with no turn of the object that ended when the
worker had lived for `suspect_forgotten_s`.  An earlier one proves little: callers of other methods of
the object would clear it between two deaths, and the worker would never come to rest.

Runs in the worker; a start without suspects costs one look into the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from perdure import codec
from perdure.errors import NotExecuted
from perdure.limits import Limits
from perdure_storage import keys, records
from perdure_storage.engine import Engine

if TYPE_CHECKING:
    from perdure_worker.resident import Resident

__all__ = ["Blame", "Quarantine", "Suspect"]

log = logging.getLogger("perdure.worker")


@dataclass(frozen=True)
class Blame:
    """The supervisor's verdict: this object ended the worker's incarnation of that epoch."""

    key: str
    """The object's id in hex."""
    namespace: str
    method: str
    why: str
    epoch: int


@dataclass(frozen=True)
class Suspect:
    """An object that is blamed for deaths in a row, as its row holds it."""

    namespace: str
    method: str
    why: str
    deaths: int
    epoch: int
    """Of the last death, so that none counts twice."""
    died_at: float
    """The last death, in seconds since 1970."""
    until: float = 0.0
    """End of the quarantine; 0 while there is none."""


class Quarantine:
    """The suspects of one worker by id, and those among them that are kept out."""

    def __init__(self, limits: Limits, wall_clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = wall_clock
        self.suspects: dict[bytes, Suspect] = {}
        self._since: float | None = None

    # --- at the start of an incarnation, before it serves

    def open(self, engine: Engine, blame: Blame | None, *, first: bool) -> None:
        """Reads the suspects, counts a death, and stores what has changed.

        `first` is whether this is the first incarnation of a `perdure run`: who is kept out is tried again.
        """
        before = self._read(engine)
        self.suspects = dict(before)
        if first:
            self._release()
        if blame is not None:
            self._count(bytes.fromhex(blame.key), blame)
        self._write(engine, before)
        for key, suspect in self.suspects.items():
            facts = {"object": f"{suspect.namespace}/{key.hex()}", **asdict(suspect)}
            if suspect.until > self._clock():
                log.error("an object is quarantined: nothing of it runs", extra=facts)
            elif blame is not None and key.hex() == blame.key:
                log.warning("an object has ended its worker", extra=facts)

    def _read(self, engine: Engine) -> dict[bytes, Suspect]:
        suspects = {}
        with engine.scan(keys.SUSPECT_PREFIX, keys.prefix_end(keys.SUSPECT_PREFIX)) as rows:
            for row, record in rows:
                facts = codec.decode(records.unseal(row, record))
                suspects[row[len(keys.SUSPECT_PREFIX) :]] = Suspect(**facts)
        return suspects

    def _release(self) -> None:
        for key, suspect in self.suspects.items():
            if suspect.until:
                deaths = min(suspect.deaths, self._limits.quarantine_deaths - 1)
                self.suspects[key] = replace(suspect, deaths=deaths, until=0.0)

    def _count(self, key: bytes, blame: Blame) -> None:
        known = self.suspects.pop(key, None)
        if known is not None and known.epoch >= blame.epoch:
            self.suspects[key] = known
            return
        now, deaths = self._clock(), 1 + (known.deaths if known is not None else 0)
        until = now + self._limits.quarantine_s if deaths >= self._limits.quarantine_deaths else 0.0
        while len(self.suspects) >= self._limits.suspects_max:
            oldest = min(self.suspects, key=lambda other: self.suspects[other].died_at)
            del self.suspects[oldest]
        self.suspects[key] = Suspect(
            blame.namespace, blame.method, blame.why, deaths, blame.epoch, now, until
        )

    def _write(self, engine: Engine, before: dict[bytes, Suspect]) -> None:
        if before == self.suspects:
            return
        batch = engine.new_batch()
        for key in before.keys() - self.suspects.keys():
            batch.delete(keys.SUSPECT_PREFIX + key)
        for key, suspect in self.suspects.items():
            row = keys.SUSPECT_PREFIX + key
            batch.put(row, records.seal(row, codec.encode(asdict(suspect))))
        engine.write(batch)

    # --- while it serves

    def __len__(self) -> int:
        now = self._clock() if self.suspects else 0.0
        return sum(suspect.until > now for suspect in self.suspects.values())

    def check(self, key: bytes, label: str) -> None:
        """Raises `NotExecuted` while the object is quarantined."""
        suspect = self.suspects.get(key)
        if suspect is not None and suspect.until > self._clock():
            raise NotExecuted(
                f"{label} is quarantined since {_time(suspect.died_at)}: it ended its worker "
                f"{suspect.deaths} times in a row, last in {suspect.method!r} ({suspect.why}). It is tried "
                f"again after {_time(suspect.until)}, or at once when `perdure run` is restarted"
            )

    def behaved(self, live: Mapping[bytes, Resident], now: float) -> list[bytes]:
        """Forgets suspects among the live objects that have run a turn late enough; gives their rows.

        `now` is of the residents' clock, and counts from the first call of this method.
        """
        self._since = now if self._since is None else self._since
        enough = self._since + self._limits.suspect_forgotten_s
        rows = []
        for key in list(self.suspects):
            resident = live.get(key)
            if resident is None or resident.turn is not None or resident.instance is None:
                continue
            if enough < resident.used < now:
                rows.append(self._forgive(key))
        return rows

    def _forgive(self, key: bytes) -> bytes:
        suspect = self.suspects.pop(key)
        log.info(
            "an object that had ended its worker runs well again",
            extra={"object": f"{suspect.namespace}/{key.hex()}", "deaths": suspect.deaths},
        )
        return keys.SUSPECT_PREFIX + key

    def figures(self) -> dict[str, Any]:
        """For the worker's stats."""
        return {"quarantined": len(self), "suspects": len(self.suspects)}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
