"""Which methods can be called from outside, what decorators say, and results by annotation."""

import asyncio
import contextlib
import dataclasses
import enum
import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Generic, TypeVar

import pytest

from perdure.errors import InvalidArgument
from perdure.methods import (
    HANDLERS,
    RESERVED,
    Marks,
    blocking,
    callable_methods,
    dump_call,
    interleaved,
    marks_of,
    public,
)
from perdure.object import DurableObject

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int


def table(cls: type) -> dict[str, Any]:
    return callable_methods(cls, DurableObject)


class Helper:
    def helper(self): ...

    @public
    def shared(self): ...

    def hiding(self): ...


class Animal(DurableObject):
    kind = "animal"

    def __init__(self) -> None:
        self.noise = "?"

    class Nested:
        pass

    async def speak(self) -> str:
        return self.noise

    def plain(self): ...

    async def stream(self) -> AsyncIterator[int]:
        yield 1

    def hidden_later(self): ...

    def hiding(self): ...

    def _private(self): ...

    @property
    def size(self) -> int:
        return 1

    @staticmethod
    def static(): ...

    @classmethod
    def of_class(cls): ...

    @functools.cached_property
    def cached(self): ...

    def on_start(self): ...

    def fetch(self, request): ...


class Dog(Helper, Animal):
    hidden_later = None

    async def bark(self): ...

    def speak(self) -> str:
        return "woof"


# --- the table


def test_the_methods_that_a_class_defines_are_callable():
    assert set(table(Animal)) == {"speak", "plain", "stream", "hidden_later", "hiding"}


def test_methods_of_durable_classes_and_declared_ones_of_mixins_are_inherited():
    # `hiding` of the mixin comes first on an instance, and the mixin does not declare it.
    assert set(table(Dog)) == {"bark", "speak", "plain", "stream", "shared"}
    assert table(Dog)["speak"].function is Dog.speak
    assert table(Dog)["plain"].function is Animal.plain
    assert table(Dog)["plain"].title == "Dog.plain()"


@pytest.mark.parametrize(
    "name", ["helper", "kind", "Nested", "size", "static", "of_class", "cached", "_private"]
)
def test_nothing_else_is_callable(name):
    assert name not in table(Dog)


def test_nothing_of_the_base_class_and_no_handler_is_callable():
    handlers = {name: lambda self: None for name in HANDLERS}
    cls = type("Handling", (DurableObject,), handlers)
    assert table(cls) == {}
    assert table(type("Empty", (DurableObject,), {})) == {}
    assert not set(table(Dog)) & (set(vars(DurableObject)) | RESERVED | HANDLERS)


def test_a_mixin_cannot_declare_what_the_base_class_defines_before_it():
    class Base:
        def own(self): ...

    class Late:
        @public
        def own(self): ...

        @public
        def more(self): ...

    class Sample(Base, Late):
        pass

    assert set(callable_methods(Sample, Base)) == {"more"}


def test_a_handler_cannot_be_declared_callable():
    cls = type("Sample", (DurableObject,), {"on_start": public(lambda self: None)})
    with pytest.raises(TypeError, match=r"Sample\.on_start: handlers cannot be called"):
        table(cls)


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_class_must_not_define_what_every_object_has(name):
    for value in (5, property(lambda self: 1), lambda self: 1):
        cls = type("Sample", (DurableObject,), {name: value})
        with pytest.raises(TypeError, match=rf"Sample\.{name}: every object has {name}"):
            table(cls)
    mixin = type("Mixin", (), {name: 1})
    with pytest.raises(TypeError, match=rf"Mixin\.{name}"):
        table(type("Sample", (mixin, DurableObject), {}))


def test_generic_classes_are_read_like_others():
    class Repository(DurableObject, Generic[T]):
        def put(self, item: T) -> T:
            return item

    assert table(Repository)["put"].bind([object], None) == ([object], None)


def test_a_method_knows_how_it_runs():
    methods = table(Animal)
    assert methods["speak"].is_async
    assert not methods["plain"].is_async
    assert methods["stream"].is_generator
    assert not methods["stream"].is_async
    assert methods["plain"].accepts_no_args
    assert repr(methods["plain"]) == "<method Animal.plain()>"


def test_decorated_methods_keep_their_signature_and_their_kind():
    def counted(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    def awaited(function):
        @functools.wraps(function)
        async def wrapper(*args, **kwargs):
            return function(*args, **kwargs)

        return wrapper

    class Sample(DurableObject):
        @counted
        async def passed_through(self, by: int) -> int:
            return by

        @awaited
        def made_async(self, by: int) -> int:
            return by

        @interleaved
        @counted
        @public
        def marked(self): ...

        @contextlib.asynccontextmanager
        async def managed(self):
            yield

    methods = table(Sample)
    for name in ("passed_through", "made_async"):
        assert methods[name].is_async
        with pytest.raises(InvalidArgument, match="must be int"):
            methods[name].bind(["x"], None)
    assert (methods["marked"].interleaved, methods["marked"].public) == (True, True)
    assert not methods["managed"].is_generator
    assert asyncio.run(methods["passed_through"].function(None, 3)) == 3


# --- decorators


def test_decorators_leave_the_function_itself_with_a_mark():
    def function(self): ...

    assert blocking(function) is function
    assert marks_of(function) == Marks(blocking=True, interleaved=False, public=False)
    assert public(interleaved(function)) is function
    assert marks_of(function) == Marks(blocking=True, interleaved=True, public=True)
    assert marks_of(len) == marks_of(None) == Marks(False, False, False)


def test_marks_arrive_at_the_method():
    class Sample(DurableObject):
        @blocking
        def slow(self): ...

        @interleaved
        async def beside(self): ...

    methods = table(Sample)
    assert (methods["slow"].blocking, methods["slow"].interleaved) == (True, False)
    assert (methods["beside"].blocking, methods["beside"].interleaved) == (False, True)


def test_blocking_is_for_plain_functions_only():
    async def coroutine(self): ...

    async def stream(self):
        yield

    def generator(self):
        yield

    @functools.wraps(coroutine)
    def wrapper(self):
        return coroutine(self)

    for function in (coroutine, stream, generator, wrapper):
        with pytest.raises(TypeError, match="@blocking is for plain functions"):
            blocking(function)


@pytest.mark.parametrize("wrong", [staticmethod(len), classmethod(len), property(len), len, 5, Point])
def test_decorators_refuse_what_is_no_function(wrong):
    for decorator in (blocking, interleaved, public):
        with pytest.raises(TypeError, match="marks functions"):
            decorator(wrong)


@pytest.mark.parametrize("wrap", [staticmethod, classmethod, property])
def test_a_marked_function_inside_of_something_else_is_refused(wrap):
    cls = type("Sample", (DurableObject,), {"member": wrap(interleaved(lambda self: None))})
    with pytest.raises(TypeError, match=r"Sample\.member: @blocking, @interleaved and @public mark methods"):
        table(cls)


def test_marks_that_contradict_something_are_refused():
    class Both(DurableObject):
        @blocking
        @interleaved
        def member(self): ...

    class Private(DurableObject):
        @public
        def _member(self): ...

    class Plain(DurableObject):
        def member(self):
            yield

    with pytest.raises(TypeError, match=r"Both\.member\(\) is @blocking and @interleaved"):
        table(Both)
    with pytest.raises(TypeError, match=r"Private\._member: names with a leading underscore"):
        table(Private)
    with pytest.raises(TypeError, match=r"Plain\.member\(\) is a plain generator"):
        table(Plain)


def test_annotations_that_cannot_be_resolved_are_refused():
    class Argument(DurableObject):
        def member(self, x: "Nowhere"): ...  # noqa: F821

    class Result(DurableObject):
        def member(self) -> "Nowhere": ...  # noqa: F821

    with pytest.raises(TypeError, match=r"Argument\.member\(\): argument 'x': .*Nowhere"):
        table(Argument)
    with pytest.raises(TypeError, match=r"Result\.member\(\): result: .*Nowhere"):
        table(Result)


def test_nested_classes_of_a_base_are_resolved_where_the_method_was_written():
    class Base(DurableObject):
        @dataclasses.dataclass
        class Options:
            depth: int

        def start(self, options: "Options") -> "Options":
            return options

    class Derived(Base):
        pass

    assert table(Derived)["start"].bind([{"depth": 1}], None) == ([Base.Options(1)], None)


def test_a_parameter_whose_values_cannot_travel_refuses_the_call_not_the_class():
    class Sample(DurableObject):
        def member(self, lock: threading.Lock): ...

    with pytest.raises(InvalidArgument, match=r"Sample\.member\(\): argument 'lock' .*can travel"):
        table(Sample)["member"].bind([1], None)


# --- results


class Results(DurableObject):
    def number(self) -> int: ...
    def nothing(self) -> None: ...
    def anything(self): ...
    def points(self) -> list[Point]: ...
    def maybe(self) -> Point | None: ...

    async def colors(self) -> AsyncGenerator[Color, None]:
        yield Color.RED

    async def untyped(self):
        yield Color.RED


@pytest.mark.parametrize(
    ("name", "value", "wire"),
    [
        ("number", 5, 5),
        ("nothing", None, None),
        ("points", [Point(1)], [{"x": 1}]),
        ("maybe", Point(1), {"x": 1}),
        ("maybe", None, None),
        ("colors", Color.RED, "red"),
        ("anything", object, object),
        ("untyped", object, object),
    ],
)
def test_results_are_converted_both_ways(name, value, wire):
    method = table(Results)[name]
    assert method.dump_result(value) == wire
    assert method.load_result(wire) == value


def test_a_result_that_is_not_what_the_annotation_says_fails_the_turn():
    methods = table(Results)
    with pytest.raises(TypeError, match=r"Results\.number\(\): its result must be int, not str \('x'\)"):
        methods["number"].dump_result("x")
    with pytest.raises(TypeError, match=r"Results\.points\(\): its result\[0\] must be Point, not dict"):
        methods["points"].dump_result([{"x": 1}])
    with pytest.raises(TypeError, match=r"must be None, not int"):
        methods["nothing"].dump_result(1)


def test_a_result_that_the_client_cannot_read_says_that_the_call_took_effect():
    with pytest.raises(TypeError, match=r"Results\.number\(\) took effect, but its result must be int"):
        table(Results)["number"].load_result("x")


def test_what_the_host_may_skip_is_known_beforehand():
    methods = table(Results)
    assert methods["number"].result_exact is int
    assert methods["nothing"].result_exact is type(None)
    assert methods["points"].result_exact is None
    assert methods["anything"].result_identity
    assert not methods["number"].result_identity


def test_an_async_generator_must_be_annotated_as_one():
    class Sample(DurableObject):
        async def member(self) -> int:
            yield 1

    with pytest.raises(TypeError, match=r"Sample\.member\(\) is an async generator"):
        table(Sample)


# --- calls in the client


def test_a_call_by_class_follows_the_annotations():
    class Sample(DurableObject):
        def member(self, table: dict[int, str]): ...

    assert dump_call(table(Sample)["member"], ({1: "a"},), {}) == ([[[1, "a"]]], {})


def test_a_call_without_the_class_dumps_values_by_their_own_classes():
    assert dump_call(None, (1, Point(2), [Color.RED]), {"p": Point(3)}) == (
        [1, {"x": 2}, ["red"]],
        {"p": {"x": 3}},
    )


def test_a_call_without_the_class_refuses_what_cannot_travel():
    with pytest.raises(InvalidArgument, match=r"argument '2\[0\]' must be plain data"):
        dump_call(None, (1, [object()]), {})
    with pytest.raises(InvalidArgument, match="argument 'lock' must be plain data"):
        dump_call(None, (), {"lock": object()})
