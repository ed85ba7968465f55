"""What the worker itself answers: `list` (stored objects) and `stats` (figures).

Reached by a call with an empty object id, see docs/PROTOCOL.md.  Runs in the worker's event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from perdure.errors import InvalidArgument, PerdureError, UnknownMethod
from perdure_worker.object_listing import list_objects

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


def _stats(host: Host) -> dict[str, Any]:
    """Figures of this worker; all of them plain numbers."""
    return host.stats()


_METHODS: Mapping[str, Callable[..., Any]] = {"list": list_objects, "stats": _stats}
