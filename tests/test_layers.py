"""Imports point down only: cli -> gateway, router, worker -> storage -> sdk; no package imports in a circle.

Read from the source by AST; nothing of ours is imported here. The packages and their folders come from
setup.cfg, so a new package that has no layer yet fails instead of going unseen.
"""

from __future__ import annotations

import ast
import configparser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ALLOWED: Mapping[str, frozenset[str]] = {
    "perdure": frozenset(),
    "perdure_storage": frozenset({"perdure"}),
    "perdure_router": frozenset({"perdure"}),
    "perdure_worker": frozenset({"perdure", "perdure_storage"}),
    "perdure_gateway": frozenset({"perdure"}),
    "perdure_cli": frozenset(
        {"perdure", "perdure_storage", "perdure_router", "perdure_worker", "perdure_gateway"}
    ),
}
"""Which of our packages each package may import, besides itself."""


@dataclass(frozen=True)
class Import:
    """One imported name: `target` is a module, or a name inside one, as an absolute dotted path."""

    target: str
    line: int
    at_import_time: bool


def package_folders() -> dict[str, Path]:
    """Package name -> folder, as setup.cfg maps them."""
    config = configparser.ConfigParser()
    config.read_string((ROOT / "setup.cfg").read_text("utf-8"))
    lines = config["options"]["package_dir"].strip().splitlines()
    pairs = (line.split("=") for line in lines)
    return {name.strip(): ROOT / folder.strip() for name, folder in pairs}


def modules_of(package: str, folder: Path) -> dict[str, Path]:
    """Dotted module name -> file, for all modules below `folder`."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = [package, *path.relative_to(folder).with_suffix("").parts]
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def is_type_checking(test: ast.expr) -> bool:
    name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", None)
    return name == "TYPE_CHECKING"


def walk_imports(
    node: ast.AST, at_import_time: bool = True
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Each import statement, and whether it runs while its module is being imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import_time
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from walk_imports(child, False)
        elif isinstance(child, ast.If) and is_type_checking(child.test):
            for statement in child.body:
                yield from walk_imports(ast.Module([statement], []), False)
            for statement in child.orelse:
                yield from walk_imports(ast.Module([statement], []), at_import_time)
        else:
            yield from walk_imports(child, at_import_time)


def imports_of(module: str, source: str, *, is_package: bool = False) -> list[Import]:
    """All imports of a module; relative ones are made absolute."""
    found = []
    for node, at_import_time in walk_imports(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, at_import_time) for alias in node.names]
            continue
        base = node.module or ""
        if node.level:
            steps_up = node.level - (1 if is_package else 0)
            above = module.split(".")[: len(module.split(".")) - steps_up]
            base = ".".join([*above, base]) if base else ".".join(above)
        found += [Import(f"{base}.{alias.name}", node.lineno, at_import_time) for alias in node.names]
    return found


def layer_violations(package: str, imports: list[Import], where: str) -> list[str]:
    """Sentences for the imports that `ALLOWED` forbids to `package`."""
    problems = []
    for item in imports:
        target = item.target.split(".")[0]
        if target in ALLOWED and target != package and target not in ALLOWED[package]:
            allowed = ", ".join(sorted(ALLOWED[package])) or "none of our packages"
            problems.append(
                f"{where}:{item.line}: {package} imports {target}; it may import {allowed} "
                "(what both need belongs into a lower layer)"
            )
    return problems


def find_cycle(graph: Mapping[str, set[str]]) -> list[str] | None:
    """A circle of modules, first one repeated at the end, or None."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for target in sorted(graph.get(module, ())):
            if cycle := visit(target, [*path, module]):
                return cycle
        done.add(module)
        return None

    for start in sorted(graph):
        if cycle := visit(start, []):
            return cycle
    return None


def resolve(target: str, modules: Mapping[str, Path]) -> str | None:
    """The module of ours that importing `target` runs: itself, or the module that holds the name."""
    if target in modules:
        return target
    holder = target.rpartition(".")[0]
    return holder if holder in modules else None


def import_graph(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of the same package that it imports while being imported."""
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        imports = imports_of(module, path.read_text("utf-8"), is_package=path.name == "__init__.py")
        targets = {resolve(item.target, modules) for item in imports if item.at_import_time}
        graph[module] = {target for target in targets if target is not None and target != module}
    return graph


def test_every_package_of_setup_cfg_has_a_layer_and_a_folder() -> None:
    folders = package_folders()
    assert set(folders) == set(ALLOWED), (
        "setup.cfg and the table ALLOWED of this file name different packages"
    )
    missing = [str(folder.relative_to(ROOT)) for folder in folders.values() if not folder.is_dir()]
    assert not missing, f"setup.cfg names folders that do not exist: {missing}"


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_the_layers_below_it(package: str) -> None:
    problems = []
    for module, path in modules_of(package, package_folders()[package]).items():
        imports = imports_of(module, path.read_text("utf-8"), is_package=path.name == "__init__.py")
        problems += layer_violations(package, imports, str(path.relative_to(ROOT)))
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_no_modules_of_a_package_import_each_other_in_a_circle(package: str) -> None:
    cycle = find_cycle(import_graph(modules_of(package, package_folders()[package])))
    if cycle:
        pytest.fail(
            f"{' imports '.join(cycle)}: move what they share into a module of its own", pytrace=False
        )


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("perdure", "import perdure_storage.keys"),
        ("perdure_router", "from perdure_worker import host"),
        ("perdure_router", "def late():\n    from perdure_storage.keys import key"),
        ("perdure_storage", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import perdure_worker"),
    ],
)
def test_an_import_upwards_is_found_wherever_it_stands(package: str, source: str) -> None:
    assert layer_violations(package, imports_of(f"{package}.sample", source), "sample.py")


def test_an_import_downwards_is_allowed() -> None:
    source = "import perdure\nfrom perdure_storage.keys import key\nfrom . import host\nimport asyncio"
    assert not layer_violations("perdure_worker", imports_of("perdure_worker.sample", source), "sample.py")


def test_relative_imports_are_resolved_from_modules_and_from_packages() -> None:
    targets = [item.target for item in imports_of("a.b.c", "from . import x\nfrom ..d import y")]
    assert targets == ["a.b.x", "a.d.y"]
    targets = [item.target for item in imports_of("a.b", "from .x import y", is_package=True)]
    assert targets == ["a.b.x.y"]


def test_a_circle_of_imports_is_found_and_named() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c", "d"}, "c": set(), "d": {"b"}}) == ["b", "d", "b"]
    assert find_cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def test_late_and_type_only_imports_are_no_part_of_a_circle() -> None:
    source = "import a\ndef f():\n    import b\nif TYPE_CHECKING:\n    import c\nelse:\n    import d"
    found = {item.target: item.at_import_time for item in imports_of("m", source)}
    assert found == {"a": True, "b": False, "c": False, "d": True}
