"""The host's own work for its objects: what is due becomes turns in the order of their mailboxes.

Guarantees: an object is woken for its work, and calls that came before run before it; a worker that stops
starts none.  Runs in the worker's event loop.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from typing import Any

from perdure.errors import NotExecuted
from perdure_worker.alarms import Alarms
from perdure_worker.execution import Execution
from perdure_worker.mailbox import Mailbox, Waiting
from perdure_worker.registry import ObjectClass
from perdure_worker.resident import Resident, StartTrouble
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.system_turns import SystemTurn

__all__ = ["SystemWork"]


class SystemWork(Execution):
    """The side of the host that no caller sees."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        super().__init__(settings, parts)
        self.slots = settings.slots
        self.live: OrderedDict[bytes, Resident] = OrderedDict()
        """By id, the least recently used first."""
        self.draining = False
        """Whether the worker stops: only calls that running turns wait for are still taken."""
        self.quarantine = parts.quarantine
        self.alarms = Alarms(self, parts.randomness.random)

    @abstractmethod
    def _wake(self, cls: ObjectClass, key: bytes, name: str | None, chain: Any) -> Resident:
        """An object that is not in memory begins to start."""

    @abstractmethod
    def _mailbox_for(self, resident: Resident, waiting: Waiting, item: list[Any]) -> Mailbox | None:
        """Where it waits; None when it has failed, because its object cannot start."""

    def start_due(self) -> None:
        """Starts some of what is due: alarms and the like."""
        self.in_turns(self.timetable.start)
        self.run_waiting()
        self.want_flush()

    def enqueue(self, namespace: str, key: bytes, work: SystemTurn) -> None:
        """The work waits behind the object's calls, beyond the bounds of its mailbox.  Within `in_turns`."""
        cls = self.classes[namespace]
        if self.quarantine.suspects and key not in self.live:
            kept_out = Resident(cls, key, None)
            try:
                self.quarantine.check(key, kept_out.label)
            except NotExecuted as error:
                kept_out.trouble = StartTrouble(error)
                work.failed(kept_out, error)
                return
        resident = self.live.get(key) or self._wake(cls, key, None, None)
        now = self.clock()
        item = [0, namespace, key, None, work.title, [], None, 0, None]
        waiting = Waiting(work, item, now, now, 0, nested=True)  # no call makes it give way
        mailbox = self._mailbox_for(resident, waiting, item)
        if mailbox is not None:
            mailbox.append(waiting)
