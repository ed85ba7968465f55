"""What the worker knows of each user class: namespace, callable methods, durable fields.  Pure.

Names that come from outside are looked up in these tables and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from perdure.fields import DurableField, collect_fields
from perdure.methods import Method, callable_methods
from perdure.object import DurableObject, namespace_of
from perdure_storage import keys

__all__ = ["ObjectClass", "register"]


class ObjectClass:
    """One user class as the host needs it."""

    __slots__ = ("begin", "cls", "field_rows", "fields", "methods", "namespace", "row_heads")

    def __init__(self, cls: type[DurableObject]) -> None:
        self.cls = cls
        self.namespace = namespace_of(cls)
        self.methods: Mapping[str, Method] = callable_methods(cls, DurableObject)
        self.fields: tuple[DurableField, ...] = tuple(collect_fields(cls))
        self.field_rows = tuple(keys.FIELD + field.name.encode() for field in self.fields)
        """The tail of each field's key on disk, parallel to `fields`."""
        self.row_heads: list[bytes] = []
        """By slot, how the keys of all rows of an object of this class begin, up to its id; see `place`."""
        self.begin = _beginning(cls)
        """What runs before the first turn of an incarnation; None where there is nothing of the user's."""
        for method in self.methods.values():
            if method.interleaved:
                raise TypeError(
                    f"{cls.__qualname__}.{method.name} is @interleaved; "
                    "interleaved methods are not supported by this version"
                )

    def place(self, slot_count: int) -> None:
        """Called once by the host, which knows how many slots there are."""
        nobody = bytes(keys.ID_BYTES)
        self.row_heads = [
            keys.object_prefix(slot, self.namespace, nobody)[: -len(nobody)] for slot in range(slot_count)
        ]


def _beginning(cls: type[DurableObject]) -> Callable[[Any], Any] | None:
    has_init = cls.__init__ is not object.__init__
    has_on_start = cls.on_start is not DurableObject.on_start

    def begin(instance: Any) -> Any:
        if has_init:
            instance.__init__()
        return instance.on_start() if has_on_start else None

    return begin if has_init or has_on_start else None


def register(classes: Iterable[type[DurableObject]]) -> dict[str, ObjectClass]:
    """Tables by namespace; raises `TypeError` when two classes claim one namespace or a class is wrong."""
    table: dict[str, ObjectClass] = {}
    for cls in classes:
        entry = ObjectClass(cls)
        other = table.get(entry.namespace)
        if other is not None and other.cls is not cls:
            raise TypeError(
                f"{cls.__module__}.{cls.__qualname__} and {other.cls.__module__}.{other.cls.__qualname__} "
                f"both use the namespace {entry.namespace!r}; give one of them namespace=..."
            )
        table[entry.namespace] = entry
    return table
