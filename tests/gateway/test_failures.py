"""Errors of calls as HTTP answers."""

from __future__ import annotations

import json

import pytest

from perdure import errors
from perdure_gateway.bodies import UnsupportedEncoding
from perdure_gateway.failures import NOT_FOUND, Failure, failure_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UnknownNamespace("x", namespace="x"), 404),
        (errors.UnknownMethod("x", namespace="N", method="m"), 404),
        (errors.InvalidArgument("x"), 400),
        (UnsupportedEncoding("x"), 415),
        (errors.MessageTooLarge("x", size=2, limit=1), 413),
        (errors.Overloaded("x", retry_after=3.2), 503),
        (errors.ShardUnavailable("x"), 503),
        (errors.DeadlineExceeded("x"), 504),
        (errors.OutcomeUnknown("x"), 504),
        (errors.NotExecuted("x"), 503),
        (errors.DeadlockError("x"), 503),
        (errors.StorageError("x"), 500),
        (errors.RemoteError("x", type_name="KeyError", object_id="N/x"), 500),
        (ValueError("x"), 500),
    ],
)
def test_what_the_caller_can_do_decides_the_status(error: Exception, status: int) -> None:
    assert failure_of(error).status == status


def test_what_can_be_repeated_says_when() -> None:
    headers = dict(failure_of(errors.Overloaded("busy", retry_after=3.2)).all_headers(0))
    assert headers[b"retry-after"] == b"4"
    assert (
        dict(failure_of(errors.Overloaded("busy", retry_after=0.05)).all_headers(0))[b"retry-after"] == b"1"
    )
    assert dict(failure_of(errors.ShardUnavailable("down")).all_headers(0))[b"retry-after"] == b"1"
    assert b"retry-after" not in dict(failure_of(errors.DeadlineExceeded("late")).all_headers(0))


def test_an_exceptions_inside_stays_inside() -> None:
    secret = errors.RemoteError("password is 123", type_name="db.Error", object_id="N/x")
    for error in (secret, ValueError("password is 123"), errors.StorageError("password is 123")):
        failure = failure_of(error)
        assert failure.internal
        text = failure.body("abcd").decode()
        assert "123" not in text
        assert "db." not in text
        assert json.loads(text)["error"]["id"] == "abcd"


def test_a_traceback_is_shown_where_the_workers_give_it_away() -> None:
    error = errors.RemoteError("x", type_name="E", object_id="N/x", traceback="File app.py, line 3")
    assert json.loads(failure_of(error).body())["error"]["traceback"] == "File app.py, line 3"


def test_nobody_learns_which_of_all_that_cannot_be_reached_exists() -> None:
    assert failure_of(errors.UnknownMethod("x")) == failure_of(errors.UnknownNamespace("y")) == NOT_FOUND


def test_a_message_may_hold_anything() -> None:
    assert json.loads(Failure(400, "T", 'ä "\r\n\ud800').body())["error"]["message"].startswith('ä "')
