"""Loading the user's module from its name or a file.  Runs once at the start of a worker and of a gateway.

Each way it can fail gets an `ApplicationError` that says what to correct.  Nothing of ours is shadowed:
our packages have names of their own, so a user's `worker.py`, `router.py` or `storage.py` is theirs.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

from perdure.errors import PerdureError
from perdure.object import DurableObject

__all__ = ["ApplicationError", "is_first_to_say", "load_module", "object_classes", "said_reason"]

_FILE_MODULE_PREFIX = "perdure_app_"
_NOTE_PREFIX = "said."
_OUR_PACKAGES = frozenset({"perdure", "perdure_storage", "perdure_worker", "perdure_gateway"})


class ApplicationError(PerdureError):
    """The user's application cannot be loaded; the message says what to correct."""


def load_module(app: str) -> ModuleType:
    """The module `app`: the path of a file (anything with a slash or the ending .py) or a dotted name.

    The file's folder, or the working directory, is importable as it is for a script.
    """
    return _load_file(Path(app)) if app.endswith(".py") or "/" in app else _import_module(app)


def object_classes(module: ModuleType, app: str) -> list[type[DurableObject]]:
    """The object classes that stand in the module, each once.  Raises `ApplicationError` without any."""
    classes = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, DurableObject) and value is not DurableObject
    ]
    if not classes:
        raise ApplicationError(
            f"{app} has no class that derives from perdure.DurableObject; define one, or import it there"
        )
    return list(dict.fromkeys(classes))


def is_first_to_say(text: str, door: str) -> bool:
    """Whether no other process of this run has said it: all load one application and meet one error.

    Any of them may be the first to end, and the supervisor then ends the others.  What was said is in
    `said_reason`.
    """
    digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
    try:  # a note among the sockets of this run, which goes with them
        note = Path(door.removeprefix("ipc://")).with_name(f"{_NOTE_PREFIX}{digest}")
        with note.open("x", encoding="utf-8", errors="replace") as file:
            file.write(text)
    except OSError as error:
        return not isinstance(error, FileExistsError)
    return True


def said_reason(run_directory: Path) -> str:
    """Why the processes of this run could not load the application; "" when none has said it."""
    notes = sorted(run_directory.glob(f"{_NOTE_PREFIX}*"))
    return notes[0].read_text("utf-8", errors="replace") if notes else ""


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ApplicationError(f"the file {path} does not exist")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem if path.stem.isidentifier() else _FILE_MODULE_PREFIX + "file"
    if name in sys.modules or importlib.util.find_spec(name) is None or not _is_file_of(name, path):
        name = _FILE_MODULE_PREFIX + name
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ApplicationError(f"{path} is no Python file: its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _explain(str(path), error) from error
    return module


def _is_file_of(name: str, path: Path) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path.resolve()


def _import_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ApplicationError(f"{name!r} is neither a file that ends with .py nor a module's dotted name")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ApplicationError(
                f"there is no module {error.name!r} (looked in {here} and the installed packages)"
            ) from error
        raise _explain(name, error) from error
    except BaseException as error:
        raise _explain(name, error) from error


def _explain(app: str, error: BaseException) -> ApplicationError:
    """The user's own lines of the traceback, without the import machinery's and ours."""
    if isinstance(error, SyntaxError):
        return ApplicationError(f"{app} has a syntax error in {error.filename}:{error.lineno}: {error.msg}")
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "importlib" not in frame.filename and not _is_ours(frame.filename)
    ]
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    if isinstance(error, ModuleNotFoundError):
        return ApplicationError(f"{app} imports {error.name!r}, which is not installed{where}")
    return ApplicationError(f"{app} raised {type(error).__name__} while it was loaded{where}: {error}")


def _is_ours(filename: str) -> bool:
    ours = (module for name in _OUR_PACKAGES if (module := sys.modules.get(name)) is not None)
    return any(Path(filename).is_relative_to(folder) for module in ours for folder in module.__path__)
