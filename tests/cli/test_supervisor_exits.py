"""What the supervisor makes of a child's exit code: replaced, parked, or the end of the run."""

from __future__ import annotations

import os
import signal

import pytest

from perdure.exits import WorkerExit
from perdure.limits import Limits
from perdure_cli.errors import RunExit

from .cluster import DEADLINE_S, Cluster, is_alive, wait_for

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("code", [71, 72, 73])
def test_a_worker_whose_shard_cannot_be_served_is_parked_and_the_others_serve(
    cluster: Cluster, code: int
) -> None:
    cluster.order("worker-0", exit_before_ready=code)
    supervisor = cluster.start()
    parked = next(line for line in cluster.log() if "worker-0 is parked" in line["message"])
    assert parked["level"] == "error"
    assert parked["code"] == code
    os.kill(cluster.latest("worker-1")["pid"], signal.SIGKILL)
    cluster.wait_for_entry("ready", "worker-1", epoch=2)
    assert len(cluster.journal("started", "worker-0")) == 1
    assert cluster.stop(supervisor) == RunExit.OK


def test_a_worker_whose_store_cannot_be_opened_now_is_tried_again_and_not_parked(cluster: Cluster) -> None:
    cluster.order("worker-0", exit_before_ready=WorkerExit.STORE_UNAVAILABLE)
    cluster.start(wait=False)
    cluster.wait_for_entry("exit", "worker-0", epoch=3)
    cluster.order("worker-0")
    wait_for("the cluster is ready", cluster.is_ready)
    assert "parked" not in cluster.log_text()
    told = next(line["message"] for line in cluster.log() if "worker-0 ended" in line["message"])
    assert told == f"worker-0 ended: exit code 75: {WorkerExit.STORE_UNAVAILABLE.meaning}"


def test_a_worker_whose_disk_fails_again_and_again_is_parked(cluster: Cluster) -> None:
    cluster.order("worker-0", exit_at="broken", exit_code=WorkerExit.WRITE_FAILED)
    supervisor = cluster.start()
    cluster.allow("broken")
    wait_for("it is parked", lambda: "worker-0 is parked" in cluster.log_text())
    assert len(cluster.journal("started", "worker-0")) == Limits().write_failures_max
    assert "4 writes in a row have failed: check the disk" in cluster.log_text()
    assert cluster.stop(supervisor) == RunExit.OK


def test_a_worker_whose_disk_is_full_is_tried_again_and_not_parked(cluster: Cluster) -> None:
    cluster.order("worker-0", exit_at="full", exit_code=WorkerExit.NO_SPACE)
    cluster.start(timing={"restarts": {"backoff_s": [0.0, 0.1, 0.2, 0.4, 0.8]}})
    cluster.allow("full")
    cluster.wait_for_entry("exit", "worker-0", epoch=Limits().write_failures_max)
    cluster.order("worker-0")
    cluster.wait_for_entry("ready", "worker-0", epoch=Limits().write_failures_max + 1)
    assert "parked" not in cluster.log_text()


def test_a_process_that_a_signal_without_a_name_ended_is_replaced(cluster: Cluster) -> None:
    cluster.start()
    os.kill(cluster.latest("worker-0")["pid"], signal.SIGRTMIN + 1)
    cluster.wait_for_entry("ready", "worker-0", epoch=2)
    assert f"worker-0 ended: signal {signal.SIGRTMIN + 1}" in cluster.log_text()


def test_an_application_that_cannot_be_loaded_ends_the_run(cluster: Cluster) -> None:
    cluster.order("worker-1", exit_before_ready=78)
    assert cluster.start(wait=False).wait(DEADLINE_S) == RunExit.APPLICATION
    loud = [line for line in cluster.log() if line["level"] not in ("debug", "info")]
    assert loud == [], "the worker has said it, and better"
    assert not any(is_alive(entry["pid"]) for entry in cluster.journal("started"))


def test_an_application_that_cannot_be_loaded_any_more_parks_the_worker(cluster: Cluster) -> None:
    supervisor = cluster.start()
    cluster.order("worker-0", exit_before_ready=78)
    os.kill(cluster.latest("worker-0")["pid"], signal.SIGKILL)
    wait_for("the worker is parked", lambda: "worker-0 is parked" in cluster.log_text())
    assert supervisor.poll() is None
    assert is_alive(cluster.latest("worker-1")["pid"])
