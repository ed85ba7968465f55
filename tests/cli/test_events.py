"""Children are named alike in logs, in tests and on the control socket."""

from __future__ import annotations

from perdure_cli.events import ROUTER, ChildId, Role


def test_a_child_reads_as_its_process_is_called() -> None:
    assert [str(ROUTER), str(ChildId(Role.WORKER, 3))] == ["router", "worker-3"]


def test_a_role_of_the_control_socket_is_found_by_its_text() -> None:
    assert ChildId(Role("worker"), 1) == ChildId(Role.WORKER, 1)
    assert ChildId(Role("router"), 0) == ROUTER
