"""The figures of a load test: added up over its clients, as one JSON object or as a table.  Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.load.latencies import percentile_us
from benchmarks.load.plan import LoadPlan
from benchmarks.load.report import ClientReport
from benchmarks.load.verify import Verdict

__all__ = ["Figures", "add_up", "as_json", "as_table"]


@dataclass(frozen=True)
class Figures:
    """The load test's result, without verification."""

    calls_per_s: float
    """Calls that ended with a result while the load ran, per second."""
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    acked: int
    """Calls that ended with a result."""
    errors: dict[str, int]
    """Calls that ended otherwise, by the error's class."""
    seconds: float
    """How long the load ran."""
    client_cpu_us_per_call: float
    """CPU time of the clients for each call that ended with a result."""
    kills: int = 0
    """Workers that were killed meanwhile."""


def add_up(reports: Sequence[ClientReport]) -> Figures:
    """The figures of all clients together."""
    by_us: Counter[int] = Counter()
    errors: Counter[str] = Counter()
    for report in reports:
        by_us.update(dict(report.latencies_us))
        errors.update(report.errors)
    acked = sum(report.calls for report in reports)
    return Figures(
        calls_per_s=sum(report.ended_calls / max(report.ended_after_s, 1e-9) for report in reports),
        p50_ms=percentile_us(by_us, 0.5) / 1000,
        p99_ms=percentile_us(by_us, 0.99) / 1000,
        p999_ms=percentile_us(by_us, 0.999) / 1000,
        max_ms=percentile_us(by_us, 1.0) / 1000,
        acked=acked,
        errors=dict(errors.most_common()),
        seconds=max(report.ended_after_s for report in reports),
        client_cpu_us_per_call=sum(report.cpu_s for report in reports) / max(acked, 1) * 1e6,
    )


def as_json(plan: LoadPlan, figures: Figures, verdict: Verdict | None) -> dict[str, Any]:
    """What --json prints: the figures, the verdict's numbers, and the options under "plan"."""
    facts = {
        key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(figures).items()
    }
    if verdict is not None:
        facts.update(asdict(verdict))
    facts["plan"] = asdict(plan)
    return facts


def as_table(plan: LoadPlan, figures: Figures, verdict: Verdict | None) -> str:
    """The same for people."""
    errors = ", ".join(f"{kind} {count:,}" for kind, count in figures.errors.items())
    clients = f"{plan.clients} client" + "s" * (plan.clients > 1)
    reads = f", {plan.read_share:.0%} reads" if plan.read_share else ""
    payload = f", {plan.payload_bytes:,} bytes a write" if plan.payload_bytes else ""
    rows = [
        ("load", f"{clients} x {plan.concurrency:,} outstanding for {figures.seconds:.1f} s{reads}{payload}"),
        ("objects", f"{plan.objects:,}, {plan.distribution}"),
        ("throughput", f"{figures.calls_per_s:,.0f} calls/s"),
        (
            "latency",
            f"p50 {figures.p50_ms:,.2f} ms   p99 {figures.p99_ms:,.2f} ms   "
            f"p99.9 {figures.p999_ms:,.2f} ms   max {figures.max_ms:,.2f} ms",
        ),
        ("acked", f"{figures.acked:,} calls"),
        ("errors", errors or "none"),
        ("client CPU", f"{figures.client_cpu_us_per_call:.1f} us a call"),
    ]
    if plan.kill_interval_s is not None:
        rows.append(("chaos", f"{figures.kills:,} workers killed, one each {plan.kill_interval_s:g} s"))
    if verdict is not None:
        rows.append(
            (
                "verify",
                f"lost {verdict.lost:,}, duplicated {verdict.duplicated:,}, unknown {verdict.unknown:,} "
                f"({verdict.read_back:,} objects read back)",
            )
        )
    return "\n".join(f"{label:<12} {text}" for label, text in rows)
