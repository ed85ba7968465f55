"""The load test on real clusters, and what it finds when their processes are killed under load."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from perdure import errors

from .cluster import DEADLINE_S, ROOT, Cluster, environment, running_cluster

pytestmark = pytest.mark.processes

SCRIPT = ROOT / "scripts" / "loadtest.py"
OBJECTS = ROOT / "benchmarks" / "load" / "objects.py"
LONGER_THAN_ANY_TEST_S = "60"
TIMEOUT_S = "3"
TYPED = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.NotExecuted | errors.OutcomeUnknown)
}
"""Kinds of errors that tell what became of a call."""

Result = dict[str, Any]


class Load:
    """A load test that runs beside the test."""

    def __init__(self, cluster: Cluster, *options: str) -> None:
        self.cluster = cluster
        self.process = subprocess.Popen(
            [
                *(sys.executable, str(SCRIPT), "--url", cluster.url, "--verify", "--json"),
                *("--objects", "200", "--seconds", LONGER_THAN_ANY_TEST_S, "--timeout", TIMEOUT_S, *options),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def wait_for_turns(self, count: int = 500) -> None:
        """Until every worker's present incarnation has run this many turns."""
        self.cluster.wait_until(
            f"each worker runs {count} turns",
            lambda: all(worker["turns"] >= count for worker in self.cluster.stats()),
        )

    def end(self) -> Result:
        """Ends the load early; gives the result of a load test that must succeed."""
        self.process.send_signal(signal.SIGINT)
        output, _ = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, output
        result: Result = json.loads(output)
        return result


@contextmanager
def load_on(cluster: Cluster, *options: str) -> Iterator[Load]:
    load = Load(cluster, *options)
    with load.process:
        try:
            load.wait_for_turns()
            yield load
        finally:
            if load.process.poll() is None:
                load.process.kill()


def loadtest(*options: str) -> subprocess.CompletedProcess[str]:
    """A load test from its start to its end."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=DEADLINE_S,
    )


def assert_nothing_acknowledged_was_lost(result: Result) -> None:
    assert (result["lost"], result["duplicated"]) == (0, 0)
    assert result["read_back"] == 200
    assert set(result["errors"]) <= TYPED


# --- without trouble


def test_a_private_cluster_under_load_loses_nothing_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run = loadtest("--self-hosted", "--workers", "2", "--verify", "--json", "--seconds", "1")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    result = json.loads(run.stdout)
    assert result["acked"] > 0
    assert (result["lost"], result["duplicated"], result["unknown"], result["errors"]) == (0, 0, 0, {})
    assert 0 < result["p50_ms"] <= result["p99_ms"] <= result["p999_ms"]
    assert result["calls_per_s"] == pytest.approx(result["acked"] / result["seconds"], rel=0.1)
    assert list(tmp_path.iterdir()) == []


def test_clients_share_out_the_calls_and_all_options_reach_the_objects(tmp_path: Path) -> None:
    with running_cluster(OBJECTS, tmp_path / "data") as cluster:
        load = ["--calls", "1001", "--clients", "2", "--read-share", "0.5", "--payload", "100", "--seed", "7"]
        spread = ["--distribution", "zipf", "--objects", "50"]
        run = loadtest("--url", cluster.url, "--no-direct", "--verify", *load, *spread)
        assert run.returncode == 0, run.stderr
        assert "acked        1,001 calls" in run.stdout
        assert "lost 0, duplicated 0, unknown 0 (50 objects read back)" in run.stdout
        with cluster.connect() as client:
            names = client.list("LoadCounter").names
            counts = {name: client.get("LoadCounter", name).get() for name in names}
        # Half of the calls wrote, most of them to the object of the first rank.
        assert 400 < sum(counts.values()) < 600
        first = next(count for name, count in counts.items() if name is not None and name.endswith("-0"))
        assert first == max(counts.values())
        cluster.stop()


def test_a_cluster_without_the_objects_is_told_which_application_to_start(tmp_path: Path) -> None:
    with running_cluster(ROOT / "examples" / "counter.py", tmp_path / "data", workers=1) as cluster:
        run = loadtest("--url", cluster.url, "--seconds", "1")
    assert run.returncode == 1
    assert run.stdout == ""
    assert "perdure run benchmarks/load/objects.py" in run.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--url", "ipc:///nowhere", "--self-hosted"),
        ("--url", "ipc:///nowhere", "--workers", "2"),
        ("--self-hosted", "--seconds", "1", "--calls", "1"),
        ("--self-hosted", "--read-share", "1.5"),
        ("--url", "ipc:///nowhere", "--chaos", "kill-worker"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: tuple[str, ...]) -> None:
    run = loadtest(*options)
    assert run.returncode == 2
    assert run.stdout == ""


# --- processes killed under load


@pytest.mark.parametrize("way", ["--direct", "--no-direct"])
def test_killed_workers_lose_no_acknowledged_write_and_their_successors_serve(
    tmp_path: Path, way: str
) -> None:
    with running_cluster(OBJECTS, tmp_path / "data") as cluster, load_on(cluster, way) as load:
        for index in (0, 1):
            cluster.kill(cluster.worker_pids[index])
            load.wait_for_turns()
        result = load.end()
        assert_nothing_acknowledged_was_lost(result)
        assert [child.epoch for child in cluster.children() if child.role == "worker"] == [2, 2]
        cluster.stop()


@pytest.mark.parametrize("way", ["--direct", "--no-direct"])
def test_workers_killed_all_the_time_lose_nothing_repeat_nothing_and_leave_no_doubt(way: str) -> None:
    chaos = ["--chaos", "kill-worker", "--chaos-interval", "300"]
    load = ["--objects", "20", "--concurrency", "64", "--seconds", "4", way]
    run = loadtest("--self-hosted", "--workers", "2", "--verify", "--json", *chaos, *load)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert (result["lost"], result["duplicated"], result["unknown"], result["errors"]) == (0, 0, 0, {})
    assert result["kills"] >= 3


def test_a_killed_router_is_not_noticed_by_clients_that_talk_to_the_workers(tmp_path: Path) -> None:
    with running_cluster(OBJECTS, tmp_path / "data") as cluster, load_on(cluster, "--direct") as load:
        cluster.kill(cluster.router_pid)
        with cluster.connect(direct=False) as client:  # waits for the successor
            client.get("LoadCounter", "another").get()
        result = load.end()
        assert_nothing_acknowledged_was_lost(result)
        assert result["errors"] == {}
        cluster.stop()


def test_a_killed_router_loses_no_acknowledged_write_of_the_clients_behind_it(tmp_path: Path) -> None:
    with running_cluster(OBJECTS, tmp_path / "data") as cluster, load_on(cluster, "--no-direct") as load:
        cluster.kill(cluster.router_pid)
        turns = [worker["turns"] for worker in cluster.stats()]
        load.wait_for_turns(max(turns) + 500)
        assert_nothing_acknowledged_was_lost(load.end())
        cluster.stop()


@pytest.mark.parametrize("way", ["--direct", "--no-direct"])
def test_a_cluster_killed_as_a_whole_comes_back_with_all_acknowledged_writes(
    tmp_path: Path, way: str
) -> None:
    with running_cluster(OBJECTS, tmp_path / "data") as cluster, load_on(cluster, way) as load:
        cluster.kill_all()
        cluster.start()
        load.wait_for_turns()
        assert_nothing_acknowledged_was_lost(load.end())
        cluster.stop()


# --- a verification that must fail

FAULTY_OBJECTS = """
from perdure import DurableObject, durable

class LoadCounter(DurableObject):
    writes: int = durable(0)
    told: int = durable(0)

    async def increment(self, by: int = 1) -> int:
        self.told += 1
        self.writes += {step}
        return self.{answer}

    async def get(self) -> int:
        return self.writes
"""


@pytest.mark.parametrize(
    ("step", "answer", "lost", "duplicated"),
    [
        # Each object takes 10 writes or so; what it keeps of them, and what it tells its callers.
        ("self.told != 3", "told", 20, 0),
        ("1 + (self.told == 3)", "writes", 0, 20),
        ("0", "writes", 400, 0),
    ],
)
def test_writes_that_are_lost_or_repeated_behind_the_callers_back_are_found(
    tmp_path: Path, step: str, answer: str, lost: int, duplicated: int
) -> None:
    app = tmp_path / "faulty.py"
    app.write_text(FAULTY_OBJECTS.format(step=step, answer=answer))
    with running_cluster(app, tmp_path / "data") as cluster:
        run = loadtest(
            "--url", cluster.url, "--calls", "400", "--objects", "20", "--seed", "1", "--verify", "--json"
        )
    assert run.returncode == 1
    result = json.loads(run.stdout)
    assert (result["lost"], result["duplicated"]) == (lost, duplicated)
    assert "verification failed" in run.stderr


def test_a_write_that_was_told_and_then_forgotten_is_found_among_writes_of_unknown_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.load.report import ClientReport
    from benchmarks.load.verify import judge

    def report(acked: list[int], unknown: list[int], seen: list[int]) -> ClientReport:
        return ClientReport(0, 0, 0.0, 0.0, {}, [], acked, unknown, seen)

    # Each of the three objects has 9 acknowledged writes and 2 unknown ones, and told 10 at least once.
    reports = [report([4, 4, 4], [2, 0, 1], [10, 8, 3]), report([5, 5, 5], [0, 2, 1], [2, 10, 10])]
    verdict = judge(reports, [11, 9, 14])
    assert (verdict.lost, verdict.duplicated, verdict.unknown) == (1, 3, 6)
    assert not verdict.is_good
    assert judge(reports, [10, 10, 11]).is_good


# --- figures


def test_latencies_are_exact_to_a_microsecond_below_a_second_and_above_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.load.latencies import Latencies, percentile_us

    latencies = Latencies()
    for us in [*range(1, 999), 1_500_000, 999_999]:
        latencies.record((us + 0.5) / 1e6)
    by_us = latencies.by_us()
    assert [percentile_us(by_us, share) for share in (0, 0.5, 0.99, 0.999, 1)] == [
        *(1, 500, 990, 999_999, 1_500_000),
    ]
    assert percentile_us(Latencies().by_us(), 0.5) == 0
