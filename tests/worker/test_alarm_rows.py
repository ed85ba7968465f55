"""What is stored of alarms: times that are never early, rows that read back, requests that repeat."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import StorageError, codec
from perdure_worker.alarm_rows import AlarmRow, due_ms_of, instant, microseconds, request_client

NOW_US = 1_700_000_000_000_000
NOW = datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
ROW = AlarmRow(NOW_US, 1, NOW_US // 1000, b"nonce", None)


@pytest.mark.parametrize(
    ("when", "at_us"),
    [
        (NOW, NOW_US),
        (NOW.astimezone(timezone(timedelta(hours=-7))), NOW_US),
        (timedelta(minutes=1), NOW_US + 60_000_000),
        (timedelta(microseconds=-1), NOW_US - 1),
        (1_700_000_000, NOW_US),
        (1_700_000_000.25, NOW_US + 250_000),
        (0, 0),
        (-1, -1_000_000),
        (datetime.max.replace(tzinfo=UTC), 253_402_300_799_999_999),
    ],
)
def test_a_time_is_an_aware_datetime_a_timedelta_from_now_or_seconds_since_the_epoch(
    when: Any, at_us: int
) -> None:
    assert microseconds(when, NOW_US) == at_us


def test_a_datetime_without_a_time_zone_is_an_error_that_says_what_to_write() -> None:
    with pytest.raises(StorageError, match=r"no time zone: datetime.now\(UTC\)"):
        microseconds(datetime(2030, 1, 1), NOW_US)


@pytest.mark.parametrize(
    "when",
    ["tomorrow", None, True, float("nan"), float("inf"), 1e300, -1e12, timedelta.max, 10**30, b"1", [1]],
)
def test_what_is_no_time_is_an_error(when: Any) -> None:
    with pytest.raises(StorageError, match="the time of an alarm"):
        microseconds(when, NOW_US)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_is_shown_as_it_was_set_and_is_due_not_before_it_and_within_a_millisecond(
    when: datetime,
) -> None:
    at_us = microseconds(when, NOW_US)
    assert instant(at_us) == when
    if at_us >= 0:
        assert 0 <= due_ms_of(at_us) * 1000 - at_us < 1000
    else:
        assert due_ms_of(at_us) == 0


def test_a_row_reads_back_also_when_a_later_version_has_added_to_it() -> None:
    row = AlarmRow(NOW_US, 3, None, b"nonce", "ValueError: no")
    assert AlarmRow.decode(row.encode()) == row
    assert AlarmRow.decode(codec.encode([*row, "more"])) == row


def test_an_object_sees_the_number_of_the_next_run_and_of_a_dead_alarm_that_of_the_last() -> None:
    seen = ROW._replace(attempt=3, error="no").seen("tea")
    assert (seen.name, seen.scheduled_at, seen.attempt, seen.dead, seen.error) == ("tea", NOW, 3, False, "no")
    dead = ROW._replace(attempt=8, next_ms=None).seen("tea")
    assert (dead.attempt, dead.dead) == (7, True)


def test_every_attempt_is_one_request_and_another_arming_object_name_or_time_another() -> None:
    first = request_client(b"k" * 32, b"tea", ROW)
    assert len(first) == 16
    assert request_client(b"k" * 32, b"tea", ROW._replace(attempt=5, next_ms=7, error="no")) == first
    others = {
        request_client(b"k" * 32, b"tea", ROW._replace(nonce=b"other")),
        request_client(b"k" * 32, b"tea", ROW._replace(at_us=NOW_US + 1)),
        request_client(b"k" * 32, b"te", ROW._replace(nonce=b"anonce")),
        request_client(b"l" * 32, b"tea", ROW),
    }
    assert len(others | {first}) == 5
