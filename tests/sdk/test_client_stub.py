"""Stubs of the asyncio client: their short way says on the wire what the long way says."""

from __future__ import annotations

import copy
import weakref
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import pytest

from perdure import codec
from perdure.client_stub import ClientStubs
from perdure.errors import InvalidArgument, ShardUnavailable
from perdure.limits import Limits
from perdure.methods import Method, callable_methods
from perdure.object import DurableObject
from perdure.protocol import Item
from perdure.slotmap import Seat, SlotMap
from perdure.stub import Call, Target, make_target

from .caller_scene import Scene, map_of, name_at

LIMITS = Limits()


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

    def __init__(self, scene: Scene, limits: Limits = LIMITS) -> None:
        self.scene = scene
        self.long: list[str] = []
        self.stubs = ClientStubs(self, lambda: (scene.caller, Future), limits)  # type: ignore[arg-type, return-value]

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
    return client.stubs.stub(cls or "Counter", make_target("Counter", name, timeout, methods))


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


def test_stubs_of_one_class_share_its_methods_and_others_do_not(scene: Scene, client: Client) -> None:
    one, other, typed = stub_of(client, "a"), stub_of(client, "b"), stub_of(client, "a", Board)
    one.paint(1)
    assert type(one) is type(other)
    assert "paint" in vars(type(other))
    assert "paint" not in vars(type(typed))
    other.paint(2)
    typed.paint(Point(3))
    assert [(item.name, item.args) for item in items(scene)] == [("a", [1]), ("b", [2]), ("a", [{"x": 3}])]


def test_classes_and_methods_beyond_their_limits_work_and_are_not_kept(scene: Scene) -> None:
    client = Client(scene, replace(LIMITS, stub_classes_max=2, stub_methods_max=8))
    stubs = [client.stubs.stub(f"Space{n}", make_target(f"Space{n}", "a", None, {})) for n in range(5)]
    for stub in stubs:
        for method in range(10):
            getattr(stub, f"paint{method}")(method)
    sent = [(item.namespace, item.method, item.args) for item in items(scene)]
    assert sent == [(f"Space{n}", f"paint{m}", [m]) for n in range(5) for m in range(10)]
    assert len(client.stubs._classes) <= 2
    assert all(len(vars(type(stub))) <= 8 for stub in stubs)


@pytest.mark.parametrize("name", ["mro", "increment", "route", "target", "count", "sender", "map"])
def test_every_public_name_is_a_method_of_a_client_s_stub(scene: Scene, client: Client, name: str) -> None:
    stub = stub_of(client, "a")
    for _ in range(2):
        getattr(stub, name)(1)
    assert [(item.method, item.args) for item in items(scene)] == [(name, [1]), (name, [1])]


@pytest.mark.parametrize("name", ["_private", "__secret", "__len__", "_perdure_nothing"])
def test_a_name_with_an_underscore_is_no_method_of_it(client: Client, name: str) -> None:
    with pytest.raises(AttributeError, match="only public methods"):
        getattr(stub_of(client, "a"), name)


def test_nothing_can_be_set_in_a_client_s_stub_and_a_copy_is_the_same(scene: Scene, client: Client) -> None:
    stub = stub_of(client, "a")
    for name in ("value", "_perdure_route", "__class__"):
        with pytest.raises(AttributeError, match="cannot be set through a stub"):
            setattr(stub, name, None)
    copy.copy(stub).paint(1)
    copy.deepcopy([stub])[0].paint(2)
    assert [item.args for item in items(scene)] == [[1], [2]]
    assert repr(stub) == "<stub of Counter/a>"
    assert weakref.ref(stub)() is stub
