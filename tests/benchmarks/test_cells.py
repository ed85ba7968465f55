"""Which cells a round has, and how a lost or doubled increment is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cells import CellFailed, Running, Settings, plan_round, systems_of
from benchmarks.contender import Handle

SETTINGS = Settings(
    seconds=1,
    warmup_s=0,
    rounds=1,
    concurrency=[1, 64],
    objects=10,
    only=["limit", "redis"],
    raw=False,
    scale=False,
    tries=1,
)


class Servers:
    """Of a system with these forms, never started."""

    def __init__(self, forms: tuple[str, ...], raw_form: str | None) -> None:
        self.forms = forms
        self.raw_form = raw_form

    def start(self, directory: Path) -> Handle:
        raise NotImplementedError

    def pids(self) -> list[int]:
        return []

    def stop(self) -> None:
        pass


def running(label: str, name: str, forms: tuple[str, ...], raw_form: str | None = None) -> Running:
    return Running(label, name, Servers(forms, raw_form), {}, objects=10)


LIMIT = running("limit", "limit", ("router", "direct"), "raw")
REDIS = running("redis", "redis", ("64 conn",))


def planned(settings: Settings, *systems: Running) -> list[tuple[str, str, int]]:
    return [(plan.running.label, plan.form, plan.outstanding) for plan in plan_round(systems, settings)]


def cell_figures(total: int, calls: int) -> dict[str, float]:
    return {"sum_after_touch": total, "calls": calls}


def test_the_counters_add_up_over_all_cells_of_a_system() -> None:
    system = replace(LIMIT)
    system.check_sum(cell_figures(total=10, calls=500))
    system.check_sum(cell_figures(total=510, calls=70))
    assert system.calls == 570


@pytest.mark.parametrize("total", [509, 511], ids=["lost", "counted twice"])
def test_an_increment_that_is_lost_or_counted_twice_fails_the_cell(total: int) -> None:
    system = replace(LIMIT)
    system.check_sum(cell_figures(total=10, calls=500))
    with pytest.raises(CellFailed, match=f"sum up to {total} after 510 increments"):
        system.check_sum(cell_figures(total=total, calls=70))


def test_the_contenders_of_one_concurrency_stand_together() -> None:
    assert planned(SETTINGS, LIMIT, REDIS) == [
        *(("limit", "router", 1), ("limit", "direct", 1), ("redis", "64 conn", 1)),
        *(("limit", "router", 64), ("limit", "direct", 64), ("redis", "64 conn", 64)),
    ]


def test_a_raw_client_is_measured_on_request_right_behind_what_it_is_compared_with() -> None:
    assert planned(replace(SETTINGS, raw=True), LIMIT, REDIS)[3:] == [
        *(("limit", "router", 64), ("limit", "direct", 64), ("limit", "raw", 64), ("redis", "64 conn", 64)),
    ]


def test_a_raw_client_is_measured_also_when_its_load_is_none_of_the_others() -> None:
    settings = replace(SETTINGS, raw=True, concurrency=[1])
    assert planned(settings, LIMIT, REDIS)[3:] == [("limit", "router", 64), ("limit", "raw", 64)]


def test_clusters_that_differ_in_their_objects_get_one_cell_each() -> None:
    one = running("perdure, direct, 1 object", "perdure", ("router", "direct"), "raw")
    settings = replace(SETTINGS, concurrency=[], raw=True)
    assert planned(settings, one) == [("perdure, direct, 1 object", "direct", 1_024)]
    assert [plan.shown_form for plan in plan_round([replace(one, objects=1)], settings)] == [
        "direct, 1 object"
    ]


def test_only_what_is_measured_is_started() -> None:
    assert systems_of(SETTINGS) == [("limit", "limit", 10), ("redis", "redis", 10)]
    assert systems_of(replace(SETTINGS, concurrency=[])) == []
    assert systems_of(replace(SETTINGS, concurrency=[], scale=True)) == [
        ("perdure, direct, 1 object", "perdure", 1),
        ("perdure, direct, 100,000 objects", "perdure", 100_000),
    ]
