"""The client processes of one load test: started, set going together, stopped, asked for their reports.

Runs in the load test's main process.  Clients are fresh interpreters, never forks; when the main process
ends, however it ends, their input closes and they end too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from benchmarks.load.plan import LoadPlan
from benchmarks.load.report import ClientReport
from perdure.errors import PerdureError

__all__ = ["ClientFailed", "Fleet"]

_END_TIMEOUT_S = 10.0
"""Between a client's report and its end; milliseconds are usual."""
_LINE_BYTES_MAX = 256 * 1024 * 1024
"""A report holds three numbers for each object."""


class ClientFailed(PerdureError):
    """A client process could not connect, or ended before its report."""


class Fleet:
    """``async with Fleet(plan, on_progress) as fleet: reports = await fleet.run()``.

    `on_progress` gets the number of calls that ended with a result so far: 0 when the load begins, then a
    few times a second.
    """

    def __init__(self, plan: LoadPlan, on_progress: Callable[[int], None]) -> None:
        self._plan = plan
        self._on_progress = on_progress
        self._clients: list[asyncio.subprocess.Process] = []
        self._calls = [0] * plan.clients
        self._stopped = False

    async def __aenter__(self) -> Self:
        for number in range(self._plan.clients):
            self._clients.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "benchmarks.load.client", self._plan.to_json(), str(number)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=_LINE_BYTES_MAX,
                )
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            if error is None:
                # It has reported and ends by itself. A kill at just that moment takes its exit status from
                # asyncio (Popen.send_signal polls), which then logs an "Unknown child process".
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(client.wait(), _END_TIMEOUT_S)
            if client.returncode is None:
                client.kill()
            await client.wait()

    async def run(self) -> list[ClientReport]:
        """Lets all clients go when each is ready, and gives their reports.  Raises `ClientFailed`."""
        await self._gather(self._message(number, "ready") for number in range(self._plan.clients))
        if self._stopped:
            raise ClientFailed("the load test was stopped before the load began")
        self._tell(b"go\n")
        self._on_progress(0)
        reports = await self._gather(self._message(number, "report") for number in range(self._plan.clients))
        return [ClientReport(**report) for report in reports]

    def stop(self) -> None:
        """Ends the load early; `run` then gives the reports of what was done."""
        self._stopped = True
        self._tell(b"stop\n")

    def _tell(self, command: bytes) -> None:
        for client in self._clients:
            assert client.stdin is not None
            with contextlib.suppress(ConnectionError):
                client.stdin.write(command)

    async def _gather(self, waits: Iterable[Any]) -> list[Any]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(wait) for wait in waits]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _message(self, number: int, wanted: str) -> Any:
        """The next message of that kind; progress in between is passed on."""
        client = self._clients[number]
        assert client.stdout is not None
        async for line in client.stdout:
            message = json.loads(line)
            if wanted in message:
                return message[wanted]
            if "failed" in message:
                raise ClientFailed(message["failed"])
            self._calls[number] = message["calls"]
            self._on_progress(sum(self._calls))
        code = await client.wait()
        raise ClientFailed(f"client process {number} ended with code {code} before its report")
