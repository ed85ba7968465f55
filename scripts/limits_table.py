#!/usr/bin/env python3
"""Prints docs/LIMITS.md: every field of `perdure.Limits` with its value, unit and reason.

    python scripts/limits_table.py > docs/LIMITS.md

Values come from the class, sections and reasons from its source, units from the names' endings.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import sys
from pathlib import Path

HEAD = """\
# Limits

Every queue, size, time and count of Perdure has a bound, and all of them stand in one place, the dataclass
`perdure.Limits` (`sdk/perdure/limits.py`). They are the same in development and production.

This page is made from that class by `python scripts/limits_table.py > docs/LIMITS.md`; a test holds the two
together.
"""


def page() -> str:
    """The whole page."""
    from perdure import limits  # late: as a script this file first has to find the package

    source = inspect.getsource(limits)
    values = limits.Limits()
    lines = source.splitlines()
    body = next(node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    sections: dict[str, list[str]] = {}
    row_end = 0
    title = ""
    for field, text in itertools.pairwise(body):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if not isinstance(text, ast.Expr) or not isinstance(text.value, ast.Constant):
            raise SystemExit(f"{field.target.id} does not say its reason in a docstring below it")
        for line in lines[row_end : field.lineno]:
            if heading := re.match(r"\s*# --- (.+)", line):
                title = heading[1]
        row_end = field.lineno
        name = field.target.id
        reason = " ".join(str(text.value.value).split()).replace("|", "\\|")
        unit = unit_of(name)
        value = shown(getattr(values, name), unit)
        sections.setdefault(title, []).append(f"| `{name}` | {value} | {unit} | {reason} |")
    parts = [HEAD]
    for title, rows in sections.items():
        parts.append("\n".join([f"## {title.capitalize()}", "", *TABLE_HEAD, *rows, ""]))
    return "\n".join(parts)


TABLE_HEAD = ("| limit | value | unit | what it bounds, and why there |", "|---|---|---|---|")


def shown(value: float, unit: str) -> str:
    """A number as people read it: 2,048 (2 KiB)."""
    for size, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if unit == "bytes" and value >= size and value % size == 0:
            return f"{value:,} ({value // size:.0f} {name})"
    return f"{value:,g}"


def unit_of(name: str) -> str:
    """The unit that the name of a limit ends in."""
    words = name.removesuffix("_max").split("_")
    return {"bytes": "bytes", "chars": "characters", "s": "seconds"}.get(words[-1], "count")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sdk"))
    sys.stdout.write(page())
