"""Caps on connections, in all and by address."""

from __future__ import annotations

from dataclasses import replace

from perdure.limits import Limits
from perdure_gateway.admission import Admission


def test_an_address_gets_its_share_and_no_more_and_others_are_not_concerned() -> None:
    admission = Admission(replace(Limits(), sockets_per_address_max=2))
    assert [admission.admit("a") for _ in range(3)] == [None, None, 429]
    assert admission.admit("b") is None
    admission.leave("a")
    assert admission.admit("a") is None


def test_all_together_get_no_more_than_the_gateway_holds() -> None:
    admission = Admission(replace(Limits(), sockets_per_gateway_max=2))
    assert [admission.admit(address) for address in "abc"] == [None, None, 503]
    admission.leave("a")
    assert admission.open == 1
    assert admission.admit("c") is None


def test_addresses_that_left_are_forgotten() -> None:
    admission = Admission(Limits())
    admission.admit("a")
    admission.leave("a")
    assert admission._by_address == {}
