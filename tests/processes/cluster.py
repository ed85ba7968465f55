"""A real cluster for tests: `perdure run` as a process, with its router and workers.

    with running_cluster(app, tmp_path / "data") as cluster, cluster.connect() as client:
        cluster.kill(cluster.worker_pids[0])

Nothing waits for time to pass: what other processes do is waited for with a deadline.  Nothing is left
running, also when a test fails halfway; its failure then carries the end of the cluster's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

from perdure import SyncClient, connect, connect_sync
from perdure.errors import PerdureError
from perdure.locate import ENDPOINT_FILE

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [str(ROOT / name) for name in ("sdk", "storage", "router", "worker", "gateway", "cli")]
DEADLINE_S = 20.0
"""For what should take well under a second, on a machine that is busy with other things too."""
POLL_S = 0.01
CONNECT_S = 2.0
LOG_LINES_SHOWN = 40
CHILDREN = ("perdure_router", "perdure_worker", "perdure_gateway")


@dataclass(frozen=True, order=True)
class Child:
    """A process that the supervisor started, as its command line tells."""

    role: str
    """"router", "worker" or "gateway"."""
    index: int
    epoch: int
    pid: int


def _in_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """Runs it in a loop of its own; in a thread, since the driver of a browser has one in this thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, work).result()


class Cluster:
    """One data directory and its supervisor, which may be killed and started again."""

    def __init__(self, app: Path | str, data: Path, *, workers: int = 2, options: Sequence[str] = ()) -> None:
        self.app = str(app)
        self.data = data
        self.workers = workers
        self._options = options
        self._log = data.with_name(data.name + ".log")
        self._supervisor: subprocess.Popen[bytes] | None = None

    # --- life

    def start(self, *, wait: bool = True) -> None:
        """Starts the supervisor; with `wait` returns when every worker answers."""
        assert self._supervisor is None or self._supervisor.poll() is not None, "it runs already"
        self._endpoint.unlink(missing_ok=True)  # a killed supervisor leaves it behind
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as log:
            self._supervisor = subprocess.Popen(
                [
                    *(sys.executable, "-m", "perdure_cli", "run", self.app, "--data", str(self.data)),
                    *("--workers", str(self.workers), "--log-json"),
                    # Several clusters run at once: a gateway takes a port that is free, if one is wanted.
                    *(() if "--http" in self._options else ("--http", "off")),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
                process_group=0,
            )
        if wait:
            self.wait_until("the cluster answers", self._answers)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ordered stop by that signal; the supervisor must exit with 0."""
        self.supervisor.send_signal(number)
        try:
            code = self.supervisor.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._fail(f"the supervisor did not stop within {DEADLINE_S} s")
        if code != 0:
            self._fail(f"the supervisor stopped with exit code {code}")

    def close(self) -> None:
        """Kills what still runs, and waits until it is gone."""
        supervisor = self._supervisor
        if supervisor is None:
            return
        handles = []
        for child in self.children():
            with contextlib.suppress(ProcessLookupError):
                handles.append(os.pidfd_open(child.pid))
        supervisor.kill()
        supervisor.wait(DEADLINE_S)
        # The kernel kills the children of a killed supervisor; whether it does is not this method's concern.
        for handle in handles:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            select.select([handle], [], [], DEADLINE_S)
            os.close(handle)
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        """A killed supervisor leaves the sockets' directory, which is elsewhere when paths are long."""
        if self._endpoint.exists():
            folder = Path(self.url.removeprefix("ipc://")).parent
            if not folder.is_relative_to(self.data.resolve()):
                shutil.rmtree(folder, ignore_errors=True)

    # --- facts

    @property
    def supervisor(self) -> subprocess.Popen[bytes]:
        """The latest supervisor, running or not."""
        assert self._supervisor is not None, "not started"
        return self._supervisor

    @property
    def url(self) -> str:
        """The router's URL."""
        return self._endpoint.read_text("utf-8").strip()

    @property
    def http(self) -> str:
        """The gateway's URL, of a cluster that was started with ``--http 127.0.0.1:0``."""
        return (self.data / "http").read_text("utf-8").strip()

    @property
    def gateway_pid(self) -> int:
        """The gateway's process; waits while there is none."""
        return self._pids("gateway", 1)[0]

    @property
    def router_pid(self) -> int:
        """The router's process; waits while there is none."""
        return self._pids("router", 1)[0]

    @property
    def worker_pids(self) -> list[int]:
        """The workers' processes in their order; waits while one is missing."""
        return self._pids("worker", self.workers)

    def children(self) -> list[Child]:
        """What the supervisor started and what still runs."""
        found = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for thread in Path(f"/proc/{self.supervisor.pid}/task").iterdir():
                found += [
                    child for pid in (thread / "children").read_text().split() if (child := _child(pid))
                ]
        return sorted(found)

    def log_text(self) -> str:
        """What all processes wrote to stderr, earlier runs included."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def log(self) -> list[dict[str, Any]]:
        """The log lines, oldest first."""
        return [json.loads(line) for line in self.log_text().splitlines() if line.startswith("{")]

    # --- talking to it

    def connect(self, *, direct: bool = True, retry: bool = True) -> SyncClient:
        """A client, to be used with ``with``."""
        return connect_sync(self.url, direct=direct, retry=retry, timeout=DEADLINE_S)

    def stats(self) -> list[dict[str, Any]]:
        """The workers' own figures (`turns` of this incarnation among them), in their order."""
        return _in_a_loop(self._stats(DEADLINE_S))

    async def _stats(self, timeout_s: float) -> list[dict[str, Any]]:
        async with connect(self.url, timeout=timeout_s) as client, asyncio.timeout(timeout_s):
            return await client.ask_workers("stats", [])

    # --- hurting it

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Sends a signal to one of the cluster's processes; after SIGKILL it is gone at return."""
        os.kill(pid, number)
        if number == signal.SIGKILL:
            if pid == self.supervisor.pid:
                self.supervisor.wait(DEADLINE_S)
            self.wait_until(f"process {pid} is gone", lambda: not is_running(pid))

    def kill_all(self) -> None:
        """SIGKILL for supervisor, router and workers, one right after the other; they are gone at return."""
        pids = [self.supervisor.pid, *(child.pid for child in self.children())]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.supervisor.wait(DEADLINE_S)
        self.wait_until("all of them are gone", lambda: not any(map(is_running, pids)))

    def wait_until(self, what: str, condition: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
        """The first true value of `condition`; fails, naming `what`, after `deadline_s`."""
        deadline = time.monotonic() + deadline_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                self._fail(f"did not happen within {deadline_s} s: {what}")
            time.sleep(POLL_S)  # sleep: pause between two looks at what another process does
        return value

    def _answers(self) -> bool:
        if self.supervisor.poll() is not None:
            self._fail(f"the supervisor ended with exit code {self.supervisor.returncode}")
        try:
            return bool(_in_a_loop(self._stats(CONNECT_S)))
        except (FileNotFoundError, PerdureError, TimeoutError):
            return False

    def _pids(self, role: str, count: int) -> list[int]:
        def found() -> list[int]:
            pids = {child.index: child.pid for child in self.children() if child.role == role}
            return [pids[index] for index in sorted(pids)] if len(pids) == count else []

        pids: list[int] = self.wait_until(f"there are {count} processes as {role}", found)
        return pids

    @property
    def _endpoint(self) -> Path:
        return self.data / ENDPOINT_FILE

    def log_tail(self) -> str:
        """The end of the log, for messages."""
        lines = self.log_text().splitlines()[-LOG_LINES_SHOWN:]
        return "\n".join(["--- log of the cluster", *lines])

    def _fail(self, sentence: str) -> None:
        pytest.fail(f"{sentence}\n{self.log_tail()}")


@contextlib.contextmanager
def running_cluster(
    app: Path | str, data: Path, *, workers: int = 2, options: Sequence[str] = ()
) -> Iterator[Cluster]:
    """A cluster that serves `app`, ready for calls; killed at the end unless it was stopped before."""
    cluster = Cluster(app, data, workers=workers, options=options)
    try:
        cluster.start()
        yield cluster
    except BaseException as error:
        error.add_note(cluster.log_tail())
        raise
    finally:
        cluster.close()


def environment() -> dict[str, str]:
    """For processes that must use this checkout, whatever else is installed."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(PACKAGES)}


def is_running(pid: int) -> bool:
    """Whether there is such a process that still runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _child(pid: str) -> Child | None:
    """What a child process is; None for one that is gone, ends, or has not become a Perdure process yet."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return None
    module = next((word for word in command if word in CHILDREN), None)
    if module is None or not is_running(int(pid)):
        return None
    config = json.loads(command[command.index(module) + 1])
    return Child(module.removeprefix("perdure_"), config.get("index", 0), config["epoch"], int(pid))
