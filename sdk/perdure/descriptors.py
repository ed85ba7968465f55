"""File descriptors of a process with an ipc door: as many as it may have, and a warning before the last one.

An ipc listener of ZeroMQ aborts its process when no descriptor is left for a connection (RELIABILITY
rule 9), so that whoever runs the cluster must hear of it before.  Used by the router and workers.
"""

from __future__ import annotations

import logging
import os
import resource

__all__ = ["Watch", "raise_limit"]

log = logging.getLogger("perdure.descriptors")

_ENOUGH = 4_096
"""A thousand clients and the files of a large store, with room to spare."""
_WARN_SHARE = 0.8


def raise_limit() -> None:
    """Takes all descriptors that this process may have; says so when they are few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < _ENOUGH:
        log.warning(
            "this process may have few file descriptors, and ends when they run out: raise the hard limit "
            "(ulimit -Hn, LimitNOFILE= of systemd)",
            extra={"limit": hard, "wanted": _ENOUGH},
        )


class Watch:
    """Looks from time to time, and warns once each time that they become scarce."""

    def __init__(self) -> None:
        self._scarce = False

    def look(self) -> int:
        """The lowest free descriptor number: all below it are in use, and at the limit there is none."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            lowest = os.dup(0)
            os.close(lowest)
        except OSError:
            lowest = limit
        scarce = limit != resource.RLIM_INFINITY and lowest > _WARN_SHARE * limit
        if scarce and not self._scarce:
            log.warning(
                "file descriptors run out: this process will end when there are none",
                extra={"in_use": lowest, "limit": limit},
            )
        self._scarce = scarce
        return lowest
