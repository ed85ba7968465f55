"""What a turn wrote: commit points, and the way back when the turn raises.

Guarantees: all writes of a turn since its last commit point join one commit group or none does; a turn
that raises leaves no trace of them, in storage or in durable fields; the name travels with an object's
first write.

What was written outside of a turn, by a task or callback that outlived its turn:

- `self.storage` and calls to other objects raise; there is no batch that they could belong to.
- Durable fields are plain attributes, so a change of one cannot be refused.  It belongs to the object's
  next turn (saved when that ends well, undone when it raises).  If none comes it is saved by itself when
  the object leaves memory or the worker begins to stop.

Runs in the worker's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping
from typing import Any

from perdure import codec
from perdure.converter import describe_error
from perdure.errors import StorageError
from perdure.ids import slot_of
from perdure_storage import keys
from perdure_storage.object_storage import ObjectStorage, StorageBackend
from perdure_storage.records import seal
from perdure_worker import migrations
from perdure_worker.alarm_storage import AlarmRules
from perdure_worker.answers import Answers
from perdure_worker.gateways import Gateways
from perdure_worker.resident import Resident
from perdure_worker.sends import Sends
from perdure_worker.settings import Collaborators, HostSettings
from perdure_worker.timetable import Timetable
from perdure_worker.turn_storage import TurnStorage
from perdure_worker.turns import CURRENT, TURN_PEER, Progress, Turn

__all__ = ["Writes"]

log = logging.getLogger("perdure.worker")


class Writes(Answers, ABC):
    """The side of the host that the store sees."""

    def __init__(self, settings: HostSettings, parts: Collaborators) -> None:
        super().__init__(settings, parts)
        self.limits = settings.limits
        self.slot_count = settings.slot_count
        self.engine = parts.engine
        self.committer = parts.committer
        self.loop = parts.loop
        self.want_flush = parts.want_flush
        self.want_turns = parts.want_turns
        self.timetable = Timetable(
            parts.engine.scan, parts.loop, parts.wall_clock, self.start_due, settings.limits
        )
        """When something is due for which object: alarms, delayed sends."""
        self.sends = Sends(self, parts)
        self.gateways = Gateways(self, parts, settings.epoch)
        """Who holds the sockets of this worker's objects."""
        self._alarm_rules = AlarmRules(
            self.timetable.now_us,
            parts.randomness.randbytes,
            settings.limits.alarms_max,
            settings.limits.name_bytes_max,
        )
        self.undo: dict[bytes, tuple[Any, ...]] = {}
        """Of objects whose turn has called delete_all: `Resident.saved` as it was before."""
        self.paused = False
        """Whether new turns wait because too many bytes wait for the disk."""
        self._large_bytes = 0
        """Of large replies since the last commit: they may all wait for the next one."""
        self.progress: dict[int, Progress] = {}
        """By identity of the turn, until it ends."""
        self._groups = parts.committer.groups
        self._value_bytes_max = settings.limits.value_bytes_max
        self._backend = StorageBackend(parts.engine, settings.limits, codec.encode, codec.decode)

    @abstractmethod
    def start_due(self) -> None:
        """Calls `timetable.start`, as one that may start turns."""

    # --- which turn runs

    def in_turn(self, resident: Resident) -> bool:
        """Whether the running code belongs to the object's turn: its method, or a task that it started."""
        turn, inside = resident.turn, resident.inside
        if turn is None:
            return False
        current = CURRENT.get()
        return current is turn or (inside is not None and turn is inside and inside.holds(current))

    def check_turn(self, resident: Resident) -> None:
        """Raises `StorageError` outside of the object's turns."""
        if not self.in_turn(resident):
            raise StorageError(
                f"{resident.label}: this code does not run inside a turn of the object, so nothing would "
                "commit what it writes; await the task in the method that starts it"
            )

    # --- commit points

    def _changes(self, resident: Resident) -> list[Any] | None:
        """What the turn changed and not yet committed; None if nothing.  Raises, and then changes nothing."""
        changes = resident.changed_fields(self._pack, self._value_bytes_max)
        if changes is None and resident.storage is not None and resident.storage._dirty:
            return []
        return changes

    def _join(self, resident: Resident, changes: list[Any]) -> None:
        """The writes of the turn so far join the open commit group."""
        groups = self._groups
        prefix = resident.row_prefix()
        if resident.storage is not None:
            self._join_storage(resident, resident.storage, bool(changes))
        elif not resident.named:
            self._put_name(resident, prefix)
        rows, put = resident.cls.field_rows, groups.put
        for index, remember, encoded in changes:
            key = prefix + rows[index]
            put(key, seal(key, encoded))
            resident.saved = resident.saved_with(index, remember)
        resident.ticket = groups.group
        if groups.uncommitted_bytes > self.limits.uncommitted_bytes_max:
            self.paused = True

    def _join_storage(self, resident: Resident, storage: TurnStorage, stores: bool) -> None:
        if storage._dirty:
            frames = storage._sockets.take() if storage._sockets is not None else None
            sends = self.sends.take(resident, storage) if self.sends.plans else None
            stores = storage._stores or stores
            if sends:
                self.sends.join(resident, storage, sends)
            due = storage._due_changes()
            storage._join(self.committer)
            group = self.committer.group
            if due:
                self.gate.hold(group, (self.timetable.committed, due, None, None))
            self.gate.hold(group, (_settle, storage, group, None))
            if sends:
                self.gate.hold(group, (self.sends.leave, sends, None, None))
            if frames:
                self.gateways.join(frames)
        if self.undo and self.undo.pop(resident.key, None) is not None:
            resident.named = resident.misnamed = False
            resident.version = 0
        if stores and not resident.named:
            self._put_name(resident, resident.row_prefix())

    def _put_name(self, resident: Resident, prefix: bytes) -> None:
        # The name travels with the object's first write, so that listings and restarts know it.
        key = prefix + keys.META
        meta: dict[str, Any] = {"name": resident.name}
        version = resident.version = resident.cls.version
        if version > 1:
            meta["version"] = version
        self.committer.put(key, seal(key, codec.encode(meta)))
        index = resident.names_row()
        value = keys.names_value(slot_of(resident.key, self.slot_count), resident.key)
        self.committer.put(index, seal(index, value))
        if resident.misnamed:
            self.committer.delete(keys.names_key(resident.cls.namespace, None, resident.key))
        resident.named, resident.misnamed = True, False

    def commit_point(self, resident: Resident, *turns: Turn) -> None:
        """Commits what was written so far, which is of `turns`; raises when it cannot be stored."""
        if resident.doomed is not None:
            raise resident.doomed
        migrations.check_commit_point(resident)
        storage = resident.storage
        held = storage._hold_back() if storage is not None else None
        try:
            changes = self._changes(resident)
            if changes is not None:
                self._join(resident, changes)
                for turn in turns:
                    self.progress_of(turn).wrote = True
                self.want_flush()
        finally:
            if held and storage is not None:
                storage._bring_back(held)

    def progress_of(self, turn: Turn) -> Progress:
        """What is remembered of a running turn until its end."""
        progress = self.progress.get(id(turn))
        if progress is None:
            progress = self.progress[id(turn)] = Progress()
        return progress

    def save_strays(self, resident: Resident) -> bool:
        """Commits changes of durable fields that no turn made; whether there were some."""
        try:
            changes = self._changes(resident)
        except BaseException as error:
            log.error(
                "a durable field was changed outside of a turn, to a value that cannot be saved",
                extra={"object": resident.label, "error": describe_error(error)},
            )
            return False
        if changes is None:
            return False
        self._join(resident, changes)
        self.want_flush()
        return True

    def write_beside(self, resident: Resident | None, rows: Mapping[bytes, bytes | None]) -> None:
        """Rows of the host's own (None: removed) join the open group, whatever turn of the object runs."""
        groups = self._groups
        for row, record in rows.items():
            if record is None:
                groups.delete(row)
            else:
                groups.put(row, record)
        if resident is not None:
            resident.ticket = groups.group
            if resident.storage is not None:
                resident.storage._lay_over(rows, groups.group)
                self.gate.hold(groups.group, (_settle, resident.storage, groups.group, None))
        due = [(row, record is not None) for row, record in rows.items() if row.startswith(keys.DUE_REGION)]
        self.gate.hold(groups.group, (self.timetable.committed, due, None, None))
        self.want_flush()

    def discard(self, resident: Resident) -> None:
        """Forgets what the running turn wrote since its last commit point.

        Raises what the user's own classes raise when saved values are loaded again.
        """
        saved = self.undo.pop(resident.key, None)
        if saved is not None:
            resident.saved = saved
        if resident.storage is not None:
            resident.storage._discard()
            self.sends.forget(resident)
            if resident.storage._sockets is not None:
                resident.storage._sockets.rollback()
        turn = resident.turn
        if resident.instance is not None and (
            turn is None or turn is resident.inside or turn[TURN_PEER] is not None
        ):
            resident.reload_fields()

    def sync(self, resident: Resident) -> Awaitable[None]:
        """A commit point, and the future of its being durable."""
        self.commit_point(resident, CURRENT.get())
        future: asyncio.Future[None] = self.loop.create_future()
        self.gate.hold(resident.ticket, (_resolve, future, None, None))
        return future

    # --- storage of one object

    def storage_of(self, resident: Resident) -> TurnStorage:
        """The object's storage, made when it first asks."""
        if resident.storage is None:
            resident.storage = TurnStorage(
                self._backend,
                prefix=resident.row_prefix(),
                names_row=resident.names_row(),
                commit_point=lambda: self.sync(resident),
                on_delete_all=lambda: self._on_delete_all(resident),
                check_turn=lambda: self.check_turn(resident),
                in_turn=lambda: self.in_turn(resident),
                alarm_rules=self._alarm_rules,
                has_handler=resident.cls.alarm is not None,
            )
        return resident.storage

    def _on_delete_all(self, resident: Resident) -> None:
        self.undo.setdefault(resident.key, resident.saved)
        resident.reset_fields()
        # Rows that are on their way to the disk are not found by looking there: delete them by name.
        prefix, storage = resident.row_prefix(), self.storage_of(resident)
        for row in resident.cls.field_rows:
            storage._put_row(prefix + row, None)
        storage._put_row(prefix + keys.META, None)
        storage._put_row(resident.names_row(), None)
        if resident.misnamed:
            storage._put_row(keys.names_key(resident.cls.namespace, None, resident.key), None)

    # --- the disk

    def on_durable(self, group: int) -> None:
        """Groups up to `group` are on disk: what waited for them leaves."""
        self.durable = group
        self._large_bytes = 0
        resumed = self.paused and self._groups.uncommitted_bytes <= self.limits.uncommitted_bytes_max
        if resumed:
            self.paused = False  # before the gate opens: starts of objects wait there
        self.gate.on_durable(group)
        if resumed:
            self.want_turns()

    def pace_large_replies(self, size: int) -> None:
        """Replies wait for the disk as writes do: when they are too many bytes, new turns wait too."""
        self._large_bytes += size
        # Else nothing waits for the disk, and no commit would end the pause.
        if self._large_bytes > self.limits.uncommitted_bytes_max and self.last_group() > self.durable:
            self.paused = True

    def last_group(self) -> int:
        """The last group that holds something: what is written now is durable at the earliest with it."""
        return self._groups.group if self._groups.dirty else self._groups.group - 1


def _settle(storage: ObjectStorage, group: int, _: None) -> None:
    storage._settle(group)


def _resolve(future: asyncio.Future[None], *_: Any) -> None:
    if not future.done():
        future.set_result(None)
