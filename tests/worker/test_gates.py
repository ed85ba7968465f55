"""The output gate on its own: what it holds, and what it lets go."""

from __future__ import annotations

import pytest

from perdure_worker.gates import Gate


def test_an_output_waits_for_its_group_and_leaves_with_it_once() -> None:
    gate, left = Gate(), []
    for ticket in (1, 2, 2, 3):
        gate.hold(ticket, (lambda *what: left.append(what), ticket, "b", "c"))
    assert (len(gate), left) == (4, [])
    gate.on_durable(1)
    assert left == [(1, "b", "c")]
    gate.on_durable(2)
    gate.on_durable(2)
    assert [ticket for ticket, _, _ in left] == [1, 2, 2]
    assert len(gate) == 1


def test_outputs_of_one_group_leave_in_the_order_in_which_they_came() -> None:
    gate, left = Gate(), []
    for number in range(100):
        gate.hold(1, (lambda number, *_: left.append(number), number, None, None))
    gate.on_durable(1)
    assert left == list(range(100))


def test_when_several_groups_become_durable_at_once_the_oldest_leave_first() -> None:
    gate, left = Gate(), []
    for ticket in (3, 1, 2, 4):
        gate.hold(ticket, (lambda ticket, *_: left.append(ticket), ticket, None, None))
    gate.on_durable(3)
    assert left == [1, 2, 3]
    assert len(gate) == 1


def test_an_output_for_a_durable_group_leaves_at_once() -> None:
    gate, left = Gate(), []
    gate.on_durable(5)
    gate.hold(5, (lambda *what: left.append(what), 1, 2, 3))
    gate.hold(6, (lambda *what: left.append(what), 4, 5, 6))
    assert left == [(1, 2, 3)]


def test_an_output_may_issue_others_while_it_leaves() -> None:
    gate, left = Gate(), []

    def issue(name: str, ticket: int, _: None) -> None:
        left.append(name)
        if name == "first":
            gate.hold(1, (issue, "of a durable group", 1, None))
            gate.hold(ticket, (issue, "of a later group", ticket, None))

    gate.hold(1, (issue, "first", 2, None))
    gate.hold(1, (issue, "second", 1, None))
    gate.on_durable(1)
    assert left == ["first", "of a durable group", "second"]
    gate.on_durable(2)
    assert left[-1] == "of a later group"


def test_an_output_that_raises_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    gate, left = Gate(), []

    def broken(*_: object) -> None:
        raise RuntimeError("cannot leave")

    gate.hold(1, (lambda *_: left.append("before"), None, None, None))
    gate.hold(1, (broken, None, None, None))
    gate.hold(1, (lambda *_: left.append("after"), None, None, None))
    gate.hold(2, (lambda *_: left.append("later"), None, None, None))
    gate.on_durable(2)
    assert left == ["before", "after", "later"]
    assert "cannot leave" in caplog.text
