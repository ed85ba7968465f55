"""HTTP beside workerd: `python -m benchmarks.web` loads the same counter in both with wrk, in one run.

Both are up at the same time and get their cells in turn: for each round, for each number of objects, each of
them once.  A request adds one to a counter and is answered when the new value is on disk: Cloudflare's
Durable Objects in workerd with local disk storage, Perdure through its gateway with two workers.  Needs wrk
(Debian's package), and workerd (`npm install workerd`) on PATH or named by --workerd; without it Perdure runs
alone.  All on loopback, in a temporary directory that is removed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.contender import READY_TIMEOUT_S, Unavailable, stop_process
from benchmarks.perdure_counter import PerdureSystem

__all__ = ["main"]

WORKERD = Path(__file__).resolve().parent / "workerd"
OBJECTS = (1, 100, 1_000)
TARGET = 5.0
"""Times workerd's requests/s at 1,000 objects."""
POLL_S = 0.02
# Each connection walks through the objects by chance; the seed makes rounds alike.
SCRIPT = """
wrk.method = "POST"
math.randomseed(1)
request = function()
  return wrk.format(nil, "/Counter/c-" .. math.random(0, {objects} - 1) .. "/increment")
end
"""


class Cell(NamedTuple):
    """One contender at one number of objects."""

    contender: str
    objects: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


class Workerd:
    """One workerd process; its objects' data under the benchmark's directory."""

    name = "workerd"

    def __init__(self, command: str) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, directory: Path) -> str:
        """Gives its address; raises `Unavailable`."""
        data, port = directory / "data", _free_port()
        data.mkdir()
        arguments = ["serve", str(WORKERD / "config.capnp"), f"--socket-addr=http=127.0.0.1:{port}"]
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._command, *arguments, f"--directory-path=disk={data}"], stdout=log, stderr=log
            )
        _wait_for(f"http://127.0.0.1:{port}", self._process, directory / "log")
        return f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.terminate()
            stop_process(self._process)


class PerdureWeb:
    """`perdure run examples/counter.py` with its gateway."""

    name = "perdure"

    def __init__(self) -> None:
        self._servers = PerdureSystem(("--workers", "2", "--http", "127.0.0.1:0"))

    def start(self, directory: Path) -> str:
        """Gives its address; raises `Unavailable`."""
        self._servers.start(directory)
        address = directory / "data" / "http"
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not address.exists():
            if time.monotonic() > deadline:
                raise Unavailable("the gateway did not come up")
            time.sleep(POLL_S)
        return address.read_text(encoding="utf-8").strip()

    def stop(self) -> None:
        """Ends it in order."""
        self._servers.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        try:
            increment(url, "ready")
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(
                    f"workerd did not come up: {log.read_text(errors='replace')[-500:]}"
                ) from None
            time.sleep(POLL_S)


def increment(url: str, name: str) -> int:
    """One request."""
    request = urllib.request.Request(f"{url}/Counter/{name}/increment", method="POST")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return int(answer.read())


def load(contender: str, url: str, objects: int, connections: int, seconds: float, folder: Path) -> Cell:
    """One run of wrk."""
    script = folder / "load.lua"
    script.write_text(SCRIPT.format(objects=objects), encoding="utf-8")
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds:g}s",
        "--timeout=10s",
        "--latency",
        f"-s{script}",
        url,
    ]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    failed = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", output)))
    failed += sum(
        int(n) for line in re.findall(r"Socket errors: (.*)", output) for n in re.findall(r"\d+", line)
    )
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if rate is None:
        raise RuntimeError(f"wrk says:\n{output}")
    return Cell(
        contender, objects, float(rate[1]), _latency_ms(output, "50%"), _latency_ms(output, "99%"), failed
    )


def _latency_ms(output: str, share: str) -> float:
    found = re.search(rf"{share}\s+([\d.]+)(us|ms|s)", output)
    return float(found[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found[2]] if found else float("nan")


def measure(
    contenders: list[Workerd | PerdureWeb], connections: int, seconds: float, rounds: int, folder: Path
) -> list[Cell]:
    """All cells; workerd's first touch of an object opens its database, so each cell has a run before it."""
    cells = []
    urls = {}
    try:
        for contender in contenders:
            place = folder / contender.name
            place.mkdir()
            urls[contender.name] = contender.start(place)
        for number in range(rounds):
            for objects in OBJECTS:
                for name, url in urls.items():
                    click.echo(f"round {number + 1}, {objects} objects, {name} ...", err=True)
                    load(name, url, objects, connections, max(1.0, seconds / 2), folder)
                    cells.append(load(name, url, objects, connections, seconds, folder))
    finally:
        for contender in contenders:
            contender.stop()
    return cells


def table(cells: list[Cell]) -> list[dict[str, Any]]:
    """Medians over the rounds."""
    rows = []
    for objects in OBJECTS:
        for name in dict.fromkeys(cell.contender for cell in cells):
            chosen = [cell for cell in cells if (cell.contender, cell.objects) == (name, objects)]
            rows.append(
                {
                    "contender": name,
                    "objects": objects,
                    "requests_per_s": round(statistics.median(c.requests_per_s for c in chosen), 1),
                    "p50_ms": round(statistics.median(c.p50_ms for c in chosen), 2),
                    "p99_ms": round(statistics.median(c.p99_ms for c in chosen), 2),
                    "failed": sum(c.failed for c in chosen),
                }
            )
    return rows


@click.command()
@click.option("--connections", default=64, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Measured seconds of each cell.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--workerd", "command", default="workerd", show_default=True, help="workerd's command.")
@click.option("--directory", type=click.Path(path_type=Path), help="On a real disk.  [default: temporary]")
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures there too.")
def main(
    connections: int, seconds: float, rounds: int, command: str, directory: Path | None, output: Path | None
) -> None:
    """Durable increments over HTTP: Perdure beside workerd."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything started is ended
    if shutil.which("wrk") is None:
        raise click.ClickException("wrk is not on this machine: apt-get install wrk")
    contenders: list[Workerd | PerdureWeb] = [PerdureWeb()]
    found = shutil.which(command)
    if found is None:
        click.echo(f"workerd was skipped: there is no {command!r} (npm install workerd)", err=True)
    else:
        contenders.insert(0, Workerd(os.path.realpath(found)))
    with tempfile.TemporaryDirectory(prefix="perdure-web-", dir=directory) as folder:
        rows = table(measure(contenders, connections, seconds, rounds, Path(folder)))
    click.echo(f"{'':10}{'objects':>8}{'requests/s':>12}{'p50 ms':>10}{'p99 ms':>10}{'failed':>8}")
    for row in rows:
        click.echo(
            f"{row['contender']:10}{row['objects']:>8,}{row['requests_per_s']:>12,.0f}"
            f"{row['p50_ms']:>10.1f}{row['p99_ms']:>10.1f}{row['failed']:>8}"
        )
    rates = {(row["contender"], row["objects"]): row["requests_per_s"] for row in rows}
    ratios = {n: rates["perdure", n] / rates["workerd", n] for n in OBJECTS if ("workerd", n) in rates}
    for objects, ratio in ratios.items():
        verdict = (
            f"  (at least {TARGET:g}: {'met' if ratio >= TARGET else 'MISSED'})" if objects == 1_000 else ""
        )
        click.echo(f"Perdure / workerd over {objects:,} objects: {ratio:.1f}{verdict}")
    if output is not None:
        output.write_text(json.dumps({"cells": rows, "ratios": ratios}, indent=1), encoding="utf-8")
    if any(row["failed"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
