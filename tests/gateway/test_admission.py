"""Who may connect: connections in all and by address."""

from __future__ import annotations

import pytest

from perdure.errors import InvalidArgument
from perdure_gateway.admission import Admission


def test_all_connections_together_are_bounded_also_for_who_is_exempt() -> None:
    admission = Admission(connections_max=3, per_address_max=2)
    assert [admission.enter("127.0.0.1") for _ in range(4)] == [True, True, True, False]
    admission.leave("127.0.0.1")
    assert admission.enter("192.0.2.1")
    assert (admission.connections, admission.refused) == (3, 1)


def test_one_address_has_its_share_and_others_theirs() -> None:
    admission = Admission(connections_max=100, per_address_max=2)
    assert [admission.enter("192.0.2.1") for _ in range(3)] == [True, True, False]
    assert admission.enter("192.0.2.2")
    admission.leave("192.0.2.1")
    assert admission.enter("192.0.2.1")


def test_an_ipv6_network_of_one_customer_counts_as_one_address() -> None:
    admission = Admission(connections_max=100, per_address_max=2)
    assert admission.enter("2001:db8::1")
    assert admission.enter("2001:db8::2:3")
    assert not admission.enter("2001:db8::ffff")
    assert admission.enter("2001:db8:0:1::1")


def test_an_ipv4_client_at_an_ipv6_socket_is_the_same_client() -> None:
    admission = Admission(connections_max=100, per_address_max=1)
    assert admission.enter("::ffff:192.0.2.1")
    assert not admission.enter("192.0.2.1")
    assert Admission(connections_max=9, per_address_max=0).enter("::ffff:127.0.0.1")


def test_a_trusted_proxy_is_exempt_and_nobody_beside_it() -> None:
    admission = Admission(connections_max=100, per_address_max=1, exempt=["10.0.0.0/8"])
    assert all(admission.enter("10.1.2.3") for _ in range(5))
    assert [admission.enter("127.0.0.1") for _ in range(2)] == [True, False]


def test_an_unknown_address_counts_like_any_other() -> None:
    admission = Admission(connections_max=100, per_address_max=1)
    assert [admission.enter(None), admission.enter(None)] == [True, False]


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        Admission(connections_max=1, per_address_max=1, exempt=["proxy"])
