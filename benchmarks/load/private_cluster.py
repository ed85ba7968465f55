"""A cluster for one load test alone: its own supervisor, its own data directory, removed afterwards.

The load test's main process uses `private_cluster`.  This module's other half runs in the process that it
starts, which becomes the supervisor and, by the kernel's hand, does not outlive the load test.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from perdure import connect
from perdure.errors import PerdureError
from perdure.locate import ENDPOINT_FILE

__all__ = ["APP", "ClusterFailed", "main", "private_cluster"]

APP = Path(__file__).resolve().with_name("objects.py")
_STOP_TIMEOUT_S = 30.0
"""The supervisor's own ordered shutdown is bounded at less; beyond this it hangs."""
_POLL_S = 0.02


class ClusterFailed(PerdureError):
    """The private cluster ended before it served; its log says why."""


@asynccontextmanager
async def private_cluster(workers: int) -> AsyncIterator[tuple[str, int]]:
    """A running cluster in the temporary directory (TMPDIR); gives its URL and its supervisor's process id.

    Its log is kept quiet: warnings only.  Raises `ClusterFailed` when it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="perdure-load-") as folder:
        data = Path(folder, "data")
        supervisor = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.load.private_cluster", str(os.getpid())),
            *("run", str(APP), "--data", str(data), "--workers", str(workers), "--log-level", "warning"),
            *("--http", "off"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            # Ctrl+C shall reach the load test alone, which reports first and then stops the cluster.
            start_new_session=True,
        )
        try:
            yield await _url(data, supervisor), supervisor.pid
        finally:
            await _stop(supervisor)


async def _url(data: Path, supervisor: asyncio.subprocess.Process) -> str:
    ended = asyncio.create_task(supervisor.wait())
    serves = asyncio.create_task(_wait_until_it_serves(data / ENDPOINT_FILE))
    await asyncio.wait({ended, serves}, return_when=asyncio.FIRST_COMPLETED)
    if not serves.done():
        serves.cancel()
        raise ClusterFailed(f"the private cluster did not start: exit code {ended.result()}")
    ended.cancel()
    return serves.result()


async def _wait_until_it_serves(endpoint: Path) -> str:
    while not (url := _read(endpoint)):  # noqa: ASYNC110 - another process makes it: no event of ours tells
        await asyncio.sleep(_POLL_S)
    async with connect(url):
        return url


def _read(endpoint: Path) -> str:
    try:
        return endpoint.read_text("utf-8").strip()
    except FileNotFoundError:
        return ""


async def _stop(supervisor: asyncio.subprocess.Process) -> None:
    if supervisor.returncode is None:
        supervisor.terminate()
        try:
            await asyncio.wait_for(supervisor.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            supervisor.kill()
            await supervisor.wait()


def main() -> None:
    """Becomes the supervisor; the first argument is the process to end with, the others are its options."""
    from perdure import lifeline
    from perdure_cli import commands

    lifeline.end_with(int(sys.argv[1]))
    commands.main(sys.argv[2:], prog_name="perdure")


if __name__ == "__main__":
    main()
