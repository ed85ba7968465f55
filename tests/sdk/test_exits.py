"""A worker's exit code says one thing, to the supervisor and to people."""

from __future__ import annotations

import pytest

from perdure.exits import WorkerExit

CODES_OF_OTHERS = {1, 2, 126, 127, *range(128, 256)}
"""Python's own (uncaught exception, usage), a shell's, and those that stand for signals."""


def test_the_codes_are_those_that_operators_scripts_know() -> None:
    assert {exit_.name: int(exit_) for exit_ in WorkerExit} == {
        "STOPPED": 0,
        "WRITE_FAILED": 70,
        "STALE_EPOCH": 71,
        "SHARD_DAMAGED": 72,
        "NEWER_FORMAT": 73,
        "SHARD_LOCKED": 74,
        "STORE_UNAVAILABLE": 75,
        "TURNS_CUT": 76,
        "NO_SPACE": 77,
        "APP_NOT_LOADED": 78,
    }


def test_no_code_could_come_from_somebody_else() -> None:
    assert not CODES_OF_OTHERS & set(WorkerExit)


@pytest.mark.parametrize("exit_", list(WorkerExit))
def test_each_code_has_one_sentence_of_its_own(exit_: WorkerExit) -> None:
    assert [other for other in WorkerExit if other.meaning == exit_.meaning] == [exit_]
    assert exit_.meaning[0].islower(), "it goes behind a colon"
    assert not exit_.meaning.endswith(".")
    assert 20 < len(exit_.meaning) < 100


def test_a_code_is_found_by_its_number_and_an_unknown_one_is_an_error() -> None:
    assert WorkerExit(72) is WorkerExit.SHARD_DAMAGED
    with pytest.raises(ValueError, match="79"):
        WorkerExit(79)
