"""A host's figures come from the one place where limits stand."""

from __future__ import annotations

import dataclasses

import pytest

from perdure.limits import Limits
from perdure_worker.settings import HostSettings


def test_settings_begin_with_the_limits_of_the_cluster_and_tell_no_tracebacks() -> None:
    settings = HostSettings(slots=range(8), slot_count=8)
    assert settings.limits == Limits()
    assert settings.idle_evict_s == Limits().idle_evict_s
    assert settings.live_objects_max == Limits().live_objects_max
    assert settings.tracebacks is False


def test_settings_do_not_change_while_a_worker_runs() -> None:
    settings = HostSettings(slots=range(8), slot_count=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.slot_count = 9  # type: ignore[misc]
