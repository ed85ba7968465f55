"""What a live object sees of its worker: `self.id`, `self.storage`, `self.ctx`.

Made for an object when it first asks, so that objects which only use durable fields cost nothing here.
Runs in the worker's event loop; a `@blocking` method sees it from its thread, where calls to other
objects are refused.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from perdure.errors import PerdureError
from perdure.ids import ObjectId
from perdure.methods import Method
from perdure.object import namespace_of
from perdure.stub import Call, Stub, Target, make_target

if TYPE_CHECKING:
    from perdure.object import Storage
    from perdure_worker.host import Host
    from perdure_worker.resident import Resident

__all__ = ["Aborted", "HostCell"]


_TIMEOUT_MIN_S = 0.001


class Aborted(BaseException):
    """Unwinds a turn that called `ctx.abort(reason)`; not an `Exception`, so users do not catch it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HostCell:
    """The host's side of one live object; also its `ctx`."""

    __slots__ = ("_host", "_resident", "_thread")

    def __init__(self, host: Host, resident: Resident) -> None:
        self._host = host
        self._resident = resident
        self._thread = host.thread

    @property
    def id(self) -> ObjectId:
        """See `DurableObject.id`."""
        return self._resident.id

    @property
    def storage(self) -> Storage:
        """See `DurableObject.storage`."""
        return self._host.storage_of(self._resident)

    @property
    def context(self) -> HostCell:
        """See `DurableObject.ctx`."""
        return self

    def get(self, cls: Any, key: str | ObjectId, *, timeout: float | None = None) -> Any:
        """See `Context.get`."""
        namespace = namespace_of(cls)
        entry = self._host.classes.get(namespace)
        methods: Mapping[str, Method] = entry.methods if entry is not None else {}
        return Stub(make_target(namespace, key, timeout, methods), self)

    def abort(self, reason: str) -> NoReturn:
        """See `Context.abort`."""
        raise Aborted(reason)

    # --- the sender of this object's stubs (see `perdure.stub.Sender`)

    def start(
        self,
        target: Target,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any] | None,
        spec: Method | None,
    ) -> Call[Any]:
        """Sends a call to another object: a commit point of the running turn."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("a @blocking method cannot call other objects: it runs in a thread of its own")
        return Call(self._call(target, method, args, kwargs, spec))

    def refuse(self, error: PerdureError) -> Call[Any]:
        """A call that failed before it was sent."""
        future = self._host.loop.create_future()
        future.set_exception(error)
        return Call(future)

    def _call(
        self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None, spec: Method | None
    ) -> asyncio.Future[Any]:
        host, resident = self._host, self._resident
        host.commit_point(resident)
        future: asyncio.Future[Any] = host.loop.create_future()
        chain: list[list[Any]] = [[resident.key, resident.label]]
        if resident.turn is not None:
            _, _, _, deadline, outer = resident.turn
            chain = [*(outer or []), *chain]
            left_s = max(_TIMEOUT_MIN_S, deadline - host.clock())
            target = target._replace(timeout_s=min(target.timeout_s, left_s))

        def issue(*_: Any) -> None:
            host.caller.call(target, method, args, kwargs, spec, future, chain)

        # It leaves when everything that the turn wrote before it is durable.
        host.gate.hold(resident.ticket, (issue, None, None, None))
        return future
