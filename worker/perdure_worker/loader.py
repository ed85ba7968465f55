"""The user's classes as a worker serves them.  Runs once at the start of a worker.

Each way it can fail gets an `ApplicationError` that says what to correct.
"""

from __future__ import annotations

from perdure.loader import ApplicationError, load_module, object_classes
from perdure_worker.registry import ObjectClass, register

__all__ = ["load_application"]


def load_application(app: str) -> dict[str, ObjectClass]:
    """The object classes of `app` (see `perdure.loader.load_module`), by namespace."""
    classes = object_classes(load_module(app), app)
    try:
        return register(dict.fromkeys(classes))
    except TypeError as error:
        raise ApplicationError(f"{app}: {error}") from error
