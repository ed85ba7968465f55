"""Arity, names and types of a method's arguments, in the worker and in the client."""

import dataclasses
import datetime as dt
import enum
import inspect
import itertools
import threading
from typing import Any

import pytest

from perdure.conversion import Compiler
from perdure.errors import InvalidArgument
from perdure.parameters import Parameters


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


@dataclasses.dataclass
class Chain:
    next: "Chain | None" = None


class Sample:
    def increment(self, by: int = 1) -> int: ...
    def nothing(self): ...
    def put(self, key: str, value): ...
    def move(self, point: Point, color: Color = Color.RED): ...
    def only_position(self, x: int, /, y: int = 0): ...
    def only_keyword(self, *, x: int, y: int = 0): ...
    def rest(self, first: int, *others: Color, last: int = 0): ...
    def extra(self, a: int = 0, **more: Color): ...
    def position_and_extra(self, x: int, /, **more: Any): ...
    def chained(self, chain: Chain): ...
    def ratio(self, by: float): ...
    def three(self, x: int, y: int, a: int = 0): ...
    def loose(self, things: list[Any], table: dict[int, str]): ...


def parameters(name: str, owner: type = Sample) -> Parameters:
    return Parameters(getattr(owner, name), owner, f"Sample.{name}()", Compiler())


RED = Color.RED
GOOD = [
    ("increment", [], None, [], None),
    ("increment", [2], {}, [2], None),
    ("increment", [], {"by": 2}, [], {"by": 2}),
    ("nothing", [], None, [], None),
    ("put", ["k", object], None, ["k", object], None),
    ("put", ["k"], {"value": 1}, ["k"], {"value": 1}),
    ("move", [{"x": 1}], None, [Point(1)], None),
    ("move", [{"x": 1}, "red"], None, [Point(1), RED], None),
    ("move", [], {"color": "red", "point": {"x": 1}}, [], {"color": RED, "point": Point(1)}),
    ("only_position", [1], {"y": 2}, [1], {"y": 2}),
    ("only_keyword", [], {"x": 1}, [], {"x": 1}),
    ("rest", [1], None, [1], None),
    ("rest", [1, "red", "red"], {"last": 1}, [1, RED, RED], {"last": 1}),
    ("extra", [], {"a": 1, "b": "red"}, [], {"a": 1, "b": RED}),
    ("position_and_extra", [1], {"x": 2, "self": 3}, [1], {"x": 2, "self": 3}),
    ("ratio", [3], None, [3.0], None),
]
BAD = [
    ("increment", [1, 2], None, "Sample.increment() takes at most 1 argument, 2 were given"),
    ("nothing", [1], None, "Sample.nothing() takes no arguments, 1 were given"),
    ("only_keyword", [1], {"x": 1}, "Sample.only_keyword() takes no arguments by position, 1 were given"),
    ("increment", [], {"foo": 1}, "Sample.increment() got an unexpected argument 'foo'"),
    ("increment", [1], {"by": 1}, "Sample.increment() got several values for argument 'by'"),
    ("increment", ["x"], None, "Sample.increment(): argument 'by' must be int, not str ('x')"),
    ("increment", [True], None, "Sample.increment(): argument 'by' must be int, not bool (True)"),
    ("increment", [None], None, "Sample.increment(): argument 'by' must be int, not None"),
    ("increment", [], {"by": 1.0}, "Sample.increment(): argument 'by' must be int, not float (1.0)"),
    ("increment", [], {"self": 1}, "Sample.increment() got an unexpected argument 'self'"),
    ("extra", [], {"self": "red"}, "Sample.extra() got an unexpected argument 'self'"),
    ("put", [], None, "Sample.put() misses the arguments 'key', 'value'"),
    ("put", ["k"], None, "Sample.put() misses the argument 'value'"),
    ("put", [], {"value": 1}, "Sample.put() misses the argument 'key'"),
    ("only_position", [], {"x": 1}, "Sample.only_position(): argument 'x' can only be given by position"),
    ("only_position", [], None, "Sample.only_position() misses the argument 'x'"),
    ("only_keyword", [], None, "Sample.only_keyword() misses the argument 'x'"),
    ("only_keyword", [], {"y": 1}, "Sample.only_keyword() misses the argument 'x'"),
    ("position_and_extra", [], {"x": 1}, "Sample.position_and_extra() misses the argument 'x'"),
    (
        "rest",
        [1, "red", "green"],
        None,
        "Sample.rest(): argument 'others[1]' must be Color, not str ('green')",
    ),
    ("extra", [], {"b": "green"}, "Sample.extra(): argument 'b' must be Color, not str ('green')"),
    ("move", [{"x": "1"}], None, "Sample.move(): argument 'point.x' must be int, not str ('1')"),
    (
        "move",
        [{"y": 1.0}],
        None,
        "Sample.move(): argument 'point' must be Point, not dict without the field 'x'",
    ),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "bound_args", "bound_kwargs"), GOOD)
def test_good_arguments_are_converted(name, args, kwargs, bound_args, bound_kwargs):
    assert parameters(name).bind(list(args), kwargs) == (bound_args, bound_kwargs)


@pytest.mark.parametrize(("name", "args", "kwargs", "message"), BAD)
def test_bad_arguments_are_refused_with_the_reason(name, args, kwargs, message):
    with pytest.raises(InvalidArgument) as caught:
        parameters(name).bind(args, kwargs)
    assert str(caught.value) == message


NAMES = [name for name in vars(Sample) if not name.startswith("_")]


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_arity_and_names_are_judged_as_python_does(name, typed):
    # Every parameter an int, so that the comparisons that skip conversion are put to the test as well.
    original = getattr(Sample, name)
    signature = inspect.signature(original)
    copy = type(original)(original.__code__, original.__globals__, name, original.__defaults__)
    copy.__kwdefaults__ = original.__kwdefaults__
    copy.__annotations__ = dict.fromkeys([*signature.parameters][1:], int) if typed else {}
    bind = parameters("method", type("Copied", (), {"method": copy})).bind
    names = [*signature.parameters, "foo"]
    for count, size in itertools.product(range(5), range(len(names) + 1)):
        for keywords in itertools.combinations(names, size):
            kwargs = dict.fromkeys(keywords, 0)
            try:
                signature.bind("self", *([0] * count), **kwargs)
            except TypeError:
                with pytest.raises(InvalidArgument):
                    bind([0] * count, dict(kwargs))
            else:
                assert bind([0] * count, dict(kwargs)) == ([0] * count, kwargs or None)


def test_bottomless_nesting_is_refused_not_a_crash():
    wire: dict[str, Any] = {}
    for _ in range(5000):
        wire = {"next": wire}
    with pytest.raises(InvalidArgument, match="nested too deep"):
        parameters("chained").bind([wire], None)


@dataclasses.dataclass(frozen=True)
class Unruly:
    x: int

    def __hash__(self) -> int:
        raise ZeroDivisionError("in __hash__")


def test_whatever_a_users_class_raises_while_it_is_built_is_an_invalid_argument():
    class Sets:
        def member(self, items: set[Unruly]): ...

    with pytest.raises(
        InvalidArgument, match=r"argument 'items' must be valid.*ZeroDivisionError: in __hash__"
    ):
        parameters("member", Sets).bind([[{"x": 1}]], None)


@pytest.mark.parametrize("kwargs", [5, ["by", 1], "by", (("by", 1),)])
def test_keyword_arguments_that_are_no_dict_are_refused(kwargs):
    with pytest.raises(InvalidArgument, match="keyword arguments must be a dict"):
        parameters("increment").bind([], kwargs)


def test_whether_a_call_without_arguments_is_right_is_known_beforehand():
    answers = {name: parameters(name).accepts_none_given for name in NAMES}
    assert {name for name, right in answers.items() if right} == {"increment", "nothing", "extra"}


def test_a_function_without_self_is_refused():
    class Selfless:
        def method(): ...
        def keyword(*, self): ...
        def swallowed(*args: int): ...

    for name in ("method", "keyword"):
        with pytest.raises(TypeError, match="takes no self"):
            parameters(name, Selfless)
    assert parameters("swallowed", Selfless).bind([1, 2], None) == ([1, 2], None)


def test_an_annotation_that_makes_no_sense_names_method_and_argument():
    @dataclasses.dataclass
    class Seeded:
        seed: dataclasses.InitVar[int]

    class Wrong:
        def method(self, seeded: Seeded): ...

    with pytest.raises(TypeError, match=r"Sample\.method\(\): argument 'seeded': .*InitVar"):
        parameters("method", Wrong)


# --- in the client


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "plain_args", "plain_kwargs"),
    [
        ("increment", (), {}, [], {}),
        ("increment", (2,), {}, [2], {}),
        ("increment", ("x",), {"foo": 1}, ["x"], {"foo": 1}),
        ("increment", (1, 2, Color.RED), {}, [1, 2, "red"], {}),
        ("move", (Point(1, 2), Color.RED), {}, [{"x": 1, "y": 2.0}, "red"], {}),
        ("move", ({"x": 1},), {"color": "red"}, [{"x": 1}], {"color": "red"}),
        ("move", ([Point(1)],), {"color": {Color.RED}}, [[{"x": 1, "y": 0.0}]], {"color": {"red"}}),
        ("put", ("k", Point(1)), {}, ["k", {"x": 1, "y": 0.0}], {}),
        ("rest", (1, Color.RED), {"last": Color.RED}, [1, "red"], {"last": "red"}),
        ("extra", (), {"b": Color.RED, "c": [Color.RED]}, [], {"b": "red", "c": ["red"]}),
        ("loose", ([Point(1)], {1: "a"}), {}, [[{"x": 1, "y": 0.0}], [[1, "a"]]], {}),
    ],
)
def test_arguments_become_plain_without_being_judged(name, args, kwargs, plain_args, plain_kwargs):
    assert parameters(name).dump(args, kwargs) == (plain_args, plain_kwargs)


def test_what_the_client_dumps_the_worker_binds():
    sample = parameters("move")
    args, kwargs = sample.dump((Point(1, 2.5),), {"color": Color.RED})
    assert sample.bind(args, kwargs) == ([Point(1, 2.5)], {"color": Color.RED})


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, threading.Lock()), {}, r"Sample\.put\(\): argument 'value' must be plain data.*not lock"),
        ((), {"key": [object()]}, r"Sample\.put\(\): argument 'key\[0\]' must be plain data"),
        ((1, 2, object()), {}, r"Sample\.put\(\): argument 'args\[0\]' must be plain data"),
    ],
)
def test_what_cannot_travel_is_refused_before_it_is_sent(args, kwargs, message):
    with pytest.raises(InvalidArgument, match=message):
        parameters("put").dump(args, kwargs)


def test_cycles_are_refused_before_they_are_sent():
    chain = Chain()
    chain.next = chain
    cycle: list[Any] = []
    cycle.append(cycle)
    for name, value in (("chained", chain), ("ratio", cycle)):
        with pytest.raises(InvalidArgument, match="cycles"):
            parameters(name).dump((value,), {})


def test_datetimes_and_other_scalars_pass_unchanged():
    moment = dt.datetime(2026, 1, 1)
    assert parameters("put").dump((moment,), {})[0][0] is moment
