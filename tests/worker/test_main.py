"""`python -m perdure_worker`: the supervisor's one argument goes in, the exit code comes out."""

from __future__ import annotations

import runpy
import sys

import pytest

from perdure.exits import WorkerExit
from perdure_worker import process


@pytest.mark.parametrize("code", [WorkerExit.STOPPED, WorkerExit.APP_NOT_LOADED])
def test_the_module_runs_the_worker_of_its_argument_and_exits_with_its_code(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    arguments = []
    monkeypatch.setattr(process, "main", lambda argument: arguments.append(argument) or code)
    monkeypatch.setattr(sys, "argv", ["perdure_worker", "the config"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("perdure_worker", run_name="__main__")
    assert ended.value.code == code
    assert arguments == ["the config"]


def test_importing_the_module_starts_nothing() -> None:
    runpy.run_module("perdure_worker.__main__", run_name="imported")
