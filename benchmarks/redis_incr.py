"""Redis INCR with `appendfsync always`, through redis-py asyncio with hiredis, as a user would run it.

A private redis-server on a Unix socket in the benchmark's directory; skipped when none is on PATH. Each
call is one command awaited by its caller, no pipelines. Two pool sizes are measured and Redis is credited
with the better one of each cell: a connection for every caller, and 64 shared ones.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contender import Handle, Increment, Unavailable, object_name, stop_process

if TYPE_CHECKING:
    from redis.asyncio import Redis

__all__ = ["connect", "system"]

CONNECTIONS_SHARED = 64
START_TIMEOUT_S = 10.0


class RedisSystem:
    """One redis-server process."""

    forms = ("connection each", "64 connections")

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(self, directory: Path) -> Handle:
        """Start the server and wait until it answers; raises Unavailable when it is not installed."""
        program = shutil.which("redis-server")
        if program is None:
            raise Unavailable("no redis-server on PATH")
        try:
            import hiredis  # noqa: F401  (without it redis-py silently uses its slow Python parser)
            import redis  # noqa: F401
        except ImportError as error:
            raise Unavailable(f"{error.name} is not installed: pip install 'perdure[bench]'") from error
        socket = directory / "redis.sock"
        settings = {
            "port": "0",
            "unixsocket": str(socket),
            "dir": str(directory),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            "logfile": str(directory / "redis.log"),
        }
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen([program, *arguments], stdin=subprocess.DEVNULL, text=True)
        self._wait_for(socket)
        return {"socket": str(socket)}

    def _wait_for(self, socket: Path) -> None:
        from redis import Redis
        from redis.exceptions import RedisError

        assert self._process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        with contextlib.closing(Redis(unix_socket_path=str(socket))) as client:
            while True:
                with contextlib.suppress(RedisError):
                    client.ping()
                    return
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise Unavailable("redis-server did not start")
                time.sleep(0.05)

    def pids(self) -> list[int]:
        """The server's process."""
        return [self._process.pid] if self._process is not None else []

    def stop(self) -> None:
        """Ask the server to end, and kill it when it does not."""
        if self._process is not None:
            self._process.terminate()
            stop_process(self._process)
            self._process = None


def system() -> RedisSystem:
    """The server, not started."""
    return RedisSystem()


@asynccontextmanager
async def connect(handle: Handle, form: str, objects: int, outstanding: int) -> AsyncIterator[Increment]:
    """A redis-py client with a BlockingConnectionPool of the form's size."""
    import redis.asyncio

    names = [object_name(index) for index in range(objects)]
    connections = CONNECTIONS_SHARED if form == "64 connections" else outstanding
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        f"unix://{handle['socket']}", max_connections=connections, timeout=None
    )
    client: Redis = redis.asyncio.Redis(connection_pool=pool)
    incr = client.incr
    try:
        yield lambda index: incr(names[index])
    finally:
        await client.aclose()
        await pool.disconnect()
