"""What the gateway has taken of each worker's frames, and when it says so.  Pure; the gateway's event loop.

A worker numbers its records of frames by its epoch and a counter.  Guarantees that each is taken once,
in order, whatever is sent again after a death or a lost link: what is not above the mark of its seat is
dropped.  The mark is told within `socket_ack_s` or `socket_ack_records` records, and each
`socket_keepalive_s` anyway to every seat that has or had a socket, as a sign of life (the worker counts a
gateway that it does not hear as dead).
"""

from __future__ import annotations

from collections.abc import Callable

from perdure.limits import Limits

__all__ = ["Seats"]

_AGAIN_S = 0.1
"""After a message that could not leave; a link that comes up is greeted at once."""


class _Seat:
    __slots__ = ("due", "lost", "mark", "untold")

    def __init__(self) -> None:
        self.mark = (0, 0)
        self.untold = 0
        """Records taken since the mark was told."""
        self.due = 0.0
        """When it is told next."""
        self.lost = False
        """The worker has declared this gateway dead and ended its sockets: nothing more is said to it."""


class Seats:
    """The workers that this gateway incarnation has or had sockets with."""

    def __init__(self, tell: Callable[[int, tuple[int, int]], bool], limits: Limits) -> None:
        """`tell(worker, mark)` sends the mark to the worker's present door; False if it could not leave."""
        self._tell = tell
        self._limits = limits
        self._seats: dict[int, _Seat] = {}
        self.wake_at = float("inf")
        """When `tick` is needed next."""

    def join(self, worker: int, now: float) -> None:
        """There is, or will be, a socket of this worker: from now on it hears from this gateway."""
        if worker not in self._seats:
            seat = self._seats[worker] = _Seat()
            self._say(worker, seat, now)

    def on_link(self, worker: int, now: float) -> None:
        """A door of this worker was connected to: it sends frames to whom it has heard."""
        seat = self._seats.get(worker)
        if seat is not None and not seat.lost:
            self._say(worker, seat, now)

    def take(self, worker: int, epoch: int, counter: int) -> bool:
        """Whether the record with this number is new; then it counts as taken."""
        seat = self._seats.get(worker)
        if seat is None or seat.lost or (epoch, counter) <= seat.mark:
            return False
        seat.mark = (epoch, counter)
        seat.untold += 1
        return True

    def taken(self, worker: int, now: float) -> None:
        """All records of a message were looked at: their mark is told soon, or at once if they are many."""
        seat = self._seats.get(worker)
        if seat is None or not seat.untold:
            return
        if seat.untold >= self._limits.socket_ack_records:
            self._say(worker, seat, now)
        else:
            seat.due = min(seat.due, now + self._limits.socket_ack_s)
            self.wake_at = min(self.wake_at, seat.due)

    def repeat(self, worker: int, now: float) -> None:
        """A record came again that was taken: the worker has missed the mark, or asks for it."""
        seat = self._seats.get(worker)
        if seat is not None and not seat.lost:
            seat.untold += 1
            self.taken(worker, now)

    def lose(self, worker: int) -> None:
        """The worker has declared this gateway dead."""
        self._seats.setdefault(worker, _Seat()).lost = True

    def is_lost(self, worker: int) -> bool:
        """Whether that worker takes no sockets of this gateway any more."""
        seat = self._seats.get(worker)
        return seat is not None and seat.lost

    def tick(self, now: float) -> None:
        """Tells the marks that are due."""
        if now < self.wake_at:
            return
        self.wake_at = float("inf")
        for worker, seat in self._seats.items():
            if seat.lost:
                continue
            if seat.due <= now:
                self._say(worker, seat, now)
            self.wake_at = min(self.wake_at, seat.due)

    def _say(self, worker: int, seat: _Seat, now: float) -> None:
        if self._tell(worker, seat.mark):
            seat.untold = 0
            seat.due = now + self._limits.socket_keepalive_s
        else:
            seat.due = now + _AGAIN_S
        self.wake_at = min(self.wake_at, seat.due)
