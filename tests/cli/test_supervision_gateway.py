"""The gateway among the supervisor's children: started with them, waited for, restarted, stopped first."""

from __future__ import annotations

import signal

from perdure.exits import WorkerExit
from perdure_cli.errors import RunExit
from perdure_cli.events import GATEWAY, ROUTER, Announce, Finish, Park, PublishMap, StopRequested, Tick
from perdure_cli.supervision import ChildState

from .supervision_scene import ALL, W0, W1, Scene, killed, of, spawned


def serving() -> Scene:
    scene = Scene(gateway=True)
    scene.ready(*ALL, GATEWAY)
    return scene


def test_it_is_started_with_the_others_and_waited_for() -> None:
    scene = Scene(gateway=True)
    assert spawned(scene.done) == [(ROUTER, 1), (W0, 1), (W1, 1), (GATEWAY, 1)]
    assert not of(Announce, scene.ready(*ALL))
    assert of(Announce, scene.ready(GATEWAY)) == [Announce(0)]


def test_it_is_on_no_map_and_gets_none() -> None:
    scene = serving()
    published = [action for action in scene.done if isinstance(action, PublishMap)]
    assert published
    assert all(GATEWAY not in action.to for action in published)
    assert not of(PublishMap, scene.die(GATEWAY))


def test_one_that_is_killed_or_silent_is_replaced_and_nobody_else_is_touched() -> None:
    scene = serving()
    assert spawned(scene.die(GATEWAY)) == [(GATEWAY, 2)]
    scene.ready(GATEWAY)
    timing, kills = scene.core.timing, []
    for _ in range(int(timing.heartbeat_lost_s / timing.heartbeat_interval_s) + 1):
        scene.now += timing.heartbeat_interval_s
        scene.beat(*ALL)
        kills += killed(scene.feed(Tick(scene.now)))
    assert kills == [(GATEWAY, signal.SIGKILL)]


def test_a_front_that_cannot_be_loaded_ends_the_run_at_its_start_and_parks_later() -> None:
    scene = Scene(gateway=True)
    scene.ready(ROUTER, W0, W1)
    scene.die(GATEWAY, WorkerExit.APP_NOT_LOADED)
    assert scene.core.stopping
    assert scene.core.exit_code is RunExit.APPLICATION
    scene = serving()
    scene.die(GATEWAY)
    assert of(Park, scene.die(GATEWAY, WorkerExit.APP_NOT_LOADED))
    assert scene.core.children[GATEWAY].state is ChildState.PARKED
    assert scene.core.children[W0].state is ChildState.UP


def test_it_is_stopped_before_the_workers_hear_of_the_stop() -> None:
    scene = serving()
    first = scene.feed(StopRequested(scene.now))
    assert killed(first) == [(GATEWAY, signal.SIGTERM)]
    then = scene.die(GATEWAY, 0)
    assert killed(then) == [(W0, signal.SIGTERM), (W1, signal.SIGTERM)]
    scene.quiet(W0, W1)
    scene.die(W0, 0)
    last = scene.die(W1, 0)
    assert killed(last) == [(ROUTER, signal.SIGTERM)]
    assert of(Finish, scene.die(ROUTER, 0)) == [Finish(RunExit.OK)]


def test_one_that_does_not_stop_is_cut_off_and_the_rest_stops_in_order() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    scene.now += scene.core.timing.gateway_stop_timeout_s
    assert killed(scene.feed(Tick(scene.now))) == [(GATEWAY, signal.SIGKILL)]
    assert killed(scene.die(GATEWAY)) == [(W0, signal.SIGTERM), (W1, signal.SIGTERM)]
    assert scene.core.exit_code is RunExit.FORCED
