"""Routing: messages of clients, doors and the supervisor in, messages out.  Pure; runs in the router process.

Guarantees, whatever comes in:
- A message reaches the incarnation of the worker that it was routed to, or its sender learns that it did
  not run: a batch comes back as STALE or REFUSED, a raw call gets a REPLY with the error.
- A raw call that may have reached a worker which then died ends in `OutcomeUnknown`, at once.
- What a dead incarnation still says is dropped.
- Every queue and table is bounded; a worker that does not read delays only its own calls.
- Bodies of clients are never decoded, and nothing that a peer sends raises.

The shell calls `on_...` for each event and then sends what stands in `answers` and `ready`, and opens and
closes the sockets in `opened` and `closed`.  A batch is routed by the first eight bytes of its header,
looked up in a table that holds one entry for each worker that can be reached under the current map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgpack

from perdure import codec, protocol
from perdure.backlog import Backlog
from perdure.errors import (
    InvalidArgument,
    MessageTooLarge,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    ShardUnavailable,
)
from perdure.limits import Limits
from perdure.slotmap import SlotMap
from perdure_router import answers
from perdure_router.links import Entry, Link, call_key, entries

__all__ = ["COUNTERS", "Router"]

COUNTERS: Final = (
    "batches",  # forwarded to workers
    "calls",  # raw calls forwarded to workers
    "stream_news",  # messages of readers of streams, forwarded to workers
    "stream_news_dropped",  # whose worker is gone, or whose queue is full
    "answers",  # forwarded from workers to clients
    "stale",  # batches given back for another map
    "unavailable",  # batches and calls refused because their worker is away, or the router is stopping
    "overloaded",  # batches and calls refused because a queue is full
    "outcome_unknown",  # raw calls that a dead worker left open
    "oversize",  # messages over the limit
    "malformed_frames",  # messages that are not origin, header, body
    "malformed_header",
    "malformed_kind",  # a kind that clients do not send
    "malformed_worker",  # batches for a worker that does not exist
    "malformed_door",  # what a worker sent and the router does not understand
    "stale_epoch_dropped",  # messages of dead incarnations
    "answers_dropped",  # to clients that do not read
    "answers_unroutable",  # to clients that have gone
    "calls_forgotten",  # raw calls that no worker answered in the longest time a call may take
    "clients_forgotten",
    "maps",
    "maps_ignored",  # maps that are not newer than the current one
)
"""Names of the counters in `Router.stats`."""

_ROUTE: Final = slice(0, 8)  # version, kind, worker and number: a header but for its stamp
_HEADER_BYTES: Final = len(protocol.header(protocol.BATCH))
_CALL_HEADER_BYTES: Final = len(protocol.call_header(bytes(32), 0))
_BATCH_START: Final = protocol.header(protocol.BATCH)[:2]
_CALL_START: Final = protocol.call_header(bytes(32), 0)[:2]
_STREAM_START: Final = protocol.header(protocol.STREAM)[:2]
_REPLY_START: Final = protocol.header(protocol.REPLY)[:2]
_GOODBYE_START: Final = protocol.header(protocol.GOODBYE)[:2]
_UNREADABLE: Final = (ValueError, TypeError, OverflowError, RecursionError, msgpack.OutOfData)
"""What msgpack and `entries` raise for bytes that are no list of three by three."""
_ENTRY_BYTES: Final = 128
"""What origin, header and msgpack's framing weigh in a queue, rounded up."""
_LONGEST_CALL_FACTOR: Final = 2
"""A call is forgotten after this many times the longest deadline: its reply cannot come any more."""


class Router:
    """The state of the router.  `now` is in seconds of any monotonic clock."""

    def __init__(self, limits: Limits | None = None, *, backlog_bytes_max: int | None = None) -> None:
        self._limits = limits = limits or Limits()
        self.answers: list[Entry] = []
        """To be sent to clients, in order."""
        self.ready: list[Link] = []
        """Links with messages to send: `next_message` until None or a full pipe, then `link_drained`."""
        self.opened: list[Link] = []
        """New incarnations, whose doors the shell connects to."""
        self.closed: list[Link] = []
        """Ended incarnations, whose sockets the shell closes."""
        self.backlog = Backlog(
            limits.reply_queue_bytes_max, backlog_bytes_max or limits.reply_queues_bytes_max
        )
        """Answers that did not fit into a client's pipe."""
        self.stats: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self._map: SlotMap | None = None
        self._version = 0
        self._map_body = b""
        """The map, encoded once for all who get it."""
        self._links: list[Link | None] = []
        """By worker; None while the worker has no door."""
        self._routes: dict[bytes, Link] = {}
        """Start of a batch's header -> link; only what takes messages under the current map."""
        self._clients: dict[bytes, float] = {}
        """Who gets news of the map -> when it was heard last."""
        self._stopping = False
        self._unacknowledged: set[bytes] = set()
        # Half of the overhead is for the bundle around a body that is as large as allowed.
        self._body_bytes_max = limits.message_bytes_max + limits.wire_overhead_bytes // 2
        self._frame_bytes_max = limits.message_bytes_max + limits.wire_overhead_bytes

    # --- from clients

    def on_client(self, frames: Sequence[bytes], now: float) -> None:
        """A message at the front: [origin, header, body], or whatever a peer made up."""
        if len(frames) != 3:
            self._on_wrong_frames(frames)
            return
        header = frames[1]
        link = self._routes.get(header[_ROUTE])
        if link is not None and len(header) == _HEADER_BYTES:
            size = len(frames[2]) + _ENTRY_BYTES
            if link.queued_bytes + size > self._limits.router_queue_bytes_max or size > self._body_bytes_max:
                self._on_untaken_batch(frames, link, size)
            else:
                link.add(frames, size)
                self.stats["batches"] += 1
                if not link.ready:
                    self._mark_ready(link)
        elif header[:2] == _CALL_START and len(header) == _CALL_HEADER_BYTES:
            self._on_call(frames)
        else:
            self._on_other(frames, now)
            return
        if frames[0] in self._clients:
            self._clients[frames[0]] = now

    def _on_call(self, frames: Sequence[bytes]) -> None:
        object_id = protocol.read_call_header(frames[1]).object_id
        worker = self._map.worker_of(object_id) if self._map is not None else None
        link = self._links[worker] if worker is not None else None
        size = len(frames[2]) + _ENTRY_BYTES
        if link is None or link.closing or self._stopping:
            error: NotExecuted = self._unavailable(worker)
        elif size > self._body_bytes_max:
            error = self._too_large(size)
        elif (
            link.queued_bytes + size > self._limits.router_queue_bytes_max
            or link.known_calls >= self._limits.raw_calls_in_flight_max
        ):
            error = self._overloaded(link, size)
        else:
            link.add_call(frames, size)
            self.stats["calls"] += 1
            if not link.ready:
                self._mark_ready(link)
            return
        self.answers.append(answers.failed_call(frames[0], frames[1][-8:], error))

    def _on_other(self, frames: Sequence[bytes], now: float) -> None:
        origin, header, body = frames
        try:
            kind, worker, number, _ = protocol.read_header(header)
        except protocol.BadHeader as unreadable:
            self.stats["malformed_header"] += 1
            self.answers.append(answers.refused(origin, unreadable))
            return
        if kind == protocol.HELLO:
            self._on_greeting(origin, None, now)
        elif kind == protocol.PING:
            self._on_greeting(origin, number, now)
        elif kind == protocol.BATCH:
            if origin in self._clients:
                self._clients[origin] = now
            self._on_unrouted_batch(origin, worker, number, body)
        elif kind == protocol.STREAM:
            if origin in self._clients:
                self._clients[origin] = now
            self._on_stream(frames, worker, number)
        elif kind == protocol.GOODBYE_ACK:
            self._unacknowledged.discard(origin)
        else:
            self.stats["malformed_kind"] += 1
            if kind != protocol.REFUSED:  # two peers that refuse each other's refusals would never end
                error = InvalidArgument(f"the router takes no messages of kind {kind}")
                self.answers.append(answers.refused(origin, error))

    def _on_stream(self, frames: Sequence[bytes], worker: int, epoch: int) -> None:
        """News for the producers of streams.  Readers repeat it, and learn of a death by themselves."""
        link = self._links[worker] if worker < len(self._links) else None
        size = len(frames[2]) + _ENTRY_BYTES
        taken = (
            link is not None
            and link.epoch == epoch
            and not link.closing
            and link.queued_bytes + size <= self._limits.router_queue_bytes_max
            and size <= self._body_bytes_max
        )
        self.stats["stream_news" if taken else "stream_news_dropped"] += 1
        if link is not None and taken:
            link.add(frames, size)
            if not link.ready:
                self._mark_ready(link)

    def _on_greeting(self, origin: bytes, version: int | None, now: float) -> None:
        if self._stopping:
            self.answers.append(answers.goodbye(origin))
            return
        if origin in self._clients or len(self._clients) < self._limits.peers_max:
            self._clients[origin] = now
        if self._map is None:
            return  # the first map goes to all clients at once
        if version == self._version:
            self.answers.append(answers.pong(origin, version))
        else:
            self._send_map(origin)

    def _on_unrouted_batch(self, origin: bytes, worker: int, version: int, batch: bytes) -> None:
        """A batch that the table of routes does not know: find out why, and say so."""
        size = len(batch) + _ENTRY_BYTES
        current = self._map is not None and version == self._version
        link = self._links[worker] if worker < len(self._links) else None
        if size > self._body_bytes_max:
            self.answers.append(answers.refused(origin, self._too_large(size), worker))
        elif self._stopping or (current and link is not None and link.closing):
            self.answers.append(answers.refused_batch(origin, worker, self._unavailable(worker), batch))
        elif current and worker >= len(self._links):
            self.stats["malformed_worker"] += 1
            last = len(self._links) - 1
            error = InvalidArgument(f"there is no worker {worker}; they are numbered 0 to {last}")
            self.answers.append(answers.refused_batch(origin, worker, error, batch))
        else:
            self._give_back(origin, worker, batch)

    def _on_untaken_batch(self, frames: Sequence[bytes], link: Link, size: int) -> None:
        origin, _, batch = frames
        if size > self._body_bytes_max:
            self.answers.append(answers.refused(origin, self._too_large(size), link.worker))
        else:
            error = self._overloaded(link, size)
            self.answers.append(answers.refused_batch(origin, link.worker, error, batch))

    def _on_wrong_frames(self, frames: Sequence[bytes]) -> None:
        self.stats["malformed_frames"] += 1
        if frames:
            error = InvalidArgument(f"a message has two frames, header and body; this one {len(frames) - 1}")
            self.answers.append(answers.refused(frames[0], error))

    # --- from workers

    def on_door(self, worker: int, frames: Sequence[bytes]) -> None:
        """A message that came from the door of `worker`: [header, body]."""
        try:
            header, body = frames
            kind, _, epoch, _ = protocol.read_header(header)
        except (ValueError, protocol.BadHeader):
            self.stats["malformed_door"] += 1
            return
        link = self._links[worker] if worker < len(self._links) else None
        if link is None or link.epoch != epoch:
            self.stats["stale_epoch_dropped"] += 1
        elif kind == protocol.BUNDLE:
            self._relay(link, body)
            if len(body) >= self._limits.large_message_bytes and not link.closing:
                link.took(len(body))
                if not link.ready:
                    self._mark_ready(link)
        elif kind == protocol.GOODBYE:
            self._close_door(link)
        else:
            self.stats["malformed_door"] += 1

    def _relay(self, link: Link, body: bytes) -> None:
        try:
            parts = msgpack.unpackb(body)
            if type(parts) is not list or not set(map(type, parts)) <= {bytes}:
                raise ValueError("a bundle is a list of bytes")
            relayed = list(entries(parts))
        except _UNREADABLE:
            self.stats["malformed_door"] += 1
            return
        self.answers += relayed
        self.stats["answers"] += len(relayed)
        in_flight = link.in_flight
        if in_flight:
            for origin, header, _ in relayed:
                if header[:2] == _REPLY_START:
                    in_flight.pop(call_key(origin, header), None)

    def _close_door(self, link: Link) -> None:
        """The worker takes nothing more: what waits goes back unexecuted, then the worker hears so."""
        if link.closing:
            return
        link.closing = True
        self._rebuild_routes()
        for origin, _, batch in self._take_unsent_batches(link):
            error = self._unavailable(link.worker)
            self.answers.append(answers.refused_batch(origin, link.worker, error, batch))
        link.say_last(protocol.header(protocol.GOODBYE_ACK, link.worker, link.epoch))
        if not link.ready:
            self._mark_ready(link)

    # --- from the supervisor

    def on_map(self, slot_map: SlotMap) -> None:
        """A slot map; one that is not newer than the current one is ignored."""
        if self._map is not None and slot_map.version <= self._version:
            self.stats["maps_ignored"] += 1
            return
        self.stats["maps"] += 1
        self._map = slot_map
        self._version = slot_map.version
        self._map_body = codec.encode(slot_map.to_wire())
        old, self._links = self._links, []
        for worker, seat in enumerate(slot_map.seats):
            link = old[worker] if worker < len(old) else None
            if link is not None and (link.epoch, link.endpoint) != (seat.epoch, seat.endpoint):
                link = None
            if link is None and seat.endpoint:
                link = Link(worker, seat.epoch, seat.endpoint, self._limits.batch_bytes_max)
                self.opened.append(link)
            self._links.append(link)
        self._rebuild_routes()
        for link in old:
            if link is not None and link not in self._links[link.worker : link.worker + 1]:
                self._on_death(link)
        for origin in self._clients:
            self._send_map(origin)

    def _on_death(self, link: Link) -> None:
        """An incarnation is gone: everything that it was to answer is answered for it."""
        link.ended = True
        self.closed.append(link)
        self._fail_in_flight(link, f"worker {link.worker} died while it had this call")
        for origin, _, batch in self._take_unsent_batches(link):
            self._give_back(origin, link.worker, batch)

    def _fail_in_flight(self, link: Link, reason: str) -> None:
        error = OutcomeUnknown(f"{reason}; it may or may not have taken effect")
        self.stats["outcome_unknown"] += len(link.in_flight)
        self.answers += [answers.failed_call(key[:-8], key[-8:], error) for key in link.in_flight]

    def _take_unsent_batches(self, link: Link) -> list[Entry]:
        """Empties the link's queue: answers the raw calls in it, and returns the batches."""
        batches = []
        for entry in link.take_unsent():
            origin, header, _ = entry
            if header[:2] == _BATCH_START:
                batches.append(entry)
            elif header[:2] == _CALL_START and call_key(origin, header) not in link.in_flight:
                # Else it repeats a call that did leave, and "not executed" would be a lie.
                error = self._unavailable(link.worker)
                self.answers.append(answers.failed_call(origin, header[-8:], error))
        return batches

    def stop(self) -> None:
        """Ordered stop: from now on nothing is taken; what is queued still leaves; clients are told."""
        if self._stopping:
            return
        self._stopping = True
        self._rebuild_routes()
        self._unacknowledged = set(self._clients)
        self.answers += [answers.goodbye(origin) for origin in self._clients]

    @property
    def quiet(self) -> bool:
        """Nothing waits for a worker, and no raw call waits for its reply."""
        return not any(link is not None and (link.queued_bytes or link.known_calls) for link in self._links)

    @property
    def finished(self) -> bool:
        """After `stop`: all clients have acknowledged, and nothing waits for anybody."""
        return self.quiet and not (self._unacknowledged or self.answers or self.backlog)

    def abandon(self) -> None:
        """The last act of a stop: the callers of everything that is still here learn how it ends."""
        for link in self._links:
            if link is None:
                continue
            self._fail_in_flight(link, "the router stopped before the answer came")
            for origin, _, batch in self._take_unsent_batches(link):
                error = self._unavailable(link.worker)
                self.answers.append(answers.refused_batch(origin, link.worker, error, batch))
            link.in_flight.clear()

    # --- time, and what the shell reports

    def on_tick(self, now: float) -> None:
        """Forgets silent clients, and calls that nobody will answer any more; call about each second."""
        silent_since = now - self._limits.client_forgotten_s
        for origin in [origin for origin, heard in self._clients.items() if heard < silent_since]:
            self._forget_client(origin)
        sent_before = now - _LONGEST_CALL_FACTOR * self._limits.call_timeout_max_s
        for link in self._links:
            if link is not None:
                self.stats["calls_forgotten"] += link.forget_older(sent_before)

    def on_peer_gone(self, origin: bytes, header: bytes = b"") -> None:
        """An answer with this header could not be sent, since its client's connection is closed."""
        self.stats["answers_unroutable"] += 1 + self.backlog.forget(origin)
        # A worker asks whether the reader of a stream is there.
        if header[:2] == _STREAM_START and len(header) == _HEADER_BYTES:
            _, worker, epoch, _ = protocol.read_header(header)
            self._on_stream((origin, header, b""), worker, epoch)
        if origin in self._clients:
            self._forget_client(origin)

    def on_pipe_full(self, answer: Entry) -> None:
        """An answer did not fit into its client's pipe: it waits in the backlog, or is dropped."""
        if answer[1][:2] == _GOODBYE_START and answer[0] not in self._unacknowledged:
            return  # a stranger that asks again and again and does not read: a stop must not wait for it
        self.stats["answers_dropped"] += self.backlog.hold(answer)

    def on_drained(self, link: Link) -> None:
        """The shell has sent everything that waited at the link."""
        link.ready = False

    def gauges(self) -> dict[str, int]:
        """Sizes at this moment, to be reported beside the counters."""
        links = [link for link in self._links if link is not None]
        return {
            "map_version": self._version,
            "clients": len(self._clients),
            "doors": len(links),
            "queued_bytes": sum([link.queued_bytes for link in links]),
            "calls_in_flight": sum([link.known_calls for link in links]),
            "backlog_bytes": self.backlog.total_bytes,
        }

    # --- the parts of the above

    def _rebuild_routes(self) -> None:
        takers = [] if self._stopping else self._links
        self._routes = {
            protocol.header(protocol.BATCH, link.worker, self._version)[_ROUTE]: link
            for link in takers
            if link is not None and not link.closing
        }

    def _mark_ready(self, link: Link) -> None:
        link.ready = True
        self.ready.append(link)

    def _forget_client(self, origin: bytes) -> None:
        del self._clients[origin]
        self._unacknowledged.discard(origin)
        self.stats["clients_forgotten"] += 1

    def _send_map(self, origin: bytes) -> None:
        self.answers.append(answers.slot_map(origin, self._version, self._map_body))

    def _give_back(self, origin: bytes, worker: int, batch: bytes) -> None:
        """The batch did not run; it goes back with the current map, if there is one."""
        self.stats["stale"] += 1
        map_body = self._map_body if self._map is not None else None
        if len(self._map_body) + len(batch) + _ENTRY_BYTES > self._frame_bytes_max:
            # In one message the client's ZeroMQ would cut the connection for their size.
            self._send_map(origin)
            map_body = None
        self.answers.append(answers.stale(origin, worker, self._version, map_body, batch))

    def _unavailable(self, worker: int | None) -> NotExecuted:
        self.stats["unavailable"] += 1
        if self._stopping:
            reason = "the router is stopping"
        elif worker is None:
            reason = "the router has just started and knows no workers yet"
        else:
            reason = f"worker {worker} is down, starting or stopping"
        return ShardUnavailable(f"{reason}; nothing was executed")

    def _overloaded(self, link: Link, size: int) -> NotExecuted:
        self.stats["overloaded"] += 1
        if link.queued_bytes + size > self._limits.router_queue_bytes_max:
            text, limit = "the router's queue for worker {} is full", "router_queue_bytes_max"
        else:
            text, limit = "worker {} holds as many raw calls as it may", "raw_calls_in_flight_max"
        return Overloaded(f"{text.format(link.worker)}; nothing was executed", limit=limit)

    def _too_large(self, size: int) -> NotExecuted:
        self.stats["oversize"] += 1
        return MessageTooLarge(
            f"the message has {size} bytes; the limit is {self._limits.message_bytes_max}",
            size=size,
            limit=self._limits.message_bytes_max,
        )
