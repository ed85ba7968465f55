"""Every bound stands in `Limits` with a reason, is used, fits the others, and docs/LIMITS.md lists it."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from perdure.limits import Limits

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("sdk", "storage", "router", "worker", "gateway", "cli")
FIELDS = [field.name for field in dataclasses.fields(Limits)]


@pytest.fixture(scope="module")
def table() -> ModuleType:
    """scripts/limits_table.py, imported without running it."""
    spec = importlib.util.spec_from_file_location("limits_table", ROOT / "scripts" / "limits_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_limits_is_what_the_class_says(table: ModuleType) -> None:
    written = (ROOT / "docs" / "LIMITS.md").read_text("utf-8")
    assert written == table.page(), "run: python scripts/limits_table.py > docs/LIMITS.md"


def test_the_page_lists_every_limit_once_with_value_unit_and_reason(table: ModuleType) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S.*) \| (\w+) \| (\S.*) \|$", table.page(), re.MULTILINE)
    assert [row[0] for row in rows] == FIELDS
    for name, value, unit, reason in rows:
        number = float(value.split()[0].replace(",", ""))
        assert number == getattr(Limits(), name)
        assert unit in ("bytes", "characters", "seconds", "count")
        assert len(reason.split()) > 7, f"{name} has no reason"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2048, "bytes", "2,048 (2 KiB)"),
        (2049, "bytes", "2,049"),
        (4096, "count", "4,096"),
        (32 << 20, "bytes", "33,554,432 (32 MiB)"),
        (0.5, "seconds", "0.5"),
        (3600.0, "seconds", "3,600"),
    ],
)
def test_values_are_shown_as_people_read_them(table: ModuleType, value: float, unit: str, text: str) -> None:
    assert table.shown(value, unit) == text


@pytest.mark.parametrize("name", FIELDS)
def test_a_limit_is_held_by_some_process(name: str) -> None:
    pattern = re.compile(rf"\.{name}\b")
    sources = [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "limits.py" and pattern.search(path.read_text("utf-8"))
    ]
    assert sources, f"{name} is declared and never looked at"


def test_limits_cannot_be_changed_by_accident() -> None:
    limits = Limits()
    with pytest.raises(dataclasses.FrozenInstanceError):
        limits.slots = 1  # type: ignore[misc]
    assert dataclasses.replace(limits, slots=8).slots == 8


def test_limits_are_positive_and_fit_into_each_other() -> None:
    limits = Limits()
    assert all(getattr(limits, name) > 0 for name in FIELDS)
    # What is allowed on one level must fit into the next one.
    assert limits.key_bytes_max < limits.value_bytes_max < limits.message_bytes_max
    assert limits.message_bytes_max <= limits.mailbox_bytes_max <= limits.client_queue_bytes_max
    assert limits.message_bytes_max < limits.router_queue_bytes_max
    assert limits.message_bytes_max < limits.reply_queue_bytes_max
    assert limits.batch_bytes_max <= limits.message_bytes_max
    assert limits.due_batch_rows <= limits.due_page_rows <= limits.due_rows_max // 2
    assert limits.namespace_chars_max <= 64  # the key of BLAKE2, see ids.py
    assert limits.call_timeout_s <= limits.turn_max_s <= limits.call_timeout_max_s
    assert limits.heartbeat_interval_s * 3 < limits.heartbeat_lost_s
    assert limits.client_ping_s * 3 < limits.client_forgotten_s
    # A full batch of calls with a few containers each is no bomb.
    assert limits.batch_calls_max * 6 < limits.containers_max
