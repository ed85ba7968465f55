"""File descriptors: as many as allowed, and a warning while there still are some."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator

import pytest

from perdure import descriptors


@pytest.fixture(autouse=True)
def limits() -> Iterator[tuple[int, int]]:
    """The tests lower the soft limit of their own process; afterwards it is as before."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_process_takes_all_that_it_may_have(limits: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    descriptors.raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])


@pytest.mark.parametrize(("hard", "warned"), [(1_024, True), (4_095, True), (4_096, False)])
def test_a_low_hard_limit_is_said_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, hard: int, warned: bool
) -> None:
    # The hard limit of a process without privileges cannot be raised again.
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda what: (100, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: asked.append(pair))
    descriptors.raise_limit()
    monkeypatch.undo()
    assert asked == [(hard, hard)]
    assert bool(warnings(caplog)) is warned


def test_no_limit_at_all_is_no_low_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (100, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda what, pair: None)
    descriptors.raise_limit()
    descriptors.Watch().look()
    monkeypatch.undo()
    assert warnings(caplog) == []


def test_scarce_descriptors_are_said_once_each_time_that_they_become_scarce(
    limits: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    watch = descriptors.Watch()
    limit = 2 * max(32, *map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
    for _ in range(2):
        opened = [os.dup(0)]
        while opened[-1] < 0.85 * limit:
            opened.append(os.dup(0))
        watch.look()
        assert watch.look() > 0.8 * limit
        for descriptor in opened:
            os.close(descriptor)
        assert watch.look() < 0.8 * limit
    assert len(warnings(caplog)) == 2


def test_when_none_is_left_the_limit_is_what_is_in_use(
    limits: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    watch = descriptors.Watch()
    lowest = watch.look()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    assert watch.look() == lowest
    assert len(warnings(caplog)) == 1
