"""Why calls end without an outcome: nothing that may have run is told not to have."""

from __future__ import annotations

import pytest

from perdure import endings
from perdure.errors import DeadlineExceeded, MessageTooLarge, OutcomeUnknown, Overloaded, ShardUnavailable
from perdure.limits import Limits
from perdure.pending import Pending

LIMITS = Limits()


def call(*, epoch: int = 0, maybe_ran: bool = False, attempts: int = 0) -> Pending:
    pending = Pending()
    pending.worker, pending.epoch, pending.maybe_ran, pending.attempts = 1, epoch, maybe_ran, attempts
    return pending


@pytest.mark.parametrize("pending", [call(epoch=3), call(maybe_ran=True), call(maybe_ran=True, attempts=2)])
def test_of_a_call_that_may_have_run_nobody_says_that_it_did_not(pending: Pending) -> None:
    for seated in (True, False):
        assert type(endings.at_deadline(pending, seated)) is OutcomeUnknown
    assert type(endings.at_close(pending)) is OutcomeUnknown


def test_a_call_that_was_never_sent_did_not_run() -> None:
    assert type(endings.at_deadline(call(), True)) is DeadlineExceeded
    assert type(endings.at_deadline(call(), False)) is ShardUnavailable
    assert type(endings.at_deadline(call(attempts=1), True)) is ShardUnavailable
    assert type(endings.at_close(call())) is ShardUnavailable


def test_sizes_are_bounded_for_each_call_and_for_all() -> None:
    assert endings.of_size(LIMITS.message_bytes_max, 0) is None
    too_large = endings.of_size(LIMITS.message_bytes_max + 1, 0)
    assert isinstance(too_large, MessageTooLarge)
    assert (too_large.size, too_large.limit) == (LIMITS.message_bytes_max + 1, LIMITS.message_bytes_max)
    assert endings.of_size(1, LIMITS.client_queue_bytes_max - 1) is None
    overloaded = endings.of_size(1, LIMITS.client_queue_bytes_max)
    assert isinstance(overloaded, Overloaded)
    assert overloaded.limit == "client_queue_bytes_max"
