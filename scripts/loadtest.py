#!/usr/bin/env python3
"""Puts load on a cluster: calls per second, latencies, errors; with --verify also whether writes were lost.

    scripts/loadtest.py --self-hosted --workers 2 --verify
    scripts/loadtest.py --self-hosted --workers 2 --verify --chaos kill-worker
    scripts/loadtest.py --url tcp://127.0.0.1:7400 --concurrency 256 --seconds 30

The main process starts the clients (and with --self-hosted a cluster of its own), adds up their figures and
reads the objects back.  The parts are in benchmarks/load; a running cluster must serve its objects.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from benchmarks.load.plan import LoadPlan
    from benchmarks.load.result import Figures
    from benchmarks.load.verify import Verdict

ROOT = Path(__file__).resolve().parents[1]
SECONDS_DEFAULT = 10.0
WORKERS_DEFAULT = 2
PAYLOAD_BYTES_MAX = 2 * 1024 * 1024 - 64
"""The largest storage value, less what its encoding adds."""


@click.command()
@click.option("--url", help="Cluster to call.  [default: PERDURE_URL, else ./perdure-data's]")
@click.option(
    "--self-hosted", is_flag=True, help="Start a cluster in the temporary directory, remove it after."
)
@click.option("--workers", type=click.IntRange(1), help="Workers of that cluster.  [default: 2]")
@click.option("--objects", type=click.IntRange(1), default=10_000, show_default=True, help="Objects to call.")
@click.option(
    "--concurrency",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Outstanding calls of each client process.",
)
@click.option("--clients", type=click.IntRange(1), default=1, show_default=True, help="Client processes.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    help=f"How long to call.  [default: {SECONDS_DEFAULT:g}]",
)
@click.option("--calls", type=click.IntRange(1), help="How many calls to make in all, instead of --seconds.")
@click.option(
    "--read-share",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Share of calls that read.",
)
@click.option(
    "--payload",
    "payload_bytes",
    type=click.IntRange(0, PAYLOAD_BYTES_MAX),
    default=0,
    show_default=True,
    metavar="BYTES",
    help="Size of what each write stores; 0: it only counts.",
)
@click.option(
    "--distribution",
    type=click.Choice(["uniform", "zipf"]),
    default="uniform",
    show_default=True,
    help="How calls spread over the objects.",
)
@click.option(
    "--zipf-s",
    type=click.FloatRange(0),
    default=0.99,
    show_default=True,
    help="Exponent of the zipf distribution.",
)
@click.option(
    "--direct/--no-direct",
    default=True,
    show_default=True,
    help="Clients may talk to workers on the same machine without the router.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 3_600, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Deadline of each call.",
)
@click.option(
    "--verify", is_flag=True, help="Read all objects back: no write may be lost or take effect twice."
)
@click.option(
    "--chaos",
    type=click.Choice(["kill-worker"]),
    help="kill -9 a random worker of the self-hosted cluster again and again.",
)
@click.option(
    "--chaos-interval",
    "chaos_interval_ms",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    metavar="MS",
    help="Time between two kills.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option("--seed", type=int, help="Makes the same calls again.  [default: random]")
def main(
    url: str | None,
    self_hosted: bool,
    workers: int | None,
    seconds: float | None,
    calls: int | None,
    seed: int | None,
    verify: bool,
    chaos: str | None,
    chaos_interval_ms: int,
    as_json: bool,
    **load: Any,
) -> None:
    """Put load on a cluster that serves benchmarks/load/objects.py, and report its figures.

    \b
    Ctrl+C ends the load early; the report covers what was done.
    Exit codes: 0 done, 1 the test failed (with --verify: a write was lost or took effect twice; with --chaos
    also: its outcome stayed unknown to its caller), 2 usage.
    """
    if self_hosted and url is not None:
        raise click.UsageError("--url and --self-hosted exclude each other")
    if workers is not None and not self_hosted:
        raise click.UsageError("--workers goes with --self-hosted only")
    if chaos is not None and not self_hosted:
        raise click.UsageError("--chaos goes with --self-hosted only")
    if seconds is not None and calls is not None:
        raise click.UsageError("--seconds and --calls exclude each other")
    from benchmarks.load.plan import LoadPlan
    from perdure.errors import PerdureError

    plan = LoadPlan(
        url=url or "",
        seconds=seconds or (None if calls else SECONDS_DEFAULT),
        calls=calls,
        verify=verify,
        kill_interval_s=chaos_interval_ms / 1000 if chaos is not None else None,
        seed=random.getrandbits(32) if seed is None else seed,
        # What earlier runs left in the objects must not be taken for this run's.
        name_prefix=f"{secrets.token_hex(4)}-" if verify else "",
        **load,
    )
    try:
        ok = asyncio.run(_run(plan, (workers or WORKERS_DEFAULT) if self_hosted else None, as_json))
    except PerdureError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(0 if ok else 1)


async def _run(plan: LoadPlan, own_workers: int | None, as_json: bool) -> bool:
    """The whole test; tells whether it passed."""
    from benchmarks.load import result
    from benchmarks.load.private_cluster import private_cluster
    from perdure.locate import default_url

    supervisor_pid = 0
    async with contextlib.AsyncExitStack() as stack:
        if own_workers is not None:
            url, supervisor_pid = await stack.enter_async_context(private_cluster(own_workers))
            plan = replace(plan, url=url)
        elif not plan.url:
            plan = replace(plan, url=default_url())
        figures, verdict = await _measure(plan, supervisor_pid)
    if as_json:
        click.echo(json.dumps(result.as_json(plan, figures, verdict)))
    else:
        click.echo(result.as_table(plan, figures, verdict))
    if not figures.acked:
        click.echo("not one call succeeded", err=True)
    if verdict is not None and not verdict.is_good:
        click.echo("verification failed: acknowledged writes were lost or took effect twice", err=True)
    in_doubt = verdict is not None and plan.kill_interval_s is not None and verdict.unknown > 0
    if in_doubt:
        click.echo("verification failed: callers did not learn the outcome of their writes", err=True)
    return bool(figures.acked) and not in_doubt and (verdict is None or verdict.is_good)


async def _measure(plan: LoadPlan, supervisor_pid: int) -> tuple[Figures, Verdict | None]:
    """The load, with what happens to the cluster meanwhile, then reading back."""
    from benchmarks.load import result, verify
    from benchmarks.load.chaos import Chaos
    from benchmarks.load.fleet import Fleet
    from benchmarks.load.served import check_served

    await check_served(plan)
    async with contextlib.AsyncExitStack() as stack:
        on_progress = stack.enter_context(_progress(plan))
        fleet = await stack.enter_async_context(Fleet(plan, on_progress))
        kills = 0
        with _on_signals(fleet.stop):
            if plan.kill_interval_s is None:
                reports = await fleet.run()
            else:
                async with Chaos(plan.url, supervisor_pid, plan.kill_interval_s, plan.seed) as chaos:
                    reports = await fleet.run()
                kills = chaos.kills
    verdict = verify.judge(reports, await verify.read_back(plan)) if plan.verify else None
    return replace(result.add_up(reports), kills=kills), verdict


@contextlib.contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


@contextlib.contextmanager
def _progress(plan: LoadPlan) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal; gives the function that takes the number of calls so far."""
    if not sys.stderr.isatty():
        yield lambda calls: None
        return
    length = plan.calls or max(1, round(1000 * (plan.seconds or 0)))
    told, started = 0, 0.0
    bar: Any  # click does not export its type
    with click.progressbar(length=length, file=sys.stderr, item_show_func=lambda _: f"{told:,} calls") as bar:

        def on_progress(calls: int) -> None:
            nonlocal told, started
            now = time.monotonic()
            told, started = calls, started or now
            position = calls if plan.calls else round(1000 * (now - started))
            bar.update(min(length, position) - bar.pos)

        yield on_progress


def use_the_checkout() -> None:
    """Makes the load test's parts, and Perdure where it is not installed, importable here and in children."""
    folders = [str(ROOT)]
    if importlib.util.find_spec("perdure_cli") is None:
        folders += [str(ROOT / name) for name in ("sdk", "storage", "router", "worker", "gateway", "cli")]
    sys.path[:0] = folders
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, *([inherited] if inherited else [])])


if __name__ == "__main__":
    use_the_checkout()
    main()
