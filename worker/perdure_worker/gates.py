"""The output gate: nothing that depends on a write leaves before the write is durable.  Pure.

A turn's writes join a commit group; the group's number is the object's ticket.  Every output of an
object (a reply, a call to another object) waits for the object's ticket at the time of the output,
so the answer to a read that saw an uncommitted write waits too (RELIABILITY G1).  If the group is
never written the process ends (rule 1), and no output that waited for it is ever seen by anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

__all__ = ["Gate", "Release"]

log = logging.getLogger("perdure.worker")

# A tuple and not a closure: one is made for every reply that waits (0.04 µs against 0.12 µs).
Release = tuple[Callable[[Any, Any, Any], None], Any, Any, Any]


class Gate:
    """Outputs waiting for commit groups, released in the order of the groups."""

    __slots__ = ("_durable", "_held")

    def __init__(self) -> None:
        self._held: dict[int, list[Release]] = {}
        self._durable = 0

    def __len__(self) -> int:
        return sum(len(outputs) for outputs in self._held.values())

    def hold(self, ticket: int, release: Release) -> None:
        """Keeps an output, a function and its arguments, until group `ticket` is durable."""
        if ticket <= self._durable:
            function, first, second, third = release
            function(first, second, third)
            return
        waiting = self._held.get(ticket)
        if waiting is None:
            self._held[ticket] = [release]
        else:
            waiting.append(release)

    def on_durable(self, group: int) -> None:
        """Groups up to `group` are on disk: their outputs leave, oldest group first.

        An output that raises is logged and takes no other with it.
        """
        self._durable = group
        held = self._held
        # Groups become durable in order; more than one at once only after a pause of the loop.
        for ticket in sorted(ticket for ticket in held if ticket <= group):
            for function, first, second, third in held.pop(ticket):
                try:
                    function(first, second, third)
                except BaseException:  # an argument of a call that left, of a user's class, may raise any
                    log.exception("an output that waited for a commit could not leave")
