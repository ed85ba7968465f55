"""The benchmark: `python -m benchmarks.run` measures Perdure beside its limit and Redis, in one run.

All contenders are up at the same time and get their cells in turn, so that whatever else the machine does
meets all of them alike: for each round, for each number of outstanding calls, each contender once. One
client process runs the same load loop for all. Every call increments one of 10,000 counters, and its
answer comes only when the new value is on disk.

Everything is on Unix sockets and in a temporary directory that is removed at the end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks import machine, report
from benchmarks.contender import MODULES, Child, Handle, System, Unavailable

__all__ = ["main"]

RAW_OUTSTANDING = 64
# On top of a cell's own time: 10,000 objects are touched first and the last calls are waited for.
CELL_TIMEOUT_S = 60.0
# A sync faster than this never reached a disk; the figures would say nothing about durable calls.
FDATASYNC_MIN_MS = 0.01
OTHERS_CORES_NOTED = 0.2


@dataclass
class Running:
    """A system that is up, and what its counters must add up to."""

    name: str
    servers: System
    handle: Handle
    calls: int = 0

    def check_sum(self, figures: report.Figures, objects: int) -> None:
        """Raises CellFailed when an increment was lost or counted twice; counts the cell's calls."""
        expected = self.calls + objects
        if figures["sum_after_touch"] != expected:
            raise CellFailed(
                f"the counters sum up to {figures['sum_after_touch']:.0f} after {expected} increments"
            )
        self.calls += int(figures["calls"])


@dataclass(frozen=True)
class Settings:
    """What is measured; see the command line's options."""

    seconds: float
    warmup_s: float
    rounds: int
    concurrency: list[int]
    objects: int
    raw: bool
    tries: int


class CellFailed(Exception):
    """A call failed, or an increment was lost or counted twice; the text says which."""


class Client:
    """The client process, which runs one cell after another."""

    def __init__(self) -> None:
        self._child = Child("benchmarks.driver")

    def measure(self, running: Running, form: str, outstanding: int, settings: Settings) -> dict[str, float]:
        """The figures of one cell; raises CellFailed when it failed."""
        server_pids = running.servers.pids()
        servers = machine.CpuClock(server_pids)
        everyone = machine.CpuClock([os.getpid(), self._child.process.pid, *server_pids])
        cell = {
            "system": running.name,
            "form": form,
            "handle": running.handle,
            "outstanding": outstanding,
            "objects": settings.objects,
            "warmup_s": settings.warmup_s,
            "seconds": settings.seconds,
        }
        self._child.write_line(json.dumps(cell))
        line = self._child.read_line(CELL_TIMEOUT_S + settings.warmup_s + settings.seconds)
        figures: dict[str, Any] = json.loads(line)
        if "error" in figures:
            raise CellFailed(figures["error"])
        figures["server_cpu_us_per_call"] = servers.ours_s() / figures["calls"] * 1e6
        figures["others_cores"] = everyone.others_cores()
        running.check_sum(figures, settings.objects)
        return figures

    def measure_undisturbed(
        self, running: Running, form: str, outstanding: int, settings: Settings
    ) -> dict[str, float]:
        """As `measure`, again while others are busy, `settings.tries` times at most; gives the quietest.

        The choice looks only at the CPU time of other processes, never at the figures themselves.
        """
        quietest = self.measure(running, form, outstanding, settings)
        for _ in range(settings.tries - 1):
            if quietest["others_cores"] <= OTHERS_CORES_NOTED:
                break
            figures = self.measure(running, form, outstanding, settings)
            quietest = min(quietest, figures, key=lambda each: each["others_cores"])
        return quietest

    def close(self) -> None:
        """End the process."""
        self._child.stop()


@contextlib.contextmanager
def started(names: list[str], directory: Path, skipped: dict[str, str]) -> Iterator[list[Running]]:
    """The systems of `names` that can run here; the reasons of the others go to `skipped`."""
    with contextlib.ExitStack() as stack:
        running = []
        for name in names:
            click.echo(f"starting {name} ...", err=True)
            place = directory / name
            place.mkdir()
            try:
                servers: System = importlib.import_module(MODULES[name]).system()
                stack.callback(servers.stop)
                running.append(Running(name, servers, servers.start(place)))
            except Unavailable as reason:
                skipped[name] = str(reason)
                click.echo(f"{name} is SKIPPED: {reason}", err=True)
        yield running


def measure_all(
    systems: list[Running], client: Client, settings: Settings, failed: dict[str, str]
) -> list[report.Cell]:
    """All cells in turn; a progress line for each on standard error.

    A system whose cell fails gets no more cells, and the reason goes to `failed`.
    """
    cells = []
    for number in range(settings.rounds):
        for running, form, outstanding in plan_round(systems, settings):
            if running.name in failed:
                continue
            label = f"round {number + 1}/{settings.rounds}  {running.name}, {form} at {outstanding:,}"
            try:
                figures = client.measure_undisturbed(running, form, outstanding, settings)
            except CellFailed as error:
                failed[running.name] = f"{form} at {outstanding:,}: {error}"
                click.echo(f"{label}: FAILED: {error}", err=True)
                continue
            cells.append(report.Cell(running.name, form, outstanding, number, figures))
            click.echo(
                f"{label}: {figures['calls_per_s']:,.0f} calls/s, p50 {figures['p50_ms']:.2f} ms", err=True
            )
    return cells


def plan_round(systems: list[Running], settings: Settings) -> list[tuple[Running, str, int]]:
    """Which cells a round has, in their order: the contenders of one concurrency stand together."""
    plan = [
        (running, form, outstanding)
        for outstanding in settings.concurrency
        for running in systems
        for form in running.servers.forms
    ]
    if settings.raw:
        plan += [
            (running, running.servers.raw_form, RAW_OUTSTANDING)
            for running in systems
            if running.servers.raw_form is not None
        ]
    return plan


def notes(
    facts: dict[str, Any], cells: list[report.Cell], skipped: dict[str, str], failed: dict[str, str]
) -> list[str]:
    """What a reader of the figures has to know."""
    lines = [
        f"{facts['cores']} cores, {facts['system']}, Python {facts['python']}, "
        f"fdatasync {facts['fdatasync_p50_ms']:.2f} ms"
    ]
    if facts["fdatasync_p50_ms"] < FDATASYNC_MIN_MS:
        lines.append(
            "the directory is not on a disk: these are not figures of durable calls; see --directory"
        )
    lines += [f"{name} was skipped: {reason}" for name, reason in skipped.items()]
    lines += [f"{name} FAILED: {reason}" for name, reason in failed.items()]
    disturbed = sum(cell.figures["others_cores"] > OTHERS_CORES_NOTED for cell in cells)
    if disturbed:
        lines.append(
            f"in {disturbed} of {len(cells)} cells other processes used over {OTHERS_CORES_NOTED:g} cores"
        )
    return lines


def _numbers(_context: click.Context, _option: click.Parameter, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter("comma-separated numbers, like 1,64,1024") from None
    if min(numbers) < 1:
        raise click.BadParameter("at least 1")
    return numbers


def _names(_context: click.Context, _option: click.Parameter, text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(MODULES):
        raise click.BadParameter(f"{', '.join(sorted(unknown))}: there are {', '.join(MODULES)}")
    return names


@click.command()
@click.option("--seconds", default=3.0, show_default=True, help="Measured time of each cell.")
@click.option("--warmup", "warmup_s", default=0.5, show_default=True, help="Seconds of load before it.")
@click.option("--rounds", default=3, show_default=True, help="Medians are taken over this many.")
@click.option("--concurrency", default="1,64,256,1024", show_default=True, callback=_numbers)
@click.option("--objects", default=10_000, show_default=True, help="Counters, chosen uniformly.")
@click.option("--only", default="limit,perdure,redis", show_default=True, callback=_names)
@click.option("--tries", default=1, show_default=True, help="Of a cell, while other processes are busy.")
@click.option("--raw", is_flag=True, help="Also one message for each call, at 64 outstanding.")
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the temporary directory is made; its disk is what is measured.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Raw figures.")
def main(
    seconds: float,
    warmup_s: float,
    rounds: int,
    concurrency: list[int],
    objects: int,
    only: list[str],
    raw: bool,
    tries: int,
    directory: Path | None,
    json_file: Path | None,
) -> None:
    """Measure Perdure beside its limit and Redis, side by side in one run."""
    settings = Settings(seconds, warmup_s, rounds, concurrency, objects, raw, tries)
    # SIGTERM ends the run like Ctrl-C: every server is stopped and the directory removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=directory) as temporary:
        facts = machine.describe(Path(temporary))
        with contextlib.closing(Client()) as client, started(only, Path(temporary), skipped) as systems:
            cells = measure_all(systems, client, settings, failed)
    click.echo("\n".join(notes(facts, cells, skipped, failed)))
    click.echo("\n" + report.figures_table(cells))
    click.echo("\n" + report.ratios_table(report.ratios(cells)))
    if json_file is not None:
        everything = report.as_json(facts, vars(settings), {**skipped, **failed}, cells)
        json_file.write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
