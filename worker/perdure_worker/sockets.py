"""The WebSockets of one object: which are open, their tags and attachments, and what they are sent.

Guarantees: what a turn does to sockets is part of its batch, and undone when it raises; a socket that was
accepted is there after every wake, until it has ended; its object hears of its end once; an accept counts
only when `fetch` returns it, in one batch with what `fetch` wrote last.

Nothing is read or kept for objects that do not use sockets: the first use reads all rows of the object.
Runs in the worker's event loop, and in the thread of a `@blocking` method.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from perdure import codec
from perdure.converter import describe_error
from perdure.errors import InvalidArgument, Overloaded, PerdureError, StorageError
from perdure.websocket import UPGRADE_SCOPE_KEY, WebSocketResponse
from perdure_storage import keys
from perdure_storage.records import seal, unseal
from perdure_worker.socket_frames import AUTO, CLOSE, Frames
from perdure_worker.socket_handles import Socket, State

if TYPE_CHECKING:
    from perdure_worker.execution import Execution
    from perdure_worker.resident import Resident

__all__ = ["ObjectSockets", "Upgrade", "run_handler", "sockets_of"]

log = logging.getLogger("perdure.worker")

_SENT = b"\xff"
"""Behind keys.SOCKET in the write-set, and never on disk: the turn has sent something."""


def run_handler(host: Execution, handler: Any, instance: Any, *args: Any) -> Any:
    """Calls a handler of the class as its turn does; what it gives may be a coroutine."""
    function, blocking = handler
    return host._threads.run(function, instance, *args) if blocking else function(instance, *args)


def sockets_of(host: Execution, resident: Resident) -> ObjectSockets:
    """The object's sockets, read from its storage when it asks first."""
    storage = host.storage_of(resident)
    sockets = storage._sockets
    if sockets is None:
        sockets = storage._sockets = ObjectSockets(host, resident)
    return sockets


class ObjectSockets:
    """The sockets of one incarnation of an object."""

    __slots__ = (
        "_auto",
        "_by_tag",
        "_frames",
        "_host",
        "_limits",
        "_open",
        "_prefix",
        "_resident",
        "_storage",
        "_undo",
        "_undo_auto",
        "upgrades",
    )

    def __init__(self, host: Execution, resident: Resident) -> None:
        self._host = host
        self._resident = resident
        self._storage = host.storage_of(resident)
        self._limits = host.limits
        self._prefix = resident.row_prefix()
        self._open: dict[bytes, Socket] = {}
        self._by_tag: dict[str, dict[bytes, Socket]] = {}
        self._auto: tuple[str, str] | None = None
        self._frames = Frames()
        self._undo: dict[bytes, tuple[Socket, State, bytes]] = {}
        """What was changed since the last commit point, as it was."""
        self._undo_auto: tuple[tuple[str, str] | None] | None = None
        self.upgrades: dict[bytes, Upgrade] = {}
        """The `fetch`es that run and may accept a socket, by its key."""
        self._load()

    def __len__(self) -> int:
        return len(self._open)

    def _load(self) -> None:
        start = self._prefix + keys.SOCKET
        found: list[Socket] = []
        for row, record in self._storage._merged(start, keys.prefix_end(start), reverse=False):
            key, value = row[len(start) :], codec.decode(unseal(row, record))
            try:
                if key:
                    tags, attachment, accepted_ms, protocol = value
                    found.append(
                        Socket(self, key, State.OPEN, tuple(tags), attachment, accepted_ms, protocol)
                    )
                else:
                    request, response = value
                    self._auto = request, response
            except (TypeError, ValueError) as error:
                raise StorageError(f"the stored socket {key.hex()} cannot be read: {error}") from error
        for socket in sorted(found, key=lambda socket: (socket._accepted_ms, socket.key)):
            self._put_in(socket)

    # --- what objects and others ask

    @property
    def host(self) -> Execution:
        """Where the object lives."""
        return self._host

    @property
    def label(self) -> str:
        """The object, for messages."""
        return self._resident.label

    def find(self, key: bytes) -> Socket | None:
        """The open socket with this key."""
        return self._open.get(key)

    def listed(self, tag: str | None = None) -> list[Any]:
        """See `Context.websockets`."""
        return list((self._open if tag is None else self._by_tag.get(tag, {})).values())

    @property
    def auto_response(self) -> tuple[str, str] | None:
        """The automatic response, and what it answers."""
        return self._auto

    # --- what turns do

    def accept(
        self, request: Any, tags: Iterable[str], attachment: Any, protocol: str | None
    ) -> WebSocketResponse:
        """See `Context.accept_websocket`."""
        self._host.check_turn(self._resident)
        scope = getattr(request, "scope", None)
        key = scope.get(UPGRADE_SCOPE_KEY) if isinstance(scope, Mapping) else None
        if type(key) is not bytes:
            raise InvalidArgument(
                "this request asks for no WebSocket: give accept_websocket the request that fetch was given, "
                "when its `upgrade` header says websocket"
            )
        upgrade = self.upgrades.get(key)
        if upgrade is None:
            raise InvalidArgument("the fetch of this request has ended: its WebSocket cannot be accepted now")
        if upgrade.socket is not None or key in self._open:
            raise InvalidArgument("this WebSocket is accepted already")
        limit = self._limits.sockets_per_object_max
        pending = sum(other.socket is not None for other in self.upgrades.values())
        if len(self._open) + pending >= limit:
            raise Overloaded(
                f"{self._resident.label} has {limit} WebSockets already", limit="sockets_per_object_max"
            )
        self._host.gateways.expect(key[: keys.GATEWAY_ID_BYTES])
        if protocol is not None and (
            type(protocol) is not str or not 1 <= len(protocol) <= self._limits.socket_protocol_chars_max
        ):
            raise InvalidArgument(
                f"a subprotocol is one of those that the client offers, not {protocol!r:.80}"
            )
        checked, encoded = self._checked_tags(tags), self._encoded(attachment)
        now_ms = self._host.timetable.now_ms()
        socket = upgrade.socket = Socket(self, key, State.PENDING, checked, encoded, now_ms, protocol)
        return WebSocketResponse(key, socket, protocol)

    def set_auto_response(self, request: str | None, response: str | None) -> None:
        """See `Context.set_websocket_auto_response`."""
        self._host.check_turn(self._resident)
        auto: tuple[str, str] | None = None
        if request is not None or response is not None:
            auto = _auto_text(request, self._limits), _auto_text(response, self._limits)
        if auto == self._auto:
            return
        for socket in self._open.values():
            self._emit(socket, AUTO, auto)
        if self._undo_auto is None:
            self._undo_auto = (self._auto,)
        self._auto = auto
        row = self._prefix + keys.SOCKET
        self._storage._put_row(row, None if auto is None else seal(row, codec.encode(list(auto))))

    def send(self, socket: Socket, kind: int, payload: str | bytes) -> None:
        """See `WebSocket.send`."""
        self._host.check_turn(self._resident)
        size, limit = len(payload), self._limits.socket_frame_bytes_max
        if type(payload) is str and not payload.isascii():
            try:
                size = len(payload.encode())
            except UnicodeEncodeError:
                raise InvalidArgument(
                    "the message holds a lone surrogate, which is no valid Unicode"
                ) from None
        if size > limit:
            raise InvalidArgument(
                f"the message has {size} bytes; {limit} are allowed (socket_frame_bytes_max)"
            )
        if socket._state is State.OPEN:
            self._emit(socket, kind, payload)
        elif socket._state is State.PENDING:
            socket._held.append((kind, payload))
        elif socket._state is State.CLOSED:
            raise RuntimeError(
                f"the object has closed this WebSocket ({socket.id}); nothing can be sent to it"
            )

    def close(self, socket: Socket, code: int, reason: str) -> None:
        """See `WebSocket.close`."""
        self._host.check_turn(self._resident)
        if socket._state is State.OPEN:
            self._emit(socket, CLOSE, (code, reason))
            self._remember(socket)
            self._take_out(socket, State.CLOSED)
            self._put_rows(socket, stored=False)
        elif socket._state is State.PENDING:
            socket._held.append((CLOSE, (code, reason)))
            socket._state = State.CLOSED

    def attach(self, socket: Socket, value: Any) -> None:
        """See `WebSocket.attachment`."""
        self._host.check_turn(self._resident)
        encoded = self._encoded(value)
        if socket._state is State.OPEN and encoded != socket._attachment:
            self._remember(socket)
            socket._attachment = encoded
            self._put_row(socket)
        elif socket._state is State.PENDING:
            socket._attachment = encoded

    def _encoded(self, attachment: Any) -> bytes:
        encoded = codec.encode(attachment)
        limit = self._limits.socket_attachment_bytes_max
        if len(encoded) > limit:
            raise InvalidArgument(f"the attachment has {len(encoded)} bytes encoded; {limit} are allowed")
        return encoded

    def _checked_tags(self, tags: Iterable[str]) -> tuple[str, ...]:
        if isinstance(tags, str):
            raise InvalidArgument("tags are a list of str; for a single one: tags=[tag]")
        checked = tuple(dict.fromkeys(tags))
        limits = self._limits
        if len(checked) > limits.socket_tags_max:
            raise InvalidArgument(
                f"a WebSocket has {limits.socket_tags_max} tags at most, not {len(checked)}"
            )
        for tag in checked:
            if type(tag) is not str or not 1 <= len(tag) <= limits.socket_tag_chars_max:
                raise InvalidArgument(
                    f"a tag is a str of 1 to {limits.socket_tag_chars_max} characters, not {tag!r:.80}"
                )
        codec.encode(list(checked))  # a lone surrogate cannot be stored
        return checked

    # --- accepting

    def admit(self, socket: Socket) -> None:
        """`fetch` has returned the socket that it accepted: its rows and frames join the turn's batch."""
        self._host.gateways.expect(socket.gateway)
        if socket._state is State.PENDING:
            self._undo.setdefault(socket.key, (socket, State.PENDING, socket._attachment))
            self._put_in(socket)
            self._put_rows(socket, stored=True)
            socket._state = State.OPEN
        held, socket._held = socket._held, []
        for kind, payload in held:
            self._emit(socket, kind, payload)

    # --- ends

    async def end(self, socket: Socket, code: int, reason: str, was_clean: bool, error: str | None) -> None:
        """The whole turn in which the object hears of a socket's end: its rows are gone with that, or before.

        A handler that raises is undone and logged; one that is cut off has its socket removed all the same.
        """
        host, resident, handlers = self._host, self._resident, self._resident.cls.sockets
        self._undo.pop(socket.key, None)
        self._take_out(socket, State.GONE)
        try:
            if error is not None:
                await self._run(handlers.error, "websocket_error", socket, ConnectionError(error))
            await self._run(handlers.close, "websocket_close", socket, code, reason, was_clean)
        except BaseException as raised:
            if type(raised) is not GeneratorExit:  # the worker ends, and its successor runs this again
                log.warning("a socket's end was cut off", extra=self._told(socket, raised))
                self.remove_beside(socket)
            raise
        if resident.doomed is None:
            self._put_rows(socket, stored=False)
        else:
            host.write_beside(resident, self._removal(socket))

    async def _run(self, handler: Any, name: str, socket: Socket, *args: Any) -> None:
        if handler is None:
            return
        try:
            result = run_handler(self._host, handler, self._resident.instance, socket, *args)
            if type(result) is CoroutineType:
                await result
            self._host._changes(self._resident)  # raises for a field that cannot be stored
        except Exception as error:
            log.error(f"{name} raised", extra=self._told(socket, error))
            self._host.discard(self._resident)

    def remove_beside(self, socket: Socket) -> None:
        """Removes a socket in a batch that is none of the running turn's."""
        self._undo.pop(socket.key, None)
        self._take_out(socket, State.GONE)
        self._host.write_beside(self._resident, self._removal(socket))

    def _told(self, socket: Socket, error: BaseException) -> dict[str, str]:
        return {"object": self._resident.label, "socket": socket.id, "error": describe_error(error)}

    # --- the turn's commit, and its way back

    def take(self) -> dict[bytes, list[bytes]]:
        """A commit point: the records of what was sent since the last one, by gateway."""
        self._undo.clear()
        self._undo_auto = None
        if not self._frames:
            return {}
        frames, self._frames = self._frames, Frames()
        marker = self._prefix + keys.SOCKET + _SENT
        self._storage._put_row(marker, None)
        del self._storage._writes[marker]
        self._storage._write_bytes -= len(marker)
        return frames.records(self._limits)

    def rollback(self) -> None:
        """The turn has failed: everything is as at its last commit point."""
        self._frames = Frames()
        if self._undo_auto is not None:
            (self._auto,) = self._undo_auto
            self._undo_auto = None
        if not self._undo:
            return
        undo, self._undo = self._undo, {}
        for socket, state, attachment in undo.values():
            socket._attachment = attachment
            if state is State.OPEN:
                self._put_in(socket)
                socket._state = state
            else:
                self._take_out(socket, State.GONE)
        order = sorted(self._open.values(), key=lambda socket: (socket._accepted_ms, socket.key))
        self._open, self._by_tag = {}, {}
        for socket in order:
            self._put_in(socket)

    # --- in memory, and in the write-set

    def _emit(self, socket: Socket, kind: int, payload: Any) -> None:
        frames, storage = self._frames, self._storage
        if frames.join(socket.gateway, socket.number, kind, payload):
            return
        storage._check_growth(frames.size + frames.growth(kind, payload))
        if not frames:
            storage._put_row(self._prefix + keys.SOCKET + _SENT, b"")
        frames.add(socket.gateway, socket.number, kind, payload)

    def _remember(self, socket: Socket) -> None:
        self._undo.setdefault(socket.key, (socket, socket._state, socket._attachment))

    def _put_in(self, socket: Socket) -> None:
        self._open[socket.key] = socket
        for tag in socket.tags:
            self._by_tag.setdefault(tag, {})[socket.key] = socket

    def _take_out(self, socket: Socket, state: State) -> None:
        socket._state = state
        if self._open.pop(socket.key, None) is not None:
            for tag in socket.tags:
                del self._by_tag[tag][socket.key]
                if not self._by_tag[tag]:
                    del self._by_tag[tag]

    def _put_row(self, socket: Socket) -> None:
        row = self._prefix + keys.SOCKET + socket.key
        value = [list(socket.tags), socket._attachment, socket._accepted_ms, socket.protocol]
        self._storage._put_row(row, seal(row, codec.encode(value)))

    def _put_rows(self, socket: Socket, *, stored: bool) -> None:
        if stored:
            index = keys.socket_index_key(socket.key, self._prefix)
            self._put_row(socket)
            self._storage._put_row(index, seal(index, b""))
        else:
            for row in self._removal(socket):
                self._storage._put_row(row, None)

    def _removal(self, socket: Socket) -> dict[bytes, bytes | None]:
        rows = (
            self._prefix + keys.SOCKET + socket.key,
            keys.socket_index_key(socket.key, self._prefix),
        )
        return dict.fromkeys(rows)


class Upgrade:
    """Around a `fetch` that may accept a socket: ``with Upgrade(host, resident, key) as upgrade:``.

    In it `fetch` runs, and then ``upgrade.end(response)``.  `key` is that of the socket which the request
    asks for, None for a request that asks for none.
    """

    __slots__ = ("_key", "_sockets", "socket")

    def __init__(self, host: Execution, resident: Resident, key: bytes | None) -> None:
        self._key = key
        self._sockets = None if key is None else sockets_of(host, resident)
        self.socket: Socket | None = None
        """What was accepted."""

    def __enter__(self) -> Upgrade:
        if self._sockets is not None and self._key is not None:
            self._sockets.upgrades[self._key] = self
        return self

    def __exit__(self, *_: object) -> None:
        if self._sockets is not None and self._key is not None:
            self._sockets.upgrades.pop(self._key, None)
        if self.socket is not None and self.socket._state is State.PENDING:
            self.socket._state = State.GONE

    def end(self, response: Any) -> list[Any] | None:
        """What `fetch` has returned, for the wire if it takes the socket; None for any other response.

        The turn must end without another await.  Raises `RuntimeError` for an accept that is not returned.
        """
        if isinstance(response, WebSocketResponse):
            if self.socket is None or self._sockets is None or response.socket != self._key:
                raise RuntimeError("fetch has returned the response that took another request's WebSocket")
            self._sockets.admit(self.socket)
            auto = self._sockets.auto_response
            extra = {"auto": None if auto is None else list(auto), "protocol": response.protocol}
            return [response.status_code, [], b"", extra]
        if self.socket is not None:
            raise RuntimeError(
                "fetch has accepted a WebSocket and returned something else: "
                "return what ctx.accept_websocket gave"
            )
        return None


def _auto_text(text: Any, limits: Any) -> str:
    limit = limits.socket_auto_response_chars_max
    if type(text) is not str or len(text) > limit:
        raise InvalidArgument(
            f"an automatic response and what it answers are text of up to {limit} characters"
        )
    try:
        codec.encode(text)
    except PerdureError:
        raise InvalidArgument("an automatic response is valid Unicode") from None
    return text
