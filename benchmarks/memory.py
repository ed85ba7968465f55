"""What live idle objects weigh: the resident memory of one worker with 100,000 counters, beyond it empty.

Runs in the run.py process beside a `perdure run` of its own with one worker that evicts nothing. What a
user's process would see counts, so it is the whole resident set: Python's objects, the store's buffers and
caches, and the pages of its files that are mapped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks.driver import Load
from benchmarks.perdure_counter import PerdureSystem
from benchmarks.perdure_counter import connect as connect_counters
from perdure import Client, connect

__all__ = ["measure", "resident_bytes", "settled"]

OBJECTS = 100_000
OPTIONS = ("--workers", "1", "--idle-evict", "3600", "--live-objects-max", "200000")
SAMPLE_S = 0.2
SETTLED_SAMPLES = 6
SETTLED_BYTES = 500_000
SETTLE_TIMEOUT_S = 20.0
FIELDS = {"VmRSS": "resident", "RssAnon": "anonymous", "RssFile": "mapped_files"}


def measure(directory: Path, objects: int = OBJECTS) -> dict[str, float]:
    """Bytes of one worker, empty and with `objects` counters that were each incremented once.

    Raises RuntimeError when not all of them are in memory at the end.
    """
    servers = PerdureSystem(OPTIONS)
    try:
        url = servers.start(directory)["url"]
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(url, servers, objects))
    finally:
        servers.stop()


async def _measure(url: str, servers: PerdureSystem, objects: int) -> dict[str, float]:
    async with connect(url) as client:
        await _live(client)  # it is up
        (pid,) = servers.worker_pids()
        empty = await _settle(pid)
        async with connect_counters({"url": url}, "direct", objects, 0) as increment:
            await Load(increment, objects).touch_all()
        full = await _settle(pid)
        live = await _live(client)
    if live != objects:
        raise RuntimeError(f"{live:,} of {objects:,} objects are in memory")
    growth = full["resident"] - empty["resident"]
    return {
        "objects": objects,
        "growth_mb": growth / 1e6,
        "growth_bytes_per_object": growth / objects,
        **{f"empty_{name}_mb": size / 1e6 for name, size in empty.items()},
        **{f"full_{name}_mb": size / 1e6 for name, size in full.items()},
    }


async def _live(client: Client) -> int:
    (figures,) = await client.stats()
    live: int = figures["live"]
    return live


async def _settle(pid: int) -> dict[str, int]:
    """The worker's memory when it does not change any more: the store compacts in the background."""
    samples = [_read(pid)]
    for _ in range(int(SETTLE_TIMEOUT_S / SAMPLE_S)):
        if settled([sample["resident"] for sample in samples]):
            break
        await asyncio.sleep(SAMPLE_S)
        samples.append(_read(pid))
    return samples[-1]


def _read(pid: int) -> dict[str, int]:
    return resident_bytes(Path(f"/proc/{pid}/status").read_text(encoding="ascii"))


def settled(sizes: Sequence[int]) -> bool:
    """Whether the last SETTLED_SAMPLES of `sizes` differ by SETTLED_BYTES at most."""
    last = sizes[-SETTLED_SAMPLES:]
    return len(last) == SETTLED_SAMPLES and max(last) - min(last) <= SETTLED_BYTES


def resident_bytes(status: str) -> dict[str, int]:
    """Resident, anonymous and mapped files' bytes, from the text of /proc/PID/status."""
    rows = dict(line.split(":", 1) for line in status.splitlines())
    return {name: int(rows[field].split()[0]) * 1024 for field, name in FIELDS.items()}
