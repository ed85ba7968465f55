"""What disks, signals and hangs do to a real cluster: nothing that was acknowledged is ever lost."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure import Limits, NotExecuted, OutcomeUnknown, PerdureError, SyncClient

from .cluster import Cluster, running_cluster

pytestmark = pytest.mark.processes

ZOO = Path(__file__).with_name("zoo.py")
FSYNC_DELAY_S = 0.3


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(ZOO, tmp_path / "data", workers=1) as running:
        yield running


class Strace:
    """`strace` attached to a process, with a fault injected; attached when the constructor returns."""

    def __init__(self, pid: int, inject: str, log: Path) -> None:
        self._process = subprocess.Popen(
            [
                "strace",
                "-f",
                "-p",
                str(pid),
                "-e",
                "trace=fdatasync",
                "-e",
                f"inject={inject}",
                "-o",
                str(log),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        line = self._process.stderr.readline()
        assert "attached" in line, line

    def end(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=10)


@contextlib.contextmanager
def injected(pid: int, inject: str, log: Path) -> Iterator[None]:
    strace = Strace(pid, inject, log)
    try:
        yield
    finally:
        strace.end()


class Writer:
    """Increments one counter from a thread until told to stop; what it was told is remembered."""

    def __init__(self, client: SyncClient, name: str) -> None:
        self.acknowledged = 0
        self.unknown = 0
        self.refused = 0
        self.name = name
        self._stub = client.get("Counter", name, timeout=5.0)
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._stub.increment()
                self.acknowledged += 1
            except OutcomeUnknown:
                self.unknown += 1
            except NotExecuted:
                self.refused += 1

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "a call hangs"

    def check(self, value: int) -> None:
        assert self.acknowledged <= value <= self.acknowledged + self.unknown


@contextlib.contextmanager
def writers(client: SyncClient, count: int, prefix: str = "w") -> Iterator[list[Writer]]:
    running = [Writer(client, f"{prefix}{number}") for number in range(count)]
    try:
        yield running
    finally:
        for writer in running:
            writer.stop()


def read(call: Callable[[], Any]) -> Any:
    """A read, again when its worker was killed while it had it."""
    while True:
        with contextlib.suppress(OutcomeUnknown):
            return call()


def check_all(client: SyncClient, running: list[Writer]) -> None:
    for number, writer in enumerate(running):
        writer.check(client.get("Counter", f"w{number}").get())


def wait_for_acknowledged(cluster: Cluster, running: list[Writer], more: int = 50) -> None:
    goal = [writer.acknowledged + more for writer in running]
    cluster.wait_until(
        "every writer goes on",
        lambda: all(writer.acknowledged >= least for writer, least in zip(running, goal, strict=True)),
    )


def test_a_reply_does_not_leave_before_fdatasync_returns(cluster: Cluster, tmp_path: Path) -> None:
    with cluster.connect() as client:
        client.get("Counter", "a").increment()
        client.get("Counter", "clean").increment()
        delay = f"fdatasync:delay_enter={int(FSYNC_DELAY_S * 1e6)}"
        with injected(cluster.worker_pids[0], delay, tmp_path / "strace"):
            began = time.monotonic()
            assert client.get("Counter", "a").increment() == 2
            assert time.monotonic() - began >= FSYNC_DELAY_S


def test_a_read_of_a_clean_object_does_not_wait_for_the_commits_of_others(
    cluster: Cluster, tmp_path: Path
) -> None:
    with cluster.connect() as client, cluster.connect() as other:
        client.get("Counter", "clean").increment()
        delay = f"fdatasync:delay_enter={int(FSYNC_DELAY_S * 1e6)}"
        with injected(cluster.worker_pids[0], delay, tmp_path / "strace"):
            answered: list[float] = []
            thread = threading.Thread(
                target=lambda: (client.get("Counter", "dirty").increment(), answered.append(time.monotonic()))
            )
            thread.start()
            cluster.wait_until("the write waits for the disk", lambda: other_waits(other))
            began = time.monotonic()
            assert other.get("Counter", "clean").get() == 1
            clean_read = time.monotonic()
            # The same worker's dirty object: a read of what is not durable yet waits for the disk.
            assert other.get("Counter", "dirty").get() == 1
            dirty_read = time.monotonic()
            thread.join(10)
    assert clean_read < answered[0]
    assert clean_read - began < FSYNC_DELAY_S
    assert dirty_read >= answered[0] - 0.05


def other_waits(client: SyncClient) -> bool:
    (figures,) = client.stats()
    return bool(figures["waiting_outputs"])


def test_eio_of_fdatasync_stops_the_worker_and_loses_nothing_acknowledged(
    cluster: Cluster, tmp_path: Path
) -> None:
    with cluster.connect(retry=False) as client, writers(client, 4) as running:
        wait_for_acknowledged(cluster, running)
        before = cluster.worker_pids[0]
        with injected(before, "fdatasync:error=EIO", tmp_path / "strace"):
            cluster.wait_until("the worker is replaced", lambda: cluster.worker_pids[0] != before)
        wait_for_acknowledged(cluster, running)
    assert any(writer.unknown for writer in running)
    assert '"exit code 70"' in cluster.log_text() or "70" in cluster.log_text()
    with cluster.connect() as client:
        check_all(client, running)


def test_a_full_disk_stops_the_worker_and_loses_nothing_acknowledged(cluster: Cluster) -> None:
    with cluster.connect() as client, writers(client, 4) as running:
        for round_ in range(3):
            wait_for_acknowledged(cluster, running)
            pid = cluster.worker_pids[0]
            size = max(path.stat().st_size for path in cluster.data.glob("shard-*/*.log"))
            # From here on the log cannot grow by more than a few records: a write comes back short.
            limit = size + 100 * (round_ + 1)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            cluster.wait_until("the worker is replaced", lambda pid=pid: cluster.worker_pids[0] != pid)
        wait_for_acknowledged(cluster, running)
    with cluster.connect() as client:
        check_all(client, running)
    cluster.stop()
    cluster.start()
    with cluster.connect() as client:
        check_all(client, running)


def test_a_stopped_worker_is_replaced_within_five_seconds(tmp_path: Path) -> None:
    with running_cluster(ZOO, tmp_path / "data", workers=2) as cluster, cluster.connect() as client:
        counters = [client.get("Counter", f"c{number}", timeout=10) for number in range(20)]
        for counter in counters:
            counter.increment()
        victim = cluster.worker_pids[0]
        began = time.monotonic()
        cluster.kill(victim, signal.SIGSTOP)
        cluster.wait_until("the worker is replaced", lambda: cluster.worker_pids[0] != victim)
        for counter in counters:
            assert counter.increment() == 2
        assert time.monotonic() - began < 5.0
        assert not Path(f"/proc/{victim}").exists(), "the stopped process can never wake again"
        assert all(counter.get() == 2 for counter in counters)


def test_killing_a_worker_gives_every_caller_an_answer_or_a_typed_error_and_others_go_on(
    tmp_path: Path,
) -> None:
    with running_cluster(ZOO, tmp_path / "data", workers=2) as cluster, cluster.connect() as client:
        with writers(client, 8) as running:
            wait_for_acknowledged(cluster, running, 20)
            slot_map = client.slot_map
            assert slot_map is not None
            owner = [
                slot_map.worker_of(client.id_from_name("Counter", f"w{number}").key) for number in range(8)
            ]
            for _ in range(4):
                cluster.kill(cluster.worker_pids[0])
                wait_for_acknowledged(cluster, running, 20)
        untouched = [writer for writer, worker in zip(running, owner, strict=True) if worker == 1]
        assert untouched
        assert not any(writer.unknown or writer.refused for writer in untouched)
        check_all(client, running)


def test_writes_of_one_turn_commit_together_or_not_at_all_when_killed_at_any_instant(tmp_path: Path) -> None:
    with running_cluster(ZOO, tmp_path / "data", workers=1) as cluster, cluster.connect() as client:
        names = [f"t{number}" for number in range(4)]
        stop = threading.Event()

        def run(name: str) -> None:
            stub = client.get("Twins", name, timeout=5)
            while not stop.is_set():
                with contextlib.suppress(PerdureError):
                    stub.step(b"x" * 20_000)

        threads = [threading.Thread(target=run, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        try:
            for _ in range(5):
                first = client.get("Twins", "t0", timeout=10)
                turns = read(first.both)[0] + 5
                cluster.wait_until(
                    "turns go on", lambda first=first, turns=turns: read(first.both)[0] > turns
                )
                cluster.kill(cluster.worker_pids[0])
                for name in names:
                    left, right = read(client.get("Twins", name, timeout=10).both)
                    assert left == right
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)


def test_the_supervisors_death_takes_its_children_down_and_the_next_one_finds_everything(
    cluster: Cluster,
) -> None:
    with cluster.connect() as client:
        client.get("Counter", "a").increment()
    children = cluster.children()
    cluster.kill(cluster.supervisor.pid)
    for child in children:
        cluster.wait_until(
            f"{child.role} is gone", lambda pid=child.pid: not Path(f"/proc/{pid}").exists(), 5
        )
    cluster.start()
    with cluster.connect() as client:
        assert client.get("Counter", "a").get() == 1


def test_a_stopped_supervisor_disturbs_no_call_and_kills_nobody_when_it_goes_on(tmp_path: Path) -> None:
    with running_cluster(ZOO, tmp_path / "data", workers=2) as cluster, cluster.connect() as client:
        before = cluster.children()
        with (
            cluster.connect(direct=False) as through_router,
            writers(client, 2, "direct") as direct,
            writers(through_router, 2, "routed") as routed,
        ):
            cluster.kill(cluster.supervisor.pid, signal.SIGSTOP)
            try:
                stopped_at = time.monotonic()
                # Longer than a heartbeat may be missing.
                while time.monotonic() - stopped_at < Limits().heartbeat_lost_s + 0.5:
                    wait_for_acknowledged(cluster, [*direct, *routed], 20)
            finally:
                cluster.kill(cluster.supervisor.pid, signal.SIGCONT)
            wait_for_acknowledged(cluster, [*direct, *routed], 20)
        assert not any(writer.unknown or writer.refused for writer in [*direct, *routed])
        # It is at work again: what dies now is replaced, and nobody else was.
        victim = cluster.worker_pids[0]
        cluster.kill(victim)
        cluster.wait_until("the worker is replaced", lambda: cluster.worker_pids[0] != victim)
        successor = cluster.worker_pids[0]
        kept = [child for child in before if child.pid != victim]
        assert [child for child in cluster.children() if child.pid != successor] == kept


def test_a_stopped_router_is_replaced_and_calls_through_it_end_right(cluster: Cluster) -> None:
    with cluster.connect() as client, cluster.connect(direct=False) as through_router:
        with writers(client, 2, "direct") as direct, writers(through_router, 2, "routed") as routed:
            wait_for_acknowledged(cluster, [*direct, *routed])
            stopped = cluster.router_pid
            cluster.kill(stopped, signal.SIGSTOP)
            # Direct ones do not notice, also while the router stands still.
            wait_for_acknowledged(cluster, direct)
            assert cluster.router_pid == stopped
            cluster.wait_until("the router is replaced", lambda: cluster.router_pid != stopped)
            wait_for_acknowledged(cluster, [*direct, *routed])
            assert not Path(f"/proc/{stopped}").exists(), "the stopped process can never wake again"
        assert not any(writer.unknown or writer.refused for writer in direct)
        for writer in [*direct, *routed]:
            writer.check(client.get("Counter", writer.name).get())
        assert not any("worker-0 is killed" in line["message"] for line in cluster.log())
