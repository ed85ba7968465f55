"""The asyncio client: `connect()`.  Runs in the user's process, on the user's event loop.

A client asks the router for the slot map, then talks to the workers directly when it is on their
machine (one caller: 0.77 → 0.46 ms; 1,024 outstanding: 132 → 187 k/s, DESIGN §2), else through the
router.  When the router is gone, direct calls go on.  A client belongs to the process that connected it:
in a forked child every use of it raises `RuntimeError` at once, and closing it only forgets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Callable, Mapping
from os import getpid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import zmq

from perdure import codec, protocol
from perdure.calls import Caller
from perdure.channel import PeerGone, WouldBlock, open_context
from perdure.client_ids import ClientIds
from perdure.client_stub import ClientStubs
from perdure.connection import Connection
from perdure.errors import InvalidArgument, PerdureError, ShardUnavailable
from perdure.forks import watch
from perdure.ids import ObjectId
from perdure.limits import Limits
from perdure.links import DoorLinks
from perdure.listing import Listing, merge_listings, next_cursor
from perdure.locate import boot_id, default_url, may_connect
from perdure.methods import Method, callable_methods
from perdure.named import NamedRequests, Request
from perdure.object import DurableObject, namespace_of
from perdure.pending import Answer
from perdure.remote_errors import ExceptionLoader
from perdure.slotmap import SlotMap, slot_map_from_wire
from perdure.streams import Stream
from perdure.stub import Call, Stub, Target, make_target
from perdure.web import WebReply, make_request, send_request
from perdure.web_wire import FETCH

__all__ = ["Client", "connect"]

T = TypeVar("T")
# Inside the class `list` is the method.
_Args = list[Any]
_Frames = list[bytes]
_Figures = list[dict[str, Any]]
_Given = str | bytes | None
_LIMITS = Limits()
_TICK_S = 0.05
_SEND_AGAIN_S = 0.002
_CONNECT_TIMEOUT_S = 10.0
_FORKED = "this client was connected before fork; connect in the child"
_LAST_WORDS_MS = 100
"""How long a client that closes may take to tell the producers of its streams."""


def connect(
    url: str | None = None, *, direct: bool = True, retry: bool = True, timeout: float = _CONNECT_TIMEOUT_S
) -> Client:
    """A client of the cluster at `url`, to be used as ``async with connect() as client``.

    Without `url` the environment's PERDURE_URL is taken, else the local data directory's router.
    `direct=False` sends everything through the router.  With `retry=False` a call whose worker dies ends
    with `OutcomeUnknown` at once, instead of being sent again until its deadline.  `timeout` (seconds)
    bounds the wait for the router's first answer; then `ShardUnavailable` is raised.
    """
    return Client(url if url is not None else default_url(), direct=direct, retry=retry, timeout=timeout)


class Client(ClientIds):
    """A connection to one cluster; used by the one event loop in which it was entered."""

    def __init__(self, url: str, *, direct: bool, retry: bool, timeout: float) -> None:
        self.url = url
        self._retry = retry
        self._want_direct = direct
        self._timeout_s = timeout
        self._tables: dict[type, Mapping[str, Method]] = {}
        self._stubs = ClientStubs(self, lambda: (self._caller, self._create_future), _LIMITS)
        self._handlers: dict[int, Callable[[int, int, bytes], None]] = {}
        self._on_link: Callable[[int, int], None] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._process: int
        """The one that connected."""
        self._caller: Caller
        self._front: Connection
        self._front_closing = False
        """The router said GOODBYE: it gets nothing more but pings, until its successor answers one."""
        self._links: DoorLinks
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._direct = False
        self._boot = boot_id()
        self._ready: asyncio.Future[None]
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._ping_due = 0.0
        self._closed = False

    # --- life

    async def __aenter__(self) -> Self:
        if self._context is not None:
            raise RuntimeError("a client is entered once; connect() gives a new one")
        self._loop = loop = asyncio.get_running_loop()
        self._process = getpid()
        self._ready = loop.create_future()
        self._caller = Caller(
            secrets.token_bytes(16),
            clock=time.monotonic,
            random_source=random.Random(),  # noqa: S311 - jitter of retries, not a secret
            retry=self._retry,
            load_exception=ExceptionLoader().load,
            want_flush=self._flush_soon,
            want_map=self._greet,
        )
        watch(self)
        self._caller.streams.call_soon = loop.call_soon_threadsafe
        self._handlers[protocol.PULL] = self._caller.streams.uploads.on_pull
        self._start, self._create_future = self._caller.call, loop.create_future
        self._context = open_context()
        try:
            self._front = self._connect(self._context)
        except zmq.ZMQError as error:
            self._closed = True
            self._context.term()
            raise InvalidArgument(f"{self.url!r} is no address of a router: {error}") from None
        self._links = DoorLinks(
            loop,
            self._context,
            on_message=self._on_message,
            on_death=self._on_death,
            on_drained=self._flush_waiting,
        )
        self._links.on_up = self._on_up
        self._tick()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._ready
        except BaseException as error:  # also when whoever connects is cancelled
            await self.close()
            if not isinstance(error, TimeoutError):
                raise
            raise ShardUnavailable(
                f"no router answered at {self.url} within {self._timeout_s:g} s; is `perdure run` up?"
            ) from None
        return self

    if not TYPE_CHECKING:  # type checkers would take every name for an attribute

        def __getattr__(self, name: str) -> Any:
            if self.__dict__.get("_context") is None and name.startswith("_") and name[1:2] != "_":
                raise RuntimeError("not connected yet: use `async with connect() as client`")
            raise AttributeError(f"a client has no attribute {name!r}")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends all calls (see `Caller.close`) and closes the connections.  A second call does nothing."""
        if self._closed or self._context is None:
            return
        self._closed = True
        if getpid() != self._process:
            return  # the parent's loop, sockets and ZeroMQ's threads are not here to be closed
        for timer in (self._timer, self._again):
            if timer is not None:
                timer.cancel()
        linger_ms = _LAST_WORDS_MS if self._caller.streams.open else 0
        self._caller.close()
        self._caller.flush(self._send)
        self._links.close(linger_ms)
        self._front.close(linger_ms)
        self._context.destroy(linger=0)

    # --- what users call

    @overload
    def get(
        self,
        cls: type[T],
        key: str | ObjectId,
        *,
        timeout: float | None = None,
        request_id: _Given = None,
    ) -> T: ...
    @overload
    def get(
        self, cls: str, key: str | ObjectId, *, timeout: float | None = None, request_id: _Given = None
    ) -> Any: ...
    def get(
        self, cls: Any, key: str | ObjectId, *, timeout: float | None = None, request_id: _Given = None
    ) -> Any:
        """A stub of the object `key` (its name or id) of a class or namespace; runs and sends nothing.

        `timeout` is the deadline of each call, in seconds (30 by default, at most an hour).  A method that
        awaits may run until then, and for `Limits.turn_max_s` in any case.  `request_id` is an idempotency
        key of the caller's own: the n-th call of every stub with it is one request, which takes effect once
        and has one answer (kept for `Limits.reply_named_ttl_s`), however often and by whomever it is
        repeated; with another method or other arguments it is refused.  Raises `InvalidArgument`.
        """
        target = self.target(cls, key, timeout)
        if request_id is None:
            return self._stubs.stub(cls, target)
        return Stub(target, NamedRequests(request_id, self))

    async def list(
        self, ns: type | str, *, prefix: str = "", limit: int = 1_000, cursor: str | None = None
    ) -> Listing:
        """A page of the stored objects of a namespace, in order, from all workers.

        Ids and names, sizes on disk, which are in memory, next alarms.  `cursor` is the former listing's
        `cursor`; only None means the end.  Raises `InvalidArgument` for a limit out of range,
        `UnknownNamespace` when no such class is loaded and nothing of one is stored.
        """
        if type(limit) is not int or not 1 <= limit <= _LIMITS.list_entries_max:
            raise InvalidArgument(f"limit is an int of 1 to {_LIMITS.list_entries_max}, not {limit!r:.80}")
        namespace = namespace_of(ns)
        answers = await self.ask_workers("list", [namespace, prefix, limit, next_cursor(cursor)])
        return merge_listings(answers, limit, namespace)

    async def stats(self) -> _Figures:
        """Figures of each worker, in their order: live objects, turns, waiting outputs and more."""
        return await self.ask_workers("stats", [])

    async def ask_workers(self, method: str, args: _Args) -> _Args:
        """The answers of all workers, in their order, to one of the workers' own methods."""
        self.check_process()
        slot_map = self._caller.map
        if slot_map is None:
            raise ShardUnavailable("the slot map has not come yet")
        calls = []
        for worker in range(len(slot_map.seats)):
            answer = self._loop.create_future()
            self._caller.call_worker(worker, method, args, _LIMITS.call_timeout_s, answer)
            calls.append(answer)
        return list(await asyncio.gather(*calls))

    @property
    def slot_map(self) -> SlotMap | None:
        """Who owns which slot, as this client knows it."""
        return self._caller.map

    def target(self, cls: type | str, key: str | ObjectId, timeout: float | None) -> Target:
        """What a stub of this object speaks for; raises `InvalidArgument`."""
        methods: Mapping[str, Method] = {}
        if isinstance(cls, type):
            known = self._tables.get(cls)
            methods = callable_methods(cls, DurableObject) if known is None else known
            self._tables[cls] = methods
        return make_target(namespace_of(cls), key, timeout, methods)

    def check_process(self) -> None:
        """Raises `RuntimeError` in a child of the process that connected; it has none of ZeroMQ's threads."""
        if getpid() != self._process:
            raise RuntimeError(_FORKED)

    def on_fork(self) -> None:
        """In a child of the process that connected; see `perdure.forks`."""
        self._caller.disown(_FORKED)

    # --- the sender of stubs

    def start(
        self,
        target: Target,
        method: str,
        args: _Args,
        kwargs: dict[str, Any] | None,
        spec: Method | None,
        request: Request | None = None,
    ) -> Call[Any]:
        """See `perdure.stub.Sender`; `request` is for `NamedRequests`."""
        answer = self._create_future()
        self._start(target, method, args, kwargs, spec, answer, None, request)
        return Call(answer)

    def start_stream(
        self,
        target: Target,
        method: str,
        args: _Args,
        kwargs: dict[str, Any] | None,
        spec: Method | None,
        request: Request | None = None,
    ) -> Stream[Any]:
        """See `perdure.stub.Sender`; `request` is for `NamedRequests`."""
        call = self.start(target, method, args, kwargs, spec, request)
        return call.stream(self._caller.streams.leave)

    async def fetch(
        self, target: Target, request: Any, *, named: Request | None = None, **options: Any
    ) -> WebReply:
        """See `perdure.stub.Sender`; `named` is for `NamedRequests`."""
        made, source = make_request(request, **options)
        return await self.send_request(target, made, source, named)

    async def send_request(
        self, target: Target, request: dict[str, Any], source: Any, named: Request | None = None
    ) -> WebReply:
        """Sends a checked request to an object; see `perdure.web.fetch`."""

        def start(complete: dict[str, Any]) -> Stream[Any]:
            return self.start_stream(target, FETCH, [complete], None, None, named)

        uploads = self._caller.streams.uploads
        return await send_request(start, uploads, request, source, pulls=self._direct)

    def issue(
        self,
        target: Target,
        method: str,
        args: _Args,
        kwargs: dict[str, Any] | None,
        spec: Method | None,
        answer: Answer,
        request: Request | None = None,
    ) -> None:
        """Starts a call whose outcome goes to `answer`; only in the client's event loop."""
        self._caller.call(target, method, args, kwargs, spec, answer, None, request)

    def refuse(self, error: PerdureError) -> Call[Any]:
        """See `perdure.stub.Sender`."""
        answer = self._loop.create_future()
        answer.set_exception(error)
        return Call(answer)

    # --- for gateways: more kinds of message, with the workers' own doors only

    def handle(self, kind: int, handler: Callable[[int, int, bytes], None]) -> None:
        """From now on ``handler(worker, epoch, body)`` gets the messages of a kind that is no call's."""
        self._handlers[kind] = handler

    def watch_links(self, on_link: Callable[[int, int], None]) -> None:
        """From now on ``on_link(worker, epoch)`` is told of each door that this client has connected to."""
        self._on_link = on_link

    def _on_up(self, worker: int, epoch: int) -> None:
        if self._on_link is not None:
            self._on_link(worker, epoch)

    def send_to(self, worker: int, epoch: int, kind: int, body: bytes) -> bool:
        """Sends a message to that incarnation's door; whether it left (else there is no link to it now)."""
        return not self._closed and self._links.send(
            worker, epoch, protocol.header(kind, worker, epoch), body
        )

    # --- messages

    def _on_front(self, frames: _Frames) -> None:
        try:
            head = protocol.read_header(frames[0])
            if head.kind == protocol.GOODBYE:
                self._front.send((protocol.header(protocol.GOODBYE_ACK), b""))
                self._front_closing = True
            elif head.kind == protocol.MAP and len(frames) == 2:
                self._on_map(slot_map_from_wire(codec.decode(frames[1])))
            elif head.kind == protocol.PONG:
                self._front_closing = False
                if not self._direct:  # the router has answered all that it got before the ping
                    self._caller.lose_dead()
            elif len(frames) == 2:
                self._on_message(head.worker, head.number, head, frames[1])
        except (WouldBlock, PeerGone):
            pass
        except PerdureError as error:
            self._loop.call_exception_handler({"message": f"the router sent what is no message: {error}"})

    def _on_message(self, worker: int, epoch: int, head: protocol.Header, body: bytes) -> None:
        if head.kind == protocol.REPLIES:
            self._caller.on_replies(epoch, body)
        elif head.kind == protocol.STALE:
            self._caller.on_stale(body)
            self._follow()
        elif head.kind == protocol.REFUSED:
            self._caller.on_refused(body)
        elif (handler := self._handlers.get(head.kind)) is not None:
            handler(worker, epoch, body)

    def _on_map(self, slot_map: SlotMap) -> None:
        self._front_closing = False
        self._links.read_gone(slot_map)
        self._caller.on_map(slot_map)
        self._follow()
        self._flush()
        if not self._direct:
            with contextlib.suppress(WouldBlock, PeerGone):  # else the next ping's answer tells
                self._front.send((protocol.header(protocol.PING, 0, slot_map.version), b""))
        if not self._ready.done():
            self._ready.set_result(None)

    def _follow(self) -> None:
        slot_map = self._caller.map
        if slot_map is None:
            return
        here = bool(slot_map.boot) and slot_map.boot == self._boot
        self._caller.same_clock = here
        if here and self._want_direct and not self._direct:
            self._direct = any(may_connect(seat.endpoint) for seat in slot_map.seats if seat.endpoint)
        self._caller.direct = self._direct
        if self._direct:
            self._links.follow(slot_map)

    def _on_death(self, worker: int, epoch: int) -> None:
        self._caller.on_death(worker, epoch)
        self._greet()

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]]) -> Connection:
        return Connection(
            self._loop,
            context,
            self.url,
            on_message=self._on_front,
            on_drained=self._flush_waiting,
            on_connected=self._on_front_connected,
            on_lost=self._on_front_lost,
        )

    def _connect_again(self) -> None:
        if self._closed or self._context is None:
            return
        try:
            self._front = self._connect(self._context)
        except zmq.ZMQError:  # no descriptor is left
            self._loop.call_later(_LIMITS.client_ping_s, self._connect_again)

    def _on_front_connected(self) -> None:
        self._greet()
        self._flush_waiting()

    def _on_front_lost(self) -> None:
        # Another connection: what ZeroMQ holds for this one must not reach the router's successor.
        self._front.close()
        self._connect_again()
        self._front_closing = False
        if not self._direct:
            self._caller.on_router_lost()

    # --- sending

    def _send(self, worker: int, epoch: int, header: bytes, body: bytes) -> bool:
        if self._direct:
            return self._links.send(worker, epoch, header, body)
        if self._front_closing:
            return False
        try:
            self._front.send((header, body))
        except (WouldBlock, PeerGone):
            return False
        return True

    def _flush_soon(self) -> None:
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if not self._closed and self._caller.flush(self._send) and self._again is None:
            self._again = self._loop.call_later(_SEND_AGAIN_S, self._flush_again)

    def _flush_again(self) -> None:
        self._again = None
        self._flush()

    def _flush_waiting(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._flush_again()

    def _greet(self) -> None:
        """HELLO brings the map, PING only news of it.  What is not sent now, the next tick says."""
        slot_map = self._caller.map
        if slot_map is None:
            header = protocol.header(protocol.HELLO)
        else:
            header = protocol.header(protocol.PING, 0, slot_map.version)
        if not self._closed:
            with contextlib.suppress(WouldBlock, PeerGone):
                self._front.send((header, b""))
                self._ping_due = self._loop.time() + _LIMITS.client_ping_s

    def _tick(self) -> None:
        if getpid() != self._process:
            return
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        self._caller.tick()
        if self._loop.time() >= self._ping_due:
            self._greet()
            self._follow()  # opens again what a door closed without dying
