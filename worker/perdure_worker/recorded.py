"""Recorded replies of clients that tell which of their calls have ended.  Pure; worker's event loop.

Guarantees, for a client's own calls (those that turns make and named requests are in windows.py):

- a turn that wrote has its reply in the commit group of its last write, so a retry gets that reply, also
  from a later incarnation of the worker;
- a retry that meets the running turn is known as such;
- a record is kept until its client says that the call has ended, or for `reply_ttl_s`; what bounds drop
  before that is never run again.

The replies of a group make one row of a log with a fixed number of places (`perdure_storage.reply_log`).
A place is written over when the log comes round; replies in it that may still be asked for move to the
row of their client, which few clients ever need.  A record costs one dict item and a fiftieth of a row:
2.7 µs of 9.0 less than a row for each object and client (docs/decisions/0016).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import msgpack

from perdure.errors import StorageError
from perdure_storage.records import seal
from perdure_storage.reply_log import (
    ClientRecord,
    Record,
    client_key,
    client_rows,
    fold,
    place_key,
    read_client,
)
from perdure_worker.turns import Turn
from perdure_worker.windows import OTHER_CALL, TOO_LARGE, TOO_OLD

if TYPE_CHECKING:
    from perdure.limits import Limits
    from perdure_storage.commit import GroupCommit
    from perdure_storage.engine import Engine
    from perdure_worker.clients import Client, Clients
    from perdure_worker.resident import Resident

__all__ = ["SEQUENCE_END", "RecordedReplies"]

log = logging.getLogger("perdure.worker")

SEQUENCE_END: Final = 1 << 63
"""Sequences of clients that tell are below it: they are keys of rows in msgpack."""
_COLLECT_ONE_IN: Final = 16
_COLLECT_ROWS: Final = 32
"""One in 16 writes of clients' rows looks at 32 others: enough, since each makes at most one."""


class RecordedReplies:
    """The log of one worker."""

    def __init__(
        self,
        engine: Engine,
        groups: GroupCommit,
        limits: Limits,
        wall_clock: Callable[[], float],
        clients: Clients,
    ) -> None:
        self._engine = engine
        self._groups = groups
        self._wall_clock = wall_clock
        self._clients = clients
        self._calls_max = limits.reply_window_calls_max
        self._bytes_max = limits.reply_window_bytes_max
        self._ttl_s = int(limits.reply_ttl_s)
        self._pack: Callable[[Any], bytes] = msgpack.Packer().pack  # not strict: tuples become lists
        self._open: list[Client] = []
        """Clients with a reply in the open group."""
        self._place = 0
        self._round_bytes = 0
        self._round_bytes_max = limits.reply_log_bytes_max
        self._places: list[tuple[tuple[bytes, int, int], ...]] = [()] * limits.reply_log_rows
        """Of each place: whose calls are in it, lowest and highest sequence."""
        self._writes = 0
        fold(engine, int(wall_clock()))
        clients.load = self._load
        clients.may_forget = self._may_forget

    # --- calls

    def look_up(self, resident: Resident, client: Client, sequence: int) -> Any:
        """What is known of a call that is not newer than all others of its client.

        Its recorded reply, its running `Turn`, `TOO_LARGE`, `TOO_OLD`, `OTHER_CALL`, or None: it has to run.
        """
        record = client.find(sequence)
        if record is not None:
            prefix, reply = record
            if not prefix.endswith(resident.key):
                return OTHER_CALL
            return TOO_LARGE if reply is None else reply
        turn = client.running.get(sequence)
        if turn is not None:
            return turn
        if sequence > 0 and (sequence <= client.dropped or client.has_ended(sequence)):
            return TOO_OLD
        client.repeated = max(client.repeated, sequence)
        return None

    def look_again(self, resident: Resident, client: Client, sequence: int) -> Any:
        """As `look_up`, for a call that has waited: another try of it may have come in before."""
        return self.look_up(resident, client, sequence) if sequence <= client.repeated else None

    def suspended(self, client: Client, turn: Turn, sequence: int) -> None:
        """The turn goes on later: retries of its call can meet it until `ended`."""
        client.running[sequence] = turn

    def ended(self, client: Client, sequence: int) -> None:
        """The turn that had suspended has ended."""
        client.running.pop(sequence, None)

    def record(self, prefix: bytes, client: Client, sequence: int, reply: bytes) -> None:
        """The call's turn wrote: its reply joins the open group, which is not empty."""
        part = client.part
        if part is None:
            part = self.open_part(client)
        part[sequence] = (prefix, reply if len(reply) <= self._bytes_max else None)

    def open_part(self, client: Client) -> dict[int, Record]:
        """Where the open group's replies to the client go: prefix of the object's rows and reply."""
        self._open.append(client)
        part = client.part = {}
        return part

    def record_alone(self, prefix: bytes, client: Client, sequence: int, reply: bytes) -> None:
        """As `record`, where nothing else of the turn joins the group: all its writes are in former ones."""
        client.old[sequence] = (prefix, reply)
        self._write(client)

    # --- the disk

    def seal(self) -> None:
        """The open group is closed: what was recorded goes into it."""
        opened = self._open
        if not opened:
            return
        self._open = []
        place = self._place
        if self._places[place]:
            self._retire(place)
        told, members = [], []
        for client in opened:
            part, client.part = client.part, None
            assert part is not None
            told.append(
                (client.id, client.flush, client.last, client.floor, client.stragglers, client.dropped, part)
            )
            last = max(part)
            members.append((client.id, min(part), last))
            client.parts[place] = (last, part)
            client.told_at = place
            client.told_floor, client.told_stragglers = client.floor, client.stragglers
            self._prune(client)
        payload = self._pack(told)
        key = place_key(place)
        self._groups.put(key, seal(key, payload))
        self._places[place] = tuple(members)
        self._round_bytes += len(payload)
        self._place = place + 1
        if self._place == len(self._places) or self._round_bytes > self._round_bytes_max:
            self._place = self._round_bytes = 0

    def _prune(self, client: Client) -> None:
        """Forgets what the client says has ended."""
        parts, floor = client.parts, client.floor
        while parts:
            place = next(iter(parts))
            last, part = parts[place]
            if last >= floor:
                break
            del parts[place]
            for sequence in client.stragglers:
                if sequence in part:
                    client.old[sequence] = part[sequence]
        if client.old:
            self._prune_old(client)

    def _prune_old(self, client: Client) -> None:
        ended = [sequence for sequence in client.old if client.has_ended(sequence)]
        for sequence in ended:
            del client.old[sequence]

    def _retire(self, place: int) -> None:
        """The place is about to be written over: what it alone says goes elsewhere."""
        for client_id, first, last in self._places[place]:
            client = self._clients.find(client_id)
            if client is not None and (
                client.told_at == place
                or last >= client.told_floor
                or any(first <= sequence <= last for sequence in client.told_stragglers)
            ):
                self._write(client)

    def _write(self, client: Client) -> None:
        """The client's own row joins the open group, with all that may still be asked for."""
        old = client.old
        for _, part in client.parts.values():
            old.update(part)
        client.parts = {}
        self._prune_old(client)
        self._trim(client)
        told = ClientRecord()
        told.flush, told.last, told.floor = client.flush, client.last, client.floor
        told.stragglers, told.dropped, told.records = client.stragglers, client.dropped, old
        now_s = int(self._wall_clock())
        key = client_key(client.id)
        self._groups.put(key, seal(key, told.payload(now_s)))
        client.told_at = None
        client.told_floor, client.told_stragglers = client.floor, client.stragglers
        client.group = self._groups.group
        self._writes += 1
        if self._writes % _COLLECT_ONE_IN == 0:
            self._collect(client.id, now_s)

    def _trim(self, client: Client) -> None:
        """Holds the bounds: the oldest go, of large replies a note stays that there was one."""
        old = client.old
        if len(old) > self._calls_max:
            for sequence in sorted(old)[: len(old) - self._calls_max * 3 // 4]:
                client.dropped = max(client.dropped, sequence)
                del old[sequence]
        size = sum([_size(record) for record in old.values()])
        for sequence, (prefix, reply) in list(old.items()) if size > self._bytes_max else ():
            size -= len(reply or b"")
            old[sequence] = (prefix, None)
            if size <= self._bytes_max:
                break

    def _collect(self, after: bytes, now_s: int) -> None:
        """Deletes expired rows among those behind a client's; ids are random, so all get their turn."""
        try:
            for client, told in self._rows_behind(after):
                if told.time_s + self._ttl_s < now_s and self._clients.find(client) is None:
                    self._groups.delete(client_key(client))
        except StorageError as error:  # the client whose row it is learns that it is damaged
            log.error("recorded replies cannot be read: %s", error)

    def _rows_behind(self, after: bytes) -> Iterator[tuple[bytes, ClientRecord]]:
        with closing(client_rows(self._engine, after)) as rows:
            behind = list(islice(rows, _COLLECT_ROWS))
        with closing(client_rows(self._engine)) as rows:
            return iter(behind + list(islice(rows, _COLLECT_ROWS - len(behind))))

    # --- memory

    def _load(self, client: Client) -> None:
        told = read_client(self._engine, client.id)
        if told is not None:
            client.restore(told)

    def _may_forget(self, client: Client) -> bool:
        if client.told_at is not None or client.parts:
            self._write(client)
        return client.group <= self._groups.durable


def _size(record: Record) -> int:
    return len(record[0]) + len(record[1] or b"")
