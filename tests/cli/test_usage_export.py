"""`gateway usage export`: what it writes and what it refuses. `tests/test_month` has the sums."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gateway.billing.focus import VERSIONS, columns_of
from tests.cli.test_commands import RunHere, run_here
from tests.rows import each_row

__all__ = ["run_here"]

MONTH = f"{datetime.now(UTC):%Y-%m}"


@pytest.mark.parametrize("version", [None, *VERSIONS])
def test_an_empty_month_is_the_header_of_its_version(
    run_here: RunHere, version: str | None
) -> None:
    given = () if version is None else ("--version", version)
    result = run_here("usage", "export", "--focus", "--month", MONTH, *given)
    assert result.exit_code == 0, result.stderr
    assert result.stdout_bytes == ",".join(columns_of(version or "1.2")).encode() + b"\r\n"
    assert "Store: " in result.stderr


@each_row(
    ("words", "message"),
    [
        (["--focus"], "--month"),
        (["--month", MONTH], "--focus"),
        (["--focus", "--month", "2026-13"], f"a month that has begun, such as {MONTH}"),
        (["--focus", "--month", "9998-01"], "a month that has begun"),
        (["--focus", "--month", "2001-01"], "billing.keep_totals"),
        (["--focus", "--month", MONTH, "--version", "2.0"], "'1.0', '1.1', '1.2'"),
    ],
)
def test_what_cannot_be_exported_is_a_wrong_usage(
    run_here: RunHere, words: list[str], message: str
) -> None:
    result = run_here("usage", "export", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
