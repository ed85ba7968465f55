"""A cluster whose log nobody reads: calls go on, and SIGTERM stops it in order."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from perdure import connect_sync
from perdure.errors import PerdureError
from perdure.locate import ENDPOINT_FILE

from .cluster import DEADLINE_S, Cluster, environment

pytestmark = pytest.mark.processes

APP = """
from perdure import DurableObject, durable

class Counter(DurableObject):
    value: int = durable(0)

    async def increment(self) -> int:
        self.value += 1
        return self.value

class Broken(DurableObject):
    async def on_start(self) -> None:
        raise LookupError("x" * 3000)

    async def get(self) -> int:
        return 1
"""


def is_full(pipe: int) -> bool:
    return not select.select([], [pipe], [], 0)[1]


def test_calls_go_on_and_the_cluster_stops_in_order_when_nobody_reads_its_log(tmp_path: Path) -> None:
    app, data = tmp_path / "app.py", tmp_path / "data"
    app.write_text(APP)
    reading, writing = os.pipe()
    options = ("--workers", "2", "--log-json", "--log-level", "debug")
    supervisor = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "perdure_cli",
            "run",
            str(app),
            "--data",
            str(data),
            "--http",
            "off",
            *options,
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=writing,
        env=environment(),
        process_group=0,
    )
    watching = Cluster(app, data)
    try:
        endpoint = data / ENDPOINT_FILE
        watching.wait_until("there is an endpoint", endpoint.exists)
        with connect_sync(endpoint.read_text().strip(), timeout=DEADLINE_S) as client:
            for number in range(5_000):
                with pytest.raises((PerdureError, LookupError)):
                    client.get("Broken", str(number)).get()
                if is_full(writing):
                    break
            assert is_full(writing), "the log was not filled"
            for number in range(120):
                with pytest.raises((PerdureError, LookupError)):
                    client.get("Broken", f"more-{number}").get()
            assert [client.get("Counter", str(n % 4)).increment() for n in range(40)] == [
                1 + n // 4 for n in range(40)
            ]
            supervisor.send_signal(signal.SIGTERM)
            assert supervisor.wait(DEADLINE_S) == 0
    finally:
        supervisor.kill()
        supervisor.wait(DEADLINE_S)
        os.close(reading)
        os.close(writing)
