"""The benchmark: `python -m benchmarks.run` measures Perdure beside its limit and Redis, in one run.

All contenders are up at the same time and get their cells in turn, so that whatever else the machine does
meets all of them alike: for each round, for each number of outstanding calls, each contender once. One
client process runs the same load loop for all. Every call increments one of 10,000 counters, and its
answer comes only when the new value is on disk. What is measured of Perdure alone (memory, activation,
start) follows when all of them have stopped.

Everything is on Unix sockets and in a temporary directory that is removed at the end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import machine, report
from benchmarks.cells import OTHERS_CORES_NOTED, Client, Settings, measure_all, started
from benchmarks.contender import MODULES, Unavailable
from benchmarks.perdure_counter import require_perdure

__all__ = ["main"]

PARTS = {
    "memory": "benchmarks.memory",
    "activation": "benchmarks.activation",
    "start": "benchmarks.start",
}
"""Each part's module; its `measure(directory)` gives figures. Imported when used: they need Perdure."""

# A sync faster than this never reached a disk; the figures would say nothing about durable calls.
FDATASYNC_MIN_MS = 0.01


def measure_parts(
    names: Sequence[str], directory: Path, skipped: dict[str, str], failed: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """The figures of each part; the reasons of those that cannot run or fail go to `skipped` and `failed`."""
    found = {}
    for name in names:
        click.echo(f"measuring {name} ...", err=True)
        place = directory / name
        place.mkdir()
        try:
            require_perdure()
            found[name] = importlib.import_module(PARTS[name]).measure(place)
        except Unavailable as reason:
            skipped[name] = str(reason)
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {error}"
    return found


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
    if text == "none":
        return []
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter("comma-separated numbers, like 1,64,1024, or none") from None
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
@click.option(
    "--concurrency",
    default="1,64,256,1024",
    show_default=True,
    callback=_numbers,
    help="Outstanding calls; none: measure only what the flags name.",
)
@click.option("--objects", default=10_000, show_default=True, help="Counters, chosen uniformly.")
@click.option("--only", default="limit,perdure,redis", show_default=True, callback=_names)
@click.option("--tries", default=1, show_default=True, help="Of a cell, while other processes are busy.")
@click.option("--raw", is_flag=True, help="Also one message for each call, at 64 outstanding.")
@click.option("--scale", is_flag=True, help="Also Perdure with 1 object and with 100,000.")
@click.option("--memory", is_flag=True, help="Also what 100,000 live idle objects weigh.")
@click.option("--activation", is_flag=True, help="Also how fast an object on disk gets into memory.")
@click.option("--start", is_flag=True, help="Also how fast `perdure run` comes up.")
@click.option("--all", "everything", is_flag=True, help="All of these five.")
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
    tries: int,
    raw: bool,
    scale: bool,
    memory: bool,
    activation: bool,
    start: bool,
    everything: bool,
    directory: Path | None,
    json_file: Path | None,
) -> None:
    """Measure Perdure beside its limit and Redis, side by side in one run."""
    settings = Settings(
        seconds=seconds,
        warmup_s=warmup_s,
        rounds=rounds,
        concurrency=concurrency,
        objects=objects,
        only=only,
        raw=raw or everything,
        scale=scale or everything,
        tries=tries,
    )
    wanted = {"memory": memory, "activation": activation, "start": start}
    parts = [name for name in PARTS if wanted[name] or everything]
    # SIGTERM ends the run like Ctrl-C: every server is stopped and the directory removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=directory) as temporary:
        place = Path(temporary)
        facts = machine.describe(place)
        with contextlib.closing(Client()) as client, started(settings, place, skipped) as systems:
            cells = measure_all(systems, client, settings, failed)
        figures = measure_parts(parts, place, skipped, failed)
    click.echo("\n".join(notes(facts, cells, skipped, failed)))
    if cells:
        click.echo("\n" + report.figures_table(cells))
    click.echo("\n" + report.results_table(report.results(cells, figures)))
    if json_file is not None:
        found = report.as_json(facts, vars(settings), {**skipped, **failed}, cells, figures)
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
