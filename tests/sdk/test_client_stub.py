"""Stubs of the asyncio client: their short way says on the wire what the long way says."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import pytest

from perdure import codec
from perdure.client_stub import ClientMethod, ClientStub
from perdure.errors import InvalidArgument, ShardUnavailable
from perdure.methods import Method, callable_methods
from perdure.object import DurableObject
from perdure.protocol import Item
from perdure.slotmap import Seat, SlotMap
from perdure.stub import Call, Target, make_target

from .caller_scene import Scene, map_of, name_at


@dataclass
class Point:
    x: int


class Board(DurableObject):
    async def paint(self, at: Point, color: str = "red") -> Point:
        return at

    async def watch(self) -> Any:
        yield 1


class Client:
    """Notes which calls took the long way."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.long: list[str] = []

    def bind(self, target: Target, method: str) -> Any:
        bound = ClientMethod(target, method, self, self.scene.caller, Future)  # type: ignore[arg-type]
        return bound if bound.streams else bound.call

    def start(
        self, target: Target, method: str, args: list[Any], kwargs: dict[str, Any] | None, spec: Method | None
    ) -> Call[Any]:
        self.long.append(method)
        future: Future[Any] = Future()
        self.scene.caller.call(target, method, args, kwargs, spec, future)
        return Call(future)

    def start_stream(self, target: Target, method: str, *_: Any) -> Any:
        return f"a stream of {method}"

    def refuse(self, error: Exception) -> Call[Any]:
        future: Future[Any] = Future()
        future.set_exception(error)
        return Call(future)


@pytest.fixture
def scene() -> Scene:
    return Scene(map_of(1, 1, 1))


@pytest.fixture
def client(scene: Scene) -> Client:
    return Client(scene)


def stub_of(client: Client, name: str, cls: type | None = None, timeout: float | None = None) -> Any:
    methods = callable_methods(cls, DurableObject) if cls is not None else {}
    return ClientStub(make_target("Counter", name, timeout, methods), client)


def items(scene: Scene) -> list[Item]:
    scene.flush()
    return [item for sent in scene.sent for item in sent.items]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((1,), {}),
        ((None, True, -5, 2**80, 0.5, "ä", b"y"), {}),
        ((), {"by": 5}),
        (("x",), {"by": 2**80, "text": "y"}),
        (tuple(range(40)), {}),
    ],
)
@pytest.mark.parametrize("timeout", [None, 0.0004, 2.5])
def test_a_simple_call_says_the_same_as_on_the_long_way(
    scene: Scene, client: Client, args: Any, kwargs: Any, timeout: float | None
) -> None:
    stub = stub_of(client, name_at(0), timeout=timeout)
    stub.paint(*args, **kwargs)
    target = make_target("Counter", name_at(0), timeout, {})
    scene.caller.call(target, "paint", list(args), kwargs or None, None, Future())
    short, long = items(scene)
    assert not client.long
    assert (short.sequence, long.sequence) == (1, 2)
    assert short[1:] == long[1:]


@pytest.mark.parametrize(
    ("args", "kwargs", "sent"),
    [
        ((Point(1),), {}, ([{"x": 1}], None)),
        (([1, {"a": {2}}],), {}, ([[1, {"a": {2}}]], None)),
        ((), {"at": Point(2)}, ([], {"at": {"x": 2}})),
        (((1, 2),), {"at": [3]}, ([(1, 2)], {"at": [3]})),
    ],
)
def test_other_values_take_the_long_way(
    scene: Scene, client: Client, args: Any, kwargs: Any, sent: Any
) -> None:
    stub_of(client, "a").paint(*args, **kwargs)
    (item,) = items(scene)
    assert client.long == ["paint"]
    assert (item.args, item.kwargs) == sent


def test_values_are_converted_by_the_annotations_of_a_known_class(scene: Scene, client: Client) -> None:
    stub = stub_of(client, "a", Board)
    stub.paint(Point(1), color="blue")
    stub.paint(at=5, color="blue")  # whether it fits is the worker's to say
    assert [(item.args, item.kwargs) for item in items(scene)] == [
        ([{"x": 1}], {"color": "blue"}),
        ([], {"at": 5, "color": "blue"}),
    ]


@pytest.mark.parametrize("argument", ["\ud800", object(), [1, {2: 3}], {1: 2}])
def test_what_cannot_be_sent_is_told_as_on_the_long_way(scene: Scene, client: Client, argument: Any) -> None:
    stub = stub_of(client, "a")
    for call in (stub.paint(argument), stub.paint(at=argument), stub.paint(1, color=argument)):
        with pytest.raises(InvalidArgument, match=r"Counter\.paint\(\): an argument cannot be sent"):
            call._future.result(0)
    assert not items(scene)


def test_a_streaming_method_is_started_as_one(scene: Scene, client: Client) -> None:
    assert stub_of(client, "a", Board).watch() == "a stream of watch"


def test_calls_on_one_stub_leave_in_call_order_whatever_way_they_take(scene: Scene, client: Client) -> None:
    stub = stub_of(client, "a")
    for number in range(20):
        stub.paint(*([number] if number % 3 else [[number]]))
    assert [item.args for item in items(scene)] == [[n] if n % 3 else [[n]] for n in range(20)]


def test_results_and_their_conversion_reach_the_call(scene: Scene, client: Client) -> None:
    plain, typed = stub_of(client, name_at(0)), stub_of(client, name_at(0), Board)
    first, second = plain.paint(1), typed.paint(1)
    scene.flush()
    scene.replies([1, 0, {"x": 1}], [2, 0, {"x": 2}])
    assert (first._future.result(0), second._future.result(0)) == ({"x": 1}, Point(2))
    scene.assert_nothing_is_kept()


def test_a_stub_goes_where_the_newest_map_says(scene: Scene, client: Client) -> None:
    stub = stub_of(client, name_at(0))
    stub.paint()
    scene.flush()
    scene.caller.on_map(SlotMap(2, (range(512, 1024), range(512)), (Seat(1, "ipc://a"), Seat(1, "ipc://b"))))
    stub.paint()
    stub.paint()
    scene.flush()
    assert [(sent.worker, len(sent.items)) for sent in scene.sent] == [(0, 1), (1, 2)]


def test_a_stub_may_be_used_before_the_map_has_come() -> None:
    scene = Scene()
    stub_of(Client(scene), name_at(1)).paint(1)
    scene.flush()
    scene.caller.on_map(map_of(1, 1, 1))
    scene.flush()
    assert [(sent.worker, sent.items[0].args) for sent in scene.sent] == [(1, [1])]


def test_a_call_that_is_sent_again_leaves_the_time_of_later_calls_alone(scene: Scene, client: Client) -> None:
    stub = stub_of(client, name_at(0), timeout=10.0)
    stub.paint()
    scene.flush()
    scene.clock.now += 4.0
    scene.stale(scene.sent[0], map_of(2, 1, 1))
    stub.paint()
    again, later = items(scene)[1:]
    assert (again.sequence, again.timeout_ms) == (1, 6_000)
    assert (later.sequence, later.timeout_ms) == (2, 10_000)
    assert codec.encode(list(again[1:7])) == codec.encode(list(later[1:7]))


def test_a_closed_client_takes_no_call(scene: Scene, client: Client) -> None:
    stub = stub_of(client, name_at(0))
    scene.caller.close()
    for call in (stub.paint(), stub.paint(1), stub.paint([1])):
        with pytest.raises(ShardUnavailable, match="this client is closed"):
            call._future.result(0)
    assert not items(scene)


def test_a_disowned_caller_raises_at_once(scene: Scene, client: Client) -> None:
    stub = stub_of(client, name_at(0))
    scene.caller.disown("another process's")
    for args in ((), (1,), ([1],)):
        with pytest.raises(RuntimeError, match="another process's"):
            stub.paint(*args)
    assert not scene.caller.pending
    assert not scene.flushes_wanted
