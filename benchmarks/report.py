"""What is concluded from what was measured: medians, results against their targets, and the tables.

Pure: from figures to numbers and text. Cells of one round are measured next to each other, so a ratio is
taken within each round and the median of the rounds is reported. The parts (memory, activation, start)
give their figures as they are.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

__all__ = [
    "RAW_COMPARED_FORM",
    "RAW_OUTSTANDING",
    "SCALE_OBJECTS",
    "SCALE_OUTSTANDING",
    "Bound",
    "Cell",
    "Result",
    "as_json",
    "figures_table",
    "results",
    "results_table",
    "scale_form",
]

Figures = dict[str, float]

RAW_OUTSTANDING = 64
RAW_COMPARED_FORM = "router"
SCALE_OBJECTS = (1, 100_000)
SCALE_OUTSTANDING = 1_024


class Bound(StrEnum):
    """How a value is compared with its target."""

    AT_LEAST = ">="
    AT_MOST = "<="
    WITHIN = "within a factor of"
    """From 1 ÷ target to target."""
    NONE = "reported"
    """There is no target."""


@dataclass(frozen=True)
class Cell:
    """One measurement: a contender (system and form) at one number of outstanding calls, in one round."""

    system: str
    form: str
    outstanding: int
    round: int
    figures: Figures


@dataclass(frozen=True)
class Result:
    """One figure that Perdure is held to, or that is only reported; without a value it was not measured."""

    name: str
    """What it is, its unit last; a ratio has none."""
    value: float | None
    bound: Bound
    target: float | None

    @property
    def met(self) -> bool | None:
        """Whether the value keeps the target; None without one of them."""
        if self.value is None or self.target is None:
            return None
        if self.bound is Bound.AT_MOST:
            return self.value <= self.target
        if self.bound is Bound.AT_LEAST:
            return self.value >= self.target
        return 1 / self.target <= self.value <= self.target

    @property
    def verdict(self) -> str:
        """The last column of the table."""
        if self.value is None:
            return "not measured"
        return {True: "met", False: "MISSED", None: "reported"}[self.met]


class Round:
    """The cells of one round, to look figures up in; a KeyError or ValueError means: not measured."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        self._figures = {(cell.system, cell.form, cell.outstanding): cell.figures for cell in cells}

    def rate(self, system: str, form: str, outstanding: int) -> float:
        """Calls per second of one cell."""
        return self._figures[system, form, outstanding]["calls_per_s"]

    def p50(self, system: str, form: str, outstanding: int) -> float:
        """Median latency of one cell, in milliseconds."""
        return self._figures[system, form, outstanding]["p50_ms"]

    def best(self, system: str, form: str | None = None, outstanding: int | None = None) -> float:
        """Most calls per second of the cells of `system`, where given only of `form` and `outstanding`."""
        return max(
            figures["calls_per_s"]
            for (its_system, its_form, its_outstanding), figures in self._figures.items()
            if its_system == system and form in (None, its_form) and outstanding in (None, its_outstanding)
        )


def _rate_over_limit(form: str, outstanding: int, one: Round) -> float:
    limit = one.rate("limit", form, outstanding)
    # A machine that stands still for a whole cell gives 0, of which nothing is a multiple.
    return one.rate("perdure", form, outstanding) / limit if limit else float("nan")


def _p50_over_limit(form: str, one: Round) -> float:
    return one.p50("perdure", form, 1) / one.p50("limit", form, 1)


def _rate_over_redis(one: Round) -> float:
    return one.rate("perdure", "direct", 64) / one.best("redis", outstanding=64)


def _best_over_redis(one: Round) -> float:
    return one.best("perdure", form="direct") / one.best("redis")


def _raw_over_batched(system: str, one: Round) -> float:
    batched = one.rate(system, RAW_COMPARED_FORM, RAW_OUTSTANDING)
    return one.rate(system, "raw", RAW_OUTSTANDING) / batched


def scale_form(objects: int) -> str:
    """The form of the cells that differ only in their number of objects."""
    return "direct, 1 object" if objects == 1 else f"direct, {objects:,} objects"


def _rate_of_one_over_many(one: Round) -> float:
    few, many = (one.rate("perdure", scale_form(objects), SCALE_OUTSTANDING) for objects in SCALE_OBJECTS)
    return few / many


class Comparison(NamedTuple):
    """A ratio of cells."""

    name: str
    bound: Bound
    target: float | None
    compute: Callable[[Round], float]
    """The ratio in one round."""


COMPARISONS = (
    Comparison(
        "router at 1,024, calls/s ÷ limit's",
        Bound.AT_LEAST,
        0.55,
        partial(_rate_over_limit, "router", 1024),
    ),
    Comparison(
        "direct at 1,024, calls/s ÷ limit's", Bound.AT_LEAST, 0.5, partial(_rate_over_limit, "direct", 1024)
    ),
    Comparison(
        "direct at 64, calls/s ÷ limit's", Bound.AT_LEAST, 0.75, partial(_rate_over_limit, "direct", 64)
    ),
    Comparison("direct at 64, calls/s ÷ Redis's", Bound.AT_LEAST, 1.5, _rate_over_redis),
    Comparison("direct, best calls/s ÷ Redis's best", Bound.AT_LEAST, 3.5, _best_over_redis),
    Comparison("router, one caller's p50 ÷ limit's", Bound.AT_MOST, 1.4, partial(_p50_over_limit, "router")),
    Comparison("direct, one caller's p50 ÷ limit's", Bound.AT_MOST, 1.4, partial(_p50_over_limit, "direct")),
    Comparison(
        "direct at 1,024, calls/s on 1 object ÷ on 100,000", Bound.WITHIN, 1.3, _rate_of_one_over_many
    ),
    Comparison(
        "router at 64, calls/s a call a message ÷ batched",
        Bound.NONE,
        None,
        partial(_raw_over_batched, "perdure"),
    ),
    Comparison(
        "the same of the limit",
        Bound.NONE,
        None,
        partial(_raw_over_batched, "limit"),
    ),
)


class Figure(NamedTuple):
    """A figure of one of the parts."""

    name: str
    bound: Bound
    target: float | None
    part: str
    key: str
    """Which of the part's figures it is."""


PART_FIGURES = (
    Figure("100,000 live idle objects in a worker, MB", Bound.AT_MOST, 100, "memory", "growth_mb"),
    Figure("activation of an object with state, p50 us", Bound.AT_MOST, 100, "activation", "p50_us"),
    Figure("activation of an object with state, p99 us", Bound.NONE, None, "activation", "p99_us"),
    Figure("`perdure run` to the first answer, s", Bound.AT_MOST, 2, "start", "median_s"),
)


def results(cells: Sequence[Cell], parts: Mapping[str, Mapping[str, Any]]) -> list[Result]:
    """Everything that Perdure is held to, measured or not, and what is reported beside it."""
    rounds = [
        Round(cell for cell in cells if cell.round == number)
        for number in sorted({cell.round for cell in cells})
    ]
    found = []
    for name, bound, target, compute in COMPARISONS:
        values = []
        for one in rounds:
            with contextlib.suppress(KeyError, ValueError):  # a part of it was not measured
                values.append(compute(one))
        found.append(Result(name, statistics.median(values) if values else None, bound, target))
    for figure in PART_FIGURES:
        value = parts.get(figure.part, {}).get(figure.key)
        found.append(Result(figure.name, value, figure.bound, figure.target))
    return found


def medians(cells: Sequence[Cell]) -> dict[tuple[str, str, int], Figures]:
    """The median over the rounds of each figure, for each contender and number outstanding, in order."""
    grouped: dict[tuple[str, str, int], list[Figures]] = {}
    for cell in cells:
        grouped.setdefault((cell.system, cell.form, cell.outstanding), []).append(cell.figures)
    return {
        key: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for key, rows in grouped.items()
    }


def figures_table(cells: Sequence[Cell]) -> str:
    """A row for each contender and number outstanding: calls/s, latencies, CPU time of a call."""
    rows = [("contender", "outstanding", "calls/s", "p50 ms", "p99 ms", "p99.9 ms", "CPU us/call")]
    contenders = list(dict.fromkeys((cell.system, cell.form) for cell in cells))
    found = medians(cells)
    for system, form, outstanding in sorted(found, key=lambda key: (contenders.index(key[:2]), key[2])):
        figures = found[system, form, outstanding]
        rows.append(
            (
                f"{system}, {form}",
                f"{outstanding:,}",
                f"{figures['calls_per_s']:,.0f}",
                f"{figures['p50_ms']:.2f}",
                f"{figures['p99_ms']:.2f}",
                f"{figures['p99_9_ms']:.2f}",
                f"{figures['client_cpu_us_per_call']:.1f} + {figures['server_cpu_us_per_call']:.1f}",
            )
        )
    return _aligned(rows)


def results_table(found: Sequence[Result]) -> str:
    """A row for each result: value, target, and whether it is met."""
    rows = [("Perdure", "value", "target", "")]
    for result in found:
        value = "-" if result.value is None else f"{result.value:,.2f}"
        target = "-" if result.target is None else f"{result.bound} {result.target:g}"
        rows.append((result.name, value, target, result.verdict))
    return _aligned(rows)


def as_json(
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    skipped: Mapping[str, str],
    cells: Sequence[Cell],
    parts: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything: the raw cells, their medians, the parts, the results and how they were measured."""
    return {
        "machine": machine,
        "settings": settings,
        "skipped": skipped,
        "cells": [asdict(cell) for cell in cells],
        "medians": [
            {"system": system, "form": form, "outstanding": outstanding, **figures}
            for (system, form, outstanding), figures in medians(cells).items()
        ],
        "parts": parts,
        "results": [{**asdict(result), "met": result.met} for result in results(cells, parts)],
    }


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        first, *others = row
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * sum(widths, 2 * (len(widths) - 1)))
    return "\n".join(lines)
