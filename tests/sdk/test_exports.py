"""What `import perdure` offers: sorted, importable, documented, and all that users need."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import perdure
from perdure import errors

SDK = Path(__file__).resolve().parents[2] / "sdk"
MODULES = sorted(module.name for module in pkgutil.iter_modules(perdure.__path__, "perdure."))

PUBLIC = frozenset(
    {"Alarm", "Client", "DurableObject", "Limits", "ListedObject", "Listing", "ObjectId", "SyncClient"}
    | {"WebReply", "WebSocket", "WebSocketResponse"}
    | {"connect", "connect_sync", "durable", "register_exception"}
    | {"blocking", "interleaved", "public"}  # decorators
    | {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
)
"""What the documentation speaks of, as far as it is there."""


def test_the_package_exports_what_users_need_and_nothing_else() -> None:
    assert set(perdure.__all__) == PUBLIC
    assert perdure.__all__ == sorted(perdure.__all__)


@pytest.mark.parametrize("name", ["perdure", *MODULES])
def test_exported_names_are_sorted_there_and_no_accident(name: str) -> None:
    module = importlib.import_module(name)
    exported = module.__all__
    assert exported == sorted(exported, key=constants_classes_rest)
    assert len(exported) == len(set(exported))
    assert all(hasattr(module, item) for item in exported)
    assert not [item for item in exported if item.startswith("_")]


def constants_classes_rest(name: str) -> tuple[int, str]:
    """The order of the linter."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


@pytest.mark.parametrize("name", ["perdure", *MODULES])
def test_exported_functions_and_classes_are_ours_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    for item in module.__all__:
        value = getattr(module, item)
        if inspect.isfunction(value) or isinstance(value, type):
            assert value.__doc__, f"{name}.{item} has no docstring"
            assert value.__module__.startswith("perdure."), f"{name}.{item} is somebody else's"


def test_what_the_package_exports_is_what_its_modules_export() -> None:
    for item in perdure.__all__:
        value = getattr(perdure, item)
        module = importlib.import_module(value.__module__)
        assert item in module.__all__
        assert getattr(module, item) is value


def test_the_package_says_that_it_has_types() -> None:
    assert (SDK / "perdure" / "py.typed").is_file()


def test_importing_the_package_starts_no_thread_opens_no_file_and_prints_nothing() -> None:
    program = (
        "import os, threading; before = len(os.listdir('/proc/self/fd')); import perdure; "
        "assert threading.active_count() == 1; "
        "assert len(os.listdir('/proc/self/fd')) == before"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(SDK)}, capture_output=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
