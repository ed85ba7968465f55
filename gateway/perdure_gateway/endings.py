"""Tells objects that a socket has ended: `web.closed`, again and again until it is answered.

Pure; runs in the gateway's event loop.  The worker removes the socket in the turn that handles it, also when
the handler raises, and does nothing for one that it does not know.  So repeating is harmless, and needed
after every error: the object may just have failed to start.  Each object hears of each of its sockets once.
At most `socket_endings_in_flight_max` are on their way: a worker that dies with ten thousand sockets open, or
a network that takes all clients with it, is no flood.  What ends with this gateway is told by its silence
(see seats.py).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from perdure.errors import Overloaded
from perdure.limits import Limits
from perdure.stub import Target
from perdure.web_wire import CLOSED
from perdure_gateway.timers import Timers

__all__ = ["Calls", "Ending", "Endings"]

_FIRST_PAUSE_S = 0.1
_PAUSE_MAX_S = 10.0
_DOUBLINGS_MAX = 7  # beyond _PAUSE_MAX_S


class Calls(Protocol):
    """Starts a call of an object; `ended(result, error)` is called once, later."""

    def __call__(
        self,
        target: Target,
        method: str,
        args: list[Any],
        timeout_s: float,
        ended: Callable[[Any, BaseException | None], None],
    ) -> None: ...


class Ending:
    """The end of one socket, and how often it was told in vain."""

    __slots__ = ("args", "attempts", "target")

    def __init__(
        self, target: Target, key: bytes, code: int, reason: str, was_clean: bool, error: str | None
    ) -> None:
        self.target = target
        self.args: list[Any] = [key, code, reason, was_clean, error]
        self.attempts = 0


class Endings:
    """All ends that their objects have not answered yet."""

    def __init__(
        self,
        call: Calls,
        timers: Timers,
        *,
        clock: Callable[[], float],
        random_source: random.Random,
        limits: Limits,
    ) -> None:
        self._call = call
        self._timers = timers
        self._clock = clock
        self._random = random_source
        self._limits = limits
        self._waiting: deque[Ending] = deque()
        self._in_flight = 0
        self.open = 0
        """How many are not answered."""

    def add(self, ending: Ending) -> None:
        """Tells the object as soon as there is room."""
        self.open += 1
        self._waiting.append(ending)
        self._start()

    def _start(self) -> None:
        while self._waiting and self._in_flight < self._limits.socket_endings_in_flight_max:
            ending = self._waiting.popleft()
            self._in_flight += 1
            self._call(
                ending.target,
                CLOSED,
                ending.args,
                self._limits.call_timeout_s,
                partial(self._ended, ending),
            )

    def _ended(self, ending: Ending, _: Any, error: BaseException | None) -> None:
        self._in_flight -= 1
        if error is not None:  # of an object that could not start, too; what was handled is answered
            pause = min(_PAUSE_MAX_S, _FIRST_PAUSE_S * 2 ** min(ending.attempts, _DOUBLINGS_MAX))
            pause *= 0.5 + self._random.random()
            if isinstance(error, Overloaded):
                pause = max(pause, error.retry_after)
            ending.attempts += 1
            self._timers.at(self._clock() + pause, lambda: self._again(ending))
        else:
            self.open -= 1
        self._start()

    def _again(self, ending: Ending) -> None:
        self._waiting.append(ending)
        self._start()
