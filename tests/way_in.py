"""How tests in several processes keep out of the way of one that has to be alone; `conftest` applies it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class WayIn:
    """A lock that many tests hold together or one alone; held by processes, let go when they die.

    Who waits to be alone keeps the door, so that those who share the room cannot keep it for ever.
    """

    def __init__(self, folder: Path) -> None:
        self._door, self._room = (os.open(folder / name, os.O_CREAT | os.O_RDWR) for name in ("door", "room"))

    @contextlib.contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """In the room while this is open."""
        fcntl.flock(self._door, fcntl.LOCK_EX)
        try:
            fcntl.flock(self._room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._room, fcntl.LOCK_UN)

    def close(self) -> None:
        """Lets go of everything."""
        os.close(self._door)
        os.close(self._room)
