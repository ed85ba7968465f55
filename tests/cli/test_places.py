"""Where a run listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from perdure_cli.errors import AddressInUse
from perdure_cli.places import Places, address_of, check_bindable, open_listener

from .cluster import free_port


def test_every_incarnation_of_a_worker_has_a_socket_of_its_own() -> None:
    places = Places(Path("/data/run"))
    assert places.url == "ipc:///data/run/router"
    names = {places.door(worker, epoch) for worker in range(3) for epoch in range(3)}
    assert len(names) == 9


def test_places_are_there_while_the_supervisors_socket_is(short_path: Path) -> None:
    places = Places(short_path)
    assert not places.are_there
    Path(places.control.removeprefix("ipc://")).touch()
    assert places.are_there


def test_an_address_that_somebody_listens_at_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        with pytest.raises(AddressInUse, match=taken):
            check_bindable([f"tcp://127.0.0.1:{free_port()}", taken])
    check_bindable([taken])


def test_the_gateways_socket_listens_at_once_and_is_found_by_its_address() -> None:
    with open_listener("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert address_of(listener) == f"http://127.0.0.1:{port}"
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        with pytest.raises(AddressInUse, match=rf"127\.0\.0\.1:{port}: .*--http off"):
            open_listener("127.0.0.1", port)
    open_listener("127.0.0.1", port).close()


def test_a_socket_at_all_addresses_is_found_at_this_machines_own() -> None:
    with open_listener("0.0.0.0", 0) as listener:
        assert address_of(listener).startswith("http://127.0.0.1:")


def test_a_host_that_nobody_has_is_told() -> None:
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(AddressInUse, match=host):
            open_listener(host, 0)
