"""Calls that come in again: answered from their record, or by the turn that runs for them already.

Guarantees that a call which took effect is not run again, whoever sends it again: the answer is the one
that its first try got or would have got, and leaves no earlier.  recorded.py keeps the records of calls
whose client tells which have ended, windows.py those of all others.

Runs in the worker's event loop.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, cast

from perdure import codec
from perdure.errors import InvalidArgument, OutcomeUnknown, PerdureError
from perdure.web_wire import FETCH, essence
from perdure_worker.clients import Client, Clients, Request
from perdure_worker.peers import Peer
from perdure_worker.recorded import SEQUENCE_END, RecordedReplies
from perdure_worker.resident import Resident
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.turns import TURN_REQUEST, TURN_SEQUENCE, Progress, Turn
from perdure_worker.windows import OTHER_CALL, TOO_LARGE, TOO_OLD, ReplyWindows
from perdure_worker.writes import Writes

__all__ = ["Retries", "named_request"]

_DIGEST_BYTES = 8
_ERRORS: dict[Any, PerdureError] = {
    TOO_OLD: OutcomeUnknown(
        "this request id is too old: its call may have taken effect, and its reply is not kept any more",
        reason="too_old",
    ),
    TOO_LARGE: OutcomeUnknown(
        "the call took effect, but its reply was too large to be kept", reason="answered"
    ),
    OTHER_CALL: InvalidArgument("this request id was used for another method or other arguments before"),
}


class Retries(Writes):
    """The side of the host that knows what was answered before."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        super().__init__(settings, parts)
        self.clients = Clients(settings.limits.clients_known_max)
        self.windows = ReplyWindows(parts.engine, self._groups, settings.limits, parts.wall_clock)
        self.recorded = RecordedReplies(
            parts.engine, self._groups, settings.limits, parts.wall_clock, self.clients
        )
        self._groups.on_seal = self._on_seal

    def _on_seal(self) -> None:
        self.recorded.seal()
        self.windows.seal()

    def is_known(
        self, resident: Resident, peer: Peer, sequence: int, request: Client | Request, client: Client
    ) -> bool:
        """Whether the call has come in before, and is answered without another turn.

        `client` is who sends it, also where the request id is another's.
        """
        try:
            if request is client:
                if abs(sequence) >= SEQUENCE_END:
                    raise InvalidArgument("a call's sequence has 63 bits at most")
                known = self.recorded.look_up(resident, client, sequence)
            else:
                request = cast(Request, request)
                window = resident.window
                if window is not None and window.client is request[0] and sequence > window.highest:
                    window.highest = sequence  # the client's latest call here
                    return False
                own = client if client.id is request[0] else None
                known = self.windows.look_up(resident, request, own)
        except PerdureError as error:
            self.refuse(peer, sequence, error)
            return True
        return known is not None and self._answer(resident, peer, sequence, known)

    def is_known_now(self, resident: Resident, peer: Peer, sequence: int, request: Client | Request) -> bool:
        """As `is_known`, for a call that has waited for its turn."""
        try:
            if isinstance(request, Client):
                known = self.recorded.look_again(resident, request, sequence)
            else:
                known = self.windows.look_again(resident, request)
        except PerdureError as error:
            self.refuse(peer, sequence, error)
            return True
        return known is not None and self._answer(resident, peer, sequence, known)

    def _answer(self, resident: Resident, peer: Peer, sequence: int, known: Any) -> bool:
        if type(known) is tuple:
            self.progress_of(known).more.append((peer, sequence))
            return True
        if type(known) is bytes:
            reply = self._for(sequence, known)
        else:
            reply = self.error_reply(sequence, _ERRORS[known])
        # What it tells of may not be on disk yet.
        self.gate.hold(resident.ticket, (self._reply, peer, sequence, reply))
        return True

    def refuse_ended(self, peer: Peer, client: Client, items: list[Any]) -> list[Any]:
        """The items of an overtaken batch without calls that have ended since; those must not run."""
        kept = items[:1]
        for item in items[1:]:
            if type(item) is list and item and type(item[0]) is int and client.has_ended(item[0]):
                self.refuse(peer, item[0], _ERRORS[TOO_OLD])
            else:
                kept.append(item)
        return kept

    def record(self, resident: Resident, turn: Turn, reply: bytes, progress: Progress | None) -> None:
        """The turn wrote, and this is its reply."""
        request = turn[TURN_REQUEST]
        if request is None:
            return
        alone = progress is not None and not self._groups.dirty
        if isinstance(request, Client):
            record = self.recorded.record_alone if alone else self.recorded.record
            record(resident.row_prefix(), request, turn[TURN_SEQUENCE], reply)
        elif alone:
            self.windows.record_alone(resident, request, reply)
        else:
            self.windows.record(resident, request, reply)

    def suspended(self, resident: Resident, turn: Turn) -> None:
        """A caller's turn goes on later: other tries of its call can meet it until `not_suspended`."""
        request = turn[TURN_REQUEST]
        if isinstance(request, Client):
            self.recorded.suspended(request, turn, turn[TURN_SEQUENCE])
        else:
            self.windows.suspended(resident, turn, request)

    def not_suspended(self, resident: Resident, turn: Turn) -> None:
        """The turn that had suspended has ended."""
        request = turn[TURN_REQUEST]
        if isinstance(request, Client):
            self.recorded.ended(request, turn[TURN_SEQUENCE])
        else:
            self.windows.ended(resident, request)

    def reply_more(self, resident: Resident, progress: Progress, reply: bytes) -> None:
        """Who has sent the call again while it ran gets its reply, too."""
        for peer, sequence in progress.more:
            self.gate.hold(resident.ticket, (self._reply, peer, sequence, self._for(sequence, reply)))

    def _for(self, sequence: int, reply: bytes) -> bytes:
        """The reply with another try's sequence in it; mostly it is the same."""
        head = b"\x93" + self._pack(sequence)
        if reply.startswith(head):
            return reply
        return head + b"".join(codec.split_array(reply)[1:])


def named_request(request: Request, method: Any, args: Any, kwargs: Any) -> Request:
    """The request id that a user has chosen, with a digest of what is called under it."""
    if method == FETCH:
        args = essence(args)
    called = codec.encode([method, args, sorted((kwargs or {}).items())])
    return *request, blake2b(called, digest_size=_DIGEST_BYTES).digest()
