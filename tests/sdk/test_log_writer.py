"""Log lines that nobody reads: whoever logs goes on, memory is bounded, and what was dropped is counted."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.log_writer import LogWriter, line_writer

PATIENCE_S = 10.0
SDK = Path(__file__).resolve().parents[2] / "sdk"


class Reader:
    """Whoever reads the lines, one when the test allows it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.may_read = threading.Semaphore(0)
        self.stuck = threading.Event()
        self.error: Exception | None = None

    def take(self, line: str) -> None:
        self.stuck.set()
        assert self.may_read.acquire(timeout=PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.lines.append(line)

    def read(self, count: int = 1_000) -> None:
        self.may_read.release(count)


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.read()  # so that no thread is left behind


def writer_to(reader: Reader, queue_bytes_max: int = 100) -> LogWriter:
    return LogWriter(reader.take, queue_bytes_max, lambda count: f"dropped {count}")


def test_lines_are_written_in_order(reader: Reader) -> None:
    writer = writer_to(reader)
    for number in range(5):
        writer.add(str(number))
    reader.read()
    assert writer.flush(PATIENCE_S)
    assert reader.lines == ["0", "1", "2", "3", "4"]
    writer.close()


def test_nobody_waits_for_a_reader_that_is_stuck_and_dropped_lines_are_counted(reader: Reader) -> None:
    writer = writer_to(reader, queue_bytes_max=100)
    writer.add("x")
    assert reader.stuck.wait(PATIENCE_S)
    for number in range(10_000):
        writer.add(f"{number:010}")
    assert writer.dropped == 9_990
    assert not writer.flush(0.01)
    reader.read()
    assert writer.flush(PATIENCE_S)
    kept = [f"{number:010}" for number in range(10)]
    # It says so as soon as there is room again.
    assert [line for line in reader.lines if not line.startswith("dropped")] == ["x", *kept]
    assert [line for line in reader.lines if line.startswith("dropped")] == ["dropped 9990"]
    assert writer.dropped == 0
    writer.close()


def test_an_urgent_line_is_taken_by_a_full_queue(reader: Reader) -> None:
    writer = writer_to(reader, queue_bytes_max=10)
    writer.add("x")
    assert reader.stuck.wait(PATIENCE_S)
    writer.add("0123456789")
    writer.add("lost")
    writer.add("the last words", urgent=True)
    reader.read()
    assert writer.flush(PATIENCE_S)
    assert reader.lines == ["x", "0123456789", "dropped 1", "the last words"]
    writer.close()


def test_a_reader_that_is_gone_costs_lines_and_nothing_else(reader: Reader) -> None:
    writer = writer_to(reader)
    reader.error = BrokenPipeError()
    writer.add("one")
    writer.add("two")
    reader.read(2)
    assert writer.flush(PATIENCE_S)
    assert writer.dropped == 2
    reader.error = None
    for line in ("three", "four"):
        writer.add(line)
    reader.read()
    assert writer.flush(PATIENCE_S)
    assert reader.lines == ["three", "dropped 2", "four"]
    writer.close()


def test_who_is_idle_is_asked_what_else_there_is_to_say(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.log_writer._LOOK_S", 0.01)
    said = threading.Event()

    def say_once() -> list[str]:
        if said.is_set():
            return []
        said.set()
        return ["by the way"]

    writer = LogWriter(reader.take, 100, lambda count: f"dropped {count}", say_once)
    reader.read()
    assert said.wait(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while not reader.lines:
        assert time.monotonic() < deadline
        writer.flush(0.01)
    assert reader.lines == ["by the way"]
    writer.close()


def test_after_its_end_what_waits_is_written_and_no_more(reader: Reader) -> None:
    writer = writer_to(reader)
    writer.add("in time")
    writer.close()
    writer.add("late")
    reader.read()
    writer._thread.join(PATIENCE_S)
    assert not writer._thread.is_alive()
    assert reader.lines == ["in time"]


def test_a_stream_without_a_descriptor_is_written_to_as_such() -> None:
    stream = io.StringIO()
    line_writer(stream)("a line")
    assert stream.getvalue() == "a line\n"


def test_a_line_is_one_write_whatever_is_in_it(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        line_writer(stream)("caf\u00e9 \udc80")
    assert (tmp_path / "log").read_bytes() == b"caf\xc3\xa9 \\udc80\n"


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    capacity = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4_096)
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "w") as stream:
        line = "x" * (3 * capacity)
        thread = threading.Thread(target=line_writer(stream), args=(line,))
        thread.start()
        assert source.read(len(line) + 1).decode() == line + "\n"
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


PROCESS = """
import logging, sys
from perdure import logs
logs.setup("worker-0", log_json=False)
for number in range(40):
    logging.getLogger().warning("%s %s", number, "x" * 4000)
logging.getLogger().critical("the last words")
"""


def run_process(code: str, stderr: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(SDK)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=stderr)


def test_a_process_whose_log_nobody_reads_ends_all_the_same() -> None:
    reading, writing = os.pipe()
    process = run_process(PROCESS, writing)
    os.close(writing)
    assert process.wait(PATIENCE_S) == 0
    os.close(reading)


def test_the_last_words_of_a_process_are_written_before_it_ends_at_once(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        process = run_process(PROCESS + "import os; os._exit(3)", log.fileno())
        assert process.wait(PATIENCE_S) == 3
    assert "the last words" in (tmp_path / "log").read_text().splitlines()[-1]


def test_at_an_orderly_exit_all_lines_are_written(tmp_path: Path) -> None:
    code = PROCESS.replace("critical", "warning")
    with (tmp_path / "log").open("wb") as log:
        assert run_process(code, log.fileno()).wait(PATIENCE_S) == 0
    assert len((tmp_path / "log").read_text().splitlines()) == 41
