"""The measured cells: which there are, and how one after another is measured and checked.

Runs in the run.py process. A cell is one contender (a system and the way its client reaches it) at one
number of outstanding calls. Cells of one concurrency stand next to each other in each round.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks import machine, report
from benchmarks.contender import MODULES, Child, Handle, System, Unavailable

__all__ = [
    "OTHERS_CORES_NOTED",
    "CellFailed",
    "Client",
    "Running",
    "Settings",
    "measure_all",
    "plan_round",
    "started",
]

# On top of a cell's own time: all objects are touched first and the last calls are waited for.
CELL_TIMEOUT_S = 60.0
OTHERS_CORES_NOTED = 0.2


@dataclass(frozen=True)
class Settings:
    """What is measured; see the command line's options."""

    seconds: float
    warmup_s: float
    rounds: int
    concurrency: list[int]
    objects: int
    only: list[str]
    raw: bool
    scale: bool
    tries: int


class CellFailed(Exception):
    """A call failed, or an increment was lost or counted twice; the text says which."""


@dataclass
class Running:
    """A system that is up, and what its counters must add up to."""

    label: str
    """What tells it from another one of the same system."""
    name: str
    """Its system's key in MODULES."""
    servers: System
    handle: Handle
    objects: int
    calls: int = 0

    def check_sum(self, figures: report.Figures) -> None:
        """Raises CellFailed when an increment was lost or counted twice; counts the cell's calls."""
        expected = self.calls + self.objects
        if figures["sum_after_touch"] != expected:
            raise CellFailed(
                f"the counters sum up to {figures['sum_after_touch']:.0f} after {expected} increments"
            )
        self.calls += int(figures["calls"])


class Planned(NamedTuple):
    """One cell of a round."""

    running: Running
    form: str
    """How the client reaches the servers; one of the system's forms."""
    outstanding: int
    shown_form: str
    """What the report calls it."""


class Client:
    """The client process, which runs one cell after another."""

    def __init__(self) -> None:
        self._child = Child("benchmarks.driver")

    def measure(self, planned: Planned, settings: Settings) -> dict[str, float]:
        """The figures of one cell; raises CellFailed when it failed."""
        running = planned.running
        server_pids = running.servers.pids()
        servers = machine.CpuClock(server_pids)
        everyone = machine.CpuClock([os.getpid(), self._child.process.pid, *server_pids])
        cell = {
            "system": running.name,
            "form": planned.form,
            "handle": running.handle,
            "outstanding": planned.outstanding,
            "objects": running.objects,
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
        running.check_sum(figures)
        return figures

    def measure_undisturbed(self, planned: Planned, settings: Settings) -> dict[str, float]:
        """As `measure`, again while others are busy, `settings.tries` times at most; gives the quietest.

        The choice looks only at the CPU time of other processes, never at the figures themselves.
        """
        quietest = self.measure(planned, settings)
        for _ in range(settings.tries - 1):
            if quietest["others_cores"] <= OTHERS_CORES_NOTED:
                break
            figures = self.measure(planned, settings)
            quietest = min(quietest, figures, key=lambda each: each["others_cores"])
        return quietest

    def close(self) -> None:
        """End the process."""
        self._child.stop()


@contextlib.contextmanager
def started(settings: Settings, directory: Path, skipped: dict[str, str]) -> Iterator[list[Running]]:
    """The systems to be measured that can run here; the reasons of the others go to `skipped`."""
    with contextlib.ExitStack() as stack:
        running: list[Running] = []
        for label, name, objects in systems_of(settings):
            click.echo(f"starting {label} ...", err=True)
            place = directory / f"{name}-{objects}-{len(running)}"
            place.mkdir()
            try:
                servers: System = importlib.import_module(MODULES[name]).system()
                stack.callback(servers.stop)
                running.append(Running(label, name, servers, servers.start(place), objects))
            except Unavailable as reason:
                skipped[label] = str(reason)
                click.echo(f"{label} is SKIPPED: {reason}", err=True)
        yield running


def systems_of(settings: Settings) -> list[tuple[str, str, int]]:
    """Label, name and number of objects of each system to be started.

    Those of --scale are clusters of their own: the sum of all counters of a cluster is checked.
    """
    found = []
    if settings.concurrency or settings.raw:
        found += [(name, name, settings.objects) for name in settings.only]
    if settings.scale:
        found += [
            (f"perdure, {report.scale_form(objects)}", "perdure", objects) for objects in report.SCALE_OBJECTS
        ]
    return found


def measure_all(
    systems: Sequence[Running], client: Client, settings: Settings, failed: dict[str, str]
) -> list[report.Cell]:
    """All cells in turn; a progress line for each on standard error.

    A system whose cell fails gets no more cells, and the reason goes to `failed`.
    """
    cells = []
    for number in range(settings.rounds):
        for planned in plan_round(systems, settings):
            running, _, outstanding, form = planned
            if running.label in failed:
                continue
            label = f"round {number + 1}/{settings.rounds}  {running.name}, {form} at {outstanding:,}"
            try:
                figures = client.measure_undisturbed(planned, settings)
            except CellFailed as error:
                failed[running.label] = f"{form} at {outstanding:,}: {error}"
                click.echo(f"{label}: FAILED: {error}", err=True)
                continue
            cells.append(report.Cell(running.name, form, outstanding, number, figures))
            click.echo(
                f"{label}: {figures['calls_per_s']:,.0f} calls/s, p50 {figures['p50_ms']:.2f} ms", err=True
            )
    return cells


def plan_round(systems: Sequence[Running], settings: Settings) -> list[Planned]:
    """Which cells a round has, in their order."""
    plan = []
    for outstanding in settings.concurrency:
        for running in systems:
            if running.label == running.name:
                forms = [*running.servers.forms]
                if settings.raw and outstanding == report.RAW_OUTSTANDING:
                    forms += _raw_forms(running)
                plan += [Planned(running, form, outstanding, form) for form in forms]
    if settings.raw and report.RAW_OUTSTANDING not in settings.concurrency:
        plan += [
            Planned(running, form, report.RAW_OUTSTANDING, form)
            for running in systems
            if running.label == running.name and _raw_forms(running)
            for form in (report.RAW_COMPARED_FORM, *_raw_forms(running))
        ]
    plan += [
        Planned(running, "direct", report.SCALE_OUTSTANDING, report.scale_form(running.objects))
        for running in systems
        if running.label != running.name
    ]
    return plan


def _raw_forms(running: Running) -> list[str]:
    raw_form = running.servers.raw_form
    return [] if raw_form is None else [raw_form]
