"""How many WebSockets a gateway holds, in all and for one client address.  Pure; the gateway's event loop."""

from __future__ import annotations

from perdure.limits import Limits

__all__ = ["Admission"]


class Admission:
    """Counts what is open; `limits` says how much may be."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_address: dict[str, int] = {}
        self.open = 0

    def admit(self, address: str) -> int | None:
        """Counts one more, or returns the refusal's HTTP status: 503 if all are taken, 429 if its share."""
        if self.open >= self._limits.sockets_per_gateway_max:
            return 503
        count = self._by_address.get(address, 0)
        if count >= self._limits.sockets_per_address_max:
            return 429
        self._by_address[address] = count + 1
        self.open += 1
        return None

    def leave(self, address: str) -> None:
        """One that was admitted has ended."""
        self.open -= 1
        count = self._by_address[address] - 1
        if count:
            self._by_address[address] = count
        else:
            del self._by_address[address]
