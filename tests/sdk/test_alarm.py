"""`Alarm`: a value that says which alarm it is, and how it has fared."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from perdure import Alarm

WHEN = datetime(2030, 1, 1, tzinfo=UTC)


def test_an_alarm_is_a_value_that_cannot_be_changed_by_accident() -> None:
    alarm = Alarm("tea", WHEN)
    assert alarm == Alarm("tea", WHEN, attempt=1, dead=False, error=None)
    assert alarm != Alarm("tea", WHEN, attempt=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        alarm.attempt = 2  # type: ignore[misc]
