"""The supervisor's decisions: events in, actions out.  Pure; runs in the supervisor's process.

Guarantees
- An incarnation is spawned only after its epoch, higher than all before, is on disk (`Persist` precedes
  `Spawn`), and only after the process of the one before is gone: never two owners of a shard.
- A process counts as serving from its own `Ready` to its death, its silence or its stop; a map without
  the endpoint of one that died or fell silent is published in the same step.
- What a process of an older epoch or another pid says changes nothing.
- A process that is stopped, hung or never becomes ready is killed and replaced (SIGKILL works on
  stopped ones); one that finds its data unusable is parked, since a blind retry could do harm.
- In an ordered stop no worker is told to close its door while a turn runs in another that may call it.

When a restart waits is the rule of `restarts`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum

from perdure.exits import WorkerExit
from perdure.limits import Limits
from perdure.slotmap import Seat, SlotMap
from perdure_cli.errors import RunExit
from perdure_cli.events import (
    GATEWAY,
    ROUTER,
    Action,
    Announce,
    Beat,
    ChildId,
    Close,
    Event,
    Exited,
    Finish,
    Kill,
    Park,
    Persist,
    PublishMap,
    Quiet,
    Ready,
    Role,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    StopRequested,
    Tick,
)
from perdure_cli.restarts import (
    PARKING,
    Death,
    RestartTiming,
    after_death,
    after_failed_spawn,
    write_failures_after,
)
from perdure_cli.state import ClusterState

__all__ = ["Child", "ChildState", "Supervision", "Timing"]

_LIMITS = Limits()


@dataclass(frozen=True)
class Timing:
    """Times of supervision, in seconds."""

    heartbeat_interval_s: float = _LIMITS.heartbeat_interval_s
    heartbeat_lost_s: float = _LIMITS.heartbeat_lost_s
    start_timeout_s: float = _LIMITS.start_timeout_s
    """Spawn to ready; recovery of a shard's log takes seconds at worst (RELIABILITY §1.2)."""
    stop_timeout_s: float = _LIMITS.drain_timeout_s + _LIMITS.goodbye_timeout_s + _LIMITS.stop_margin_s
    """SIGTERM to exit of a worker: its drain (also of what others need it for) and goodbye, and a margin for
    the last commit."""
    router_stop_timeout_s: float = _LIMITS.goodbye_timeout_s + _LIMITS.stop_margin_s
    """SIGTERM to exit of the router, which has nothing to drain once the workers are gone."""
    gateway_stop_timeout_s: float = _LIMITS.drain_timeout_s + _LIMITS.stop_margin_s
    """SIGTERM to exit of the gateway: the requests that run there, and a margin."""
    kill_timeout_s: float = _LIMITS.kill_timeout_s
    """SIGKILL to exit when stopping; a process stuck in the kernel longer than this is left behind."""
    restarts: RestartTiming = field(default_factory=RestartTiming)


class ChildState(Enum):
    """Where an incarnation is in its life."""

    DOWN = "down"
    """No process; one is started at `restart_at`, or never when that is None."""
    STARTING = "starting"
    """Spawned, not ready."""
    UP = "up"
    """Serving."""
    STOPPING = "stopping"
    """Told or forced to end; the process is still there."""
    QUIET = "quiet"
    """A worker told to end that runs no turn, and serves the turns that others have still to end."""
    CLOSING = "closing"
    """A worker told to close its door, since no turn runs anywhere."""
    PARKED = "parked"
    """No process, and none is started before the next `perdure run`."""


@dataclass
class Child:
    """One router, worker or gateway across its incarnations."""

    id: ChildId
    epoch: int
    """Of the present or latest incarnation; only grows."""
    state: ChildState = ChildState.DOWN
    pid: int | None = None
    """Set exactly while there is a process."""
    restart_at: float | None = None
    """Set only when DOWN: when the next incarnation is due."""
    spawned_at: float = 0.0
    ready_at: float | None = None
    """When this incarnation became ready; None before."""
    last_beat: float = 0.0
    strikes: int = 0
    """Failures in a row, as `restarts` counts them."""
    write_failures: int = 0
    """Failed writes in a row, as `restarts` counts them."""
    incarnations: int = 0
    """Spawned in this run."""


class _Phase(Enum):
    RUNNING = 0
    STOPPING_GATEWAY = 1
    STOPPING_WORKERS = 2
    STOPPING_ROUTER = 3
    FINISHED = 4


@dataclass
class Supervision:
    """State of all children.  Changed only by `handle`; `state` is what was last asked to be persisted."""

    state: ClusterState
    boot: str = ""
    """Boot id of the machine, for the slot map."""
    timing: Timing = field(default_factory=Timing)
    has_gateway: bool = False

    def __post_init__(self) -> None:
        seats = tuple(Seat(epoch, "") for epoch in self.state.epochs)
        self.map = SlotMap(self.state.map_version + 1, self.state.ranges, seats, self.boot)
        self.router = Child(ROUTER, self.state.router_epoch)
        self.workers = [Child(ChildId(Role.WORKER, i), epoch) for i, epoch in enumerate(self.state.epochs)]
        # Nothing of a gateway outlives a run, so that its epochs need not be remembered.
        self.gateways = [Child(GATEWAY, 0)] if self.has_gateway else []
        self.children = {child.id: child for child in (self.router, *self.workers, *self.gateways)}
        self.exit_code = RunExit.OK
        self._phase = _Phase.RUNNING
        self._stage_deadline = 0.0
        self._stage_killed = False
        self._announced = False
        self._last_tick = 0.0

    def handle(self, event: Event) -> list[Action]:
        """The only door: takes in what happened, gives what to do, in order."""
        match event:
            case Tick():
                actions = self._on_tick(event.now)
            case Beat():
                if self._is_current(event):
                    self.children[event.child].last_beat = event.now
                return []
            case Ready():
                actions = self._on_ready(event)
            case Quiet():
                actions = self._on_quiet(event)
            case Exited():
                actions = self._on_exited(event)
            case Spawned():
                self.children[event.child].pid = event.pid
                return []
            case SpawnFailed():
                self._on_spawn_failed(event)
                return []
            case Start():
                self._last_tick = event.now
                actions = self._spawn(list(self.children.values()), event.now)
            case StopRequested():
                actions = self._on_stop_requested(event.now)
        return list(actions)

    def next_deadline(self) -> float:
        """When the next `Tick` is due, on the clock of the events."""
        timing = self.timing
        if self._phase is _Phase.FINISHED:
            return float("inf")
        if self._phase is not _Phase.RUNNING:
            return self._stage_deadline
        # At least one tick per heartbeat interval, so that a longer gap betrays a pause of our own.
        due = [self._last_tick + timing.heartbeat_interval_s]
        for child in self.children.values():
            if child.restart_at is not None:
                due.append(child.restart_at)
            elif child.state is ChildState.UP:
                due.append(child.last_beat + timing.heartbeat_lost_s)
            elif child.state is ChildState.STARTING:
                due.append(child.spawned_at + timing.start_timeout_s)
        return min(due)

    @property
    def stopping(self) -> bool:
        """Whether the ordered stop has begun."""
        return self._phase is not _Phase.RUNNING

    # --- life of one child

    def _spawn(self, children: list[Child], now: float) -> Iterator[Action]:
        for child in children:
            child.incarnations += 1
            child.epoch += 1
            child.state = ChildState.STARTING
            child.spawned_at = now
            child.restart_at = child.ready_at = None
        # Until it is spawned again, a worker changes the map at most twice: it comes up and goes down.
        # So the version on disk is ahead of all that can be published, and news of a death need not
        # wait for a disk that may be the cause of it.
        self.state = replace(
            self.state,
            epochs=tuple(child.epoch for child in self.workers),
            router_epoch=self.router.epoch,
            map_version=self.map.version + 2 * len(self.workers),
        )
        yield Persist(self.state)
        for child in children:
            yield Spawn(child.id, child.epoch)

    def _on_spawn_failed(self, event: SpawnFailed) -> None:
        child = self.children[event.child]
        child.state = ChildState.DOWN
        child.strikes, pause = after_failed_spawn(child.strikes, self.timing.restarts)
        child.restart_at = event.now + pause

    def _is_current(self, event: Ready | Beat | Quiet) -> bool:
        child = self.children.get(event.child)
        return child is not None and (child.epoch, child.pid) == (event.epoch, event.pid)

    def _on_ready(self, event: Ready) -> Iterator[Action]:
        if not self._is_current(event) or self.children[event.child].state is not ChildState.STARTING:
            return
        child = self.children[event.child]
        child.state = ChildState.UP
        child.ready_at = child.last_beat = event.now
        if child is self.router:
            yield PublishMap(self.map, (child.id,))
        elif child.id.role is Role.WORKER:
            yield self._publish(child, event.endpoint)
        yield from self._announce()

    def _publish(self, worker: Child, endpoint: str) -> PublishMap:
        self.map = self.map.with_seat(worker.id.index, Seat(worker.epoch, endpoint))
        listening = [c.id for c in (self.router, *self.workers) if c.pid and c.ready_at is not None]
        return PublishMap(self.map, tuple(listening))

    def _take_off_the_map(self, child: Child) -> Iterator[Action]:
        if child.id.role is Role.WORKER and self.map.seats[child.id.index].endpoint:
            yield self._publish(child, "")

    def _announce(self) -> Iterator[Action]:
        settled = (ChildState.UP, ChildState.PARKED)
        if self._announced or self.router.state is not ChildState.UP or self.stopping:
            return
        if all(child.state in settled for child in (*self.workers, *self.gateways)):
            self._announced = True
            yield Announce(sum(worker.state is ChildState.PARKED for worker in self.workers))

    def _end(self, child: Child, how: signal.Signals, reason: str = "") -> Iterator[Action]:
        child.state = ChildState.STOPPING
        if child.pid is not None:
            yield Kill(child.id, child.pid, how, reason)

    def _on_exited(self, event: Exited) -> Iterator[Action]:
        child = self.children[event.child]
        if child.pid != event.pid:
            return
        served_s = None if child.ready_at is None else event.now - child.ready_at
        killed = child.state is ChildState.STOPPING
        death = Death(event.code, served_s, killed_by_supervisor=killed, blamed=event.blamed)
        restarts = self.timing.restarts
        child.write_failures = write_failures_after(child.write_failures, death, restarts)
        child.pid = None
        child.state = ChildState.DOWN
        yield from self._take_off_the_map(child)
        if self.stopping:
            if served_s is not None and event.code != WorkerExit.STOPPED:
                self._stopped_badly()
            yield from self._shut_down(event.now)
        elif child is not self.router and event.code in PARKING and not event.blamed:
            yield from self._park(child, event)
        elif child.write_failures >= restarts.write_failures_max:
            child.state = ChildState.PARKED
            reason = f"{child.write_failures} writes in a row have failed: check the disk, then start again"
            yield Park(child.id, event.code, reason)
            yield from self._announce()
        else:
            child.strikes, pause = after_death(child.strikes, death, restarts)
            if pause > 0:
                child.restart_at = event.now + pause
            else:
                yield from self._spawn([child], event.now)

    def _park(self, child: Child, event: Exited) -> Iterator[Action]:
        if event.code == WorkerExit.APP_NOT_LOADED and not self._announced:
            # Nothing was ever served: this is a mistake in the command or the code, and not a fault.
            self.exit_code = RunExit.APPLICATION
            yield from self._shut_down(event.now)
        else:
            child.state = ChildState.PARKED
            yield Park(child.id, event.code, WorkerExit(event.code).meaning)
            yield from self._announce()

    # --- time

    def _on_tick(self, now: float) -> Iterator[Action]:
        timing = self.timing
        self._allow_for_own_pause(now)
        if self.stopping:
            yield from self._shut_down(now)
            return
        for child in self.children.values():
            silent = child.state is ChildState.UP and now - child.last_beat >= timing.heartbeat_lost_s
            late = child.state is ChildState.STARTING and now - child.spawned_at >= timing.start_timeout_s
            if silent or late:
                yield from self._end(child, signal.SIGKILL, self._why_killed(child, late=late))
                yield from self._take_off_the_map(child)
        due = [c for c in self.children.values() if c.restart_at is not None and c.restart_at <= now]
        if due:
            yield from self._spawn(due, now)

    def _why_killed(self, child: Child, *, late: bool) -> str:
        is_worker, loads = child.id.role is Role.WORKER, child.id.role is not Role.ROUTER
        if late:
            advice = ": does the module wait for something while it loads?" if loads else ""
            return f"not ready after {self.timing.start_timeout_s:g} s{advice}"
        advice = ": a method computes for too long (use @blocking), or the process was stopped"
        return f"no heartbeat for {self.timing.heartbeat_lost_s:g} s{advice if is_worker else ''}"

    def _allow_for_own_pause(self, now: float) -> None:
        # After a pause of this process (stopped, or waiting for a slow disk) unread heartbeats may lie in
        # the socket: silence during it proves nothing about the children.
        pause = now - self._last_tick
        self._last_tick = now
        if pause >= 2 * self.timing.heartbeat_interval_s:
            for child in self.children.values():
                child.last_beat += pause
                child.spawned_at += pause

    # --- the end

    def _on_stop_requested(self, now: float) -> Iterator[Action]:
        if not self.stopping:
            yield from self._shut_down(now)
            return
        # The second request: whoever asks twice does not want to wait.
        self._stopped_badly()
        self._stage_killed = True
        self._stage_deadline = now + self.timing.kill_timeout_s
        for child in self.children.values():
            if child.pid is not None:
                yield from self._end(child, signal.SIGKILL, "a second signal asked for it")

    def _on_quiet(self, event: Quiet) -> Iterator[Action]:
        if not self._is_current(event):
            return
        child = self.children[event.child]
        if not self.stopping:
            # Somebody else told this one to stop.  The others go on: it waits for none of them, and their
            # calls wait for its successor.
            yield Close((child.id,))
        elif child.state is ChildState.STOPPING:
            child.state = ChildState.QUIET
            yield from self._shut_down(event.now)

    def _stopped_badly(self) -> None:
        if self.exit_code is RunExit.OK:
            self.exit_code = RunExit.FORCED

    def _shut_down(self, now: float) -> Iterator[Action]:
        """The ordered stop, taken one step further at each quiet worker, death and deadline.

        0. The gateway is told to stop: it accepts nothing more, and ends the requests that run in it.
        1. All workers at once are told to stop: they answer new calls as not executed and end their turns,
           but still take the calls that a turn in any of them waits for.
        2. When no turn runs in any of them, all are told to close: they commit, let the replies out and
           exit 0. The router stays up so that callers hear of it.
        3. The router is told to stop when no worker is left whose answers it could carry.
        4. Nothing is left: finish. The shell then removes its sockets and releases the data directory's
           lock last, so that whoever gets the lock finds no process of ours.

        The gateway, the workers (1 and 2 together) and the router are cut off with SIGKILL when they take
        too long. What even that does not end is stuck in the kernel and left behind; it holds its store's
        own lock, so no successor gets a second owner.
        """
        if self._phase is _Phase.RUNNING:
            yield from self._begin_stage(_Phase.STOPPING_GATEWAY, now)
        while self._phase is not _Phase.FINISHED:
            alive = [child for child in self._stage()[0] if child.pid is not None]
            if alive and now < self._stage_deadline:
                yield from self._close_doors(alive)
                return
            if alive:
                self._stopped_badly()
            if alive and not self._stage_killed:
                self._stage_killed = True
                self._stage_deadline = now + self.timing.kill_timeout_s
                for child in alive:
                    yield from self._end(child, signal.SIGKILL, "it did not stop in the time that it has")
                return
            self._stage_killed = False
            yield from self._begin_stage(_Phase(self._phase.value + 1), now)

    def _begin_stage(self, phase: _Phase, now: float) -> Iterator[Action]:
        self._phase = phase
        if phase is _Phase.FINISHED:
            yield Finish(self.exit_code)
            return
        children, timeout_s = self._stage()
        self._stage_deadline = now + timeout_s
        for child in children:
            if child.pid is not None:
                yield from self._end(child, signal.SIGTERM)

    def _stage(self) -> tuple[list[Child], float]:
        """Who ends in the present phase, and the time that this may take."""
        match self._phase:
            case _Phase.STOPPING_GATEWAY:
                return self.gateways, self.timing.gateway_stop_timeout_s
            case _Phase.STOPPING_WORKERS:
                return self.workers, self.timing.stop_timeout_s
        return [self.router], self.timing.router_stop_timeout_s

    def _close_doors(self, alive: list[Child]) -> Iterator[Action]:
        # A turn that waits for another object keeps its own worker from being quiet.  So when all have
        # said it once, the turns that began before the stop have ended, and no others were let in.
        done = (ChildState.QUIET, ChildState.CLOSING)
        quiet = [child for child in alive if child.state is ChildState.QUIET]
        if quiet and all(child.state in done for child in alive):
            for child in quiet:
                child.state = ChildState.CLOSING
            yield Close(tuple(child.id for child in quiet))

    def validate(self) -> None:
        """Raises AssertionError when an invariant is broken; tests call it after every event."""
        for child in self.children.values():
            has_none = child.state in (ChildState.DOWN, ChildState.PARKED)
            assert not (has_none and child.pid is not None), f"{child.id} is {child.state} with a process"
            assert child.restart_at is None or child.state is ChildState.DOWN, f"{child.id} restarts twice"
            assert child.state is not ChildState.UP or child.ready_at is not None, f"{child.id} never ready"
        for worker, seat in zip(self.workers, self.map.seats, strict=True):
            away = worker.state in (ChildState.DOWN, ChildState.STARTING, ChildState.PARKED)
            assert not (away and seat.endpoint), f"{worker.id} is on the map and does not serve"
            assert not seat.endpoint or seat.epoch == worker.epoch, f"{worker.id} has an old seat"
        assert self.state.epochs == tuple(worker.epoch for worker in self.workers)
        assert self.state.router_epoch == self.router.epoch
        if self.router.incarnations:
            assert self.map.version <= self.state.map_version, "a published map is not on disk"
