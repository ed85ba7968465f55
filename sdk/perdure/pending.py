"""One call that has not ended, and where its outcome goes.  Pure; runs in every caller."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from perdure import codec
from perdure.errors import InvalidArgument
from perdure.methods import Method

if TYPE_CHECKING:
    from perdure.stub import Target

__all__ = ["Answer", "Pending", "end", "unencodable"]


class Answer(Protocol):
    """Where a call's outcome goes: asyncio's and concurrent.futures' Future both fit."""

    def done(self) -> bool: ...
    def set_result(self, result: Any, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...
    def exception(self) -> BaseException | None: ...


def end(answer: Answer, error: BaseException) -> None:
    """The call ends with an error, unless nobody waits for it any more (it was cancelled)."""
    if not answer.done():
        answer.set_exception(error)


def unencodable(fields: list[Any]) -> InvalidArgument:
    """Why a call with these fields (those of `protocol.Item` but the sequence) cannot be sent."""
    title = f"{fields[0]}.{fields[3]}()"
    try:
        codec.encode(fields)
    except InvalidArgument as error:
        return InvalidArgument(f"{title}: an argument cannot be sent: {error}")
    return InvalidArgument(f"{title}: the arguments cannot be sent")


class Pending:
    """One call that has not ended.

    Whoever makes it sets `answer`, `target`, `method` and `spec`; `Caller.begin` sets the rest.  An
    `__init__` with as many arguments would take 0.2 µs of each call.
    """

    __slots__ = (
        "answer",
        "attempts",
        "deadline",
        "encoded_at",
        "epoch",
        "maybe_ran",
        "method",
        "sequence",
        "spec",
        "tail",
        "target",
        "worker",
    )

    answer: Answer
    target: Target
    method: str
    spec: Method | None
    sequence: int
    """What tells the client's calls apart."""
    tail: bytes
    """Its encoding (see `protocol.Item`) without the header of the list and the sequence.

    Calls without arguments on one stub share it, so that nothing is encoded for them.
    """
    worker: int
    encoded_at: float
    """When the time left that is written in `tail` was right."""
    deadline: float
    epoch: int
    """Epoch of the incarnation that it was sent to; 0 while nothing was sent."""
    maybe_ran: bool
    """Whether an earlier try was lost and may have taken effect."""
    attempts: int
    """How often it came back without having run."""

    @property
    def title(self) -> str:
        """``Namespace.method()``, for messages."""
        return f"{self.target.namespace}.{self.method}()"

    @property
    def timeout_s(self) -> float:
        """The time that the call was given, in seconds."""
        return self.target.timeout_s
