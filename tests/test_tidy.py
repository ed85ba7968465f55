"""The style that a machine can check: sizes, names, docstrings, mirrored tests, and what code never does.

Each rule is a function from one source text to findings, each finding a line and a sentence. The first half
of the tests holds the tree to the rules, the second half shows that each rule finds what it is there for.
Only text and AST are read; nothing of ours is imported.
"""

from __future__ import annotations

import ast
import configparser
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SELF = Path(__file__).resolve()

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
COLUMNS_MAX = 110

TESTED_ELSEWHERE: Mapping[str, tuple[str, str]] = {
    "cli/perdure_cli/__main__.py": ("tests/cli/test_commands.py", "the command line is started through it"),
}
"""Module -> the test file that covers it, and why not the mirrored one."""

PROSE_SUFFIXES = frozenset({".md", ".toml", ".cfg", ".sh", ".in", ".txt", ".html", ".js", ".css", ".yml"})
GENERATED_FOLDERS = frozenset({"__pycache__", "build", "dist", "node_modules", "perdure-data"})

IMMUTABLE_MAKERS = frozenset(
    {"getLogger", "compile", "Struct", "frozenset", "tuple", "MappingProxyType", "namedtuple"}
    | {"NamedTuple", "NewType", "TypeVar", "ParamSpec", "Path", "attrgetter", "itemgetter"}
)
"""Calls whose result no module state hides in, so that a lower-case module name may hold it."""

FORBIDDEN_IMPORTS = frozenset({"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"})
FORBIDDEN_CALLS = frozenset({"eval", "exec", "__import__"})
SLEEPERS = frozenset({"time", "asyncio", "anyio", "trio"})

# Written in two parts so that this file does not find itself.
MARKERS = re.compile(r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b")
HOME_PATHS = re.compile(r"(?<![\w./:-])(/home/\w|/Users/\w|/root/)")
SHARED_FOLDERS = re.compile(
    r"/(app|bin|boot|builds?|code|data|dev|etc|home|lib|media|mnt|opt|perdure|proc|repo|root|run|sbin|src|srv"
    r"|sys|tmp|usr|var|workspace)"
)
"""Top folders that a text may name without telling whose machine it was written on."""


@dataclass(frozen=True)
class Finding:
    """A sentence about one line; `str()` puts the file in front where a rule ran over one."""

    line: int
    sentence: str


Rule = Callable[[str], list[Finding]]


# --- the rules


def long_functions(source: str) -> list[Finding]:
    findings = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX:
                findings.append(
                    Finding(node.lineno, f"{node.name} has {length} lines; {FUNCTION_LINES_MAX} are allowed")
                )
    return findings


def long_module(source: str) -> list[Finding]:
    length = len(source.splitlines())
    if length <= MODULE_LINES_MAX:
        return []
    return [Finding(length, f"the module has {length} lines; {MODULE_LINES_MAX} are allowed")]


def wide_lines(source: str) -> list[Finding]:
    """Lines over the limit; a comment to a tool at the end does not count, as for the formatter."""
    lines = [re.sub(r"\s*# (noqa|type: ignore).*", "", line) for line in source.splitlines()]
    return [
        Finding(number, f"{len(line)} columns; {COLUMNS_MAX} are allowed")
        for number, line in enumerate(lines, 1)
        if len(line) > COLUMNS_MAX
    ]


def missing_docstring(source: str) -> list[Finding]:
    if ast.get_docstring(ast.parse(source)):
        return []
    return [Finding(1, "the module has no docstring; say what it guarantees and which process runs it")]


def is_attic_name(name: str) -> bool:
    """Whether one of the words of a snake-case or camel-case name is util or utils."""
    words = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().split("_")
    return bool({"util", "utils"} & set(words))


def attic_names(source: str) -> list[Finding]:
    return [
        Finding(node.lineno, f"{node.name} says nothing; name it after what it does")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and is_attic_name(node.name)
    ]


def unfinished_marks(text: str) -> list[Finding]:
    return [
        Finding(number, f"{match[0]}: finish it, or open an issue and say what holds today")
        for number, line in enumerate(text.splitlines(), 1)
        if (match := MARKERS.search(line))
    ]


def forbidden_code(source: str) -> list[Finding]:
    """Imports and calls that turn bytes or text from outside into running code."""
    findings = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            findings += [
                Finding(node.lineno, f"imports {module}, which runs what it reads; use the codec")
                for module in modules
                if module.split(".")[0] in FORBIDDEN_IMPORTS
            ]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            findings.append(
                Finding(node.lineno, f"calls {node.func.id}(); nothing from outside becomes code")
            )
    return findings


def sleeps(source: str) -> list[Finding]:
    """Calls of sleep without a comment ``# sleep: <why>`` on one of the statement's lines."""
    lines = source.splitlines()
    tree = ast.parse(source)
    bare = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in SLEEPERS
        for alias in node.names
        if alias.name == "sleep"
    }
    findings = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        func = node.func
        is_sleep = (isinstance(func, ast.Name) and func.id in bare) or (
            isinstance(func, ast.Attribute)
            and func.attr == "sleep"
            and isinstance(func.value, ast.Name)
            and func.value.id in SLEEPERS
        )
        excused = any(re.search(r"# sleep: \S", line) for line in lines[node.lineno - 1 : node.end_lineno])
        if is_sleep and not excused:
            findings.append(
                Finding(
                    node.lineno,
                    "a sleep synchronises nothing; wait for the condition with a deadline "
                    "(or say '# sleep: why' on this line, where the code under test must take time)",
                )
            )
    return findings


def import_time_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported, also those inside its if and try blocks."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            inner = [*node.body, *node.orelse]
            if isinstance(node, ast.Try):
                inner += [*node.finalbody, *(line for handler in node.handlers for line in handler.body)]
            elif isinstance(node.test, ast.Compare) and ast.unparse(node.test.left) == "__name__":
                continue  # the main block runs in a process of its own
            yield from import_time_statements(inner)


def state_of(name: str, value: ast.expr) -> str | None:
    """Why the module-level ``name = value`` is hidden state; None when it is a constant."""
    is_constant = name == name.upper() or (name.startswith("__") and name.endswith("__"))
    if isinstance(value, ast.List | ast.Dict | ast.Set):
        is_empty = not (value.keys if isinstance(value, ast.Dict) else value.elts)
        if is_empty and not name.startswith("__"):
            return "an empty container at module level can only be there to be changed"
        return None if is_constant else "a container at module level is shared state"
    if isinstance(value, ast.ListComp | ast.DictComp | ast.SetComp):
        return None if is_constant else "a container at module level is shared state"
    if isinstance(value, ast.Call) and not is_constant:
        maker = value.func.attr if isinstance(value.func, ast.Attribute) else ast.unparse(value.func)
        if maker not in IMMUTABLE_MAKERS:
            return f"the result of {maker}() at module level is shared state"
    return None


def module_state(source: str) -> list[Finding]:
    """Mutable state and side effects of importing; state is handed in, or owned by an object."""
    tree = ast.parse(source)
    findings = []
    for node in import_time_statements(tree.body):
        targets: list[ast.expr] = []
        value: ast.expr | None = None
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign):
            targets, value = [node.target], node.value
        for target in targets:
            if isinstance(target, ast.Name) and value is not None and (why := state_of(target.id, value)):
                findings.append(Finding(node.lineno, f"{target.id}: {why}; hand it in, or name a CONSTANT"))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            findings.append(
                Finding(
                    node.lineno,
                    f"importing the module runs {ast.unparse(node.value.func)}(); call it from main",
                )
            )
    findings += [
        Finding(node.lineno, f"global {', '.join(node.names)}: hand the state in")
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
    ]
    return findings


def machine_prefixes(root: Path, prefix: str, base_prefix: str) -> list[str]:
    """Absolute folders that tell where this copy of the project was worked on.

    Those are the checkout, the folders above it that are not common to all machines, and the virtual
    environment.
    """
    folders = [folder for folder in (root, *root.parents) if len(folder.parts) > 2]
    found = [str(folder) for folder in folders]
    top = f"/{root.parts[1]}"
    if len(root.parts) > 2 and not SHARED_FOLDERS.fullmatch(top):
        found.append(top)
    if prefix != base_prefix:
        found.append(prefix)
    return found


def machine_paths(text: str, prefixes: list[str]) -> list[Finding]:
    own = "|".join(re.escape(prefix) for prefix in prefixes)
    own_paths = re.compile(rf"(?<![\w./:-])({own})(?=[/\s\"'`,;:)]|$)") if own else None
    return [
        Finding(number, "names a folder of one machine; use a relative path or a parameter")
        for number, line in enumerate(text.splitlines(), 1)
        if HOME_PATHS.search(line) or (own_paths and own_paths.search(line))
    ]


# --- the tree


def files(*folders: str) -> list[Path]:
    """All files of the project below `folders` (without one: of the whole project), save generated ones."""
    found = []
    for base in [ROOT / folder for folder in folders] or [ROOT]:
        for path in sorted(base.rglob("*")):
            parts = path.relative_to(ROOT).parts
            hidden = any(part.startswith(".") and part != ".ci" for part in parts)
            generated = any(part in GENERATED_FOLDERS or part.endswith(".egg-info") for part in parts)
            if path.is_file() and not hidden and not generated:
                found.append(path)
    return found


def package_folders() -> list[Path]:
    """The packages' folders, as setup.cfg maps them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", "utf-8")
    lines = config["options"]["package_dir"].strip().splitlines()
    return [Path(line.partition("=")[2].strip()) for line in lines]


def mirrored_test(module: Path, package: Path) -> Path:
    """Where the tests of a module belong: sdk/perdure/a/b.py is tested by tests/sdk/a/test_b.py."""
    within = module.relative_to(package)
    return Path("tests", package.parts[0], within.parent, f"test_{within.stem.strip('_')}.py")


def is_script(path: Path) -> bool:
    return path.suffix == "" and path.parent.name in {"scripts", ".ci"}


def python_files(*folders: str) -> list[Path]:
    return [path for path in files(*folders) if path.suffix == ".py"]


def text_files() -> list[Path]:
    suffixes = PROSE_SUFFIXES | {".py"}
    return [path for path in files() if path.suffix in suffixes or is_script(path) or path.name == "LICENSE"]


def hold(rule: Rule, paths: list[Path]) -> None:
    """Fails with one sentence for each finding of `rule` in `paths`."""
    complain(
        f"{path.relative_to(ROOT)}:{finding.line}: {finding.sentence}"
        for path in paths
        for finding in rule(path.read_text("utf-8"))
    )


def complain(sentences: Iterator[str] | list[str]) -> None:
    if problems := list(sentences):
        pytest.fail("\n".join(problems), pytrace=False)


@pytest.mark.parametrize(
    "rule",
    [long_functions, long_module, missing_docstring, attic_names, forbidden_code],
    ids=lambda r: r.__name__,
)
def test_all_python_files_keep_the_rule(rule: Rule) -> None:
    hold(rule, python_files())


def test_no_line_of_code_is_too_wide() -> None:
    hold(wide_lines, [path for path in files() if path.suffix in {".py", ".sh"} or is_script(path)])


def test_no_file_or_folder_is_an_attic() -> None:
    complain(
        f"{path.relative_to(ROOT)}:1: the name says nothing; name it after what it holds"
        for path in files()
        if any(is_attic_name(Path(part).stem) for part in path.relative_to(ROOT).parts)
    )


def test_packages_have_no_module_state_and_no_import_side_effects() -> None:
    hold(module_state, python_files(*map(str, package_folders())))


def test_tests_do_not_sleep_to_synchronise() -> None:
    hold(sleeps, python_files("tests"))


def test_nothing_is_marked_unfinished() -> None:
    hold(unfinished_marks, text_files())


def test_no_text_holds_a_path_of_a_machine() -> None:
    prefixes = machine_prefixes(ROOT, sys.prefix, sys.base_prefix)
    hold(lambda text: machine_paths(text, prefixes), [path for path in text_files() if path != SELF])


def test_every_module_of_a_package_has_its_test_file() -> None:
    problems = []
    for package in package_folders():
        for path in python_files(str(package)):
            if path.name == "__init__.py":
                continue  # a face: it re-exports names and holds no code
            module = str(path.relative_to(ROOT))
            mirrored = mirrored_test(path.relative_to(ROOT), package)
            elsewhere, reason = TESTED_ELSEWHERE.get(module, (None, ""))
            if elsewhere is None and not (ROOT / mirrored).is_file():
                problems.append(f"{module}:1: has no test file; {mirrored} is its place")
            elif elsewhere is not None and not (reason and (ROOT / elsewhere).is_file()):
                problems.append(f"{module}:1: TESTED_ELSEWHERE needs a reason and an existing file for it")
            elif elsewhere is not None and (ROOT / mirrored).is_file():
                problems.append(f"{module}:1: {mirrored} exists; take the module out of TESTED_ELSEWHERE")
    problems += [
        f"{module}:1: stands in TESTED_ELSEWHERE and does not exist"
        for module in TESTED_ELSEWHERE
        if not (ROOT / module).is_file()
    ]
    complain(problems)


# --- the rules find what they are there for


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (long_functions, "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
        (long_functions, "class A:\n    async def f(self):\n" + "        x = 1\n" * FUNCTION_LINES_MAX),
        (long_module, "\n" * (MODULE_LINES_MAX + 1)),
        (wide_lines, "#" * (COLUMNS_MAX + 1)),
        (missing_docstring, "x = 1"),
        (attic_names, "def string_utils(): ..."),
        (attic_names, "class PathUtil: ..."),
        (unfinished_marks, "# " + "TO" + "DO later"),
        (forbidden_code, "import pickle"),
        (forbidden_code, "def f():\n    from marshal import loads"),
        (forbidden_code, "eval('1')"),
        (sleeps, "import time\ntime.sleep(1)"),
        (sleeps, "async def f():\n    await asyncio.sleep(0)"),
        (sleeps, "from asyncio import sleep as pause\nasync def f():\n    await pause(1)"),
        (sleeps, "time.sleep(1)  # sleep:"),
        (module_state, "cache = {}"),
        (module_state, "_CACHE: dict[str, int] = {}"),
        (module_state, "names = ['a']"),
        (module_state, "if True:\n    lock = Lock()"),
        (module_state, "try:\n    registry = dict(a=1)\nexcept ValueError:\n    registry = None"),
        (module_state, "def f():\n    global x\n    x = 1"),
        (module_state, "uvloop.install()"),
        (lambda text: machine_paths(text, []), "see /home/ada/notes"),
        (lambda text: machine_paths(text, ["/desk/project"]), "cd /desk/project && ls"),
        (lambda text: machine_paths(text, ["/desk"]), "in `/desk/notes.md`"),
    ],
)
def test_a_rule_finds_what_it_forbids(rule: Rule, source: str) -> None:
    assert rule(source)


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (long_functions, "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1)),
        (long_module, "\n" * MODULE_LINES_MAX),
        (wide_lines, "#" * COLUMNS_MAX),
        (wide_lines, "x" * COLUMNS_MAX + "  # noqa: S301 - why"),
        (missing_docstring, '"""What it is."""'),
        (attic_names, "def utilisation(): ..."),
        (forbidden_code, "import re\nre.compile('x')\nself.exec('y')"),
        (sleeps, "time.sleep(1)  # sleep: the method under test is slow"),
        (sleeps, "await_condition(lambda: True)"),
        (
            module_state,
            "__all__ = ['a']\nNAMES = ['a']\nlog = logging.getLogger(__name__)\nKeys = frozenset[str]",
        ),
        (module_state, "T = TypeVar('T')\ndef f():\n    cache = {}\n    run()\nclass A:\n    x = field()"),
        (module_state, "if __name__ == '__main__':\n    code = main()\n    exit(code)"),
        (lambda text: machine_paths(text, ["/desk"]), "http://host/desk/x and a/desk/b and /desktop"),
    ],
)
def test_a_rule_leaves_good_code_alone(rule: Rule, source: str) -> None:
    assert not rule(source)


def test_the_checkout_and_the_virtual_environment_are_paths_of_a_machine() -> None:
    found = machine_prefixes(Path("/desk/ada/project"), "/desk/venv", "/usr")
    assert found == ["/desk/ada/project", "/desk/ada", "/desk", "/desk/venv"]
    assert machine_prefixes(Path("/app"), "/usr", "/usr") == []
    assert machine_prefixes(Path("/tmp/clone"), "/usr", "/usr") == ["/tmp/clone"]
