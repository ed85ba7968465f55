"""Who is told of a fork: whoever is still there, in the child, before anything else runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SDK = Path(__file__).resolve().parents[2] / "sdk"

SCRIPT = """
import gc, os
from perdure.forks import watch

class One:
    def __init__(self):
        self.forks = 0
    def on_fork(self):
        self.forks += 1

kept = [One() for _ in range(3)]
for one in kept:
    watch(one)
    watch(one)
gone = One()
watch(gone)
seen = []
gone.on_fork = lambda: seen.append("gone")
del gone
gc.collect()

def forked(check):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if check() else 1)
    return os.waitpid(pid, 0)[1] == 0

assert forked(lambda: [one.forks for one in kept] == [1, 1, 1] and not seen)
assert [one.forks for one in kept] == [0, 0, 0], "the parent is none"
assert forked(lambda: forked(lambda: [one.forks for one in kept] == [2, 2, 2])), "a child may fork as well"
"""


def test_whoever_is_still_there_is_told_in_the_child_and_only_there() -> None:
    # In a process of its own: one with threads of others must not be forked.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={"PYTHONPATH": str(SDK)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
