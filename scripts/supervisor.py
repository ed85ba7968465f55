#!/usr/bin/env python3
"""`perdure run` as a script: `scripts/supervisor.py run examples/counter.py`, also without installation.

The process that this starts becomes the supervisor.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

FOLDERS = ("sdk", "storage", "router", "worker", "gateway", "cli")


def use_the_checkout() -> None:
    """Makes the packages beside this script importable, here and in the processes that are started."""
    root = Path(__file__).resolve().parents[1]
    folders = [str(root / name) for name in FOLDERS]
    sys.path[:0] = folders
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*([inherited] if inherited else []), *folders])


if __name__ == "__main__":
    if importlib.util.find_spec("perdure_cli") is None:
        use_the_checkout()
    from perdure_cli.commands import main

    main(prog_name="supervisor.py")
