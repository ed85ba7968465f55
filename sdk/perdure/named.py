"""Calls under a request id that the caller chose (an idempotency key).  Runs in clients.

Guarantees that the n-th call of every stub with the same id is one request, whichever process sends it and
however often: it takes effect once, and all get the same answer.
"""

from __future__ import annotations

import itertools
from hashlib import blake2b
from typing import Any, Protocol

from perdure.errors import InvalidArgument, PerdureError
from perdure.limits import Limits
from perdure.methods import Method
from perdure.stub import Target

__all__ = ["NamedRequests", "Request"]

Request = tuple[bytes, int, bytes, int]
"""See `protocol.Item.context`."""

_LIMITS = Limits()
_CLIENT_BYTES = 16


class _Client(Protocol):
    def start(
        self,
        target: Target,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any] | None,
        spec: Method | None,
        request: Request | None = None,
    ) -> Any: ...

    def start_stream(
        self,
        target: Target,
        method: str,
        args: list[Any],
        kwargs: dict[str, Any] | None,
        spec: Method | None,
        request: Request | None = None,
    ) -> Any: ...

    def fetch(self, target: Target, request: Any, *, named: Request | None = None, **options: Any) -> Any: ...

    def refuse(self, error: PerdureError) -> Any: ...


class NamedRequests:
    """The sender of one stub; raises `InvalidArgument` for what is no request id."""

    def __init__(self, request_id: str | bytes, client: _Client) -> None:
        if not isinstance(request_id, str | bytes):
            raise InvalidArgument(f"a request id is a str or bytes, not {type(request_id).__name__}")
        try:
            key = request_id.encode() if isinstance(request_id, str) else request_id
        except UnicodeEncodeError:
            raise InvalidArgument(
                "the request id holds a lone surrogate, which is no valid Unicode"
            ) from None
        if not 1 <= len(key) <= _LIMITS.request_id_bytes_max:
            raise InvalidArgument(
                f"a request id has 1 to {_LIMITS.request_id_bytes_max} bytes, this one {len(key)}"
            )
        self._id = blake2b(key, digest_size=_CLIENT_BYTES, key=b"perdure request").digest()
        self._sequences = itertools.count(1)
        self._client = client

    def start(
        self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None, spec: Method | None
    ) -> Any:
        """See `perdure.stub.Sender`."""
        return self._client.start(target, method, args, kwargs, spec, self.next_request())

    def start_stream(
        self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None, spec: Method | None
    ) -> Any:
        """See `perdure.stub.Sender`."""
        return self._client.start_stream(target, method, args, kwargs, spec, self.next_request())

    def fetch(self, target: Target, request: Any, **options: Any) -> Any:
        """See `perdure.stub.Sender`."""
        return self._client.fetch(target, request, named=self.next_request(), **options)

    def next_request(self) -> Request:
        """The id of the stub's next call."""
        return self._id, next(self._sequences), b"", 0

    def refuse(self, error: PerdureError) -> Any:
        """See `perdure.stub.Sender`."""
        next(self._sequences)  # it was the stub's next call, although it cannot be sent
        return self._client.refuse(error)
