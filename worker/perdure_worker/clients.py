"""Who calls, and which of their calls have ended: read from batches and items.  Pure; worker's event loop.

Guarantees that the state of a client only moves forward: a batch that was overtaken by a later one of the
same client is known as such, so that a call in it which has ended since is not taken for a new one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from sys import getrefcount
from typing import Any

from perdure.limits import Limits
from perdure_storage.reply_log import ClientRecord, Record

__all__ = ["CLIENT_ID_BYTES", "Client", "Clients", "Request", "labels_of", "nested_path", "read_context"]

CLIENT_ID_BYTES = 16
_WIDE = 0xFFFF
"""Ordinals from here on take four bytes behind this mark."""
_LIMITS = Limits()
_PATH_BYTES_MAX = 6 * _LIMITS.chain_depth_max
"""Six bytes is the longest ordinal; see `nested_path`."""

# The id of a request: the client's id (16 bytes), its sequence, the path of ordinals below the client's own
# call (empty for that call itself), and the client's floor: all its calls below have ended.  A request that
# the user has named has a fifth element, the digest of method and arguments.  Where a request belongs to a
# call, the `Client` alone stands for its own call under the call's own sequence, if it tells what has ended.
Request = tuple[Any, ...]

_EVICT_LOOKS = 8
_REFERENCES_OF_UNUSED = 3
"""To a client that no message, waiting call or running turn knows: the table's, and those of the look."""


class Client:
    """One client as this worker knows it."""

    __slots__ = (
        "dropped",
        "floor",
        "flush",
        "group",
        "highest",
        "id",
        "last",
        "low",
        "old",
        "part",
        "parts",
        "repeated",
        "running",
        "stragglers",
        "told_at",
        "told_floor",
        "told_stragglers",
    )

    def __init__(self, client_id: bytes) -> None:
        self.id = client_id
        self.flush = 0
        """Number of the latest flush that told the following."""
        self.floor = 0
        """All calls below it have ended, but for the stragglers; 0 where the client does not tell."""
        self.stragglers: tuple[int, ...] = ()
        self.low = 0
        """All calls below it have ended."""
        self.last = 0
        """Its latest call."""
        # What `recorded.py` keeps of its own calls, where it tells which have ended.
        self.highest = 0
        """No call above it has come in here before."""
        self.part: dict[int, Record] | None = None
        """Replies recorded in the open commit group, by sequence."""
        self.parts: dict[int, tuple[int, dict[int, Record]]] = {}
        """Highest sequence and replies of former groups, by their place in the log, oldest first."""
        self.old: dict[int, Record] = {}
        """Replies that may still be asked for although later calls have ended."""
        self.running: dict[int, Any] = {}
        """Turns that have suspended, by the sequence of their call."""
        self.repeated = 0
        """No call above it has come in more than once."""
        self.dropped = 0
        """Calls up to it that are not recorded may have been, and must not run."""
        self.told_at: int | None = None
        """The place in the log that says last what the client told; None if its own row does."""
        self.told_floor = 0
        self.told_stragglers: tuple[int, ...] = ()
        self.group = 0
        """The commit group of its own row."""

    def restore(self, told: ClientRecord) -> None:
        """Takes what was stored of it."""
        self.old = told.records
        self.dropped = told.dropped
        self.flush, self.last, self.floor = told.flush, told.last, told.floor
        self.stragglers = self.told_stragglers = told.stragglers
        self.told_floor = told.floor
        self.low = min((told.floor, *told.stragglers))
        self.highest = max((told.last, *told.records))

    def find(self, sequence: int) -> Record | None:
        """The recorded reply of one of its own calls."""
        if self.part is not None and sequence in self.part:
            return self.part[sequence]
        for last, part in reversed(self.parts.values()):
            if sequence <= last and sequence in part:
                return part[sequence]
        return self.old.get(sequence)

    def has_ended(self, sequence: int) -> bool:
        """Whether the client does not wait for this call any more, and will not send it again."""
        return sequence < self.floor and sequence not in self.stragglers


class Clients:
    """The clients that called lately, bounded; the longest silent is forgotten."""

    def __init__(self, count_max: int = _LIMITS.clients_known_max) -> None:
        self._clients: OrderedDict[bytes, Client] = OrderedDict()
        self._count_max = count_max
        self.load: Callable[[Client], None] = _nothing_stored
        """Called for a client whose first news come in."""
        self.may_forget: Callable[[Client], bool] = _always
        """Whether a client that nothing uses is stored as it should be; else it will be."""

    def __len__(self) -> int:
        return len(self._clients)

    def on_batch(self, head: Any) -> tuple[Client, bool]:
        """The client of a batch's first element, and whether a later batch of it has overtaken this one.

        Raises `TypeError` for what is no client.
        """
        if type(head) is bytes:
            return self._get(head), False
        if type(head) is not list or len(head) < 4 or not set(map(type, head[1:])) <= {int}:
            raise TypeError("a client is 16 bytes, or a list of them and at least three numbers")
        client = self._get(head[0])
        if not client.flush:
            self.load(client)
        flush = head[1]
        if flush < client.flush:
            return client, True
        if flush > client.flush:
            client.last = head[2]
            if not client.flush:  # former incarnations may have recorded its calls
                client.highest = max(client.highest, client.last)
            client.flush = flush
            client.floor = head[3]
            client.stragglers = tuple(head[4:])
            client.low = min(head[3:])
        return client, False

    def find(self, client_id: bytes) -> Client | None:
        """The client, if it called lately."""
        return self._clients.get(client_id)

    def _get(self, client_id: Any) -> Client:
        client = self._clients.get(client_id)
        if client is None:
            if type(client_id) is not bytes or len(client_id) != CLIENT_ID_BYTES:
                raise TypeError(f"a client's id has {CLIENT_ID_BYTES} bytes")
            if len(self._clients) >= self._count_max:
                self._make_room()
            client = self._clients[client_id] = Client(client_id)
        else:
            self._clients.move_to_end(client_id)
        return client

    def _make_room(self) -> None:
        # Those in use are passed over; when all are, the bound gives way for a while.
        for _ in range(min(_EVICT_LOOKS, len(self._clients))):
            client = next(iter(self._clients.values()))
            if getrefcount(client) <= _REFERENCES_OF_UNUSED and self.may_forget(client):
                del self._clients[client.id]
                if len(self._clients) < self._count_max:
                    return
            else:
                self._clients.move_to_end(client.id)


def _nothing_stored(_: Client) -> None:
    """There is no store."""


def _always(_: Client) -> bool:
    return True


def read_context(context: Any) -> tuple[Any, Request | None]:
    """The chain and the request id of an item's ninth element; `TypeError` for what is none.

    The chain is looked at by whoever uses it.
    """
    if type(context) is not list or len(context) < 2:
        raise TypeError("a context is a list of chain and request")
    chain, request = context[:2]
    if request is None:
        return chain, None
    if type(request) is not list or tuple(map(type, request[:4])) != (bytes, int, bytes, int):
        raise TypeError("a request is a list of client id, sequence, path and floor")
    if len(request[0]) != CLIENT_ID_BYTES or len(request[2]) > _PATH_BYTES_MAX:
        raise TypeError(
            f"a request's client id has {CLIENT_ID_BYTES} bytes, its path {_PATH_BYTES_MAX} at most"
        )
    return chain, tuple(request[:4])


def nested_path(path: bytes, ordinal: int) -> bytes:
    """The path of the call with this ordinal (from 1) that the turn of the request with `path` makes."""
    if ordinal < _WIDE:
        return path + ordinal.to_bytes(2, "big")
    return path + _WIDE.to_bytes(2, "big") + ordinal.to_bytes(4, "big")


def labels_of(chain: Any) -> list[str]:
    """The objects of a chain as text; `TypeError` for what is no chain."""
    if type(chain) is not list or not all(type(entry) is list and len(entry) in (2, 3) for entry in chain):
        raise TypeError("a chain is a list of [id, label] and [id, label, number of the turn]")
    return [str(entry[1]) for entry in chain]
