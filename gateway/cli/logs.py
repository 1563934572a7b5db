"""The format of the log: one event a line, as text for a person or as JSON for a program.

The gateway's own events are written directly, without the standard library's logging: the access
log has a line for every request, and logging it would take longer than all checks of the request.
Events of libraries come through the standard library and look the same.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
import structlog


class _Line:
    """Writes lines to standard error. A line that cannot be written is lost."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def write(self, line: str | bytes) -> None:
        # The whole line at once, so that workers that share a file do not mix theirs.
        data = line if isinstance(line, bytes) else line.encode("utf-8", "backslashreplace")
        try:
            sys.stderr.buffer.write(data + b"\n")
            sys.stderr.buffer.flush()
        # A closed standard error must not fail the request that logs.
        except (OSError, ValueError):
            return

    debug = info = warning = error = critical = exception = write


class _JsonLogger(structlog.BoundLoggerBase):
    """Writes events as JSON in one step; a chain of structlog's processors is slower."""

    def debug(self, event: str, **fields: Any) -> None:
        """Writes nothing."""

    def info(self, event: str, **fields: Any) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write("error", event, fields)

    def critical(self, event: str, **fields: Any) -> None:
        self._write("critical", event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the current exception."""
        self._write("error", event, {**fields, "exc_info": True})

    def _write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        fields["event"] = event
        fields["logger"] = self._logger.name
        fields["level"] = level
        fields["timestamp"] = datetime.now(UTC)
        if "exc_info" in fields:
            structlog.processors.format_exc_info(self._logger, level, fields)
        self._logger.write(_as_json(self._logger, level, fields))


def _without_controls(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Escapes what a terminal obeys: a value may be the text of a client or of upstream."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = _escaped(value, kept="")
    return event


def _escaped(text: str, *, kept: str) -> str:
    return "".join(
        char if char.isprintable() or char in kept else ascii(char)[1:-1] for char in text
    )


def _plain_traceback(out: TextIO, fault: Any) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, fault)
    out.write(_escaped(text.getvalue(), kept="\n\t"))


def _console() -> structlog.dev.ConsoleRenderer:
    # Tracebacks stay plain: the fancy ones show local variables, keys and prompts among them.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty() and not os.environ.get("NO_COLOR"),
        exception_formatter=_plain_traceback,
    )


def _as_json(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> bytes:
    """The JSON of any event."""
    try:
        return orjson.dumps(event, default=repr, option=orjson.OPT_UTC_Z)
    # orjson refuses half a surrogate pair and integers beyond 64 bits; `json` does not.
    except TypeError:
        return json.dumps(event, default=_as_plain).encode()


def _as_plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return repr(value)


def _as_text(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
    return _as_json(logger, method, event).decode()


def configure_logs(form: Literal["text", "json"] | None) -> None:
    """Sends the logs of the gateway and of its libraries to standard error, in one format.

    None: text on a terminal, else JSON.
    """
    is_text = sys.stderr.isatty() if form is None else form == "text"
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    exceptions = structlog.processors.format_exc_info
    foreign: list[Any] = [_without_controls, _console()] if is_text else [exceptions, _as_text]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *foreign],
        )
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    as_text = structlog.make_filtering_bound_logger(logging.INFO)
    structlog.configure(
        processors=[*shared, _without_controls, _console()],
        logger_factory=_Line,
        wrapper_class=as_text if is_text else _JsonLogger,
        cache_logger_on_first_use=True,
    )
