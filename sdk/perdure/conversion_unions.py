"""Converters of ``Union``, ``Optional`` and ``X | Y``.

The rule: members are tried in the order in which they are written; the first that fits exactly wins,
else the first that fits when an int may be taken for a float, else the first that fits when defaults
may fill missing fields too.  So an int stays an int for ``float | int``, and of two dataclasses the one
whose fields are all there is chosen.  An enum of str values must stand before ``str`` to be loaded as
the enum.
Runs in every process that has the user's class.
"""

from __future__ import annotations

import enum
from typing import Any

from perdure.converter import ConversionError, Converter, describe
from perdure.plain import SCALARS

__all__ = ["Fit", "union_of"]


class Fit(enum.IntEnum):
    """How a value may fit a member of a union, the strictest first."""

    EXACT = 0
    """As it is, with every field there."""
    COMPLETE = 1
    """Every field is there, and an int may stand for a float."""
    ANY = 2
    """Also with fields missing that have defaults: how annotations outside of unions are taken."""

    @staticmethod
    def up_to(loosest: Fit) -> list[Fit]:
        """The ways to fit from the strictest to the given one."""
        return [fit for fit in Fit if fit <= loosest]


def union_of(ladder: list[list[Converter]]) -> Converter:
    """The union of members; each rung holds all of them, compiled for one `Fit`, the strictest first."""
    exact_members, members = ladder[0], ladder[-1]
    expected = " | ".join(dict.fromkeys(member.expected for member in members))
    others_than_none = [member for member in members if member.exact is not type(None)]
    alone = others_than_none[0] if len(others_than_none) == 1 else None
    attempts = [member for rung in ladder for member in rung]
    loaded_as_they_are = _loaded_as_they_are(exact_members)
    dumped_as_they_are = frozenset(member.exact for member in exact_members) & SCALARS

    def refuse(value: Any, error: ConversionError | None) -> ConversionError:
        # Of an Optional the member's own error says more than "must be Order | None".
        if alone is not None and error is not None and error.path:
            return error
        return ConversionError("", expected, error.got if alone is not None and error else describe(value))

    def load(value: Any) -> Any:
        kind = type(value)
        if kind in loaded_as_they_are:
            return value
        last = None
        for member in attempts:
            if member.wire is not None and kind not in member.wire:
                continue
            try:
                return member.load(value)
            except ConversionError as error:
                last = error
        raise refuse(value, last)

    def dump(value: Any) -> Any:
        if type(value) in dumped_as_they_are:
            return value
        last = None
        for member in attempts:
            if member.exact is type(None):
                continue
            try:
                return member.dump(value)
            except ConversionError as error:
                last = error
        raise refuse(value, last)

    wire: frozenset[type] | None = frozenset()
    for member in members:
        wire = None if wire is None or member.wire is None else wire | member.wire
    hashable = all(member.hashable for member in members)
    return Converter(load, dump, expected=expected, wire=wire, hashable=hashable)


def _loaded_as_they_are(members: list[Converter]) -> frozenset[type]:
    """Scalar types that no member written earlier would turn into something else."""
    kinds = set()
    for index, member in enumerate(members):
        taken_before = any(
            earlier.wire is None or member.exact in earlier.wire for earlier in members[:index]
        )
        if member.exact is not None and member.exact in SCALARS and not taken_before:
            kinds.add(member.exact)
    return frozenset(kinds)
