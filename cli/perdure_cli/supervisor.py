"""`perdure run`: spawns a router, workers and a gateway, watches them, restarts them, stops them in order.

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
from dataclasses import dataclass
from typing import Any, assert_never

import zmq

from perdure.channel import Channel, PeerGone, WouldBlock, open_context, open_router
from perdure.codec import BadMessage, decode, encode
from perdure.exits import WorkerExit
from perdure.limits import Limits
from perdure.loader import said_reason
from perdure.locate import boot_id
from perdure.slotmap import SlotMap
from perdure_cli.blame import Ending, how_it_ended, judge, last_stack
from perdure_cli.children import (
    ChildCommand,
    RunConfig,
    child_command,
    gateway_config,
    router_config,
    worker_config,
)
from perdure_cli.datadir import DataDirectory
from perdure_cli.errors import ApplicationNotLoaded, CannotRun, RunExit
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
from perdure_cli.free_space import FreeSpace
from perdure_cli.places import Places, address_of, check_bindable, open_listener
from perdure_cli.shards import prepare_shards
from perdure_cli.state import ClusterState
from perdure_cli.supervision import ChildState, Supervision, Timing
from perdure_worker.marks import Marked, Seen, new_memory, read_memory
from perdure_worker.quarantine import Blame

__all__ = ["ChildCommand", "RunConfig", "Supervisor", "child_command", "run"]

_LIMITS = Limits()
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

_log = logging.getLogger("perdure.supervisor")


def run(config: RunConfig, *, command: ChildCommand = child_command, timing: Timing | None = None) -> RunExit:
    """Runs the cluster until it is stopped; gives the exit code.

    Raises `CannotRun` when it cannot start, or could not load the application.  The steps: lock, state,
    shards, sockets, children.
    """
    with DataDirectory.open(config.data, _own_command()) as directory:
        # Behind the lock: the port may be that of whoever holds the directory, and that is the thing to say.
        check_bindable(config.binds)
        listener = open_listener(*config.http) if config.http is not None else None
        state = prepare_shards(directory, config.engine, config.workers, _LIMITS.slots)
        places = Places(directory.make_run_directory())
        directory.write_endpoint(places.url)
        directory.write_http(address_of(listener) if listener is not None else "")
        supervisor = Supervisor(config, directory, places, state, command, timing or Timing(), listener)
        code = asyncio.run(supervisor.run())
        if code is RunExit.APPLICATION and (reason := said_reason(places.run_directory)):
            raise ApplicationNotLoaded(reason)
        return code


@dataclass
class _Process:
    """One incarnation of a child, from its spawn until it was waited for."""

    child: ChildId
    epoch: int
    popen: subprocess.Popen[bytes]
    pidfd: int
    spawned_at: float
    marks: int
    """Where a worker notes what it runs, see `perdure_worker.marks`; -1 for others."""
    peer: bytes = b""
    """Its routing id on the control socket; empty until it speaks."""
    stops: bool = False
    """It was told to stop in order, by us or by whoever: then it says so."""


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
        listener: socket.socket | None = None,
    ) -> None:
        self._config = config
        self._directory = directory
        self._places = places
        self._command = command
        self._core = Supervision(state, boot_id(), timing, has_gateway=listener is not None)
        self._listener = listener
        """The gateway's, across its incarnations."""
        self._http = address_of(listener) if listener is not None else ""
        self._processes: dict[ChildId, _Process] = {}
        self._blames: dict[ChildId, Blame] = {}
        """Of deaths that no incarnation has counted yet."""
        self._served: set[ChildId] = set()
        self._actions: deque[Action] = deque()
        self._acting = False
        self._persist_error: OSError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_homeless = False
        self._space = FreeSpace(_LIMITS)

    async def run(self) -> RunExit:
        """From the first spawn to the last death."""
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[RunExit] = self._loop.create_future()
        self._loop.set_exception_handler(self._on_defect)
        for number in _STOP_SIGNALS:
            # nohup and the like have a process ignore the end of its terminal; that stays so.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
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
            self._timer = self._loop.call_at(deadline, self._on_tick)

    def _on_tick(self) -> None:
        if not self._core.stopping:
            self._mend_run_directory()
            self._look_at_disk()
        self._feed(Tick(_now()))

    def _on_signal(self, number: signal.Signals) -> None:
        how = "stopping at once" if self._core.stopping else "stopping in order; a second signal forces"
        _log.info("received %s: %s", number.name, how)
        self._feed(StopRequested(_now()))

    def _on_exit(self, process: _Process) -> None:
        code = process.popen.poll()
        if code is None:
            return
        seen = read_memory(process.marks) if process.marks >= 0 else None
        culprit = self._judge(process, code, seen) if seen is not None else None
        self._release(process)
        self._log_death(process, code, seen, culprit)
        self._feed(Exited(process.child, process.popen.pid, code, _now(), blamed=culprit is not None))
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
            self._served.add(child)
            self._blames.pop(child, None)
            self._feed(Ready(child, epoch, pid, endpoint, _now()))
        elif kind == "beat":
            self._feed(Beat(child, epoch, pid, _now()))
        elif kind == "quiet":
            process.stops = True
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
                self._mend_run_directory()
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
        marks = new_memory(f"perdure-{child}") if child.role is Role.WORKER else -1
        try:
            popen = subprocess.Popen(
                self._command(child.role, self._config_of(child, epoch, marks)),
                stdin=subprocess.DEVNULL,
                # A group of its own, so that Ctrl+C in the terminal reaches the supervisor alone.
                process_group=0,
                umask=0o077,
                pass_fds=self._descriptors_of(child, marks),
            )
        except OSError:
            _close(marks)
            raise
        return _Process(child, epoch, popen, os.pidfd_open(popen.pid), _now(), marks)

    def _descriptors_of(self, child: ChildId, marks: int) -> tuple[int, ...]:
        if child.role is Role.GATEWAY and self._listener is not None:
            return (self._listener.fileno(),)
        return (marks,) if marks >= 0 else ()

    def _config_of(self, child: ChildId, epoch: int, marks: int) -> str:
        if child.role is Role.ROUTER:
            return router_config(self._config, self._places, epoch)
        if child.role is Role.GATEWAY:
            (listener,) = self._descriptors_of(child, marks)
            return gateway_config(self._config, self._places, epoch, listener)
        return worker_config(
            self._config,
            self._places,
            self._core.state,
            child,
            epoch,
            shard=self._directory.shard_path(child.index),
            marks=marks,
            blame=self._blames.get(child),
            first=child not in self._served,
        )

    def _kill(self, action: Kill) -> None:
        process = self._processes.get(action.child)
        if action.child.role is Role.GATEWAY and self._core.stopping and self._listener is not None:
            self._listener.close()  # whoever comes now is refused at once, and not left in a queue
        # By pidfd, and not waited for yet: it can be no other process that got the number meanwhile.
        if process is not None and process.popen.pid == action.pid:
            if action.signal is signal.SIGKILL:
                _log.warning("%s is killed: %s", action.child, action.reason, extra={"pid": action.pid})
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
            **({"http": self._http} if self._http else {}),
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

    # --- surroundings

    def _mend_run_directory(self) -> None:
        """Somebody has cleaned up the sockets: who is connected stays so, nobody else could come in."""
        if self._places.are_there:
            return
        try:
            places = Places(self._directory.make_run_directory())
            # A second listener: the first one keeps the connections it has.
            self._control.socket.bind(places.control)
            self._directory.write_endpoint(places.url)
        except (CannotRun, OSError, zmq.ZMQError) as error:
            if not self._is_homeless:
                _log.error("the sockets' directory cannot be made again: %s", error)
            self._is_homeless = True
            return
        self._places, self._is_homeless = places, False
        _log.error("the sockets' directory was emptied; it is there again, and all get new sockets in order")
        for process in self._processes.values():
            process.stops = True
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.pidfd, signal.SIGTERM)

    def _look_at_disk(self) -> None:
        if self._space.is_due(_now()):
            with contextlib.suppress(OSError):
                facts = os.statvfs(self._directory.path)
                free, total = facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize
                if news := self._space.look(free, total):
                    _log.warning(news)

    # --- processes

    def _judge(self, process: _Process, code: int, seen: Seen) -> Marked | None:
        """What the death is blamed on; the next incarnation is told of it."""
        child = self._core.children[process.child]
        ordered = self._core.stopping
        ending = Ending(
            code,
            silent_s=0.0 if child.ready_at is None else _now() - child.last_beat,
            killed_by_supervisor=child.state is ChildState.STOPPING and not ordered,
            ordered=ordered,
        )
        silence_s = 2 * self._core.timing.heartbeat_interval_s
        culprit = judge(ending, seen, silence_s=silence_s)
        if culprit is not None:
            why = (
                "it fell silent"
                if ending.killed_by_supervisor
                else how_it_ended(Role.WORKER, code, asked=False)
            )
            self._blames[process.child] = Blame(
                culprit.key.hex(), culprit.namespace, culprit.method, why, process.epoch
            )
        return culprit

    def _log_death(self, process: _Process, code: int, seen: Seen | None, culprit: Marked | None) -> None:
        facts: dict[str, Any] = {"epoch": process.epoch, "pid": process.popen.pid, "code": code}
        if culprit is not None:
            facts["object"] = f"{culprit.namespace}/{culprit.key.hex()}"
            facts["method"] = culprit.method
        if seen is not None and (stack := last_stack(seen)):
            facts["stack"] = stack
        served = self._core.children[process.child].ready_at is not None
        level = logging.WARNING
        if process.child.role is not Role.ROUTER and code == WorkerExit.APP_NOT_LOADED:
            level = logging.DEBUG  # it has said so itself, and better
        elif self._core.stopping and code == -signal.SIGTERM and not served:
            level = logging.DEBUG  # told to stop before it could do anything
        elif self._core.stopping and code == 0:
            level = logging.INFO
        how = how_it_ended(process.child.role, code, asked=self._core.stopping or process.stops)
        _log.log(level, "%s ended: %s", process.child, how, extra=facts)

    def _release(self, process: _Process) -> None:
        self._loop.remove_reader(process.pidfd)
        os.close(process.pidfd)
        _close(process.marks)
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
        if self._listener is not None:
            self._listener.close()


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        os.close(descriptor)


def _map_message(slot_map: SlotMap) -> dict[str, Any]:
    return {"type": "map", "map": slot_map.to_wire()}


def _now() -> float:
    return time.monotonic()


def _own_command() -> str:
    return " ".join(sys.orig_argv)
