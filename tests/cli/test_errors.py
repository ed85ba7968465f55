"""What can end `perdure run` says what to do, and has its own exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure_cli.errors import (
    AddressInUse,
    AlreadyRunning,
    BadOption,
    CannotRun,
    RunExit,
    StateTooNew,
    UnsafeDirectory,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadOption("x"), 2),
        (AlreadyRunning(Path("data"), 7, "perdure run"), 3),
        (UnsafeDirectory(Path("data"), "is a link"), 5),
        (StateTooNew(2, 1), 5),
        (AddressInUse("tcp://127.0.0.1:1", "taken"), 5),
    ],
)
def test_each_error_has_the_exit_code_that_the_command_promises(error: CannotRun, code: int) -> None:
    assert error.exit_code == code


def test_the_holder_of_a_data_directory_is_named() -> None:
    assert "process 7 (perdure run app.py)" in str(AlreadyRunning(Path("data"), 7, "perdure run app.py"))
    assert "another process" in str(AlreadyRunning(Path("data"), None, ""))


def test_exit_codes_differ() -> None:
    assert len({int(code) for code in RunExit}) == len(RunExit) == 7
