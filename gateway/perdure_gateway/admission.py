"""Who may connect: connections are counted in all and by address.  Pure; the gateway's server asks.

Guarantees that neither all clients together nor a single address takes more than its share, however the
connections are used later (requests or sockets), and that what was let in is counted until it leaves.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from perdure.errors import InvalidArgument

__all__ = ["LOOPBACK", "Admission"]

LOOPBACK = ("127.0.0.0/8", "::1/128")
"""Who is on this machine may hold all connections: a proxy, a load test, the owner."""

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Admission:
    """`enter` for each connection; when it said yes, `leave` once."""

    def __init__(
        self, *, connections_max: int, per_address_max: int, exempt: Iterable[str] = LOOPBACK
    ) -> None:
        """`exempt` are addresses and networks that only the bound of all counts for.

        Raises `InvalidArgument` for what is no network.
        """
        self.connections = 0
        self.refused = 0
        self._max = connections_max
        self._per_address_max = per_address_max
        self._by_address: dict[str, int] = {}
        try:
            self._exempt: tuple[_Network, ...] = tuple(
                ipaddress.ip_network(text, strict=False) for text in exempt
            )
        except ValueError as error:
            raise InvalidArgument(str(error)) from None

    def enter(self, address: str | None) -> bool:
        """Whether one more connection from this address may stay; None stands for an unknown one."""
        key = _key(address)
        held = self._by_address.get(key, 0)
        if self.connections >= self._max or (held >= self._per_address_max and not self._is_exempt(address)):
            self.refused += 1
            return False
        self.connections += 1
        self._by_address[key] = held + 1
        return True

    def leave(self, address: str | None) -> None:
        """A connection that had entered has ended."""
        key = _key(address)
        held = self._by_address.pop(key)
        self.connections -= 1
        if held > 1:
            self._by_address[key] = held - 1

    def _is_exempt(self, address: str | None) -> bool:
        try:
            ip = ipaddress.ip_address(address or "")
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self._exempt)


def _key(address: str | None) -> str:
    # Who has one IPv6 address has 2^64 of them: they count as one.
    if address is not None and ":" in address:
        try:
            ip = ipaddress.IPv6Address(address.partition("%")[0])
        except ValueError:
            return address
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return str(ipaddress.IPv6Network((ip, 64), strict=False))
    return address or ""
