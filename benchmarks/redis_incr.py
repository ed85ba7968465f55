"""Redis INCR with `appendfsync always`, through redis-py asyncio with hiredis, as a user would run it.

A private redis-server on a Unix socket, its data in the benchmark's directory; skipped when none is on
PATH. Each call is one command awaited by its caller, without pipelines. Two pool sizes are measured, a
connection for every caller and 64 shared ones, and Redis is credited with the better one.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.contender import READY_TIMEOUT_S, Handle, Increment, Unavailable, object_name, stop_process

__all__ = ["connect", "system"]

SHARED_CONNECTIONS = 64
SHARED = "64 conn"
EACH = "N conn"


class RedisSystem:
    """One redis-server process."""

    forms = (SHARED, EACH)
    raw_form = None

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    def start(self, directory: Path) -> Handle:
        """Start the server and wait until it answers; raises Unavailable when something is missing."""
        program = shutil.which("redis-server")
        if program is None:
            raise Unavailable("no redis-server on PATH")
        for module in ("redis", "hiredis"):  # without hiredis redis-py silently takes its slow parser
            if importlib.util.find_spec(module) is None:
                raise Unavailable(f"{module} is not installed: pip install 'perdure[bench]'")
        # Not in `directory`: the kernel takes no path over 107 characters for a socket.
        self._sockets = tempfile.TemporaryDirectory(prefix="perdure-redis-", dir="/tmp")
        socket = Path(self._sockets.name) / "redis.sock"
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
        self._process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.DEVNULL, cwd=directory, process_group=0
        )
        self._wait_for(socket)
        return {"socket": str(socket)}

    def _wait_for(self, socket: Path) -> None:
        redis = importlib.import_module("redis")
        assert self._process is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        with contextlib.closing(redis.Redis(unix_socket_path=str(socket))) as client:
            while self._process.poll() is None and time.monotonic() < deadline:
                with contextlib.suppress(redis.RedisError):
                    client.ping()
                    return
                time.sleep(0.05)
        raise Unavailable(f"redis-server did not answer; its status is {self._process.poll()}")

    def pids(self) -> list[int]:
        """The server's process."""
        return [] if self._process is None else [self._process.pid]

    def stop(self) -> None:
        """Ask the server to end, and kill it when it does not."""
        if self._process is not None:
            self._process.terminate()
            stop_process(self._process)
            self._process = None
        if self._sockets is not None:
            self._sockets.cleanup()


def system() -> RedisSystem:
    """The server, not started."""
    return RedisSystem()


@asynccontextmanager
async def connect(handle: Handle, form: str, objects: int, outstanding: int) -> AsyncIterator[Increment]:
    """A redis-py client with a BlockingConnectionPool of the form's size."""
    redis = importlib.import_module("redis.asyncio")
    names = [object_name(index) for index in range(objects)]
    pool = redis.BlockingConnectionPool.from_url(
        f"unix://{handle['socket']}",
        max_connections=SHARED_CONNECTIONS if form == SHARED else outstanding,
        timeout=None,
    )
    client = redis.Redis(connection_pool=pool)
    incr = client.incr
    try:
        yield lambda index: incr(names[index])
    finally:
        await client.aclose()
        await pool.disconnect()
