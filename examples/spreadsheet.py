"""A spreadsheet that many people edit at once: one object for each sheet.  Page: `pages/spreadsheet.html`.

Run it with `perdure run examples/spreadsheet.py` and open http://127.0.0.1:8080/ in two browsers.

The object is the sheet's live copy: edits are merged where everybody meets, in one order, so all browsers end
with the same cells.  Every keystroke is a small write that nobody waits for by name: it goes to the disk with
those of other objects while the next one is taken in, and is shown to others when it is there.  Whoever comes
late gets the whole sheet; whoever lost the connection sends again what was not confirmed.  Cursors are kept
with the sockets and gone with them.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from perdure import DurableObject, Request, Response
from perdure.websocket import WebSocket
from serving import site

COLUMNS = 26
ROWS = 100
TEXT_CHARS_MAX = 200
NAME_CHARS_MAX = 32

Value = float | str
"""What a cell shows: a number or a text."""


class Sheet(DurableObject):
    """One sheet and the people who look at it."""

    async def on_start(self) -> None:
        stored = await self.storage.list(prefix="cell/", limit=COLUMNS * ROWS)
        self._book = Book({key.removeprefix("cell/"): text for key, text in stored.items()})

    async def fetch(self, request: Request) -> Response:
        if request.path_params["path"] != "/socket":
            return Response("a sheet has a WebSocket at /socket\n", 404)
        return self.ctx.accept_websocket(request, attachment={"name": None, "cell": "A1"})

    async def websocket_message(self, ws: WebSocket, message: str | bytes) -> None:
        try:
            said = json.loads(message)
        except ValueError:
            said = None
        match said:
            case {"hello": str(name)}:
                self._welcome(ws, name.strip()[:NAME_CHARS_MAX] or "somebody")
            case {"set": [str(cell), str(text)], "edit": edit} if is_cell(cell):
                self._set(ws, cell, text[:TEXT_CHARS_MAX], edit)
            case {"cursor": str(cell)} if is_cell(cell):
                ws.attachment = {**ws.attachment, "cell": cell}
                self._tell(self._person(ws), but=ws)
            case _:
                ws.send_json(
                    {"error": 'say {"hello": name}, {"set": [cell, text], "edit": n} or {"cursor": cell}'}
                )

    def websocket_close(self, ws: WebSocket, code: int, reason: str, was_clean: bool) -> None:
        self._tell({"left": ws.id}, but=ws)

    def _welcome(self, ws: WebSocket, name: str) -> None:
        ws.attachment = {**ws.attachment, "name": name}
        everybody = [self._person(other) for other in self.ctx.websockets() if other.id != ws.id]
        ws.send_json(
            {"sheet": self._book.shown(), "people": [p for p in everybody if p["name"]], "you": ws.id}
        )
        self._tell(self._person(ws), but=ws)

    def _set(self, ws: WebSocket, cell: str, text: str, edit: Any) -> None:
        if text:
            self.storage.put(f"cell/{cell}", text)
        else:
            self.storage.delete(f"cell/{cell}")
        changed = self._book.enter(cell, text)
        self._tell({"cells": self._book.shown(changed), "by": ws.id, "edit": edit})

    def _person(self, ws: WebSocket) -> dict[str, Any]:
        return {"person": ws.id, **ws.attachment}

    def _tell(self, news: dict[str, Any], but: WebSocket | None = None) -> None:
        text = json.dumps(news)
        for ws in self.ctx.websockets():
            if ws.attachment["name"] is not None and (but is None or ws.id != but.id):
                ws.send(text)


# --- cells and what depends on what


class Book:
    """The cells of a sheet: what was typed, and what is shown."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts: dict[str, str] = {}
        self._formulas: dict[str, Formula] = {}
        self._readers: dict[str, set[str]] = {}
        """Cells whose formulas read this one."""
        self._values: dict[str, Value | Wrong] = {}
        for cell, text in texts.items():
            self._place(cell, text)
        self._calculate(set(texts))

    def enter(self, cell: str, text: str) -> set[str]:
        """Types a text into a cell, or empties it; gives the cells that show something else now."""
        self._place(cell, text)
        affected = self._all_readers_of(cell)
        before = {name: self._values.get(name) for name in affected}
        self._calculate(affected)
        return {cell} | {name for name in affected if self._values.get(name) != before[name]}

    def shown(self, cells: set[str] | None = None) -> dict[str, list[Any]]:
        """By cell ``[what was typed, what is shown, whether that is an error]``."""
        chosen = sorted(self._texts if cells is None else cells)
        values = {cell: self._values.get(cell, "") for cell in chosen}
        return {
            cell: [self._texts.get(cell, ""), _text_of(value), isinstance(value, Wrong)]
            for cell, value in values.items()
        }

    def _place(self, cell: str, text: str) -> None:
        if (old := self._formulas.pop(cell, None)) is not None:
            for name in old.reads:
                self._readers[name].discard(cell)
        if text:
            self._texts[cell] = text
        else:
            self._texts.pop(cell, None)
        if text.startswith("="):
            formula = self._formulas[cell] = Formula(text[1:])
            for name in formula.reads:
                self._readers.setdefault(name, set()).add(cell)

    def _all_readers_of(self, cell: str) -> set[str]:
        found, open_cells = {cell}, [cell]
        while open_cells:
            new = self._readers.get(open_cells.pop(), set()) - found
            found |= new
            open_cells.extend(new)
        return found

    def _calculate(self, cells: set[str]) -> None:
        """Each cell after those that it reads; what is left over reads a circle, or is in it."""
        missing = {cell: len(self._reads(cell) & cells) for cell in cells}
        ready = [cell for cell, count in missing.items() if count == 0]
        while ready:
            cell = ready.pop()
            del missing[cell]
            self._values[cell] = self._value(cell)
            for reader in self._readers.get(cell, ()):
                if reader in missing:
                    missing[reader] -= 1
                    if missing[reader] == 0:
                        ready.append(reader)
        for cell in missing:
            self._values[cell] = CYCLE

    def _reads(self, cell: str) -> frozenset[str]:
        formula = self._formulas.get(cell)
        return formula.reads if formula is not None else frozenset()

    def _value(self, cell: str) -> Value | Wrong:
        formula = self._formulas.get(cell)
        if formula is not None:
            if any(self._values.get(name) == CYCLE for name in formula.reads):
                return CYCLE  # before all other errors, so that the order of edits makes no difference
            return formula.value(lambda name: self._values.get(name, ""))
        text = self._texts.get(cell, "")
        try:
            return float(text) if re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)\s*", text) else text
        except OverflowError:
            return text


@dataclass(frozen=True)
class Wrong:
    """Why a formula has no value, as spreadsheets write it."""

    code: str


CYCLE = Wrong("#CYCLE!")


class FormulaError(Exception):
    """Carries the `Wrong` out of a formula."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.wrong = Wrong(code)


def is_cell(name: str) -> bool:
    """Whether a cell of that name is on the sheet: A1 to Z100."""
    return re.fullmatch(r"[A-Z][1-9]\d{0,2}", name) is not None and int(name[1:]) <= ROWS


def _text_of(value: Value | Wrong) -> str:
    if isinstance(value, Wrong):
        return value.code
    return f"{value:.10g}" if isinstance(value, float) else value


# --- formulas: sums, products, comparisons, functions, ranges

Read = Callable[[str], Value | Wrong]
Node = Callable[[Read], Value]

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*|\.\d+)|(?P<text>\"[^\"]*\")|(?P<cell>[A-Za-z]\d+)|(?P<word>[A-Za-z]+)"
    r"|(?P<sign><=|>=|<>|[-+*/^&=<>(),:]))"
)
_ARITHMETIC: Mapping[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": lambda base, power: _real(base**power),
}
_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "<>": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
    "<=": operator.le,
    ">=": operator.ge,
}
_LEVELS: tuple[tuple[str, ...], ...] = (tuple(_COMPARE), ("&",), ("+", "-"), ("*", "/"), ("^",))
"""Signs between two operands, the loosest first."""
_FUNCTIONS: Mapping[str, Callable[[list[float]], float]] = {
    "SUM": sum,
    "AVERAGE": lambda numbers: sum(numbers) / len(numbers),
    "MIN": lambda numbers: min(numbers, default=0.0),
    "MAX": lambda numbers: max(numbers, default=0.0),
    "COUNT": lambda numbers: float(len(numbers)),
}


class Formula:
    """One formula, without its ``=``: which cells it reads, and its value."""

    def __init__(self, text: str) -> None:
        self._names: set[str] = set()
        self._node: Node | None = None
        self._wrong = Wrong("#ERROR!")
        try:
            self._tokens = [*_tokens(text), ("end", "")]
            self._at = 0
            self._node = self._binary(0)
            self._expect("end")
        except FormulaError as error:
            self._node, self._wrong = None, error.wrong
        self.reads = frozenset(self._names)

    def value(self, read: Read) -> Value | Wrong:
        """What it comes to, with other cells read by `read`."""
        if self._node is None:
            return self._wrong
        try:
            return self._node(read)
        except FormulaError as error:
            return error.wrong
        except ZeroDivisionError:
            return Wrong("#DIV/0!")
        except (OverflowError, ValueError):
            return Wrong("#NUM!")

    def _peek(self) -> str:
        return self._tokens[self._at][1]

    def _take(self) -> tuple[str, str]:
        token = self._tokens[self._at]
        self._at += 1
        return token

    def _expect(self, wanted: str) -> None:
        kind, text = self._take()
        if wanted not in (kind, text):
            raise FormulaError("#ERROR!")

    def _binary(self, level: int) -> Node:
        if level == len(_LEVELS):
            return self._unary()
        left = self._binary(level + 1)
        while self._tokens[self._at][0] == "sign" and self._peek() in _LEVELS[level]:
            left = _apply(self._take()[1], left, self._binary(level + 1))
        return left

    def _unary(self) -> Node:
        if self._peek() in ("-", "+"):
            sign = self._take()[1]
            inner = self._unary()
            return (lambda read: -_number(inner(read))) if sign == "-" else inner
        kind, text = self._take()
        if kind == "number":
            number = float(text)
            return lambda read: number
        if kind == "text":
            return lambda read: text[1:-1]
        if kind == "cell":
            return self._cell(text.upper())
        if kind == "word":
            return self._call(text.upper())
        if text == "(":
            inner = self._binary(0)
            self._expect(")")
            return inner
        raise FormulaError("#ERROR!")

    def _cell(self, name: str) -> Node:
        if not is_cell(name):
            raise FormulaError("#REF!")
        self._names.add(name)
        return lambda read: _whole(read(name))

    def _call(self, function: str) -> Node:
        self._expect("(")
        if function == "IF":
            test, yes, no = self._binary(0), self._next_argument(), self._next_argument()
            self._expect(")")
            return lambda read: yes(read) if _number(test(read)) else no(read)
        if function not in _FUNCTIONS:
            raise FormulaError("#NAME?")
        arguments = [self._argument()]
        while self._peek() == ",":
            self._take()
            arguments.append(self._argument())
        self._expect(")")
        return lambda read: _FUNCTIONS[function]([n for numbers in arguments for n in numbers(read)])

    def _next_argument(self) -> Node:
        self._expect(",")
        return self._binary(0)

    def _argument(self) -> Callable[[Read], list[float]]:
        """A range of cells, whose texts do not count, or one value."""
        if self._tokens[self._at][0] == "cell" and self._tokens[self._at + 1][1] == ":":
            first, _, last = self._take()[1].upper(), self._take(), self._take()[1].upper()
            if not (is_cell(first) and is_cell(last)):
                raise FormulaError("#REF!")
            cells = list(_range(first, last))
            self._names.update(cells)
            return lambda read: [v for cell in cells if isinstance(v := _whole(read(cell)), float)]
        one = self._binary(0)
        return lambda read: [_number(one(read))]


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    text, at = text.rstrip(), 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            raise FormulaError("#ERROR!")
        yield found.lastgroup, found[found.lastgroup]
        at = found.end()


def _apply(sign: str, left: Node, right: Node) -> Node:
    if sign == "&":
        return lambda read: _text_of(left(read)) + _text_of(right(read))
    if sign in _COMPARE:
        compare = _COMPARE[sign]
        return lambda read: float(compare(*_alike(left(read), right(read))))
    calculate = _ARITHMETIC[sign]
    return lambda read: calculate(_number(left(read)), _number(right(read)))


def _range(first: str, last: str) -> Iterator[str]:
    columns, rows = sorted((first[0], last[0])), sorted((int(first[1:]), int(last[1:])))
    for column in range(ord(columns[0]), ord(columns[1]) + 1):
        for row in range(rows[0], rows[1] + 1):
            yield f"{chr(column)}{row}"


def _whole(value: Value | Wrong) -> Value:
    if isinstance(value, Wrong):
        raise FormulaError(value.code)
    return value


def _number(value: Value) -> float:
    if isinstance(value, float):
        return value
    if value == "":
        return 0.0
    raise FormulaError("#VALUE!")


def _alike(left: Value, right: Value) -> tuple[Value, Value]:
    if isinstance(left, str) != isinstance(right, str):
        return _number(left), _number(right)
    return left, right


def _real(value: Any) -> float:
    if isinstance(value, complex):
        raise FormulaError("#NUM!")
    return float(value)


app = site("spreadsheet", Sheet)
