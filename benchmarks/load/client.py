"""One client process of a load test, a fresh interpreter: ``python -m benchmarks.load.client PLAN NUMBER``.

It speaks with the main process in lines.  In: "go" starts the load, "stop" or the end of input ends it early.
Out, JSON objects: {"ready": true}, {"calls": n} every 0.2 s and at the end of the load, {"report": {...}}; or
{"failed": why} and exit code 1.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import time
from dataclasses import asdict
from typing import Any

import uvloop

from benchmarks.load.driver import Driver
from benchmarks.load.plan import LoadPlan
from benchmarks.load.report import ClientReport
from perdure import connect
from perdure.errors import PerdureError

__all__ = ["main"]

_PROGRESS_S = 0.2


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _report(driver: Driver, cpu_s: float) -> ClientReport:
    verify = driver.plan.verify
    return ClientReport(
        calls=driver.calls,
        ended_calls=driver.ended_calls,
        ended_after_s=driver.ended_after_s,
        cpu_s=cpu_s,
        errors=dict(driver.errors),
        latencies_us=sorted(driver.latencies.by_us().items()),
        acked=driver.acked.tolist() if verify else [],
        unknown=driver.unknown.tolist() if verify else [],
        seen=driver.seen.tolist() if verify else [],
    )


async def _commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def _obey(commands: asyncio.StreamReader, driver: Driver) -> None:
    await commands.readline()
    driver.stop()


async def _tell_progress(driver: Driver) -> None:
    while True:
        await asyncio.sleep(_PROGRESS_S)
        _say({"calls": driver.calls})


async def _serve(plan: LoadPlan, number: int) -> None:
    commands = await _commands()
    async with connect(plan.url, direct=plan.direct) as client:
        driver = Driver(plan, number, client)
        # The stubs live as long as the process: collections need not look at them again and again.
        gc.collect()
        gc.freeze()
        _say({"ready": True})
        if await commands.readline() != b"go\n":
            return
        cpu_s = time.process_time()
        beside = [
            asyncio.create_task(_obey(commands, driver)),
            asyncio.create_task(_tell_progress(driver)),
        ]
        await driver.run()
        cpu_s = time.process_time() - cpu_s
        for task in beside:
            task.cancel()
        _say({"calls": driver.calls})
    _say({"report": asdict(_report(driver, cpu_s))})


def main() -> None:
    """Runs the client that the command line describes."""
    # Ctrl+C reaches the whole group; the main process then asks its clients to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    plan, number = LoadPlan.from_json(sys.argv[1]), int(sys.argv[2])
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(plan, number))
    except PerdureError as error:
        _say({"failed": str(error)})
        sys.exit(1)
    except BrokenPipeError:
        # Nobody is there to hear the rest; an ordinary exit would try to flush it once more, and complain.
        os._exit(1)


if __name__ == "__main__":
    main()
