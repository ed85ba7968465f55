"""What users derive from: `DurableObject`, and what an object finds on itself.

Objects live in a worker.  Their storage and context are handed in by the worker's host through one
private attribute; this module only says what they can do.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Literal, NoReturn, Protocol, TypeVar, overload

from perdure.alarm import DEFAULT_ALARM, Alarm
from perdure.errors import InvalidArgument
from perdure.ids import ObjectId
from perdure.limits import Limits
from perdure.outbox import Outbox

__all__ = ["Context", "DurableObject", "Storage", "namespace_of"]

T = TypeVar("T")
# Inside `Storage` `list` is the method.
_Keys = Iterable[str]
_KeyList = list[str]
_Alarms = list[Alarm]
_NAMESPACE = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]*", re.ASCII)
_NAMESPACE_CHARS_MAX = Limits().namespace_chars_max
_NAMESPACE_RULE = (
    f"1 to {_NAMESPACE_CHARS_MAX} ASCII letters, digits, '_', '-' or '.', starting with a letter or '_'"
)


class Storage(Protocol):
    """An object's private, durable, ordered key-value storage.

    Keys are str (at most `key_bytes_max` bytes, ordered by their UTF-8 bytes), values what the codec
    carries (at most `value_bytes_max` bytes encoded).  Reads see the turn's own writes.  All writes of
    a turn become durable together, before anybody outside sees the turn's answer.  Errors:
    `StorageError` for keys and contradictions, `InvalidArgument` for values that cannot be stored;
    a call that raises stored nothing.  Code that outlives its turn (a task nobody awaited) can read, but
    its writes raise: nothing would commit them.
    """

    async def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` when there is none."""

    async def get_many(self, keys: _Keys) -> dict[str, Any]:
        """The values that exist, in key order; missing keys are left out."""

    def put(self, key: str, value: Any) -> None:
        """Stores a value; a plain call, nothing to await."""

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Stores all of the values, or none when one of them is bad."""

    def delete(self, key: str) -> bool:
        """Deletes a key; whether it existed."""

    def delete_many(self, keys: _Keys) -> int:
        """Deletes keys; how many of them existed."""

    @overload
    async def list(
        self,
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys_only: Literal[False] = False,
        cursor: str | None = None,
    ) -> dict[str, Any]: ...
    @overload
    async def list(
        self,
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys_only: Literal[True],
        cursor: str | None = None,
    ) -> _KeyList: ...
    async def list(
        self,
        *,
        start: str | None = None,
        start_after: str | None = None,
        end: str | None = None,
        prefix: str | None = None,
        reverse: bool = False,
        limit: int | None = None,
        keys_only: bool = False,
        cursor: str | None = None,
    ) -> Any:
        """The entries of a range as a dict in key order, or with `keys_only` a list of keys."""

    def set_alarm(self, when: datetime | timedelta | float, name: str = DEFAULT_ALARM) -> None:
        """Has the class's handler ``alarm(self, alarm)`` called at `when` or soon after, never before.

        `when` is an aware datetime, a timedelta from now, or seconds since the epoch.  An object can have
        any number of alarms by name, up to `alarms_max`; setting one again replaces it.  It is stored with
        the turn's other writes or not at all.  The handler runs at least once, as a turn like any call:
        its writes and the deletion of the alarm are one commit.  When it raises, it is run again after 2 s,
        4 s, 8 s ... with a growing `alarm.attempt`; after `alarm_retries_max` retries the alarm stays as
        dead, for `list_alarms` to show.  Raises `StorageError` for a class without the handler, a naive
        datetime, and what is no time.
        """

    async def get_alarm(self, name: str = DEFAULT_ALARM) -> datetime | None:
        """What the alarm is set to (UTC); None when it is not set, is dead, or runs just now."""

    def delete_alarm(self, name: str = DEFAULT_ALARM) -> bool:
        """Deletes an alarm, dead or not; whether there was one.  One that runs just now runs to its end."""

    async def list_alarms(self) -> _Alarms:
        """All alarms by their times, also the dead ones; without the one that runs just now."""

    async def delete_all(self) -> None:
        """Deletes all values, durable fields and alarms; the object leaves the namespace's listing."""

    async def sync(self) -> None:
        """Waits until everything written so far is durable: a commit point within the turn."""


class Context(Protocol):
    """What an object can do beyond itself."""

    @overload
    def get(self, cls: type[T], key: str | ObjectId, *, timeout: float | None = None) -> T: ...
    @overload
    def get(self, cls: str, key: str | ObjectId, *, timeout: float | None = None) -> Any: ...
    def get(self, cls: Any, key: str | ObjectId, *, timeout: float | None = None) -> Any:
        """A stub of another object.  Calling it is a commit point of the running turn."""

    def send(
        self,
        cls: type | str,
        key: str | ObjectId,
        *,
        delay: float | timedelta | None = None,
        at: float | datetime | None = None,
    ) -> Any:
        """A stub whose calls are durable one-way messages: plain calls that return None at once.

        A message belongs to the running turn like a write: it leaves when the turn is committed, never
        when the turn raises, and takes effect at its target exactly once, whatever crashes meanwhile.
        Messages of one object to one target arrive in the order of their commits, and none before the one
        in front of it has ended; other targets do not wait.  A call is no commit point, and belongs to the
        turn also inside of a `storage.transaction()`.

        `delay` (seconds, or a timedelta, from the call on) and `at` (aware datetime, or seconds since the
        epoch) say when it may arrive at the earliest.  Such messages go in the order of their times, and
        messages sent later do not wait for them.

        A target that is down, busy or starting is tried again without end.  When its method raises, or it
        refuses the call, the message is tried again with growing pauses, `send_attempts_max` times in all;
        then it is dead, which `outbox` shows, and the next message goes.  `delete_all` deletes no messages:
        they were sent.

        Each call raises `InvalidArgument`, `UnknownMethod`, `UnknownNamespace` or `MessageTooLarge` for
        what could never be delivered, `Overloaded` when too much waits already, and `StorageError` outside
        of a turn.
        """

    @property
    def outbox(self) -> Outbox:
        """The object's own durable sends that have not ended, the dead ones among them."""

    def abort(self, reason: str) -> NoReturn:
        """Ends this incarnation now: uncommitted writes are lost, waiting calls get the reason."""


class Cell(Protocol):
    """The host's side of a live object."""

    @property
    def id(self) -> ObjectId: ...
    @property
    def storage(self) -> Storage: ...
    @property
    def context(self) -> Context: ...


class DurableObject:
    """Base of users' classes.  Each instance has an id, storage of its own, and one turn at a time.

    Public methods of the class can be called by anybody who knows the id; names with a leading
    underscore and the handlers (`on_start` and those of later features) cannot.  The namespace is
    the class's name; ``class Room(DurableObject, namespace="rooms")`` says otherwise.
    """

    _perdure_namespace: ClassVar[str] = ""
    _perdure_cell: Cell

    def __init_subclass__(cls, *, namespace: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        chosen = namespace if namespace is not None else cls.__name__
        if not _is_namespace(chosen):
            raise TypeError(f"{cls.__qualname__}: a namespace is {_NAMESPACE_RULE}: {chosen!r}")
        cls._perdure_namespace = chosen

    @property
    def id(self) -> ObjectId:
        """This object's id; `id.name` is its name, None for objects with a unique id."""
        return self._cell().id

    @property
    def storage(self) -> Storage:
        """This object's own durable storage."""
        return self._cell().storage

    @property
    def ctx(self) -> Context:
        """Other objects, and this one's life."""
        return self._cell().context

    def on_start(self) -> Awaitable[None] | None:
        """Override it (plain or async): runs once in each incarnation, before the first turn."""
        return None

    def _cell(self) -> Cell:
        try:
            return self._perdure_cell
        except AttributeError:
            raise RuntimeError(
                f"this {type(self).__name__} was made by hand and has no storage; "
                "objects live in a worker and are reached through client.get(...)"
            ) from None


def _is_namespace(name: str) -> bool:
    return len(name) <= _NAMESPACE_CHARS_MAX and _NAMESPACE.fullmatch(name) is not None


def namespace_of(cls: type | str) -> str:
    """The namespace of a class, or the name itself.

    Raises `InvalidArgument` for what cannot be a namespace's name, `TypeError` for what is no name.
    """
    if isinstance(cls, str):
        if not _is_namespace(cls):
            raise InvalidArgument(f"a namespace is {_NAMESPACE_RULE}: {cls!r:.80}")
        return str.__str__(cls)
    if isinstance(cls, type) and issubclass(cls, DurableObject) and cls is not DurableObject:
        return cls._perdure_namespace
    raise TypeError(f"a DurableObject class or a namespace's name is needed, not {cls!r}")
