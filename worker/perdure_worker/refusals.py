"""Calls that cannot run here, and why: each gets an error that says what the caller can do.

Guarantees that what is refused has not run.  Runs in the worker's event loop.
"""

from __future__ import annotations

from typing import Any

from perdure.errors import (
    DeadlineExceeded,
    DeadlockError,
    InvalidArgument,
    PerdureError,
    ShardUnavailable,
    UnknownMethod,
    UnknownNamespace,
)
from perdure.methods import Method
from perdure.web_wire import FETCH
from perdure_worker.clients import labels_of
from perdure_worker.interleaving import joins_its_caller
from perdure_worker.peers import Peer
from perdure_worker.residence import Residence
from perdure_worker.resident import Resident
from perdure_worker.system_turns import SystemTurn

__all__ = ["Refusals"]


class Refusals(Residence):
    """The side of the host that says no."""

    def _refusal(
        self, resident: Resident, namespace: Any, method_name: Any, method: Method | None, chain: Any
    ) -> PerdureError | None:
        if type(namespace) is not str or namespace not in self.classes:
            return self._unknown_namespace(namespace)
        if resident.cls.namespace != namespace:
            return InvalidArgument(
                f"this id belongs to namespace {resident.cls.namespace!r}, not {namespace!r}"
            )
        if method is None:
            return self._unknown_method(resident.cls.namespace, method_name)
        if not chain:
            return self._stopping() if self.draining else None
        labels = labels_of(chain)
        for index, entry in enumerate(chain):
            # An object without a running turn waits for nothing: it did not await the call, and has ended.
            if (
                entry[0] == resident.key
                and resident.turn is not None
                and not joins_its_caller(resident, method, entry)
            ):
                cycle = [*labels[index:], resident.label]
                return DeadlockError(
                    f"{' -> '.join(cycle)}: the object waits for this call, and would for ever; "
                    "return first, or move what is needed into one object",
                    cycle=cycle,
                )
        if len(chain) >= self.limits.chain_depth_max:
            return DeadlockError(
                f"{len(chain)} objects wait for each other already (chain_depth_max): {' -> '.join(labels)}",
                cycle=labels,
            )
        return None

    def _unknown_namespace(self, namespace: Any) -> UnknownNamespace:
        return UnknownNamespace(
            f"no class of namespace {namespace!r:.80} is served here; there is {', '.join(self.classes)}",
            namespace=str(namespace)[:80],
        )

    def _unknown_method(self, namespace: str, method_name: Any) -> UnknownMethod:
        known = self.classes[namespace].method_names
        if method_name == FETCH:
            return UnknownMethod(
                f"{namespace} defines no fetch, so its objects take no HTTP requests; it has: {known}",
                namespace=namespace,
                method=FETCH,
            )
        return UnknownMethod(
            f"{namespace} has no callable method {method_name!r:.80}; it has: {known}",
            namespace=namespace,
            method=str(method_name)[:80],
        )

    def _stopping(self) -> ShardUnavailable:
        return ShardUnavailable("this worker is stopping")

    def _refuse_late(self, peer: Peer | SystemTurn, sequence: int, late_s: float) -> None:
        self.refuse(
            peer,
            sequence,
            DeadlineExceeded(f"the deadline passed {late_s:.3f} s before the turn could start"),
        )
