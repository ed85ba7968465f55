"""Children that end with their parent.  Called at the start of every process that the supervisor starts.

When the supervisor is killed, the kernel kills its children: never two workers on one shard, and no
orphans.  Linux only (prctl); DESIGN names Linux as the platform.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["end_with"]

_PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """The kernel sends this process SIGKILL when the thread that started it ends.

    Exits at once when `parent` (a process id) is gone already: its death came before the request.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(0)
