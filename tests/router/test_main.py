"""`python -m perdure_router` is the router's command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_without_its_configuration_the_command_says_what_it_needs_and_fails() -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "sdk"), str(ROOT / "router")])}
    command = [sys.executable, "-P", "-m", "perdure_router"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=False)
    assert done.returncode == 1
    assert b"one argument, its configuration as JSON" in done.stderr
