"""examples/jobs.py: one job of a key runs, some wait, the rest is refused, and status always answers."""

from __future__ import annotations

from typing import Any

from perdure import Limits


def test_one_job_runs_the_next_ones_wait_in_order_and_more_are_refused(
    make_scene: Any, load_example: Any
) -> None:
    example = load_example("jobs")
    scene = make_scene(example.Deployments)
    jobs = [scene.start(example.Deployments, "prod", "deploy", f"b{n}", 1.0) for n in range(4)]
    refused = scene.start(example.Deployments, "prod", "deploy", "b4", 1.0)
    elsewhere = scene.start(example.Deployments, "test", "deploy", "b0", 1.0)
    assert "3 deployments wait for prod already" in str(refused.error())
    assert scene.call(example.Deployments, "prod", "status") == ("b0", ["b1", "b2", "b3"], [])
    scene.advance(1)
    scene.commit()
    assert jobs[0].result() == elsewhere.result() == 1
    assert not jobs[1].answered
    assert scene.call(example.Deployments, "prod", "status") == ("b1", ["b2", "b3"], ["b0"])
    scene.advance(3)
    scene.commit()
    assert [job.result() for job in jobs] == [1, 2, 3, 4]
    assert scene.fields(example.Deployments, "prod") == {"count": 4, "history": ["b0", "b1", "b2", "b3"]}
    assert scene.call(example.Deployments, "prod", "status") == (None, [], ["b0", "b1", "b2", "b3"])


def test_a_job_that_takes_too_long_makes_room_for_the_next(make_scene: Any, load_example: Any) -> None:
    example = load_example("jobs")
    scene = make_scene(example.Deployments, limits=Limits(turn_max_s=5))
    stuck = scene.start(example.Deployments, "prod", "deploy", "stuck", 1_000.0, timeout_ms=1_000)
    scene.advance(3)
    following = scene.start(example.Deployments, "prod", "deploy", "next", 1.0)
    scene.advance(2.5)
    assert "TurnLimit" in str(stuck.error())
    scene.advance(1)
    scene.commit()
    assert following.result() == 1
    assert scene.call(example.Deployments, "prod", "status") == (None, [], ["next"])
