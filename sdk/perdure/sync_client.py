"""The client for threads: `connect_sync()`.  Runs in the user's process; any thread may call.

One event loop in a background thread serves all threads, so calls that threads make at the same time
travel together.  A method of a stub returns its result, or raises what the asyncio client would raise.
A forked child has no such thread: there every use raises `RuntimeError` at once, and `close` only forgets.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from perdure.client import Client, connect
from perdure.client_ids import ClientIds
from perdure.errors import OutcomeUnknown, PerdureError, ShardUnavailable
from perdure.ids import ObjectId
from perdure.limits import Limits
from perdure.listing import Listing
from perdure.methods import Method
from perdure.named import NamedRequests, Request
from perdure.slotmap import SlotMap
from perdure.streams import StreamingMethod
from perdure.stub import Stub, Target
from perdure.sync_streams import SyncStream
from perdure.sync_web import SyncWebReply, with_async_body

__all__ = ["SyncClient", "connect_sync"]

T = TypeVar("T")
# Inside the class `list` is the method.
_Figures = list[dict[str, Any]]
_LIMITS = Limits()
# The client ends every call by itself; this only bounds a wait for a loop that died.
_MARGIN_S = 5.0


def connect_sync(
    url: str | None = None, *, direct: bool = True, retry: bool = True, timeout: float = 10.0
) -> SyncClient:
    """As `connect`, for code without an event loop: ``with connect_sync() as client``."""
    return SyncClient(connect(url, direct=direct, retry=retry, timeout=timeout))


class SyncClient(ClientIds):
    """A connection to one cluster, for any number of threads."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None
        """None before the client is entered and after it is closed."""
        self._thread: threading.Thread | None = None
        self._process = 0
        """The one in which the thread runs."""
        self._lock = threading.Lock()
        """A call is handed to the loop while it is held: none can be left behind in a loop that ends."""

    def __enter__(self) -> Self:
        if self._thread is not None:
            raise RuntimeError("a client is entered once; connect_sync() gives a new one")
        self._loop = loop = uvloop.new_event_loop()
        self._process = os.getpid()
        self._thread = threading.Thread(target=_serve, args=(loop,), name="perdure-client", daemon=True)
        self._thread.start()
        try:
            self._wait(self._client.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all calls and the background thread.  A second call does nothing."""
        if self._thread is not None and self._process != os.getpid():
            self._loop = None  # the lock may be held for ever: its thread was not forked
            return
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(self._client.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    def get(
        self,
        cls: type | str,
        key: str | ObjectId,
        *,
        timeout: float | None = None,
        request_id: str | bytes | None = None,
    ) -> Any:
        """A stub of the object `key` of a class or namespace; see `Client.get`."""
        sender = self if request_id is None else NamedRequests(request_id, self)
        return Stub(self._client.target(cls, key, timeout), sender)

    def list(
        self, ns: type | str, *, prefix: str = "", limit: int = 1_000, cursor: str | None = None
    ) -> Listing:
        """A page of the stored objects of a namespace; see `Client.list`."""
        return self._wait(self._client.list(ns, prefix=prefix, limit=limit, cursor=cursor))

    def stats(self) -> _Figures:
        """Figures of each worker, in their order; see `Client.stats`."""
        return self._wait(self._client.stats())

    @property
    def slot_map(self) -> SlotMap | None:
        """Who owns which slot, as this client knows it."""
        return self._client.slot_map

    # --- the sender of stubs

    def start(
        self,
        target: Target,
        method: str,
        args: Any,
        kwargs: dict[str, Any] | None,
        spec: Method | None,
        request: Request | None = None,
    ) -> Any:
        """See `perdure.stub.Sender`: waits for the result, or for a stream's first item.

        `request` is for `NamedRequests`.
        """
        self._check_process()
        answer: Future[Any] = Future()
        issue: Callable[..., None] = self._client.issue
        with self._lock:
            self._running_loop().call_soon_threadsafe(
                issue, target, method, args, kwargs, spec, answer, request
            )
        try:
            return answer.result(target.timeout_s + _LIMITS.answer_grace_s + _MARGIN_S)
        except TimeoutError:
            if answer.done():  # the outcome itself
                raise
            raise OutcomeUnknown("the client's thread gave no answer; is the process overloaded?") from None
        except StreamingMethod as streams:
            return SyncStream(streams.take_hold(), self._running_loop)

    start_stream = start

    def fetch(
        self, target: Target, request: Any, *, named: Request | None = None, **options: Any
    ) -> SyncWebReply:
        """See `perdure.stub.Sender`; `named` is for `NamedRequests`."""
        options = with_async_body(options)
        reply = self._wait(self._client.fetch(target, request, named=named, **options))
        return SyncWebReply(reply, self._wait)

    def refuse(self, error: PerdureError) -> Any:
        """See `perdure.stub.Sender`."""
        raise error

    # --- the thread

    def _check_process(self) -> None:
        """Before the lock is taken: a fork may have left it taken by a thread that is not here."""
        if self._thread is not None and self._process != os.getpid():
            raise RuntimeError("this client was connected before fork; connect in the child")

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        self._check_process()
        if self._thread is None:
            raise RuntimeError("not connected yet: use `with connect_sync() as client`")
        if self._loop is None:
            raise ShardUnavailable("this client is closed; connect again for further calls")
        return self._loop

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            self._check_process()
            with self._lock:
                answer = asyncio.run_coroutine_threadsafe(work, self._running_loop())
        except BaseException:
            work.close()
            raise
        try:
            return answer.result()
        except CancelledError:
            raise ShardUnavailable("this client was closed before the answer came") from None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """The client's thread."""
    asyncio.set_event_loop(loop)
    loop.run_forever()
    # What other threads still wait for ends too, before the loop does.
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
