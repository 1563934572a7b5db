"""How the gateway's own log lines look to a machine: one JSON object a line, whatever is in it."""

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
    """What a program logs, each line read strictly."""
    command = [sys.executable, "-c", PROGRAM.format(steps=steps)]
    done = subprocess.run(command, capture_output=True, timeout=GENEROUS_SECONDS, check=True)
    return [json.loads(line) for line in done.stderr.decode().splitlines()]


def test_each_event_is_a_line_with_its_words_its_logger_its_level_and_the_time() -> None:
    levels = ["info", "warning", "error", "critical"]

    lines = lines_of("\n".join(f"log.{level}('heard', times=3)" for level in levels))

    assert [line["level"] for line in lines] == levels
    for line in lines:
        moment = datetime.fromisoformat(line.pop("timestamp"))
        assert moment.utcoffset() == timedelta(0)
        assert line.keys() == {"times", "event", "logger", "level"}
        assert (line["times"], line["event"], line["logger"]) == (3, "heard", "a.name")


def test_what_is_for_developers_alone_is_not_written() -> None:
    assert lines_of("log.debug('heard')") == []


def test_an_exception_is_told_with_its_traceback_and_stays_one_line() -> None:
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


def test_what_is_no_valid_text_or_too_large_a_number_is_written_all_the_same() -> None:
    (line,) = lines_of(r"log.info('heard', half='\ud83d', huge=1 << 70, thing={1})")

    assert line["half"] == "\ud83d"
    assert line["huge"] == 1 << 70
    assert line["thing"] == "{1}"
    assert line["level"] == "info"
