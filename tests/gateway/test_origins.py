"""Which pages may open a WebSocket."""

from __future__ import annotations

import pytest

from perdure.errors import InvalidArgument
from perdure_gateway.origins import check_origin, may_upgrade


def upgrade(origin: str | None, host: str = "chat.example", *allowed: str) -> bool:
    headers = [(b"host", host.encode())]
    if origin is not None:
        headers.append((b"origin", origin.encode()))
    return may_upgrade(headers, frozenset(map(check_origin, allowed)))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (None, "chat.example"),
        ("https://chat.example", "chat.example"),
        ("http://chat.example", "chat.example"),
        ("https://Chat.Example", "chat.example:443"),
        ("http://localhost:8000", "localhost:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_the_gateways_own_pages_and_programs_that_are_no_browsers_may_connect(
    origin: str | None, host: str
) -> None:
    assert upgrade(origin, host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "chat.example"),
        ("https://chat.example.evil.example", "chat.example"),
        ("https://chat.example:8443", "chat.example"),
        ("http://localhost:8001", "localhost:8000"),
        ("null", "chat.example"),
        ("", "chat.example"),
        ("chat.example", "chat.example"),
        ("https://user@chat.example", "chat.example"),
        ("https://chat.example/path", "chat.example"),
        ("https://chat.example:port", "chat.example"),
    ],
)
def test_a_foreign_origin_may_not(origin: str, host: str) -> None:
    assert not upgrade(origin, host)


def test_origins_of_the_list_may_and_only_they() -> None:
    assert upgrade("https://app.example", "chat.example", "https://app.example", "http://other.example:81")
    assert upgrade("https://app.example:443", "chat.example", "https://App.example")
    assert not upgrade("http://app.example", "chat.example", "https://app.example")
    assert upgrade("null", "chat.example", "*")


def test_two_origins_or_two_hosts_are_refused() -> None:
    own = (b"origin", b"https://chat.example")
    assert not may_upgrade([(b"host", b"chat.example"), own, (b"origin", b"https://evil.example")], ())
    assert not may_upgrade([(b"host", b"evil.example"), (b"host", b"chat.example"), own], ())
    assert not may_upgrade([own], ())


@pytest.mark.parametrize("entry", ["", "app.example", "null", "https://app.example/", "ftp://app.example"])
def test_an_entry_of_the_list_that_is_no_origin_is_an_error(entry: str) -> None:
    with pytest.raises(InvalidArgument):
        check_origin(entry)
