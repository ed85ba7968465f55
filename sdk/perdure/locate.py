"""Where the local cluster is, and whether a cluster is on this machine.  Runs in the user's process."""

from __future__ import annotations

import os
from pathlib import Path

from perdure.errors import ShardUnavailable

__all__ = ["DATA_DEFAULT", "ENDPOINT_FILE", "boot_id", "default_url", "may_connect"]

DATA_DEFAULT = "perdure-data"
"""Data directory of `perdure run` when none is named, relative to the working directory."""
ENDPOINT_FILE = "endpoint"
"""File in the data directory that holds the router's URL."""


def default_url() -> str:
    """PERDURE_URL, else the URL that the local data directory names.  Raises `ShardUnavailable`."""
    url = os.environ.get("PERDURE_URL")
    if url:
        return url
    file = Path(DATA_DEFAULT, ENDPOINT_FILE)
    try:
        url = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        url = ""
    if not url:
        raise ShardUnavailable(
            f"no cluster found: {file} is not there and PERDURE_URL is not set; "
            "start one with `perdure run MODULE_OR_FILE`, or give connect() its URL"
        )
    return url


def boot_id() -> str:
    """What processes that share ipc sockets and a clock have in common; empty when that cannot be told.

    The kernel's id of this boot, and the mount namespace: containers share the kernel and not the files,
    and the same path may lead to the socket of another cluster there.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/mnt').readlink()}"
    except OSError:
        return ""


def may_connect(endpoint: str) -> bool:
    """Whether this process's user may connect to a door: its socket's folder is the owner's alone."""
    return os.access(endpoint.removeprefix("ipc://"), os.W_OK)
