"""What ./scripts/start runs: a cluster of this machine's own, pages to play with, and calls that one can see.

Starts `perdure run examples/start.py` (a supervisor, a router, workers, a gateway with all example pages),
counts with a few `Counter` objects and then keeps four of them counting until Ctrl+C. The counts go on with
the next start. With --once it stops after the first calls and exits with 0 when each of them counted exactly
once and the start page was served.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from perdure import Client, connect
from perdure.errors import PerdureError
from perdure.locate import DATA_DEFAULT, ENDPOINT_FILE

HERE = Path(__file__).resolve().parent
STOP_TIMEOUT_S = 30.0
"""The supervisor's own ordered shutdown takes at most 10 s of draining a process; beyond this it hangs."""
SLOW_PAGE_S = 10.0
SLOW_CALL_S = 0.15
"""A call that took longer than this waited for something that is worth a line."""
COUNT_INTERVAL_S = 0.1
"""Short against the restart of a worker (about 0.3 s), so that a kill meets calls."""
HTTP_FILE = "http"
"""Where, in the data directory, the supervisor writes the gateway's address."""
HTTP_DEFAULT = "127.0.0.1:8080"
HTTP_ANY = "127.0.0.1:0"
"""A free port, for --once: what else runs on this machine does not matter then."""
COMPASS = ("north", "east", "south", "west")
"""Counters whose slots lie on both workers, so that the death of either can be seen."""


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="start", description="Runs a local cluster and counts with it.")
    parser.add_argument("--data", type=Path, default=Path(DATA_DEFAULT), help=f"default: ./{DATA_DEFAULT}")
    parser.add_argument("--workers", type=int, default=2, help="worker processes; default: 2")
    parser.add_argument("--http", default=HTTP_DEFAULT, metavar="HOST:PORT", help=f"default: {HTTP_DEFAULT}")
    parser.add_argument("--once", action="store_true", help="make the calls, stop everything, exit")
    return parser.parse_args()


@asynccontextmanager
async def running_cluster(
    data: Path, workers: int, http: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.Event]]:
    """`perdure run` as a process of its own, and the event of its being ready; stopped in order."""
    cluster = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "perdure_cli", "run", str(HERE / "start.py")),
        *("--data", str(data), "--workers", str(workers), "--http", http),
        # What goes wrong is shown between the counts, the rest of the log would hide them.
        *("--no-log-json", "--log-level", "warning"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        # Ctrl+C in the terminal shall reach this process alone, which then stops the cluster once.
        start_new_session=True,
    )
    assert cluster.stdout is not None
    ready = asyncio.Event()
    output = asyncio.create_task(show_output(cluster.stdout, ready))
    try:
        yield cluster, ready
    finally:
        if cluster.returncode is None:
            cluster.terminate()
            try:
                await asyncio.wait_for(cluster.wait(), STOP_TIMEOUT_S)
            except TimeoutError:
                cluster.kill()
                await cluster.wait()
        output.cancel()


async def show_output(output: asyncio.StreamReader, ready: asyncio.Event) -> None:
    """Passes on what the cluster prints, save the line that says that it is ready."""
    async for line in output:
        if line.startswith(b"ready "):
            ready.set()
        else:
            print(line.decode(errors="replace"), end="")


async def count_once(client: Client) -> bool:
    """The calls of one start; tells whether each of them counted exactly once."""
    visits = client.get("Counter", "visits")
    before = await visits.get()
    after = await visits.increment()
    exact = after == before + 1
    history = f"it was {before} when you started this last time" if before else "this is the first start here"
    print(f"visits = {after} ({history})")

    apples = client.get("Counter", "apples")
    print(f"apples = {await apples.increment(by=3)} (three more; another object, with storage of its own)")

    crowd = client.get("Counter", "crowd")
    before = await crowd.get()
    answers = await asyncio.gather(*(crowd.increment() for _ in range(100)))
    exact = exact and sorted(answers) == list(range(before + 1, before + 101))
    print(
        f"crowd  = {max(answers)} (a hundred calls at once; {'each' if exact else 'NOT each'} counted once)"
    )
    return exact


def page_is_served(site: str) -> bool:
    """Whether the start page is there, as a browser would ask for it."""
    with urllib.request.urlopen(site, timeout=SLOW_PAGE_S) as answer:  # noqa: S310 - our own gateway
        return bool(answer.status == 200 and b"Perdure" in answer.read())


def print_hints(address: str, site: str, cluster_pid: int) -> None:
    """What to try while the cluster runs; `address` is what connect_sync() needs to find it."""
    first, *others = worker_pids(cluster_pid)
    also = f"   (or {', '.join(map(str, others))})" if others else ""
    print(
        f"""
Open {site} in a browser, best in two windows: chat, a spreadsheet, a game, a shop and more.

The cluster keeps running, and its data stays for the next start; Ctrl+C stops it.
In another terminal, in this folder, you can

  call it:        {os.path.relpath(sys.executable)} -c '
from perdure import connect_sync
with connect_sync({address}) as client:
    print(client.get("Counter", "visits").increment())'

  kill a worker:  kill -9 {first}{also}
                  and watch these counters, ten times a second: a call waits, none is lost, none counts twice
"""
    )


def worker_pids(cluster_pid: int) -> list[int]:
    """The supervisor's children that are workers, as Linux lists them."""
    children = Path(f"/proc/{cluster_pid}/task/{cluster_pid}/children").read_text().split()
    return [int(pid) for pid in children if b"perdure_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def keep_counting(client: Client) -> None:
    """Increments the compass counters ten times a second, until cancelled; slow calls get a line."""
    loop = asyncio.get_running_loop()
    counters = [client.get("Counter", name) for name in COMPASS]
    while True:
        started = loop.time()
        values = await asyncio.gather(*(counter.increment() for counter in counters))
        waited = loop.time() - started
        line = ", ".join(f"{name} {value}" for name, value in zip(COMPASS, values, strict=True))
        if waited > SLOW_CALL_S:
            print(f"{line}   (the slowest of these calls took {waited:.2f} s)")
        elif sys.stdout.isatty():
            print(line, end="\r", flush=True)  # counts in place, and what was slow stays in sight
        await asyncio.sleep(max(0.0, COUNT_INTERVAL_S - waited))


async def demonstrate(options: argparse.Namespace, ready: asyncio.Event, cluster_pid: int) -> bool:
    # Only its own word tells that this cluster is up: the address in the data directory may be that of
    # another one, because of which this one is about to give up.
    await ready.wait()
    url = (options.data / ENDPOINT_FILE).read_text().strip()
    site = (options.data / HTTP_FILE).read_text().strip() + "/"
    async with connect(url) as client:
        exact = await count_once(client)
        if await asyncio.to_thread(page_is_served, site):
            print(f"pages  = {site} (served by the gateway)")
        else:
            exact = False
        if not options.once:
            print_hints("" if options.data == Path(DATA_DEFAULT) else f'"{url}"', site, cluster_pid)
            await keep_counting(client)
        return exact


async def main() -> int:
    options = parse_options()
    loop = asyncio.get_running_loop()
    http = HTTP_ANY if options.once else options.http
    print(f"Starting a router, {options.workers} workers and a gateway on {options.data} ...")
    async with running_cluster(options.data, options.workers, http) as (cluster, ready):
        demo = asyncio.create_task(demonstrate(options, ready, cluster.pid))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, demo.cancel)
        ended = asyncio.create_task(cluster.wait())
        await asyncio.wait({demo, ended}, return_when=asyncio.FIRST_COMPLETED)
        if not demo.done():
            demo.cancel()
            print(f"perdure run ended with code {cluster.returncode}, see above.", file=sys.stderr)
            return 1
        if demo.cancelled():
            print("\nStopping: running turns end, their commits reach the disk ...")
            return 1 if options.once else 0
        try:
            return 0 if demo.result() else 1
        except PerdureError as error:
            print(f"A call failed: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
