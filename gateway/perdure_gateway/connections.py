"""HTTP connections of the gateway's server: uvicorn's protocol, with deadlines and bounds of our own.

Guarantees that a connection ends which does not send its headers or its body in time, lies idle for too
long, or does not take its response; that headers are bounded; that no client holds more connections than
its share; and that what two readers of one message could understand differently is refused.  Measured: as
it comes, uvicorn does none of this (docs/decisions/0018-the-http-server.md).  Runs in the gateway process.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from enum import Enum
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from perdure.limits import Limits
from perdure_gateway.admission import Admission
from perdure_gateway.socket_connection import SocketConnection

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ["Connection", "GuardedConfig", "Rules"]


_END_OF_HOST = re.compile(rb"[/?#]")
_JOINED_BYTES_MAX = 64 * 1024
"""A larger body is not copied behind its headers."""


class Rules:
    """What all connections of one server share: limits, who may connect, and the time of the last look."""

    def __init__(self, limits: Limits, admission: Admission) -> None:
        self.limits = limits
        self.admission = admission
        self.now = 0.0
        """Set at each look: connections need no better clock, and it costs them nothing."""
        self.cut = 0
        """Connections that were ended for what their clients did or did not do."""


class GuardedConfig(Config):
    """uvicorn's configuration, with the rules that its connections find there."""

    rules: Rules


class Phase(Enum):
    """What a connection waits for."""

    HEAD = "the headers of a request"
    BODY = "the body of a request"
    ANSWER = "the application's answer"
    IDLE = "the next request"
    LINGER = "the end of what the client still sends"
    REFUSED = "the answers to what came before something that nobody understands"


class _Refused(Exception):
    """A request that is not handed on."""


class _Transport:
    """The transport as an answer sees it.

    Closing it does not throw away what the client has not read yet.  Headers leave together with the body
    that follows in the same tick: two writes are two system calls, 6 of 60 µs each.
    """

    __slots__ = ("_close", "_flushing", "_held", "_loop", "_write", "is_closing")

    def __init__(
        self, connection: Connection, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._write = transport.write
        self._close = connection.close_in_order
        self._loop = loop
        self._held = b""
        self._flushing: asyncio.Handle | None = None
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Sends the bytes, now or at the end of this tick."""
        held = self._held
        if held:
            self._held = b""
            self._write(held + data if len(data) <= _JOINED_BYTES_MAX else held)
            if len(data) > _JOINED_BYTES_MAX:
                self._write(data)
        elif data:
            self._held = data
            if self._flushing is None:
                self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = None
        self.flush()

    def flush(self) -> None:
        """Hands over what is held, for whoever goes on without this one."""
        if self._held:
            held, self._held = self._held, b""
            self._write(held)

    def close(self) -> None:
        """Ends the connection behind what was written."""
        self._close()


class Connection(HttpToolsProtocol):
    """One HTTP connection.  `look` is called every `http_look_s`."""

    config: GuardedConfig
    cycle: RequestResponseCycle | None  # type: ignore[assignment]

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._rules: Rules = self.config.rules
        self._limits = self._rules.limits
        self._phase = Phase.HEAD
        self._since = self._rules.now
        """When the phase began; while a body is read, when its latest bytes came."""
        self._begun = 0.0
        """When the body began, moved on by the time that nobody wanted it."""
        self._received = 0
        """Bytes of the head or body that is being read."""
        self._refusal: tuple[int, str] | None = None
        self._last_words: tuple[int, str] | None = None
        """What is refused once the requests before it are answered."""
        self._read: RequestResponseCycle | None = None
        """The request whose body is being read; None for an upgrade."""
        self._address: str | None = None
        self._counted = False
        self._running: RequestResponseCycle | None = None
        """The request that is being answered, while `cycle` is one that came behind it."""
        self._framing = 0
        """Bytes since the last of the body: sizes of chunks, and what follows on the last one."""
        self._unsent: tuple[int, float] | None = None
        """How much waits to be sent, and since when that is so much."""

    # --- life

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected; it stays if it may."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._transport = _Transport(self, self.transport, self.loop)
        self._address = self.client[0] if self.client is not None else None
        self._counted = self._rules.admission.enter(self._address)
        if not self._counted:
            self._end(503, "Too many connections.")

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        super().connection_lost(exc)
        if self._running is not None:
            _tell_left(self._running)
        self._leave()

    def _leave(self) -> None:
        if self._counted:
            self._counted = False
            self._rules.admission.leave(self._address)

    def handle_websocket_upgrade(self) -> None:
        """Hands the connection over; from now on its sockets' protocol counts it."""
        if self._unanswered() is not None or self.parser.get_http_version() == "1.0":
            self._end(
                400, "A WebSocket is asked for with HTTP/1.1, behind the answers to what was sent before."
            )
            return
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if isinstance(protocol, SocketConnection):
            if self._counted:
                self._counted = False
                protocol.counted(self._rules.admission, self._address)
            if not protocol.handshake_initiated:
                self._rules.cut += 1
                protocol.refuse_unread()
        self._leave()

    def _unanswered(self) -> RequestResponseCycle | None:
        """The request that is being answered."""
        cycle = self._running or self.cycle
        return None if cycle is None or cycle.response_complete else cycle

    # --- what comes

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        phase = self._phase
        if phase is Phase.LINGER or phase is Phase.REFUSED:
            self._received += len(data)
            if self._received > self._limits.http_linger_bytes_max:
                self.transport.abort()
            return
        if phase is Phase.IDLE:
            self._begin(Phase.HEAD)
        elif phase is Phase.BODY:
            self._since = self._rules.now
            self._framing += len(data)
        self._received += len(data)
        super().data_received(data)
        if self._phase is Phase.HEAD and self._received > self._limits.http_headers_bytes_max:
            self._end(431, "The headers are too large.")
        elif self._phase is Phase.BODY and self._framing > self._limits.http_headers_bytes_max:
            self._end(431, "The trailer is too large.")

    def _begin(self, phase: Phase) -> None:
        self._phase = phase
        self._since = self._begun = self._rules.now
        self._received = self._framing = 0

    def on_message_begin(self) -> None:
        """The parser has found the begin of a request."""
        super().on_message_begin()
        if self._phase is not Phase.HEAD:  # the second of two that came together
            self._begin(Phase.HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser has read a header, or a field behind a chunked body.

        What comes there is no header (RFC 9110 §6.5.1): whoever stands in front has not looked at it.
        """
        if self._phase is Phase.HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The parser has read the headers."""
        self._check_head()
        if self._refusal is not None:
            raise _Refused
        self._begin(Phase.BODY)
        before = self.cycle
        super().on_headers_complete()
        cycle = self.cycle
        self._read = cycle if cycle is not before else None
        if cycle is None or cycle is before:  # an upgrade
            return
        cycle.transport = self._transport  # type: ignore[assignment]
        if self.pipeline and self._running is None:
            self._running = before
        if self.parser.should_upgrade():  # to what nobody here speaks: the parser reads no more behind it
            cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """The parser has read a piece of the body."""
        self._framing = 0
        super().on_body(body)

    def _check_head(self) -> None:
        size, hosts, host = len(self.url), 0, b""
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts, host = hosts + 1, value
            elif name == b"transfer-encoding" and (
                value.lower() != b"chunked" or self.parser.get_http_version() == "1.0"
            ):
                # Anything else would be understood by one reader and passed over by another.
                self._refusal = 501, "The only transfer encoding here is chunked."
        if size > self._limits.http_headers_bytes_max or len(self.headers) > self._limits.http_headers_max:
            self._refusal = 431, "The headers are too large."
        elif hosts != 1 and (hosts or self.parser.get_http_version() == "1.1"):
            self._refusal = 400, "A request has one Host header."
        elif self.parser.get_http_version() not in ("1.1", "1.0"):
            self._refusal = 505, "This is a server of HTTP/1.1."
        elif self.parser.get_method() == b"CONNECT":
            self._refusal = 501, "This is no proxy."
        elif self.url[:1] != b"/" and hosts and _host_of(self.url) not in (host.lower(), b""):
            self._refusal = 400, "The request names one host, and its Host header another."

    def on_message_complete(self) -> None:
        """The parser has read the body."""
        super().on_message_complete()
        answered = self.cycle is not None and self.cycle.response_complete
        self._phase = Phase.IDLE if answered else Phase.ANSWER
        self._since = self._rules.now

    def send_400_response(self, msg: str) -> None:
        """The parser has refused the request, or `on_headers_complete` has."""
        status, text = self._refusal or (400, msg)
        self._end(status, text)

    # --- what leaves

    def on_response_complete(self) -> None:
        """The application has answered: on with the next request, or the wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing() or self._phase is Phase.LINGER:
            return
        if self._phase is Phase.BODY and not self.pipeline:
            # Whoever answers before the request has ended does not want the rest of it.
            self.close_in_order()
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._running = cycle if self.pipeline else None
            self._start_asgi_task(cycle, app)
        elif self._last_words is not None:
            self._refuse(*self._last_words)
        elif self._phase is Phase.ANSWER:
            self._phase = Phase.IDLE
            self._since = self._rules.now

    def close_in_order(self) -> None:
        """Ends the connection so that the client can read what was sent.

        Closing a socket with unread bytes resets it, which takes the response away from the client; so what
        it still sends is read for a moment.
        """
        if self._phase is Phase.LINGER or self.transport.is_closing():
            return
        self._transport.flush()
        if self._phase in (Phase.BODY, Phase.REFUSED):
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        self._begin(Phase.LINGER)
        self.flow.resume_reading()
        with contextlib.suppress(OSError, RuntimeError):  # the client may be gone
            self.transport.write_eof()

    def _end(self, status: int, text: str) -> None:
        """Answers for the application, unless it has begun to, and ends the connection.

        What stands behind requests that are still to be answered is refused behind their answers: the client
        takes what comes first for the answer to what it asked first.
        """
        if self.transport.is_closing():
            return
        self._rules.cut += 1
        cycle = self._unanswered()
        if cycle is not None and (self._phase is not Phase.BODY or cycle is not self._read):
            self._end_behind(status, text)
            return
        if cycle is not None and cycle.response_started:
            self.transport.abort()
            return
        if cycle is not None:
            _tell_left(cycle)
        self._refuse(status, text)

    def _end_behind(self, status: int, text: str) -> None:
        if self._phase is Phase.BODY and self._read is not None:  # it waits in the line itself
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._running
            if not self.pipeline:
                self._running = None
        self._begin(Phase.REFUSED)
        self._last_words = status, text
        self.flow.resume_reading()  # that the client leaves is seen by reading only

    def _refuse(self, status: int, text: str) -> None:
        phrase = HTTPStatus(status).phrase
        head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        retry = "retry-after: 1\r\n" if status == 503 else ""
        self._transport.flush()
        self.transport.write(
            f"{head}{retry}content-length: {len(text) + 1}\r\nconnection: close\r\n\r\n{text}\n".encode()
        )
        self._linger()

    # --- time

    def look(self, now: float, passed: float) -> None:
        """Ends the connection if its client is late; `passed` is the time since the last look."""
        limits, phase = self._limits, self._phase
        if self.transport.is_closing() or self.flow.write_paused:
            self._look_at_unsent(now)
        elif self._unsent is not None:
            self._unsent = None
        if phase is Phase.IDLE:
            if now - self._since >= limits.http_keep_alive_s:
                self.transport.close()
        elif phase is Phase.HEAD:
            if now - self._since >= limits.http_head_s:
                self._end(408, "The headers did not come in time.")
        elif phase is Phase.BODY:
            self._look_at_body(now, passed)
        elif phase is Phase.LINGER and now - self._since >= limits.http_linger_s:
            self.transport.abort()

    def _look_at_body(self, now: float, passed: float) -> None:
        limits, cycle = self._limits, self.cycle
        unwanted = self.flow.read_paused or (cycle is not None and cycle.waiting_for_100_continue)
        if unwanted:
            self._since = now
            self._begun += passed
            return
        earned = limits.http_body_idle_s + self._received / limits.http_body_rate_bytes
        if now - self._since >= limits.http_body_idle_s or now - self._begun >= earned:
            self._end(408, "The body did not come in time.")

    def _look_at_unsent(self, now: float) -> None:
        size = self.transport.get_write_buffer_size()
        if self._unsent is None or size < self._unsent[0]:
            self._unsent = size, now
        elif now - self._unsent[1] >= self._limits.http_write_stall_s:
            self._rules.cut += 1
            self.transport.abort()


def _tell_left(cycle: RequestResponseCycle) -> None:
    cycle.disconnected = True
    cycle.message_event.set()


def _host_of(url: bytes) -> bytes:
    """The host of a target in absolute form; "" for one that names none."""
    return _END_OF_HOST.split(url.partition(b"://")[2], maxsplit=1)[0].lower()
