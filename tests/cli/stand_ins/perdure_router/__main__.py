"""The stand-in for a child, started by the supervisor's own command line."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[2] / "fake_child.py"), run_name="__main__")
