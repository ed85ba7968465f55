"""Where the local cluster is, and whether a cluster is on this machine.  Runs in the user's process."""

from __future__ import annotations

import os
from pathlib import Path

from perdure.errors import ShardUnavailable

__all__ = ["DATA_DEFAULT", "ENDPOINT_FILE", "boot_id", "default_url"]

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
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        raise ShardUnavailable(
            f"no cluster found: {file} is not there and PERDURE_URL is not set; "
            "start one with `perdure run MODULE_OR_FILE`, or give connect() its URL"
        ) from None


def boot_id() -> str:
    """The kernel's id of this boot of this machine: equal exactly for processes that share ipc sockets."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
