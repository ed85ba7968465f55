"""Four in a row: one object for each match, with spectators and a clock.  Page: `pages/game.html`.

Run it with `perdure run examples/game.py` and open http://127.0.0.1:8080/ in two browsers.

The first two who sit down play, everybody else watches.  A player keeps the seat by a secret of the browser's
own, so that a reload or a lost connection costs nothing.  Each move has 30 seconds: the alarm that ends them
is written together with the move before, so the clock runs also while the object is out of memory or the
worker is down.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from typing import Any

from perdure import Alarm, DurableObject, Request, Response, durable
from perdure.websocket import WebSocket
from serving import site

COLUMNS, ROWS, IN_A_ROW = 7, 6, 4
TURN_S = 30.0
NAME_CHARS_MAX = 24
SECRET_CHARS_MAX = 64
EMPTY = "."
MARKS = "XO"


class Match(DurableObject):
    """One board, two players, any number of spectators."""

    board: str = durable(EMPTY * (COLUMNS * ROWS))
    """Row by row from the top."""
    players: list[list[str]] = durable(default_factory=list)
    """``[name, secret]`` of X, then of O."""
    turn: int = durable(0)
    """Who moves next."""
    ends_ms: int = durable(0)
    """When that player's time is up."""
    result: str = durable("")
    """ "X", "O" or "draw", when the match has ended."""
    reason: str = durable("")
    scores: list[int] = durable(default_factory=lambda: [0, 0])

    async def fetch(self, request: Request) -> Response:
        if request.path_params["path"] != "/socket":
            return Response("a match has a WebSocket at /socket\n", 404)
        secret = request.query_params.get("secret", "")[:SECRET_CHARS_MAX]
        return self.ctx.accept_websocket(request, attachment=secret)

    def websocket_message(self, ws: WebSocket, message: str | bytes) -> None:
        try:
            said = json.loads(message)
        except ValueError:
            said = None
        seat = self._seat_of(ws)
        match said:
            case {"look": _}:
                self._show(ws)
            case {"sit": str(name)} if seat is None and len(self.players) < len(MARKS) and ws.attachment:
                self._sit(ws, name.strip()[:NAME_CHARS_MAX] or "somebody")
            case {"drop": int(column)} if seat == self.turn and self._is_on and 0 <= column < COLUMNS:
                self._drop(column)
            case {"again": _} if seat is not None and self.result:
                self._begin(1 - self.turn if self.result == "draw" else 1 - MARKS.index(self.result))
            case _:
                ws.send_json({"error": "that cannot be done now"})

    def websocket_close(self, ws: WebSocket, code: int, reason: str, was_clean: bool) -> None:
        self._show_all(but=ws)

    def alarm(self, alarm: Alarm) -> None:
        if self._is_on and time.time() * 1000 >= self.ends_ms:
            self._end(MARKS[1 - self.turn], "time is up")
            self._show_all()

    # --- the match

    @property
    def _is_on(self) -> bool:
        return len(self.players) == len(MARKS) and not self.result

    def _sit(self, ws: WebSocket, name: str) -> None:
        self.players.append([name, ws.attachment])
        if len(self.players) == len(MARKS):
            self._begin(0)
        self._show_all()

    def _begin(self, first: int) -> None:
        self.board = EMPTY * (COLUMNS * ROWS)
        self.result = self.reason = ""
        self.turn = first
        self._start_clock()
        self._show_all()

    def _drop(self, column: int) -> None:
        row = max((row for row in range(ROWS) if self.board[row * COLUMNS + column] == EMPTY), default=None)
        if row is None:
            return
        at = row * COLUMNS + column
        self.board = self.board[:at] + MARKS[self.turn] + self.board[at + 1 :]
        if four := winning_row(self.board):
            self._end(self.board[four[0]], "four in a row")
        elif EMPTY not in self.board:
            self._end("draw", "the board is full")
        else:
            self.turn = 1 - self.turn
            self._start_clock()
        self._show_all()

    def _start_clock(self) -> None:
        self.ends_ms = int((time.time() + TURN_S) * 1000)
        self.storage.set_alarm(timedelta(seconds=TURN_S), name="clock")

    def _end(self, result: str, reason: str) -> None:
        self.result, self.reason = result, reason
        self.storage.delete_alarm(name="clock")
        if result != "draw":
            self.scores[MARKS.index(result)] += 1

    # --- who sees what

    def _seat_of(self, ws: WebSocket) -> int | None:
        seats = (seat for seat, (_, secret) in enumerate(self.players) if secret == ws.attachment)
        return next(seats, None)

    def _show(self, ws: WebSocket, present: set[str] | None = None, watching: int = 0) -> None:
        if present is None:
            present, watching = self._audience()
        players = [{"name": name, "here": secret in present} for name, secret in self.players]
        news: dict[str, Any] = {
            "board": self.board,
            "players": players,
            "you": self._seat_of(ws),
            "turn": self.turn if self._is_on else None,
            "left_ms": max(0, self.ends_ms - int(time.time() * 1000)) if self._is_on else None,
            "result": self.result,
            "reason": self.reason,
            "row": winning_row(self.board),
            "scores": self.scores,
            "watching": watching,
        }
        ws.send_json(news)

    def _show_all(self, but: WebSocket | None = None) -> None:
        audience = self._audience(but)
        for ws in self.ctx.websockets():
            if but is None or ws.id != but.id:
                self._show(ws, *audience)

    def _audience(self, but: WebSocket | None = None) -> tuple[set[str], int]:
        """Secrets of those who are here, and how many only watch."""
        here = [ws for ws in self.ctx.websockets() if but is None or ws.id != but.id]
        return {str(ws.attachment) for ws in here}, sum(self._seat_of(ws) is None for ws in here)


def winning_row(board: str) -> list[int]:
    """The places of the first four in a row, or none."""
    for row in range(ROWS):
        for column in range(COLUMNS):
            for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
                last_row, last_column = row + 3 * down, column + 3 * right
                if last_row >= ROWS or not 0 <= last_column < COLUMNS:
                    continue
                places = [(row + i * down) * COLUMNS + column + i * right for i in range(IN_A_ROW)]
                if {board[place] for place in places} in ({MARKS[0]}, {MARKS[1]}):
                    return places
    return []


app = site("game", Match)
