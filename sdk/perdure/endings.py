"""Why a call ends without its method's outcome: too large, too late, closed.  Pure; runs in every caller.

Guarantees that a call is told to have had no effect only if no try of it was ever lost.
"""

from __future__ import annotations

from perdure.errors import (
    DeadlineExceeded,
    MessageTooLarge,
    OutcomeUnknown,
    Overloaded,
    PerdureError,
    ShardUnavailable,
)
from perdure.limits import Limits
from perdure.pending import Pending

__all__ = ["at_close", "at_deadline", "of_size"]

_LIMITS = Limits()


def of_size(size: int, queued_bytes: int) -> PerdureError | None:
    """Why a call of `size` bytes is not taken by a client that holds so many bytes; None if it is."""
    if size > _LIMITS.message_bytes_max:
        return MessageTooLarge(
            f"the call has {size} bytes encoded; the limit is {_LIMITS.message_bytes_max}",
            size=size,
            limit=_LIMITS.message_bytes_max,
        )
    if queued_bytes + size > _LIMITS.client_queue_bytes_max:
        return Overloaded(
            "too many bytes wait in this client for workers that do not take them",
            limit="client_queue_bytes_max",
        )
    return None


def at_deadline(pending: Pending, seated: bool) -> PerdureError:
    """What a call ends with whose time is over; `seated`: its worker is there, as far as is known."""
    if pending.epoch or pending.maybe_ran:
        return OutcomeUnknown("no answer came until the deadline; the call may or may not have taken effect")
    if pending.attempts or not seated:
        return ShardUnavailable(
            f"worker {pending.worker} was not available until the deadline; nothing happened"
        )
    return DeadlineExceeded("the deadline passed before the call could be sent; nothing happened")


def at_close(pending: Pending) -> PerdureError:
    """What a call ends with when its client is closed."""
    if pending.epoch or pending.maybe_ran:
        return OutcomeUnknown("this client was closed before the answer came")
    return ShardUnavailable("this client was closed before the call was sent")
