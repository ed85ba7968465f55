"""Marks of taken frames: told soon, often enough, and to the door that is there."""

from __future__ import annotations

from perdure.limits import Limits
from perdure_gateway.seats import Seats

LIMITS = Limits()


class Doors:
    def __init__(self) -> None:
        self.told: list[tuple[int, tuple[int, int]]] = []
        self.open = True

    def tell(self, worker: int, mark: tuple[int, int]) -> bool:
        if self.open:
            self.told.append((worker, mark))
        return self.open

    def take(self) -> list[tuple[int, tuple[int, int]]]:
        told, self.told = self.told, []
        return told


def joined() -> tuple[Seats, Doors]:
    doors = Doors()
    seats = Seats(doors.tell, LIMITS)
    seats.join(0, 100.0)
    assert doors.take() == [(0, (0, 0))]
    return seats, doors


def test_a_worker_hears_of_the_gateway_before_its_first_socket_and_once() -> None:
    seats, doors = joined()
    seats.join(0, 100.1)
    seats.join(2, 100.1)
    assert doors.take() == [(2, (0, 0))]


def test_a_mark_is_told_within_milliseconds() -> None:
    seats, doors = joined()
    assert seats.take(0, 1, 5)
    seats.taken(0, 100.5)
    assert doors.take() == []
    assert seats.wake_at == 100.5 + LIMITS.socket_ack_s
    seats.tick(100.51)
    assert doors.take() == []
    seats.tick(100.52)
    assert doors.take() == [(0, (1, 5))]


def test_a_mark_is_told_at_once_when_many_records_were_taken() -> None:
    seats, doors = joined()
    for counter in range(1, LIMITS.socket_ack_records):
        assert seats.take(0, 1, counter)
        seats.taken(0, 100.0)
    assert doors.take() == []
    assert seats.take(0, 1, 64)
    seats.taken(0, 100.0)
    assert doors.take() == [(0, (1, 64))]


def test_a_sign_of_life_is_given_each_second_to_every_worker_with_sockets() -> None:
    seats, doors = joined()
    seats.join(1, 100.5)
    doors.take()
    for tenth in range(1, 31):
        seats.tick(100.0 + tenth / 10)
    told = doors.take()
    assert told.count((0, (0, 0))) == 3
    assert told.count((1, (0, 0))) >= 2
    assert {worker for worker, _ in told} == {0, 1}


def test_a_door_that_was_connected_to_is_greeted_at_once_with_the_mark() -> None:
    seats, doors = joined()
    seats.take(0, 1, 7)
    seats.on_link(0, 100.2)
    seats.on_link(5, 100.2)  # it never had a socket
    assert doors.take() == [(0, (1, 7))]


def test_what_could_not_leave_is_said_again_soon() -> None:
    seats, doors = joined()
    doors.open = False
    seats.tick(101.0)
    assert seats.wake_at <= 101.2
    doors.open = True
    seats.tick(seats.wake_at)
    assert doors.take() == [(0, (0, 0))]


def test_only_what_is_above_the_mark_is_taken_and_a_later_epoch_is_above_all_of_an_earlier_one() -> None:
    seats, _ = joined()
    wanted = [(1, 2, True), (1, 2, False), (1, 1, False), (1, 9, True), (2, 1, True), (1, 10, False)]
    assert [seats.take(0, epoch, counter) for epoch, counter, _ in wanted] == [new for *_, new in wanted]
    assert not seats.take(4, 1, 1), "a worker without sockets has nothing to say"


def test_a_record_that_came_twice_has_its_mark_told_again() -> None:
    seats, doors = joined()
    seats.take(0, 1, 5)
    seats.taken(0, 100.0)
    seats.tick(100.02)
    doors.take()
    assert not seats.take(0, 1, 5)
    seats.repeat(0, 100.1)
    seats.tick(100.12)
    assert doors.take() == [(0, (1, 5))]


def test_nothing_is_said_to_a_worker_that_counts_the_gateway_as_dead() -> None:
    seats, doors = joined()
    seats.lose(0)
    assert seats.is_lost(0)
    assert not seats.is_lost(1)
    assert not seats.take(0, 1, 1)
    seats.on_link(0, 100.0)
    seats.repeat(0, 100.0)
    for second in range(101, 105):
        seats.tick(float(second))
    assert doors.take() == []
