"""Log lines: one a record, readable by people or machines, and nobody outside can forge one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from perdure import logs
from perdure.limits import Limits


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, which `setup` takes over, is given back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def logged(*, log_json: bool, level: str = "INFO", text: str = "a thing", **facts: Any) -> str:
    """What one warning looks like."""
    stream = io.StringIO()
    logs.setup("worker-0", log_json=log_json, level=level, stream=stream)
    logging.getLogger("perdure.test").warning(text, extra=facts)
    return written(stream)


def raised(*, log_json: bool, error: Exception) -> str:
    stream = io.StringIO()
    logs.setup("worker-0", log_json=log_json, stream=stream)
    try:
        raise error
    except Exception:
        logging.getLogger("perdure.test").exception("it failed")
    return written(stream)


def written(stream: io.StringIO) -> str:
    logging.getLogger().handlers[0].flush()
    return stream.getvalue()


def test_people_get_a_line_with_time_process_level_text_and_facts() -> None:
    line = logged(log_json=False, text="a worker died", epoch=7, why="signal 9")
    clock, rest = line.split(" ", 1)
    assert len(clock.split(":")) == 3
    assert rest == "worker-0   WARNING a worker died  epoch=7  why=signal 9\n"


def test_machines_get_a_json_object_a_line() -> None:
    line = logged(log_json=True, text="a worker died", epoch=7, slots=[0, 512], id=b"x")
    record = json.loads(line)
    assert line.count("\n") == 1
    assert list(record) == ["time", "process", "level", "message", "epoch", "slots", "id"]
    assert (record["process"], record["level"], record["message"]) == ("worker-0", "warning", "a worker died")
    assert (record["epoch"], record["slots"], record["id"]) == (7, [0, 512], "b'x'")


def test_facts_cannot_replace_what_the_log_says_itself() -> None:
    record = json.loads(logged(log_json=True, time="never", level="debug"))
    assert record["level"] == "warning"
    assert isinstance(record["time"], float)


@pytest.mark.parametrize("log_json", [False, True])
def test_text_from_outside_cannot_look_like_another_line(log_json: bool) -> None:
    forged = "x\r\n12:00:00 worker-0   INFO    all is well\u2028\x1b[2J\x85\x00"
    output = logged(log_json=log_json, text=forged, name_of_object=forged)
    assert len(output.splitlines()) == 1
    assert not set("\x1b\x85\x00\u2028") & set(output)
    if log_json:
        assert json.loads(output)["message"] == json.loads(output)["name_of_object"] == forged
    else:
        assert "x\\x0d\\x0a12:00:00" in output


@pytest.mark.parametrize("log_json", [False, True])
def test_an_exception_is_logged_with_its_traceback(log_json: bool) -> None:
    output = raised(log_json=log_json, error=LookupError("no such thing"))
    text = json.loads(output)["message"] if log_json else output
    assert text.index("it failed") < text.index("Traceback") < text.index("LookupError: no such thing")


def test_a_long_message_is_cut_in_its_middle_and_says_so() -> None:
    text = json.loads(raised(log_json=True, error=ValueError("x" * 20_000 + "the end")))["message"]
    assert len(text) < 5_000
    assert text.startswith("it failed\nTraceback")
    assert " [...] " in text
    assert text.endswith("the end")


def test_records_below_the_level_are_left_out() -> None:
    assert logged(log_json=False, level="error") == ""
    assert logged(log_json=False, level="warning") != ""


def test_setting_up_twice_logs_once(root_logger: logging.Logger) -> None:
    logged(log_json=False)
    assert logged(log_json=True).count("\n") == 1
    assert len(root_logger.handlers) == 1


def test_an_unknown_level_is_an_error() -> None:
    with pytest.raises(ValueError, match="LOUD"):
        logs.setup("worker-0", log_json=False, level="loud")


def test_a_record_that_cannot_be_formatted_is_a_line_too() -> None:
    stream = io.StringIO()
    logs.setup("worker-0", log_json=True, stream=stream)
    logging.getLogger("perdure.test").warning("%d things", "no number")
    line = json.loads(written(stream))
    assert "cannot be formatted" in line["message"]
    assert "%d things" in line["text"]


# --- what comes again and again

SMALL = Limits(log_repeats_max=3, log_repeats_s=10.0, log_texts_max=2)


def test_a_text_that_comes_again_and_again_is_counted_and_others_pass() -> None:
    repeats = logs.Repeats(SMALL)
    assert [repeats.passes("again", now) for now in range(5)] == [True, True, True, False, False]
    assert repeats.passes("another", 5)
    assert repeats.ended(9.9) == []
    assert repeats.ended(10.0) == [("again", 2)]
    assert repeats.ended(100.0) == []
    assert repeats.passes("again", 101.0)


def test_no_more_texts_are_remembered_than_allowed_and_those_of_the_past_make_room() -> None:
    repeats = logs.Repeats(SMALL)
    assert all(repeats.passes(str(number), 0.0) for number in range(100))
    assert all(repeats.passes("99", 0.0) for _ in range(10)), "it is not counted"
    assert repeats.ended(10.0) == []
    assert [repeats.passes("99", 10.0) for _ in range(4)] == [True, True, True, False]


def test_the_log_says_how_often_a_text_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    logs.setup("worker-0", log_json=True, stream=stream)
    handler = logging.getLogger().handlers[0]
    monkeypatch.setattr(handler, "_repeats", repeats := logs.Repeats(SMALL))
    for number in range(8):
        logging.getLogger("perdure.test").warning("it failed", extra={"number": number})
    for end in repeats._texts.values():
        end[0] = 0.0  # the period is over
    logging.getLogger("perdure.test").warning("something else")
    lines = [json.loads(line) for line in written(stream).splitlines()]
    assert [line.get("number") for line in lines[:3]] == [0, 1, 2]
    assert (lines[3]["text"], lines[3]["left_out"]) == ("it failed", 5)
    assert lines[4]["message"] == "something else"
    assert len(lines) == 5


def test_critical_records_are_never_left_out() -> None:
    stream = io.StringIO()
    logs.setup("worker-0", log_json=False, stream=stream)
    for _ in range(2 * Limits().log_repeats_max):
        logging.getLogger("perdure.test").critical("the end")
    assert stream.getvalue().count("the end") == 2 * Limits().log_repeats_max
