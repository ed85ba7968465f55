"""pydantic models as arguments, results and fields, without pydantic being a dependency.

pydantic is never imported here: a value or an annotation can only be a model when the user's own code
has imported it.  A model travels as its fields by name, in pydantic's python form where all of that is
plain, else (timedelta, Path, URL, ... in it) in its JSON form; validation reads both.  Models whose
fields have aliases need pydantic 2.11, the first that validates by name on request.
Runs in clients and workers.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from perdure.converter import ConversionError, Converter, describe, describe_error

__all__ = ["dump_model", "is_model_class", "model_converter"]


def is_model_class(cls: type) -> bool:
    """Whether `cls` is a pydantic model class."""
    pydantic = sys.modules.get("pydantic")
    base = getattr(pydantic, "BaseModel", None)
    return isinstance(base, type) and issubclass(cls, base)


def dump_model(model: Any, plain: Callable[[Any], Any]) -> Any:
    """The model as plain values; `plain` turns what python mode leaves (enums, ...) into them."""
    try:
        # round_trip leaves out computed fields, which a model that forbids extra fields would refuse.
        return plain(model.model_dump(mode="python", round_trip=True))
    except TypeError:  # also ConversionError; pydantic's own is a set of models turned into dicts
        pass
    try:
        return plain(model.model_dump(mode="json", round_trip=True))
    except ConversionError:
        raise
    except Exception as error:  # what a user's serializers raise is theirs to choose
        got = f"{describe(model)}, which pydantic cannot dump ({describe_error(error)})"
        raise ConversionError("", "a model of plain data", got) from error


def _refusal(expected: str, error: Exception) -> ConversionError:
    """The first complaint of pydantic's ValidationError, or any other error of a user's validator."""
    errors = getattr(error, "errors", None)
    details: list[Any] = errors(include_url=False, include_context=False) if callable(errors) else []
    if not details:
        return ConversionError("", f"valid for {expected}", f"a value that raises {describe_error(error)}")
    first = details[0]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    return ConversionError(path, f"valid for {expected} ({first['msg']})", describe(first.get("input")))


def model_converter(cls: Any, plain: Callable[[Any], Any], *, complete: bool) -> Converter:
    """The converter of a model class; `complete` takes only dicts with every field by name."""
    expected: str = cls.__name__
    options: dict[str, Any] = {}
    if "by_name" in inspect.signature(cls.model_validate).parameters:
        options = {"by_alias": True, "by_name": True}

    def load(value: Any) -> Any:
        if complete and not (type(value) is dict and cls.model_fields.keys() == value.keys()):
            raise ConversionError("", expected, describe(value))
        try:
            return cls.model_validate(value, **options)
        except RecursionError:
            raise
        except Exception as error:  # pydantic's own, or anything that a validator of the user's raises
            raise _refusal(expected, error) from None

    def dump(value: Any) -> Any:
        if type(value) is not cls:
            raise ConversionError("", expected, describe(value))
        return dump_model(value, plain)

    return Converter(load, dump, expected=expected)
