"""What leaves the worker for callers: results, failures and refusals, each encoded once.

Guarantees that the answer of a turn never overtakes the commit that its object had open, and that a
refusal, which says that nothing happened, waits for nothing.  Runs in the worker's event loop.
"""

from __future__ import annotations

import logging
from typing import Any, cast

from perdure import codec, protocol
from perdure.converter import describe_error
from perdure.errors import (
    InvalidArgument,
    MessageTooLarge,
    NotExecuted,
    Overloaded,
    PerdureError,
    StorageError,
    to_wire,
)
from perdure.remote_errors import dump_exception
from perdure.web_wire import FETCH
from perdure_worker.gates import Gate
from perdure_worker.peers import Peer
from perdure_worker.resident import Resident
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.system_turns import SystemTurn

__all__ = ["Answers", "LARGE_REPLY_BYTES", "ResultTooLarge"]

log = logging.getLogger("perdure.worker")

_STATE = ("registered", "args", "attributes")
LARGE_REPLY_BYTES = 16 * 1024
"""Replies from this size on are counted in bytes; of smaller ones a tick's fit into memory anyway."""
_READ_FIRST_S = 0.1
"""A caller that reads has taken what waits for it by then."""
_SEQUENCE_BITS = (1 << 64) - 1


class ResultTooLarge(MessageTooLarge):
    """The result of a turn is over the limit, and all that the turn did was undone.  Travels as its base."""


class Answers:
    """The side of the host that callers see."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        self.peers = parts.peers
        self.gate = Gate()
        self.durable = parts.committer.durable
        """The last group known to be on disk."""
        self._tracebacks = settings.tracebacks
        self._pack = codec.make_packer()
        self._reply = self.reply  # bound once: it goes into every waiting output

    def reply(self, peer: Peer, sequence: int, reply: bytes) -> None:
        """An encoded reply leaves with this tick's message to its peer."""
        if not peer.replies:
            self.peers.dirty.append(peer)
        peer.replies.append(reply)
        if peer.raw:
            # The header has room for 64 bits.  A sequence beyond them is nobody's, but must not stop others.
            peer.sequences.append(sequence & _SEQUENCE_BITS)
        if len(reply) > LARGE_REPLY_BYTES:
            self.peers.add_large(len(reply))

    def reply_all(self, peer: Peer, replies: list[bytes], _: None) -> None:
        """As `reply`, for many small ones of a peer that is not raw."""
        if not peer.replies:
            self.peers.dirty.append(peer)
        peer.replies.extend(replies)

    def reply_item(self, peer: Peer, sequence: int, reply: bytes) -> None:
        """As `reply`, for one item of a stream."""
        self.reply(peer, sequence, reply)
        if peer.raw:
            peer.sequences[-1] = ~peer.sequences[-1]

    def refuse(self, peer: Peer | SystemTurn, sequence: int, error: PerdureError) -> None:
        """The call did not run; its answer waits for nothing."""
        if isinstance(peer, SystemTurn):
            peer.dropped()
            return
        self.reply(peer, sequence, self.error_reply(sequence, error))

    def refuse_arguments(self, peer: Peer, sequence: int, title: str, error: BaseException) -> None:
        """What binds the arguments of a call has raised; users' constructors and validators run there."""
        if not issubclass(type(error), PerdureError):  # isinstance would ask a user's __class__
            error = InvalidArgument(f"{title}: an argument raised {describe_error(error)}")
        self.refuse(peer, sequence, cast(PerdureError, error))

    def unread(self, peer: Peer) -> PerdureError | None:
        """Why a call of a peer that does not read its replies is refused; None for all others."""
        if peer.identity not in self.peers.full:
            return None
        return Overloaded(
            "replies wait that their caller does not read (half of reply_queue_bytes_max); nothing was "
            "executed: read them, or ask for less at a time",
            limit="reply_queue_bytes_max",
            retry_after=_READ_FIRST_S,
        )

    def error_reply(self, sequence: int, error: PerdureError) -> bytes:
        """What `refuse` sends."""
        try:
            return self._pack([sequence, protocol.STATUS_ERROR, to_wire(error)])
        except BaseException:  # what a user's validator raised may be of a class of the user's
            plain = NotExecuted("the call did not run, and its error cannot be shown")
            return self._pack([sequence, protocol.STATUS_ERROR, to_wire(plain)])

    def reply_failure(
        self, resident: Resident, peer: Peer | SystemTurn, sequence: int, error: BaseException
    ) -> None:
        """The turn raised; the answer waits for what the object committed before.  Never raises."""
        if isinstance(peer, SystemTurn):
            self._tell_system(resident, peer, error)
            return
        kind = type(error)  # isinstance would ask a user's __class__
        if kind is ResultTooLarge or (issubclass(kind, StorageError) and resident.instance is None):
            reply = self.error_reply(sequence, cast(PerdureError, error))
        else:
            raised = dump_exception(error, resident.label, with_traceback=self._tracebacks)
            try:
                reply = codec.encode([sequence, protocol.STATUS_RAISED, raised])
            except InvalidArgument:  # its attributes are nested as deep as a message may be
                facts = {name: raised[name] for name in raised if name not in _STATE}
                reply = codec.encode([sequence, protocol.STATUS_RAISED, facts])
        if resident.ticket > self.durable:
            self.gate.hold(resident.ticket, (self._reply, peer, sequence, reply))
        else:
            self.reply(peer, sequence, reply)

    def log_failure(self, resident: Resident, method: Any, error: BaseException) -> None:
        """What a handler of the web raised: its callers get no more than a number.  Never raises."""
        if method is None or not (method.public or method.name == FETCH):
            return
        raised = dump_exception(error, resident.label, with_traceback=True)
        if "registered" in raised:  # the caller is told
            return
        facts = {"object": resident.label, "remote_traceback": raised["traceback"]}
        log.error("%s raised %s: %s", method.title, raised["type"], raised["message"], extra=facts)

    def _tell_system(self, resident: Resident, turn: SystemTurn, error: BaseException) -> None:
        try:
            turn.failed(resident, error)
        except BaseException as raised:
            told = {"object": resident.label, "turn": turn.title, "error": describe_error(raised)}
            log.error("the failure of a turn could not be noted", extra=told)

    def reply_value(self, peer: Peer, sequence: int, value: Any) -> None:
        """The answer of the worker itself to `list` and `stats`."""
        self.reply(peer, sequence, codec.encode([sequence, protocol.STATUS_RESULT, value]))
