"""What users derive from: `DurableObject`, and what an object finds on itself.

Objects live in a worker.  Their storage and context are handed in by the worker's host through one
private attribute; this module only says what they can do.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta
from typing import Any, ClassVar, NoReturn, Protocol, TypeVar, overload

from perdure.alarm import DEFAULT_ALARM, Alarm
from perdure.errors import InvalidArgument
from perdure.ids import ObjectId
from perdure.limits import Limits
from perdure.outbox import Outbox
from perdure.storage import ReadableStorage, Snapshot, Transaction
from perdure.websocket import Upgradable, WebSocket, WebSocketResponse

__all__ = ["Context", "DurableObject", "Storage", "WebSocketConnection", "namespace_of"]

T = TypeVar("T")
_Keys = Iterable[str]
_Alarms = list[Alarm]
_NAMESPACE = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*", re.ASCII)
_NAMESPACE_CHARS_MAX = Limits().namespace_chars_max
_NAMESPACE_RULE = (
    f"1 to {_NAMESPACE_CHARS_MAX} ASCII letters, digits, '_', '-' or '.', starting with a letter or '_'"
)


class Storage(ReadableStorage, Protocol):
    """An object's private, durable, ordered key-value storage.

    Keys are str (at most `key_bytes_max` bytes, ordered by their UTF-8 bytes), values what the codec
    carries (at most `value_bytes_max` bytes encoded).  Reads see the turn's own writes.  All writes of
    a turn become durable together, before anybody outside sees the turn's answer.  All errors are
    `StorageError`, and a call that raises stored nothing.  Code that outlives its turn (a task nobody
    awaited) can read, but its writes raise: nothing would commit them.
    """

    def put(self, key: str, value: Any) -> None:
        """Stores a value; a plain call, nothing to await."""

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Stores all of the values, or none when one of them is bad."""

    def delete(self, key: str) -> bool:
        """Deletes a key; whether it existed."""

    def delete_many(self, keys: _Keys) -> int:
        """Deletes keys; how many of them existed."""

    def transaction(self) -> Transaction:
        """``async with self.storage.transaction() as txn:`` counts all writes of `txn`, or none if it raises.

        One at a time; `txn.transaction()` nests.  See `perdure.storage.Transaction`.
        """

    def snapshot(self) -> Snapshot:
        """``with self.storage.snapshot() as view:`` reads one instant over any number of awaits and pages."""

    def set_alarm(self, when: datetime | timedelta | float, name: str = DEFAULT_ALARM) -> None:
        """Has the class's handler ``alarm(self, alarm)`` called at `when` or soon after, never before.

        `when` is an aware datetime, a timedelta from now, or seconds since the epoch.  An object can have
        any number of alarms by name, up to `alarms_max`; setting one again replaces it.  It is stored with
        the turn's other writes or not at all.  The handler runs at least once, as a turn like any call:
        its writes and the deletion of the alarm are one commit.  When it raises, it is run again after 2 s,
        4 s, 8 s ... with a growing `alarm.attempt`; after `alarm_retries_max` retries the alarm stays as
        dead, for `list_alarms` to show.  Raises `StorageError` for a class without the handler, a naive
        datetime, and what is no time.
        """

    async def get_alarm(self, name: str = DEFAULT_ALARM) -> datetime | None:
        """What the alarm is set to (UTC); None when it is not set, is dead, or runs just now."""

    def delete_alarm(self, name: str = DEFAULT_ALARM) -> bool:
        """Deletes an alarm, dead or not; whether there was one.  One that runs just now runs to its end."""

    async def list_alarms(self) -> _Alarms:
        """All alarms by their times, also the dead ones; without the one that runs just now."""

    async def delete_all(self) -> None:
        """Deletes all values, durable fields and alarms; the object leaves the namespace's listing."""

    async def sync(self) -> None:
        """Waits until everything written so far is durable: a commit point within the turn."""


class WebSocketConnection(Protocol):
    """A WebSocket that an object has opened; see `Context.connect_websocket`.

    Everything raises `websockets.exceptions.ConnectionClosed` when it is closed (its `code` and `reason` say
    how), and `RuntimeError` outside of the turn that opened it.
    """

    @property
    def subprotocol(self) -> str | None:
        """What the server has chosen of the subprotocols that were offered."""

    async def send(self, message: str | bytes) -> None:
        """Sends a text or bytes; it leaves when all that the turn wrote before it is durable.

        So it is a commit point.  A turn that runs again after a crash sends again.  Raises `MessageTooLarge`
        beyond `websocket_client_message_bytes_max`, `TimeoutError` when the peer does not read.
        """

    async def recv(self, timeout: float | None = None) -> str | bytes:
        """The next message; raises `TimeoutError` when none comes within `timeout` seconds."""

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        """The messages until the peer closes in order."""

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Closes it, and waits for the peer to agree; a commit point, as `send`."""


class Context(Protocol):
    """What an object can do beyond itself."""

    @overload
    def get(self, cls: type[T], key: str | ObjectId, *, timeout: float | None = None) -> T: ...
    @overload
    def get(self, cls: str, key: str | ObjectId, *, timeout: float | None = None) -> Any: ...
    def get(self, cls: Any, key: str | ObjectId, *, timeout: float | None = None) -> Any:
        """A stub of another object.  Calling it is a commit point of the running turn.

        `timeout` is the deadline of each call in seconds, 30 by default; that of the running turn's own call
        comes first.
        """

    def send(
        self,
        cls: type | str,
        key: str | ObjectId,
        *,
        delay: float | timedelta | None = None,
        at: float | datetime | None = None,
    ) -> Any:
        """A stub whose calls are durable one-way messages: plain calls that return None at once.

        A message belongs to the running turn like a write: it leaves when the turn is committed, never
        when the turn raises, and takes effect at its target exactly once, whatever crashes meanwhile.
        Messages of one object to one target arrive in the order of their commits, and none before the one
        in front of it has ended; other targets do not wait.  A call is no commit point, and belongs to the
        turn also inside of a `storage.transaction()`.

        `delay` (seconds, or a timedelta, from the call on) and `at` (aware datetime, or seconds since the
        epoch) say when it may arrive at the earliest.  Such messages go in the order of their times, and
        messages sent later do not wait for them.

        A target that is down, busy or starting is tried again without end.  When its method raises, or it
        refuses the call, the message is tried again with growing pauses, `send_attempts_max` times in all;
        then it is dead, which `outbox` shows, and the next message goes.  `delete_all` deletes no messages:
        they were sent.

        Each call raises `InvalidArgument`, `UnknownMethod`, `UnknownNamespace` or `MessageTooLarge` for
        what could never be delivered, `Overloaded` when too much waits already, and `StorageError` outside
        of a turn.
        """

    @property
    def outbox(self) -> Outbox:
        """The object's own durable sends that have not ended, the dead ones among them."""

    def abort(self, reason: str) -> NoReturn:
        """Ends this incarnation now: uncommitted writes are lost, waiting calls get the reason.

        So do turns of `@interleaved` methods that are inside: each is cancelled where it waits.
        """

    def exclusive(self) -> AbstractAsyncContextManager[None]:
        """``async with self.ctx.exclusive():`` in an `@interleaved` method: alone until the block's end.

        Waits for its turn, first come first served; then no other turn of the object starts or goes on,
        also while the block awaits.  What the block writes is committed wherever it suspends, as outside of
        it; tasks that other turns have started are not turns, and go on.  In a serial method, which is alone
        anyway, it does nothing.

        Raises `RuntimeError` in a turn that is in such a block, or waits for one, already.
        """

    def accept_websocket(
        self,
        request: Upgradable,
        *,
        tags: Iterable[str] = (),
        attachment: Any = None,
        protocol: str | None = None,
    ) -> WebSocketResponse:
        """In `fetch`: takes the WebSocket that `request` asks for.  Return what it gives.

        From then on the class's handlers are called for it: ``websocket_message(self, ws, message)``,
        ``websocket_close(self, ws, code, reason, was_clean)``, ``websocket_error(self, ws, error)``.
        `tags` (up to 10 of up to 256 characters) are for `websockets(tag)`, `attachment` is stored with the
        socket, `protocol` is one of the subprotocols that the client offers.  When `fetch` raises, the
        client gets an error and the object no socket; any other response refuses the socket.

        Raises `InvalidArgument` for a request that asks for no socket and what the limits do not allow,
        `Overloaded` when the object has `sockets_per_object_max` sockets.
        """

    def websockets(self, tag: str | None = None) -> list[WebSocket]:
        """The object's open WebSockets, or those with a tag, in the order of their acceptance.

        Also in `on_start`: sockets stay while the object is not in memory.
        """

    def set_websocket_auto_response(self, request: str | None, response: str | None) -> None:
        """Has the gateway answer each text message that is `request` with `response` by itself.

        That wakes no object, and no handler sees such a message.  It is for all sockets of the object, the
        later ones too, and is stored with the turn.  ``(None, None)`` ends it.  Raises `InvalidArgument` for
        what is no text of up to `socket_auto_response_chars_max` characters, `StorageError` outside of a
        turn.
        """

    def connect_websocket(
        self, url: str, *, headers: Mapping[str, str] | None = None, subprotocols: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[WebSocketConnection]:
        """``async with self.ctx.connect_websocket("wss://...") as ws:`` is a client of a WebSocket elsewhere.

        The socket belongs to the turn: it is closed at the end of the block, with 1011 when the block raises,
        and cut at the turn's limit.  Other turns of the object wait meanwhile, unless the method is
        `@interleaved`; to listen for longer than a turn lasts, set an alarm and open it again.  Opening it is
        a commit point, as a call to another object is.  Raises what the `websockets` library raises
        (`OSError`, `TimeoutError`, `websockets.exceptions.InvalidHandshake`), `InvalidArgument` for what is
        no URL of one, and `RuntimeError` outside of a turn and in the thread of a `@blocking` method.
        """

    @property
    def old_fields(self) -> dict[str, Any]:
        """In `on_migrate` only: what is stored of durable fields and does not fit the class any more.

        That are fields which the class no longer declares, and those whose stored value is not what their
        annotation says now, by name, as plain values (a dataclass as a dict).  A field of the latter kind
        must be set by `on_migrate`.  What is taken out (``old_fields.pop("name")``) is deleted from storage
        with the migration; the rest stays.  Raises `RuntimeError` elsewhere.
        """


class Cell(Protocol):
    """The host's side of a live object."""

    @property
    def id(self) -> ObjectId: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def context(self) -> Context: ...


class DurableObject:
    """Base of users' classes.  Each instance has an id, storage of its own, and one turn at a time.

    Public methods of the class can be called by anybody who knows the id; names with a leading
    underscore and the handlers (`on_start` and those of later features) cannot.  The namespace is
    the class's name; ``class Room(DurableObject, namespace="rooms")`` says otherwise.

    A method that is an async generator streams what it yields.  It is one turn: other calls wait until
    it has ended, and it waits for a slow reader.  Each `yield` is a commit point; when the reader leaves,
    the generator is closed there, or cancelled where it waits, as the object was at its last item.

    Handlers that a class may define, plain or async, each a turn like any call:

    - ``websocket_message(self, ws, message)``: a message (`str` or `bytes`) of a socket that the object has
      accepted.  Those of one socket come one after the other, in order, and each takes effect once.  When
      it raises, what it did leaves no trace, the error is logged, and the socket stays open.
    - ``websocket_close(self, ws, code, reason, was_clean)``: the client has closed the socket or is gone
      (1006), once.  `ctx.websockets()` has it no more; also when this raises.
    - ``websocket_error(self, ws, error)``: something went wrong with the socket; `websocket_close` follows.
    """

    version: Any = 1
    """Version of what objects of the class store, an int of 1 or higher; see `on_migrate`.

    Only a plain int in a class body is that.  A class with a method, a property or a durable field of this
    name keeps it for itself, and its objects stay at version 1.
    """

    _perdure_namespace: ClassVar[str] = ""
    _perdure_cell: Cell

    def __init_subclass__(cls, *, namespace: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        chosen = namespace if namespace is not None else cls.__name__
        if not _is_namespace(chosen):
            raise TypeError(
                f"{cls.__qualname__}: a namespace is {_NAMESPACE_RULE}: {chosen!r}; give it one: "
                f'class {cls.__name__}(DurableObject, namespace="...")'
            )
        cls._perdure_namespace = chosen

    @property
    def id(self) -> ObjectId:
        """This object's id; `id.name` is its name, None for objects with a unique id."""
        return self._cell().id

    @property
    def storage(self) -> Storage:
        """This object's own durable storage."""
        return self._cell().storage

    @property
    def ctx(self) -> Context:
        """Other objects, and this one's life."""
        return self._cell().context

    def on_start(self) -> Awaitable[None] | None:
        """Override it (plain or async): runs once in each incarnation, before the first turn."""
        return None

    def on_migrate(self, old_version: int) -> Awaitable[None] | None:
        """Override it (plain or async): brings an object of an older `version` of its class up to date.

        It runs once for each such object, at its next start, before `on_start()`; not for new objects.  Its
        writes and the new version are on disk, in one batch, before anything else runs.  So it may neither
        call other objects nor `sync()`.  Afterwards the object is loaded afresh.  When it raises, the object
        stays as it was, callers get the error, and a later call tries again.  Fields are loaded as the class
        declares them now; `ctx.old_fields` has what does not fit any more.

        Without this method a higher version is recorded with the object's next write.  An object that was
        stored by a higher version than the class's own is refused with a `StorageError`.
        """
        return None

    def _cell(self) -> Cell:
        try:
            return self._perdure_cell
        except AttributeError:
            raise RuntimeError(
                f"this {type(self).__name__} was made by hand and has no storage; "
                "objects live in a worker and are reached through client.get(...)"
            ) from None


def _is_namespace(name: str) -> bool:
    return len(name) <= _NAMESPACE_CHARS_MAX and _NAMESPACE.fullmatch(name) is not None


def namespace_of(cls: type | str) -> str:
    """The namespace of a class, or the name itself.

    Raises `InvalidArgument` for what cannot be a namespace's name, `TypeError` for what is no name.
    """
    if isinstance(cls, str):
        if not _is_namespace(cls):
            raise InvalidArgument(f"a namespace is {_NAMESPACE_RULE}: {cls!r:.80}")
        return str.__str__(cls)
    if isinstance(cls, type) and issubclass(cls, DurableObject) and cls is not DurableObject:
        return cls._perdure_namespace
    raise TypeError(f"a DurableObject class or a namespace's name is needed, not {cls!r}")
