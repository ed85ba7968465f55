"""Turns that no caller asked for: the host's own work in the order of an object's turns, like an alarm.

A `SystemTurn` stands where a call has its peer, in the mailbox and in the running turn, and is told how it
ended instead of a peer being sent an answer.  Runs in the worker's event loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure_worker.clients import Request
    from perdure_worker.resident import Resident

__all__ = ["Body", "SystemTurn"]

Body = tuple[Callable[..., Any], tuple[Any, ...], bool]
"""A handler, its arguments without the instance, and whether it is @blocking."""


class SystemTurn(ABC):
    """One turn.  Exactly one of `ended`, `failed` and `dropped` comes, once."""

    title: str
    """The handler's name, for messages."""
    request: Request | None = None
    """The id that calls which the turn makes derive theirs from; known once it has begun."""

    @abstractmethod
    def begin(self, resident: Resident) -> Body | None:
        """The turn has come: what to run, or None when there is nothing to do any more."""

    @abstractmethod
    def commit(self, resident: Resident) -> None:
        """The handler has returned: adds what belongs into the turn's last batch."""

    @abstractmethod
    def ended(self, resident: Resident) -> None:
        """The turn has ended well; its writes have joined a commit group."""

    @abstractmethod
    def failed(self, resident: Resident, error: BaseException) -> None:
        """The object could not start, was aborted before the turn came, or the handler raised.

        What the turn wrote since its last commit point is undone.
        """

    @abstractmethod
    def dropped(self) -> None:
        """It did not run and will not: `begin` found nothing to do, or the worker stops."""
