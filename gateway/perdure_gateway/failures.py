"""Errors of calls as HTTP answers.  Pure; used by the gateway's application.

Guarantees that what the caller can do decides the status, and that what went wrong inside an object is told
by an id alone, under which the log has the rest; its traceback only where the workers give one away (--dev).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from perdure.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MessageTooLarge,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    PerdureError,
    RemoteError,
    ShardUnavailable,
    UnknownMethod,
    UnknownNamespace,
)
from perdure_gateway.bodies import UnsupportedEncoding

__all__ = ["NOT_FOUND", "NO_TOKEN", "Failure", "failure_of"]


@dataclass(frozen=True)
class Failure:
    """An answer that is no success."""

    status: int
    type: str
    message: str
    retry_after: float | None = None
    """Seconds after which it may be tried again."""
    internal: bool = False
    """Whether it is nothing the caller can mend: it gets an id, and the log has the rest."""
    traceback: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def body(self, error_id: str = "") -> bytes:
        """The answer's body, JSON."""
        error = {"type": self.type, "message": self.message}
        if error_id:
            error["id"] = error_id
        if self.traceback is not None:
            error["traceback"] = self.traceback
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace") + b"\n"

    def all_headers(self, length: int) -> list[tuple[bytes, bytes]]:
        """The answer's headers."""
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % length),
            (b"cache-control", b"no-store"),
            (b"x-content-type-options", b"nosniff"),
            *self.headers,
        ]
        if self.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(self.retry_after))))
        return headers


NOT_FOUND = Failure(404, "NotFound", "there is nothing here")
NO_TOKEN = Failure(
    401,
    "Unauthorized",
    "send a token: Authorization: Bearer <token>",
    headers=((b"www-authenticate", b"Bearer"),),
)


def failure_of(error: BaseException) -> Failure:
    """What the client of an HTTP request is told of an error."""
    match error:
        case UnknownNamespace() | UnknownMethod():
            # One answer for all that cannot be reached: nobody learns what there is.
            return NOT_FOUND
        case UnsupportedEncoding():
            return Failure(415, "UnsupportedMediaType", str(error))
        case InvalidArgument():
            return Failure(400, "InvalidArgument", str(error))
        case MessageTooLarge():
            return Failure(413, "MessageTooLarge", str(error))
        case Overloaded():
            return Failure(503, "Overloaded", str(error), retry_after=error.retry_after)
        case DeadlineExceeded():
            return Failure(504, "DeadlineExceeded", str(error))
        case ShardUnavailable():
            return Failure(503, "ShardUnavailable", str(error), retry_after=1.0)
        case OutcomeUnknown():
            text = (
                "the answer was lost: the request may have taken effect; repeat it with its Idempotency-Key"
            )
            return Failure(504, "OutcomeUnknown", text)
        case RemoteError():
            text = "the object raised an exception"
            return Failure(500, "InternalError", text, internal=True, traceback=error.traceback)
        case NotExecuted():
            return Failure(503, type(error).__name__, str(error), retry_after=1.0)
        case PerdureError():
            return Failure(500, "InternalError", "the request failed", internal=True)
    return Failure(
        500,
        "InternalError",
        "the object raised an exception",
        internal=True,
        traceback=getattr(error, "traceback", None),
    )
