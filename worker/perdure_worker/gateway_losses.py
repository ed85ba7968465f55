"""The sockets of lost gateways: each of their objects is told once, with 1006.

Guarantees: the end of a socket and its rows are one batch, so a worker that dies in between goes on with
those that are left; a bounded number of objects is woken at a time; an object that cannot start is tried
again, and holds up no other.  Runs in the worker's event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any

from perdure.errors import StorageError
from perdure_storage import keys
from perdure_worker.resident import Resident
from perdure_worker.socket_handles import Socket
from perdure_worker.sockets import sockets_of
from perdure_worker.system_turns import Body, SystemTurn

if TYPE_CHECKING:
    from perdure_worker.writes import Writes

__all__ = ["GatewayLosses"]

log = logging.getLogger("perdure.worker")

_ABNORMAL = 1006
_AGAIN_S = 1.0
_AGAIN_MAX_S = 60.0


class _Loss:
    """One lost gateway that may have sockets left."""

    __slots__ = ("again_at", "again_s", "at", "complete", "end", "failed", "running")

    def __init__(self, gateway: bytes) -> None:
        self.at = keys.sockets_prefix(gateway)
        """Where to read on."""
        self.end = keys.prefix_end(self.at)
        self.running: set[bytes] = set()
        self.complete = False
        self.failed = False
        """Whether one of them is to be tried again."""
        self.again_s = _AGAIN_S
        self.again_at = 0.0


class GatewayLosses:
    """Lost gateways whose sockets are not all closed."""

    def __init__(self, host: Writes) -> None:
        self._host: Any = host  # the whole host, which is made later
        self._losses: dict[bytes, _Loss] = {}
        self._unserved: set[str] = set()

    def __contains__(self, gateway: bytes) -> bool:
        return gateway in self._losses

    def add(self, gateway: bytes) -> None:
        """This gateway is lost."""
        self._losses[gateway] = _Loss(gateway)

    def tick(self) -> None:
        """Call about every 50 ms: goes on with those that are left."""
        for gateway, loss in list(self._losses.items()):
            if self._host.draining:
                return
            try:
                self._go_on(gateway, loss)
            except StorageError as error:
                log.error("the sockets of a lost gateway cannot be read: %s", error)
                loss.complete, loss.failed = True, True
                loss.again_at = self._host.clock() + loss.again_s

    def _go_on(self, gateway: bytes, loss: _Loss) -> None:
        if loss.complete:
            if loss.running:
                return
            if not loss.failed:
                del self._losses[gateway]
                return
            if self._host.clock() < loss.again_at:
                return
            loss.at, loss.complete, loss.failed = keys.sockets_prefix(gateway), False, False
            loss.again_s = min(2 * loss.again_s, _AGAIN_MAX_S)
        room = self._host.limits.gateway_closes_max - len(loss.running)
        if room <= 0:
            return
        with self._host.engine.scan(loss.at, loss.end) as scan:
            rows = [row for row, _ in islice(scan, room)]
        if len(rows) < room:
            loss.complete = True
        if rows:
            loss.at = rows[-1] + b"\x00"
            self._host.in_turns(self._enqueue, loss, rows)
            self._host.run_waiting()
            self._host.want_flush()

    def _enqueue(self, loss: _Loss, rows: list[bytes]) -> None:
        host = self._host
        for row in rows:
            try:
                found = keys.parse_socket_row(row)
            except ValueError as error:
                log.error("a socket of a lost gateway is damaged and is passed over: %s", error)
                continue
            if found.namespace not in host.classes or found.slot not in host.slots:
                if found.namespace not in self._unserved:
                    self._unserved.add(found.namespace)
                    log.error(
                        "a lost socket is of a class that is not served here; it stays stored",
                        extra={"namespace": found.namespace, "slot": found.slot},
                    )
                continue
            loss.running.add(row)
            host.enqueue(found.namespace, found.object_id, _Close(host, found.socket, row, self._over, loss))

    def _over(self, loss: _Loss, row: bytes, *, failed: bool) -> None:
        loss.running.discard(row)
        if failed:
            loss.failed = True
            loss.again_at = self._host.clock() + loss.again_s


class _Close(SystemTurn):
    """The end of one socket."""

    __slots__ = ("_host", "_key", "_loss", "_over", "_row", "_socket", "request")

    title = "websocket_close"

    def __init__(self, host: Any, key: bytes, row: bytes, over: Callable[..., None], loss: _Loss) -> None:
        self._host = host
        self._key = key
        self._row = row
        self._over = over
        self._loss = loss
        self._socket: Socket | None = None
        client = blake2b(key, digest_size=16, key=b"perdure socket closed").digest()
        self.request = (client, 1, b"", 0)

    def begin(self, resident: Resident) -> Body | None:
        """See `SystemTurn.begin`."""
        sockets = sockets_of(self._host, resident)
        self._socket = socket = sockets.find(self._key)
        if socket is None:  # it was told of already; a row that is left stands for nothing
            if resident.storage is None or resident.storage._read_joined(self._row) is not None:
                self._host.write_beside(resident, {self._row: None})
            return None

        def end(instance: Any) -> Any:
            return sockets.end(socket, _ABNORMAL, "", False, None)

        return end, (), False

    def commit(self, resident: Resident) -> None:
        """See `SystemTurn.commit`; the turn has put the rows' removal into its batch itself."""

    def ended(self, resident: Resident) -> None:
        """See `SystemTurn.ended`."""
        self._over(self._loss, self._row, failed=False)

    def failed(self, resident: Resident, error: BaseException) -> None:
        """See `SystemTurn.failed`; if it has begun, the socket is gone all the same."""
        self._over(self._loss, self._row, failed=self._socket is None)

    def dropped(self) -> None:
        """See `SystemTurn.dropped`."""
        self._over(self._loss, self._row, failed=False)
