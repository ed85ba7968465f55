"""When a call is sent again."""

from __future__ import annotations

import random

import pytest

from perdure.limits import Limits
from perdure.pacing import Pacing


def test_retries_beyond_the_budget_wait_longer_and_none_is_given_up() -> None:
    pacing = Pacing(random.Random(1))
    rate = Limits.client_retries_per_second_max
    times = [pacing.allow(100.0) for _ in range(3 * rate)]
    assert times == sorted(times)
    assert sum(when == 100.0 for when in times) == pytest.approx(rate, abs=1)
    assert times[-1] == pytest.approx(102.0, abs=0.01)
    assert pacing.allow(200.0) == 200.0


def test_pauses_double_up_to_half_a_second_and_vary() -> None:
    pacing = Pacing(random.Random(2))
    for attempts, middle in ((0, 0.02), (1, 0.04), (4, 0.32), (5, 0.5), (10_000, 0.5)):
        pauses = [pacing.pause(attempts) for _ in range(200)]
        assert middle / 2 <= min(pauses) < middle < max(pauses) <= middle * 1.5
