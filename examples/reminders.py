"""A reminder service: each person's reminders are one object, each reminder one of its alarms.

Run it with `perdure run examples/reminders.py`, then for example

    with connect_sync() as client:
        client.get("Reminders", "ada").remind("tea", in_seconds=180)

What an alarm needs is stored in the batch that sets it, and deleted in the batch that its handler ends
with, so that there is never a reminder without its text.  A handler that fails, say because the inbox is
full, is run again after 2 s, 4 s, 8 s ...; `problems` shows those that do not get through.  A crash
halfway runs the handler again; its call to the inbox is then the same request, and delivers nothing twice.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from perdure import Alarm, DurableObject, durable

INBOX_SIZE = 1_000


@dataclass
class Reminder:
    """One reminder that is still to come."""

    name: str
    text: str
    at: datetime


class Reminders(DurableObject):
    """The reminders of one person."""

    count: int = durable(0)

    async def remind(self, text: str, in_seconds: float = 0.0, at: datetime | None = None) -> str:
        """Has the text delivered at a time, or after some seconds; the name to cancel it by."""
        self.count += 1
        name = f"{self.count:06}"
        self.storage.put(f"text/{name}", text)
        self.storage.set_alarm(at or timedelta(seconds=in_seconds), name=name)
        return name

    async def cancel(self, name: str) -> bool:
        """Whether the reminder was still to come."""
        self.storage.delete(f"text/{name}")
        return self.storage.delete_alarm(name)

    async def pending(self) -> list[Reminder]:
        """What is still to come, the soonest first."""
        alarms = [alarm for alarm in await self.storage.list_alarms() if not alarm.dead]
        return [
            Reminder(alarm.name, await self.storage.get(f"text/{alarm.name}"), alarm.scheduled_at)
            for alarm in alarms
        ]

    async def problems(self) -> dict[str, str]:
        """Why reminders could not be delivered: those that are tried again, and those that are given up."""
        return {
            alarm.name: f"{'given up' if alarm.dead else 'tried again'}: {alarm.error}"
            for alarm in await self.storage.list_alarms()
            if alarm.error is not None
        }

    async def retry(self, name: str) -> None:
        """Tries again at once what was given up."""
        self.storage.set_alarm(datetime.now(UTC), name=name)

    async def alarm(self, alarm: Alarm) -> None:
        """The time of a reminder has come."""
        text = await self.storage.get(f"text/{alarm.name}")
        await self.ctx.get(Inbox, f"{self.id.name}").deliver(text)
        self.storage.delete(f"text/{alarm.name}")


class Inbox(DurableObject):
    """Where reminders arrive."""

    messages: list[str] = durable(default_factory=list)

    async def deliver(self, text: str) -> None:
        """One more message."""
        if len(self.messages) >= INBOX_SIZE:
            raise OverflowError("the inbox is full")
        self.messages.append(text)

    async def read(self) -> list[str]:
        """All messages, the oldest first."""
        return self.messages

    async def empty(self) -> None:
        """Makes room."""
        self.messages = []
