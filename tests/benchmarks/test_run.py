"""The command itself: small runs of everything that it measures, on real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import activation, memory, start
from benchmarks.run import notes

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = [str(ROOT / name) for name in ("sdk", "storage", "router", "worker", "gateway", "cli")]
TIMEOUT_S = 60
FACTS = {"cores": 2, "system": "Linux", "python": "3.11", "fdatasync_p50_ms": 0.2}


@pytest.fixture(autouse=True)
def _this_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of the benchmark use this checkout, whatever else is installed."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(PACKAGES))


def benchmark(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.processes
def test_one_command_measures_the_contenders_and_writes_table_and_json(tmp_path: Path) -> None:
    json_file = tmp_path / "figures.json"
    directory = tmp_path / ("longer than the path of a socket may be " * 3)
    directory.mkdir()
    run = benchmark(
        *("--only", "limit,perdure", "--concurrency", "64", "--raw", "--objects", "50"),
        *("--rounds", "1", "--seconds", "0.2", "--warmup", "0", "--json", str(json_file)),
        *("--directory", str(directory)),
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(json_file.read_text())
    measured = {(cell["system"], cell["form"]) for cell in found["cells"]}
    assert measured == {(name, form) for name in ("limit", "perdure") for form in ("router", "direct", "raw")}
    rows = {row["name"]: row for row in found["results"]}
    for name in ("direct at 64, calls/s ÷ limit's", "router at 64, calls/s a call a message ÷ batched"):
        assert rows[name]["value"] > 0
        assert name in run.stdout
    assert list(directory.iterdir()) == []


@pytest.mark.processes
def test_the_weight_of_live_objects_is_that_of_one_worker(tmp_path: Path) -> None:
    found = memory.measure(tmp_path, objects=2_000)
    assert found["growth_mb"] == pytest.approx(found["full_resident_mb"] - found["empty_resident_mb"])
    assert 0 < found["growth_mb"] < 100


@pytest.mark.processes
def test_activation_reads_objects_that_an_earlier_host_wrote(tmp_path: Path) -> None:
    found = activation.measure(tmp_path, objects=1_500, samples=100)
    assert (found["objects"], found["samples"]) == (1_500, 100)
    # Reading from the store is part of the first call and not of the second.
    assert found["p50_us"] > found["in_memory_p50_us"] > 0


@pytest.mark.processes
def test_a_start_is_timed_in_a_new_data_directory_each_time(tmp_path: Path) -> None:
    found = start.measure(tmp_path, runs=2)
    assert len(found["runs_s"]) == 2
    assert 0 < min(found["runs_s"]) <= found["median_s"] <= max(found["runs_s"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_an_unknown_contender_is_a_usage_error() -> None:
    run = benchmark("--only", "limit,mongo")
    assert run.returncode == 2
    assert "mongo" in run.stderr


def test_the_reader_is_told_of_a_directory_that_is_not_on_a_disk() -> None:
    assert len(notes(FACTS, [], {}, {})) == 1
    (_, line) = notes({**FACTS, "fdatasync_p50_ms": 0.001}, [], {}, {})
    assert "not on a disk" in line


def test_the_reader_is_told_what_was_skipped_and_what_failed() -> None:
    _, skipped, failed = notes(FACTS, [], {"redis": "no server"}, {"perdure": "a call failed"})
    assert skipped == "redis was skipped: no server"
    assert failed == "perdure FAILED: a call failed"
