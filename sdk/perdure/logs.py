"""Log lines: for people on a terminal, JSON objects otherwise.  Used by all of our processes.

Only names, counts, ids and causes are logged: no arguments, results or stored values.  A record
is one line, on a terminal with its traceback below: what came from outside cannot look like a line.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import IO, Any

__all__ = ["setup"]

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


def setup(process: str, *, log_json: bool, level: str = "INFO", stream: IO[str] | None = None) -> None:
    """Sends this process's log to `stream` (stderr); `process` names it in each line."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_Json(process) if log_json else _Human(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
