"""What a figure depends on besides the code: the machine, its disk, and who else is using it."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["CpuClock", "describe"]

PACKAGES = ("pyzmq", "msgpack", "plyvel", "uvloop", "redis", "hiredis")
SYNC_PROBES = 200


class CpuClock:
    """CPU time of named processes and of everything else since it was made."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._started_s = time.perf_counter()
        self._ours_before_s = _processes_cpu_s(pids)
        self._all_before_s = _machine_cpu_s()

    def ours_s(self) -> float:
        """CPU seconds that the named processes used."""
        return _processes_cpu_s(self._pids) - self._ours_before_s

    def others_cores(self) -> float:
        """Cores that all other processes kept busy, on average; right to about 0.1."""
        used_s = _machine_cpu_s() - self._all_before_s - self.ours_s()
        return max(0.0, used_s / (time.perf_counter() - self._started_s))


def _processes_cpu_s(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # a process that has ended counts nothing
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _machine_cpu_s() -> float:
    user, nice, system, _idle, _iowait, irq, softirq = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def describe(directory: Path) -> dict[str, Any]:
    """Cores, versions and the time of one fdatasync in `directory`."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
        "fdatasync_p50_ms": _fdatasync_p50_ms(directory),
    }


def _fdatasync_p50_ms(directory: Path) -> float:
    """Median time to append 100 bytes to a file and sync them, as a log of small commits does."""
    times_s = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(SYNC_PROBES):
            started = time.perf_counter()
            file.write(bytes(100))
            os.fdatasync(file.fileno())
            times_s.append(time.perf_counter() - started)
    return statistics.median(times_s) * 1000
