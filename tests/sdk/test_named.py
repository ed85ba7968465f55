"""Request ids that callers choose."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.errors import InvalidArgument
from perdure.named import NamedRequests
from perdure.stub import make_target


class _Sender:
    def __init__(self) -> None:
        self.requests: list[Any] = []

    def start(self, target: Any, method: str, args: Any, kwargs: Any, spec: Any, request: Any = None) -> Any:
        self.requests.append(request)

    def refuse(self, error: Any) -> Any:
        return error


def test_stubs_of_one_request_id_repeat_the_ids_of_their_calls() -> None:
    sender = _Sender()
    target = make_target("Counter", "a", None, {})
    for request_id in ("order 7", b"order 7", "order 8"):
        stub = NamedRequests(request_id, sender)
        for _ in range(2):
            stub.start(target, "m", [], None, None)
    first, second, again, _, other, _ = sender.requests
    assert first == again
    assert (len(first[0]), first[1:], second[1:]) == (16, (1, b"", 0), (2, b"", 0))
    assert other[0] != first[0]


@pytest.mark.parametrize("request_id", ["", b"", "x" * 513, 7, None, "\ud800"])
def test_what_is_no_request_id_is_refused(request_id: Any) -> None:
    with pytest.raises(InvalidArgument):
        NamedRequests(request_id, _Sender())


def test_a_call_that_cannot_be_sent_counts_so_that_later_ones_keep_their_ids() -> None:
    sender = _Sender()
    stub = NamedRequests("order 7", sender)
    stub.refuse(InvalidArgument("an argument cannot be sent"))
    stub.start(make_target("Counter", "a", None, {}), "m", [], None, None)
    assert [request[1] for request in sender.requests] == [2]
