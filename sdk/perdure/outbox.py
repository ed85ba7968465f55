"""What `ctx.outbox` offers: the durable sends of an object that have not ended.

Only the object itself sees and mends them, inside of its turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from perdure.ids import ObjectId

__all__ = ["Outbox", "OutboxMessage"]


@dataclass(frozen=True)
class OutboxMessage:
    """A durable send that has not ended."""

    id: str
    """What names it in `retry` and `drop`; another one when it dies."""
    namespace: str
    target: ObjectId
    method: str
    args: list[Any]
    """As they travel: dataclasses are dicts."""
    kwargs: dict[str, Any]
    sent_at: datetime
    """When its turn was committed (UTC)."""
    due_at: datetime | None
    """Not before this time (UTC); None for at once."""
    attempts: int
    """Deliveries that failed and count: the target raised, or refused the call for good."""
    error: str | None
    """Why the last of them failed."""
    dead: bool
    """Whether it was given up."""


# Inside the class `list` is the method.
_Messages = list[OutboxMessage]


class Outbox(Protocol):
    """An object's own durable sends; all that is changed belongs to the running turn."""

    async def list(
        self, *, dead: bool | None = None, limit: int = 100, cursor: str | None = None
    ) -> _Messages:
        """Messages that are committed and have not ended: pending ones, then dead ones, each by target.

        `dead` picks one of the two.  Page with ``cursor=`` the id of the last message of the page before.
        """

    def retry(self, message_id: str) -> bool:
        """Sends a dead message again, as a new one behind all others; False when there is none of this id.

        Its attempts start at 0.  A message died because its target raised or refused it, so it has had no
        effect yet.
        """

    def drop(self, message_id: str) -> bool:
        """Deletes a dead message; False when there is none of this id."""
