"""Recorded replies: a call that wrote is answered again, never run again.  Pure; worker's event loop.

For calls under a request id that is not their sender's own (turns make them, users name them), and for
clients that do not tell which of their calls have ended; recorded.py is for the rest, the ordinary ones.

Guarantees, for the calls of one client at one object (a window):

- a turn that wrote has its reply in the commit group of its last write, so a retry with the same request id
  gets that reply, also from a later incarnation of the worker;
- a retry that meets the running turn is known as such;
- windows are bounded in calls, bytes and age, and a call older than what was dropped is never run again;
- a window is written once for each commit group, however many turns it recorded in it.

A window is one row of the object (`keys.REPLY` and the client's id).  What its client says has ended is
dropped at the next write, so that a row usually holds one reply and is overwritten in place.  In memory are
the windows of clients that called lately.

A call that its client has not sent before to this object costs 0.2 µs, its record 0.15 µs, and the row of a
group 1.6 µs: see docs/decisions/0009-recorded-replies.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from perdure import codec
from perdure.errors import StorageError
from perdure_storage import keys
from perdure_storage.engine import Engine
from perdure_storage.records import seal, unseal
from perdure_worker.clients import Client, Request
from perdure_worker.messages import CLIENT_MARK
from perdure_worker.turns import TURN_REQUEST, Turn

if TYPE_CHECKING:
    from perdure.limits import Limits
    from perdure_storage.commit import GroupCommit
    from perdure_worker.resident import Resident

__all__ = ["OTHER_CALL", "TOO_LARGE", "TOO_OLD", "ReplyWindows", "Window", "entry_key"]

# What a lookup gives instead of a reply or a running turn.
TOO_OLD: Final = "too old"
TOO_LARGE: Final = "too large"
OTHER_CALL: Final = "another call"

_LOOKED_AT_S = 2.0
"""A window that no call has used for this long to twice as long is forgotten."""
_LOOKS_MAX = 2_048
"""Windows that are looked at in one tick."""
_COLLECT_ONE_IN = 16
_COLLECT_ROWS = 32
"""One in 16 new windows looks at 32 others of its object: enough, since each makes one row."""
_KEPT_WHOLE_BYTES = 64
"""Replies up to this size are never replaced by a note that there was one."""
_TELLS_ENDS, _MAY_COME_BACK, _OF_SENDS = b"\x00", b"\x01", b"\x02"
_TIME_BYTES = 4
_TIME = slice(1, 1 + _TIME_BYTES)
_DIGEST = 4  # position in a request


class Window:
    """What one client's calls at one object have been answered."""

    __slots__ = (
        "client",
        "dropped",
        "floor",
        "group",
        "highest",
        "key",
        "looked",
        "looked_at",
        "older",
        "others",
        "reply",
        "resident",
        "row",
        "running",
        "state",
        "stored",
    )

    def __init__(self, resident: Resident, client: bytes, state: Client | None, row: bytes) -> None:
        self.resident: Resident | None = resident
        self.row = row
        """Its key on disk."""
        self.client = client
        self.state = state
        """What the client tells; None for calls that come in its name (nested calls, named requests)."""
        self.highest = 0
        """No call above this sequence (from 1) is recorded, runs or waits here."""
        self.dropped = 0
        """Calls up to this sequence that are not recorded may have been, and must not run."""
        self.floor = 0
        """Calls below it have ended: they must not run."""
        self.key: Any = None
        """The latest recorded call, as `entry_key`."""
        self.reply: Any = None
        """Its encoded reply, or None for one too large to be kept.

        Of a request that the user has named: a list of that and the digest of what was called.
        """
        self.older: dict[Any, Any] | None = None
        """The same of calls before it that may come in again; there are none most of the time."""
        self.running: dict[Any, Turn] | None = None
        """Turns that have suspended, by `entry_key`."""
        self.group = 0
        """The last commit group that holds a record of this window."""
        self.stored = False
        self.others: dict[bytes, Window] | None = None
        """All windows of the object in memory, when there are several."""
        self.looked = -1
        self.looked_at = 0.0

    @property
    def entries(self) -> dict[Any, Any]:
        """All recorded replies, by `entry_key`, the latest last."""
        entries = dict(self.older or {})
        if self.key is not None:
            entries[self.key] = self.reply
        return entries

    def add(self, key: Any, reply: Any, floor: int) -> None:
        """Records a reply; `floor` is what the call knew of its client's ended calls."""
        if floor > self.floor:
            self.floor = floor
        latest = self.key
        if latest is not None and (type(latest) is not int or latest >= self.floor):
            if self.older is None:
                self.older = {latest: self.reply}
            else:
                self.older[latest] = self.reply
        self.key = key
        self.reply = reply

    def payload(self, touched: bytes, pack: Callable[[Any], bytes]) -> bytes:
        """The row's content."""
        if self.client.endswith(CLIENT_MARK):
            kind = _OF_SENDS
        else:
            kind = _TELLS_ENDS if self.floor > 0 else _MAY_COME_BACK
        if self.older is None and type(self.key) is int:
            body = [self.dropped, self.floor, self.key, None, self.reply]
        else:
            body = [self.dropped, self.floor]
            for key, reply in self.entries.items():
                body += (key, None, reply) if type(key) is int else (*key, reply)
        try:
            return kind + touched + pack(body)
        except OverflowError:  # a raw client's sequence of more than 64 bits
            return kind + touched + codec.encode(body)

    def load(self, payload: bytes) -> None:
        """Takes the content of a row."""
        self.dropped, self.floor, *entries = codec.decode(payload[_TIME.stop :])
        older = {
            entry_key(number, path): reply
            for number, path, reply in zip(entries[::3], entries[1::3], entries[2::3], strict=True)
        }
        if older:
            self.key, self.reply = older.popitem()
        self.older = older or None
        self.highest = max(self.dropped, self.floor - 1, *entries[::3])
        self.stored = True

    def prune(self) -> None:
        """Drops what the client says has ended."""
        state, floor = self.state, self.floor
        kept = {}
        for key, reply in (self.older or {}).items():
            number = key if type(key) is int else key[0]
            if number >= floor and not (state is not None and state.has_ended(number)):
                kept[key] = reply
        self.older = kept or None

    def trim(self, calls_max: int, bytes_max: int) -> None:
        """Holds the bounds: the oldest go, of large replies a note stays that there was one."""
        entries = self.entries
        if len(entries) > calls_max:
            # Some more than needed, so that this is not due again at the next call.
            for key in sorted(entries, key=_number)[: len(entries) - calls_max * 3 // 4]:
                self.dropped = max(self.dropped, _number(key))
                del entries[key]
        size = sum([_size(reply) for reply in entries.values()])
        for key, reply in entries.items() if size > bytes_max else ():
            if _size(reply) > _KEPT_WHOLE_BYTES:
                size -= _size(reply)
                entries[key] = [None, reply[1]] if type(reply) is list else None
            if size <= bytes_max:
                break
        self.key, self.reply = entries.popitem() if entries else (None, None)
        self.older = entries or None


def entry_key(number: int, path: bytes | None) -> Any:
    """What a window knows a call by: most have no path."""
    return (number, path) if path else number


def _number(key: Any) -> int:
    number: int = key if type(key) is int else key[0]
    return number


def _size(reply: Any) -> int:
    if type(reply) is list:
        reply = reply[0]
    return len(reply) if reply is not None else 0


class ReplyWindows:
    """The windows of all objects of a worker."""

    def __init__(
        self,
        engine: Engine,
        groups: GroupCommit,
        limits: Limits,
        wall_clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._groups = groups
        self._wall_clock = wall_clock
        self._pack = codec.make_packer()
        self._calls_max = limits.reply_window_calls_max
        self._bytes_max = limits.reply_window_bytes_max
        self._count_max = limits.reply_windows_max
        self._ttl_s = {
            _TELLS_ENDS: int(limits.reply_ttl_s),
            _MAY_COME_BACK: int(limits.reply_named_ttl_s),
            _OF_SENDS: int(limits.reply_send_ttl_s),
        }
        self._dirty: list[Window] = []
        """With records in the open group."""
        self._loaded: deque[Window] = deque()
        """The longest not looked at first."""

    def __len__(self) -> int:
        return len(self._loaded)

    # --- calls

    def look_up(self, resident: Resident, request: Request, state: Client | None) -> Any:
        """What is known of a call: its recorded reply, its running `Turn`, `TOO_LARGE`, `TOO_OLD` or None.

        None means that it has to run.  Raises `StorageError` when the stored window cannot be read.
        """
        window = self._window(resident, request[0], state)
        number = request[1]
        if number > window.highest:
            window.highest = number
            return None
        known = self._known(window, request)
        if known is None and (number <= window.dropped or number < window.floor) and number > 0:
            return TOO_OLD
        return known

    def look_again(self, resident: Resident, request: Request) -> Any:
        """As `look_up`, for a call that has waited: another try of it may have come in before."""
        window = self._window(resident, request[0], None)
        known = self._known(window, request)
        if known is None and 0 < request[1] < window.floor:
            return TOO_OLD
        return known

    def _known(self, window: Window, request: Request) -> Any:
        key = entry_key(request[1], request[2])
        older = window.older
        if key == window.key or (older is not None and key in older):
            reply = window.reply if older is None or key == window.key else older[key]
            if type(reply) is list:
                reply, digest = reply
                if request[_DIGEST:] != (digest,):
                    return OTHER_CALL
            return TOO_LARGE if reply is None else reply
        turn = window.running.get(key) if window.running else None
        if turn is not None and turn[TURN_REQUEST][_DIGEST:] != request[_DIGEST:]:
            return OTHER_CALL
        return turn

    def suspended(self, resident: Resident, turn: Turn, request: Request) -> None:
        """The turn goes on later: retries of its call can meet it until `ended`."""
        window = self._window(resident, request[0], None)
        if window.running is None:
            window.running = {}
        window.running[entry_key(request[1], request[2])] = turn

    def ended(self, resident: Resident, request: Request) -> None:
        """The turn that had suspended has ended."""
        window = self._window(resident, request[0], None)
        if window.running:
            window.running.pop(entry_key(request[1], request[2]), None)

    def record(self, resident: Resident, request: Request, reply: bytes) -> None:
        """The call's turn wrote: its reply joins the open group."""
        window = resident.window
        if window is None or window.client is not request[0]:
            window = self._window(resident, request[0], None)
        if len(request) == _DIGEST:
            _, number, path, floor = request
            window.add((number, path) if path else number, reply, floor)
        else:
            window.add(entry_key(request[1], request[2]), [reply, request[_DIGEST]], request[3])
        group = self._groups.group
        if window.group != group:
            window.group = group
            self._dirty.append(window)
        elif window.older is not None and len(window.older) > self._calls_max:
            window.prune()
            window.trim(self._calls_max, self._bytes_max)

    def record_alone(self, resident: Resident, request: Request, reply: bytes) -> None:
        """As `record`, where nothing else of the turn joins the group: all its writes are in former ones."""
        self.record(resident, request, reply)
        self._write(self._window(resident, request[0], None), int(self._wall_clock()))

    # --- the disk

    def _window(self, resident: Resident, client: bytes, state: Client | None) -> Window:
        """The client's window at the object, which is the object's foremost from now on."""
        last = window = resident.window
        if window is None or window.client != client:
            window = last.others.get(client) if last is not None and last.others is not None else None
            if window is None:
                window = self._load(resident, client, state)
                last = resident.window  # to make room it may have been forgotten
                if last is not None:
                    if last.others is None:
                        last.others = {last.client: last}
                    window.others = last.others
                    window.others[client] = window
            resident.window = window
        if state is not None:
            # The same object for all calls of the client, so that one look tells that it is the client's.
            window.client, window.state = client, state
        return window

    def _load(self, resident: Resident, client: bytes, state: Client | None) -> Window:
        row = resident.row_prefix() + keys.REPLY + client
        window = Window(resident, client, state, row)
        record = self._engine.get(row)
        if record is not None:
            window.load(unseal(row, record))
        self._loaded.append(window)
        if len(self._loaded) > self._count_max:
            self._look_at(self._loaded.popleft(), forget=True)
        return window

    def seal(self) -> None:
        """The open group is closed: the rows of its windows go into it."""
        if not self._dirty:
            return
        dirty, self._dirty = self._dirty, []
        now_s = int(self._wall_clock())
        touched, put, pack = now_s.to_bytes(_TIME_BYTES, "big"), self._groups.put, self._pack
        for window in dirty:
            if window.older is None and window.stored:
                row, payload = window.row, window.payload(touched, pack)
                if len(payload) <= self._bytes_max:
                    put(row, seal(row, payload))
                    continue
            self._write(window, now_s)

    def _write(self, window: Window, now_s: int) -> None:
        row, touched = window.row, now_s.to_bytes(_TIME_BYTES, "big")
        older = window.older
        if older is not None:
            window.prune()
        payload = window.payload(touched, self._pack)
        if len(payload) > self._bytes_max or (older is not None and len(older) >= self._calls_max):
            window.trim(self._calls_max, self._bytes_max)
            payload = window.payload(touched, self._pack)
        self._groups.put(row, seal(row, payload))
        if not window.stored:
            window.stored = True
            if (window.client[0] + window.highest) % _COLLECT_ONE_IN == 0:
                self._collect(window, row[: -len(window.client)], now_s)

    def _collect(self, window: Window, prefix: bytes, now_s: int) -> None:
        """Deletes expired rows among those behind the window's own; ids are random, so all get their turn."""
        after, end = prefix + window.client + b"\x00", keys.prefix_end(prefix)
        looks = _COLLECT_ROWS
        for start, stop in ((after, end), (prefix, after)):
            with self._engine.scan(start, stop) as rows:
                for row, record in rows:
                    if not looks:
                        return
                    looks -= 1
                    known = window.others is not None and row[len(prefix) :] in window.others
                    if not known and row != prefix + window.client and self._is_expired(row, record, now_s):
                        self._groups.delete(row)

    def _is_expired(self, row: bytes, record: bytes, now_s: int) -> bool:
        try:
            payload = unseal(row, record)
        except StorageError:
            return False  # the client whose row it is learns that it is damaged
        return int.from_bytes(payload[_TIME], "big") + self._ttl_s[payload[:1]] < now_s

    # --- memory

    def forget_unused(self, now: float) -> None:
        """Forgets windows that no call has used for a while; call in each tick."""
        before = now - _LOOKED_AT_S
        for _ in range(min(len(self._loaded), _LOOKS_MAX)):
            if self._loaded[0].looked_at > before:
                return
            window = self._loaded.popleft()
            window.looked_at = now
            self._look_at(window, forget=window.highest == window.looked)

    def _look_at(self, window: Window, *, forget: bool) -> None:
        window.looked = window.highest
        resident = window.resident
        if resident is None:
            return  # its object has left memory
        if not forget or window.running or window.group > self._groups.durable:
            self._loaded.append(window)
            return
        window.resident = None
        others = window.others
        if others is not None:
            del others[window.client]
        if resident.window is window:
            resident.window = next(iter(others.values())) if others else None

    def leave(self, resident: Resident) -> None:
        """The object leaves memory."""
        window, resident.window = resident.window, None
        if window is not None:
            for other in (window,) if window.others is None else window.others.values():
                if other.group <= self._groups.durable:
                    other.resident = None
