"""A supervisor's life without processes: what `test_supervision` replays its histories on."""

from __future__ import annotations

import signal
from dataclasses import replace

from perdure_cli.events import (
    GATEWAY,
    ROUTER,
    Action,
    Beat,
    ChildId,
    Close,
    Event,
    Exited,
    Kill,
    Persist,
    PublishMap,
    Quiet,
    Ready,
    Role,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Tick,
)
from perdure_cli.state import first_state
from perdure_cli.supervision import ChildState, Supervision, Timing

W0 = ChildId(Role.WORKER, 0)
W1 = ChildId(Role.WORKER, 1)
ALL = (ROUTER, W0, W1)


class Scene:
    """Plays the shell: answers each `Spawn` with a new pid, keeps what is alive and what was done.

    After every event the core's own invariants and those of the whole history are checked.
    """

    def __init__(self, workers: int = 2, timing: Timing | None = None, *, gateway: bool = False) -> None:
        state = replace(first_state("memory", 1_024, workers), unprovisioned=())
        self.core = Supervision(state, "boot", timing or Timing(), has_gateway=gateway)
        self.now = 100.0
        self.pids: dict[ChildId, int] = {}
        self.next_pid = 1_000
        self.said_quiet: set[ChildId] = set()
        self.spawn_works = True
        self.persisted = state
        self.done: list[Action] = []
        self.published: list[int] = []
        self.feed(Start(self.now))

    def feed(self, event: Event) -> list[Action]:
        """All actions that follow from the event, those of spawns included."""
        actions = self.core.handle(event)
        self.core.validate()
        everything = []
        for action in actions:
            everything.append(action)
            self.perform(action, everything)
        self.core.validate()
        self.done += everything
        return everything

    def perform(self, action: Action, everything: list[Action]) -> None:
        match action:
            case Persist():
                self.persisted = action.state
            case Spawn():
                assert action.child not in self.pids, "two processes of one child"
                if action.child != GATEWAY:  # nothing of it outlives a run
                    assert self.persisted_epoch(action.child) == action.epoch, "its epoch is not on disk"
                everything += self.answer_spawn(action)
            case Kill():
                assert self.pids.get(action.child) == action.pid, "a signal to a process that is gone"
            case Close():
                running = {child for child in self.pids if child.role is Role.WORKER}
                needed = running if self.core.stopping else set(action.to)
                assert set(action.to) <= running, "nobody is there to be told"
                assert needed <= self.said_quiet, "a turn may still call one whose door closes"
            case PublishMap():
                assert action.map.version <= self.persisted.map_version
                assert not self.published or action.map.version >= self.published[-1]
                self.published.append(action.map.version)

    def answer_spawn(self, action: Spawn) -> list[Action]:
        if not self.spawn_works:
            return self.core.handle(SpawnFailed(action.child, action.epoch, self.now))
        self.next_pid += 1
        self.pids[action.child] = self.next_pid
        return self.core.handle(Spawned(action.child, action.epoch, self.next_pid, self.now))

    def persisted_epoch(self, child: ChildId) -> int:
        return self.persisted.router_epoch if child == ROUTER else self.persisted.epochs[child.index]

    # --- what children and time do

    def ready(self, *children: ChildId) -> list[Action]:
        """They say that they serve."""
        actions: list[Action] = []
        for child in children:
            epoch = self.core.children[child].epoch
            event = Ready(child, epoch, self.pids[child], f"ipc://door-{child}-{epoch}", self.now)
            actions += self.feed(event)
        return actions

    def beat(self, *children: ChildId) -> None:
        for child in children:
            self.feed(Beat(child, self.core.children[child].epoch, self.pids[child], self.now))

    def quiet(self, *children: ChildId) -> list[Action]:
        """They say that no turn runs in them any more."""
        actions: list[Action] = []
        for child in children:
            self.said_quiet.add(child)
            actions += self.feed(Quiet(child, self.core.children[child].epoch, self.pids[child], self.now))
        return actions

    def die(self, child: ChildId, code: int = -signal.SIGKILL, *, blamed: bool = False) -> list[Action]:
        self.said_quiet.discard(child)
        return self.feed(Exited(child, self.pids.pop(child), code, self.now, blamed=blamed))

    def pass_time(self, seconds: float, beating: tuple[ChildId, ...] = ALL) -> list[Action]:
        """Ticks when the core asks for them, and heartbeats of `beating` twice a second."""
        until, actions = self.now + seconds, []
        next_beat = self.now + 0.5
        while (at := min(self.core.next_deadline(), next_beat)) <= until:
            self.now = max(at, self.now)
            if at == next_beat:
                next_beat += 0.5
                self.beat(*(child for child in beating if child in self.pids))
            if self.core.next_deadline() <= self.now:
                actions += self.feed(Tick(self.now))
        self.now = until
        return actions

    def state_of(self, child: ChildId) -> ChildState:
        return self.core.children[child].state

    def endpoints(self) -> list[str]:
        return [seat.endpoint for seat in self.core.map.seats]


def serving(timing: Timing | None = None) -> Scene:
    scene = Scene(timing=timing)
    scene.ready(*ALL)
    return scene


def of(kind: type[Action], actions: list[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, kind)]


def spawned(actions: list[Action]) -> list[tuple[ChildId, int]]:
    return [(action.child, action.epoch) for action in actions if isinstance(action, Spawn)]


def killed(actions: list[Action]) -> list[tuple[ChildId, signal.Signals]]:
    return [(action.child, action.signal) for action in actions if isinstance(action, Kill)]
