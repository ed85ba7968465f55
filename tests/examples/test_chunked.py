"""examples/chunked.py: one ordered map, whatever splits, merges, runs at the same time or is killed."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure import PerdureError
from processes.cluster import Cluster
from worker.host_scene import Scene

from .app_scene import do, finish, load, pass_time, run_program, with_values

chunked = load("chunked")
CLASSES = (chunked.RangeDatabase, chunked.RangeDirectory, chunked.RangeChunk)
A, B = "our/data@a", "our/data@b"
QUIET_S = 5.0


def small_chunks() -> contextlib.AbstractContextManager[None]:
    """A handful of keys is a database of several chunks, and chance is the same each time."""
    return with_values(chunked, SPLIT_KEYS=4, MERGE_KEYS=2, random=random.Random(3))


def at(scene: Scene, front: str, method: str, *args: Any) -> Any:
    return do(scene, chunked.RangeDatabase, front, method, *args)


def start(scene: Scene, front: str, method: str, *args: Any) -> Any:
    return scene.start(chunked.RangeDatabase, front, method, *args)


def scan_all(scene: Scene, front: str = A, *, limit: int = 7, reverse: bool = False) -> list[list[str]]:
    """All pages."""
    found: list[list[str]] = []
    position = None if reverse else ""
    while True:
        bounds = ("", position) if reverse else (position, None)
        page = at(scene, front, "scan", *bounds, limit, reverse)
        found += page["items"]
        position = page["next"]
        if position is None:
            return found


def check_ranges(chunks: list[dict[str, Any]], count: int) -> None:
    """The open chunks cover all keys, each key once, and count right."""
    assert chunks[0]["start"] == ""
    assert chunks[-1]["end"] is None
    for left, right in itertools.pairwise(chunks):
        assert left["end"] == right["start"]
        assert left["link"] == right["name"]
    assert sum(chunk["count"] for chunk in chunks) == count


def check(scene: Scene, model: dict[str, str]) -> list[dict[str, Any]]:
    """At rest everything is as the model says; the chunks."""
    items = [[key, model[key]] for key in sorted(model)]
    for _ in range(10):
        pass_time(scene, QUIET_S, 0.25)
        assert scan_all(scene) == items
        assert scan_all(scene, B, reverse=True) == items[::-1]
        chunks: list[dict[str, Any]] = at(scene, A, "ranges")
        check_ranges(chunks, len(model))
        if len(chunks) == 1 or all(chunk["count"] >= chunked.MERGE_KEYS for chunk in chunks):
            break
    else:
        raise AssertionError(f"these are not merged: {chunks}")
    assert not any(chunk["widening"] for chunk in chunks)
    assert all(chunk["count"] <= chunked.SPLIT_KEYS for chunk in chunks)
    return chunks


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene(*CLASSES)
    with small_chunks():
        yield made
    made.close()


# --- against a dict

KEY = st.text(st.sampled_from("abcé\U0001f600"), min_size=1, max_size=3)
STEP = st.one_of(
    st.tuples(st.just("put"), st.lists(KEY, min_size=1, max_size=12, unique=True)),
    st.tuples(st.just("delete"), st.lists(KEY, min_size=1, max_size=12, unique=True)),
    st.tuples(st.just("clear"), KEY, KEY),
    st.tuples(st.just("get"), KEY),
    st.tuples(st.just("scan"), KEY, st.none() | KEY, st.integers(1, 9), st.booleans()),
    st.tuples(st.just("pass"), st.sampled_from([0.05, 0.6, 3.0])),
)


class Story:
    """Calls at two fronts, several at once, and a dict."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.model: dict[str, str] = {}
        self.number = 0

    def step(self, action: str, *args: Any) -> None:
        getattr(self, f"do_{action}")(*args)

    def do_put(self, keys: list[str]) -> None:
        self.number += 1
        before = dict(self.model)
        self.model |= {key: f"{key}{self.number}" for key in keys}
        calls = [
            start(self.scene, (A, B)[index % 2], "put", key, self.model[key])
            for index, key in enumerate(keys)
        ]
        scan = start(self.scene, A, "scan", "", None, 1_000)
        *_, page = finish(self.scene, *calls, scan)
        # The scan runs beside the writes: of these keys it may have seen the value before or after.
        seen = dict(page["items"])
        assert [key for key, _ in page["items"]] == sorted(seen)
        assert {key: value for key, value in seen.items() if key not in keys} == {
            key: value for key, value in before.items() if key not in keys
        }
        assert all(seen.get(key) in (before.get(key), self.model[key]) for key in keys)

    def do_delete(self, keys: list[str]) -> None:
        calls = [start(self.scene, (A, B)[index % 2], "delete", key) for index, key in enumerate(keys)]
        assert finish(self.scene, *calls) == [key in self.model for key in keys]
        for key in keys:
            self.model.pop(key, None)

    def do_clear(self, first: str, last: str) -> None:
        self.do_delete([key for key in self.model if first <= key <= last])

    def do_get(self, key: str) -> None:
        assert at(self.scene, B, "get", key) == self.model.get(key)

    def do_scan(self, first: str, end: str | None, limit: int, reverse: bool) -> None:
        found = [key for key in sorted(self.model) if first <= key and (end is None or key < end)]
        page = at(self.scene, A, "scan", first, end, limit, reverse)
        expected = (found[::-1] if reverse else found)[:limit]
        assert page["items"] == [[key, self.model[key]] for key in expected]

    def do_pass(self, seconds: float) -> None:
        pass_time(self.scene, seconds)


@settings(max_examples=50, deadline=None, database=None)
@given(steps=st.lists(STEP, max_size=30))
def test_it_is_a_sorted_dict_whatever_is_done_at_the_same_time(steps: list[Any]) -> None:
    scene = Scene(*CLASSES)
    with small_chunks():
        story = Story(scene)
        for step in steps:
            story.step(*step)
        check(scene, story.model)
        scene.close()


# --- splitting and merging


def test_ranges_split_as_keys_come_and_merge_as_they_go(scene: Scene) -> None:
    model = {f"{number:03}": "x" for number in range(40)}
    at(scene, A, "put_many", model)
    assert len(check(scene, model)) >= 10
    assert at(scene, B, "delete_many", [*list(model)[1:], "absent"]) == 39
    assert len(check(scene, {"000": "x"})) == 1


def test_a_chunk_that_waits_for_its_neighbour_splits_afterwards(scene: Scene) -> None:
    model = {f"{number:03}": "x" for number in range(12)}
    at(scene, A, "put_many", model)
    first = at(scene, A, "ranges")[0]
    widen = scene.start(chunked.RangeChunk, first["name"], "widen")
    more = {f"000-{number:02}": "y" for number in range(20)}
    finish(scene, widen, start(scene, A, "put_many", more))
    check(scene, model | more)


def test_values_of_all_sizes_split_by_bytes_and_do_not_merge_again(scene: Scene) -> None:
    rng = random.Random(9)
    with with_values(chunked, SPLIT_KEYS=64, MERGE_KEYS=16):
        model = {
            f"{number:03}": "x" * rng.choice([1, 100, 10_000, chunked.VALUE_BYTES_MAX])
            for number in range(150)
        }
        at(scene, A, "put_many", model)
        pass_time(scene, QUIET_S, 0.25)
        for key, value in model.items():
            at(scene, B, "put", key, value)
        chunks = check_sizes(scene, model)
        pass_time(scene, QUIET_S, 0.25)
        assert check_sizes(scene, model) == chunks


def test_a_few_large_values_behind_small_ones_do_not_split_and_merge_for_ever(scene: Scene) -> None:
    with with_values(chunked, SPLIT_KEYS=64, MERGE_KEYS=16):
        model = {
            f"{number:03}": "x" * (1 if number < 10 else chunked.VALUE_BYTES_MAX) for number in range(15)
        }
        at(scene, A, "put_many", model)
        at(scene, A, "put", "000", "x")
        pass_time(scene, QUIET_S, 0.25)
        chunks = check_sizes(scene, model)
        assert len(chunks) == 2
        pass_time(scene, QUIET_S, 0.25)
        assert check_sizes(scene, model) == chunks


def test_a_chunk_that_is_not_open_yet_gives_nothing(scene: Scene) -> None:
    model = {f"{number:03}": "x" for number in range(12)}
    at(scene, A, "put_many", model)
    first = at(scene, A, "ranges")[0]
    do(scene, chunked.RangeChunk, "our/data/later", "give", first["name"])
    check(scene, model)


def check_sizes(scene: Scene, model: dict[str, str]) -> list[dict[str, Any]]:
    chunks: list[dict[str, Any]] = at(scene, A, "ranges")
    check_ranges(chunks, len(model))
    for chunk in chunks:
        inside = [
            key for key in model if chunk["start"] <= key and (chunk["end"] is None or key < chunk["end"])
        ]
        assert chunk["size"] == sum(len(key) + len(model[key]) for key in inside) <= chunked.SPLIT_BYTES
    return chunks


def test_a_front_with_an_old_list_of_chunks_finds_everything(scene: Scene) -> None:
    at(scene, B, "put", "000", "x")  # B knows of one chunk
    model = {f"{number:03}": "x" for number in range(40)}
    at(scene, A, "put_many", model)
    assert at(scene, B, "get", "039") == "x"
    pass_time(scene, QUIET_S, 0.25)
    at(scene, B, "ranges")  # B knows of many
    for key in list(model)[3:]:
        at(scene, A, "delete", key)
    pass_time(scene, QUIET_S, 0.25)
    assert at(scene, B, "get", "002") == "x"
    assert [key for key, _ in at(scene, B, "scan", "", None, 10, True)["items"]] == ["002", "001", "000"]


def test_what_says_where_keys_went_is_forgotten_in_the_end(scene: Scene) -> None:
    model = {f"{number:03}": "x" for number in range(20)}
    at(scene, A, "put_many", model)
    pass_time(scene, QUIET_S, 0.25)
    at(scene, B, "ranges")
    for key in list(model)[1:]:
        at(scene, A, "delete", key)
    pass_time(scene, QUIET_S, 0.25)
    assert len(scene.listed(chunked.RangeChunk)) > 1
    scene.advance(chunked.FORGET_AFTER_S)
    pass_time(scene, QUIET_S, 0.25)
    assert len(scene.listed(chunked.RangeChunk)) == 1
    assert at(scene, B, "get", "019") is None


@pytest.mark.parametrize(("key", "value"), [("", "x"), ("k" * 513, "x"), ("k", "x" * (64 * 1024 + 1))])
def test_what_is_too_large_for_a_chunk_is_refused(scene: Scene, key: str, value: str) -> None:
    with pytest.raises(PerdureError, match="a key has 1 to 512 bytes"):
        at(scene, A, "put", key, value)


# --- crashes


class CrashError(Exception):
    """The disk has ended with as many groups as it was to."""


class Writer:
    """Puts and deletes with a pause after each; the disk stops for good after so many groups."""

    def __init__(self, scene: Scene, groups: int) -> None:
        self.scene = scene
        self.groups_left = groups
        self.model: dict[str, str] = {}
        """What was answered."""

    def run(self) -> bool:
        """Whether it crashed."""
        try:
            for number in range(36):
                key = f"{number * 7 % 18:02}"
                if number < 18:
                    self.call("put", key, str(number))
                    self.model[key] = str(number)
                elif number % 6:
                    self.call("delete", key)
                    del self.model[key]
        except CrashError:
            return True
        return False

    def call(self, *args: Any) -> None:
        call = start(self.scene, A, *args)
        while not call.answered:
            self.work()
        call.result()
        self.work()

    def work(self) -> None:
        self.scene.settle()
        while self.scene.jobs:
            if self.groups_left == 0:
                raise CrashError
            self.groups_left -= 1
            self.scene.commit_one()
        self.scene.advance(0.2)


def test_a_crash_after_any_commit_loses_and_doubles_nothing() -> None:
    for crash_at in itertools.count():
        with small_chunks():
            scene = Scene(*CLASSES)
            writer = Writer(scene, crash_at)
            crashed = writer.run()
            states = [
                scene.fields(chunked.RangeChunk, name)["state"]
                for _, name in scene.listed(chunked.RangeChunk)
            ]
            scene.close()
            scene = Scene(*CLASSES, disk=scene.disk)
            found = dict(scan_all(scene))
            # The one call that was under way when it crashed has happened or not.
            assert len({key for key, _ in found.items() ^ writer.model.items()}) <= crashed, crash_at
            check(scene, found)
            scene.close()
        if not crashed:
            assert crash_at > 50
            assert states.count("open") + states.count("gone") > 5, "it split"
            assert states.count("gone") > 1, "it merged"
            break


# --- a real cluster


def stubborn(call: Any, *args: Any) -> Any:
    """Puts and deletes of one writer's own keys can be repeated, whatever became of the worker."""
    for _ in range(50):
        with contextlib.suppress(PerdureError):
            return call(*args)
    raise AssertionError("50 failures in a row")


def write(cluster: Cluster, writer: int, model: dict[str, str], rounds: int, steps: list[int]) -> None:
    rng = random.Random(writer)
    with cluster.connect() as client:
        front = client.get("RangeDatabase", f"data@{writer % 2}")
        for number in range(rounds):
            batch = {f"{rng.randrange(1_000):04}-{writer}": f"{writer}.{number}" for _ in range(12)}
            stubborn(front.put_many, batch)
            model |= batch
            for key in rng.sample(sorted(model), k=min(len(model), 6 if number % 2 else 14)):
                stubborn(front.delete, key)
                del model[key]
            steps[writer] = number


@pytest.mark.processes
def test_the_program_of_the_docstring_and_writers_while_workers_are_killed(
    databases: Cluster, tmp_path: Path
) -> None:
    cluster = databases
    with cluster.connect() as client:
        run_program("chunked", cluster, tmp_path)
        models: list[dict[str, str]] = [{} for _ in range(3)]
        steps = [0] * 3
        threads = [
            threading.Thread(target=write, args=(cluster, writer, model, 24, steps))
            for writer, model in enumerate(models)
        ]
        for thread in threads:
            thread.start()
        for kill in range(3):
            cluster.wait_until(
                "they write", lambda seen=6 * (kill + 1): max(steps) >= seen or not threads[0].is_alive()
            )
            cluster.kill(cluster.worker_pids[kill % 2])
        for thread in threads:
            thread.join()
        model = {key: value for part in models for key, value in part.items()}
        front = client.get("RangeDatabase", "data@new")

        def at_rest() -> Any:
            chunks = front.ranges()
            whole = chunks[0]["start"] == "" and chunks[-1]["end"] is None
            joined = all(left["end"] == right["start"] for left, right in itertools.pairwise(chunks))
            return whole and joined and not any(chunk["widening"] for chunk in chunks) and chunks

        check_ranges(cluster.wait_until("nothing splits or merges", at_rest), len(model))
        assert dict(front.scan(limit=1_000)["items"]) == model
        assert len(front.scan(limit=1_000, reverse=True)["items"]) == len(model)
