"""`python -m perdure_gateway` says what is wrong with its argument; the rest is tested with the processes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from processes.cluster import environment


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "takes one argument"),
        (["{}"], "configuration cannot be read"),
        (["a", "b"], "takes one argument"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(arguments: list[str], told: str) -> None:
    run = subprocess.run(
        [sys.executable, "-P", "-m", "perdure_gateway", *arguments],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert run.returncode == 1
    assert told in run.stderr
    assert "Traceback" not in run.stderr
