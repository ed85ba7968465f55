"""Alarms in real processes: kill -9 inside a handler, a cluster that was down, ten thousand at once."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any

import pytest

from perdure import Client, connect

from .cluster import Cluster, running_cluster

pytestmark = pytest.mark.processes

APP = Path(__file__).with_name("alarm_app.py")
REMINDERS = Path(__file__).resolve().parents[2] / "examples" / "reminders.py"
AT_ONCE = 10_000
ALL_RUN_S = 20.0
"""For all of them; alone on the machine it takes two to three seconds."""


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_kill_9_inside_a_handler_runs_it_again_and_counts_as_no_failure(tmp_path: Path) -> None:
    path, hold = tmp_path / "runs", tmp_path / "runs.hold"
    hold.touch()
    with running_cluster(APP, tmp_path / "data", workers=1) as cluster, cluster.connect() as client:
        witness = client.get("Witness", "ada")
        witness.arm(str(path), time.time())
        cluster.wait_until("the handler runs", lambda: lines(path))
        cluster.kill(cluster.worker_pids[0])
        hold.unlink()
        cluster.wait_until("the handler runs again", lambda: len(lines(path)) == 2)
        assert witness.count() == 1
        first, second = lines(path)
        assert first[:4] == second[:4] == ["ada", "bell", "1", "False"]
        assert first[4] != second[4]


def test_an_alarm_that_was_due_while_nothing_ran_runs_at_the_start_and_knows_its_objects_name(
    tmp_path: Path,
) -> None:
    path = tmp_path / "runs"
    cluster = Cluster(APP, tmp_path / "data", workers=2)
    try:
        cluster.start()
        due = time.time() + 1.0
        with cluster.connect() as client:
            client.get("Witness", "ada").arm(str(path), due)
            client.get("Witness", "eve").arm(str(path), due + 3_600)
        cluster.kill_all()
        cluster.wait_until("its time has passed", lambda: time.time() > due)
        ran_before = lines(path)  # on a slow machine the kill comes too late
        cluster.start()
        cluster.wait_until("the alarm runs", lambda: lines(path))
        (line,) = lines(path)
        assert line[:4] == ["ada", "bell", "1", "False"]
        assert not ran_before
        cluster.stop()
    finally:
        cluster.close()


async def armed_at_once(client: Client) -> tuple[list[Any], float]:
    """Objects whose alarms are due at one time, which has not come yet."""
    for attempt in itertools.count():
        ticks = [client.get("Tick", f"{attempt}-{number}") for number in range(AT_ONCE)]
        began = time.monotonic()
        await asyncio.gather(*(tick.arm(time.time() + 3_600) for tick in ticks[:1_000]))
        due = time.time() + 0.5 + 1.5 * AT_ONCE / 1_000 * (time.monotonic() - began)
        for start in range(0, AT_ONCE, 1_000):
            await asyncio.gather(*(tick.arm(due) for tick in ticks[start : start + 1_000]))
        if time.time() < due:  # else the machine got slower meanwhile
            break
    return ticks, due


@pytest.mark.alone
def test_ten_thousand_alarms_at_once_all_run_once_while_a_caller_is_served(tmp_path: Path) -> None:
    async def story(cluster: Cluster) -> tuple[list[float], int, float]:
        pauses: list[float] = []
        async with connect(cluster.url, timeout=ALL_RUN_S) as client:
            ticks, due = await armed_at_once(client)
            bystander = client.get("Bystander", "b")
            late = True
            while late and time.time() < due + ALL_RUN_S:
                began = time.monotonic()
                await bystander.ping()
                if time.time() > due:
                    pauses.append(time.monotonic() - began)
                    if len(pauses) % 20 == 0:
                        figures = await client.stats()
                        late = any(each["due_rows_known"] or each["alarms_running"] for each in figures)
            took = time.time() - due
            runs = 0
            for start in range(0, AT_ONCE, 1_000):
                counts = await asyncio.gather(*(tick.count() for tick in ticks[start : start + 1_000]))
                assert set(counts) == {1}
                runs += sum(counts)
        return pauses, runs, took

    with running_cluster(APP, tmp_path / "data") as cluster:
        pauses, runs, took = asyncio.run(story(cluster))
    assert runs == AT_ONCE
    assert took < ALL_RUN_S
    # A call waits for some alarms of its worker, never for all of them.
    assert sorted(pauses)[len(pauses) // 2] < 0.25
    assert max(pauses) < 2.0
    print(f"all in {took:.2f} s, {len(pauses)} calls beside, the slowest {max(pauses):.3f} s")


def test_the_reminder_service_delivers_each_reminder_once_also_when_workers_are_killed(
    tmp_path: Path,
) -> None:
    with running_cluster(REMINDERS, tmp_path / "data") as cluster, cluster.connect() as client:
        people = [f"person {number}" for number in range(10)]
        for person in people:
            reminders = client.get("Reminders", person)
            for number in range(20):
                reminders.remind(f"reminder {number:02}", in_seconds=0.02 * number)
            cancelled = reminders.remind("never", in_seconds=3_600)
            assert [pending["text"] for pending in reminders.pending()][-1] == "never"
            assert reminders.cancel(cancelled)
            if person in people[3::3]:
                cluster.kill(cluster.worker_pids[0])
        for person in people:
            inbox = client.get("Inbox", person)
            messages = cluster.wait_until("all are delivered", lambda inbox=inbox: _complete(inbox.read()))
            assert sorted(messages) == [f"reminder {number:02}" for number in range(20)]
            assert client.get("Reminders", person).pending() == []


def _complete(messages: list[str]) -> list[str]:
    return messages if len(messages) >= 20 else []
