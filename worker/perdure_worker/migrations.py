"""`on_migrate`: bringing an object up to the version of its class.  Runs in the worker's event loop.

Guarantees: what `on_migrate` wrote and the version are one batch, on disk before anything else of the
object runs; the object is then loaded afresh, as after a restart; a migration that fails leaves nothing.

A migration is the first step of the object's start: a turn of its own, known by its sequence.
"""

from __future__ import annotations

from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final

from perdure.converter import describe_error
from perdure.errors import StorageError
from perdure_storage import keys
from perdure_worker.cell import HostCell
from perdure_worker.turns import TURN_METHOD, TURN_SEQUENCE, Turn

if TYPE_CHECKING:
    from perdure_worker.execution import Execution
    from perdure_worker.resident import Resident

__all__ = ["MigrationFailed", "check_commit_point", "end", "explain", "is_migration", "load"]

_SEQUENCE: Final = 1
"""Of a migration's turn; that of `on_start` has 0."""


class MigrationFailed(Exception):
    """`on_migrate` raised; the object is as it was, and its next call tries again."""


class _MigratingCell(HostCell):
    """What an object sees of its worker in `on_migrate`."""

    __slots__ = ("_old", "found")

    def __init__(self, host: Execution, resident: Resident, old: dict[str, Any]) -> None:
        super().__init__(host, resident)
        self._old = old
        self.found = frozenset(old)
        """The names that `old_fields` began with."""

    @property
    def old_fields(self) -> dict[str, Any]:
        """See `Context.old_fields`."""
        return self._old


def load(host: Execution, resident: Resident, turn: Turn) -> bool:
    """Loads the object, and begins its migration where one is due; whether it did."""
    # In a context of its own: users' default factories and constructors run.
    old = copy_context().run(resident.load, host.engine, host.unknown_field)
    if old is None:
        resident.instance._perdure_cell = HostCell(host, resident)
        return False
    migrate = resident.cls.migrate
    assert migrate is not None
    resident.instance._perdure_cell = _MigratingCell(host, resident, old)
    resident.turn = turn = (turn[0], _SEQUENCE, *turn[2:])
    host._step(resident, turn, migrate, (resident.instance, resident.version), None)
    return True


def is_migration(turn: Any) -> bool:
    """Whether this is the turn of an `on_migrate`."""
    return type(turn) is tuple and turn[TURN_METHOD] is None and turn[TURN_SEQUENCE] == _SEQUENCE


def check_commit_point(resident: Resident) -> None:
    """Raises `StorageError` in `on_migrate`."""
    if is_migration(resident.turn):
        raise StorageError(
            f"{resident.label}: on_migrate is one batch with the new version, so it can neither sync() nor "
            "call other objects; do that in on_start"
        )


def end(host: Execution, resident: Resident, turn: Turn) -> None:
    """`on_migrate` has returned: its batch is made, and when that is on disk the object starts.

    Raises what the writes raise that cannot be stored; nothing is written then.
    """
    cell: _MigratingCell = resident.instance._perdure_cell
    declared = {field.name for field in resident.cls.fields}
    for name in cell.found & declared - vars(resident.instance).keys():
        raise StorageError(
            f"the stored value of {name} is not what its annotation says now, and on_migrate has set none: "
            f"take it from self.ctx.old_fields[{name!r}], and set self.{name}"
        )
    changes = host._changes(resident) or []
    prefix = resident.row_prefix()
    for name in cell.found - declared - cell.old_fields.keys():
        host.storage_of(resident)._put_row(prefix + keys.FIELD + name.encode(), None)
    if resident.key not in host.undo:  # after delete_all nothing is stored that could have a version
        host._put_name(resident, prefix)
    host._join(resident, changes)
    resident.instance = resident.storage = None
    resident.turn = turn = (turn[0], 0, *turn[2:])
    host._start_behind_gate(resident, turn, None)
    host.want_flush()


def explain(resident: Resident, turn: Turn, error: BaseException) -> BaseException:
    """The error that callers get of a start that failed: that of a migration says what it was."""
    if not is_migration(turn):
        return error
    failed = MigrationFailed(
        f"{resident.label}: on_migrate from version {resident.version} to {resident.cls.version} failed, "
        f"and the object is as it was: {describe_error(error)}"
    )
    failed.__cause__ = error
    return failed
