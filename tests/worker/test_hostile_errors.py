"""Exceptions of users' classes that do harm when they are looked at: each fails its own call and no other."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import DurableObject, NotExecuted, RemoteError, durable, interleaved, register_exception
from perdure.converter import describe_error
from perdure.errors import PerdureError, StorageError
from worker.host_scene import Scene, take_time

ENDINGS = (SystemExit, KeyboardInterrupt, asyncio.CancelledError, RuntimeError)


def shown_by(raised: type[BaseException], base: Any = Exception) -> Any:
    class Unshowable(base):  # type: ignore[misc]
        def __str__(self) -> str:
            raise raised

        def __repr__(self) -> str:
            raise raised

    return Unshowable


def without_class(raised: type[BaseException]) -> type[Exception]:
    class Faceless(Exception):
        @property
        def __class__(self) -> Any:
            raise raised

    return Faceless


def without_attributes(raised: type[BaseException]) -> type[Exception]:
    class Closed(Exception):
        def __getattribute__(self, name: str) -> Any:
            raise raised

    return Closed


def without_name(raised: type[BaseException]) -> type[Exception]:
    class Kind(type):
        def __getattribute__(cls, name: str) -> Any:
            if name == "__qualname__":
                raise raised
            return type.__getattribute__(cls, name)

    class Nameless(Exception, metaclass=Kind):
        pass

    return Nameless


def with_bad_state(raised: type[BaseException]) -> type[Exception]:
    class Value:
        @property
        def __class__(self) -> Any:
            raise raised

    class Stateful(Exception):
        def __init__(self) -> None:
            super().__init__(Value())
            self.value = Value()

    return register_exception(name="tests.Stateful")(Stateful)


HOSTILE = [
    pytest.param(make(raised), id=f"{make.__name__}-{raised.__name__}")
    for make in (shown_by, without_class, without_attributes, without_name, with_bad_state)
    for raised in ENDINGS
]


class Plan:
    error: Any = Exception


@dataclass
class Argument:
    """Cannot be made with 0, nor be read once it is 1."""

    x: int

    def __post_init__(self) -> None:
        if object.__getattribute__(self, "x") == 0:
            raise Plan.error

    def __getattribute__(self, name: str) -> Any:
        if name == "x" and object.__getattribute__(self, "x") == 1:
            raise Plan.error
        return object.__getattribute__(self, name)


class Thing(DurableObject):
    value: int = durable(0)

    def increment(self) -> int:
        self.value += 1
        return self.value

    async def fail(self) -> None:
        self.value = 100
        raise Plan.error

    async def fail_later(self) -> None:
        self.value = 100
        await take_time(1)
        raise Plan.error

    @interleaved
    async def fail_beside(self) -> None:
        self.value = 100
        raise Plan.error

    @interleaved
    async def fail_beside_later(self) -> None:
        await take_time(1)
        self.value = 100
        raise Plan.error

    def take(self, argument: Argument) -> None:
        pass


class Starting(Thing):
    async def on_start(self) -> None:
        await take_time(1)
        raise Plan.error


@pytest.mark.parametrize("error", HOSTILE)
@pytest.mark.parametrize("method", ["fail", "fail_later", "fail_beside", "fail_beside_later"])
def test_whatever_an_exception_does_when_it_is_looked_at_its_call_alone_fails(
    make_scene: Any, method: str, error: type[Exception]
) -> None:
    Plan.error = error
    scene: Scene = make_scene(Thing)
    with scene.one_message():
        before = scene.start(Thing, "a", "increment")
        failing = scene.start(Thing, "a", method)
        behind = scene.start(Thing, "a", "increment")
        neighbour = scene.start(Thing, "b", "increment")
    scene.advance(2)
    scene.commit()
    assert isinstance(failing.error(), Exception)
    assert (before.result(), behind.result(), neighbour.result()) == (1, 2, 1)
    assert scene.call(Thing, "a", "increment") == 3
    assert scene.resident(Thing, "a").turn is None
    assert scene.resident(Thing, "a").inside is None
    assert scene.host.progress == {}


@pytest.mark.parametrize("error", HOSTILE)
def test_a_start_that_fails_with_such_an_exception_answers_every_call_that_waits(
    make_scene: Any, error: type[Exception]
) -> None:
    Plan.error = error
    scene: Scene = make_scene(Starting, Thing)
    with scene.one_message():
        waiting = [scene.start(Starting, "a", "increment") for _ in range(3)]
        neighbours = [scene.start(Thing, name, "increment") for name in "bc"]
    scene.advance(2)
    scene.commit()
    assert all(isinstance(call.error(), Exception) for call in waiting)
    assert [call.result() for call in neighbours] == [1, 1]
    again = scene.start(Starting, "a", "increment")
    scene.advance(2)
    assert isinstance(again.error(), Exception)


@pytest.mark.parametrize("error", HOSTILE)
def test_an_argument_whose_class_raises_such_an_exception_is_refused_alone(
    make_scene: Any, error: type[Exception]
) -> None:
    Plan.error = error
    scene: Scene = make_scene(Thing)
    with scene.one_message():
        refused = scene.start(Thing, "a", "take", {"x": 0})
        neighbour = scene.start(Thing, "b", "increment")
        behind = scene.start(Thing, "a", "increment")
    scene.commit()
    assert isinstance(refused.error(), NotExecuted)
    assert (neighbour.result(), behind.result()) == (1, 1)


@pytest.mark.parametrize("base", [PerdureError, NotExecuted, StorageError])
def test_an_error_of_ours_that_a_user_has_extended_cannot_keep_its_answer_from_leaving(
    make_scene: Any, base: type[PerdureError]
) -> None:
    class Extended(base):  # type: ignore[misc, valid-type]
        def __str__(self) -> str:
            raise SystemExit

    Plan.error = Extended
    scene: Scene = make_scene(Starting, Thing)
    with scene.one_message():
        starting = scene.start(Starting, "a", "increment")
        failing = scene.start(Thing, "b", "fail")
        refused = scene.start(Thing, "b", "take", {"x": 0})
        neighbour = scene.start(Thing, "b", "increment")
    scene.advance(2)
    scene.commit()
    assert isinstance(starting.error(), PerdureError)
    assert isinstance(failing.error(), RemoteError)
    assert isinstance(refused.error(), NotExecuted)
    assert neighbour.result() == 1


def test_a_value_that_cannot_be_saved_nor_its_error_be_shown_stays_out_of_the_log_and_harms_nobody(
    make_scene: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Plan.error = shown_by(SystemExit, BaseException)  # of another kind conversion makes its own error
    scene: Scene = make_scene(Held)
    scene.call(Held, "a", "leave_behind")
    scene.call(Held, "b", "leave_behind")
    scene.advance(60)
    assert scene.do(scene.host.evict_idle) == 2
    assert not scene.is_live(Held, "a")
    assert not scene.is_live(Held, "b")
    assert "cannot be saved" in caplog.text


class Held(DurableObject):
    stray: Argument = durable(default_factory=lambda: Argument(2))

    async def leave_behind(self) -> None:
        asyncio.get_running_loop().call_soon(setattr, self, "stray", Argument(1))


@register_exception
class Deep(Exception):
    pass


class Digging(DurableObject):
    async def dig(self, depth: int) -> None:
        value: list[Any] = []
        for _ in range(depth):
            value = [value]
        raise Deep("deep", value)


def test_state_that_is_nested_as_deep_as_a_message_may_be_keeps_no_answer_back(make_scene: Any) -> None:
    scene: Scene = make_scene(Digging)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5_000)  # as some applications do; with Python's own such state stays behind
    try:
        with scene.one_message():
            digging = scene.start(Digging, "a", "dig", 1_023)
            neighbour = scene.start(Digging, "b", "dig", 3)
    finally:
        sys.setrecursionlimit(limit)
    assert type(digging.error()) is RemoteError
    assert type(neighbour.error()) is Deep


@pytest.mark.parametrize("error", HOSTILE)
def test_the_description_of_an_error_never_raises_and_can_be_encoded(error: type[Exception]) -> None:
    assert describe_error(error()).encode()


def test_the_description_of_an_error_is_plain_text_whatever_str_has_given() -> None:
    class Text(str):
        def __getitem__(self, _: Any) -> Any:
            raise SystemExit

        def __format__(self, _: Any) -> Any:
            raise SystemExit

    class Odd(Exception):
        def __str__(self) -> str:
            return Text("odd \ud800")

    assert describe_error(Odd()).endswith("Odd: odd ?")
