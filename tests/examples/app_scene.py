"""What tests of the larger examples share: their modules, calls in a scene, their docstrings' programs."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from processes.cluster import ROOT, Cluster, environment
from worker.host_scene import Scene, Sent

STEP_S = 0.05
STEPS_MAX = 2_000
PROGRAM_S = 60.0


def path_of(name: str) -> Path:
    return ROOT / "examples" / f"{name}.py"


@cache
def load(name: str) -> ModuleType:
    """The example's module, one for all tests: its exceptions are found by their class."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", path_of(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pass_time(scene: Scene, seconds: float, step_s: float = STEP_S) -> None:
    """Time passes in steps, and the disk follows."""
    for _ in range(max(1, round(seconds / step_s))):
        scene.advance(step_s)
        scene.commit()


def finish(scene: Scene, *calls: Sent) -> list[Any]:
    """Lets things happen, and time pass where nothing else does, until all are answered."""
    for _ in range(STEPS_MAX):
        scene.commit()
        if all(call.answered for call in calls):
            return [call.result() for call in calls]
        scene.advance(STEP_S)
    raise AssertionError("no answer")


def do(scene: Scene, cls: Any, name: str, method: str, *args: Any) -> Any:
    """One call, and its outcome."""
    return finish(scene, scene.start(cls, name, method, *args))[0]


def program_of(name: str) -> tuple[str, list[str]]:
    """The program in the example's docstring, and the lines that it says to print."""
    text = ast.get_docstring(ast.parse(path_of(name).read_text("utf-8")))
    assert text is not None
    paragraphs = text.split("\n\n")
    first = next(index for index, part in enumerate(paragraphs) if part.startswith("    "))
    last = first
    while paragraphs[last + 1].startswith("    "):
        last += 1
    code = textwrap.dedent("\n\n".join(paragraphs[first : last + 1]))
    said = [line.split("  # ", 1)[1] for line in code.splitlines() if line.lstrip().startswith("print(")]
    return code, said


def run_program(name: str, cluster: Cluster, folder: Path) -> None:
    """Runs the docstring's program as a user would; it prints what it says."""
    code, said = program_of(name)
    assert said
    program = folder / "client.py"
    program.write_text(code + "\n", "utf-8")
    ended = subprocess.run(
        [sys.executable, str(program)],
        env={**environment(), "PERDURE_URL": cluster.url, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=PROGRAM_S,
        cwd=folder,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
    assert ended.stdout.splitlines() == said, os.linesep.join(said)


@contextlib.contextmanager
def with_values(module: ModuleType, **values: Any) -> Iterator[None]:
    """Other values of an example's names for a while, such as small limits."""
    before = {name: vars(module)[name] for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(before)
