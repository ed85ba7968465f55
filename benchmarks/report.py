"""What is concluded from the measured cells: medians, ratios against their targets, and the table.

Pure: from figures to numbers and text. Cells of one round are measured next to each other, so a ratio is
taken within each round and the median of the rounds is reported.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

__all__ = ["Cell", "Ratio", "as_json", "figures_table", "ratios", "ratios_table"]

Figures = dict[str, float]


@dataclass(frozen=True)
class Cell:
    """One measurement: a contender (system and form) at one number of outstanding calls, in one round."""

    system: str
    form: str
    outstanding: int
    round: int
    figures: Figures


@dataclass(frozen=True)
class Ratio:
    """One comparison: the median over the rounds, or None when a part of it was not measured."""

    name: str
    target: float
    at_most: bool
    """Whether the target is an upper bound; else it is a lower one."""
    value: float | None

    @property
    def met(self) -> bool | None:
        """Whether the value keeps the target; None without a value."""
        if self.value is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


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
    return one.rate("perdure", form, outstanding) / one.rate("limit", form, outstanding)


def _p50_over_limit(form: str, one: Round) -> float:
    return one.p50("perdure", form, 1) / one.p50("limit", form, 1)


def _rate_over_redis(one: Round) -> float:
    return one.rate("perdure", "direct", 64) / one.best("redis", outstanding=64)


def _best_over_redis(one: Round) -> float:
    return one.best("perdure", form="direct") / one.best("redis")


COMPARISONS: tuple[tuple[str, float, bool, Callable[[Round], float]], ...] = (
    ("router at 1,024, calls/s ÷ limit's", 0.55, False, partial(_rate_over_limit, "router", 1024)),
    ("direct at 1,024, calls/s ÷ limit's", 0.5, False, partial(_rate_over_limit, "direct", 1024)),
    ("direct at 64, calls/s ÷ limit's", 0.75, False, partial(_rate_over_limit, "direct", 64)),
    ("direct at 64, calls/s ÷ Redis's", 1.5, False, _rate_over_redis),
    ("direct, best calls/s ÷ Redis's best", 3.5, False, _best_over_redis),
    ("router, one caller's p50 ÷ limit's", 1.4, True, partial(_p50_over_limit, "router")),
    ("direct, one caller's p50 ÷ limit's", 1.4, True, partial(_p50_over_limit, "direct")),
)
"""Name, target, whether the target is an upper bound, and how one round's value is computed."""


def ratios(cells: Sequence[Cell]) -> list[Ratio]:
    """The comparisons that Perdure is held to."""
    rounds = [
        Round(cell for cell in cells if cell.round == number)
        for number in sorted({cell.round for cell in cells})
    ]
    found = []
    for name, target, at_most, compute in COMPARISONS:
        values = []
        for one in rounds:
            with contextlib.suppress(KeyError, ValueError):  # a part of it was not measured
                values.append(compute(one))
        found.append(Ratio(name, target, at_most, statistics.median(values) if values else None))
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


def ratios_table(found: Sequence[Ratio]) -> str:
    """A row for each ratio: value, target, and whether it is met."""
    words = {True: "met", False: "MISSED", None: "not measured"}
    rows = [("Perdure", "ratio", "target", "")]
    for ratio in found:
        value = "-" if ratio.value is None else f"{ratio.value:.2f}"
        sign = "<=" if ratio.at_most else ">="
        rows.append((ratio.name, value, f"{sign} {ratio.target:g}", words[ratio.met]))
    return _aligned(rows)


def as_json(
    machine: dict[str, Any], settings: dict[str, Any], skipped: dict[str, str], cells: Sequence[Cell]
) -> dict[str, Any]:
    """Everything: the raw cells, their medians, the ratios and how they were measured."""
    return {
        "machine": machine,
        "settings": settings,
        "skipped": skipped,
        "cells": [asdict(cell) for cell in cells],
        "medians": [
            {"system": system, "form": form, "outstanding": outstanding, **figures}
            for (system, form, outstanding), figures in medians(cells).items()
        ],
        "ratios": [{**asdict(ratio), "met": ratio.met} for ratio in ratios(cells)],
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
