"""What the worker itself answers: `list` (names of stored objects) and `stats` (figures).

Reached by a call with an empty object id, see docs/PROTOCOL.md.  Runs in the worker's event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from perdure.errors import InvalidArgument, PerdureError, UnknownMethod
from perdure_storage import keys, records

if TYPE_CHECKING:
    from perdure_worker.host import Host

__all__ = ["call_worker"]


def call_worker(host: Host, method: Any, args: list[Any]) -> Any:
    """The answer; raises `UnknownMethod` or `InvalidArgument`."""
    answer = _METHODS.get(method) if type(method) is str else None
    if answer is None:
        raise UnknownMethod(f"a worker has no method {method!r:.80}; it has: {', '.join(_METHODS)}")
    try:
        return answer(host, *args)
    except PerdureError:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{method}: {error}") from None


def _list(host: Host, namespace: str, prefix: str, limit: int, after: bytes) -> list[list[Any]]:
    """Rows ``[position, id, name]`` behind position `after`, in order."""
    if not isinstance(namespace, str) or not isinstance(prefix, str) or not isinstance(after, bytes):
        raise InvalidArgument("list takes a namespace, a prefix (str), a limit and a position (bytes)")
    if not isinstance(limit, int) or not 1 <= limit <= host.limits.list_entries_max:
        raise InvalidArgument(f"limit is 1 to {host.limits.list_entries_max}, not {limit!r:.80}")
    base = keys.names_prefix(namespace, named=False)[:-1]
    start = keys.names_key(namespace, prefix, b"") if prefix else base
    stop = keys.prefix_end(start)
    if after:
        start = max(start, base + after + b"\x00")
    rows: list[list[Any]] = []
    with host.engine.scan(start, stop) as scan:
        for key, record in scan:
            row = keys.parse_names_row(key)
            _, object_id = keys.parse_names_value(records.unseal(key, record))
            rows.append([key[len(base) :], object_id, row.name])
            if len(rows) == limit:
                break
    return rows


def _stats(host: Host) -> dict[str, Any]:
    """Figures of this worker; all of them plain numbers."""
    return host.stats()


_METHODS: Mapping[str, Callable[..., Any]] = {"list": _list, "stats": _stats}
