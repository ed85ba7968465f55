"""A router and a worker that run out of file descriptors say so before an ipc door aborts them."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from .cluster import Cluster, running_cluster

pytestmark = pytest.mark.processes

ZOO = Path(__file__).with_name("zoo.py")
DESCRIPTORS = 256


def warned(cluster: Cluster, process: str, message: str) -> list[dict[str, Any]]:
    return [
        line for line in cluster.log() if line["process"] == process and line["message"].startswith(message)
    ]


@pytest.mark.parametrize("process", ["router", "worker-0"])
def test_few_descriptors_are_said_at_the_start_and_again_when_they_run_out(
    tmp_path: Path, process: str
) -> None:
    with running_cluster(ZOO, tmp_path / "data", workers=1) as cluster, contextlib.ExitStack() as held:
        assert warned(cluster, process, "this process may have few") == []
        resource.prlimit(cluster.supervisor.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        cluster.kill(cluster.router_pid if process == "router" else cluster.worker_pids[0])
        started = cluster.wait_until(
            "it says that it may have few", lambda: warned(cluster, process, "this process may have few")
        )
        assert started[0]["limit"] == DESCRIPTORS
        with cluster.connect() as client:
            assert client.get("Counter", "a").increment() == 1
            slot_map = client.slot_map
            assert slot_map is not None
            endpoint = cluster.url if process == "router" else slot_map.seats[0].endpoint
            for _ in range(int(0.8 * DESCRIPTORS)):
                peer = held.enter_context(socket.socket(socket.AF_UNIX))
                peer.connect(endpoint.removeprefix("ipc://"))
            scarce = cluster.wait_until(
                "it says that they run out", lambda: warned(cluster, process, "file descriptors run out")
            )
            assert scarce[0]["in_use"] > 0.8 * DESCRIPTORS
            assert client.get("Counter", "a").increment() == 2
        cluster.stop()
