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

__all__ = ["Places", "address_of", "check_bindable", "open_listener"]

_CONTROL = "control"
_BACKLOG = 1_024


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


def open_listener(host: str, port: int) -> socket.socket:
    """A socket that listens there; raises `AddressInUse`.

    The supervisor keeps it for the gateway, so that its address stays and clients wait in its queue while a
    gateway is started again.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise AddressInUse(f"{host}:{port}", error.strerror or str(error), "--http") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise AddressInUse(f"{host}:{port}", error.strerror or str(error), "--http") from None
    return listener


def address_of(listener: socket.socket) -> str:
    """Where a gateway at this socket is found, as a URL; all addresses are those of this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104
    return f"http://{host}:{port}"
