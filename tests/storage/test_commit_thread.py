"""Group commit with its thread, on a running loop and in a process that dies of a failed write."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import StorageError
from perdure.exits import WorkerExit
from perdure_storage.commit import Committer
from perdure_storage.engine import Engine
from perdure_storage.leveldb import LevelDBEngine
from perdure_storage.memory import MemoryEngine

KIB = 1024


class Waiting:
    """A committer on a running loop; `durable(group)` waits until that group was told."""

    def __init__(self, engine: Engine, **options: Any) -> None:
        loop = asyncio.get_running_loop()
        self.told: list[int] = []
        self.changed = asyncio.Event()
        self.threads: set[int] = set()
        self.committer = Committer(
            engine,
            notify=loop.call_soon_threadsafe,
            on_durable=self.on_durable,
            group_bytes_max=KIB,
            **options,
        )

    def on_durable(self, group: int) -> None:
        self.told.append(group)
        self.threads.add(threading.get_ident())
        self.changed.set()

    async def durable(self, group: int) -> None:
        while self.committer.durable < group:
            self.changed.clear()
            await self.changed.wait()


def test_groups_become_durable_in_order_through_the_thread(engine: Engine) -> None:
    async def main() -> None:
        waiting = Waiting(engine)
        committer = waiting.committer
        for number in range(300):
            committer.put(b"%d" % number, b"x" * (number % 50))
            committer.flush()
            if number % 50 == 0:
                await waiting.durable(committer.durable + 1)
        last = committer.group if committer.dirty else committer.group - 1
        await waiting.durable(last)
        assert waiting.told == list(range(1, last + 1))
        assert waiting.threads == {threading.get_ident()}
        assert committer.uncommitted_bytes == 0
        assert [engine.get(b"%d" % number) for number in range(300)] == [b"x" * (n % 50) for n in range(300)]
        committer.close()

    asyncio.run(main())


def test_close_makes_everything_durable_tells_of_it_and_refuses_later_writes(tmp_path: Path) -> None:
    async def main() -> None:
        complaints: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        waiting = Waiting(LevelDBEngine(tmp_path / "db", create=True))
        committer = waiting.committer
        for number in range(100):
            committer.put(b"%d" % number, bytes(100))
            committer.flush()
        expected = committer.group if committer.dirty else committer.group - 1
        committer.close()
        assert committer.durable == expected
        assert waiting.told == list(range(1, expected + 1))
        assert all(thread.name != "perdure-commit" for thread in threading.enumerate())
        with pytest.raises(StorageError, match="closed"):
            committer.put(b"late", b"1")
        with pytest.raises(StorageError, match="closed"):
            committer.delete(b"late")
        committer.close()
        # The thread's own notices, which may still be queued in the loop, tell nothing twice.
        done = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        await done
        assert waiting.told == list(range(1, expected + 1))
        assert complaints == []

    asyncio.run(main())
    engine = LevelDBEngine(tmp_path / "db")
    assert all(engine.get(b"%d" % number) == bytes(100) for number in range(100))
    engine.close()


def test_the_loop_runs_on_while_the_thread_waits_for_the_disk() -> None:
    disk_may_go_on = threading.Event()

    async def main() -> None:
        waiting = Waiting(MemoryEngine(faults=lambda: assert_true(disk_may_go_on.wait(10))))
        committer = waiting.committer
        committer.put(b"a", b"1")
        committer.flush()
        for _ in range(10):
            committer.put(b"b", b"1")
            committer.flush()
        assert (committer.group, waiting.told) == (2, [])
        disk_may_go_on.set()
        await waiting.durable(2)
        committer.close()

    asyncio.run(main())


def assert_true(value: bool) -> None:
    assert value


def test_a_failed_write_in_the_thread_is_reported_and_never_acknowledged() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        failed = loop.create_future()

        def on_failure(error: BaseException) -> None:
            loop.call_soon_threadsafe(failed.set_result, error)

        def faults() -> None:
            raise OSError(28, "No space left on device")

        engine = MemoryEngine(faults=faults)
        waiting = Waiting(engine, on_failure=on_failure)
        waiting.committer.put(b"a", b"1")
        waiting.committer.flush()
        waiting.committer.put(b"b", b"1")
        assert isinstance(await failed, OSError)
        waiting.committer.flush()
        waiting.committer.close()
        assert (waiting.told, waiting.committer.durable, len(engine.disk)) == ([], 0, 0)

    asyncio.run(main())


DYING_PROCESS = """
import atexit, asyncio, os, sys
from perdure_storage.commit import Committer
from perdure_storage.memory import MemoryEngine

def faults():
    raise OSError(int(sys.argv[1]), os.strerror(int(sys.argv[1])))

async def main():
    atexit.register(print, "exit handlers ran", flush=True)
    committer = Committer(
        MemoryEngine(faults=faults),
        notify=asyncio.get_running_loop().call_soon_threadsafe,
        on_durable=lambda group: print("acknowledged", flush=True),
        group_bytes_max=1024,
    )
    committer.put(b"a", b"1")
    committer.flush()
    await asyncio.Event().wait()

asyncio.run(main())
"""


def run_dying_process(number: int = errno.EIO, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", DYING_PROCESS, str(number)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=30,
        check=False,
        stdout=subprocess.PIPE,
        **options,
    )


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EIO, WorkerExit.WRITE_FAILED), (errno.ENOSPC, WorkerExit.NO_SPACE)]
)
def test_a_failed_write_ends_the_process_at_once_with_one_line_and_an_exit_code_that_says_why(
    number: int, code: WorkerExit
) -> None:
    process = run_dying_process(number, stderr=subprocess.PIPE)
    assert process.returncode == code
    assert process.stdout == b""
    line = f"perdure: commit failed, the process ends: OSError: [Errno {number}] {os.strerror(number)}\n"
    assert process.stderr == line.encode()


def test_a_dying_process_does_not_wait_for_a_reader_of_its_stderr() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    try:
        assert run_dying_process(stderr=writer).returncode == WorkerExit.WRITE_FAILED
    finally:
        os.close(reader)
        os.close(writer)
