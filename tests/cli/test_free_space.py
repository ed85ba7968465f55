"""A disk that gets full is told once, before it is."""

from __future__ import annotations

from perdure.limits import MIB, Limits
from perdure_cli.free_space import FreeSpace

LIMITS = Limits()
SMALL = 1_000 * MIB
LARGE = 1_000_000 * MIB


def test_free_space_below_the_reserve_is_told_once_and_again_after_it_was_well() -> None:
    space = FreeSpace(LIMITS)
    assert space.look(256 * MIB, SMALL) is None
    told = space.look(256 * MIB - 1, SMALL)
    assert told is not None
    assert "255 MiB are free, fewer than 256" in told
    assert space.look(10 * MIB, SMALL) is None
    assert space.look(300 * MIB, SMALL) == "the disk has room again: 300 MiB are free"
    assert space.look(300 * MIB, SMALL) is None
    assert space.look(0, SMALL) is not None


def test_the_reserve_of_a_large_disk_is_a_share_of_it() -> None:
    assert FreeSpace(LIMITS).look(20_000 * MIB, LARGE) is None
    assert FreeSpace(LIMITS).look(20_000 * MIB - 1, LARGE) is not None


def test_the_disk_is_looked_at_every_half_minute() -> None:
    space = FreeSpace(LIMITS)
    looks = [now for now in range(1, 100) if space.is_due(float(now))]
    assert looks == [1, 31, 61, 91]
