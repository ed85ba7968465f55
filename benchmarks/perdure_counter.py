"""Perdure: the counter of examples/, on two workers, started as a user starts it.

`perdure run` is the supervisor of a router and two workers with their data in the benchmark's directory.
The client makes one stub for each object and awaits its method, through the router or directly. The form
`raw` is another client, without our library and its batches (`perdure_raw`).
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks.contender import (
    READY_TIMEOUT_S,
    ROOT,
    Handle,
    Increment,
    Unavailable,
    object_name,
    stop_process,
)

__all__ = ["APPLICATION", "NAMESPACE", "PerdureSystem", "connect", "require_perdure", "system"]

APPLICATION = ROOT / "examples" / "counter.py"
NAMESPACE = "Counter"
WORKERS = 2
POLL_S = 0.005
RAW = "raw"


def require_perdure() -> None:
    """Raises Unavailable when Perdure is not installed."""
    if find_spec("perdure_cli") is None or find_spec("perdure") is None:
        raise Unavailable("Perdure is not installed: pip install -e .")


class PerdureSystem:
    """A supervisor with its router and workers; all forms use the same ones."""

    forms = ("router", "direct")
    raw_form = RAW

    def __init__(self, options: Sequence[str] = ("--workers", str(WORKERS))) -> None:
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, directory: Path) -> Handle:
        """Run the supervisor and wait for the file that names its router; raises Unavailable."""
        require_perdure()
        data, log = directory / "data", directory / "log"
        arguments = ["run", str(APPLICATION), "--data", str(data), "--http", "off", *self._options]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "perdure_cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                process_group=0,
            )
        endpoint = data / "endpoint"
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not endpoint.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(
                    f"`perdure run` did not come up:\n{log.read_text(errors='replace')[-2000:]}"
                )
            time.sleep(POLL_S)
        return {"url": endpoint.read_text(encoding="utf-8").strip()}

    def pids(self) -> list[int]:
        """The supervisor and its children."""
        if self._process is None:
            return []
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        return [pid, *map(int, children.split())]

    def worker_pids(self) -> list[int]:
        """The workers' processes, of those that run now."""
        return [pid for pid in self.pids() if b"perdure_worker" in _command_line(pid)]

    def stop(self) -> None:
        """Ask the supervisor to stop in order, and kill it when it does not; its children end with it."""
        if self._process is not None:
            self._process.terminate()
            stop_process(self._process)
            self._process = None


def _command_line(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):  # it has ended
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return []


def system() -> PerdureSystem:
    """The servers, not started."""
    return PerdureSystem()


@asynccontextmanager
async def connect(handle: Handle, form: str, objects: int, outstanding: int) -> AsyncIterator[Increment]:
    """A client with one stub for each object (`router`, `direct`), or one that sends call by call (`raw`)."""
    # Late, so that the other contenders run where Perdure is not installed.
    if form == RAW:
        from benchmarks.perdure_raw import connect_raw

        with connect_raw(handle["url"], NAMESPACE, objects) as raw:
            yield raw.increment
        return
    from perdure import connect as connect_perdure

    async with connect_perdure(handle["url"], direct=form == "direct") as client:
        stubs = [client.get(NAMESPACE, object_name(index)) for index in range(objects)]
        yield lambda index: stubs[index].increment()
