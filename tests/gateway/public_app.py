"""Classes whose public methods take and give all that has a form in JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, NamedTuple, TypedDict
from uuid import UUID

from pydantic import BaseModel

from perdure import DurableObject, public, register_exception


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Line:
    price: Decimal
    when: datetime
    tags: set[str] = field(default_factory=set)
    children: list[Line] = field(default_factory=list)


@dataclass
class Order:
    line: Line
    colour: Colour
    count: int


class Place(TypedDict, total=False):
    on: date


class Point(NamedTuple):
    x: int
    y: float


class Person(BaseModel):
    name: str
    born: date | None = None


@register_exception
class SoldOut(Exception):
    """The user's own."""


class Mixin:
    @public
    def mixed(self) -> str:
        return "mixed"

    def hidden(self) -> str:
        return "hidden"


class Shop(DurableObject, Mixin):
    @public
    async def order(self, line: Line, colour: Colour = Colour.RED, *, count: int = 1) -> Order:
        """Orders something.

        The second paragraph says more.
        """
        return Order(line, colour, count)

    @public
    async def scalars(self, day: date, key: UUID, data: bytes, ratio: float, flag: bool | None) -> list[Any]:
        return [day, key, data, ratio, flag]

    @public
    async def containers(
        self, pair: tuple[int, UUID], many: dict[str, date], keyed: dict[int, str], point: Point, place: Place
    ) -> tuple[tuple[int, UUID], dict[str, date], dict[int, str], Point, Place]:
        return pair, many, keyed, point, place

    @public
    async def person(self, person: Person) -> Person:
        return person

    @public
    async def either(self, value: int | datetime | Literal["now"] | list[UUID]) -> Any:
        return value

    @public
    async def anything(self, *values: Any, **named: Any) -> Any:
        return [list(values), named]

    @public
    async def sold_out(self) -> None:
        raise SoldOut("no more of it")

    @public
    async def broken(self) -> None:
        raise KeyError("inside")

    @public
    async def count(self, to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @public
    async def events(self, most: int) -> AsyncIterator[int]:
        if most == 0:  # an event that never comes
            await asyncio.get_running_loop().create_future()
        for number in range(most):
            yield number

    async def private(self) -> str:
        return "private"
