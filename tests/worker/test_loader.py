"""Loading the user's application: from a file or a module, and what each failure tells."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.loader import ApplicationError
from perdure_worker.loader import load_application

COUNTER = """
from perdure import DurableObject, durable

class Counter(DurableObject):
    value: int = durable(0)

    async def get(self) -> int:
        return self.value
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """Loading changes `sys.path` and `sys.modules`, as it should in a worker."""
    path, modules = sys.path[:], sys.modules.copy()
    yield
    sys.path[:] = path
    for name in sys.modules.keys() - modules.keys():
        del sys.modules[name]


def write(folder: Path, name: str, text: str = COUNTER) -> str:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return str(file)


# --- what is found


def test_a_file_gives_its_classes_by_namespace(tmp_path: Path) -> None:
    table = load_application(write(tmp_path, "shop.py"))
    assert list(table) == ["Counter"]
    assert list(table["Counter"].methods) == ["get"]
    # Under its own name, so that its exceptions are those that a client of the same file imports.
    assert table["Counter"].cls.__module__ == "shop"


def test_a_file_finds_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path, "neighbour_of_app.py", COUNTER)
    app = write(tmp_path, "application.py", "from neighbour_of_app import Counter")
    assert list(load_application(app)) == ["Counter"]


@pytest.mark.parametrize(
    "name", ["json.py", "worker.py", "storage.py", "perdure_worker.py", "my-app.py", "2.py"]
)
def test_a_file_may_have_the_name_of_a_module_that_is_there_or_no_name_of_a_module(
    tmp_path: Path, name: str
) -> None:
    import json

    before = sys.modules.get(Path(name).stem)
    assert list(load_application(write(tmp_path, name))) == ["Counter"]
    assert sys.modules["json"] is json
    if before is not None:
        assert sys.modules[Path(name).stem] is before


def test_a_module_is_found_in_the_working_directory_and_in_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "shop_package/__init__.py", "")
    write(tmp_path, "shop_package/rooms.py")
    write(tmp_path, "shop_module.py")
    assert list(load_application("shop_package.rooms")) == ["Counter"]
    assert list(load_application("shop_module")) == ["Counter"]


def test_one_class_under_two_names_is_one_class(tmp_path: Path) -> None:
    assert list(load_application(write(tmp_path, "twice.py", COUNTER + "\nAlias = Counter\n"))) == ["Counter"]


# --- what each failure tells


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", "no class that derives from perdure.DurableObject"),
        ("from perdure import DurableObject", "no class that derives from perdure.DurableObject"),
        ("def broken(:\n", r"a syntax error in .*app\.py:1"),
        ("import surely_not_installed", "imports 'surely_not_installed', which is not installed"),
        ("x = 1\nraise ValueError('at import')", r"raised ValueError .* at .*app\.py:2: at import"),
        ("raise SystemExit(3)", "raised SystemExit"),
        (COUNTER + "\nclass Other(DurableObject, namespace='Counter'): ...", "both use the namespace"),
        (COUNTER + "\nclass Bad(DurableObject):\n    storage = 1", r"Bad\.storage"),
        (
            "from perdure import DurableObject\n\nclass Ä(DurableObject): ...",
            r"at .*app\.py:3: Ä: .*; give it one: class Ä\(DurableObject, namespace=",
        ),
        (COUNTER + "\nclass Bad(DurableObject):\n    f: object = durable([])", "default_factory"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_what_to_correct(
    tmp_path: Path, text: str, told: str
) -> None:
    with pytest.raises(ApplicationError, match=told):
        load_application(write(tmp_path, "app.py", text))


def test_a_file_that_is_missing_or_no_python_is_told(tmp_path: Path) -> None:
    with pytest.raises(ApplicationError, match="does not exist"):
        load_application(str(tmp_path / "nowhere.py"))
    with pytest.raises(ApplicationError, match=r"must end with \.py"):
        load_application(write(tmp_path, "app.txt"))


@pytest.mark.parametrize("name", ["surely_not_there", "surely.not.there"])
def test_a_module_that_is_missing_is_told_with_where_it_was_looked_for(name: str) -> None:
    with pytest.raises(ApplicationError, match=r"no module 'surely.*looked in"):
        load_application(name)


@pytest.mark.parametrize("name", ["", "a b", "a..b", "-x", "a.b-c"])
def test_what_is_neither_a_file_nor_a_name_is_told(name: str) -> None:
    with pytest.raises(ApplicationError, match="neither a file"):
        load_application(name)


def test_a_module_that_raises_is_told_by_the_users_own_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "raising_module.py", "\n\nraise KeyError('deep')")
    with pytest.raises(ApplicationError, match=r"raised KeyError .*raising_module\.py:3"):
        load_application("raising_module")
    write(tmp_path, "importing_module.py", "import surely_not_installed")
    with pytest.raises(ApplicationError, match=r"surely_not_installed.*not installed"):
        load_application("importing_module")
