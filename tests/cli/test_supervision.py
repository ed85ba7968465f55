"""The supervisor's decisions, replayed as histories: no process, no socket, no clock."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.exits import WorkerExit
from perdure_cli.errors import RunExit
from perdure_cli.events import (
    ROUTER,
    Announce,
    Beat,
    ChildId,
    Close,
    Event,
    Exited,
    Finish,
    Kill,
    Park,
    Persist,
    PublishMap,
    Quiet,
    Ready,
    Role,
    Spawn,
    StopRequested,
    Tick,
)
from perdure_cli.restarts import RestartTiming
from perdure_cli.supervision import ChildState, Timing

from .supervision_scene import ALL, W0, W1, Scene, killed, of, serving, spawned

# --- start


def test_the_start_persists_all_epochs_once_and_then_spawns_everything_together() -> None:
    scene = Scene()
    assert [type(action) for action in scene.done] == [Persist, Spawn, Spawn, Spawn]
    assert spawned(scene.done) == [(ROUTER, 1), (W0, 1), (W1, 1)]
    assert scene.persisted.epochs == (1, 1)
    assert scene.persisted.router_epoch == 1


def test_a_worker_is_on_the_map_from_its_ready_on_and_all_who_listen_are_told() -> None:
    scene = Scene()
    [publish] = of(PublishMap, scene.ready(W1))
    assert isinstance(publish, PublishMap)
    assert publish.to == (W1,)
    assert [seat.endpoint for seat in publish.map.seats] == ["", "ipc://door-worker-1-1"]
    [publish] = of(PublishMap, scene.ready(ROUTER))
    assert isinstance(publish, PublishMap)
    assert publish.to == (ROUTER,)
    assert publish.map == scene.core.map
    [publish] = of(PublishMap, scene.ready(W0))
    assert isinstance(publish, PublishMap)
    assert set(publish.to) == set(ALL)


@pytest.mark.parametrize("last", ALL)
def test_the_cluster_is_announced_when_the_last_of_all_is_ready(last: ChildId) -> None:
    scene = Scene()
    others = [child for child in ALL if child != last]
    assert not of(Announce, scene.ready(*others))
    assert of(Announce, scene.ready(last)) == [Announce(parked=0)]


def test_it_is_announced_once_only() -> None:
    scene = serving()
    scene.die(W0)
    assert not of(Announce, scene.ready(W0))


def test_a_parked_worker_does_not_hold_up_the_announcement() -> None:
    scene = Scene()
    scene.ready(ROUTER, W1)
    assert of(Announce, scene.die(W0, 72)) == [Announce(parked=1)]


# --- deaths


def test_a_death_takes_the_worker_off_the_map_before_its_successor_is_spawned() -> None:
    scene = serving()
    actions = scene.die(W0)
    assert [type(action) for action in actions] == [PublishMap, Persist, Spawn]
    assert isinstance(actions[0], PublishMap)
    assert [seat.endpoint for seat in actions[0].map.seats] == ["", "ipc://door-worker-1-1"]
    assert set(actions[0].to) == {ROUTER, W1}
    assert spawned(actions) == [(W0, 2)]
    scene.ready(W0)
    assert scene.endpoints() == ["ipc://door-worker-0-2", "ipc://door-worker-1-1"]


def test_the_death_of_the_router_leaves_the_map_as_it_is() -> None:
    scene = serving()
    before = scene.core.map
    assert spawned(scene.die(ROUTER, 1)) == [(ROUTER, 2)]
    assert scene.core.map == before
    assert of(PublishMap, scene.ready(ROUTER)) == [PublishMap(before, (ROUTER,))]


def test_a_worker_that_is_killed_over_and_over_is_back_at_once_each_time() -> None:
    scene = serving()
    for epoch in range(2, 40):
        scene.pass_time(0.2)
        assert spawned(scene.die(W0)) == [(W0, epoch)]
        scene.pass_time(0.3)
        scene.ready(W0)


def test_failing_starts_wait_longer_and_longer_and_disturb_nobody() -> None:
    scene = Scene()
    scene.ready(ROUTER, W1)
    waited = []
    for _ in range(7):
        started = scene.now
        actions = scene.die(W0, 1)
        while not spawned(actions):
            actions = scene.pass_time(0.05)
        waited.append(scene.now - started)
        assert spawned(actions)[0][0] == W0
    assert waited == pytest.approx([0, 0.1, 1, 5, 30, 30, 30], abs=0.051)
    assert scene.core.children[W1].incarnations == scene.core.children[ROUTER].incarnations == 1


@pytest.mark.parametrize("code", [71, 72, 73])
def test_exit_codes_that_a_retry_cannot_cure_park_the_worker_for_good(code: int) -> None:
    scene = serving()
    [park] = of(Park, scene.die(W0, code))
    assert isinstance(park, Park)
    assert (park.child, park.code) == (W0, code)
    assert scene.state_of(W0) is ChildState.PARKED
    assert scene.endpoints()[0] == ""
    assert not spawned(scene.pass_time(300))


@pytest.mark.parametrize("code", [-signal.SIGSEGV, 1, 72])
def test_a_worker_that_one_of_its_objects_ends_comes_back_at_once_whatever_the_code(code: int) -> None:
    scene = serving()
    for _ in range(6):
        assert spawned(scene.die(W0, code, blamed=True))
        scene.ready(W0)
    assert scene.state_of(W0) is ChildState.UP


def test_failed_writes_in_a_row_park_the_worker_and_long_service_makes_up_for_them() -> None:
    scene = serving()
    for _ in range(3):
        assert not of(Park, scene.die(W0, WorkerExit.WRITE_FAILED))
        scene.pass_time(6)
        scene.ready(W0)
    scene.pass_time(61)
    for _ in range(3):
        assert not of(Park, scene.die(W0, WorkerExit.WRITE_FAILED))
        scene.pass_time(6)
        scene.ready(W0)
        scene.die(W0)  # killed from outside: says nothing about the disk
        scene.ready(W0)
    [park] = of(Park, scene.die(W0, WorkerExit.WRITE_FAILED))
    assert "check the disk" in park.reason
    assert not spawned(scene.pass_time(300))


def test_the_router_is_never_parked() -> None:
    scene = serving()
    assert spawned(scene.die(ROUTER, 72)) == [(ROUTER, 2)]


def test_an_application_that_never_loaded_ends_the_run_in_order() -> None:
    scene = Scene()
    scene.ready(ROUTER)
    assert killed(scene.die(W0, 78)) == [(W1, signal.SIGTERM)]
    assert killed(scene.die(W1, 78)) == [(ROUTER, signal.SIGTERM)]
    assert of(Finish, scene.die(ROUTER, 0)) == [Finish(RunExit.APPLICATION)]


def test_an_application_that_loads_no_more_parks_the_worker() -> None:
    scene = serving()
    scene.die(W0)
    assert of(Park, scene.die(W0, 78))
    assert not scene.core.stopping


def test_a_spawn_that_fails_is_tried_again_with_yet_another_epoch() -> None:
    scene = serving()
    scene.spawn_works = False
    scene.die(W0)
    assert scene.state_of(W0) is ChildState.DOWN
    scene.spawn_works = True
    assert spawned(scene.pass_time(0.2)) == [(W0, 3)]


# --- silence


def test_a_silent_process_is_killed_and_off_the_map_and_replaced_when_it_is_gone() -> None:
    scene = serving()
    actions = scene.pass_time(3.0, beating=(ROUTER, W1))
    assert killed(actions) == [(W0, signal.SIGKILL)]
    assert scene.endpoints()[0] == ""
    assert not spawned(actions), "a second owner beside one that may still run"
    assert spawned(scene.die(W0)) == [(W0, 2)]


def test_silence_is_found_within_three_seconds_of_the_last_beat() -> None:
    scene = serving()
    assert not killed(scene.pass_time(2.4, beating=(W0, W1)))
    assert killed(scene.pass_time(0.2, beating=(W0, W1))) == [(ROUTER, signal.SIGKILL)]


def test_heartbeats_keep_a_process_alive() -> None:
    scene = serving()
    assert not killed(scene.pass_time(60))


def test_a_process_that_is_not_ready_in_time_is_killed_and_its_retry_counts_as_a_failed_start() -> None:
    scene = Scene()
    scene.ready(ROUTER, W1)
    assert not killed(scene.pass_time(29.9))
    kills = of(Kill, scene.pass_time(0.2))
    assert killed(kills) == [(W0, signal.SIGKILL)]
    assert "not ready after 30 s" in kills[0].reason
    assert spawned(scene.die(W0)) == [(W0, 2)]
    assert scene.core.children[W0].strikes == 1


@pytest.mark.parametrize(("victim", "advice"), [(W0, "use @blocking"), (ROUTER, "")])
def test_a_kill_for_silence_says_so_and_what_to_do_in_a_worker(victim: ChildId, advice: str) -> None:
    scene = serving()
    others = tuple(child for child in ALL if child != victim)
    [kill] = of(Kill, scene.pass_time(3.1, beating=others))
    assert kill.child == victim
    assert kill.reason.startswith("no heartbeat for 2.5 s")
    assert advice in kill.reason
    assert ("@blocking" in kill.reason) == bool(advice)


@pytest.mark.parametrize("pause", [3.0, 30.0])
def test_a_pause_of_the_supervisor_does_not_count_as_silence_of_the_others(pause: float) -> None:
    scene = serving()
    scene.pass_time(10)
    scene.now += pause
    assert not killed(scene.feed(Tick(scene.now)))
    assert not killed(scene.pass_time(10))


def test_a_pause_of_the_supervisor_does_not_count_as_a_slow_start_of_the_others() -> None:
    scene = Scene()
    scene.now += 40
    assert not killed(scene.feed(Tick(scene.now)))
    assert killed(scene.pass_time(30.1)) == [(child, signal.SIGKILL) for child in ALL]


def test_a_process_that_hangs_after_such_a_pause_is_found_all_the_same() -> None:
    scene = serving()
    scene.now += 30
    scene.feed(Tick(scene.now))
    assert killed(scene.pass_time(3.0, beating=(ROUTER, W1))) == [(W0, signal.SIGKILL)]


# --- voices of the dead


@pytest.mark.parametrize(
    "late",
    [
        lambda epoch, pid, now: Beat(W0, epoch - 1, pid, now),
        lambda epoch, pid, now: Beat(W0, epoch, pid - 1, now),
        lambda epoch, pid, now: Ready(W0, epoch - 1, pid, "ipc://old", now),
        lambda epoch, pid, now: Ready(W0, epoch, pid - 1, "ipc://old", now),
        lambda epoch, pid, now: Ready(W0, epoch, pid, "ipc://twice", now),
        lambda epoch, pid, now: Quiet(W0, epoch - 1, pid, now),
        lambda epoch, pid, now: Quiet(W0, epoch, pid - 1, now),
        lambda epoch, pid, now: Exited(W0, pid - 1, -9, now),
        lambda epoch, pid, now: Beat(ChildId(Role.WORKER, 7), epoch, pid, now),
        lambda epoch, pid, now: Ready(ChildId(Role.ROUTER, 1), epoch, pid, "ipc://other", now),
    ],
)
def test_what_an_older_incarnation_or_a_stranger_says_changes_nothing(
    late: Callable[[int, int, float], Event],
) -> None:
    scene = serving()
    scene.die(W0)
    scene.ready(W0)
    before = copy.deepcopy((scene.core.children, scene.core.map, scene.core.state))
    event = late(scene.core.children[W0].epoch, scene.pids[W0], scene.now + 1)
    assert scene.feed(event) == []
    assert (scene.core.children, scene.core.map, scene.core.state) == before


def test_a_process_that_comes_to_life_again_after_its_sentence_is_not_taken_back() -> None:
    scene = serving()
    scene.pass_time(3.0, beating=(ROUTER, W1))
    scene.beat(W0)
    assert scene.ready(W0) == []
    assert scene.endpoints()[0] == ""
    assert spawned(scene.die(W0)) == [(W0, 2)]


# --- ordered stop


def test_workers_stop_together_then_the_router_then_the_run_is_over() -> None:
    scene = serving()
    assert killed(scene.feed(StopRequested(scene.now))) == [(W0, signal.SIGTERM), (W1, signal.SIGTERM)]
    assert killed(scene.die(W1, 0)) == []
    assert killed(scene.die(W0, 0)) == [(ROUTER, signal.SIGTERM)]
    assert scene.die(ROUTER, 0) == [Finish(RunExit.OK)]


def test_no_worker_is_told_to_close_before_all_have_been_quiet() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    assert scene.quiet(W1) == []
    assert scene.state_of(W1) is ChildState.QUIET
    assert not of(Close, scene.pass_time(5))
    assert scene.quiet(W0) == [Close((W0, W1))]
    assert scene.state_of(W0) is scene.state_of(W1) is ChildState.CLOSING
    assert not of(Close, scene.die(W0, 0))
    assert killed(scene.die(W1, 0)) == [(ROUTER, signal.SIGTERM)]


def test_a_worker_that_dies_is_not_waited_for_by_the_quiet_ones() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    scene.quiet(W0)
    assert of(Close, scene.die(W1, 70)) == [Close((W0,))]


def test_a_worker_that_was_down_is_not_waited_for_by_the_quiet_ones() -> None:
    scene = serving()
    scene.die(W1, 72)
    scene.feed(StopRequested(scene.now))
    assert scene.quiet(W0) == [Close((W0,))]


def test_quiet_workers_that_are_never_told_to_close_are_killed_in_the_end() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    scene.quiet(W0)
    assert killed(scene.pass_time(13.1)) == [(W0, signal.SIGKILL), (W1, signal.SIGKILL)]


def test_the_second_request_kills_quiet_workers_too() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    scene.quiet(W0)
    assert (W0, signal.SIGKILL) in killed(scene.feed(StopRequested(scene.now)))


def test_a_worker_that_somebody_else_stopped_waits_for_nobody_and_is_replaced() -> None:
    scene = serving()
    assert scene.quiet(W0) == [Close((W0,))]
    assert not scene.core.stopping
    assert spawned(scene.die(W0, 0)) == [(W0, 2)]


def test_a_worker_that_somebody_else_stopped_is_waited_for_when_the_rest_stops_too() -> None:
    scene = serving()
    scene.quiet(W0)
    scene.feed(StopRequested(scene.now))
    assert scene.quiet(W1) == []
    assert of(Close, scene.die(W0, 0)) == [Close((W1,))]


def test_nothing_is_started_any_more_while_stopping() -> None:
    scene = serving()
    scene.die(W0, 1)
    scene.die(W0, 1)
    assert scene.core.children[W0].restart_at is not None
    scene.feed(StopRequested(scene.now))
    assert not spawned(scene.pass_time(10))
    assert not spawned(scene.die(W1, 0))
    assert of(Finish, scene.die(ROUTER, 0)) == [Finish(RunExit.OK)]


def test_while_stopping_the_router_is_told_which_workers_are_gone() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    assert scene.endpoints() == ["ipc://door-worker-0-1", "ipc://door-worker-1-1"]
    [publish] = of(PublishMap, scene.die(W0, 0))
    assert isinstance(publish, PublishMap)
    assert ROUTER in publish.to
    assert [seat.endpoint for seat in publish.map.seats] == ["", "ipc://door-worker-1-1"]


def test_a_worker_that_was_still_starting_is_stopped_without_blame() -> None:
    scene = Scene()
    scene.ready(ROUTER, W0)
    scene.feed(StopRequested(scene.now))
    scene.die(W1, -signal.SIGTERM)
    scene.die(W0, 0)
    assert of(Finish, scene.die(ROUTER, 0)) == [Finish(RunExit.OK)]


def test_a_worker_that_fails_while_it_stops_shows_in_the_exit_code() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    scene.die(W0, 70)
    scene.die(W1, 0)
    assert of(Finish, scene.die(ROUTER, 0)) == [Finish(RunExit.FORCED)]


def test_what_does_not_stop_in_time_is_killed() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    assert not killed(scene.pass_time(12.9))
    assert killed(scene.pass_time(0.2)) == [(W0, signal.SIGKILL), (W1, signal.SIGKILL)]
    scene.die(W0)
    assert killed(scene.die(W1)) == [(ROUTER, signal.SIGTERM)]
    assert killed(scene.pass_time(3.1)) == [(ROUTER, signal.SIGKILL)]
    assert of(Finish, scene.die(ROUTER)) == [Finish(RunExit.FORCED)]


def test_a_silent_worker_gets_its_time_to_drain() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    assert not killed(scene.pass_time(10, beating=()))


def test_what_even_sigkill_does_not_end_is_left_behind() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    actions = scene.pass_time(13.1 + 5.1 + 3.1 + 5.1)
    assert killed(actions)[-1] == (ROUTER, signal.SIGKILL)
    assert of(Finish, actions) == [Finish(RunExit.FORCED)]


def test_the_second_request_kills_everything_at_once() -> None:
    scene = serving()
    scene.feed(StopRequested(scene.now))
    assert set(killed(scene.feed(StopRequested(scene.now)))) == {(child, signal.SIGKILL) for child in ALL}
    scene.die(ROUTER)
    scene.die(W0)
    assert of(Finish, scene.die(W1)) == [Finish(RunExit.FORCED)]


def test_a_stop_with_no_process_left_finishes_at_once() -> None:
    scene = Scene(workers=1)
    scene.spawn_works = False
    scene.die(ROUTER, 1)
    scene.die(W0, 72)
    assert scene.feed(StopRequested(scene.now)) == [Finish(RunExit.OK)]


# --- any history


COMMANDS = st.one_of(
    st.tuples(st.just("ready"), st.sampled_from(ALL)),
    st.tuples(st.just("quiet"), st.sampled_from([W0, W1])),
    st.tuples(st.just("die"), st.sampled_from(ALL), st.sampled_from([0, 1, 70, 71, 72, 74, 78, -9, -6, -15])),
    st.tuples(st.just("time"), st.sampled_from([0.01, 0.3, 1.0, 2.6, 31.0]), st.sets(st.sampled_from(ALL))),
    st.tuples(st.just("pause"), st.sampled_from([1.5, 40.0])),
    st.tuples(st.just("spawns"), st.booleans()),
    st.tuples(st.just("stop")),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(COMMANDS, max_size=40))
def test_no_history_breaks_an_invariant_and_every_one_can_be_ended(history: list[tuple]) -> None:
    # `Scene` checks after each event: one process per child, epochs on disk before spawns, versions that
    # grow and are on disk, signals only to processes that were not waited for, doors that close together.
    scene = Scene(timing=Timing(restarts=RestartTiming()))
    for name, *facts in history:
        match name:
            case "ready" if facts[0] in scene.pids:
                scene.ready(facts[0])
            case "quiet" if facts[0] in scene.pids:
                scene.quiet(facts[0])
            case "die" if facts[0] in scene.pids:
                scene.die(*facts)
            case "time":
                scene.pass_time(facts[0], tuple(facts[1]))
            case "pause":
                scene.now += facts[0]
                scene.feed(Tick(scene.now))
            case "spawns":
                scene.spawn_works = facts[0]
            case "stop" if not of(Finish, scene.done):
                scene.feed(StopRequested(scene.now))
    if not of(Finish, scene.done):
        scene.feed(StopRequested(scene.now))
    while scene.pids:
        scene.die(next(iter(scene.pids)))
    assert len(of(Finish, scene.done)) == 1
