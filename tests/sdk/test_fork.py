"""Clients that were connected before a fork: the child learns at once that it has to connect itself."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .fake_cluster import PATIENCE_S, fake_cluster

SDK = Path(__file__).resolve().parents[2] / "sdk"

START = """
import asyncio, os, sys, threading, time
from perdure import connect, connect_sync

def refused(use):
    try:
        use()
    except RuntimeError as error:
        assert str(error) == "this client was connected before fork; connect in the child", error
    else:
        raise AssertionError("it was not refused")

def in_child(work, end=os._exit):
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        work()
        assert time.monotonic() - began < 3
        end(0)
    _, status = os.waitpid(pid, 0)
    assert status == 0, status

url = sys.argv[1]
"""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A cluster that answers each call with its arguments."""
    urls: list[str] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        async with fake_cluster(tmp_path, 2) as cluster:
            for door in cluster.doors:
                door.answer(lambda item: item.args)
            urls.append(cluster.url)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(PATIENCE_S)
        yield urls[0]
    finally:
        over.set()
        thread.join(PATIENCE_S)


def run(url: str, script: str) -> None:
    """In a process of its own: one with threads of others must not be forked."""
    done = subprocess.run(
        [sys.executable, "-c", START + textwrap.dedent(script), url],
        env={**os.environ, "PYTHONPATH": str(SDK)},
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("end", ["os._exit", "sys.exit"])
def test_in_a_forked_child_the_client_for_threads_is_refused_at_once_and_closes_at_once(
    url: str, end: str
) -> None:
    run(
        url,
        f"""
        with connect_sync(url) as client:
            stub = client.get("Counter", "a")
            assert stub.m(1) == [1]

            def work():
                refused(lambda: stub.m(2))
                refused(lambda: client.get("Counter", "b").m(2))
                refused(client.stats)
                refused(lambda: client.list("Counter"))
                client.close()
                client.close()
                refused(lambda: stub.m(2))

            in_child(work, {end})
            assert stub.m(3) == [3], "the parent goes on"
        """,
    )


def test_a_child_that_connects_itself_is_served(url: str) -> None:
    run(
        url,
        """
        with connect_sync(url) as client:
            assert client.get("Counter", "a").m(1) == [1]

            def work():
                with connect_sync(url) as own:
                    assert own.get("Counter", "a").m(2) == [2]

            in_child(work)
            assert client.get("Counter", "a").m(3) == [3]
        """,
    )


def test_a_fork_while_another_thread_hands_in_a_call_leaves_no_lock_taken(url: str) -> None:
    run(
        url,
        """
        with connect_sync(url) as client:
            def work():
                refused(lambda: client.get("Counter", "a").m(1))
                refused(client.stats)
                client.close()

            client._lock.acquire()
            try:
                in_child(work)
            finally:
                client._lock.release()
            assert client.get("Counter", "a").m(1) == [1]
        """,
    )


def test_in_a_forked_child_the_asyncio_client_is_refused_at_once_and_closes_at_once(url: str) -> None:
    run(
        url,
        """
        async def use(client, stub):
            refused(lambda: client.get("Counter", "a").m(2))
            refused(lambda: stub.m(2))
            refused(lambda: stub.m([2]))
            for ask in (client.stats, lambda: client.list("Counter")):
                try:
                    await ask()
                except RuntimeError as error:
                    assert "connect in the child" in str(error)
                else:
                    raise AssertionError("it was not refused")
            await client.close()
            refused(lambda: client.get("Counter", "a").m(2))

        def child(client, stub):
            asyncio.new_event_loop().run_until_complete(use(client, stub))

        async def main():
            async with connect(url) as client:
                stub = client.get("Counter", "a")
                assert await stub.m(1) == [1]
                waiting = stub.m(5)
                in_child(lambda: child(client, stub))
                assert await waiting == [5]
                assert await client.get("Counter", "a").m(3) == [3]

        asyncio.run(main())
        """,
    )
