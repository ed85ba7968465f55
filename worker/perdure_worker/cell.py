"""What a live object sees of its worker: `self.id`, `self.storage`, `self.ctx`.

Runs in the worker's event loop; a `@blocking` method sees it from its thread, where calls to other
objects are refused.  So they are outside of a turn: a call is a commit point of the turn that makes it and
waits for what the turn wrote, and a task that outlived its turn has neither.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

from perdure import codec
from perdure.errors import PerdureError
from perdure.ids import ObjectId
from perdure.methods import Method
from perdure.object import namespace_of
from perdure.plain import SCALARS
from perdure.streams import Stream
from perdure.stub import Call, Stub, Target, make_target
from perdure.web import WebReply, make_request, send_request
from perdure.web_wire import FETCH
from perdure.websocket import WebSocket, WebSocketResponse
from perdure_worker.clients import Client, Request, nested_path
from perdure_worker.interleaving import Exclusive
from perdure_worker.object_outbox import ObjectOutbox
from perdure_worker.sockets import sockets_of
from perdure_worker.turns import CURRENT, TURN_CHAIN, TURN_DEADLINE, TURN_METHOD, TURN_REQUEST, TURN_SEQUENCE
from perdure_worker.websocket_client import WebSocketClient

if TYPE_CHECKING:
    from perdure.object import Storage
    from perdure_worker.execution import Execution
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

    def __init__(self, host: Execution, resident: Resident) -> None:
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

    def send(self, cls: Any, key: str | ObjectId, *, delay: Any = None, at: Any = None) -> Any:
        """See `Context.send`."""
        namespace = namespace_of(cls)
        entry = self._host.classes.get(namespace)
        methods: Mapping[str, Method] = entry.methods if entry is not None else {}
        return self._host.sends.stub(self._resident, make_target(namespace, key, None, methods), delay, at)

    @property
    def outbox(self) -> ObjectOutbox:
        """See `Context.outbox`."""
        return ObjectOutbox(self._host, self._resident)

    def abort(self, reason: str) -> NoReturn:
        """See `Context.abort`."""
        error = Aborted(reason)
        self._host.doom(self._resident, error)
        raise error

    def exclusive(self) -> Exclusive:
        """See `Context.exclusive`."""
        return Exclusive(self._host, self._resident)

    def accept_websocket(
        self,
        request: Any,
        *,
        tags: Iterable[str] = (),
        attachment: Any = None,
        protocol: str | None = None,
    ) -> WebSocketResponse:
        """See `Context.accept_websocket`."""
        return sockets_of(self._host, self._resident).accept(request, tags, attachment, protocol)

    def websockets(self, tag: str | None = None) -> list[WebSocket]:
        """See `Context.websockets`."""
        return sockets_of(self._host, self._resident).listed(tag)

    def set_websocket_auto_response(self, request: str | None, response: str | None) -> None:
        """See `Context.set_websocket_auto_response`."""
        sockets_of(self._host, self._resident).set_auto_response(request, response)

    def connect_websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, subprotocols: Sequence[str] = ()
    ) -> WebSocketClient:
        """See `Context.connect_websocket`."""
        return WebSocketClient(self._host, self._resident, url, headers, subprotocols)

    @property
    def old_fields(self) -> dict[str, Any]:
        """See `Context.old_fields`."""
        raise RuntimeError("ctx.old_fields is there in on_migrate only")

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
        if not self._host.in_turn(self._resident):
            raise RuntimeError(
                f"{self._resident.label}: this code does not run inside a turn of the object, so it cannot "
                "call other objects; await the task in the method that starts it"
            )
        return Call(self._call(target, method, args, kwargs, spec))

    def start_stream(
        self,
        target: Target,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any] | None,
        spec: Method | None,
    ) -> Stream[Any]:
        """See `perdure.stub.Sender`; the call is sent as any other."""
        call = self.start(target, method, args, kwargs, spec)
        return call.stream(self._host.caller.streams.leave)

    async def fetch(self, target: Target, request: Any, **options: Any) -> WebReply:
        """See `perdure.stub.Sender`; the request is sent as any call."""

        def start(complete: dict[str, Any]) -> Stream[Any]:
            return self.start_stream(target, FETCH, [complete], None, None)

        made, source = make_request(request, **options)
        return await send_request(start, self._host.caller.streams.uploads, made, source, pulls=True)

    def refuse(self, error: PerdureError) -> Call[Any]:
        """A call that failed before it was sent."""
        future = self._host.loop.create_future()
        future.set_exception(error)
        return Call(future)

    def _call(
        self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None, spec: Method | None
    ) -> asyncio.Future[Any]:
        host, resident = self._host, self._resident
        turn = CURRENT.get()
        host.commit_point(resident, turn)
        turn_method, turn_deadline = turn[TURN_METHOD], turn[TURN_DEADLINE]
        if turn_method is not None and (turn_method.is_generator or host.streams.has(turn)):
            turn_deadline = inf  # a stream may go on for ever, each of its items is bounded
        request: Request | None = None
        if (parent := turn[TURN_REQUEST]) is not None:  # a turn that runs again repeats the ids
            progress = host.progress_of(turn)
            progress.calls += 1
            if isinstance(parent, Client):
                sequence = turn[TURN_SEQUENCE]
                parent = parent.id, sequence, b"", min(parent.low, sequence)
            client, sequence, path, floor, *_ = parent
            request = client, sequence, nested_path(path, progress.calls), floor
        link: list[Any] = [resident.key, resident.label]
        if resident.inside is not None:
            link.append(resident.inside.number_of(turn))
        chain: list[list[Any]] = [*(turn[TURN_CHAIN] or []), link]
        deadline = min(host.clock() + target.timeout_s, turn_deadline)
        if resident.ticket > host.durable and not (kwargs is None and SCALARS.issuperset(map(type, args))):
            # It leaves later, but with the arguments as they are now.
            args, kwargs = codec.decode(codec.encode([args, kwargs]))
        future: asyncio.Future[Any] = host.loop.create_future()
        resident.calls += 1
        future.add_done_callback(self._on_outcome)

        def issue(*_: Any) -> None:
            left_s = max(_TIMEOUT_MIN_S, deadline - host.clock())
            target_now = target._replace(timeout_s=left_s)
            host.caller.call(target_now, method, args, kwargs, spec, future, chain, request)

        # It leaves when everything that the turn wrote before it is durable.
        host.gate.hold(resident.ticket, (issue, None, None, None))
        return future

    def _on_outcome(self, _: object) -> None:
        self._resident.calls -= 1
