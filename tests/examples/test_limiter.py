"""examples/limiter.py: tokens come back with time, each key has its own, and nothing is stored."""

from __future__ import annotations

from typing import Any


def test_a_full_bucket_gives_its_burst_and_then_its_rate(make_scene: Any, load_example: Any) -> None:
    example = load_example("limiter")
    scene = make_scene(example.RateLimiter)
    burst = int(example.BURST)
    assert [scene.call(example.RateLimiter, "ann", "take") for _ in range(burst)] == [0.0] * burst
    wait_s = scene.call(example.RateLimiter, "ann", "take")
    assert 0 < wait_s <= 1 / example.RATE_PER_S
    scene.advance(wait_s + 0.001)
    assert scene.call(example.RateLimiter, "ann", "take") == 0.0
    assert scene.call(example.RateLimiter, "ann", "take") > 0
    assert scene.call(example.RateLimiter, "bob", "take") == 0.0


def test_who_asks_in_vain_pays_nothing_and_costs_are_counted(make_scene: Any, load_example: Any) -> None:
    example = load_example("limiter")
    scene = make_scene(example.RateLimiter)
    assert scene.call(example.RateLimiter, "ann", "take", example.BURST - 1) == 0.0
    assert scene.call(example.RateLimiter, "ann", "take", 5.0) == 4.0 / example.RATE_PER_S
    assert scene.call(example.RateLimiter, "ann", "take", 1.0) == 0.0
    assert scene.call(example.RateLimiter, "ann", "take", example.BURST + 1) == float("inf")


def test_nothing_is_stored_and_an_idle_bucket_that_leaves_memory_was_full(
    make_scene: Any, load_example: Any
) -> None:
    example = load_example("limiter")
    scene = make_scene(example.RateLimiter)
    scene.call(example.RateLimiter, "ann", "take", example.BURST)
    before = list(scene.disk.between(b"\x01", b"\xff"))
    assert before == []
    assert scene.limits.idle_evict_s >= example.BURST / example.RATE_PER_S
    scene.advance(scene.limits.idle_evict_s + 1)
    assert scene.do(scene.host.evict_idle) == 1
    assert scene.call(example.RateLimiter, "ann", "take", example.BURST) == 0.0
