"""Real clusters of stand-in children: what the tests of the supervisor start, watch and hurt.

Everything waits for a condition with a deadline; what was started is killed at the end, by its pid.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = [str(ROOT / name) for name in ("sdk", "storage", "router", "worker", "gateway", "cli")]
DEADLINE_S = 30.0
"""Beyond every bound that is asserted, on a machine that is busy with other things too."""
POLL_S = 0.005

Entry = dict[str, Any]


def wait_for(what: str, condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`; fails naming `what` when the deadline passes."""
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {DEADLINE_S} s: {what}")
        time.sleep(POLL_S)  # sleep: pause between two looks at a condition that another process makes true
    return value


def is_alive(pid: int) -> bool:
    """Whether there is a running process of this number (one that was not waited for yet is not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def complete_entries(text: str) -> list[Entry]:
    """The JSON objects among the lines; half a line, of a writer at work or killed, is none."""
    entries = []
    for line in text.splitlines(keepends=True):
        if line.startswith("{") and line.endswith("}\n"):
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
    return entries


def free_port() -> int:
    """A TCP port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Cluster:
    """One data directory, its supervisors and the journal that their children write (see fake_child.py)."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.stage = folder / "stage"
        self.stage.mkdir()
        self.supervisors: list[subprocess.Popen[str]] = []

    # --- orders

    def order(self, child: str, **behaviour: Any) -> None:
        """How incarnations of `child` that start from now on behave; see fake_child.py."""
        path = self.stage / f"{child}.json"
        path.with_suffix(".tmp").write_text(json.dumps(behaviour))
        path.with_suffix(".tmp").rename(path)

    def allow(self, name: str) -> None:
        """Makes the file that a behaviour waits for."""
        (self.stage / name).touch()

    def start(self, *, wait: bool = True, **options: Any) -> subprocess.Popen[str]:
        """A supervisor over stand-ins; `options` go to run_supervisor.py."""
        spec = {"data": str(self.data), "stage": str(self.stage), **options}
        return self.launch([str(HERE / "run_supervisor.py"), json.dumps(spec)], wait=wait)

    def launch(
        self,
        arguments: list[str],
        *,
        wait: bool = True,
        first_on_path: str = "",
        path: list[str] | None = None,
    ) -> subprocess.Popen[str]:
        """A Python process that becomes a supervisor; its output is in `said()` and `log()`."""
        number = len(self.supervisors)
        if "run" in arguments and "--http" not in arguments:  # stand-ins serve no HTTP
            arguments = [*arguments, "--http", "off"]
        path = path or [*([first_on_path] if first_on_path else []), *PACKAGES]
        with (
            open(self.stage / f"stdout-{number}", "w") as out,
            open(self.stage / f"stderr-{number}", "w") as err,
        ):
            supervisor = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "STAGE": str(self.stage)},
                process_group=0,
            )
        self.supervisors.append(supervisor)
        if wait:
            wait_for("the cluster is ready", lambda: self.is_ready() or supervisor.poll() is not None)
            assert supervisor.poll() is None, self.log_text()
        return supervisor

    # --- facts

    def said(self) -> str:
        """What the latest supervisor wrote to stdout."""
        return (self.stage / f"stdout-{len(self.supervisors) - 1}").read_text()

    def log_text(self) -> str:
        """What the latest supervisor wrote to stderr."""
        return (self.stage / f"stderr-{len(self.supervisors) - 1}").read_text()

    def log(self) -> list[Entry]:
        """The latest supervisor's log lines, where it logs JSON."""
        return complete_entries(self.log_text())

    def is_ready(self) -> bool:
        """Whether the latest supervisor announced that the cluster serves."""
        return "ready  url=" in self.said() or any(line["message"] == "ready" for line in self.log())

    def journal(self, event: str | None = None, child: str | None = None, **facts: Any) -> list[Entry]:
        """What children wrote, in order of time; optionally only entries with these facts."""
        try:
            entries = complete_entries((self.stage / "journal").read_text())
        except FileNotFoundError:
            return []
        wanted = {key: value for key, value in {"event": event, "child": child}.items() if value} | facts
        return [entry for entry in entries if all(entry.get(k) == v for k, v in wanted.items())]

    def wait_for_entry(self, event: str, child: str, **facts: Any) -> Entry:
        """The first such entry of the journal, now or later."""
        what = f"{child}: {event} {facts or ''}"
        return wait_for(what, lambda: self.journal(event, child, **facts))[0]

    def latest(self, child: str) -> Entry:
        """The latest start of a child: its pid and epoch among others."""
        return self.journal("started", child)[-1]

    def state(self) -> Entry:
        """The state file's fields."""
        return json.loads((self.data / "state.json").read_text())

    # --- the end

    def stop(self, supervisor: subprocess.Popen[str]) -> int:
        """Ordered stop; gives the exit code."""
        supervisor.send_signal(signal.SIGTERM)
        return supervisor.wait(DEADLINE_S)

    def end(self) -> None:
        """Nothing that was started is left, also when a test failed halfway."""
        for supervisor in self.supervisors:
            if supervisor.poll() is None:
                supervisor.kill()
            supervisor.wait(DEADLINE_S)
        pids = {entry["pid"] for entry in self.journal("started")}
        wait_for("the children died with their supervisor", lambda: not any(map(is_alive, pids)))
