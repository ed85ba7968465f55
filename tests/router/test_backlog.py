"""Answers for clients that do not read: in order, bounded for each and for all."""

from __future__ import annotations

from perdure_router.backlog import Backlog


def answer(origin: bytes, number: int, size: int = 100) -> tuple[bytes, bytes, bytes]:
    return origin, bytes([number]) * 16, bytes(size - 16)


def test_answers_leave_in_order_and_each_stays_until_it_was_sent() -> None:
    backlog = Backlog(1_000, 1_000)
    answers = [answer(b"a", number) for number in range(3)]
    assert all(backlog.hold(each) for each in answers)
    seen = []
    while (first := backlog.first(b"a")) is not None:
        assert backlog.first(b"a") is first
        seen.append(first)
        backlog.sent(b"a")
    assert seen == answers
    assert (len(backlog), backlog.total_bytes, b"a" in backlog) == (0, 0, False)


def test_one_client_is_bounded_without_touching_another() -> None:
    backlog = Backlog(250, 1_000)
    assert [backlog.hold(answer(b"a", number)) for number in range(3)] == [True, True, False]
    assert backlog.hold(answer(b"b", 1))
    backlog.sent(b"a")
    assert backlog.hold(answer(b"a", 3))


def test_all_clients_together_are_bounded() -> None:
    backlog = Backlog(250, 300)
    assert [backlog.hold(answer(bytes([origin]), 1)) for origin in range(5)] == [True] * 3 + [False] * 2
    assert backlog.origins() == [b"\0", b"\1", b"\2"]


def test_a_forgotten_client_gives_its_room_back() -> None:
    backlog = Backlog(250, 250)
    backlog.hold(answer(b"a", 1))
    backlog.hold(answer(b"a", 2))
    assert backlog.forget(b"a") == 2
    assert backlog.forget(b"a") == 0
    assert backlog.total_bytes == 0
    assert backlog.hold(answer(b"b", 1, size=250))
