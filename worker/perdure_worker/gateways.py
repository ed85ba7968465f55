"""The gateways that hold sockets of this worker's objects: what they are sent, and whether they live.

Guarantees: what objects send to sockets is in a durable log, which is the queue: a gateway gets its records
in the order of the commits of this worker, each until it says that it has taken it, also from a later
incarnation of the worker.  A gateway that does not read costs bounded memory here.  One that is not heard for
`gateway_lost_s` of this worker's own running time is lost, for ever: its sockets are closed (gateway_losses),
and it is told so should it come back.

A gateway says SOCKETS with its mark, the last record that it has taken, at least each second.  Who is new, or
comes by a new connection, is sent everything behind its mark from disk; then records leave as they become
durable, for as long as not too many are unacknowledged.  Beyond that, and when a connection has no room, the
rest is read from disk again when there is.

Runs in the worker's event loop.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from perdure import codec, protocol
from perdure.errors import InvalidArgument, Overloaded, StorageError
from perdure_storage import keys
from perdure_storage.records import seal, unseal
from perdure_worker.gateway_losses import GatewayLosses
from perdure_worker.socket_frames import entries_of

if TYPE_CHECKING:
    from perdure_worker.settings import Collaborators
    from perdure_worker.writes import Writes

__all__ = ["Gateways"]

log = logging.getLogger("perdure.worker")

_COUNTED_S = 0.1
"""What one tick counts of silence at most: while the loop stood still, nobody could be heard."""
_PAGE_ROWS = 256
_TRIM_ROWS = 1_024
_TRASH_ROWS = 512
_TRASH_S = 0.5
"""How long acknowledged records may wait for a batch that is written anyway."""
_MESSAGE_ENTRIES_MAX = 16_384
"""Entries of one message: each is two of the 100,000 lists that one may hold."""
_AFTER_ERROR_S = 5.0


class _Gateway:
    """What is known of one incarnation of a gateway."""

    __slots__ = (
        "behind",
        "heard",
        "id",
        "identity",
        "lost_ms",
        "prefix",
        "queue",
        "queue_bytes",
        "quiet_until",
        "read",
        "released",
        "silent_s",
        "trim",
        "unacked",
        "unacked_bytes",
        "untaken_bytes",
    )

    def __init__(self, gateway: bytes, epoch: int) -> None:
        self.id = gateway
        self.prefix = keys.frames_prefix(gateway)
        self.identity: bytes | None = None
        """Of its connection; None while there is none that stands."""
        self.heard = False
        self.silent_s = 0.0
        self.lost_ms: int | None = None
        """When it was given up; None while it was not."""
        self.released = keys.frames_key(gateway, epoch, 0)
        """The last record that may leave: those up to it are durable."""
        self.behind = True
        """Whether records behind `read` must be read from disk."""
        self.read = self.prefix
        """The last record that was put into the queue."""
        self.queue: deque[tuple[bytes, bytes]] = deque()
        """Row and payload of records that leave next."""
        self.queue_bytes = 0
        self.unacked: deque[tuple[bytes, int]] = deque()
        """Row and size of what was sent and not acknowledged."""
        self.unacked_bytes = 0
        self.untaken_bytes = 0
        """Bytes of the log that this incarnation has written, and that are not acknowledged."""
        self.trim: tuple[bytes, bytes] | None = None
        """Rows that are to be removed: from, and up to and without."""
        self.quiet_until = 0.0

    def start_over(self, mark: bytes) -> None:
        """A new connection: what is behind the mark is sent (again), from disk."""
        self.queue.clear()
        self.unacked.clear()
        self.queue_bytes = self.unacked_bytes = 0
        self.read = mark
        self.behind = True


class Gateways:
    """All gateways that a worker knows."""

    def __init__(self, host: Writes, parts: Collaborators, epoch: int) -> None:
        self._host = host
        self._limits = host.limits
        self._engine = parts.engine
        self._clock = parts.clock
        self._send_frames = parts.send_frames
        self.epoch = epoch
        """Of this incarnation of the worker."""
        self._counter = 0
        self._pack = codec.make_packer()
        self._known: dict[bytes, _Gateway] = {}
        self._ready: dict[bytes, _Gateway] = {}
        """Those to which something may be sent."""
        self._trash: list[bytes] = []
        self._trash_since = 0.0
        self._ticked_at = parts.clock()
        self._losses = GatewayLosses(host)
        try:
            self._load()
        except StorageError as error:
            log.error("which gateways there were cannot be read: %s", error)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def waiting(self) -> bool:
        """Whether something may have to be sent."""
        return bool(self._ready)

    def _load(self) -> None:
        now_ms = self._host.timetable.now_ms()
        for gateway in sorted({*self._ids(keys.SOCKETS_REGION), *self._ids(keys.FRAMES_REGION)}):
            state = self._known[gateway] = _Gateway(gateway, self.epoch)
            row = keys.frames_key(gateway, 0, 0)
            record = self._engine.get(row)
            if record is not None:
                state.lost_ms = min(codec.decode(unseal(row, record)), now_ms)
                self._lose(state)

    def _ids(self, region: bytes) -> Iterator[bytes]:
        at, end = region, keys.prefix_end(region)
        while True:
            with self._engine.scan(at, end) as rows:
                first = next(rows, None)
            if first is None:
                return
            gateway = first[0][1 : 1 + keys.GATEWAY_ID_BYTES]
            yield gateway.ljust(keys.GATEWAY_ID_BYTES, b"\x00")
            at = keys.prefix_end(region + gateway)

    def _admit(self, gateway: bytes) -> _Gateway:
        state = self._known.get(gateway)
        if state is None:
            if len(self._known) >= self._limits.gateways_max:
                raise Overloaded("too many gateways are known here", limit="gateways_max")
            state = self._known[gateway] = _Gateway(gateway, self.epoch)
        return state

    # --- sockets and frames

    def expect(self, gateway: bytes) -> None:
        """An object takes a socket of this gateway; raises `InvalidArgument` for one that is lost."""
        if self._admit(gateway).lost_ms is not None:
            raise InvalidArgument("the gateway of this WebSocket was lost, and has closed all of its sockets")

    def join(self, frames: dict[bytes, list[bytes]]) -> None:
        """Records for gateways join the open commit group, and leave when that is durable."""
        host = self._host
        put = host.committer.put
        leaving: list[tuple[_Gateway, bytes, bytes]] = []
        for gateway, records in frames.items():
            state = self._known.get(gateway) or _Gateway(gateway, self.epoch)
            if state.lost_ms is not None:
                self._put_loss(state)  # the group holds something, as the turn's outputs wait for it
                continue
            for payload in records:
                self._counter += 1
                row = keys.frames_key(gateway, self.epoch, self._counter)
                put(row, seal(row, payload))
                state.untaken_bytes += len(payload)
                leaving.append((state, row, payload))
            if state.untaken_bytes > self._limits.frames_log_bytes_max and self._known.get(gateway):
                self._give_up(state, "it does not take what it is sent")
        if self._trash:
            self._throw_away()
        host.gate.hold(host.committer.group, (self._release, leaving, None, None))

    def _release(self, leaving: list[tuple[_Gateway, bytes, bytes]], *_: Any) -> None:
        """These records are durable.  An output of the gate."""
        queue_bytes_max = self._limits.frames_unacked_bytes_max
        for state, row, payload in leaving:
            state.released = row
            if state.identity is None or state.lost_ms is not None:
                state.behind = True
            elif not state.behind:
                if state.queue_bytes + len(payload) > queue_bytes_max and state.queue:
                    state.behind = True
                else:
                    state.queue.append((row, payload))
                    state.queue_bytes += len(payload)
                    state.read = row
            self._ready[state.id] = state

    # --- messages of gateways

    def on_message(self, identity: bytes, origin: bytes | None, body: bytes) -> None:
        """SOCKETS: a gateway lives, and has taken all records up to its mark.  Raises `InvalidArgument`."""
        if origin is not None:
            raise InvalidArgument("a gateway speaks to the doors of workers, not through the router")
        value = codec.decode(body)
        if (
            type(value) is not list
            or len(value) < 3
            or [type(part) for part in value[:3]] != [bytes, int, int]
        ):
            raise InvalidArgument("SOCKETS is a list of the gateway's id, and epoch and counter of its mark")
        gateway, epoch, counter = value[:3]
        if len(gateway) != keys.GATEWAY_ID_BYTES or not (0 <= epoch < 1 << 32 and 0 <= counter < 1 << 64):
            raise InvalidArgument(f"a gateway's id has {keys.GATEWAY_ID_BYTES} bytes, its mark 4 and 8")
        state = self._admit(gateway)
        if state.lost_ms is not None:
            state.identity = identity
            self._ready[gateway] = state
            return
        mark = keys.frames_key(gateway, epoch, counter)
        if mark > state.released:
            raise InvalidArgument("the mark of this gateway is of frames that it was not sent")
        state.silent_s, state.heard = 0.0, True
        if state.identity != identity:
            state.identity = identity
            state.start_over(mark)
            state.trim = (state.prefix, mark + b"\x00")
        else:
            self._acknowledge(state, mark)
        self._ready[gateway] = state

    def _acknowledge(self, state: _Gateway, mark: bytes) -> None:
        unacked = state.unacked
        while unacked and unacked[0][0] <= mark:
            row, size = unacked.popleft()
            state.unacked_bytes -= size
            state.untaken_bytes = max(0, state.untaken_bytes - size)
            if not self._trash:
                self._trash_since = self._clock()
            self._trash.append(row)
        if len(self._trash) >= _TRASH_ROWS:
            self._throw_away()
            self._host.want_flush()

    def _throw_away(self) -> None:
        rows, self._trash = self._trash, []
        for row in rows:
            self._host.committer.delete(row)

    # --- what leaves

    def send(self) -> None:
        """Sends what may leave.  Call it at the end of a tick, behind the replies."""
        ready, self._ready = self._ready, {}
        for state in ready.values():
            try:
                self._send_to(state)
            except StorageError as error:
                log.error("frames for a gateway cannot be read: %s", error)
                state.quiet_until = self._clock() + _AFTER_ERROR_S

    def _send_to(self, state: _Gateway) -> None:
        if state.lost_ms is not None:
            if state.identity is not None:
                self._send_frames(state.identity, self._pack([state.id, None]))
                state.identity = None
            return
        limits = self._limits
        while state.identity is not None and state.quiet_until <= self._clock():
            if (
                state.unacked_bytes >= limits.frames_unacked_bytes_max
                or len(state.unacked) >= limits.frames_unacked_max
            ):
                return  # its next mark goes on
            if not state.queue and not self._read_on(state):
                return
            body, count, size = self._message(state)
            sent = self._send_frames(state.identity, body)
            if sent is None:
                state.identity = None
                state.behind = True
                return
            if not sent:
                self._ready[state.id] = state  # the next tick tries again
                return
            for _ in range(count):
                row, payload = state.queue.popleft()
                state.unacked.append((row, len(payload)))
            state.queue_bytes -= size
            state.unacked_bytes += size

    def _read_on(self, state: _Gateway) -> bool:
        """Fills the queue from disk; whether there was something."""
        if not state.behind:
            return False
        complete = True
        with self._engine.scan(state.read + b"\x00", state.released + b"\x00") as rows:
            for row, record in rows:
                if state.queue_bytes >= self._limits.batch_bytes_max or len(state.queue) >= _PAGE_ROWS:
                    complete = False
                    break
                payload = unseal(row, record)
                state.queue.append((row, payload))
                state.queue_bytes += len(payload)
                state.read = row
        state.behind = not complete
        return bool(state.queue)

    def _message(self, state: _Gateway) -> tuple[bytes, int, int]:
        """FRAMES with the first records of the queue: its body, and their number and size."""
        parts: list[bytes] = [self._pack(state.id)]
        size = entries = 0
        for row, payload in state.queue:
            entries += entries_of(payload) + 1
            if size and (
                size + len(payload) > self._limits.batch_bytes_max or entries > _MESSAGE_ENTRIES_MAX
            ):
                break
            size += len(payload)
            epoch, counter = keys.frames_position(row)
            if epoch == self.epoch:
                parts += (b"\x92", self._pack(counter), payload)
            else:
                parts += (b"\x93", self._pack(counter), payload, self._pack(epoch))

        records = sum(part in (b"\x92", b"\x93") for part in parts[1:])
        return protocol.array_header(1 + records) + b"".join(parts), records, size

    # --- time

    def tick(self, *, reading: bool) -> None:
        """Call about every 50 ms; `reading` says whether gateways are heard now, were they to speak."""
        now = self._clock()
        passed, self._ticked_at = min(now - self._ticked_at, _COUNTED_S), now
        if self._trash and now - self._trash_since > _TRASH_S:
            self._throw_away()
            self._host.want_flush()
        for state in list(self._known.values()):
            if state.trim is not None:
                self._trim(state)
            if state.lost_ms is not None:
                self._forget_if_old(state)
            elif reading:
                state.silent_s += passed
                if state.silent_s >= self._limits.gateway_lost_s:
                    self._give_up(state, "nothing was heard of it")
        self._losses.tick()

    def _trim(self, state: _Gateway) -> None:
        assert state.trim is not None
        start, stop = state.trim
        try:
            with self._engine.scan(start, stop) as scan:
                rows = [row for row, _ in islice(scan, _TRIM_ROWS)]
        except StorageError as error:
            log.error("frames of a gateway cannot be removed: %s", error)
            rows = []
        for row in rows:
            self._host.committer.delete(row)
        state.trim = (rows[-1] + b"\x00", stop) if len(rows) == _TRIM_ROWS else None
        if rows:
            self._host.want_flush()

    def _give_up(self, state: _Gateway, why: str) -> None:
        """The gateway takes nothing more; what it has is looked for when all of that is on disk."""
        state.lost_ms = self._host.timetable.now_ms()
        state.identity = None
        self._host.gate.hold(self._host.last_group(), (self._count_lost, state, why, None))

    def _count_lost(self, state: _Gateway, why: str, _: Any) -> None:
        """It is lost, durably so not later than the first of its sockets is closed, unless it has nothing."""
        if not self._has_rows(state):
            del self._known[state.id]
            return
        told = {"gateway": state.id.hex(), "why": why}
        log.warning("a gateway is lost, its sockets are closed", extra=told)
        self._put_loss(state)
        self._lose(state)
        self._host.want_flush()

    def _lose(self, state: _Gateway) -> None:
        state.start_over(state.prefix)
        state.trim = (keys.frames_key(state.id, 0, 1), keys.prefix_end(state.prefix))
        self._losses.add(state.id)

    def _put_loss(self, state: _Gateway) -> None:
        row = keys.frames_key(state.id, 0, 0)
        self._host.committer.put(row, seal(row, codec.encode(state.lost_ms)))

    def _has_rows(self, state: _Gateway) -> bool:
        if state.released != keys.frames_key(state.id, self.epoch, 0):
            return True
        prefix = keys.sockets_prefix(state.id)
        for start in (prefix, state.prefix):
            with self._engine.scan(start, keys.prefix_end(start)) as rows:
                if next(rows, None) is not None:
                    return True
        return False

    def _forget_if_old(self, state: _Gateway) -> None:
        assert state.lost_ms is not None
        age_ms = self._host.timetable.now_ms() - state.lost_ms
        if age_ms > self._limits.gateway_lost_kept_s * 1000 and state.id not in self._losses:
            self._host.committer.delete(keys.frames_key(state.id, 0, 0))
            self._host.want_flush()
            del self._known[state.id]

    def stats(self) -> dict[str, int]:
        """Figures of this worker's gateways."""
        lost = sum(state.lost_ms is not None for state in self._known.values())
        return {
            "gateways": len(self._known) - lost,
            "gateways_lost": lost,
            "frames_unacked": sum(len(state.unacked) for state in self._known.values()),
        }
