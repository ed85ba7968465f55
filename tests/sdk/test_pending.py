"""One call that has not ended."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from perdure.errors import ShardUnavailable
from perdure.pending import Pending, end


def test_a_call_begins_unsent_and_untried() -> None:
    fields: list[Any] = [17, "Counter", bytes(32), None, "get", [], None, 1000, None]
    pending = Pending(fields, b"item", 1, 5.0, 6.0, Future(), None)
    assert (pending.sequence, pending.epoch, pending.attempts) == (17, 0, 0)


def test_a_call_takes_little_memory() -> None:
    pending = Pending([1], b"", 0, 0.0, 0.0, Future(), None)
    assert not hasattr(pending, "__dict__")


def test_an_error_reaches_who_waits() -> None:
    answer: Future[Any] = Future()
    end(answer, ShardUnavailable("down"))
    with pytest.raises(ShardUnavailable):
        answer.result(0)


def test_an_error_for_a_call_that_has_ended_is_dropped() -> None:
    done: Future[Any] = Future()
    done.set_result(5)
    end(done, ShardUnavailable("late"))
    assert done.result(0) == 5


def test_both_kinds_of_futures_take_an_outcome() -> None:
    async def of_asyncio() -> None:
        loop = asyncio.get_running_loop()
        cancelled, waiting = loop.create_future(), loop.create_future()
        cancelled.cancel()
        for answer in (cancelled, waiting):
            end(answer, ShardUnavailable("down"))
        with pytest.raises(ShardUnavailable):
            await waiting

    asyncio.run(of_asyncio())
    cancelled: Future[Any] = Future()
    cancelled.cancel()
    end(cancelled, ShardUnavailable("down"))
    assert cancelled.cancelled()
