"""Whether a cluster serves the objects of the load test.  Asked by its main process, before any load."""

from __future__ import annotations

from benchmarks.load.plan import NAMESPACE, LoadPlan
from perdure import connect
from perdure.errors import NotExecuted, UnknownMethod, UnknownNamespace

__all__ = ["NotServed", "check_served"]


class NotServed(NotExecuted):
    """The cluster runs, and has no `LoadCounter`."""


async def check_served(plan: LoadPlan) -> None:
    """Raises `NotServed`, or what else a single read of object 0 raises."""
    async with connect(plan.url, direct=plan.direct) as client:
        try:
            await client.get(NAMESPACE, plan.name(0), timeout=plan.timeout_s).get()
        except (UnknownNamespace, UnknownMethod) as error:
            raise NotServed(
                f"the cluster at {plan.url} does not serve the load test's objects ({error}): start one with "
                "`perdure run benchmarks/load/objects.py`, import LoadCounter from there into the module "
                "that the cluster runs, or let --self-hosted start one"
            ) from None
