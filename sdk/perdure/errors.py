"""Every error of Perdure, what it means for the effect of the call, and what the caller can do.

    PerdureError
    ├── NotExecuted             nothing happened; the call may be repeated freely
    │   ├── Overloaded          a queue is at its bound; repeat after `retry_after` seconds
    │   ├── ShardUnavailable    the worker of this object is down, starting or stopping
    │   ├── DeadlineExceeded    the deadline passed before the method started
    │   ├── UnknownNamespace    no class of that name is served here
    │   ├── UnknownMethod       the class has no such callable method
    │   ├── InvalidArgument     wrong arguments, a bad id or name, a value that cannot travel
    │   ├── DeadlockError       the call would wait for itself (`cycle` names the objects)
    │   └── MessageTooLarge     the encoded call is over the message limit
    ├── OutcomeUnknown          the call may or may not have happened
    ├── RemoteError             the method ran and raised; it left no trace
    └── StorageError            a storage call was wrong, or data on disk cannot be trusted

Errors cross processes as a code (the class's name) and a map of facts; `_TRAVELLING` below is the
closed list of those that may.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

__all__ = [
    "DeadlineExceeded",
    "DeadlockError",
    "InvalidArgument",
    "MessageTooLarge",
    "NotExecuted",
    "OutcomeUnknown",
    "Overloaded",
    "PerdureError",
    "RemoteError",
    "ShardUnavailable",
    "StorageError",
    "UnknownMethod",
    "UnknownNamespace",
    "from_wire",
    "to_wire",
]


class PerdureError(Exception):
    """Base of all errors of Perdure; `facts()` gives what the error knows as plain values."""

    fact_names: ClassVar[tuple[str, ...]] = ()

    def facts(self) -> dict[str, Any]:
        """The error's attributes that travel to the caller, all of them plain values."""
        return {name: getattr(self, name, None) for name in self.fact_names}


class NotExecuted(PerdureError):
    """The method did not start and nothing changed: repeat the call whenever you like."""


class Overloaded(NotExecuted):
    """A bounded queue is full; wait `retry_after` seconds before repeating. `limit` names the bound."""

    fact_names = ("limit", "retry_after")

    def __init__(self, message: str, *, limit: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.limit = limit
        self.retry_after = retry_after


class ShardUnavailable(NotExecuted):
    """The worker that owns the object is down, starting or stopping; clients repeat until the deadline."""


class DeadlineExceeded(NotExecuted):
    """The deadline passed while the call still waited for its turn; give it more time or less load."""


class UnknownNamespace(NotExecuted):
    """No class of this namespace is loaded; check the spelling and what `perdure run` was started with."""

    fact_names = ("namespace",)

    def __init__(self, message: str, *, namespace: str | None = None) -> None:
        super().__init__(message)
        self.namespace = namespace


class UnknownMethod(NotExecuted):
    """The class defines no public method of this name; handlers and inherited helpers are not callable."""

    fact_names = ("method", "namespace")

    def __init__(self, message: str, *, namespace: str | None = None, method: str | None = None) -> None:
        super().__init__(message)
        self.namespace = namespace
        self.method = method


class InvalidArgument(NotExecuted):
    """An argument, name or id is wrong, or a value cannot be encoded; correct the call."""


class DeadlockError(NotExecuted):
    """The call would wait for a turn that waits for this call, or the chain of calls is too long.

    `cycle` lists the objects as ``Namespace/name-or-id``, in the order of the calls.
    """

    fact_names = ("cycle",)

    def __init__(self, message: str, *, cycle: list[str] | None = None) -> None:
        super().__init__(message)
        self.cycle = cycle or []


class MessageTooLarge(NotExecuted):
    """The encoded call or result is over the limit: `size` and `limit` in bytes. Send less at once."""

    fact_names = ("limit", "size")

    def __init__(self, message: str, *, size: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class OutcomeUnknown(PerdureError):
    """The answer was lost: the call may have taken effect. Read the state before repeating it.

    `reason` is None where another try of the same request may still bring the answer.  Otherwise it will
    not: "answered" when the method has run and only its answer cannot be had, "too_old" when nobody knows
    any more.
    """

    fact_names = ("reason",)

    def __init__(self, message: str, *, reason: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason


class RemoteError(PerdureError):
    """The method raised an exception that this client has no class for; the turn left no trace.

    `type_name` is the exception's qualified name, `object_id` the object as ``Namespace/name-or-id``,
    `causes` the chain of ``(type_name, message)`` behind it, `traceback` its text where the server
    is allowed to send it, else None.
    """

    def __init__(
        self,
        message: str,
        *,
        type_name: str,
        object_id: str,
        causes: list[tuple[str, str]] | None = None,
        traceback: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.type_name = type_name
        self.object_id = object_id
        self.causes = causes or []
        self.traceback = traceback

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies, and pools of processes, rebuild an exception from its message alone otherwise.
        rebuild = partial(type(self), type_name=self.type_name, object_id=self.object_id)
        return rebuild, (self.message,), self.__dict__

    def __str__(self) -> str:
        return f"{self.type_name}: {self.message} (raised in {self.object_id})"


class StorageError(PerdureError):
    """A key or value is out of its limits, a storage call contradicts itself, or stored data is damaged."""


_TRAVELLING: Mapping[str, type[PerdureError]] = {
    cls.__name__: cls
    for cls in (
        NotExecuted,
        Overloaded,
        ShardUnavailable,
        DeadlineExceeded,
        UnknownNamespace,
        UnknownMethod,
        InvalidArgument,
        DeadlockError,
        MessageTooLarge,
        OutcomeUnknown,
        StorageError,
    )
}


def to_wire(error: PerdureError) -> list[Any]:
    """``[code, message, facts]``: what crosses the wire for one of our own errors.

    A subclass that does not travel itself (a store's own errors) goes as the nearest one that does.
    """
    cls = next((c for c in type(error).__mro__ if _TRAVELLING.get(c.__name__) is c), OutcomeUnknown)
    facts = {name: getattr(error, name, None) for name in cls.fact_names}
    return [cls.__name__, str(error), facts]


def from_wire(code: object, message: object, facts: object) -> PerdureError:
    """The error for what `to_wire` made; an unknown code becomes `OutcomeUnknown`, the safe reading.

    A newer server may know errors that this client does not; nothing may be assumed of their effect.
    """
    cls = _TRAVELLING.get(code) if isinstance(code, str) else None
    if cls is None:
        return OutcomeUnknown(f"{code}: {message}")
    known = facts if isinstance(facts, dict) else {}
    return cls(str(message), **{name: known[name] for name in cls.fact_names if name in known})
