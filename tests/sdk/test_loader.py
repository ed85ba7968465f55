"""Loading a user's module: what a gateway takes of it; tests/worker/test_loader.py has the rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.loader import ApplicationError, is_first_to_say, load_module, object_classes, said_reason


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """Loading changes `sys.path` and `sys.modules`, as it should in a process of ours."""
    path, modules = sys.path[:], sys.modules.copy()
    yield
    sys.path[:] = path
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]


def test_a_module_comes_with_all_that_it_holds_and_its_classes_once(tmp_path: Path) -> None:
    file = tmp_path / "front.py"
    file.write_text(
        "from perdure import DurableObject\n\napp = object()\n\nclass A(DurableObject): ...\n\nB = A\n"
    )
    module = load_module(str(file))
    assert "app" in vars(module)
    assert [cls.__name__ for cls in object_classes(module, "front.py")] == ["A"]


def test_a_module_without_object_classes_is_told(tmp_path: Path) -> None:
    file = tmp_path / "empty.py"
    file.write_text("x = 1")
    with pytest.raises(ApplicationError, match="no class that derives"):
        object_classes(load_module(str(file)), "empty.py")


def test_one_worker_of_a_run_says_what_all_of_them_meet_and_the_supervisor_can_repeat_it(
    tmp_path: Path,
) -> None:
    assert said_reason(tmp_path) == ""
    doors = [f"ipc://{tmp_path}/w{worker}.e1" for worker in range(3)]
    assert [is_first_to_say("ä is missing", door) for door in doors] == [True, False, False]
    assert said_reason(tmp_path) == "ä is missing"
