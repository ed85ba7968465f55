"""HTTP on the wire: what passes can be written as HTTP as it stands, and what cannot is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import codec
from perdure.errors import InvalidArgument, MessageTooLarge
from perdure.limits import Limits
from perdure.web_wire import check_headers, check_request, essence, read_url, request_map

LIMITS = Limits()


def test_a_request_survives_the_way_and_what_a_newer_peer_adds_is_kept_out_of_the_way() -> None:
    made = request_map(
        "POST",
        "/a b",
        query=b"x=1",
        headers=[(b"X-Name", b"caf\xe9")],
        client=("::1", 5),
        body=b"hello",
        length=5,
        socket=b"k" * 24,
    )
    assert made["raw_path"] == b"/a b"
    assert made["headers"] == [[b"x-name", b"caf\xe9"]]
    checked = check_request({**codec.decode(codec.encode(made)), "new": 1})
    assert checked["headers"] == [(b"x-name", b"caf\xe9")]
    assert checked["body"] == b"hello"


@pytest.mark.parametrize(
    "facts",
    [
        {"method": "GET x"},
        {"method": ""},
        {"method": "GET\r\n"},
        {"path": "x"},
        {"path": b"/"},
        {"query": "a"},
        {"client": ["::1"]},
        {"client": ["::1", "5"]},
        {"client": 5},
        {"body": "text"},
        {"more": 1},
        {"length": "5"},
        {"upload": "5"},
        {"socket": b"short"},
        {"headers": {}},
        {"headers": [[b"a"]]},
        {"headers": [["a", "b"]]},
        {"headers": [5]},
    ],
)
def test_what_is_no_request_is_refused(facts: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        check_request({**request_map("GET", "/"), **facts})


def test_a_request_that_lacks_something_is_refused() -> None:
    whole = request_map("GET", "/")
    for name in whole:
        if name != "upload":
            with pytest.raises(InvalidArgument, match=name):
                check_request({key: value for key, value in whole.items() if key != name})
    with pytest.raises(InvalidArgument):
        check_request([])


@pytest.mark.parametrize("value", [b"a\r\nx: y", b"a\nb", b"a\rb", b"\0"])
def test_a_value_that_would_end_its_header_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument, match="CR, LF or NUL"):
        check_headers([(b"x-name", value)])


@pytest.mark.parametrize("name", [b"", b"a b", b"a:", b"a\r\n", b"\xe9", b"a\0", b"(a)"])
def test_what_is_no_name_of_a_header_is_refused(name: bytes) -> None:
    with pytest.raises(InvalidArgument, match="no name of a header"):
        check_headers([(name, b"x")])


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8)), max_size=4))
def test_no_headers_that_pass_can_begin_a_line_of_their_own(pairs: list[tuple[bytes, bytes]]) -> None:
    try:
        headers = check_headers(pairs)
    except InvalidArgument:
        return
    text = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    assert text.count(b"\r") == text.count(b"\n") == len(headers)
    assert b"\0" not in text
    assert all(name and name == name.lower() for name, _ in headers)


def test_headers_are_bounded_in_number_and_bytes() -> None:
    assert len(check_headers([(b"a", b"")] * LIMITS.http_headers_max)) == LIMITS.http_headers_max
    with pytest.raises(InvalidArgument, match="http_headers_max"):
        check_headers([(b"a", b"")] * (LIMITS.http_headers_max + 1))
    fits = bytes(b"x" * (LIMITS.http_headers_bytes_max - 1))
    assert check_headers([(b"a", fits)])
    with pytest.raises(MessageTooLarge):
        check_headers([(b"a", fits + b"x")])


def test_an_idempotency_key_stands_for_what_is_asked_and_not_for_the_way_it_came() -> None:
    def kept(**facts: Any) -> list[Any]:
        more = facts.pop("more", False)
        return essence([{**request_map("POST", facts.pop("path", "/a"), **facts), "more": more}])

    assert kept(client=("::1", 1), headers=[(b"a", b"b")]) == kept(client=("::1", 2))
    assert kept() != kept(path="/b")
    assert kept() != kept(query=b"a")
    assert kept(body=b"a") != kept(body=b"b")
    assert kept(body=b"a", more=True, length=9) == kept(body=b"ab", more=True, length=9)
    assert kept(more=True, length=9) != kept(more=True, length=8)
    assert essence([]) != essence([5])


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("/", ("http", "/", b"/", b"", None)),
        ("/a%20b?x=%31&y", ("http", "/a b", b"/a%20b", b"x=%31&y", None)),
        ("http://example.org", ("http", "/", b"/", b"", b"example.org")),
        ("https://me:secret@example.org:8443/x#part", ("https", "/x", b"/x", b"", b"example.org:8443")),
        ("/%ff", ("http", "/\ufffd", b"/%ff", b"", None)),
    ],
)
def test_urls_and_paths_are_read(url: str, parts: Any) -> None:
    assert read_url(url) == parts


@pytest.mark.parametrize("url", ["ftp://x/", "http:///x", "//host/x", "/\u00e9", "http://[x/", "mailto:a@b"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidArgument):
        read_url(url)
