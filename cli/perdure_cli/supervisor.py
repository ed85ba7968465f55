"""`perdure run`: spawns a router and workers, watches them, restarts them, stops them in order.

The supervisor's own process: an asyncio loop around the pure decisions of `supervision`.  It holds the
data directory's lock for as long as it lives, hears of a death by the kernel (pidfd, well under a
millisecond) and of a hang by missing heartbeats on the control socket.  It is the only one that spawns,
and never forks: children are fresh interpreters.  When it is killed itself, the kernel kills its children
(they ask for that at their start, PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from perdure.channel import Channel, PeerGone, WouldBlock, open_context, open_router
from perdure.codec import BadMessage, decode, encode
from perdure.exits import WorkerExit
from perdure.limits import Limits
from perdure.locate import boot_id
from perdure.slotmap import SlotMap
from perdure_cli.datadir import DataDirectory
from perdure_cli.errors import AddressInUse, RunExit
from perdure_cli.events import (
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
from perdure_cli.shards import prepare_shards
from perdure_cli.state import ClusterState
from perdure_cli.supervision import Supervision, Timing
from perdure_router.config import RouterConfig
from perdure_worker.config import WorkerConfig

__all__ = ["ChildCommand", "RunConfig", "Supervisor", "child_command", "run"]

_LIMITS = Limits()

_log = logging.getLogger("perdure.supervisor")

ChildCommand = Callable[[Role, str], Sequence[str]]
"""Command line of a child, from its role and its configuration in JSON."""


@dataclass(frozen=True)
class RunConfig:
    """What `perdure run` was told."""

    app: str
    """Absolute path of a file, or a module's dotted name."""
    data: Path
    workers: int | None = None
    """None: what the data directory has."""
    binds: tuple[str, ...] = ()
    """TCP endpoints of the router, besides its socket in the run directory."""
    engine: str = "leveldb"
    log_json: bool = False
    log_level: str = "INFO"
    dev: bool = False
    idle_evict_s: float = _LIMITS.idle_evict_s
    live_objects_max: int = _LIMITS.live_objects_max


def child_command(role: Role, config: str) -> Sequence[str]:
    """A fresh interpreter; -P keeps the working directory's files from shadowing our packages."""
    return [sys.executable, "-P", "-m", f"perdure_{role}", config]


def run(config: RunConfig, *, command: ChildCommand = child_command, timing: Timing | None = None) -> RunExit:
    """Runs the cluster until it is stopped; gives the exit code.

    Raises `CannotRun` when it cannot start.  The steps: lock, state, shards, sockets, children.
    """
    for address in config.binds:
        _check_bindable(address)
    with DataDirectory.open(config.data, _own_command()) as directory:
        state = prepare_shards(directory, config.engine, config.workers, _LIMITS.slots)
        places = Places(directory.make_run_directory())
        directory.write_endpoint(places.url)
        supervisor = Supervisor(config, directory, places, state, command, timing or Timing())
        return asyncio.run(supervisor.run())


@dataclass(frozen=True)
class Places:
    """Endpoints of one run."""

    run_directory: Path

    @property
    def url(self) -> str:
        """The router's socket, for clients on this machine."""
        return f"ipc://{self.run_directory}/router"

    @property
    def control(self) -> str:
        """The supervisor's socket, for its children."""
        return f"ipc://{self.run_directory}/control"

    def door(self, worker: int, epoch: int) -> Path:
        """Socket of one incarnation of a worker."""
        return self.run_directory / f"w{worker}.e{epoch}"


@dataclass
class _Process:
    """One incarnation of a child, from its spawn until it was waited for."""

    child: ChildId
    epoch: int
    popen: subprocess.Popen[bytes]
    pidfd: int
    spawned_at: float
    peer: bytes = b""
    """Its routing id on the control socket; empty until it speaks."""


class Supervisor:
    """The shell: carries out what `Supervision` decides. One per process, used once."""

    def __init__(
        self,
        config: RunConfig,
        directory: DataDirectory,
        places: Places,
        state: ClusterState,
        command: ChildCommand,
        timing: Timing,
    ) -> None:
        self._config = config
        self._directory = directory
        self._places = places
        self._command = command
        self._core = Supervision(state, boot_id(), timing)
        self._processes: dict[ChildId, _Process] = {}
        self._actions: deque[Action] = deque()
        self._acting = False
        self._persist_error: OSError | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> RunExit:
        """From the first spawn to the last death."""
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[RunExit] = self._loop.create_future()
        self._loop.set_exception_handler(self._on_defect)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_signal, number)
        context = open_context()
        self._control = Channel(self._loop, open_router(context, [self._places.control]), self._on_message)
        try:
            self._loop.call_soon(self._feed, Start(_now()))
            return await self._finished
        finally:
            self._end_all()
            self._control.close()
            context.term()

    # --- events

    def _feed(self, event: Event) -> None:
        self._actions.extend(self._core.handle(event))
        # An action may cause an event at once (a spawn, its pid): what follows from it waits its turn.
        if self._acting:
            return
        self._acting = True
        try:
            while self._actions:
                self._perform(self._actions.popleft())
        finally:
            self._acting = False
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._core.next_deadline()
        if deadline != float("inf"):
            # Both clocks are CLOCK_MONOTONIC.
            self._timer = self._loop.call_at(deadline, lambda: self._feed(Tick(_now())))

    def _on_signal(self, number: signal.Signals) -> None:
        how = "stopping at once" if self._core.stopping else "stopping in order; a second signal forces"
        _log.info("received %s: %s", number.name, how)
        self._feed(StopRequested(_now()))

    def _on_exit(self, process: _Process) -> None:
        code = process.popen.poll()
        if code is None:
            return
        self._release(process)
        self._log_death(process, code)
        self._feed(Exited(process.child, process.popen.pid, code, _now()))
        if (restart_at := self._core.children[process.child].restart_at) is not None:
            _log.info("%s is restarted in %.1f s", process.child, restart_at - _now())

    def _on_message(self, frames: list[bytes]) -> None:
        try:
            peer, body = frames
            message = decode(body)
            child = ChildId(Role(message["role"]), int(message["index"]))
            epoch, pid, kind = int(message["epoch"]), int(message["pid"]), message["type"]
            endpoint = str(message["endpoint"]) if kind == "ready" else ""
        except (BadMessage, KeyError, TypeError, ValueError) as error:
            _log.warning("a message on the control socket was dropped: %r", error)
            return
        process = self._processes.get(child)
        if process is None or (process.epoch, process.popen.pid) != (epoch, pid):
            _log.warning("a message of an earlier incarnation was dropped", extra={"child": str(child)})
            return
        moved = process.peer not in (b"", peer)
        process.peer = peer
        if moved:  # it had to connect again, and may have missed a map meanwhile
            self._send(_map_message(self._core.map), (child,))
        if kind == "ready":
            seconds = round(_now() - process.spawned_at, 3)
            _log.info("%s is ready", child, extra={"epoch": epoch, "pid": pid, "seconds": seconds})
            self._feed(Ready(child, epoch, pid, endpoint, _now()))
        elif kind == "beat":
            self._feed(Beat(child, epoch, pid, _now()))
        elif kind == "quiet":
            _log.debug("%s runs no turn any more", child, extra={"epoch": epoch, "pid": pid})
            self._feed(Quiet(child, epoch, pid, _now()))

    def _on_defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # A step that was broken off leaves the picture of the children wrong: end, do not guess.
        error = context.get("exception") or RuntimeError(context["message"])
        _log.critical("the supervisor has a defect and ends", exc_info=error)
        if not self._finished.done():
            self._finished.set_result(RunExit.INTERNAL)

    # --- actions

    def _perform(self, action: Action) -> None:
        match action:
            case Persist():
                self._persist(action.state)
            case Spawn():
                self._spawn(action.child, action.epoch)
            case Kill():
                self._kill(action)
            case PublishMap():
                self._send(_map_message(action.map), action.to)
            case Close():
                self._send({"type": "close"}, action.to)
            case Park():
                _log.error("%s is parked: %s", action.child, action.reason, extra={"code": action.code})
            case Announce():
                self._announce(action.parked)
            case Finish():
                if not self._finished.done():
                    self._finished.set_result(action.code)
            case _:
                assert_never(action)

    def _persist(self, state: ClusterState) -> None:
        try:
            self._directory.write_state(state)
            self._persist_error = None
        except OSError as error:
            self._persist_error = error

    def _spawn(self, child: ChildId, epoch: int) -> None:
        try:
            if self._persist_error is not None:
                raise self._persist_error
            process = self._start_process(child, epoch)
        except OSError as error:
            _log.error("%s could not be started: %s", child, error, extra={"epoch": epoch})
            self._feed(SpawnFailed(child, epoch, _now()))
            return
        self._processes[child] = process
        self._loop.add_reader(process.pidfd, self._on_exit, process)
        _log.debug("%s was spawned", child, extra={"epoch": epoch, "pid": process.popen.pid})
        self._feed(Spawned(child, epoch, process.popen.pid, _now()))

    def _start_process(self, child: ChildId, epoch: int) -> _Process:
        popen = subprocess.Popen(
            self._command(child.role, self._child_config(child, epoch)),
            stdin=subprocess.DEVNULL,
            # A group of its own, so that Ctrl+C in the terminal reaches the supervisor alone.
            process_group=0,
            umask=0o077,
        )
        return _Process(child, epoch, popen, os.pidfd_open(popen.pid), _now())

    def _child_config(self, child: ChildId, epoch: int) -> str:
        config, places, state = self._config, self._places, self._core.state
        if child.role is Role.ROUTER:
            return RouterConfig(
                endpoints=(places.url, *config.binds),
                control=places.control,
                epoch=epoch,
                parent=os.getpid(),
                log_json=config.log_json,
                log_level=config.log_level,
            ).to_json()
        slots = state.ranges[child.index]
        return WorkerConfig(
            app=config.app,
            index=child.index,
            shard=str(self._directory.shard_path(child.index)),
            door=f"ipc://{places.door(child.index, epoch)}",
            slots=(slots.start, slots.stop),
            slot_count=state.slot_count,
            engine=config.engine,
            dev=config.dev,
            idle_evict_s=config.idle_evict_s,
            live_objects_max=config.live_objects_max,
            control=places.control,
            epoch=epoch,
            parent=os.getpid(),
            log_json=config.log_json,
            log_level=config.log_level,
        ).to_json()

    def _kill(self, action: Kill) -> None:
        process = self._processes.get(action.child)
        # By pidfd, and not waited for yet: it can be no other process that got the number meanwhile.
        if process is not None and process.popen.pid == action.pid:
            if action.signal is signal.SIGKILL:
                _log.warning("%s is killed", action.child, extra={"pid": action.pid})
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, action.signal)

    def _send(self, message: dict[str, Any], to: tuple[ChildId, ...]) -> None:
        body = encode(message)
        for child in to:
            process = self._processes.get(child)
            if process is not None and process.peer:
                # A peer that is gone is dying, one that does not read is stuck: both are replaced soon.
                with contextlib.suppress(PeerGone, WouldBlock):
                    self._control.send([process.peer, body])

    def _announce(self, parked: int) -> None:
        facts = {
            "url": self._places.url,
            "workers": len(self._core.workers),
            "data": str(self._directory.path),
            **({"bind": ",".join(self._config.binds)} if self._config.binds else {}),
            **({"parked": parked} if parked else {}),
        }
        if self._config.log_json:
            _log.info("ready", extra=facts)
        else:
            line = "ready  " + " ".join(f"{name}={value}" for name, value in facts.items())
            with contextlib.suppress(OSError):  # nobody has to read it
                sys.stdout.write(line + "\n")
                sys.stdout.flush()

    # --- processes

    def _log_death(self, process: _Process, code: int) -> None:
        facts = {"epoch": process.epoch, "pid": process.popen.pid, "code": code}
        served = self._core.children[process.child].ready_at is not None
        level = logging.WARNING
        if process.child.role is Role.WORKER and code == WorkerExit.APP_NOT_LOADED:
            level = logging.DEBUG  # it has said so itself, and better
        elif self._core.stopping and code == -signal.SIGTERM and not served:
            level = logging.DEBUG  # told to stop before it could do anything
        elif self._core.stopping and code == 0:
            level = logging.INFO
        _log.log(level, "%s ended: %s", process.child, _how(process.child.role, code), extra=facts)

    def _release(self, process: _Process) -> None:
        self._loop.remove_reader(process.pidfd)
        os.close(process.pidfd)
        del self._processes[process.child]
        if process.child.role is Role.WORKER:
            with contextlib.suppress(OSError):
                self._places.door(process.child.index, process.epoch).unlink(missing_ok=True)

    def _end_all(self) -> None:
        """After an ordered stop there is nothing left to end; after a defect nothing may be left over."""
        if self._timer is not None:
            self._timer.cancel()
        for process in list(self._processes.values()):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                signal.pidfd_send_signal(process.pidfd, signal.SIGKILL)
                process.popen.wait(self._core.timing.kill_timeout_s)
            self._release(process)


def _how(role: Role, code: int) -> str:
    """The end of a process in words."""
    try:
        if code < 0:
            return signal.Signals(-code).name
        return f"exit code {code}: {WorkerExit(code).meaning}" if role is Role.WORKER else f"exit code {code}"
    except ValueError:  # a real-time signal, or a code of the user's own
        return f"signal {-code}" if code < 0 else f"exit code {code}"


def _map_message(slot_map: SlotMap) -> dict[str, Any]:
    return {"type": "map", "map": slot_map.to_wire()}


def _now() -> float:
    return time.monotonic()


def _own_command() -> str:
    return " ".join(sys.orig_argv)


def _check_bindable(address: str) -> None:
    """A taken port is the operator's to resolve: said here, once, and not by a router that never starts."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As ZeroMQ does, so that a port whose old connections linger counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise AddressInUse(address, error.strerror or str(error)) from None
