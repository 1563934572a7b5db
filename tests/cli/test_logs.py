"""The JSON log: each line is one JSON object, whatever the event contains."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from typing import Any

from tests.waiting import GENEROUS_SECONDS

PROGRAM = """
import structlog
from gateway.cli.logs import configure_logs

configure_logs("json")
log = structlog.get_logger("a.name")
{steps}
"""


def lines_of(steps: str) -> list[dict[str, Any]]:
    """The log of a program; each line must be JSON."""
    command = [sys.executable, "-c", PROGRAM.format(steps=steps)]
    done = subprocess.run(command, capture_output=True, timeout=GENEROUS_SECONDS, check=True)
    return [json.loads(line) for line in done.stderr.decode().splitlines()]


def test_each_event_is_a_line_with_fields_logger_level_and_timestamp() -> None:
    levels = ["info", "warning", "error", "critical"]

    lines = lines_of("\n".join(f"log.{level}('heard', times=3)" for level in levels))

    assert [line["level"] for line in lines] == levels
    for line in lines:
        moment = datetime.fromisoformat(line.pop("timestamp"))
        assert moment.utcoffset() == timedelta(0)
        assert line.keys() == {"times", "event", "logger", "level"}
        assert (line["times"], line["event"], line["logger"]) == (3, "heard", "a.name")


def test_debug_events_are_not_written() -> None:
    assert lines_of("log.debug('heard')") == []


def test_an_exception_is_logged_with_its_traceback_in_one_line() -> None:
    steps = (
        "try:\n"
        "    raise ValueError('told')\n"
        "except ValueError as fault:\n"
        "    log.exception('failed', part='one')\n"
        "    log.error('failed', part='two', exc_info=fault)\n"
    )

    lines = lines_of(steps)

    assert [(line["part"], line["level"]) for line in lines] == [("one", "error"), ("two", "error")]
    for line in lines:
        assert line["exception"].startswith("Traceback")
        assert line["exception"].endswith("ValueError: told")
        assert "exc_info" not in line


def test_a_line_of_text_has_nothing_that_a_terminal_obeys() -> None:
    """A value may be the text of upstream, and a library's line that of anybody."""
    steps = (
        "import logging\n"
        "configure_logs('text')\n"
        "text = chr(27) + '[2J' + chr(155) + chr(10) + 'next'\n"
        "log.warning('heard', text=text)\n"
        "logging.getLogger('a.library').warning('told %s', text)\n"
        "try:\n"
        "    raise ValueError(text)\n"
        "except ValueError:\n"
        "    log.exception('failed')\n"
    )
    command = [sys.executable, "-c", PROGRAM.format(steps=steps)]
    done = subprocess.run(command, capture_output=True, timeout=GENEROUS_SECONDS, check=True)
    written = done.stderr.decode()
    assert {char for char in written if not char.isprintable()} == {"\n"}
    heard, told, *_ = written.splitlines()
    assert r"text=\x1b[2J\x9b\nnext" in heard
    assert r"told \x1b[2J\x9b\nnext" in told


def test_invalid_text_and_huge_numbers_are_written() -> None:
    (line,) = lines_of(r"log.info('heard', half='\ud83d', huge=1 << 70, thing={1})")

    assert line["half"] == "\ud83d"
    assert line["huge"] == 1 << 70
    assert line["thing"] == "{1}"
    assert line["level"] == "info"
