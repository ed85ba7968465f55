"""One call that has not ended."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest

from perdure.errors import ShardUnavailable
from perdure.pending import Pending, end, unencodable
from perdure.stub import make_target


def test_a_call_knows_its_title_and_the_time_that_it_was_given() -> None:
    pending = Pending()
    pending.target, pending.method = make_target("Counter", "a", 2.5, {}), "get"
    assert (pending.title, pending.timeout_s) == ("Counter.get()", 2.5)


def test_a_call_takes_little_memory() -> None:
    assert not hasattr(Pending(), "__dict__")


@pytest.mark.parametrize("argument", [object(), "\ud800"])
def test_what_cannot_be_sent_is_named_with_its_method(argument: Any) -> None:
    error = unencodable(["Counter", bytes(32), None, "put", [argument], None, 1000, None])
    assert str(error).startswith("Counter.put(): an argument cannot be sent: ")


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
