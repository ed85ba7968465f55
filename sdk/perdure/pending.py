"""One call that has not ended, and where its outcome goes.  Pure; runs in every caller."""

from __future__ import annotations

from typing import Any, Protocol

from perdure import codec
from perdure.errors import InvalidArgument
from perdure.methods import Method

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
    """Why a call with these fields cannot be sent."""
    try:
        codec.encode(fields)
    except InvalidArgument as error:
        return InvalidArgument(f"{fields[1]}.{fields[4]}(): an argument cannot be sent: {error}")
    return InvalidArgument(f"{fields[1]}.{fields[4]}(): the arguments cannot be sent")


class Pending:
    """One call that has not ended."""

    __slots__ = (
        "answer",
        "attempts",
        "deadline",
        "encoded_at",
        "epoch",
        "fields",
        "item",
        "maybe_ran",
        "spec",
        "worker",
    )

    def __init__(
        self,
        fields: list[Any],
        item: bytes,
        worker: int,
        encoded_at: float,
        deadline: float,
        answer: Answer,
        spec: Method | None,
    ) -> None:
        self.fields = fields
        """As in `protocol.Item`; the caller may have changed the arguments since."""
        self.item = item
        """The encoded fields."""
        self.worker = worker
        self.encoded_at = encoded_at
        """When the time left that is written in `item` was right."""
        self.deadline = deadline
        self.answer = answer
        self.spec = spec
        self.epoch = 0
        """Epoch of the incarnation that it was sent to; 0 while nothing was sent."""
        self.maybe_ran = False
        """Whether an earlier try was lost and may have taken effect."""
        self.attempts = 0
        """How often it came back without having run."""

    @property
    def sequence(self) -> int:
        """What tells the client's calls apart."""
        sequence: int = self.fields[0]
        return sequence

    @property
    def title(self) -> str:
        """``Namespace.method()``, for messages."""
        return f"{self.fields[1]}.{self.fields[4]}()"

    @property
    def timeout_s(self) -> float:
        """The time that the call was given, in seconds."""
        timeout_ms: int = self.fields[7]
        return timeout_ms * 0.001
