"""examples/kv.py: edges answer from memory and are never staler than they say, shards lose nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import PerdureError
from processes.cluster import Cluster
from worker.host_scene import Scene

from .app_scene import do, finish, load, pass_time, run_program, with_values

kv = load("kv")
ROME, OSLO = "shop@rome", "shop@oslo"


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene(kv.KvEdge, kv.KvShard)
    with with_values(kv, now=made.wall_clock):
        yield made
    made.close()


def at(scene: Scene, edge: str, method: str, *args: Any) -> Any:
    return do(scene, kv.KvEdge, edge, method, *args)


def value(scene: Scene, edge: str, key: str) -> Any:
    return at(scene, edge, "get", key)["value"]


# --- staleness

KEYS = ("a", "b")
ACTION = st.one_of(
    st.tuples(st.just("put"), st.sampled_from([ROME, OSLO]), st.sampled_from(KEYS), st.just(None)),
    st.tuples(
        st.just("put"), st.sampled_from([ROME, OSLO]), st.sampled_from(KEYS), st.sampled_from([1.5, 4.0])
    ),
    st.tuples(st.just("delete"), st.sampled_from([ROME, OSLO]), st.sampled_from(KEYS)),
    st.tuples(st.just("get"), st.sampled_from([ROME, OSLO]), st.sampled_from(KEYS)),
    st.tuples(st.just("listen"), st.sampled_from([ROME, OSLO]), st.booleans()),
    st.tuples(st.just("pass"), st.sampled_from([0.05, 0.5, 2.0, kv.FRESH_S - 0.1])),
    st.tuples(
        st.just("evict"),
    ),
)


class Story:
    """Edges that are used and cut off, and what each key's value was at each time."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.reigns: dict[str, list[list[Any]]] = {key: [[None, float("-inf"), float("inf")]] for key in KEYS}
        """Of each key the values, each with its first and its last moment."""
        self.number = 0

    def now(self) -> float:
        return self.scene.loop.time()

    def reign(self, key: str, new: Any, ttl: float | None) -> None:
        start = self.now()
        reigns = self.reigns[key]
        while reigns and reigns[-1][1] > start:
            reigns.pop()  # what would have followed on an expiry that does not come any more
        reigns[-1][2] = start
        reigns.append([new, start, float("inf") if ttl is None else start + ttl])
        if ttl is not None:
            reigns.append([None, start + ttl, float("inf")])

    def step(self, action: str, *args: Any) -> None:
        if action == "pass":
            pass_time(self.scene, args[0])
        elif action == "evict":
            pass_time(self.scene, self.scene.limits.idle_evict_s + 1)
            self.scene.do(self.scene.host.evict_idle)
        elif action == "put":
            edge, key, ttl = args
            self.number += 1
            at(self.scene, edge, "put", key, self.number, ttl)
            self.reign(key, self.number, ttl)
            assert value(self.scene, edge, key) == self.number, "an edge reads what it wrote"
        elif action == "delete":
            at(self.scene, *args[:1], "delete", args[1])
            self.reign(args[1], None, None)
        elif action == "get":
            self.read(*args)
        else:
            at(self.scene, args[0], "listen", args[1])

    def read(self, edge: str, key: str) -> None:
        answer = at(self.scene, edge, "get", key)
        end = max(last for found, _, last in self.reigns[key] if found == answer["value"])
        assert end >= self.now() - kv.FRESH_S, (answer, self.reigns[key])
        assert end >= self.now() - answer["age_s"] - 0.001, (answer, self.reigns[key])


@settings(max_examples=60, deadline=None, database=None)
@given(actions=st.lists(ACTION, max_size=40))
def test_a_read_gives_what_was_current_within_the_bound_and_within_the_age_that_it_tells(
    actions: list[Any],
) -> None:
    scene = Scene(kv.KvEdge, kv.KvShard)
    with with_values(kv, now=scene.wall_clock):
        story = Story(scene)
        for action in actions:
            story.step(*action)
        scene.close()


def test_an_edge_that_hears_nothing_is_stale_to_the_bound_and_no_longer(scene: Scene) -> None:
    at(scene, ROME, "put", "k", 1)
    assert value(scene, OSLO, "k") == 1
    at(scene, OSLO, "listen", False)
    at(scene, ROME, "put", "k", 2)
    pass_time(scene, kv.FRESH_S - 0.2)
    assert at(scene, OSLO, "get", "k")["source"] == "cache"
    assert value(scene, OSLO, "k") == 1
    pass_time(scene, 0.4)
    assert at(scene, OSLO, "get", "k")["source"] == "shard"
    assert value(scene, OSLO, "k") == 2


def test_a_change_reaches_the_edges_that_hold_the_key_and_does_not_prolong_its_time(scene: Scene) -> None:
    at(scene, ROME, "put", "k", 1)
    assert value(scene, OSLO, "k") == 1
    pass_time(scene, kv.FRESH_S - 1)
    at(scene, ROME, "put", "k", 2)
    pass_time(scene, 0.5)
    answer = at(scene, OSLO, "get", "k")
    assert (answer["value"], answer["source"]) == (2, "cache")
    assert answer["age_s"] > kv.FRESH_S - 1
    at(scene, ROME, "delete", "k")
    pass_time(scene, 0.1)
    answer = at(scene, OSLO, "get", "k")
    assert (answer["value"], answer["exists"], answer["source"]) == (None, False, "cache")
    pass_time(scene, 0.5)
    assert at(scene, OSLO, "get", "k")["source"] == "shard"


def test_a_late_refresh_replaces_nothing_newer(scene: Scene) -> None:
    old = at(scene, ROME, "put", "k", 1)
    at(scene, ROME, "put", "k", 2)
    entry = {"value": 1, "exists": True, "version": old["version"], "expires_at": None}
    at(scene, ROME, "refresh", "k", entry)
    assert value(scene, ROME, "k") == 2


def test_an_answer_that_was_long_on_its_way_is_old(scene: Scene) -> None:
    at(scene, ROME, "put", "k", 1)
    call = scene.start(kv.KvEdge, OSLO, "get", "k")
    scene.advance(2.0)
    assert not call.answered, "the shard's answer waits for the disk"
    (answer,) = finish(scene, call)
    assert answer["age_s"] >= 2.0
    pass_time(scene, kv.FRESH_S - 1.9)
    assert at(scene, OSLO, "get", "k")["source"] == "shard"


def test_a_refresh_that_overtakes_the_answer_of_the_shard_is_not_lost(scene: Scene) -> None:
    version = at(scene, ROME, "put", "k", 1)["version"]
    newer = {"value": 2, "exists": True, "version": version + 1, "expires_at": None}
    with scene.one_message():
        call = scene.start(kv.KvEdge, OSLO, "get", "k")
        refresh = scene.start(kv.KvEdge, OSLO, "refresh", "k", newer)
    assert finish(scene, call, refresh)[0]["value"] == 2
    assert at(scene, OSLO, "get", "k")["source"] == "cache"
    assert value(scene, OSLO, "k") == 2


def test_of_many_that_need_a_key_at_once_one_asks_the_shard(scene: Scene) -> None:
    at(scene, ROME, "put", "k", 1)
    with scene.one_message():
        calls = [scene.start(kv.KvEdge, OSLO, "get", "k") for _ in range(50)]
    answers = finish(scene, *calls)
    assert [answer["value"] for answer in answers] == [1] * 50
    assert sorted(answer["source"] for answer in answers) == ["cache"] * 49 + ["shard"]


def test_a_shard_forgets_edges_that_have_not_read_for_long(scene: Scene) -> None:
    at(scene, ROME, "put", "k", 1)
    at(scene, OSLO, "get", "k")
    (shard,) = [name for _, name in scene.listed(kv.KvShard)]
    assert scene.fields(kv.KvShard, shard)["edges"].keys() == {ROME, OSLO}
    pass_time(scene, kv.LEASE_S + 1)
    at(scene, ROME, "put", "k", 2)
    assert scene.fields(kv.KvShard, shard)["edges"].keys() == {ROME}
    pass_time(scene, 0.1)
    assert value(scene, OSLO, "k") == 2


def test_an_edge_holds_so_many_keys_and_not_more(scene: Scene) -> None:
    with with_values(kv, HELD_MAX=3):
        for number in range(5):
            at(scene, ROME, "put", f"k{number}", number)
        assert at(scene, ROME, "status")["held"] == 3
        assert at(scene, ROME, "get", "k4")["source"] == "cache"
        assert at(scene, ROME, "get", "k0")["source"] == "shard"


# --- expiry


def test_a_key_with_a_ttl_is_gone_at_its_time_everywhere_and_on_disk(scene: Scene) -> None:
    at(scene, ROME, "put", "k", 1, 2.0)
    assert value(scene, OSLO, "k") == 1
    pass_time(scene, 1.9)
    assert value(scene, OSLO, "k") == 1
    pass_time(scene, 0.2)
    assert [at(scene, edge, "get", "k")["exists"] for edge in (ROME, OSLO)] == [False, False]
    assert at(scene, ROME, "keys")["keys"] == []
    shards = [name for _, name in scene.listed(kv.KvShard)]
    assert [scene.values(kv.KvShard, name) for name in shards] == [{}]


def test_a_key_whose_time_is_over_is_not_read_before_an_alarm_has_removed_it(scene: Scene) -> None:
    at(scene, ROME, "put", "k", 1, 2.0)
    with with_values(kv, now=lambda: scene.wall_clock() + 3):
        assert at(scene, ROME, "get", "k")["exists"] is False
        assert at(scene, ROME, "get", "k")["source"] == "cache"
        (shard,) = [name for _, name in scene.listed(kv.KvShard)]
        assert do(scene, kv.KvShard, shard, "fill", "k", OSLO)["exists"] is False


@pytest.mark.parametrize("ttl", [None, 10.0])
def test_a_later_write_decides_how_long_a_key_lives(scene: Scene, ttl: float | None) -> None:
    at(scene, ROME, "put", "k", 1, 2.0)
    at(scene, OSLO, "put", "k", 2, ttl)
    pass_time(scene, 3.0)
    assert value(scene, ROME, "k") == value(scene, OSLO, "k") == 2
    pass_time(scene, 8.0)
    assert value(scene, ROME, "k") == (2 if ttl is None else None)


def test_a_ttl_that_is_no_time_is_refused(scene: Scene) -> None:
    with pytest.raises(PerdureError, match="a ttl is more than 0 s"):
        at(scene, ROME, "put", "k", 1, 0.0)
    assert at(scene, ROME, "get", "k")["exists"] is False


# --- keys


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_keys_come_in_order_from_all_shards_page_by_page(scene: Scene, limit: int) -> None:
    rng = random.Random(7)
    names = {f"{rng.choice('xyz')}{rng.randrange(10_000)}" for _ in range(60)}
    calls = [scene.start(kv.KvEdge, ROME, "put", name, 0, None) for name in sorted(names)]
    calls += [scene.start(kv.KvEdge, ROME, "put", f"y{number}!", 0, 1.0) for number in range(30)]
    finish(scene, *calls)
    # Their time is over before an alarm has had the time to remove them.
    with with_values(kv, now=lambda: scene.wall_clock() + 2):
        for prefix in ("", "y", "nothing"):
            found: list[str] = []
            cursor = None
            while True:
                page = at(scene, OSLO, "keys", prefix, limit, cursor)
                assert len(page["keys"]) <= limit
                found += page["keys"]
                cursor = page["cursor"]
                if cursor is None:
                    break
            assert found == sorted(name for name in names if name.startswith(prefix))


# --- a real cluster


@pytest.mark.processes
def test_the_program_of_the_docstring_and_kill_9_of_everything_that_holds_the_keys(
    databases: Cluster, tmp_path: Path
) -> None:
    cluster = databases
    with cluster.connect() as client:
        run_program("kv", cluster, tmp_path)
        rome, oslo = client.get("KvEdge", "store@rome"), client.get("KvEdge", "store@oslo")
        versions: dict[str, int] = {}
        for number in range(40):
            key = f"k{number % 20}"
            version = rome.put(key, number)["version"]
            assert version > versions.get(key, 0)
            versions[key] = version
            oslo.get(key)
            if number % 20 == 10:
                cluster.kill(cluster.worker_pids[number // 20 % 2])
        assert oslo.keys(limit=100)["keys"] == sorted(f"k{number}" for number in range(20))
        expected = {f"k{number}": number + 20 for number in range(20)}

        def seen(edge: Any) -> Callable[[], bool]:
            return lambda: {key: edge.get(key)["value"] for key in expected} == expected

        assert seen(rome)(), "an edge reads what it wrote"
        cluster.wait_until("the other edge sees it too, within the bound", seen(oslo), kv.FRESH_S + 2)
