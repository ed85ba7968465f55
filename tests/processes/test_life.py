"""Starting, stopping, restarting and resizing a real cluster."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from perdure import OutcomeUnknown, PerdureError, connect

from .cluster import Cluster, environment, running_cluster

pytestmark = pytest.mark.processes

ZOO = Path(__file__).with_name("zoo.py")


async def keep_calling(
    cluster: Cluster, *, direct: bool, stopped: asyncio.Event
) -> tuple[int, list[BaseException]]:
    """Calls of 50 callers until the cluster is gone: how many were answered, and all errors."""
    errors: list[BaseException] = []
    answered = 0

    async def caller(number: int) -> None:
        nonlocal answered
        stub = client.get("Counter", f"c{number}", timeout=2)
        while not stopped.is_set():
            try:
                await stub.increment()
                answered += 1
            except PerdureError as error:
                errors.append(error)

    async with connect(cluster.url, direct=direct) as client:
        await asyncio.gather(*(caller(number) for number in range(50)))
    return answered, errors


@pytest.mark.parametrize(
    ("direct", "number"),
    [
        (True, signal.SIGTERM),
        (False, signal.SIGTERM),
        (True, signal.SIGHUP),  # the terminal is gone
        (True, signal.SIGQUIT),
    ],
    ids=["direct", "through-the-router", "sighup", "sigquit"],
)
def test_sigterm_under_load_leaves_no_outcome_unknown_and_exits_with_zero(
    tmp_path: Path, direct: bool, number: signal.Signals
) -> None:
    with running_cluster(ZOO, tmp_path / "data") as cluster:

        async def story() -> tuple[int, list[BaseException]]:
            stopped = asyncio.Event()
            calls = asyncio.ensure_future(keep_calling(cluster, direct=direct, stopped=stopped))
            turns = 0
            while turns < 2_000:
                async with connect(cluster.url) as client:
                    turns = sum(figures["turns"] for figures in await client.stats())
            await asyncio.to_thread(cluster.stop, number)
            stopped.set()
            return await calls

        answered, errors = asyncio.run(story())
        assert answered > 0
        assert not [error for error in errors if isinstance(error, OutcomeUnknown)]
        cluster.start()
        with cluster.connect() as client:
            total = sum(client.get("Counter", f"c{number}").get() for number in range(50))
        assert total == answered


def port_for_servers() -> int:
    """A port that nobody listens at, out of the range that the kernel takes those of clients from."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(15_000, 30_000)))
            return int(probe.getsockname()[1])


def test_after_a_full_restart_all_acknowledged_state_is_there_and_endpoints_are_reusable(
    tmp_path: Path,
) -> None:
    options = ["--bind", f"tcp://127.0.0.1:{port_for_servers()}"]
    with running_cluster(ZOO, tmp_path / "data", options=options) as cluster:
        with cluster.connect() as client:
            for number in range(100):
                client.get("Counter", f"c{number}").increment(number)
        for kill in (cluster.stop, cluster.kill_all):
            url = cluster.url
            kill()
            cluster.start()
            assert cluster.url == url
            with cluster.connect() as client:
                assert [client.get("Counter", f"c{number}").get() for number in range(100)] == list(
                    range(100)
                )


def test_a_second_supervisor_refuses_to_start_and_says_who_holds_the_directory(tmp_path: Path) -> None:
    with running_cluster(ZOO, tmp_path / "data", workers=1) as cluster:
        second = subprocess.run(
            [sys.executable, "-m", "perdure_cli", "run", str(ZOO), "--data", str(cluster.data)],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=30,
            check=False,
        )
        assert second.returncode not in (0, None)
        assert str(cluster.supervisor.pid) in second.stderr
        with cluster.connect() as client:
            assert client.get("Counter", "a").increment() == 1


def test_every_object_is_found_after_the_number_of_workers_changed(tmp_path: Path) -> None:
    names = [f"c{number}" for number in range(200)]
    with running_cluster(ZOO, tmp_path / "data", workers=2) as cluster:
        with cluster.connect() as client:
            for number, name in enumerate(names):
                client.get("Counter", name).increment(number + 1)
                client.get("Twins", name).step()
        for workers in (3, 1, 4):
            cluster.stop()
            cluster.workers = workers
            cluster.start()
            assert len(cluster.worker_pids) == workers
            with cluster.connect() as client:
                assert [client.get("Counter", name).get() for name in names] == list(range(1, 201))
                assert {client.get("Twins", name).both() for name in names} == {(1, 1)}
                assert sorted(client.list("Counter").names) == sorted(names)


def test_the_first_call_succeeds_within_two_seconds_of_perdure_run(tmp_path: Path) -> None:
    began = time.monotonic()
    with running_cluster(ZOO, tmp_path / "data", workers=2) as cluster, cluster.connect() as client:
        assert client.get("Counter", "a").increment() == 1
        # The promise is 2 s on a quiet machine; ten times that still tells a hang from a start.
        assert time.monotonic() - began < 20


def test_an_idle_object_leaves_memory_and_only_durable_attributes_come_back(tmp_path: Path) -> None:
    options = ["--idle-evict", "0.2"]
    with (
        running_cluster(ZOO, tmp_path / "data", workers=1, options=options) as cluster,
        cluster.connect() as client,
    ):
        odd = client.get("Odd", "o")
        assert odd.remember(7) == (0, 0)
        assert odd.remember(8) == (7, 7)
        cluster.wait_until("the object leaves memory", lambda: client.stats()[0]["live"] == 0)
        assert odd.remember(9) == (0, 8)


def test_a_listing_names_objects_of_all_workers_page_by_page(tmp_path: Path) -> None:
    with running_cluster(ZOO, tmp_path / "data", workers=2) as cluster, cluster.connect() as client:
        names = [f"n{number:03}" for number in range(25)]
        for name in names:
            client.get("Odd", name).remember(1)
        client.get("Odd", "other").remember(1)
        client.get("Odd", "reader").nap(0)
        pages, cursor = [], None
        while True:
            page = client.list("Odd", prefix="n", limit=10, cursor=cursor)
            pages.append(page.names)
            cursor = page.cursor
            if cursor is None:
                break
        assert [name for page in pages for name in page] == names
        assert max(len(page) for page in pages) == 10
        first = client.list("Odd", prefix="n", limit=1).entries[0]
        assert (first.name, first.live, first.next_alarm) == ("n000", True, None)
        assert 100 < first.size_bytes < 1_000
        assert "reader" not in client.list("Odd").names, "a call that writes nothing creates nothing"
        client.get("Odd", "n007").forget()
        assert "n007" not in client.list("Odd").names


def test_a_users_own_worker_router_and_storage_modules_are_theirs(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    for name in ("worker", "router", "storage", "client", "perdure_app"):
        (app / f"{name}.py").write_text(f"NAME = 'the user\\'s {name}'\n")
    (app / "main.py").write_text(
        "import client, perdure_app, router, storage, worker\n"
        "from perdure import DurableObject\n"
        "class Namer(DurableObject):\n"
        "    async def names(self) -> list[str]:\n"
        "        return [module.NAME for module in (client, perdure_app, router, storage, worker)]\n"
    )
    with (
        running_cluster(app / "main.py", tmp_path / "data", workers=1) as cluster,
        cluster.connect() as client,
    ):
        names = ["client", "perdure_app", "router", "storage", "worker"]
        assert client.get("Namer", "n").names() == [f"the user's {name}" for name in names]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_module_of_mine", "no_such_module_of_mine"),
        ("def broken(:\n", "syntax error"),
        ("x = 1 / 0", "ZeroDivisionError"),
        ("x = 1", "no class that derives from perdure.DurableObject"),
        (
            "from perdure import DurableObject\nclass A(DurableObject):\n    async def id(self): ...\n",
            "choose another name",
        ),
    ],
    ids=["missing-import", "syntax", "raises", "no-class", "reserved-name"],
)
def test_an_application_that_cannot_be_loaded_ends_the_run_with_a_clear_error(
    tmp_path: Path, text: str, expected: str
) -> None:
    app = tmp_path / "app.py"
    app.write_text(text)
    run = run_to_its_end(app, tmp_path / "data")
    assert run.returncode == 1
    assert expected in run.stderr
    assert "Traceback" not in run.stderr


def test_a_missing_file_and_a_missing_module_are_named(tmp_path: Path) -> None:
    for app in (tmp_path / "gone.py", "no.such.module"):
        run = run_to_its_end(app, tmp_path / "data")
        assert run.returncode != 0
        assert str(app).split(".")[0] in run.stderr


def run_to_its_end(app: Path | str, data: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "perdure_cli", "run", str(app), "--data", str(data), "--workers", "2"),
            *("--http", "off"),
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=30,
        check=False,
    )


def test_raw_and_direct_clients_see_one_order_and_direct_ones_do_not_notice_a_killed_router(
    tmp_path: Path,
) -> None:
    sys.path.insert(0, str(ZOO.parents[2] / "examples"))
    try:
        from raw_zeromq import RawClient
    finally:
        sys.path.pop(0)
    with running_cluster(ZOO, tmp_path / "data") as cluster, cluster.connect() as client:
        raw = RawClient(cluster.url)
        counter = client.get("Counter", "shared")
        seen = [
            raw.call("Counter", "shared", "increment") if i % 2 else counter.increment() for i in range(20)
        ]
        assert seen == list(range(1, 21))
        before = cluster.router_pid
        cluster.kill(before)
        values = [counter.increment() for _ in range(50)]
        assert values == list(range(21, 71)), "direct calls go on without the router"
        cluster.wait_until("the router is back", lambda: cluster.router_pid != before)
        assert read_again(raw, cluster) == 70
        raw.close()


def read_again(raw: Any, cluster: Cluster) -> object:
    """The counter's value, asked for as docs/PROTOCOL.md has raw clients do it: until the router serves."""

    def ask() -> object:
        try:
            return raw.call("Counter", "shared", "get", timeout_s=0.2)
        except TimeoutError:
            return None
        except RuntimeError as error:
            if "ShardUnavailable" not in str(error):
                raise
            return None

    return cluster.wait_until("the router answers the raw client", ask)
