"""Whose fault a worker's death is, for each way to die."""

from __future__ import annotations

import signal

import pytest

from perdure.exits import WorkerExit
from perdure_cli.blame import Ending, how_it_ended, judge, last_stack
from perdure_cli.events import Role
from perdure_worker.marks import Marked, Seen

TURN = Marked("Room", "enter", bytes(32))
OTHER = Marked("Room", "work", bytes(range(32)))
LOOP, THREAD = 0x7F00AA, 0x7F00BB
FAULT = """Fatal Python error: Segmentation fault

Thread 0x00007f00cc (most recent call first):
  File "/usr/lib/threading.py", line 331 in wait

Current thread 0x0000{thread:x} (most recent call first):
  File "/usr/lib/ctypes/__init__.py", line 519 in string_at
  File "/srv/app/rooms.py", line 7 in enter
  File "/site-packages/perdure_worker/execution.py", line 173 in _step
  File "/usr/lib/asyncio/runners.py", line 118 in run

Extension modules: zmq (total: 1)
"""
HELD = """Timeout (0:00:01.500000)!
Thread 0x00007f00cc (most recent call first):
  File "/usr/lib/threading.py", line 331 in wait

Thread 0x0000{thread:x} (most recent call first):
  File "/srv/app/rooms.py", line 9 in hold
"""
FOREIGN = "Fatal Python error: Aborted\n\nThread 0x00007f00aa (most recent call first):\n"


def seen(
    running: Marked | None = TURN,
    *,
    blocked: Marked | None = None,
    threads: dict[int, Marked] | None = None,
    stacks: str = "",
) -> Seen:
    return Seen(running, blocked, threads or {}, LOOP, stacks)


def blamed(
    code: int, left: Seen, *, silent_s: float = 0.1, killed: bool = False, ordered: bool = False
) -> Marked | None:
    return judge(Ending(code, silent_s, killed, ordered), left, silence_s=1.0)


@pytest.mark.parametrize(
    "number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE]
)
def test_a_fault_blames_the_turn_that_ran(number: signal.Signals) -> None:
    assert blamed(-number, seen()) == TURN
    assert blamed(-number, seen(stacks=FAULT.format(thread=LOOP))) == TURN
    assert blamed(-number, seen(None)) is None


def test_a_fault_in_another_thread_blames_what_ran_there_and_not_the_turn_beside_it() -> None:
    in_thread = FAULT.format(thread=THREAD)
    assert blamed(-signal.SIGSEGV, seen(stacks=in_thread, threads={THREAD: OTHER})) == OTHER
    assert blamed(-signal.SIGSEGV, seen(stacks=in_thread)) is None
    assert blamed(-signal.SIGABRT, seen(stacks=FOREIGN)) is None  # ZeroMQ's own thread, say


@pytest.mark.parametrize("code", [0, 1, 3, WorkerExit.SHARD_DAMAGED, 255])
def test_an_exit_in_the_middle_of_a_turn_blames_it_whatever_the_code(code: int) -> None:
    assert blamed(code, seen()) == TURN
    assert blamed(code, seen(None)) is None


def test_an_exit_while_only_a_thread_runs_a_method_blames_that() -> None:
    assert blamed(3, seen(None, threads={THREAD: OTHER})) == OTHER
    assert blamed(3, seen(None, threads={THREAD: OTHER, LOOP: TURN})) is None


def test_a_failed_write_and_an_ordered_stop_blame_nobody() -> None:
    assert blamed(WorkerExit.WRITE_FAILED, seen(blocked=TURN)) is None
    assert blamed(WorkerExit.NO_SPACE, seen(blocked=TURN)) is None
    assert blamed(-signal.SIGKILL, seen(blocked=TURN), killed=True, ordered=True) is None
    assert blamed(-signal.SIGSEGV, seen(), ordered=True) is None


def test_silence_blames_the_turn_that_was_seen_to_block() -> None:
    assert blamed(-signal.SIGKILL, seen(blocked=TURN), killed=True, silent_s=2.5) == TURN
    assert blamed(-signal.SIGKILL, seen(stacks=HELD.format(thread=LOOP)), killed=True, silent_s=2.5) == TURN


def test_silence_of_a_process_that_was_stopped_from_outside_blames_nobody() -> None:
    assert blamed(-signal.SIGKILL, seen(), killed=True, silent_s=2.5) is None
    assert blamed(-signal.SIGKILL, seen(blocked=OTHER), killed=True, silent_s=2.5) is None


def test_a_kill_from_outside_blames_only_a_turn_that_had_blocked_the_loop() -> None:
    assert blamed(-signal.SIGKILL, seen()) is None
    assert blamed(-signal.SIGKILL, seen(None, blocked=TURN)) is None
    assert blamed(-signal.SIGKILL, seen(blocked=TURN)) == TURN
    assert blamed(-signal.SIGKILL, seen(), silent_s=1.2) == TURN  # it held the interpreter's lock


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_other_signals_from_outside_blame_nobody(number: signal.Signals) -> None:
    assert blamed(-number, seen(blocked=TURN)) is None


def test_the_stack_of_the_thread_that_died_or_hung_is_told_without_our_own_frames() -> None:
    died = last_stack(seen(stacks=FAULT.format(thread=LOOP)))
    assert died == "__init__.py:519 string_at < rooms.py:7 enter"
    assert last_stack(seen(stacks=HELD.format(thread=LOOP))) == "rooms.py:9 hold"
    assert last_stack(seen(stacks="")) == ""
    assert last_stack(seen(stacks="rubbish")) == ""


def test_an_exit_with_0_is_an_ordered_stop_only_of_who_was_asked() -> None:
    assert WorkerExit.STOPPED.meaning in how_it_ended(Role.WORKER, 0, asked=True)
    assert "nobody asked it to stop" in how_it_ended(Role.WORKER, 0, asked=False)
    assert how_it_ended(Role.WORKER, 70, asked=False).endswith(WorkerExit.WRITE_FAILED.meaning)
