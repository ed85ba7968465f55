"""pydantic models travel, checked by pydantic, without being imported by us."""

import datetime as dt
import enum
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Generic, TypeVar
from uuid import UUID

import pydantic
import pytest

from perdure.conversion import ConversionError, compile_converter
from perdure.pydantic_models import is_model_class

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"


class Line(pydantic.BaseModel):
    price: Decimal
    color: Color = Color.RED


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    id: UUID
    at: dt.datetime
    lines: list[Line]
    data: bytes = b"\xff"
    tags: set[str] = set()

    @pydantic.computed_field
    @property
    def total(self) -> Decimal:
        return sum((line.price for line in self.lines), Decimal(0))


class JsonOnly(pydantic.BaseModel):
    wait: dt.timedelta
    place: Path
    counts: dict[int, str]


class FrozenModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)

    x: int


class SetOfModels(pydantic.BaseModel):
    items: set[FrozenModel]


class Aliased(pydantic.BaseModel):
    user_name: str = pydantic.Field(alias="userName")


class Ids(pydantic.RootModel[list[int]]):
    pass


class Holder(pydantic.BaseModel, Generic[T]):
    item: T


class Undumpable(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    lock: object


@pytest.mark.parametrize(
    "model",
    [
        Order(
            id=UUID(int=1), at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC), lines=[Line(price="1.50")], tags={"a"}
        ),
        JsonOnly(wait=dt.timedelta(seconds=90), place=Path("a/b"), counts={1: "a"}),
        SetOfModels(items={FrozenModel(x=1)}),
        Aliased(userName="ada"),
        Ids([1, 2]),
        Holder[int](item=1),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_survives_the_round_trip(model):
    converter = compile_converter(type(model))
    loaded = converter.load(converter.dump(model))
    assert loaded == model
    assert type(loaded) is type(model)


def test_a_model_travels_by_field_names_and_plain_values():
    order = Order(id=UUID(int=1), at=dt.datetime(2026, 1, 1), lines=[Line(price=1)])
    assert compile_converter(Order).dump(order) == {
        "id": UUID(int=1),
        "at": dt.datetime(2026, 1, 1),
        "lines": [{"price": Decimal(1), "color": "red"}],
        "data": b"\xff",
        "tags": set(),
    }
    assert compile_converter(Aliased).dump(Aliased(userName="ada")) == {"user_name": "ada"}
    assert compile_converter(Aliased).load({"userName": "ada"}) == Aliased(userName="ada")


def test_what_pydantic_refuses_is_a_conversion_error_naming_the_place():
    with pytest.raises(ConversionError) as caught:
        compile_converter(list[Order]).load(
            [{"id": UUID(int=1), "at": dt.datetime(2026, 1, 1), "lines": [{"price": "x"}]}]
        )
    assert caught.value.path == "[0].lines[0].price"
    assert "valid for Order (" in caught.value.expected
    assert caught.value.got == "str ('x')"


def test_a_validator_that_breaks_is_a_conversion_error():
    class Broken(pydantic.BaseModel):
        x: int

        @pydantic.field_validator("x")
        @classmethod
        def check(cls, value: int) -> int:
            raise KeyError("oops")

    with pytest.raises(ConversionError, match="oops"):
        compile_converter(Broken).load({"x": 1})


def test_only_models_of_the_very_class_are_dumped():
    for wrong in ({"x": 1}, None, Ids([1])):
        with pytest.raises(ConversionError, match="must be FrozenModel"):
            compile_converter(FrozenModel).dump(wrong)


def test_a_model_that_holds_what_cannot_travel_is_refused():
    with pytest.raises(ConversionError, match="pydantic cannot dump"):
        compile_converter(Undumpable).dump(Undumpable(lock=object()))


def test_in_a_union_the_model_whose_fields_are_all_there_is_chosen():
    class Small(pydantic.BaseModel):
        x: int
        y: int = 0

    converter = compile_converter(Small | FrozenModel | None)
    assert type(converter.load({"x": 1})) is FrozenModel
    assert type(converter.load({"x": 1, "y": 2})) is Small
    assert converter.load(None) is None


def test_other_classes_are_no_models():
    assert is_model_class(Order)
    assert not is_model_class(dict)


def test_pydantic_is_not_imported_by_us():
    script = (
        "import sys, dataclasses\n"
        "from perdure.conversion import compile_converter\n"
        "Point = dataclasses.make_dataclass('Point', [('x', int)])\n"
        "compile_converter(Point | None).dump(Point(1))\n"
        "sys.exit('pydantic' in sys.modules)\n"
    )
    environment = {"PYTHONPATH": str(Path(sys.modules["perdure.conversion"].__file__).parents[1])}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False).returncode == 0
