"""What is concluded from measured cells: ratios, targets, tables."""

from __future__ import annotations

import json

import pytest

from benchmarks.report import (
    Bound,
    Cell,
    Result,
    as_json,
    figures_table,
    results,
    results_table,
    scale_form,
)


def cell(system: str, form: str, outstanding: int, rate: float, *, number: int = 0, p50: float = 1.0) -> Cell:
    figures = {
        "calls_per_s": rate,
        "p50_ms": p50,
        "p99_ms": 2 * p50,
        "p99_9_ms": 3 * p50,
        "client_cpu_us_per_call": 4.0,
        "server_cpu_us_per_call": 5.0,
    }
    return Cell(system, form, outstanding, number, figures)


def result(name: str, cells: list[Cell], parts: dict[str, dict[str, float]] | None = None) -> Result:
    (found,) = [each for each in results(cells, parts or {}) if each.name == name]
    return found


def verdicts(cells: list[Cell], parts: dict[str, dict[str, float]]) -> dict[str, str]:
    return {each.name: each.verdict for each in results(cells, parts)}


@pytest.mark.parametrize(
    ("bound", "value", "met"),
    [
        (Bound.AT_LEAST, 2.0, True),
        (Bound.AT_LEAST, 1.99, False),
        (Bound.AT_MOST, 2.0, True),
        (Bound.AT_MOST, 2.01, False),
        (Bound.WITHIN, 2.0, True),
        (Bound.WITHIN, 2.01, False),
        (Bound.WITHIN, 0.5, True),
        (Bound.WITHIN, 0.49, False),
    ],
)
def test_a_target_is_met_at_its_value_and_missed_beyond_it(bound: Bound, value: float, met: bool) -> None:
    found = Result("x", value, bound, 2.0)
    assert found.met is met
    assert found.verdict == ("met" if met else "MISSED")


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    found = Result("x", None, Bound.AT_LEAST, 2.0)
    assert found.met is None
    assert found.verdict == "not measured"


def test_what_has_no_target_is_only_reported() -> None:
    found = Result("x", 7.0, Bound.NONE, None)
    assert found.met is None
    assert found.verdict == "reported"


def test_a_ratio_is_taken_within_each_round_and_the_median_of_the_rounds_counts() -> None:
    # The limit is ten times as fast in the last round: ratios of medians would give another figure.
    cells = [
        *(cell("perdure", "router", 1024, 60, number=0), cell("limit", "router", 1024, 100, number=0)),
        *(cell("perdure", "router", 1024, 70, number=1), cell("limit", "router", 1024, 100, number=1)),
        *(cell("perdure", "router", 1024, 800, number=2), cell("limit", "router", 1024, 1000, number=2)),
    ]
    assert result("router at 1,024, calls/s ÷ limit's", cells).value == pytest.approx(0.7)


def test_a_round_in_which_one_side_is_missing_does_not_count() -> None:
    cells = [
        *(cell("perdure", "direct", 1024, 60, number=0), cell("limit", "direct", 1024, 100, number=0)),
        cell("perdure", "direct", 1024, 1, number=1),
    ]
    assert result("direct at 1,024, calls/s ÷ limit's", cells).value == pytest.approx(0.6)


def test_latencies_are_compared_with_one_caller() -> None:
    cells = [cell("perdure", "direct", 1, 1, p50=0.9), cell("limit", "direct", 1, 1, p50=0.6)]
    cells += [cell("perdure", "direct", 64, 1, p50=9.0), cell("limit", "direct", 64, 1, p50=1.0)]
    found = result("direct, one caller's p50 ÷ limit's", cells)
    assert found.value == pytest.approx(1.5)
    assert found.met is False


def test_redis_is_credited_with_its_better_connection_pool_and_its_best_load() -> None:
    cells = [
        *(
            cell("redis", "64 conn", 64, 10),
            cell("redis", "N conn", 64, 20),
            cell("redis", "N conn", 256, 40),
        ),
        *(cell("perdure", "direct", 64, 50), cell("perdure", "direct", 1024, 80)),
    ]
    assert result("direct at 64, calls/s ÷ Redis's", cells).value == pytest.approx(2.5)
    assert result("direct, best calls/s ÷ Redis's best", cells).value == pytest.approx(2.0)


def test_one_object_and_many_are_compared_both_ways_and_count_for_nothing_else() -> None:
    few, many = scale_form(1), scale_form(100_000)
    name = "direct at 1,024, calls/s on 1 object ÷ on 100,000"
    for rate, verdict in ((100, "met"), (130, "met"), (132, "MISSED"), (78, "met"), (76, "MISSED")):
        cells = [cell("perdure", few, 1024, rate), cell("perdure", many, 1024, 100)]
        assert result(name, cells).verdict == verdict
        # The best of the ordinary cells is not among these.
        assert (
            result("direct, best calls/s ÷ Redis's best", [*cells, cell("redis", "x", 64, 1)]).value is None
        )


def test_the_raw_client_is_compared_with_batches_through_the_router_and_has_no_target() -> None:
    cells = [
        *(
            cell("perdure", "raw", 64, 30),
            cell("perdure", "router", 64, 40),
            cell("perdure", "direct", 64, 99),
        ),
        *(cell("limit", "raw", 64, 10), cell("limit", "router", 64, 20)),
    ]
    found = result("router at 64, calls/s a call a message ÷ batched", cells)
    assert found.value == pytest.approx(0.75)
    assert found.verdict == "reported"
    assert result("the same of the limit", cells).value == pytest.approx(0.5)


def test_the_parts_are_held_to_their_targets() -> None:
    memory, activation = (
        "100,000 live idle objects in a worker, MB",
        "activation of an object with state, p50 us",
    )
    start = "`perdure run` to the first answer, s"
    kept = {
        "memory": {"growth_mb": 100},
        "activation": {"p50_us": 100, "p99_us": 900},
        "start": {"median_s": 2},
    }
    missed = {"memory": {"growth_mb": 100.1}, "activation": {"p50_us": 101}, "start": {"median_s": 2.1}}
    assert [verdicts([], kept)[name] for name in (memory, activation, start)] == ["met"] * 3
    assert [verdicts([], missed)[name] for name in (memory, activation, start)] == ["MISSED"] * 3
    assert [verdicts([], {})[name] for name in (memory, activation, start)] == ["not measured"] * 3
    assert verdicts([], kept)["activation of an object with state, p99 us"] == "reported"


def test_each_row_of_the_table_says_value_target_and_verdict() -> None:
    rows = [
        Result("ratio", 0.5, Bound.AT_LEAST, 0.55),
        Result("both ways", 1.0, Bound.WITHIN, 1.3),
        Result("not measured", None, Bound.AT_MOST, 100),
        Result("large", 1234.5, Bound.NONE, None),
    ]
    _, line, *lines = results_table(rows).splitlines()
    assert set(line) == {"-"}
    assert [" ".join(row.split()) for row in lines] == [
        "ratio 0.50 >= 0.55 MISSED",
        "both ways 1.00 within a factor of 1.3 met",
        "not measured - <= 100 not measured",
        "large 1,234.50 - reported",
    ]


def test_the_figures_are_medians_over_the_rounds_and_rise_with_the_load() -> None:
    cells = [cell("perdure", "router", 1024, 500)]
    cells += [cell("perdure", "router", 64, rate, number=number) for number, rate in enumerate((90, 10, 50))]
    _, _, first, second = figures_table(cells).splitlines()
    assert first.split() == ["perdure,", "router", "64", "50", "1.00", "2.00", "3.00", "4.0", "+", "5.0"]
    assert second.split()[:4] == ["perdure,", "router", "1,024", "500"]


def test_the_json_holds_all_cells_parts_and_results_with_their_verdicts() -> None:
    cells = [cell("perdure", "direct", 1024, 60), cell("limit", "direct", 1024, 100)]
    parts = {"start": {"median_s": 0.5, "runs_s": [0.5]}}
    found = json.loads(json.dumps(as_json({"cores": 2}, {"rounds": 1}, {"redis": "why"}, cells, parts)))
    assert found["cells"][0]["figures"]["calls_per_s"] == 60
    assert found["medians"][1]["system"] == "limit"
    assert found["parts"] == parts
    assert found["skipped"] == {"redis": "why"}
    by_name = {row["name"]: row for row in found["results"]}
    assert by_name["direct at 1,024, calls/s ÷ limit's"] == {
        "name": "direct at 1,024, calls/s ÷ limit's",
        "value": 0.6,
        "bound": ">=",
        "target": 0.5,
        "met": True,
    }
    assert by_name["router at 1,024, calls/s ÷ limit's"]["met"] is None
    assert by_name["`perdure run` to the first answer, s"]["met"] is True
