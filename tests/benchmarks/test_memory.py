"""Reading a process's memory and waiting until it stands still."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.memory import SETTLED_BYTES, SETTLED_SAMPLES, resident_bytes, settled

STATUS = """Name:\tpython3
VmPeak:\t  999999 kB
VmRSS:\t   40000 kB
RssAnon:\t   30000 kB
RssFile:\t    9000 kB
RssShmem:\t    1000 kB
Threads:\t4
"""


def test_resident_memory_is_told_in_bytes_with_its_parts() -> None:
    assert resident_bytes(STATUS) == {
        "resident": 40_000 * 1024,
        "anonymous": 30_000 * 1024,
        "mapped_files": 9_000 * 1024,
    }


def test_a_real_process_tells_its_memory() -> None:
    found = resident_bytes(Path(f"/proc/{os.getpid()}/status").read_text())
    assert found["resident"] >= found["anonymous"] > 1_000_000


def test_memory_has_settled_when_the_last_samples_are_almost_equal() -> None:
    calm = [100_000_000 + SETTLED_BYTES * (number % 2) for number in range(SETTLED_SAMPLES)]
    assert settled(calm)
    assert settled([900_000_000, *calm])
    assert not settled(calm[1:])
    assert not settled([*calm[1:], calm[0] + SETTLED_BYTES + 1])
    assert not settled([])
