"""What each error says of the effect of a call, and how errors cross processes."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from perdure import codec, errors
from perdure.errors import (
    DeadlineExceeded,
    DeadlockError,
    InvalidArgument,
    MessageTooLarge,
    NotExecuted,
    OutcomeUnknown,
    Overloaded,
    PerdureError,
    RemoteError,
    ShardUnavailable,
    StorageError,
    UnknownMethod,
    UnknownNamespace,
    from_wire,
    to_wire,
)

TRAVELLERS: list[PerdureError] = [
    NotExecuted("later"),
    Overloaded("full", limit="mailbox_calls_max", retry_after=2.5),
    ShardUnavailable("down"),
    DeadlineExceeded("late"),
    UnknownNamespace("who?", namespace="Counter"),
    UnknownMethod("what?", namespace="Counter", method="explode"),
    InvalidArgument("wrong"),
    DeadlockError("round", cycle=["A/x", "B/y", "A/x"]),
    MessageTooLarge("fat", size=11, limit=10),
    OutcomeUnknown("lost"),
    StorageError("bad key"),
]


class FullDisk(Overloaded):
    """A subclass that other processes do not know, with a fact of its own."""

    fact_names = ("limit", "retry_after", "disk")
    disk = "/data"


def crossed(error: PerdureError) -> PerdureError:
    """The error after a journey over the wire."""
    return from_wire(*codec.decode(codec.encode(to_wire(error))))


@pytest.mark.parametrize("error", TRAVELLERS, ids=lambda error: type(error).__name__)
def test_an_error_crosses_the_wire_with_its_class_text_and_facts(error: PerdureError) -> None:
    arrived = crossed(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert arrived.facts() == error.facts()


def test_facts_are_attributes() -> None:
    full = crossed(Overloaded("full", limit="mailbox_calls_max", retry_after=2.5))
    assert isinstance(full, Overloaded)
    assert (full.limit, full.retry_after) == ("mailbox_calls_max", 2.5)


def test_a_subclass_travels_as_the_nearest_class_that_everybody_knows() -> None:
    arrived = crossed(FullDisk("full", limit="disk"))
    assert type(arrived) is Overloaded
    assert arrived.facts() == {"limit": "disk", "retry_after": 1.0}
    assert type(crossed(codec.BadMessage("junk"))) is InvalidArgument


@pytest.mark.parametrize("code", ["SomethingNewer", "PerdureError", "RemoteError", "ValueError", None, [1]])
def test_an_error_that_is_not_known_here_says_nothing_of_the_effect(code: object) -> None:
    error = from_wire(code, "of a newer server", {})
    assert type(error) is OutcomeUnknown
    assert "of a newer server" in str(error)


@pytest.mark.parametrize("facts", [None, 5, [1], {"unheard": 1, "self": 2, "message": 3}])
def test_facts_that_are_not_known_here_are_left_out(facts: object) -> None:
    error = from_wire("Overloaded", 404, facts)
    assert type(error) is Overloaded
    assert (str(error), error.limit, error.retry_after) == ("404", None, 1.0)


def test_what_did_not_run_is_told_from_what_may_have_run() -> None:
    not_executed = {type(error) for error in TRAVELLERS if isinstance(error, NotExecuted)}
    assert {type(error) for error in TRAVELLERS} - not_executed == {OutcomeUnknown, StorageError}
    assert not issubclass(RemoteError, NotExecuted | OutcomeUnknown)


def test_the_tree_in_the_documentation_is_the_tree_of_the_classes() -> None:
    assert errors.__doc__ is not None
    parents: dict[str, str] = {}
    above = ["PerdureError"]
    for branch, name in re.findall(r"^ {4}([│├└─ ]+)(\w+) ", errors.__doc__, re.MULTILINE):
        depth = len(branch) // 4
        parents[name] = above[depth - 1]
        above[depth:] = [name]
    public = [getattr(errors, name) for name in errors.__all__]
    classes = [cls for cls in public if isinstance(cls, type) and cls is not PerdureError]
    assert parents == {cls.__name__: cls.__base__.__name__ for cls in classes}


def test_a_remote_error_says_what_was_raised_and_where() -> None:
    error = RemoteError("no funds", type_name="bank.Refused", object_id="Account/ada")
    assert str(error) == "bank.Refused: no funds (raised in Account/ada)"
    assert (error.causes, error.traceback) == ([], None)


@pytest.mark.parametrize(
    "error",
    [
        *TRAVELLERS,
        RemoteError("m", type_name="a.B", object_id="C/d", causes=[("E", "f")], traceback="t"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_an_error_can_be_copied_as_pools_of_processes_do(error: PerdureError, duplicate: Any) -> None:
    again = duplicate(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert vars(again) == vars(error)
