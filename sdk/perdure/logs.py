"""Log lines: for people on a terminal, JSON objects otherwise.  Used by all of our processes.

Only names, counts, ids and causes are logged: no arguments, results or stored values.  A record
is one line, on a terminal with its traceback below: what came from outside cannot look like a line.
Logging never waits for a reader (`log_writer`), and a text that comes again and again is counted instead;
only a critical record, the last words of a process that ends, is given a moment to get out.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from collections import OrderedDict
from typing import IO, Any

from perdure.limits import Limits
from perdure.log_writer import LogWriter, line_writer

__all__ = ["setup"]

_LIMITS = Limits()
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_MESSAGE_CHARS_MAX = 4_096
_KEPT_AHEAD = 1_024
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _text(message: str, record: logging.LogRecord, formatter: logging.Formatter) -> str:
    text = message
    if record.exc_info:
        text += "\n" + formatter.formatException(record.exc_info)
    if len(text) > _MESSAGE_CHARS_MAX:  # a traceback says at its end what was raised
        text = f"{text[:_KEPT_AHEAD]} [...] {text[_KEPT_AHEAD - _MESSAGE_CHARS_MAX :]}"
    return text


class _Human(logging.Formatter):
    """``12:00:01 worker-0  INFO  message  key=value``"""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        facts = "".join(f"  {key}={value}".translate(_CONTROL) for key, value in _facts(record).items())
        text = _text(record.getMessage().translate(_CONTROL), record, self)
        return f"{clock} {self._process:<10} {record.levelname:<7} {text}{facts}"


class _Json(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": round(record.created, 6),
            "process": self._process,
            "level": record.levelname.lower(),
            "message": _text(record.getMessage(), record, self),
        }
        return json.dumps({**line, **_facts(record), **line}, default=str)


class Repeats:
    """Lets each text pass `log_repeats_max` times in `log_repeats_s`, and counts the rest.

    Any thread may ask.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._texts: OrderedDict[str, list[float]] = OrderedDict()
        """Text -> [end of its period, how often it came in it]; the longest known first."""

    def passes(self, text: str, now: float) -> bool:
        """Whether the text may be logged; `now` is in seconds of a monotonic clock."""
        with self._lock:
            row = self._texts.get(text)
            if row is None:
                if len(self._texts) < self._limits.log_texts_max:
                    self._texts[text] = [now + self._limits.log_repeats_s, 1]
                return True  # of more texts than that only the queue bounds how many there are
            row[1] += 1
            return row[1] <= self._limits.log_repeats_max

    def ended(self, now: float) -> list[tuple[str, int]]:
        """Texts whose period is over, and how many of each were left out."""
        left_out = []
        with self._lock:
            while self._texts:
                text, (end, count) = next(iter(self._texts.items()))
                if end > now:
                    break
                del self._texts[text]
                if count > self._limits.log_repeats_max:
                    left_out.append((text, int(count) - self._limits.log_repeats_max))
        return left_out


class _Handler(logging.Handler):
    """Formats records and hands them to the writer."""

    def __init__(self, formatter: logging.Formatter, stream: IO[str]) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._repeats = Repeats(_LIMITS)
        self._writer = LogWriter(
            line_writer(stream), _LIMITS.log_queue_bytes_max, self._dropped, self._left_out
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Queues the record; one that is critical is waited for, for a moment."""
        urgent = record.levelno >= logging.CRITICAL
        for line in self._left_out():
            self._writer.add(line)
        try:
            if not urgent and not self._repeats.passes(record.getMessage()[:_KEPT_AHEAD], time.monotonic()):
                return
            line = self.format(record)
        except Exception as error:  # logging's own way is to write to stderr, and wait
            line = self._said("a log record cannot be formatted", text=repr(record.msg), error=repr(error))
        self._writer.add(line, urgent=urgent)
        if urgent:
            self.flush()

    def flush(self) -> None:
        """Waits until what was logged is written, for `log_flush_s` at most.  At exit logging calls this."""
        self._writer.flush(_LIMITS.log_flush_s)

    def close(self) -> None:
        """The writer ends; what it cannot write any more is lost."""
        self._writer.close()
        super().close()

    def _left_out(self) -> list[str]:
        return [
            self._said("a text came too often; the rest of it was left out", left_out=count, text=text)
            for text, count in self._repeats.ended(time.monotonic())
        ]

    def _dropped(self, count: int) -> str:
        return self._said("log lines were dropped, since nobody read them in time", dropped=count)

    def _said(self, message: str, **facts: Any) -> str:
        record = {"name": "perdure.logs", "levelno": logging.WARNING, "levelname": "WARNING", "msg": message}
        return self.format(logging.makeLogRecord({**record, **facts}))


def setup(process: str, *, log_json: bool, level: str = "INFO", stream: IO[str] | None = None) -> None:
    """Sends this process's log to `stream` (stderr); `process` names it in each line.

    Raises `ValueError` for an unknown level.
    """
    root = logging.getLogger()
    root.setLevel(level.upper())
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        if isinstance(handler, _Handler):
            handler.close()
    root.addHandler(_Handler(_Json(process) if log_json else _Human(process), stream or sys.stderr))
