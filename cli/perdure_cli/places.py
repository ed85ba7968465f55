"""Where one run listens: its sockets in the run directory, and the TCP endpoints of `--bind`.

Runs in the supervisor's process.  Guarantees that an address nobody could listen at is said once, at the
start, and not by a router that never becomes ready.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perdure_cli.errors import AddressInUse

__all__ = ["Places", "check_bindable"]

_CONTROL = "control"


@dataclass(frozen=True)
class Places:
    """Endpoints of one run."""

    run_directory: Path

    @property
    def url(self) -> str:
        """The router's socket, for clients on this machine."""
        return f"ipc://{self.run_directory}/router"

    @property
    def control(self) -> str:
        """The supervisor's socket, for its children."""
        return f"ipc://{self.run_directory}/{_CONTROL}"

    def door(self, worker: int, epoch: int) -> Path:
        """Socket of one incarnation of a worker."""
        return self.run_directory / f"w{worker}.e{epoch}"

    @property
    def are_there(self) -> bool:
        """Whether children still find the supervisor; not so when somebody has cleaned up."""
        return (self.run_directory / _CONTROL).exists()


def check_bindable(addresses: Sequence[str]) -> None:
    """Raises `AddressInUse` for the first of these TCP endpoints that somebody else listens at."""
    for address in addresses:
        host, _, port = address.removeprefix("tcp://").rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As ZeroMQ does, so that a port whose old connections linger counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError as error:
                raise AddressInUse(address, error.strerror or str(error)) from None
